//! `lbctl explain`: what happens to a flow, step by step, and why.
//!
//! ```text
//! facts ─► trace ─► explanation ─► text, JSON, YAML
//!          source ─► Service ─► each backend it may select ─► egress policy ─► ingress policy ─► socket
//! ```
//! What decides is read where the packets meet it: frontends and backends in the pinned maps, verdicts of the programs'
//! own evaluator on the pinned policy tables, listening sockets in the Pod. The agent's records only give names, and
//! say what a rule lacks. [`walk`] notes each hop as data ([`trace`]); [`render`] puts it into words, on which nothing
//! decides any more.

pub mod args;
mod closest;
pub mod code;
#[cfg(feature = "cluster")]
pub mod combine;
pub mod explanation;
pub mod facts;
pub mod host;
pub mod known;
pub mod lookup;
pub mod offline;
mod policy;
pub mod render;
mod service;
pub mod socket;
pub mod trace;
mod unserved;
pub mod walk;

#[cfg(test)]
mod tests;

pub use self::code::Code;
pub use self::explanation::{Explanation, Finding, Nearest, Step, print};
pub use self::facts::{Answered, Facts, Listening, Stale};
pub use self::render::render;
pub use self::trace::{HopState, Tally, TraceOutcome};
pub use self::walk::trace;
