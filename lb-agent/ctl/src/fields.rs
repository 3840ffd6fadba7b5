//! What few Services use, from maps of their own: session affinity, source ranges, live flows by which backends are
//! chosen.

use std::collections::HashMap;

use lb_common::service::{Affinity, AffinityKey, affinity_is_over};
use serde::{Serialize, Serializer};

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

/// Whether a client with session affinity goes where it went before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AffinityState {
    /// It does.
    Valid,
    /// Its backend takes no new flows any more.
    Gone,
    /// Its time is over.
    Expired,
}

impl AffinityState {
    /// The word in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::Gone => "GONE",
            Self::Expired => "EXPIRED",
        }
    }
}

impl Serialize for AffinityState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
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
