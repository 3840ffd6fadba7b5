//! The pure middle of the agent: records of the cluster become desired tables, and the difference to the maps a plan.
//!
//! Nothing here reads a clock, a file or a socket, and nothing waits: the dependencies of this crate see to that. Beside
//! it are the names that the agent writes for `lbctl` ([`names`]), and what one may ask it ([`api`], [`inquiry`]).
#![forbid(unsafe_code)]

pub mod api;
pub mod cluster;
pub mod counts;
pub mod escape;
pub mod inquiry;
pub mod issue;
pub mod model;
pub mod names;
pub mod plan;
