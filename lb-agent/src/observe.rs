//! The state of the agent: published by its loop, read by the servers for health and metrics. None of them waits for another.
#![forbid(unsafe_code)]

mod exposition;
pub(crate) mod health;
pub(crate) mod http;
pub(crate) mod metrics;
#[cfg(test)]
mod monitoring;
pub(crate) mod process;
pub(crate) mod scrape;
pub(crate) mod service_health;

use std::time::{Instant, SystemTime};

/// What the loop publishes after each sync.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Status {
    /// Whether all initial lists are complete and were applied once.
    pub synced: bool,
    /// When the maps last said what they should.
    pub updated: SystemTime,
    /// Since when they do not: the oldest change that is not in the maps.
    pub pending_since: Option<Instant>,
    /// Whether load balancers may send traffic to this node: not when it is about to be removed.
    pub node_eligible: bool,
}

impl Status {
    /// At the start: nothing is known to be pending.
    pub(crate) fn starting() -> Self {
        Self { synced: false, updated: SystemTime::now(), pending_since: None, node_eligible: true }
    }
}
