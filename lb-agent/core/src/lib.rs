//! The pure middle of the agent: records of the cluster become desired tables, and the difference to the maps a plan.
//!
//! Nothing here reads a clock, a file or a socket, and nothing waits: the dependencies of this crate see to that. Beside
//! it are the names that the agent writes for `lbctl` ([`names`]), and the protocol to query a
//! running agent ([`admin`]).
#![forbid(unsafe_code)]

pub mod admin;
pub mod analyze;
pub mod annotation;
pub mod build;
pub mod cluster;
pub mod counts;
pub mod escape;
pub mod host_rules;
pub mod issue;
pub mod model;
pub mod names;
mod object;
pub mod plan;
pub mod uid;
