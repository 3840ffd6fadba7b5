//! The two sources of facts behind one interface: a stream of [`Received`] events.
//!
//! `api_server` watches an API server, `manifests` a directory. Each kind has one file that turns its objects into
//! records at once, so that nothing of Kubernetes' types is kept, and one line in `kinds`.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
#[derive(Debug)]
pub struct KindCounters {
    restarts: AtomicU64,
    errors: AtomicU64,
    /// By the monotonic clock, since the wall clock may be set: milliseconds after `begun`, from 1 on; 0 = never.
    last_event_ms: AtomicU64,
    /// What the server says instead of objects.
    refusal: Mutex<Option<String>>,
    begun: Instant,
}

impl Default for KindCounters {
    fn default() -> Self {
        let [restarts, errors, last_event_ms] = Default::default();
        Self { restarts, errors, last_event_ms, refusal: Mutex::default(), begun: Instant::now() }
    }
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

    /// Time since the last event arrived; `None` if none has.
    pub fn event_age(&self) -> Option<Duration> {
        match self.last_event_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(self.begun.elapsed().saturating_sub(Duration::from_millis(ms))),
        }
    }

    /// Why the server gives no objects, in its words, while it refuses them: the agent's role may lack the kind.
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_refused(&self, why: Option<String>) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn count_event(&self) {
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_event_ms.store(ms.max(1), Ordering::Relaxed);
    }
}
