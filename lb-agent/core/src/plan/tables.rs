//! What was written for certain, and what of the maps is free.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::service::{Backend, BackendFlags, Frontend, FrontendKey, state};

use super::actual::Actual;
use super::bitmaps::Bitmaps;
use super::capacity::Capacity;
use super::flows::{Flows, LastFlows};
use super::ids::BackendIds;
use super::share::Holdings;
use super::slots::{FreeSlots, SlotRange};
use super::timers::{DRAIN, REST, Timers};
use super::write::Write;
use crate::model::share;

/// Owner of backends that belong to no service port known.
pub(super) const ORPHAN: u32 = u32::MAX;

/// The maps as they are, with the ids, ranges and timers that belong to them.
#[derive(Debug)]
pub(super) struct ServiceTables {
    pub(super) capacity: Capacity,
    pub(super) actual: Actual,
    pub(super) ids: BackendIds,
    pub(super) ranges: FreeSlots,
    /// How many slots each namespace holds.
    pub(super) slots_held: Holdings,
    pub(super) timers: Timers,
    pub(super) flows: LastFlows,
    /// Namespaces that lacked backend ids, and for how many endpoints, while something is pending.
    pub(super) lacking: BTreeMap<u32, u32>,
    /// Whether something has become free since the last plan.
    pub(super) freed: bool,
    /// Frontends that the plan in the making adds.
    pub(super) new_frontends: usize,
    /// Source ranges that it adds.
    pub(super) new_ranges: usize,
    pub(super) bitmaps: Bitmaps,
}

impl ServiceTables {
    pub(super) fn new(capacity: Capacity, actual: Actual) -> Self {
        Self {
            capacity,
            bitmaps: Bitmaps::new(&actual),
            actual,
            ids: BackendIds::new(capacity.backends),
            ranges: FreeSlots::new(capacity.slots),
            slots_held: Holdings::new(capacity.slots),
            timers: Timers::default(),
            flows: LastFlows::default(),
            lacking: BTreeMap::new(),
            freed: false,
            new_frontends: 0,
            new_ranges: 0,
        }
    }

    /// A plan begins, for a host with these addresses: the writes that mend the bitmaps of ports.
    pub(super) fn begin(&mut self, host: &[Addr], first: bool, due: bool) -> Vec<Write> {
        self.new_frontends = 0;
        self.new_ranges = 0;
        let writes = self.bitmaps.begin(&self.actual, host, first, due);
        self.watch_ports();
        writes
    }

    /// A write has failed.
    pub(super) fn doubt_ports(&mut self) {
        self.bitmaps.doubt();
        self.watch_ports();
    }

    /// A pass over the connection table has ended that began at `begun`.
    pub(super) fn passed(&mut self, begun: Duration, flows: Flows) {
        // What is doubtful already has its time, which gives packets the time to read it.
        let waits = self.bitmaps.is_doubtful();
        self.bitmaps.passed(begun, &flows);
        self.flows.passed(begun, flows);
        if self.bitmaps.is_doubtful() && !waits {
            self.timers.sweep_at(begun);
        }
    }

    /// What was written until now was written at this time.
    pub(super) fn stamp(&mut self, now: Duration) {
        self.timers.stamp(now);
        self.bitmaps.stamp(now);
    }

    /// Sees to it that doubtful words are looked at.
    fn watch_ports(&mut self) {
        if self.bitmaps.is_doubtful() {
            self.timers.sweep();
        }
    }

    /// Slots for a namespace, unless it has to leave the last ones to others.
    pub(super) fn take_range(&mut self, tenant: u32, len: u32) -> Option<SlotRange> {
        if !self.slots_held.admits(tenant, len) {
            return None;
        }
        let range = self.ranges.allocate(len)?;
        self.slots_held.add(tenant, len);
        Some(range)
    }

    /// Gives them back.
    pub(super) fn give_range(&mut self, tenant: u32, range: SlotRange) {
        self.ranges.release(range);
        self.slots_held.remove(tenant, range.len);
    }

    pub(super) fn backend(&self, id: u32) -> Backend {
        self.actual.backends.get(id as usize).copied().unwrap_or(Backend::ZERO)
    }

    pub(super) fn slot(&self, slot: u32) -> u32 {
        self.actual.slots.get(slot as usize).copied().unwrap_or(0)
    }

    pub(super) fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.actual.frontends.get(key)
    }

    /// Whether the frontend is there and belongs to this service port.
    pub(super) fn is_of(&self, key: &FrontendKey, service_id: u32) -> bool {
        self.frontend(key).is_some_and(|frontend| frontend.service_id == service_id)
    }

    /// Returns whether this number of further frontends fits. Those that the plan removes do not count: it adds before it
    /// removes.
    pub(super) fn has_room_for(&self, new: usize) -> bool {
        let used = self.actual.frontends.len() + self.new_frontends;
        new == 0 || used + new <= self.capacity.frontends as usize
    }

    /// Takes note of a write that happened, and begins the waiting that follows from it.
    pub(super) fn record(&mut self, write: &Write) {
        match write {
            Write::PutBackend { id, backend } => {
                let before = self.backend(*id);
                self.actual.record(write);
                self.backend_put(*id, backend, &before);
            }
            Write::PutFrontend { key, frontend } => {
                let before = self.actual.frontends.get(key).copied();
                self.actual.record(write);
                self.bitmaps.frontend_put(key, frontend, before);
                self.watch_ports();
            }
            Write::DeleteFrontend { key } => {
                let before = self.actual.frontends.get(key).copied();
                self.actual.record(write);
                self.bitmaps.frontend_deleted(key, before);
                self.watch_ports();
            }
            _ => self.actual.record(write),
        }
    }

    fn backend_put(&mut self, id: u32, backend: &Backend, before: &Backend) {
        self.timers.disarm(id);
        self.flows.forget(id);
        match backend.state {
            state::DRAINING => self.timers.arm(id, DRAIN),
            state::DEAD => self.timers.arm(id, REST),
            state::UNUSED => {
                self.ids.free(id);
                self.freed = true;
            }
            _ => {}
        }
        self.bitmaps.backend_put(backend, before);
        self.watch_ports();
    }

    /// The writes for backends whose time is over: from DRAINING to DEAD when the Pod is gone, when no flow is left, or
    /// when ids are short and its namespace has left the most behind; from DEAD to UNUSED when its id has rested.
    pub(super) fn due_backends(
        &mut self,
        alive: &dyn Fn(&Addr) -> bool,
        now: Duration,
    ) -> Vec<Write> {
        let mut writes = Vec::new();
        let due = self.timers.due_backends(now);
        let mut excess = if due.is_empty() { Excess::default() } else { self.excess() };
        for id in due {
            let backend = self.backend(id);
            let next = match backend.state {
                // Written just before a crash, and no slot has it.
                state::ACTIVE if self.ids.owner(id) == ORPHAN => {
                    Backend { state: state::DRAINING, ..backend }
                }
                state::DRAINING
                    if may_live(&backend, alive)
                        && self.flows.may_have(id, now)
                        && !excess.take(self.ids.tenant(id)) =>
                {
                    self.timers.arm(id, super::timers::RECHECK);
                    continue;
                }
                state::DRAINING => Backend {
                    state: state::DEAD,
                    generation: backend.generation.wrapping_add(1),
                    ..backend
                },
                state::DEAD => Backend { generation: backend.generation, ..Backend::ZERO },
                _ => continue,
            };
            writes.push(Write::PutBackend { id, backend: next });
        }
        writes
    }

    /// Returns the draining backends that must give up their ids although a Pod has the address: connections to them
    /// might last as long as their Pod, and Services that come and go would leave more and more of them behind.
    fn excess(&self) -> Excess {
        let held = self.ids.held();
        if !held.is_short() && self.lacking.is_empty() {
            return Excess::default();
        }
        let mut draining: BTreeMap<u32, u64> = BTreeMap::new();
        let mut dead = 0;
        for (id, backend) in (0u32..).zip(&self.actual.backends) {
            match backend.state {
                state::DRAINING => *draining.entry(self.ids.tenant(id)).or_default() += 1,
                state::DEAD => dead += 1,
                _ => {}
            }
        }
        let capacity = self.capacity.backends;
        let lacking = self.lacking.values().copied().map(u64::from).sum::<u64>();
        let wanted = u64::from(capacity - share::limit(capacity)).max(1) + lacking;
        let missing = wanted.saturating_sub(u64::from(held.free()) + dead);
        let kept = draining.values().sum::<u64>().saturating_sub(missing);
        let level = share::level(draining.values().copied(), kept);
        Excess { draining, level, lacking: self.lacking.clone() }
    }
}

/// Whether the endpoint may serve its connections still, although no Service has it: the end of an endpoint that is not a Pod is
/// not seen.
fn may_live(backend: &Backend, alive: &dyn Fn(&Addr) -> bool) -> bool {
    backend.flags.contains(BackendFlags::NO_POD) || alive(&backend.addr)
}

/// Draining backends by namespace, and how many of them it may keep.
#[derive(Default)]
struct Excess {
    draining: BTreeMap<u32, u64>,
    level: Option<u64>,
    /// Namespaces that may keep none, since they want more.
    lacking: BTreeMap<u32, u32>,
}

impl Excess {
    /// Whether this one of a namespace must go; the next may stay then.
    fn take(&mut self, tenant: u32) -> bool {
        if self.lacking.contains_key(&tenant) {
            return true;
        }
        let Some(level) = self.level else { return false };
        let Some(n) = self.draining.get_mut(&tenant).filter(|n| **n > level) else { return false };
        *n -= 1;
        true
    }
}
