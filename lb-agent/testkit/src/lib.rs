//! What the tests share. `packet` writes and shows packets as text; `bed` runs them through the real programs on private
//! maps, `node` gives these programs a routing table, and `sample` fills their tables by hand. `objects` builds records of the
//! cluster, and `world` puts them together. `random` and `mutation` are for the tests that search. Network namespaces with
//! real processes are in `xtask/testbed`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    reason = "a test's helper panics like the test"
)]

pub mod document;
pub mod packet;

pub mod bed;
pub mod node;
pub mod sample;
mod shelf;

pub mod objects;
pub mod world;

pub mod mutation;
pub mod random;
