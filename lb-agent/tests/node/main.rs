//! One node: programs attached to its devices, the agent as a process, and `lbctl` on pinned maps. Each test has a network
//! namespace, a pin directory and a cgroup of its own. Needs root and BPF.
#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "a test's helper panics like the test"
)]

mod node;

mod agent;
mod attach;
mod growth;
mod host_rules;
mod lbctl;
mod watches;
