//! The programs' parser as a host library: `parse.rs` and `parsed.rs` of `lb-ebpf` over a packet of bytes, and `compare`,
//! which reads a frame with it and with etherparse. A crate of its own, so that `fuzz/` builds nothing else.
#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test's helper panics like the test"
)]

#[allow(dead_code, unreachable_pub, missing_docs, reason = "a part of the programs' interface")]
mod packet;
#[path = "../../../../lb-ebpf/src/parse.rs"]
#[allow(dead_code, reason = "the programs use the rest")]
mod parse;
#[path = "../../../../lb-ebpf/src/parsed.rs"]
#[allow(dead_code, reason = "the programs use the rest")]
mod parsed;
mod reading;

pub use reading::{ReadingOutcome, compare};
