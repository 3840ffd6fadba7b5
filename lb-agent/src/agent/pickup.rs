//! Until when connections may be met in mid-flow, since they may be older than what would have seen them begin: the
//! conntrack table, or the policies of their Pod.
#![forbid(unsafe_code)]

use std::time::Duration;

use lb_common::config::{SettingFlags, Settings};
use tracing::{info, warn};

use crate::config::{AgentConfig, SourceCheck};
use lb_core::plan::{Actual, Given, MapError, MapStore as _, Write};
use lb_kernel::bpf::clock::Clock;
use lb_kernel::bpf::store::Maps;

/// How long, by which clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pickup {
    clock: Clock,
    grace: Duration,
}

impl Pickup {
    pub(super) fn new(clock: Clock, grace: Duration) -> Self {
        Self { clock, grace }
    }

    /// The stamp until which that is, from now on; 0 = never.
    pub(super) fn until(&self) -> u32 {
        if self.grace.is_zero() {
            return 0;
        }
        self.clock.stamp_in(self.grace).unwrap_or_else(|err| {
            warn!(%err, "cannot read the clock: --pickup-grace has no effect");
            0
        })
    }
}

/// What is known at the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Which flows may go past the IP stack, or why not.
    pub past: SettingFlags,
    /// The conntrack table has no entry of earlier connections.
    pub ct_is_new: bool,
}

/// What the settings say from the start on. It is written at once: policies of an earlier run are in force, and before
/// the API server has told everything nothing else is written.
pub(super) fn given(
    cfg: &AgentConfig,
    pickup: &Pickup,
    maps: &mut Maps,
    actual: &mut Actual,
    start: &Start,
) -> Result<Given, MapError> {
    let Start { past, ct_is_new } = *start;
    let before = actual.settings.as_deref().copied().unwrap_or(Settings::ZERO);
    let pickup_until = if ct_is_new { pickup.until() } else { before.pickup_until };
    let given =
        Given { strict_source: cfg.source_check == SourceCheck::Strict, past, pickup_until };
    let settings = Box::new(given.within(before));
    if *settings != before {
        let write = Write::PutSettings(settings);
        maps.apply(&write)?;
        actual.record(&write);
    }
    if ct_is_new {
        info!(grace = ?pickup.grace, "the conntrack table is new: accepting older connections for the grace period");
    }
    Ok(given)
}
