//! Single packets through the real programs on private maps: packet in, verdict and packet out, and exactly which
//! counters changed. Needs root and BPF; sends nothing.
//!
//! Numbers in test names (`s15_…`) are those of `SEMANTICS.md`.
#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "a test's helper panics like the test"
)]

mod account;
mod arrivals;
mod forged;
mod hop;
mod mutants;
mod oracle;
mod outside;
mod pairs;
mod past;
mod peer;
mod policy;
mod reuse;
mod services;
mod tables;
