//! Ring e2e: real agents on nodes that are network namespaces, real sockets in Pods. Needs root and BPF.
//!
//! `s15_…` in a test's name is the number of a requirement that the test shows: a behaviour that conformance suites
//! and kube-proxy's users rely on. The doc comment of the test says which.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper panics like the test"
)]

#[path = "e2e/stage.rs"]
mod stage;

#[path = "e2e/beside.rs"]
mod beside;
#[path = "e2e/churn.rs"]
mod churn;
#[path = "e2e/cluster_ip.rs"]
mod cluster_ip;
#[path = "e2e/explain.rs"]
mod explain;
#[path = "e2e/host.rs"]
mod host;
#[path = "e2e/identity.rs"]
mod identity;
#[path = "e2e/input.rs"]
mod input;
#[path = "e2e/outside.rs"]
mod outside;
#[path = "e2e/overlay.rs"]
mod overlay;
#[path = "e2e/policy.rs"]
mod policy;
#[path = "e2e/ports.rs"]
mod ports;
#[path = "e2e/refusal.rs"]
mod refusal;
#[path = "e2e/restart.rs"]
mod restart;
#[path = "e2e/tunnel.rs"]
mod tunnel;
