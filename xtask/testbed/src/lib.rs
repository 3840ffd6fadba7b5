//! Nodes and Pods as network namespaces, with real servers and loads: what the demo, the bench and ring `agents` run on.
//!
//! ```text
//!            <prefix>-fabric   bridge; forwards nothing, no way out
//!             /            \
//!   <prefix>-a              <prefix>-b        nodes: 172.31.0.11, fd31::11 …
//!    |   |   |               |   |   |
//!   Pods, each a namespace                    10.244.1.10, fd44:0:0:1::10 …
//! ```
//! A node's default route leads to the fabric, so a packet to a Service address that was not translated is dropped there. Everything is
//! removed when its [`Bed`] goes out of scope, and also when its process dies (see `reaper`).

pub mod netns;
mod reaper;
pub mod tun;

pub mod frame;
pub mod raw;

pub mod bed;
pub mod node;
pub mod pod;

pub mod manifest;

pub mod agent;

pub mod client;
pub mod datagrams;
pub mod exchanges;
pub mod load;
pub mod measure;
pub mod measured;
pub mod series;
pub mod server;
pub mod wait;

pub use agent::Agent;
pub use bed::Bed;
pub use netns::Netns;
pub use node::{Node, Shape};
pub use pod::Pod;
