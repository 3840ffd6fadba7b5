//! What was written for certain, and what of the maps is free.
#![forbid(unsafe_code)]

use std::time::Duration;

use lb_common::service::{Backend, Frontend, FrontendKey, state};

use super::ids::BackendIds;
use super::slots::Ranges;
use super::timers::{DRAIN, REST, Timers};
use super::{Actual, Capacity, Op};

/// Owner of backends that belong to no service port known.
pub(super) const ORPHAN: u32 = u32::MAX;

/// The maps as they are, with the ids, ranges and timers that belong to them.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) capacity: Capacity,
    pub(super) actual: Actual,
    pub(super) ids: BackendIds,
    pub(super) ranges: Ranges,
    pub(super) timers: Timers,
    /// Frontends that the plan in the making adds.
    pub(super) new_frontends: usize,
}

impl Tables {
    pub(super) fn new(capacity: Capacity, actual: Actual) -> Self {
        Self {
            capacity,
            actual,
            ids: BackendIds::new(capacity.backends),
            ranges: Ranges::new(capacity.slots),
            timers: Timers::default(),
            new_frontends: 0,
        }
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

    /// Whether so many more frontends fit. Those that the plan removes do not count: it adds before it removes.
    pub(super) fn has_room_for(&self, new: usize) -> bool {
        let used = self.actual.frontends.len() + self.new_frontends;
        new == 0 || used + new <= self.capacity.frontends as usize
    }

    /// Notes that a write happened, and begins the waiting that follows from it.
    pub(super) fn done(&mut self, op: &Op) {
        match *op {
            Op::PutBackend { id, backend } => {
                put(&mut self.actual.backends, id, backend, Backend::ZERO);
                self.timers.disarm(id);
                match backend.state {
                    state::DRAINING => self.timers.arm(id, DRAIN),
                    state::DEAD => self.timers.arm(id, REST),
                    state::UNUSED => self.ids.free(id),
                    _ => {}
                }
            }
            Op::PutSlot { slot, backend_id } => put(&mut self.actual.slots, slot, backend_id, 0),
            Op::PutFrontend { key, frontend } => {
                self.actual.frontends.insert(key, frontend);
            }
            Op::DeleteFrontend { key } => {
                self.actual.frontends.remove(&key);
            }
        }
    }

    /// The writes for backends whose time is over: from DRAINING to DEAD when nobody has the address any more, from
    /// DEAD to UNUSED when its id has rested.
    pub(super) fn due_backends(
        &mut self,
        alive: &dyn Fn(&lb_common::addr::Addr) -> bool,
        now: Duration,
    ) -> Vec<Op> {
        let mut ops = Vec::new();
        for id in self.timers.due_backends(now) {
            let backend = self.backend(id);
            let next = match backend.state {
                // Written just before a crash, and no slot has it.
                state::ACTIVE if self.ids.owner(id) == ORPHAN => {
                    Backend { state: state::DRAINING, ..backend }
                }
                state::DRAINING if alive(&backend.addr) => {
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
            ops.push(Op::PutBackend { id, backend: next });
        }
        ops
    }
}

/// Writes an element of an array that is kept only up to its last used element.
fn put<T: Copy>(array: &mut Vec<T>, index: u32, element: T, empty: T) {
    let index = index as usize;
    if index >= array.len() {
        array.resize(index + 1, empty);
    }
    if let Some(place) = array.get_mut(index) {
        *place = element;
    }
}
