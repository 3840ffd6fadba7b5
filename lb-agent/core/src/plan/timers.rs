//! What has to wait: ranges that a packet may still be reading, backends that flows still use.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::slots::SlotRange;

/// A range of slots is reused no sooner than this after its last frontend was switched: a program that read the
/// frontend's value just before is long done with its slots.
pub(super) const RELEASE: Duration = Duration::from_secs(1);
/// A backend stays DRAINING at least this long after leaving the slots, so that requests in flight can finish.
pub(super) const DRAIN: Duration = Duration::from_secs(5);
/// How often a draining backend is looked at once that time is over.
pub(super) const RECHECK: Duration = Duration::from_secs(1);
/// The id of a dead backend is reused no sooner than this after its death.
pub(super) const REST: Duration = Duration::from_secs(10);

/// Deadlines.
#[derive(Debug, Default)]
pub(super) struct Timers {
    ranges: BTreeSet<(Duration, SlotRange, u32)>,
    backends: BTreeSet<(Duration, u32)>,
    /// The deadline of each backend id that has one.
    armed: HashMap<u32, Duration>,
    /// Begun by a write whose time is not known yet.
    unstamped_ranges: Vec<(SlotRange, u32)>,
    unstamped_backends: BTreeMap<u32, Duration>,
    /// When the bitmaps of ports are swept, and the settings tried again.
    sweep: Option<Duration>,
    unstamped_sweep: bool,
}

impl Timers {
    /// The range is free [`RELEASE`] after the next [`Timers::stamp`]. Until then it counts against its namespace.
    pub(super) fn release(&mut self, range: SlotRange, tenant: u32) {
        if range.len > 0 {
            self.unstamped_ranges.push((range, tenant));
        }
    }

    /// The backend is due `delay` after the next [`Timers::stamp`].
    pub(super) fn arm(&mut self, id: u32, delay: Duration) {
        self.disarm(id);
        self.unstamped_backends.insert(id, delay);
    }

    /// Whether the backend has a deadline.
    pub(super) fn is_armed(&self, id: u32) -> bool {
        self.armed.contains_key(&id) || self.unstamped_backends.contains_key(&id)
    }

    /// Forgets the backend's deadline.
    pub(super) fn disarm(&mut self, id: u32) {
        if let Some(at) = self.armed.remove(&id) {
            self.backends.remove(&(at, id));
        }
        self.unstamped_backends.remove(&id);
    }

    /// What is not a Service's is looked at [`RELEASE`] after the next [`Timers::stamp`].
    pub(super) fn sweep(&mut self) {
        self.unstamped_sweep |= self.sweep.is_none();
    }

    /// The same at a time that may be over.
    pub(super) fn sweep_at(&mut self, at: Duration) {
        self.unstamped_sweep = false;
        self.sweep = Some(self.sweep.map_or(at, |sweep| sweep.min(at)));
    }

    /// Whether it is time for that.
    pub(super) fn due_sweep(&mut self, now: Duration) -> bool {
        self.sweep.take_if(|at| *at <= now).is_some()
    }

    /// Everything begun since the last time begins to count now.
    pub(super) fn stamp(&mut self, now: Duration) {
        let ranges = self.unstamped_ranges.drain(..);
        self.ranges.extend(ranges.map(|(range, tenant)| (now + RELEASE, range, tenant)));
        if std::mem::take(&mut self.unstamped_sweep) {
            self.sweep = Some(now + RELEASE);
        }
        for (id, delay) in std::mem::take(&mut self.unstamped_backends) {
            self.armed.insert(id, now + delay);
            self.backends.insert((now + delay, id));
        }
    }

    /// A range whose time is over, and whose it is.
    pub(super) fn due_range(&mut self, now: Duration) -> Option<(SlotRange, u32)> {
        self.ranges.first().filter(|(at, ..)| *at <= now)?;
        self.ranges.pop_first().map(|(_, range, tenant)| (range, tenant))
    }

    /// The backends whose time is over.
    pub(super) fn due_backends(&mut self, now: Duration) -> Vec<u32> {
        let rest = self.backends.split_off(&(now + Duration::from_nanos(1), 0));
        let due = std::mem::replace(&mut self.backends, rest);
        for (_, id) in &due {
            self.armed.remove(id);
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// The first deadline.
    pub(super) fn first(&self) -> Option<Duration> {
        let range = self.ranges.first().map(|(at, ..)| *at);
        let backend = self.backends.first().map(|(at, _)| *at);
        range.into_iter().chain(backend).chain(self.sweep).min()
    }
}
