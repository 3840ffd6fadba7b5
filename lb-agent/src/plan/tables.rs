//! What was written for certain, and what of the maps is free.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::service::{Backend, Frontend, FrontendKey, backend_flags, frontend_flags, state};

use super::flows::LastFlows;
use super::ids::BackendIds;
use super::ports::Ports;
use super::share::{self, Holdings};
use super::slots::{Range, Ranges};
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
    /// Ports of frontends.
    frontend_ports: Ports,
    /// Ports of backends that are processes of this host.
    host_ports: Ports,
    /// Addresses of this host, sorted.
    host: Box<[Addr]>,
}

impl Tables {
    pub(super) fn new(capacity: Capacity, actual: Actual) -> Self {
        let mut frontend_ports = Ports::default();
        let ports = actual.frontends.iter().filter_map(|(key, value)| frontend_port(key, value));
        frontend_ports.recount(ports, &actual.frontend_ports);
        Self {
            capacity,
            actual,
            ids: BackendIds::new(capacity.backends),
            ranges: Ranges::new(capacity.slots),
            slots_held: Holdings::new(capacity.slots),
            timers: Timers::default(),
            flows: LastFlows::default(),
            lacking: BTreeMap::new(),
            freed: false,
            new_frontends: 0,
            new_ranges: 0,
            frontend_ports,
            host_ports: Ports::default(),
            host: Box::default(),
        }
    }

    /// A plan begins, for a host with these addresses: the writes that mend the bitmaps of ports.
    ///
    /// At the very first, and when the host has other addresses, what is missing is added at once; what is too much
    /// goes when it is `due`.
    pub(super) fn begin(&mut self, host: &[Addr], first: bool, due: bool) -> Vec<Op> {
        self.new_frontends = 0;
        self.new_ranges = 0;
        self.frontend_ports.begin();
        self.host_ports.begin();
        if first || *self.host != *host {
            self.host = host.into();
            let backends = self.actual.backends.iter();
            let ports = backends.filter_map(|backend| host_port(&self.host, backend));
            self.host_ports.recount(ports, &self.actual.host_ports);
        }
        let write = if due { Ports::sweep } else { Ports::add };
        let frontend = write(&mut self.frontend_ports, &self.actual.frontend_ports);
        let host = write(&mut self.host_ports, &self.actual.host_ports);
        let frontend = frontend.into_iter().map(|(word, bits)| Op::PutFrontendPorts { word, bits });
        let host = host.into_iter().map(|(word, bits)| Op::PutHostPorts { word, bits });
        let ops = frontend.chain(host).collect();
        self.watch_ports();
        ops
    }

    /// A write has failed.
    pub(super) fn doubt_ports(&mut self) {
        self.frontend_ports.doubt();
        self.host_ports.doubt();
        self.watch_ports();
    }

    /// Whether some backend is a process of this host.
    pub(super) fn has_host_backends(&self) -> bool {
        !self.host_ports.is_empty()
    }

    /// The write that is needed before this frontend.
    pub(super) fn want_frontend_port(&mut self, key: &FrontendKey, value: &Frontend) -> Option<Op> {
        let port = frontend_port(key, value)?;
        let (word, bits) = self.frontend_ports.want(port, &self.actual.frontend_ports)?;
        Some(Op::PutFrontendPorts { word, bits })
    }

    /// The write that is needed before this backend.
    pub(super) fn want_host_port(&mut self, backend: &Backend) -> Option<Op> {
        let port = host_port(&self.host, backend)?;
        let (word, bits) = self.host_ports.want(port, &self.actual.host_ports)?;
        Some(Op::PutHostPorts { word, bits })
    }

    /// The map that lacks something which must be there before this write: the write for it has failed, in whichever
    /// group it was.
    pub(super) fn lacks(&self, op: &Op) -> Option<&'static str> {
        let (port, map, bits) = match op {
            Op::PutFrontend { key, frontend } => {
                (frontend_port(key, frontend)?, "frontend_ports", &self.actual.frontend_ports)
            }
            Op::PutBackend { backend, .. } => {
                (host_port(&self.host, backend)?, "host_ports", &self.actual.host_ports)
            }
            Op::PutSlot { .. }
            | Op::DeleteFrontend { .. }
            | Op::PutSourceRange { .. }
            | Op::DeleteSourceRange { .. }
            | Op::ClearAffinity { .. }
            | Op::PutFrontendPorts { .. }
            | Op::PutHostPorts { .. }
            | Op::PutSettings(_) => return None,
        };
        (!Ports::has(port, bits)).then_some(map)
    }

    /// Sees to it that doubtful words are looked at.
    fn watch_ports(&mut self) {
        if self.frontend_ports.is_doubtful() || self.host_ports.is_doubtful() {
            self.timers.sweep();
        }
    }

    /// Slots for a namespace, unless it has to leave the last ones to others.
    pub(super) fn take_range(&mut self, tenant: u32, len: u32) -> Option<Range> {
        if !self.slots_held.admits(tenant, len) {
            return None;
        }
        let range = self.ranges.allocate(len)?;
        self.slots_held.add(tenant, len);
        Some(range)
    }

    /// Gives them back.
    pub(super) fn give_range(&mut self, tenant: u32, range: Range) {
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

    /// Whether so many more frontends fit. Those that the plan removes do not count: it adds before it removes.
    pub(super) fn has_room_for(&self, new: usize) -> bool {
        let used = self.actual.frontends.len() + self.new_frontends;
        new == 0 || used + new <= self.capacity.frontends as usize
    }

    /// Notes that a write happened, and begins the waiting that follows from it.
    pub(super) fn done(&mut self, op: &Op) {
        match op {
            Op::PutBackend { id, backend } => self.backend_done(*id, *backend),
            Op::PutSlot { slot, backend_id } => {
                put(&mut self.actual.slots, *slot, *backend_id, 0);
            }
            Op::PutFrontend { key, frontend } => {
                let before = self.actual.frontends.insert(*key, *frontend);
                frontend_port(key, frontend).into_iter().for_each(|p| self.frontend_ports.count(p));
                self.frontend_gone(key, before);
            }
            Op::DeleteFrontend { key } => {
                let before = self.actual.frontends.remove(key);
                self.frontend_gone(key, before);
            }
            Op::PutSourceRange { key } => {
                self.actual.source_ranges.insert(*key);
            }
            Op::DeleteSourceRange { key } => {
                self.actual.source_ranges.remove(key);
            }
            // What clients leave there is not of our making.
            Op::ClearAffinity { .. } => {}
            Op::PutFrontendPorts { word, bits } => {
                put(&mut self.actual.frontend_ports, *word, *bits, 0);
            }
            Op::PutHostPorts { word, bits } => put(&mut self.actual.host_ports, *word, *bits, 0),
            Op::PutSettings(settings) => self.actual.settings = Some(settings.clone()),
        }
    }

    fn backend_done(&mut self, id: u32, backend: Backend) {
        let before = self.backend(id);
        put(&mut self.actual.backends, id, backend, Backend::ZERO);
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
        if let Some(port) = host_port(&self.host, &backend) {
            self.host_ports.count(port);
        }
        if let Some(port) = host_port(&self.host, &before)
            && self.host_ports.uncount(port)
        {
            self.timers.sweep();
        }
    }

    fn frontend_gone(&mut self, key: &FrontendKey, before: Option<Frontend>) {
        if let Some(port) = before.and_then(|before| frontend_port(key, &before))
            && self.frontend_ports.uncount(port)
        {
            self.timers.sweep();
        }
    }

    /// The writes for backends whose time is over: from DRAINING to DEAD when the Pod is gone, when no flow is left, or
    /// when ids are short and its namespace has left the most behind; from DEAD to UNUSED when its id has rested.
    pub(super) fn due_backends(&mut self, alive: &dyn Fn(&Addr) -> bool, now: Duration) -> Vec<Op> {
        let mut ops = Vec::new();
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
            ops.push(Op::PutBackend { id, backend: next });
        }
        ops
    }

    /// Which draining backends must give their ids to others although somebody has the address: connections to them
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

/// Whether the endpoint may serve its connections still, although no Service has it: what is no Pod ends unseen.
fn may_live(backend: &Backend, alive: &dyn Fn(&Addr) -> bool) -> bool {
    backend.flags & backend_flags::NO_POD != 0 || alive(&backend.addr)
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

/// The port that packets to this frontend have; `None` where it is not to be looked for in packets: a wildcard is for
/// clients that the programs see anyway, a loopback address for sockets.
fn frontend_port(key: &FrontendKey, value: &Frontend) -> Option<u16> {
    let none = key.is_wildcard() || value.flags & frontend_flags::SOCKET_ONLY != 0;
    (!none).then(|| key.port.get())
}

/// The port that a process of this host serves a live backend at.
fn host_port(host: &[Addr], backend: &Backend) -> Option<u16> {
    let live = matches!(backend.state, state::ACTIVE | state::DRAINING);
    (live && host.binary_search(&backend.addr).is_ok()).then(|| backend.port.get())
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
