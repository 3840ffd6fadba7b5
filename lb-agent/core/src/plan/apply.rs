//! A plan's writes are done, in order: what a write needs must be there, what follows a failed write waits for its next
//! try, and what depends on it denies until then.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::Planner;
use super::policy::failures;
use super::write::{MapError, MapStore, Write};
use crate::cluster::Name;

/// Writes in the order in which they have to be done.
///
/// They come in batches. After a failed write of a batch of a Service or of MAC addresses the rest of that batch must not be
/// done; all other writes depend on nothing but what [`Planner::apply`] checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "each plan has to be applied before the next is made"]
pub struct Plan {
    /// All writes.
    pub writes: Vec<Write>,
    batches: Vec<Batch>,
}

/// Writes of one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Batch {
    owner: WriteOwner,
    /// Index in [`Plan::writes`] after the last.
    end: usize,
}

/// Who tries a write again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WriteOwner {
    /// A Service, all of it.
    Service(Name),
    /// A timer: of a backend, of the bitmaps of ports, of the settings.
    Timer,
    /// Policies, all of them: the plan has what they lack.
    Policies,
    /// One Pod, which the next plan of policies comes to as well.
    Pod,
    /// The node's devices: the next plan has what they lack.
    Devs,
    /// MAC addresses on the node's bridges, likewise.
    Links,
    /// Sources of Pods, likewise.
    PodSources,
    /// How packets reach Pods past the IP stack.
    Locals,
    /// Ranges of other nodes' Pods, likewise.
    OtherRanges,
}

impl WriteOwner {
    /// Whether each write of a batch depends on those before.
    fn is_ordered(&self) -> bool {
        matches!(self, Self::Service(_) | Self::Links)
    }
}

impl Plan {
    /// What was added since the last batch is one.
    pub(super) fn end_batch(&mut self, owner: WriteOwner) {
        self.batches.push(Batch { owner, end: self.writes.len() });
    }

    /// A plan of one batch.
    pub(super) fn of(owner: WriteOwner, writes: impl IntoIterator<Item = Write>) -> Self {
        let mut plan = Self { writes: writes.into_iter().collect(), batches: Vec::new() };
        plan.end_batch(owner);
        plan
    }
}

/// The result of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Writes done.
    pub writes: usize,
    /// Writes that failed, with the reason; they come again in a later plan.
    pub failed: Vec<(Write, MapError)>,
}

impl Planner {
    /// Does the writes, and notes which of them happened. `clock` is that of the `now` of the plans.
    pub fn apply(
        &mut self,
        plan: Plan,
        maps: &mut impl MapStore,
        clock: &mut dyn FnMut() -> Duration,
    ) -> Applied {
        let mut applied = Applied::default();
        let mut writes = plan.writes.into_iter();
        let mut start = 0;
        for Batch { owner, end } in plan.batches {
            let before = applied.failed.len();
            for mut write in writes.by_ref().take(end - start) {
                let waits = owner.is_ordered() && applied.failed.len() > before;
                if waits || self.policies.is_moot(&write) {
                    continue;
                }
                self.policies.close_incomplete(&mut write);
                match self.write(&write, maps) {
                    Ok(()) => applied.writes += 1,
                    Err(err) => {
                        self.failed(&owner, &write, &err, maps, clock());
                        applied.failed.push((write, err));
                    }
                }
            }
            start = end;
            if applied.failed.len() == before {
                self.succeeded(&owner, clock);
            }
        }
        self.tables.stamp(clock());
        applied
    }

    fn write(&mut self, write: &Write, maps: &mut impl MapStore) -> Result<(), MapError> {
        let lacking = self.tables.bitmaps.lacks(&self.tables.actual, write);
        if let Some(map) = lacking.or_else(|| failures::lacks(&self.tables.actual, write)) {
            return Err(MapError::lacking(map));
        }
        maps.apply(write)?;
        self.tables.record(write);
        Ok(())
    }

    /// All writes of a batch happened.
    fn succeeded(&mut self, owner: &WriteOwner, clock: &mut dyn FnMut() -> Duration) {
        match owner {
            WriteOwner::Service(name) => self.settle(name),
            WriteOwner::Policies => self.policies.settle(clock()),
            WriteOwner::Devs => self.devs.backlog.settle(),
            WriteOwner::Links => self.links.backlog.settle(),
            WriteOwner::Locals => self.locals.backlog.settle(),
            WriteOwner::OtherRanges => self.pod_ranges.backlog.settle(),
            WriteOwner::PodSources => self.pods.sources.backlog.settle(),
            WriteOwner::Timer | WriteOwner::Pod => {}
        }
    }

    /// A write did not happen.
    fn failed(
        &mut self,
        owner: &WriteOwner,
        write: &Write,
        err: &MapError,
        maps: &mut impl MapStore,
        now: Duration,
    ) {
        match owner {
            WriteOwner::Service(name) => {
                self.tables.doubt_ports();
                self.service_failed(name, err, now);
            }
            WriteOwner::Timer => {
                self.tables.doubt_ports();
                self.timer_failed(write);
            }
            WriteOwner::Policies | WriteOwner::Pod => {
                for write in
                    self.policies.failed(&self.tables.actual, (write, err), &self.node, now)
                {
                    // Should that fail, too, the retry comes here again.
                    drop(self.write(&write, maps));
                }
            }
            WriteOwner::Devs => self.devs.failed(&self.node, err, now),
            WriteOwner::Links => self.links.failed(&self.node, err, now),
            WriteOwner::Locals => self.locals.failed(&self.node, err, now),
            WriteOwner::OtherRanges => self.pod_ranges.failed(&self.node, err, now),
            WriteOwner::PodSources => self.pods.sources.failed(write, err, now),
        }
    }
}
