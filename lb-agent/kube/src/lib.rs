//! The two sources of facts behind one interface: a stream of [`Received`] events.
//!
//! `api_server` watches an API server, `manifests` a directory. Each kind has one file that turns its objects into
//! records at once, so that nothing of Kubernetes' types is kept, and one line in `kinds`.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lb_core::cluster::{Event, Kind};

mod field;
mod kinds;
mod meta;
mod namespace;
mod node;
mod notation;
mod pod;
mod policy;
mod service;
mod service_cidr;
mod slice;
mod watched;

pub mod api_server;
pub mod manifests;

#[cfg(test)]
mod tests;

/// An event and when it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// What was told.
    pub event: Event,
    /// When: the programming latency is measured from here.
    pub at: Instant,
}

impl Received {
    /// An event that arrives now.
    pub fn now(event: Event) -> Self {
        Self { event, at: Instant::now() }
    }
}

/// What the metrics say about the sources; shared with whoever serves them.
#[derive(Debug, Default)]
pub struct Counters {
    kinds: [KindCounters; Kind::ALL.len()],
}

/// Counters of one kind.
#[derive(Debug, Default)]
pub struct KindCounters {
    restarts: AtomicU64,
    errors: AtomicU64,
    last_event_secs: AtomicU64,
}

impl Counters {
    /// A new set, to be shared.
    pub fn shared() -> Arc<Self> {
        Arc::default()
    }

    /// Those of one kind.
    pub fn of(&self, kind: Kind) -> &KindCounters {
        let [first, ..] = &self.kinds;
        // There is one for each.
        self.kinds.get(kind as usize).unwrap_or(first)
    }
}

impl KindCounters {
    /// How often a list began.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// How often the source failed and was tried again.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// When the last event arrived, in seconds since 1970; 0 = never.
    pub fn last_event_secs(&self) -> u64 {
        self.last_event_secs.load(Ordering::Relaxed)
    }

    fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn count_event(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_event_secs.store(now.as_secs(), Ordering::Relaxed);
    }
}
