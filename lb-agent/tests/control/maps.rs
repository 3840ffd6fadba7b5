//! Maps in memory that check each write: whatever a packet could see between two writes must be sound.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::limits::port_bit;
use lb_common::service::{Backend, BackendFlags, Frontend, FrontendFlags, FrontendKey, state};
use lb_core::plan::{Actual, Capacity, MapError, MapStore, Write};

/// The maps. Each write fails the test when it breaks one of the laws in [`FakeMaps::check`].
#[derive(Clone, Debug)]
pub(crate) struct FakeMaps {
    pub(crate) actual: Actual,
    pub(crate) now: Duration,
    /// Addresses of the host.
    pub(crate) host: Vec<Addr>,
    /// One in this number of writes fails; 0 = none.
    pub(crate) fail_every: u32,
    n_writes: u32,
    /// Writes until all fail.
    pub(crate) crash_after: Option<u32>,
    capacity: Capacity,
    /// Number of frontends that refer to a slot.
    live: HashMap<u32, u32>,
    /// When a slot was last referred to.
    left: HashMap<u32, Duration>,
    /// When a backend died.
    died: HashMap<u32, Duration>,
}

impl FakeMaps {
    pub(crate) fn new(capacity: Capacity) -> Self {
        Self {
            actual: Actual::default(),
            now: Duration::ZERO,
            host: Vec::new(),
            fail_every: 0,
            n_writes: 0,
            crash_after: None,
            capacity,
            live: HashMap::new(),
            left: HashMap::new(),
            died: HashMap::new(),
        }
    }

    /// Number of writes that still happen. Then none happens until the next `load`.
    pub(crate) fn crash_after(&mut self, n: u32) {
        self.crash_after = Some(n);
    }

    /// For each frontend what it does with a client: what does not depend on ids.
    pub(crate) fn traffic(&self) -> BTreeMap<String, String> {
        let frontends = self.actual.frontends.iter();
        frontends.map(|(key, frontend)| (key_text(key), self.treatment(frontend))).collect()
    }

    fn treatment(&self, frontend: &Frontend) -> String {
        let list = |base: u32, n: u32| -> Vec<String> {
            (base..base + n).map(|slot| self.endpoint(slot)).collect()
        };
        let mut lists = [(frontend.base, frontend.n), (frontend.local_base, frontend.local_n)]
            .map(|(base, n)| list(base, n));
        lists.iter_mut().for_each(|list| list.sort());
        // Its order matters, since it must be the same on all nodes.
        let table = list(frontend.maglev_base, frontend.maglev_n);
        let gated = frontend.flags.contains(FrontendFlags::SOURCE_RANGES);
        let ranges = if gated { self.ranges(frontend.service_id) } else { Vec::new() };
        let Frontend { flags, affinity_secs, .. } = frontend;
        format!("{lists:?} {table:?} {:#x} {affinity_secs} {ranges:?}", flags.bits())
    }

    /// The clients of a service port's gated frontends.
    pub(crate) fn ranges(&self, service_id: u32) -> Vec<String> {
        let keys = self.actual.source_ranges.iter();
        let own = keys.filter(|key| key.service_id == service_id);
        own.map(|key| key.clients.to_string()).collect()
    }

    /// Service ids that have ranges but no frontend with them.
    pub(crate) fn lost_ranges(&self) -> BTreeSet<u32> {
        let mut ids: BTreeSet<u32> =
            self.actual.source_ranges.iter().map(|key| key.service_id).collect();
        for frontend in self.actual.frontends.values() {
            if frontend.flags.contains(FrontendFlags::SOURCE_RANGES) {
                ids.remove(&frontend.service_id);
            }
        }
        ids
    }

    /// Ports of frontends that are gone.
    pub(crate) fn former_ports(&self) -> BTreeSet<u16> {
        (0..=u16::MAX).filter(|port| has_port(&self.actual.former_ports, *port)).collect()
    }

    /// The ports in the two bitmaps, and those that should be there.
    pub(crate) fn ports(&self) -> [(BTreeSet<u16>, BTreeSet<u16>); 2] {
        let set = |words: &[u64]| {
            (0..=u16::MAX).filter(|port| has_port(words, *port)).collect::<BTreeSet<_>>()
        };
        let frontends = self.actual.frontends.iter();
        let frontends = frontends.filter(|(key, frontend)| needs_port(key, frontend));
        let backends = self.actual.backends.iter().filter(|backend| self.is_host(backend));
        [
            (set(&self.actual.frontend_ports), frontends.map(|(key, _)| key.port.get()).collect()),
            (set(&self.actual.host_ports), backends.map(|backend| backend.port.get()).collect()),
        ]
    }

    fn is_host(&self, backend: &Backend) -> bool {
        let live = matches!(backend.state, state::ACTIVE | state::DRAINING);
        live && self.host.contains(&backend.addr)
    }

    /// Backends that are in use but in no live slot.
    pub(crate) fn leftover(&self) -> Vec<(u32, Backend)> {
        let live: Vec<u32> = self.live.keys().map(|slot| self.id_at(*slot)).collect();
        (0u32..)
            .zip(self.actual.backends.iter().copied())
            .filter(|(id, backend)| backend.state != state::UNUSED && !live.contains(id))
            .collect()
    }

    pub(crate) fn backend(&self, id: u32) -> Backend {
        self.actual.backends.get(id as usize).copied().unwrap_or(Backend::ZERO)
    }

    pub(crate) fn id_at(&self, slot: u32) -> u32 {
        self.actual.slots.get(slot as usize).copied().unwrap_or(0)
    }

    fn endpoint(&self, slot: u32) -> String {
        let backend = self.backend(self.id_at(slot));
        let mut text = endpoint_text(&backend.addr, backend.port.get());
        for (flag, letter) in [(BackendFlags::CLUSTER, " C"), (BackendFlags::LOCAL, " L")] {
            if backend.flags.contains(flag) {
                text.push_str(letter);
            }
        }
        text
    }

    /// The laws. Before the write:
    fn check(&self, op: &Write) {
        match op {
            Write::PutBackend { id, backend } => self.check_backend(*id, *backend),
            Write::PutSlot { slot, .. } => {
                assert!(*slot < self.capacity.slots, "slot {slot} is out of bounds");
                assert!(!self.live.contains_key(slot), "slot {slot} is rewritten while in use");
                if let Some(left) = self.left.get(slot) {
                    let rest = self.now - *left;
                    assert!(
                        rest >= Duration::from_secs(1),
                        "slot {slot} is rewritten after {rest:?}"
                    );
                }
            }
            Write::PutFrontend { key, frontend } => {
                for slot in slots(frontend) {
                    let backend = self.backend(self.id_at(slot));
                    assert_eq!(backend.state, state::ACTIVE, "{key:?} would use slot {slot}");
                    assert_eq!(backend.proto, key.proto);
                    assert_eq!(backend.addr.is_v4(), key.addr.is_v4());
                }
                assert_eq!(key.is_wildcard(), frontend.service_id == 0);
                self.check_lists(frontend);
                if needs_port(key, frontend) {
                    let port = key.port.get();
                    assert!(has_port(&self.actual.frontend_ports, port), "{key:?} is not seen");
                }
            }
            Write::PutSourceRange { .. } => {
                let n = self.actual.source_ranges.len();
                assert!(n < self.capacity.source_ranges as usize, "source_ranges is full");
            }
            Write::PutFrontendPorts { word, bits } => {
                let words = written(&self.actual.frontend_ports, *word, *bits);
                for (key, frontend) in &self.actual.frontends {
                    let seen = !needs_port(key, frontend) || has_port(&words, key.port.get());
                    assert!(seen, "{key:?} would not be seen any more");
                }
            }
            Write::PutHostPorts { word, bits } => {
                let before = &self.actual.host_ports;
                let words = written(before, *word, *bits);
                for backend in self.actual.backends.iter().filter(|backend| self.is_host(backend)) {
                    let port = backend.port.get();
                    let lost = has_port(before, port) && !has_port(&words, port);
                    assert!(!lost, "replies of {backend:?} would not be seen any more");
                }
            }
            Write::DeleteFrontend { key } => {
                let Some(frontend) = self.actual.frontends.get(key) else { return };
                let seen = has_port(&self.actual.former_ports, key.port.get());
                assert!(!needs_port(key, frontend) || seen, "flows to {key:?} would be lost");
            }
            _ => {}
        }
    }

    /// A backend says in which lists it is: affinity must not send a client to another.
    fn check_lists(&self, frontend: &Frontend) {
        let local = frontend.flags.contains(FrontendFlags::EXTERNAL_LOCAL);
        let lists = [
            (frontend.local_base, frontend.local_n, BackendFlags::LOCAL, true),
            (frontend.base, frontend.n, BackendFlags::CLUSTER, local),
        ];
        for (base, n, flag, _) in lists.into_iter().filter(|(.., checked)| *checked) {
            for slot in base..base + n {
                let backend = self.backend(self.id_at(slot));
                assert!(backend.flags.contains(flag), "{backend:?} does not say it is in a list");
            }
        }
    }

    fn check_backend(&self, id: u32, backend: Backend) {
        if self.is_host(&backend) {
            let port = backend.port.get();
            assert!(has_port(&self.actual.host_ports, port), "{backend:?}: replies are not seen");
        }
        assert!(id > 0 && id < self.capacity.backends, "backend {id} is out of bounds");
        let before = self.backend(id);
        let in_use = self.live.keys().any(|slot| self.id_at(*slot) == id);
        if backend.state != state::ACTIVE {
            assert!(!in_use, "backend {id} is in use: {backend:?}");
        }
        let same = |b: &Backend| (b.addr, b.port, b.proto);
        if backend.generation == before.generation && backend.state != state::UNUSED {
            assert_eq!(same(&backend), same(&before), "backend {id} changes its meaning");
        }
        match (before.state, backend.state) {
            (state::ACTIVE, state::ACTIVE | state::DRAINING) => {}
            (state::DRAINING, state::ACTIVE) => assert_eq!(backend.generation, before.generation),
            (state::DRAINING, state::DEAD) => {
                assert_eq!(backend.generation, before.generation.wrapping_add(1));
                let slots = self.left.iter().filter(|(slot, _)| self.id_at(**slot) == id);
                for (slot, left) in slots {
                    let age = self.now - *left;
                    assert!(age >= Duration::from_secs(5), "{id} left {slot} {age:?} ago");
                }
            }
            (state::DEAD, state::UNUSED) => {
                let rest = self.now - self.died[&id];
                assert!(rest >= Duration::from_secs(10), "backend {id} rested only {rest:?}");
                assert_eq!(backend.generation, before.generation);
            }
            (state::UNUSED, state::ACTIVE) => {
                assert_eq!(backend.generation, before.generation.wrapping_add(1));
            }
            (from, to) => panic!("backend {id} goes from state {from} to {to}"),
        }
    }

    fn put(&mut self, write: &Write) {
        let before = match write {
            Write::PutBackend { id, backend } => {
                if backend.state == state::DEAD {
                    self.died.insert(*id, self.now);
                }
                None
            }
            Write::PutFrontend { key, frontend } => {
                for slot in slots(frontend) {
                    *self.live.entry(slot).or_default() += 1;
                }
                self.actual.frontends.get(key).copied()
            }
            Write::DeleteFrontend { key } => self.actual.frontends.get(key).copied(),
            _ => None,
        };
        self.leave(before);
        self.actual.record(write);
    }

    fn leave(&mut self, before: Option<Frontend>) {
        for slot in before.iter().flat_map(slots) {
            let count = self.live.get_mut(&slot).unwrap();
            *count -= 1;
            if *count == 0 {
                self.live.remove(&slot);
                self.left.insert(slot, self.now);
            }
        }
    }
}

/// A number drawn for each write (splitmix64, Steele 2014).
pub(crate) fn lot(n: u32) -> u32 {
    let mixed = u64::from(n).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 32) as u32
}

impl MapStore for FakeMaps {
    fn apply(&mut self, op: &Write) -> Result<(), MapError> {
        self.check(op);
        // Of slots, which come by the thousand with a Maglev table, only some may fail: each failure ends a try.
        let may_fail = !matches!(op, Write::PutSlot { slot, .. } if slot % 64 != 0);
        self.n_writes += u32::from(may_fail);
        if let Some(left) = &mut self.crash_after {
            if *left == 0 {
                return Err(error(op, false));
            }
            *left -= 1;
        }
        // Not in step with the writes of a try, or it might be the same one that fails each time.
        if may_fail && self.fail_every > 0 && lot(self.n_writes).is_multiple_of(self.fail_every) {
            return Err(error(op, false));
        }
        if let Write::PutFrontend { key, .. } = op
            && self.actual.frontends.len() >= self.capacity.frontends as usize
            && !self.actual.frontends.contains_key(key)
        {
            return Err(error(op, true));
        }
        self.put(op);
        Ok(())
    }
}

fn error(write: &Write, full: bool) -> MapError {
    let text = if full { "argument list too long" } else { "made to fail" };
    MapError { map: write.map(), full, source: text.into() }
}

fn slots(frontend: &Frontend) -> Vec<u32> {
    let cluster = frontend.base..frontend.base + frontend.n;
    let local = frontend.local_base..frontend.local_base + frontend.local_n;
    let table = frontend.maglev_base..frontend.maglev_base + frontend.maglev_n;
    let mut slots: Vec<u32> = cluster.chain(local).chain(table).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

fn put<T: Copy>(array: &mut Vec<T>, index: u32, element: T, empty: T) {
    let index = index as usize;
    if index >= array.len() {
        array.resize(index + 1, empty);
    }
    array[index] = element;
}

/// Whether packets to the frontend must be looked for on the node's devices.
fn needs_port(key: &FrontendKey, frontend: &Frontend) -> bool {
    !key.is_wildcard() && !frontend.flags.contains(FrontendFlags::SOCKET_ONLY)
}

fn has_port(words: &[u64], port: u16) -> bool {
    let (word, bit) = port_bit(port);
    words.get(word as usize).is_some_and(|bits| bits & bit != 0)
}

fn written(words: &[u64], word: u32, bits: u64) -> Vec<u64> {
    let mut words = words.to_vec();
    put(&mut words, word, bits, 0);
    words
}

/// A frontend as `10.96.0.1:80/TCP`, or `10.96.0.1:*` for a wildcard.
pub(crate) fn key_text(key: &FrontendKey) -> String {
    if key.is_wildcard() {
        return format!("{}:*", host(&key.addr));
    }
    let protocol = match key.proto {
        lb_common::flow::proto::TCP => "TCP",
        lb_common::flow::proto::UDP => "UDP",
        lb_common::flow::proto::SCTP => "SCTP",
        _ => panic!("{key:?}"),
    };
    format!("{}/{protocol}", endpoint_text(&key.addr, key.port.get()))
}

pub(crate) fn endpoint_text(addr: &Addr, port: u16) -> String {
    format!("{}:{port}", host(addr))
}

fn host(addr: &Addr) -> String {
    if addr.is_v4() { addr.to_string() } else { format!("[{addr}]") }
}
