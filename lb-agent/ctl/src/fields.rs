//! What few Services use, from maps of their own: session affinity, source ranges, live flows by which backends are
//! chosen.

use std::collections::HashMap;

use lb_common::service::{Affinity, AffinityKey, affinity_is_over};

use lb_core::cluster::Prefix;

/// These maps as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Clients with session affinity, those included whose time is over.
    pub clients: Vec<(AffinityKey, Affinity)>,
    /// Who may use the gated frontends, by service port; sorted.
    pub source_ranges: HashMap<u32, Vec<Prefix>>,
    /// Live flows as the programs count them, by backend id; only of Services that choose by them.
    pub loads: HashMap<u32, u32>,
    /// When they were read.
    pub ticks: Ticks,
}

/// A reading of the kernel's tick counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// Its value.
    pub now: u64,
    /// Ticks a second.
    pub hz: u32,
}

impl Ticks {
    /// Whole seconds since a tick. One from the future (user space reads the clock a little earlier) is now.
    pub fn secs_since(self, last: u64) -> u64 {
        self.now.saturating_sub(last) / u64::from(self.hz.max(1))
    }

    /// Whether a client last seen at that tick has lost its affinity.
    pub fn is_over(self, last: u64, timeout_secs: u32) -> bool {
        affinity_is_over(last, self.now, timeout_secs, self.hz.max(1))
    }
}
