//! Policy tables by content → the writes that bring the maps there, in an order in which each prefix is safe.
//!
//! ```text
//! new groups, columns of new identities ─► addresses' identities ─► Pods' groups ─► epoch ─► what nothing refers to
//! ```
//!
//! A number, of a group or of an identity, has one meaning as long as something refers to it: other content gets
//! another number, and the old one rests before it is given away again. While addresses change their identities, the
//! old groups are still asked; so an identity that is new has, in the groups that are about to go, the bits of the
//! one before it. Hence each flow is judged as before or as after, wherever the writes stop.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::endpoint::{Ident, ident_flags};
use lb_common::limits;
use lb_common::policy::{Bits, Group, PeerKey, PolicyState, PortKey, group_flags};

use self::switch::{Switch, Switched};
use super::MapError;
use crate::issue::Issue;
use crate::model::policy::{self as model, Atomic, Desired, Direction, Range, Source, object};

mod restore;
mod switch;
mod tables;

pub use self::tables::{Actual, Cidrs};

/// Numbers and their elements rest so long after nothing refers to them any more: a program that read one just before
/// is long done with it.
const REST: Duration = Duration::from_secs(1);
/// Failed writes are tried again after so long, then after twice as long, up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// The element of `groups` that denies everything: for groups that the array has no room for.
const FULL: u32 = 1;

/// The groups of a Pod: ingress, egress, and the same with shadow policies; 0 = none.
pub type GroupIds = [u32; 4];

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes an element of `groups`. Boxed: it is large.
    PutGroup {
        /// Index.
        id: u32,
        /// The element.
        group: Box<Group>,
    },
    /// Adds or replaces an element of `peer_bits`.
    PutPeerBits {
        /// Key.
        key: PeerKey,
        /// Value.
        bits: Bits,
    },
    /// Removes an element of `peer_bits`.
    DeletePeerBits {
        /// Key.
        key: PeerKey,
    },
    /// Adds or replaces an element of `port_bits`.
    PutPortBits {
        /// Length of the prefix.
        len: u32,
        /// Key.
        key: PortKey,
        /// Value.
        bits: Bits,
    },
    /// Removes an element of `port_bits`.
    DeletePortBits {
        /// Length of the prefix.
        len: u32,
        /// Key.
        key: PortKey,
    },
    /// Adds or replaces an element of `ident`.
    PutIdent {
        /// Key.
        addr: Addr,
        /// Value.
        ident: Ident,
    },
    /// Removes an element of `ident`.
    DeleteIdent {
        /// Key.
        addr: Addr,
    },
    /// Adds or replaces an element of `cidrs`.
    PutCidr {
        /// Key.
        range: Range,
        /// Value.
        ident: u32,
    },
    /// Removes an element of `cidrs`.
    DeleteCidr {
        /// Key.
        range: Range,
    },
    /// Writes the groups into an element of `pods`.
    SetGroups {
        /// Key.
        ifindex: u32,
        /// The groups.
        groups: GroupIds,
    },
    /// Writes the element of `policy`, but for its flags.
    PutState(PolicyState),
}

/// The policy maps: the kernel's, or tables in a test.
pub trait Store {
    /// Does one write; that what is to be removed is not there is no error.
    ///
    /// # Errors
    /// When the write did not happen; the map is as it was.
    fn apply(&mut self, op: &Op) -> Result<(), MapError>;
}

impl Store for Actual {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        self.done(op);
        Ok(())
    }
}

/// A Pod's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// Key in `pods`.
    pub ifindex: u32,
    /// The addresses of its inside, as far as they are known.
    pub ips: Vec<Addr>,
}

/// What the tables should say, and of which devices.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What policies come to; `None` before it is known, and then everything of that stays.
    pub desired: Option<&'a Desired>,
    /// What this node's devices say of `ident`: its own addresses, and behind which device others are.
    pub devices: &'a BTreeMap<Addr, Ident>,
    /// The Pods' devices.
    pub veths: &'a [Veth],
    /// Whether devices of unknown Pods are cut off as soon as there is any policy.
    pub strict: bool,
}

/// Writes in the order in which they have to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "each plan has to be applied before the next is made"]
pub struct Plan {
    /// All of them.
    pub ops: Vec<Op>,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Writes done.
    pub writes: usize,
    /// Writes that failed; they come again in a later plan.
    pub failed: Vec<(Op, MapError)>,
}

/// A group that the tables have.
#[derive(Clone, Debug)]
struct Live {
    /// `None` of one that was found in the maps and is not understood.
    content: Option<Arc<model::Group>>,
    /// Its elements in `groups`, in order.
    ids: Vec<u32>,
}

/// Numbers that nothing refers to any more.
#[derive(Debug, Default)]
struct Resting {
    groups: BTreeSet<u32>,
    idents: BTreeSet<u32>,
}

/// Keeps the numbers and makes plans.
#[derive(Debug)]
pub struct Planner {
    actual: Actual,
    /// By their first element.
    live: BTreeMap<u32, Live>,
    by_content: HashMap<Arc<model::Group>, u32>,
    /// The identities that the tables have, but for 0 and those found in the maps and not understood.
    idents: BTreeMap<u32, Atomic>,
    /// The number to be given to addresses that get an identity.
    by_atoms: HashMap<Atomic, u32>,
    /// Identities found in the maps and not understood.
    strangers: BTreeSet<u32>,
    next_ident: u32,
    free: VecDeque<u32>,
    next_group: u32,
    /// By the time from which on they may be removed.
    resting: Vec<(Duration, Resting)>,
    /// Groups whose tables lack something, by the first element: they deny everything.
    incomplete: BTreeSet<u32>,
    /// Groups that there was no room for at all.
    roomless: Vec<Arc<model::Group>>,
    retry: Option<(Duration, Duration)>,
    /// Whether a plan with policies has been made.
    begun: bool,
}

impl Planner {
    /// Takes over what the maps say.
    pub fn restore(actual: Actual) -> Self {
        restore::planner(actual)
    }

    /// What the maps say, as far as it was written or restored.
    pub fn actual(&self) -> &Actual {
        &self.actual
    }

    /// The writes for what is wanted, for earlier ones that failed, and for numbers that have rested.
    ///
    /// `now` is any clock that never goes back.
    pub fn plan(&mut self, wanted: &Wanted<'_>, now: Duration) -> Plan {
        let mut plan = Plan::default();
        let Some(desired) = wanted.desired else {
            self.follow_devices(wanted.devices, &mut plan);
            return plan;
        };
        if !self.begun {
            self.begun = true;
            restore::adopt(self, desired, wanted);
        }
        self.sweep(now, &mut plan);
        let assigned = Assigned::of(desired, wanted);
        let retrying = self.retrying(now);
        let new = self.allocate(&assigned, &mut plan);
        let switch = Switch::new(self, &assigned, desired).run(wanted);
        let Switched { minted, in_use, before, after } = switch;
        for head in &new {
            self.tables_of(*head, &in_use, &mut plan);
            self.elements(*head, &mut plan);
        }
        for head in &retrying {
            self.tables_of(*head, &in_use, &mut plan);
        }
        self.columns(&minted, (&new, &retrying), &assigned, &mut plan);
        let first = plan.ops.len();
        plan.ops.extend(before);
        for head in &retrying {
            self.elements(*head, &mut plan);
        }
        self.set_groups(desired, &assigned, wanted, &mut plan);
        let changed = plan.ops.get(first..).is_some_and(|ops| ops.iter().any(is_enforced));
        self.put_state(desired, &assigned, changed, &mut plan);
        plan.ops.extend(after);
        self.adopt_minted(minted);
        self.rest(&assigned, &in_use, now);
        plan
    }

    /// Does the writes, and notes which of them happened.
    pub fn apply(&mut self, plan: Plan, store: &mut impl Store, now: Duration) -> Applied {
        let mut applied = Applied::default();
        for mut op in plan.ops {
            if self.is_moot(&op) {
                continue;
            }
            if let Op::PutGroup { id, group } = &mut op
                && self.incomplete.contains(&self.head_of(*id))
            {
                group.flags |= group_flags::OVERFLOW;
            }
            let lacking = match &op {
                Op::SetGroups { groups, .. } => groups.iter().any(|id| !self.has_group(*id)),
                Op::PutState(PolicyState { pending_ingress, pending_egress, .. }) => {
                    ![pending_ingress, pending_egress].iter().all(|id| self.has_group(**id))
                }
                _ => false,
            };
            let done = if lacking { Err(MapError::lacking("groups")) } else { store.apply(&op) };
            match done {
                Ok(()) => {
                    self.actual.done(&op);
                    applied.writes += 1;
                }
                Err(err) => {
                    self.fail(&op, store, now);
                    applied.failed.push((op, err));
                }
            }
        }
        if applied.failed.is_empty() {
            // Groups without room wait for others to go, which is told by those.
            let again = |(at, delay): (Duration, Duration)| (at.max(now + delay), delay);
            self.retry = self.retry.map(again).filter(|_| !self.incomplete.is_empty());
        }
        applied
    }

    /// When [`Planner::plan`] has to be called again although nothing changed, on the clock of its `now`.
    pub fn next_wakeup(&self) -> Option<Duration> {
        let rested = self.resting.iter().map(|(at, _)| *at);
        rested.chain(self.retry.map(|(at, _)| at)).min()
    }

    /// The device is gone, and its element of `pods` with it.
    pub fn gone(&mut self, ifindex: u32) {
        self.actual.pods.remove(&ifindex);
    }

    /// The groups to be written for a device whose element of `pods` is written now: those that it has, else those
    /// of the Pod with its addresses, else those of unknown Pods.
    pub fn groups_of(&mut self, desired: Option<&Desired>, veth: &Veth) -> GroupIds {
        if let Some(groups) = self.actual.pods.get(&veth.ifindex) {
            return *groups;
        }
        let pod = desired.and_then(|desired| {
            let mut pods = desired.pods.values();
            let pod = pods.find(|pod| pod.ips.iter().any(|ip| veth.ips.contains(ip)))?;
            Some(pod.groups.map(|index| {
                let group = index.and_then(|index| desired.groups.get(index as usize));
                group.map_or(0, |group| self.by_content.get(group).copied().unwrap_or(FULL))
            }))
        });
        let PolicyState { pending_ingress, pending_egress, .. } = self.actual.state;
        let groups = pod.unwrap_or([pending_ingress, pending_egress, 0, 0]);
        let groups = if groups.iter().all(|id| self.has_group(*id)) {
            groups
        } else {
            // Not written yet: the next plan does it.
            [pending_ingress, pending_egress, 0, 0]
        };
        self.actual.pods.insert(veth.ifindex, groups);
        groups
    }

    /// Policies that are not programmed as they should be, and why.
    pub fn issues(&self) -> Vec<Issue> {
        let incomplete = self.incomplete.iter().filter_map(|head| self.live.get(head));
        let groups = incomplete.filter_map(|live| live.content.as_ref()).chain(&self.roomless);
        let mut issues: Vec<Issue> = groups.flat_map(|group| group_issues(group)).collect();
        issues.sort_unstable();
        issues.dedup();
        issues
    }

    /// Groups whose tables could not be written, and which therefore deny everything.
    pub fn n_incomplete(&self) -> usize {
        self.incomplete.len() + self.roomless.len()
    }

    /// The groups that the tables have: index of the first element and content.
    pub fn groups(&self) -> impl Iterator<Item = (u32, &Arc<model::Group>)> {
        self.live.iter().filter_map(|(head, live)| Some((*head, live.content.as_ref()?)))
    }

    /// The identities that the tables have.
    pub fn idents(&self) -> impl Iterator<Item = (u32, &Atomic)> {
        self.idents.iter().map(|(id, atoms)| (*id, atoms))
    }

    /// Where the rule with this number is written.
    pub fn source(&self, head: u32, rule: u32) -> Option<&Source> {
        self.live.get(&head)?.content.as_ref()?.source(rule)
    }

    fn has_group(&self, id: u32) -> bool {
        id == 0 || self.actual.groups.contains_key(&id)
    }

    /// The first element of the chain that this one is in.
    fn head_of(&self, id: u32) -> u32 {
        if self.live.contains_key(&id) {
            return id;
        }
        let chains = self.live.iter().filter(|(_, live)| live.ids.len() > 1);
        chains.into_iter().find(|(_, live)| live.ids.contains(&id)).map_or(id, |(head, _)| *head)
    }

    /// The rest of what a group needs is of no use once something of it could not be written.
    fn is_moot(&self, op: &Op) -> bool {
        match op {
            Op::PutPeerBits { key: PeerKey { group, .. }, .. }
            | Op::PutPortBits { key: PortKey { group, .. }, .. } => {
                !self.incomplete.is_empty() && self.incomplete.contains(&self.head_of(*group))
            }
            _ => false,
        }
    }

    /// Before anything is known of policies: numbers and Pods stay, devices come and go.
    fn follow_devices(&self, devices: &BTreeMap<Addr, Ident>, plan: &mut Plan) {
        const OF_CLUSTER: u32 = ident_flags::POD | ident_flags::NODE;
        for (addr, device) in devices {
            let known = self.actual.ident.get(addr);
            let mut ident = *device;
            if device.flags & ident_flags::LOCAL_NODE == 0 {
                ident.ident = self.actual.ident_of(addr);
                ident.flags |= known.map_or(0, |known| known.flags & OF_CLUSTER);
            }
            if known != Some(&ident) {
                plan.ops.push(Op::PutIdent { addr: *addr, ident });
            }
        }
        for (addr, known) in &self.actual.ident {
            if devices.contains_key(addr) {
                continue;
            }
            if known.flags & OF_CLUSTER == 0 {
                plan.ops.push(Op::DeleteIdent { addr: *addr });
            } else if known.ifindex != 0 {
                let ident = Ident { ifindex: 0, ..*known };
                plan.ops.push(Op::PutIdent { addr: *addr, ident });
            }
        }
    }

    /// Removes what has rested, and gives the numbers free whose elements are gone.
    fn sweep(&mut self, now: Duration, plan: &mut Plan) {
        let (due, resting) =
            std::mem::take(&mut self.resting).into_iter().partition(|(at, _)| *at <= now);
        self.resting = resting;
        let due: Vec<(Duration, Resting)> = due;
        if due.is_empty() {
            return;
        }
        let mut all = Resting::default();
        for (_, resting) in due {
            all.groups.extend(resting.groups);
            all.idents.extend(resting.idents);
        }
        let mut kept = BTreeSet::new();
        for key in self.actual.peer_bits.keys() {
            if all.groups.contains(&key.group) || all.idents.contains(&key.ident) {
                plan.ops.push(Op::DeletePeerBits { key: *key });
                kept.insert(key.group);
            }
        }
        for (len, key) in self.actual.port_bits.keys() {
            if all.groups.contains(&key.group) {
                plan.ops.push(Op::DeletePortBits { len: *len, key: *key });
                kept.insert(key.group);
            }
        }
        let (kept, free): (BTreeSet<u32>, BTreeSet<u32>) =
            all.groups.into_iter().partition(|id| kept.contains(id));
        self.free.extend(free);
        if !plan.ops.is_empty() {
            // Once more, when they are gone.
            self.resting.push((now + REST, Resting { groups: kept, idents: all.idents }));
        }
    }

    /// The groups to be completed now.
    fn retrying(&mut self, now: Duration) -> BTreeSet<u32> {
        if self.retry.is_some_and(|(at, _)| at > now) {
            return BTreeSet::new();
        }
        std::mem::take(&mut self.incomplete)
    }

    /// Gives numbers to groups that have none; returns those.
    fn allocate(&mut self, assigned: &Assigned, plan: &mut Plan) -> BTreeSet<u32> {
        let mut new = BTreeSet::new();
        self.roomless.clear();
        for group in &assigned.groups {
            if self.by_content.contains_key(group) {
                continue;
            }
            let Some(ids) = self.take_ids(group.n_links()) else {
                self.roomless.push(Arc::clone(group));
                continue;
            };
            let Some(head) = ids.first().copied() else { continue };
            self.by_content.insert(Arc::clone(group), head);
            self.live.insert(head, Live { content: Some(Arc::clone(group)), ids });
            new.insert(head);
        }
        let full = self.actual.groups.get(&FULL).map(|group| group.flags);
        if !assigned.groups.is_empty() && full != Some(group_flags::OVERFLOW) {
            let group = Group { flags: group_flags::OVERFLOW, ..Group::ZERO };
            plan.ops.push(Op::PutGroup { id: FULL, group: Box::new(group) });
        }
        new
    }

    fn take_ids(&mut self, n: u32) -> Option<Vec<u32>> {
        let fresh = limits::GROUPS.saturating_sub(self.next_group) as usize;
        if self.free.len() + fresh < n as usize {
            return None;
        }
        let take = |_| {
            // Fresh ones first, so that a number rests as long as possible.
            if self.next_group < limits::GROUPS {
                self.next_group += 1;
                return Some(self.next_group - 1);
            }
            self.free.pop_front()
        };
        (0..n).map(take).collect()
    }

    /// What is missing or wrong in `port_bits` and `peer_bits` of a group.
    fn tables_of(&self, head: u32, in_use: &BTreeMap<u32, Atomic>, plan: &mut Plan) {
        let Some(Live { content: Some(content), ids }) = self.live.get(&head) else { return };
        for (id, link) in ids.iter().zip(content.links()) {
            for entry in link.ports {
                let key = tables::port_prefix(*id, entry.len, entry.protocol, entry.port);
                if self.actual.port_bits.get(&(entry.len, key)) != Some(&entry.bits) {
                    plan.ops.push(Op::PutPortBits { len: entry.len, key, bits: entry.bits });
                }
            }
        }
        for (ident, atoms) in in_use {
            for (link, bits) in content.column(atoms) {
                let Some(id) = ids.get(link as usize) else { continue };
                let key = PeerKey { group: *id, ident: *ident };
                if self.actual.peer_bits.get(&key) != Some(&bits) {
                    plan.ops.push(Op::PutPeerBits { key, bits });
                }
            }
        }
    }

    /// The elements of `groups` of a group, the last first.
    fn elements(&self, head: u32, plan: &mut Plan) {
        let Some(live) = self.live.get(&head) else { return };
        let elements = render(live);
        for (id, element) in elements.into_iter().rev() {
            if self.actual.groups.get(&id) != Some(&element) {
                plan.ops.push(Op::PutGroup { id, group: Box::new(element) });
            }
        }
    }

    /// The bits of new identities in the groups that stay, and in those that are about to go.
    fn columns(
        &self,
        minted: &BTreeMap<u32, switch::Minted>,
        (new, retrying): (&BTreeSet<u32>, &BTreeSet<u32>),
        assigned: &Assigned,
        plan: &mut Plan,
    ) {
        for group in &assigned.groups {
            let Some(head) = self.by_content.get(group) else { continue };
            if new.contains(head) || retrying.contains(head) {
                continue;
            }
            let Some(live) = self.live.get(head) else { continue };
            for (ident, minted) in minted {
                for (link, bits) in group.column(&minted.atoms) {
                    let Some(id) = live.ids.get(link as usize) else { continue };
                    let key = PeerKey { group: *id, ident: *ident };
                    plan.ops.push(Op::PutPeerBits { key, bits });
                }
            }
        }
        for (ident, minted) in minted {
            for (group, bits) in &*minted.as_before {
                let key = PeerKey { group: *group, ident: *ident };
                plan.ops.push(Op::PutPeerBits { key, bits: *bits });
            }
        }
    }

    /// The number of a group; it has one, unless there was no room.
    fn id_of(&self, group: &Arc<model::Group>) -> u32 {
        self.by_content.get(group).copied().unwrap_or(FULL)
    }

    fn set_groups(
        &self,
        desired: &Desired,
        assigned: &Assigned,
        wanted: &Wanted<'_>,
        plan: &mut Plan,
    ) {
        let [ingress, egress] = self.pending_ids(assigned);
        let ids: Vec<u32> = desired.groups.iter().map(|group| self.id_of(group)).collect();
        let id = |index: Option<u32>| {
            index.map_or(0, |index| ids.get(index as usize).copied().unwrap_or(FULL))
        };
        for (veth, pod) in wanted.veths.iter().zip(&assigned.veths) {
            let groups = match pod {
                Some(groups) => groups.map(id),
                None => [ingress, egress, 0, 0],
            };
            let ifindex = veth.ifindex;
            if self.actual.pods.get(&ifindex).is_some_and(|known| *known != groups) {
                plan.ops.push(Op::SetGroups { ifindex, groups });
            }
        }
    }

    fn pending_ids(&self, assigned: &Assigned) -> [u32; 2] {
        let id = assigned.pending_group.as_ref().map_or(0, |group| self.id_of(group));
        assigned.pending.map(|pending| if pending { id } else { 0 })
    }

    fn put_state(&self, desired: &Desired, assigned: &Assigned, changed: bool, plan: &mut Plan) {
        let [pending_ingress, pending_egress] = self.pending_ids(assigned);
        let old = self.actual.state;
        let mut state = PolicyState { pending_ingress, pending_egress, ..old };
        let begins = desired.any && old.epoch == 0;
        if begins || (old.epoch != 0 && (changed || state != old)) {
            state.epoch = old.epoch.wrapping_add(1).max(1);
        }
        if state != old {
            plan.ops.push(Op::PutState(state));
        }
    }

    fn adopt_minted(&mut self, minted: BTreeMap<u32, switch::Minted>) {
        for (id, minted) in minted {
            self.next_ident = self.next_ident.max(id + 1);
            self.by_atoms.entry(Arc::clone(&minted.atoms)).or_insert(id);
            self.idents.insert(id, minted.atoms);
        }
    }

    /// Puts to rest what neither the maps nor the plan refer to. Numbers that the plan takes out of use are still
    /// referred to by the maps as they are now: they are found by the next plan.
    fn rest(&mut self, assigned: &Assigned, in_use: &BTreeMap<u32, Atomic>, now: Duration) {
        let mut resting = Resting::default();
        let referred = self.referred();
        let wanted: BTreeSet<u32> = assigned.groups.iter().map(|group| self.id_of(group)).collect();
        let (by_content, incomplete) = (&mut self.by_content, &mut self.incomplete);
        let mut late = false;
        self.live.retain(|head, live| {
            let leaves = !wanted.contains(head);
            let stays = !leaves || referred.contains(head);
            late |= leaves && stays;
            if leaves
                && let Some(content) = &live.content
                && by_content.get(content) == Some(head)
            {
                // Should it be wanted again, it gets another number: this one's tables are not kept up to date.
                by_content.remove(content);
            }
            if !stays {
                incomplete.remove(head);
                resting.groups.extend(&live.ids);
            }
            stays
        });
        let mut held: BTreeSet<u32> = self.actual.ident.values().map(|known| known.ident).collect();
        held.extend(self.actual.cidrs.iter().map(|(_, ident)| ident));
        let by_atoms = &mut self.by_atoms;
        self.idents.retain(|id, atoms| {
            let leaves = !in_use.contains_key(id);
            let stays = !leaves || held.contains(id);
            late |= leaves && stays;
            if leaves && by_atoms.get(atoms) == Some(id) {
                by_atoms.remove(atoms);
            }
            if !stays {
                resting.idents.insert(*id);
            }
            stays
        });
        self.strangers.retain(|id| {
            let stays = held.contains(id);
            late |= stays;
            if !stays {
                resting.idents.insert(*id);
            }
            stays
        });
        if !resting.groups.is_empty() || !resting.idents.is_empty() {
            self.resting.push((now + REST, resting));
        }
        if late && self.resting.is_empty() {
            // They are looked at again.
            self.resting.push((now + REST, Resting::default()));
        }
    }

    /// The first elements of the groups that something in the maps refers to.
    fn referred(&self) -> BTreeSet<u32> {
        let PolicyState { pending_ingress, pending_egress, .. } = self.actual.state;
        let pods = self.actual.pods.values().flatten().copied();
        pods.chain([pending_ingress, pending_egress]).filter(|id| *id != 0).collect()
    }

    /// A write did not happen: what depends on it denies everything, until it does.
    fn fail(&mut self, op: &Op, store: &mut impl Store, now: Duration) {
        let delay =
            self.retry.map_or(
                RETRY,
                |(at, delay)| {
                    if at > now { delay } else { (delay * 2).min(RETRY_MOST) }
                },
            );
        self.retry = Some((now + delay, delay));
        match op {
            Op::PutPeerBits { key: PeerKey { group, .. }, .. }
            | Op::PutPortBits { key: PortKey { group, .. }, .. } => {
                self.overflow(self.head_of(*group), store);
            }
            Op::PutIdent { addr, ident } => {
                self.distinguish(self.actual.ident_of(addr), ident.ident, store);
            }
            Op::DeleteIdent { addr } => {
                self.distinguish(self.actual.ident_of(addr), self.actual.cidrs.find(addr), store);
            }
            Op::PutCidr { range, ident } => {
                self.distinguish(self.actual.cidrs.find(&range.addr()), *ident, store);
            }
            Op::PutGroup { .. }
            | Op::DeletePeerBits { .. }
            | Op::DeletePortBits { .. }
            | Op::DeleteCidr { .. }
            | Op::SetGroups { .. }
            | Op::PutState(_) => {}
        }
    }

    /// Addresses have one identity instead of another: groups that tell them apart cannot do right.
    fn distinguish(&mut self, have: u32, want: u32, store: &mut impl Store) {
        let bits = |group: u32, ident: u32| self.actual.peer_bits.get(&PeerKey { group, ident });
        let differs = |live: &&Live| live.ids.iter().any(|id| bits(*id, have) != bits(*id, want));
        let heads = self.live.values().filter(differs).filter_map(|live| live.ids.first());
        for head in heads.copied().collect::<Vec<_>>() {
            self.overflow(head, store);
        }
    }

    fn overflow(&mut self, head: u32, store: &mut impl Store) {
        self.incomplete.insert(head);
        let Some(group) = self.actual.groups.get(&head) else { return };
        if group.flags & group_flags::OVERFLOW != 0 {
            return;
        }
        let group = Group { flags: group.flags | group_flags::OVERFLOW, ..*group };
        let op = Op::PutGroup { id: head, group: Box::new(group) };
        // An element of an array is always there; should the kernel refuse, the retry comes here again.
        if store.apply(&op).is_ok() {
            self.actual.done(&op);
        }
    }
}

/// Whether a write changes what is enforced.
fn is_enforced(op: &Op) -> bool {
    match op {
        Op::PutIdent { .. }
        | Op::DeleteIdent { .. }
        | Op::PutCidr { .. }
        | Op::SetGroups { .. }
        | Op::PutGroup { .. } => true,
        Op::PutPeerBits { .. }
        | Op::DeletePeerBits { .. }
        | Op::PutPortBits { .. }
        | Op::DeletePortBits { .. }
        | Op::DeleteCidr { .. }
        | Op::PutState(_) => false,
    }
}

/// The elements of `groups` of a group.
fn render(live: &Live) -> Vec<(u32, Group)> {
    let Some(content) = &live.content else { return Vec::new() };
    let next = live.ids.iter().skip(1).copied().chain([0]);
    let links = live.ids.iter().zip(content.links()).zip(next);
    links.map(|((id, link), next)| (*id, Group { next, ..link.element })).collect()
}

fn group_issues(group: &model::Group) -> Vec<Issue> {
    let message =
        "the tables have no room for all of it: Pods that it selects are cut off in this direction";
    let direction = group.rules.first().map(|(_, rule)| rule.source.direction);
    let field = direction.map_or("spec", |direction| match direction {
        Direction::Ingress => "spec.ingress",
        Direction::Egress => "spec.egress",
    });
    let issue = |(name, tier)| Issue::new(object(name, tier), field, message);
    group.policies().into_iter().map(issue).collect()
}

/// Which groups are wanted, and for which devices.
struct Assigned {
    /// All of them, each once.
    groups: Vec<Arc<model::Group>>,
    /// For each device the indices of its Pod's groups; `None` when its Pod is not known.
    veths: Vec<Option<[Option<u32>; 4]>>,
    /// Whether unknown Pods are cut off: in ingress, in egress.
    pending: [bool; 2],
    pending_group: Option<Arc<model::Group>>,
}

impl Assigned {
    fn of(desired: &Desired, wanted: &Wanted<'_>) -> Self {
        let mut at: HashMap<Addr, (usize, [Option<u32>; 4])> = HashMap::new();
        for (i, pod) in desired.pods.values().enumerate() {
            at.extend(pod.ips.iter().map(|ip| (*ip, (i, pod.groups))));
        }
        let mut met = BTreeSet::new();
        let veths = wanted.veths.iter().map(|veth| {
            let (i, groups) = veth.ips.iter().find_map(|ip| at.get(ip))?;
            met.insert(*i);
            Some(*groups)
        });
        let veths = veths.collect();
        let unmet = desired.pods.values().enumerate().filter(|(i, _)| !met.contains(i));
        let mut pending = [wanted.strict && desired.any; 2];
        for (_, pod) in unmet {
            let [ingress, egress, ..] = pod.groups;
            let [pending_ingress, pending_egress] = &mut pending;
            *pending_ingress |= ingress.is_some();
            *pending_egress |= egress.is_some();
        }
        let mut groups = desired.groups.clone();
        let pending_group = pending.contains(&true).then(|| Arc::new(model::Group::pending()));
        groups.extend(pending_group.clone());
        Self { groups, veths, pending, pending_group }
    }
}
