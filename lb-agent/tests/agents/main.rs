//! Real agents on nodes that are network namespaces, real sockets in Pods, and attackers with raw frames. Needs root and
//! BPF.
//!
//! `s15_…` in a test's name is the number of a behavior in `SEMANTICS.md`: conformance suites and kube-proxy's users rely
//! on it. The doc comment of the test says which.
#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper panics like the test"
)]

mod stage;

mod account;
mod arrivals;
mod attacks;
mod beside;
mod churn;
mod cluster_ip;
mod explain;
mod flows;
mod hop;
mod host;
mod identity;
mod input;
mod machine;
mod masqueraded;
mod modules;
mod outside;
mod overlay;
mod past;
mod peer;
mod policy;
mod ports;
mod refusal;
mod restart;
mod tools;
mod tunnel;
