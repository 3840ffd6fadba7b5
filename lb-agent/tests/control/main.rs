//! The pure middle: from records of the cluster to the writes of maps, without a kernel. Needs no privileges.
#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper panics like the test"
)]

mod maps;
mod pipeline;

mod departures;
mod laws;
mod memory;
mod parser;
mod policies;
mod retries;
mod scale;
mod scenarios;
