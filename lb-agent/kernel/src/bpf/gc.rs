//! Conntrack expiry: removes entries of flows that have been silent for too long, so that a busy table has room
//! without evicting live flows.
//!
//! A translated flow has two entries, and packets of one direction refresh only one of them. They live and die
//! together, judged by what both have seen: an expired entry stays while its partner lives, whichever scopes they are
//! of. Entries of dead backends need no purge (the programs compare generations at every packet); they are counted.
//! A pass runs on a thread of its own. What it sees on the way is the true number of live flows of each backend: the
//! programs' own count (`loads`) is not atomic and is put right. The copies in `kept` are brought up to date, and those
//! of flows that are over go.
//!
//! Entries of devices that are gone go, too: their low 16 bits may come again for another Pod. And no Pod holds more than
//! its share of the table by flows that it alone can make: plain ones, and those without an answer.
#![forbid(unsafe_code)]

mod devices;

use std::cmp::Reverse;
use std::collections::{HashMap as StdHashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use lb_common::account::{AccountEntry, AccountKey};
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{
    CtEntry, CtFlags, CtKey, age, is_closing, is_expired, is_worth_keeping, partner, scope, stamps,
    together,
};
use lb_common::endpoint::PodEntry;
use lb_common::flow::proto;
use lb_common::limits::{MAP_AFFINITY, MAP_CT, MAP_FORMER_PORTS, PORT_WORDS, port_bit};
use lb_common::service::{Affinity, AffinityKey, FrontendKey};
use lb_common::tenure::{self, Holder};
use lb_common::verdict::{Counter, DropReason, drop_index};

use crate::bpf::clock::Clock;
use crate::bpf::conntrack;
use crate::bpf::gc::devices::DeviceNumbers;
use crate::bpf::maps::{self, MapsError};
use crate::bpf::pins::Pins;
use crate::bpf::typed;
use crate::syscall;
use lb_core::plan::Flows;

/// Only where there is an element (`BPF_EXIST`, include/uapi/linux/bpf.h).
const BPF_EXIST: u64 = 2;
/// Time between two passes.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// What a pass found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Entries seen, the removed ones included.
    pub entries: u64,
    /// Those of flows of Pods.
    pub pod: ByProtocol,
    /// Those of flows from outside, as they are at the node's devices.
    pub external: ByProtocol,
    /// Those that were removed.
    pub expired: u64,
    /// Expired entries that stayed since their partner lives.
    pub kept: u64,
    /// Entries whose backend is dead or has another meaning now.
    pub stale: u64,
    /// Live masqueraded flows.
    pub masqueraded: u64,
    /// The most of them that go from one address of this node to one backend: each needs a port of its own there.
    pub masquerade_ports: u64,
    /// The backend towards which most ports are held by flows that do not yield them to new ones.
    pub fullest: Option<Fullest>,
    /// Packets of new flows dropped since the last pass for want of a port.
    pub portless: u64,
    /// New flows since then that got the port of another flow.
    pub taken_over: u64,
    /// Elements of `loads` that were put right.
    pub corrected: u64,
    /// Clients with session affinity, the expired ones included.
    pub affinity: u64,
    /// Copies of entries of translated connections that are left.
    pub copies: u64,
    /// Of those, entries that others have evicted from the table.
    pub displaced: u64,
    /// Entries that others evicted since the last pass, about.
    pub evicted: ByKind,
    /// Entries that were removed since their device is gone.
    pub orphaned: u64,
    /// Pods that hold more than their share of the table.
    pub greedy: u64,
    /// Entries of theirs that were removed.
    pub over_share: u64,
    /// New flows since the last pass that were beyond the budget of their Pod.
    pub over_budget: u64,
    /// How long it took.
    pub duration: Duration,
}

/// A backend and the ports towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fullest {
    /// Its address and port.
    pub backend: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Ports that flows hold.
    pub held: u64,
}

/// Numbers of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByProtocol {
    /// TCP.
    pub tcp: u64,
    /// UDP.
    pub udp: u64,
    /// All else.
    pub other: u64,
}

/// Numbers of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByKind {
    /// Of flows without translation.
    pub plain: u64,
    /// Of flows with one; those that live have a copy.
    pub translated: u64,
}

impl ByKind {
    fn count(&mut self, entry: &CtEntry) {
        let translated = entry.flags.intersects(CtFlags::FORWARD | CtFlags::REPLY);
        *if translated { &mut self.translated } else { &mut self.plain } += 1;
    }

    fn since(self, before: Self) -> Self {
        Self {
            plain: self.plain.wrapping_sub(before.plain),
            translated: self.translated.wrapping_sub(before.translated),
        }
    }

    /// What of these entries, and of those that were `made` since, must have been evicted when these are `left`. Entries
    /// that were replaced count as well; but a table that has room evicts nothing.
    fn evicted(self, made: Self, left: Self, is_full: bool) -> Self {
        if !is_full {
            return Self::default();
        }
        Self {
            plain: (self.plain + made.plain).saturating_sub(left.plain),
            translated: (self.translated + made.translated).saturating_sub(left.translated),
        }
    }
}

impl ByProtocol {
    fn count(&mut self, protocol: u8) {
        *match protocol {
            proto::TCP => &mut self.tcp,
            proto::UDP => &mut self.udp,
            _ => &mut self.other,
        } += 1;
    }
}

impl Pass {
    /// Entries left after the pass.
    pub const fn left(&self) -> u64 {
        self.entries.saturating_sub(self.expired + self.orphaned + self.over_share)
    }
}

/// The maps a pass works on, through descriptors of its own.
pub struct Gc {
    ct: HashMap<MapData, CtKey, CtEntry>,
    kept: HashMap<MapData, CtKey, CtEntry>,
    /// While flows are counted.
    accounts: Option<HashMap<MapData, AccountKey, AccountEntry>>,
    counters: PerCpuArray<MapData, u64>,
    pods: HashMap<MapData, u32, PodEntry>,
    devices: DeviceNumbers,
    /// What the last pass saw.
    flows: Flows,
    /// New flows beyond the budgets until the last pass.
    over_budget: Option<u64>,
    /// New flows without a port, and those with another one's, until the last pass.
    ports: Option<(u64, u64)>,
    /// Entries there is room for.
    capacity: u32,
    /// Entries after the last pass, and what had been made until then.
    last: Option<(ByKind, ByKind)>,
    /// Where the tables are that grow: each pass opens them as they are then.
    pins: Pins,
    former_ports: Array<MapData, u64>,
    affinity: HashMap<MapData, AffinityKey, Affinity>,
    clock: Clock,
}

/// What a pass knows of the flows it has seen so far.
#[derive(Debug, Default)]
struct Seen {
    /// Live flows by backend id, of Services that choose by them.
    loads: StdHashMap<u32, u32>,
    /// Live flows by backend, protocol and the address of this node that stands for the client; and those of them that
    /// keep their ports.
    masqueraded: StdHashMap<(Addr, Be16, u8, Addr), (u64, u64)>,
    expired: Vec<CtKey>,
    /// Entries of devices that are gone.
    orphans: Vec<(CtKey, CtEntry)>,
    flows: Flows,
    /// The map `former_ports`.
    former_ports: Vec<u64>,
    /// What clients outside dialed at those ports.
    dialed: HashSet<FrontendKey>,
}

impl Seen {
    /// An entry of a live flow.
    fn live(&mut self, key: &CtKey, entry: &CtEntry) {
        if entry.backend_id != 0 {
            self.flows.backends.insert(entry.backend_id);
        }
        if key.scope == scope::EXTERNAL && self.is_former_port(key.local_port.get()) {
            self.dialed.insert(FrontendKey::new(key.local, key.local_port, key.proto));
        }
        if entry.flags.contains(CtFlags::COUNTED) && !is_closing(entry.flags) {
            *self.loads.entry(entry.backend_id).or_default() += 1;
        }
        if key.scope == scope::EXTERNAL && entry.flags.contains(CtFlags::MASQUERADED) {
            let to = (entry.nat_addr, entry.nat_port, key.proto, entry.aux_addr);
            let (all, held) = self.masqueraded.entry(to).or_default();
            *all += 1;
            *held += u64::from(holds_its_port(key.proto, entry.flags));
        }
    }

    /// The backend with the fewest ports left for new flows.
    fn fullest(&self) -> Option<Fullest> {
        let most = self.masqueraded.iter().max_by_key(|(_, (_, held))| *held);
        let ((addr, port, protocol, _), (_, held)) = most?;
        let backend = SocketAddr::new(addr.to_ip(), port.get());
        Some(Fullest { backend, protocol: *protocol, held: *held })
    }

    fn is_former_port(&self, port: u16) -> bool {
        let (word, bit) = port_bit(port);
        self.former_ports.get(word as usize).is_some_and(|bits| bits & bit != 0)
    }

    /// An entry of a flow that was live, and was removed.
    fn removed(&mut self, entry: &CtEntry) {
        if entry.flags.contains(CtFlags::COUNTED)
            && !is_closing(entry.flags)
            && let Some(load) = self.loads.get_mut(&entry.backend_id)
        {
            *load = load.saturating_sub(1);
        }
    }
}

impl Gc {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When a pin is missing or has other sizes.
    pub fn open(pins: &Pins, clock: Clock) -> Result<Self, MapsError> {
        Ok(Self {
            ct: maps::open_ct(pins)?,
            kept: maps::open_kept(pins)?,
            accounts: maps::open_accounts(pins)?,
            counters: maps::open_counters(pins)?,
            pods: maps::open_pods(pins)?,
            devices: DeviceNumbers::default(),
            flows: Flows::default(),
            over_budget: None,
            ports: None,
            capacity: maps::pinned_capacity(&pins.map(&MAP_CT)).unwrap_or(u32::MAX),
            last: None,
            pins: pins.clone(),
            former_ports: typed::open(pins, &MAP_FORMER_PORTS)?,
            affinity: typed::open(pins, &MAP_AFFINITY)?,
            clock,
        })
    }

    /// Walks the table once.
    ///
    /// # Errors
    /// When a map cannot be read or an entry not removed.
    pub fn pass(&mut self) -> io::Result<Pass> {
        let start = Instant::now();
        let generations = self.generations()?;
        let now = PassTime { stamp: self.clock.stamp()?, hz: self.clock.hz };
        let mut pass = Pass::default();
        let mut seen = Seen { former_ports: self.former_ports()?, ..Seen::default() };
        let mut kinds_seen = ByKind::default();
        let made = self.made()?;
        let over_budget = self.sum(Counter::OverBudget)?;
        let before = self.over_budget.replace(over_budget);
        pass.over_budget = over_budget.wrapping_sub(before.unwrap_or(over_budget));
        let portless = self.sum_at(drop_index(DropReason::MasqueradeExhausted, true))?;
        let taken_over = self.sum(Counter::PortTakenOver)?;
        let before = self.ports.replace((portless, taken_over)).unwrap_or((portless, taken_over));
        pass.portless = portless.wrapping_sub(before.0);
        pass.taken_over = taken_over.wrapping_sub(before.1);
        let mut there = Vec::new();
        syscall::for_each(&self.pods, |ifindex: &u32, _: &PodEntry| there.push(*ifindex))?;
        self.devices.begin(there.into_iter());
        syscall::for_each(&self.ct, |key: &CtKey, entry: &CtEntry| {
            pass.entries += 1;
            kinds_seen.count(entry);
            let is_external = matches!(key.scope, scope::EXTERNAL | scope::EXTERNAL_REPLY);
            let kinds = if is_external { &mut pass.external } else { &mut pass.pod };
            kinds.count(key.proto);
            let current = generations.get(&entry.backend_id).copied().unwrap_or_default();
            let is_stale = entry.backend_id != 0 && current != entry.backend_gen;
            pass.stale += u64::from(is_stale);
            if self.devices.is_gone(key.veth) {
                seen.orphans.push((*key, *entry));
            } else if now.is_dead(key, entry, None) {
                seen.expired.push(*key);
            } else {
                self.devices.count(key.veth);
                if !is_stale {
                    seen.live(key, entry);
                }
            }
        })?;
        if let Some((left, made_before)) = self.last {
            let made = made.since(made_before);
            let is_full = pass.entries >= u64::from(self.capacity) / 10 * 9;
            pass.evicted = left.evicted(made, kinds_seen, is_full);
        }
        let mut gone = ByKind::default();
        for key in std::mem::take(&mut seen.expired) {
            if let Some(entry) = self.expire(&key, now, &mut pass, &mut gone)?
                && generations.get(&entry.backend_id) == Some(&entry.backend_gen)
            {
                seen.live(&key, &entry);
            }
        }
        for (key, entry) in std::mem::take(&mut seen.orphans) {
            pass.orphaned += u64::from(self.remove(&key, &entry, &mut gone)?);
        }
        self.trim(now, &mut pass, &mut seen, &mut gone)?;
        self.last = Some((
            ByKind {
                plain: kinds_seen.plain.saturating_sub(gone.plain),
                translated: kinds_seen.translated.saturating_sub(gone.translated),
            },
            made,
        ));
        self.renew_copies(now, &mut pass, &mut seen)?;
        pass.masqueraded = seen.masqueraded.values().map(|(all, _)| all).sum();
        pass.masquerade_ports =
            seen.masqueraded.values().map(|(all, _)| *all).max().unwrap_or_default();
        pass.fullest = seen.fullest();
        pass.corrected = self.correct_loads(&seen.loads)?;
        syscall::for_each(&self.affinity, |_: &AffinityKey, _: &Affinity| pass.affinity += 1)?;
        self.flows = self.flows_of(seen)?;
        pass.duration = start.elapsed();
        Ok(pass)
    }

    fn former_ports(&self) -> io::Result<Vec<u64>> {
        let mut words = vec![0; PORT_WORDS as usize];
        syscall::for_each(&self.former_ports, |word: &u32, bits: &u64| {
            if let Some(place) = words.get_mut(*word as usize) {
                *place = *bits;
            }
        })?;
        Ok(words)
    }

    /// The flows seen, and which of their frontends are gone.
    fn flows_of(&self, seen: Seen) -> io::Result<Flows> {
        let mut flows = seen.flows;
        let frontends = maps::open_frontends(&self.pins).map_err(io::Error::other)?;
        for key in seen.dialed {
            match frontends.get(&key, 0) {
                Ok(_) => {}
                Err(e) if maps::is_missing(&e) => drop(flows.former_ports.insert(key.port.get())),
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(flows)
    }

    /// Takes the flows that the last pass found.
    pub fn flows(&mut self) -> Flows {
        std::mem::take(&mut self.flows)
    }

    /// Entries that the programs made so far, less those that they removed.
    fn made(&self) -> io::Result<ByKind> {
        let sum = |counter| self.sum(counter);
        let plain = sum(Counter::FlowPlain)?.wrapping_add(sum(Counter::FlowPickedUp)?);
        let mut pairs: u64 = 0;
        for counter in [
            Counter::FlowService,
            Counter::FlowHairpin,
            Counter::FlowExternal,
            Counter::FlowMasqueraded,
            Counter::FlowToHost,
        ] {
            pairs = pairs.wrapping_add(sum(counter)?);
        }
        Ok(ByKind {
            plain: plain.wrapping_sub(sum(Counter::PlainClosed)?),
            translated: pairs
                .wrapping_sub(sum(Counter::PortTakenOver)?)
                .wrapping_sub(sum(Counter::PairClosed)?)
                .wrapping_mul(2)
                .wrapping_add(sum(Counter::EntryRestored)?),
        })
    }

    fn sum(&self, counter: Counter) -> io::Result<u64> {
        self.sum_at(counter.index())
    }

    fn sum_at(&self, index: u32) -> io::Result<u64> {
        let values = self.counters.get(&index, 0).map_err(io::Error::other)?;
        Ok(values.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value)))
    }

    /// Takes from the devices that have more than their share of the table what they have beyond it: the oldest of those
    /// entries that others need not have agreed to. The rest of it is few enough, or is in use.
    fn trim(
        &mut self,
        now: PassTime,
        pass: &mut Pass,
        seen: &mut Seen,
        gone: &mut ByKind,
    ) -> io::Result<()> {
        let beyond = self.devices.beyond_share(self.capacity);
        pass.greedy = beyond.len() as u64;
        if beyond.is_empty() {
            return Ok(());
        }
        let mut may_go: StdHashMap<u16, Vec<(u32, CtKey)>> = StdHashMap::new();
        syscall::for_each(&self.ct, |key: &CtKey, entry: &CtEntry| {
            if beyond.contains_key(&key.veth) && !is_worth_keeping(key.proto, entry.flags) {
                let age = age(entry.last_seen, now.stamp);
                may_go.entry(key.veth).or_default().push((age, *key));
            }
        })?;
        for (veth, mut entries) in may_go {
            let mut left = beyond.get(&veth).copied().unwrap_or_default();
            entries.sort_unstable_by_key(|(age, _)| Reverse(*age));
            for (_, key) in entries {
                if left == 0 {
                    break;
                }
                let removed = self.give_up(&key, seen, gone)?;
                pass.over_share += removed;
                left = left.saturating_sub(removed);
            }
        }
        Ok(())
    }

    /// Removes an entry and its partner, unless both ends of the flow have agreed to it. Returns how many these were.
    fn give_up(&mut self, key: &CtKey, seen: &mut Seen, gone: &mut ByKind) -> io::Result<u64> {
        let Some(entry) = self.entry(key)? else { return Ok(0) };
        let other = match partner(key, &entry) {
            Some(other) => self.entry(&other)?.map(|entry| (other, entry)),
            None => None,
        };
        let flags = other.map_or(entry.flags, |(_, partner)| together(entry.flags, partner.flags));
        if is_worth_keeping(key.proto, flags) {
            return Ok(0);
        }
        let mut removed = 0;
        for (key, entry) in std::iter::once((*key, entry)).chain(other) {
            if self.remove(&key, &entry, gone)? {
                seen.removed(&entry);
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Tells the copies in `kept` what `ct` knows, and removes those of flows that are over. A copy whose entry was
    /// evicted stays until its flow would have expired.
    fn renew_copies(&mut self, now: PassTime, pass: &mut Pass, seen: &mut Seen) -> io::Result<()> {
        /// A copy may be so much older than its entry.
        const OLD_SECS: u32 = 60;
        let mut changes: Vec<(CtKey, Option<CtEntry>)> = Vec::new();
        let mut failed = None;
        let mut devices = std::mem::take(&mut self.devices);
        let read = syscall::for_each(&self.kept, |key: &CtKey, copy: &CtEntry| {
            pass.copies += 1;
            if devices.is_gone(key.veth) {
                changes.push((*key, None));
                return;
            }
            match self.entry(key) {
                Ok(Some(entry)) if !self.is_worth_keeping(key, &entry) => {
                    changes.push((*key, None));
                }
                Ok(Some(entry)) => {
                    let is_old = age(copy.last_seen, entry.last_seen) > stamps(OLD_SECS, now.hz);
                    if is_old
                        || (CtEntry { last_seen: entry.last_seen, way: entry.way, ..*copy })
                            != entry
                    {
                        changes.push((*key, Some(entry)));
                    }
                }
                Ok(None) => {
                    let twin = self.twin(key, copy);
                    let has_copy =
                        || partner(key, copy).is_some_and(|key| self.kept.get(&key, 0).is_ok());
                    // Half a flow serves no packet, and misleads the next flow between the same ends.
                    let is_half = twin.is_none() && !has_copy();
                    if is_half || now.is_dead(key, copy, twin.as_ref()) {
                        changes.push((*key, None));
                    } else {
                        pass.displaced += 1;
                        seen.live(key, copy);
                    }
                }
                Err(error) => failed = Some(error),
            }
        });
        self.devices = devices;
        read?;
        if let Some(error) = failed {
            return Err(error);
        }
        for (key, change) in changes {
            let done = match change {
                Some(entry) => self.kept.insert(&key, &entry, BPF_EXIST),
                None => {
                    pass.copies -= 1;
                    self.kept.remove(&key)
                }
            };
            match done {
                Ok(()) => {}
                Err(e) if maps::is_missing(&e) => {}
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(())
    }

    /// The other entry of a flow, if there is one and it can be read.
    fn twin(&self, key: &CtKey, entry: &CtEntry) -> Option<CtEntry> {
        partner(key, entry).and_then(|key| self.entry(&key).ok().flatten())
    }

    /// Whether both entries of a flow together say that it lives, and that its ends have agreed to it.
    fn is_worth_keeping(&self, key: &CtKey, entry: &CtEntry) -> bool {
        let flags =
            self.twin(key, entry).map_or(entry.flags, |twin| together(entry.flags, twin.flags));
        is_worth_keeping(key.proto, flags)
    }

    /// Writes the loads that are not as counted. Returns how many that were.
    fn correct_loads(&mut self, counted: &StdHashMap<u32, u32>) -> io::Result<u64> {
        let mut loads = maps::open_loads(&self.pins).map_err(io::Error::other)?;
        let mut wrong = Vec::new();
        loads.for_each(|id, load| {
            let count = counted.get(&id).copied().unwrap_or_default();
            if *load != count {
                wrong.push((id, count));
            }
        })?;
        for (id, count) in &wrong {
            loads.set(*id, count).map_err(io::Error::other)?;
        }
        Ok(wrong.len() as u64)
    }

    /// Removes an entry and its partner, if they are dead together. Returns the entry if not.
    fn expire(
        &mut self,
        key: &CtKey,
        now: PassTime,
        pass: &mut Pass,
        gone: &mut ByKind,
    ) -> io::Result<Option<CtEntry>> {
        // Read again: a packet may have come since the walk, or the partner's turn was before.
        let Some(entry) = self.entry(key)? else { return Ok(None) };
        let partner_key = partner(key, &entry);
        let partner = match &partner_key {
            Some(partner_key) => self.entry(partner_key)?,
            None => None,
        };
        if !now.is_dead(key, &entry, partner.as_ref()) {
            pass.kept += 1;
            return Ok(Some(entry));
        }
        for key in std::iter::once(key).chain(partner.and(partner_key.as_ref())) {
            pass.expired += u64::from(self.remove(key, &entry, gone)?);
        }
        Ok(None)
    }

    /// Whether the entry was there. What was counted of its packets goes with it.
    fn remove(&mut self, key: &CtKey, entry: &CtEntry, gone: &mut ByKind) -> io::Result<bool> {
        if let Some(accounts) = &mut self.accounts {
            let leaving = AccountKey::from_local(key);
            for account in [leaving, leaving.reversed()] {
                match accounts.remove(&account) {
                    Ok(()) => {}
                    Err(e) if maps::is_missing(&e) => {}
                    Err(e) => return Err(io::Error::other(e)),
                }
            }
        }
        match self.ct.remove(key) {
            Ok(()) => {
                gone.count(entry);
                Ok(true)
            }
            // Evicted meanwhile.
            Err(e) if maps::is_missing(&e) => Ok(false),
            Err(e) => Err(io::Error::other(e)),
        }
    }

    fn entry(&self, key: &CtKey) -> io::Result<Option<CtEntry>> {
        conntrack::find(&self.ct, key)
    }

    fn generations(&self) -> io::Result<StdHashMap<u32, u32>> {
        let mut generations = StdHashMap::new();
        let backends = maps::open_backends(&self.pins).map_err(io::Error::other)?;
        backends.for_each(|id, backend| {
            if backend.generation != 0 {
                generations.insert(id, backend.generation);
            }
        })?;
        Ok(generations)
    }
}

/// Whether a flow, by the flags of its forward entry, keeps its port from a new one, for now or for good.
fn holds_its_port(protocol: u8, flags: CtFlags) -> bool {
    let holder = Holder { protocol, reply: flags, forward: flags, idle: 0, age: 0, hz: 0 };
    tenure::rank(tenure::readiness(&holder)) <= tenure::QUIET
}

#[derive(Clone, Copy, Debug)]
struct PassTime {
    stamp: u32,
    hz: u32,
}

impl PassTime {
    /// Whether a flow is dead: silent in both directions for as long as both its entries together allow. Each entry
    /// sees one direction only; what it tells the other may get lost between two processors.
    fn is_dead(self, key: &CtKey, entry: &CtEntry, partner: Option<&CtEntry>) -> bool {
        let flags = partner.map_or(entry.flags, |partner| together(entry.flags, partner.flags));
        let dead =
            |entry: &CtEntry| is_expired(key.proto, flags, entry.last_seen, self.stamp, self.hz);
        dead(entry) && partner.is_none_or(dead)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;
    use lb_common::be::Be16;
    use lb_common::conntrack::{CtEntry, CtFlags, CtKey};
    use lb_common::flow::{proto, tcp};

    use super::PassTime;

    fn addr(text: &str) -> Addr {
        Addr::from_ip(text.parse().unwrap())
    }

    fn key(local: (&str, u16), remote: (&str, u16)) -> CtKey {
        CtKey {
            local: addr(local.0),
            local_port: Be16::new(local.1),
            remote: addr(remote.0),
            remote_port: Be16::new(remote.1),
            proto: proto::TCP,
            veth: 7,
            ..CtKey::ZERO
        }
    }

    #[test]
    fn a_pair_is_judged_as_one() {
        let hz = 256;
        let now = PassTime { stamp: 1_000_000, hz };
        let seen = |ago: u32, flags: u32| CtEntry {
            last_seen: now.stamp - ago,
            flags: CtFlags::from_bits(flags),
            ..CtEntry::ZERO
        };
        let ack = u32::from(tcp::ACK);
        let rst = u32::from(tcp::RST);
        let fin = u32::from(tcp::FIN);
        let cases = [
            ("alone, fresh", seen(10, ack), None, false),
            ("alone, closed for long", seen(80, ack | rst), None, true),
            ("closed, the other too", seen(80, ack | rst), Some(seen(75, ack)), true),
            ("closed, but the other still speaks", seen(80, ack | rst), Some(seen(5, ack)), false),
            ("idle for seven hours", seen(25_200, ack), Some(seen(25_200, ack << 8)), false),
            ("idle for a day", seen(86_500, ack), Some(seen(86_500, ack << 8)), true),
            ("one way idle, the other not", seen(86_500, ack), Some(seen(60, ack << 8)), false),
            ("one side waits", seen(200, ack | fin), Some(seen(200, ack << 8)), false),
            ("for more than an hour", seen(3700, ack | fin), Some(seen(3700, ack << 8)), true),
            ("never answered", seen(70, 0), Some(seen(70, ack << 8)), true),
            ("reset over the network", seen(80, ack), Some(seen(80, (ack | rst) << 8)), false),
        ];
        let key = key(("10.1.0.2", 1), ("10.96.0.1", 2));
        for (name, entry, partner, want) in cases {
            assert_eq!(now.is_dead(&key, &entry, partner.as_ref()), want, "{name}");
        }
    }
}
