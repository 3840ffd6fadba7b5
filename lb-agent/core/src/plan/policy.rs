//! Policy tables by content → the writes that bring the maps there, in an order in which each prefix is safe.
//!
//! ```text
//! new groups, columns of new identities ─► addresses' identities ─► Pods' groups ─► epoch ─► what nothing refers to
//! ```
//!
//! A number, of a group or of an identity, has one meaning as long as something refers to it: other content gets
//! another number, and the old one rests before it is given away again. While addresses change their identities, the
//! old groups are still asked; so an identity that is new has, in the groups that are about to go, the bits of the
//! one before it. Hence each flow is judged as before or as after, wherever the writes stop. One case is left out: a Pod
//! that leaves a group which other Pods keep, while addresses change that this group tells apart, is judged by that group
//! and the new addresses until its own write comes, as if it had been changed a moment later than they.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::endpoint::{Ident, ident_flags};
use lb_common::limits;
use lb_common::policy::{Group, PeerKey, PolicyState, PortKey, group_flags};

use self::assigned::{Assigned, Whose};
use self::failures::group_issues;
use self::rest::Resting;
use self::switch::{Switch, Switched};
use super::MapError;
use crate::cluster::Name;
use crate::issue::Issue;
use crate::model::policy::{self as model, Atomic, Desired, Source};

mod assigned;
mod failures;
mod op;
mod rest;
mod restore;
mod switch;
mod tables;

pub use self::op::{GroupIds, Op, Store};
pub use self::tables::{Actual, Cidrs};

/// The element of `groups` that denies everything: for groups that the array has no room for.
const FULL: u32 = 1;

/// A Pod's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// Key in `pods`.
    pub ifindex: u32,
    /// Who is behind it.
    pub behind: Behind,
}

/// Who is behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// The Pod with this name and number ([`crate::cluster::Pod::uid`]).
    Pod(Name, u64),
    /// Not known yet; one of the Pods that are awaited, perhaps, but none that was made after this (seconds since 1970).
    Unknown(i64),
    /// No Pod, and none that is awaited; or a second device of one.
    Nobody,
    /// Whoever claims to be a Pod that has another device, or has been a Pod that is no more.
    Impostor,
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
        let retrying = self.retrying(now, !plan.ops.is_empty());
        let new = self.allocate(&assigned, &mut plan);
        let switch = Switch::new(self, &assigned, desired).run(wanted);
        let Switched { minted, in_use, before, after } = switch;
        self.groups_in_order((&new, &retrying), &in_use, &mut plan);
        self.columns(&minted, (&new, &retrying), &assigned, &mut plan);
        let first = plan.ops.len();
        plan.ops.extend(before);
        for head in &retrying {
            self.elements(*head, &mut plan.ops);
        }
        self.set_groups(desired, &assigned, wanted, &mut plan);
        let changed = plan.ops.get(first..).is_some_and(|ops| ops.iter().any(Op::is_enforced));
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
            let again = |(at, delay)| (if at > now { at } else { now + delay }, delay);
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
    /// of the Pod behind it, else those of unknown Pods.
    pub fn groups_of(&mut self, desired: Option<&Desired>, veth: &Veth) -> GroupIds {
        if let Some(groups) = self.actual.pods.get(&veth.ifindex) {
            return *groups;
        }
        let pod = desired.and_then(|desired| {
            let pod = assigned::pod(desired, &veth.behind)?;
            Some(pod.groups.map(|index| {
                let group = index.and_then(|index| desired.groups.get(index as usize));
                group.map_or(0, |group| self.by_content.get(group).copied().unwrap_or(FULL))
            }))
        });
        let PolicyState { pending_ingress, pending_egress, .. } = self.actual.state;
        let nobody = veth.behind == Behind::Nobody;
        let pending = if nobody { [0; 4] } else { [pending_ingress, pending_egress, 0, 0] };
        let groups = pod.unwrap_or(pending);
        let groups = if groups.iter().all(|id| self.has_group(*id)) {
            groups
        } else {
            // Not written yet: the next plan does it.
            pending
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
        const OF_CLUSTER: u32 = ident_flags::POD | ident_flags::NODE | ident_flags::HERE;
        for (addr, device) in devices {
            let known = self.actual.ident.get(addr);
            let mut ident = *device;
            ident.ident = self.actual.ident_of(addr);
            if device.flags & ident_flags::LOCAL_NODE == 0 {
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

    /// The groups to be completed now: it is time to, or there is more room.
    fn retrying(&mut self, now: Duration, freed: bool) -> BTreeSet<u32> {
        if !freed && self.retry.is_some_and(|(at, _)| at > now) {
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

    /// What new groups and those to be completed need. Where room is short for a moment, the namespace that needs most
    /// of it comes last.
    fn groups_in_order(
        &self,
        (new, retrying): (&BTreeSet<u32>, &BTreeSet<u32>),
        in_use: &BTreeMap<u32, Atomic>,
        plan: &mut Plan,
    ) {
        let mut of_namespace: BTreeMap<&str, Vec<Op>> = BTreeMap::new();
        for head in new.iter().chain(retrying) {
            let Some(content) = self.live.get(head).and_then(|live| live.content.as_ref()) else {
                continue;
            };
            let namespace = content.isolating.first().map_or("", |name| &*name.namespace);
            let ops = of_namespace.entry(namespace).or_default();
            self.tables_of(*head, in_use, ops);
            if new.contains(head) {
                self.elements(*head, ops);
            }
        }
        let mut all: Vec<(&str, Vec<Op>)> = of_namespace.into_iter().collect();
        all.sort_by_key(|(namespace, ops)| (!namespace.is_empty(), ops.len()));
        plan.ops.extend(all.into_iter().flat_map(|(_, ops)| ops));
    }

    /// What is missing or wrong in `port_bits` and `peer_bits` of a group.
    fn tables_of(&self, head: u32, in_use: &BTreeMap<u32, Atomic>, ops: &mut Vec<Op>) {
        let Some(Live { content: Some(content), ids }) = self.live.get(&head) else { return };
        for (id, link) in ids.iter().zip(content.links()) {
            for entry in link.ports {
                let (len, key) = tables::port_entry(*id, &entry);
                if self.actual.port_bits.get(&(len, key)) != Some(&entry.bits) {
                    ops.push(Op::PutPortBits { len, key, bits: entry.bits });
                }
            }
        }
        for (ident, atoms) in in_use {
            for (link, bits) in content.column(atoms) {
                let Some(id) = ids.get(link as usize) else { continue };
                let key = PeerKey { group: *id, ident: *ident };
                if self.actual.peer_bits.get(&key) != Some(&bits) {
                    ops.push(Op::PutPeerBits { key, bits });
                }
            }
        }
    }

    /// The elements of `groups` of a group, the last first.
    fn elements(&self, head: u32, ops: &mut Vec<Op>) {
        let Some(live) = self.live.get(&head) else { return };
        let elements = render(live);
        for (id, element) in elements.into_iter().rev() {
            if self.actual.groups.get(&id) != Some(&element) {
                ops.push(Op::PutGroup { id, group: Box::new(element) });
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
        let pending = assigned.pending_group.as_ref().map_or(0, |group| self.id_of(group));
        let ids: Vec<u32> = desired.groups.iter().map(|group| self.id_of(group)).collect();
        let id = |index: Option<u32>| {
            index.map_or(0, |index| ids.get(index as usize).copied().unwrap_or(FULL))
        };
        for (veth, pod) in wanted.veths.iter().zip(&assigned.veths) {
            let groups = match pod {
                Whose::Pod(groups) => groups.map(id),
                Whose::Nobody([ingress, egress]) => {
                    [ingress, egress, &false, &false].map(|cut| if *cut { pending } else { 0 })
                }
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
            self.by_atoms.entry(minted.atoms.clone()).or_insert(id);
            self.idents.insert(id, minted.atoms);
        }
    }

    /// The first elements of the groups that something in the maps refers to.
    fn referred(&self) -> BTreeSet<u32> {
        let PolicyState { pending_ingress, pending_egress, .. } = self.actual.state;
        let pods = self.actual.pods.values().flatten().copied();
        pods.chain([pending_ingress, pending_egress]).filter(|id| *id != 0).collect()
    }
}

/// The elements of `groups` of a group.
fn render(live: &Live) -> Vec<(u32, Group)> {
    let Some(content) = &live.content else { return Vec::new() };
    let next = live.ids.iter().skip(1).copied().chain([0]);
    let links = live.ids.iter().zip(content.links()).zip(next);
    links.map(|((id, link), next)| (*id, Group { next, ..link.element })).collect()
}
