//! Ring attacks: what an attacker in a Pod, outside or on another node sends as raw frames, at real agents on routed and
//! bridged nodes, over both families. Each attack stands beside its honest twin, which must arrive. Needs root and BPF.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper panics like the test"
)]

#[path = "attacks/lab.rs"]
mod lab;
#[path = "e2e/stage.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod stage;

#[path = "attacks/connections.rs"]
mod connections;
#[path = "attacks/frames.rs"]
mod frames;
#[path = "attacks/replies.rs"]
mod replies;
#[path = "attacks/sources.rs"]
mod sources;
#[path = "attacks/tunnels.rs"]
mod tunnels;
