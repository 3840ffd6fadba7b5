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
//! that leaves a group which other Pods keep, while addresses change that this group distinguishes, is judged by that group
//! and the new addresses until its own write comes, as if it had been changed a moment later than they.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::conntrack::UNJUDGED;
use lb_common::endpoint::{Ident, IdentFlags, PodEntry};
use lb_common::limits;
use lb_common::policy::{Group, GroupFlags, PeerKey, PolicyState};

use self::assigned::{Assigned, Whose};
use self::failures::group_issues;
use self::rest::Resting;
use self::switch::{Switch, Switched};
use super::actual::Actual;
use super::pods::{self, GroupIds, Pods};
use super::retry::Retry;
use super::write::Write;
use crate::cluster::Name;
use crate::issue::Issue;
use crate::model::policy::{self as model, AtomSet, DesiredPolicies, RuleSource};

mod assigned;
pub(super) mod failures;
pub(super) mod port_key;
mod rest;
mod restore;
mod switch;

/// The element of `groups` that denies everything: for groups that the array has no room for.
const FULL: u32 = 1;

/// A Pod's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDevice {
    /// Key in `pods`.
    pub ifindex: u32,
    /// Who is behind it.
    pub behind: Behind,
    /// What the device says of its element of `pods`: all but its number, groups and further sources.
    pub device_part: PodEntry,
}

/// Who is behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// The Pod with this name and number ([`crate::cluster::Pod::uid`]).
    Pod(Name, u64),
    /// Not known yet; one of the Pods that are awaited, perhaps, but none that was made after this (seconds since 1970).
    Unknown(i64),
    /// No Pod, and none that is awaited; or a second device of one.
    NoPod,
    /// Whoever claims to be a Pod that has another device, or has been a Pod that is no more.
    Impostor,
}

/// What the tables should say, and of which devices.
#[derive(Clone, Copy, Debug)]
pub struct DesiredTables<'a> {
    /// What policies come to; `None` before it is known, and then everything of that stays.
    pub desired: Option<&'a DesiredPolicies>,
    /// What this node's devices say of `ident`: its own addresses, and behind which device others are.
    pub devices: &'a BTreeMap<Addr, Ident>,
    /// The Pods' devices.
    pub veths: &'a [PodDevice],
    /// Whether devices of unknown Pods are cut off as soon as there is any policy.
    pub strict: bool,
    /// The stamp until which connections may be older than the first policy of their Pod.
    pub pickup_until: u32,
}

/// A group that the tables have.
#[derive(Clone, Debug)]
struct Live {
    /// `None` of one that was found in the maps and is not understood.
    content: Option<Arc<model::RuleSet>>,
    /// Its elements in `groups`, in order.
    ids: Vec<u32>,
}

/// Keeps the numbers and makes plans.
#[derive(Debug)]
pub struct PolicyPlanner {
    /// By their first element.
    live: BTreeMap<u32, Live>,
    by_content: HashMap<Arc<model::RuleSet>, u32>,
    /// The identities that the tables have, but for 0 and those found in the maps and not understood.
    idents: BTreeMap<u32, AtomSet>,
    /// The number to be given to addresses that get an identity.
    by_atoms: HashMap<AtomSet, u32>,
    /// Identities found in the maps and not understood.
    strangers: BTreeSet<u32>,
    next_ident: u32,
    free: VecDeque<u32>,
    next_group: u32,
    /// By the time from which on they may be removed.
    resting: Vec<(Duration, Resting)>,
    /// Groups whose tables lack something, by the first element: they deny everything.
    incomplete: BTreeSet<u32>,
    /// The first write of those that failed and are still to be repeated.
    unwritten: Option<Issue>,
    /// Groups that there was no room for at all.
    roomless: Vec<Arc<model::RuleSet>>,
    retry: Option<Retry>,
    /// Whether a plan with policies has been made.
    begun: bool,
}

impl PolicyPlanner {
    /// Takes over what the maps say.
    pub(super) fn restore(actual: &Actual) -> Self {
        restore::planner(actual)
    }

    /// The writes for what is wanted, for earlier ones that failed, and for numbers that have rested.
    ///
    /// `now` is any clock that never goes back.
    pub(super) fn plan(
        &mut self,
        (actual, pods): (&Actual, &Pods),
        wanted: &DesiredTables<'_>,
        now: Duration,
    ) -> Vec<Write> {
        let mut writes = Vec::new();
        let Some(desired) = wanted.desired else {
            follow_devices(actual, wanted.devices, &mut writes);
            let put = |veth| self.put_pod((actual, pods), None, veth, wanted.pickup_until);
            writes.extend(wanted.veths.iter().filter_map(put));
            delete_pods(actual, wanted.veths, &mut writes);
            return writes;
        };
        if !self.begun {
            self.begun = true;
            restore::adopt(self, actual, desired, wanted);
        }
        self.sweep(actual, now, &mut writes);
        let assigned = Assigned::of(desired, wanted);
        let retrying = self.retrying(now, !writes.is_empty());
        let new = self.allocate(actual, &assigned, &mut writes);
        let switch = Switch::new(self, actual, &assigned, desired).run(wanted);
        let Switched { minted, in_use, before, after } = switch;
        self.groups_in_order(actual, (&new, &retrying), &in_use, &mut writes);
        self.columns(&minted, (&new, &retrying), &assigned, &mut writes);
        let first = writes.len();
        writes.extend(before);
        for head in &retrying {
            self.elements(actual, *head, &mut writes);
        }
        self.put_pods((actual, pods), desired, &assigned, wanted, &mut writes);
        let enforced = |write: &Write| is_enforced(actual, write);
        let changed = writes.get(first..).is_some_and(|writes| writes.iter().any(enforced));
        self.put_state(actual, desired, &assigned, changed, &mut writes);
        writes.extend(after);
        self.adopt_minted(minted);
        self.rest(actual, &assigned, &in_use, now);
        writes
    }

    /// The write that gives a device its element of `pods` without waiting for a plan of all of them, if it is another than
    /// it has: with the groups that it has, else those of the Pod behind it, else those of unknown Pods.
    pub(super) fn put_pod(
        &self,
        (actual, pods): (&Actual, &Pods),
        desired: Option<&DesiredPolicies>,
        veth: &PodDevice,
        pickup_until: u32,
    ) -> Option<Write> {
        let groups = self.groups_of(actual, desired, veth);
        put_pod((actual, pods), veth, groups, pickup_until)
    }

    /// When [`PolicyPlanner::plan`] has to be called again although nothing changed, on the clock of its `now`.
    pub fn next_wakeup(&self) -> Option<Duration> {
        let rested = self.resting.iter().map(|(at, _)| *at);
        rested.chain(self.retry.map(|retry| retry.at)).min()
    }

    fn groups_of(
        &self,
        actual: &Actual,
        desired: Option<&DesiredPolicies>,
        veth: &PodDevice,
    ) -> GroupIds {
        if let Some(pod) = actual.pods.get(&veth.ifindex) {
            return pods::groups(pod);
        }
        let pod = desired.and_then(|desired| {
            let pod = assigned::pod(desired, &veth.behind)?;
            Some(pod.groups.map(|index| {
                let group = index.and_then(|index| desired.groups.get(index as usize));
                group.map_or(0, |group| self.by_content.get(group).copied().unwrap_or(FULL))
            }))
        });
        let PolicyState { pending_ingress, pending_egress, .. } = actual.policy;
        let no_pod = veth.behind == Behind::NoPod;
        let pending = if no_pod { [0; 4] } else { [pending_ingress, pending_egress, 0, 0] };
        // Groups that are not written yet come with the next plan.
        pod.filter(|groups| groups.iter().all(|id| actual.has_group(*id))).unwrap_or(pending)
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

    /// A write that failed and is still to be repeated: the first of them.
    pub fn unwritten(&self) -> Option<&Issue> {
        self.unwritten.as_ref()
    }

    /// Groups whose tables could not be written, and which therefore deny everything.
    pub fn n_incomplete(&self) -> usize {
        self.incomplete.len() + self.roomless.len()
    }

    /// The groups that the tables have: index of the first element and content.
    pub fn groups(&self) -> impl Iterator<Item = (u32, &Arc<model::RuleSet>)> {
        self.live.iter().filter_map(|(head, live)| Some((*head, live.content.as_ref()?)))
    }

    /// The content of the group with this first element.
    pub fn group(&self, head: u32) -> Option<&Arc<model::RuleSet>> {
        self.live.get(&head)?.content.as_ref()
    }

    /// The identities that the tables have.
    pub fn idents(&self) -> impl Iterator<Item = (u32, &AtomSet)> {
        self.idents.iter().map(|(id, atoms)| (*id, atoms))
    }

    /// Where the rule with this number is written.
    pub fn source(&self, head: u32, rule: u32) -> Option<&RuleSource> {
        self.group(head)?.source(rule)
    }

    /// The first element of the chain that this one is in.
    fn head_of(&self, id: u32) -> u32 {
        if self.live.contains_key(&id) {
            return id;
        }
        let chains = self.live.iter().filter(|(_, live)| live.ids.len() > 1);
        chains.into_iter().find(|(_, live)| live.ids.contains(&id)).map_or(id, |(head, _)| *head)
    }

    /// The groups to be completed now: it is time to, or there is more room.
    fn retrying(&mut self, now: Duration, freed: bool) -> BTreeSet<u32> {
        if !freed && self.retry.is_some_and(|retry| retry.at > now) {
            return BTreeSet::new();
        }
        std::mem::take(&mut self.incomplete)
    }

    /// Gives numbers to groups that have none; returns those.
    fn allocate(
        &mut self,
        actual: &Actual,
        assigned: &Assigned,
        writes: &mut Vec<Write>,
    ) -> BTreeSet<u32> {
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
        let full = actual.groups.get(&FULL).map(|group| group.flags);
        if !assigned.groups.is_empty() && full != Some(GroupFlags::OVERFLOW) {
            let group = Group { flags: GroupFlags::OVERFLOW, ..Group::ZERO };
            writes.push(Write::PutGroup { id: FULL, group: Box::new(group) });
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
        actual: &Actual,
        (new, retrying): (&BTreeSet<u32>, &BTreeSet<u32>),
        in_use: &BTreeMap<u32, AtomSet>,
        writes: &mut Vec<Write>,
    ) {
        let mut of_namespace: BTreeMap<&str, Vec<Write>> = BTreeMap::new();
        for head in new.iter().chain(retrying) {
            let Some(content) = self.live.get(head).and_then(|live| live.content.as_ref()) else {
                continue;
            };
            let namespace = content.isolating.first().map_or("", |name| &*name.namespace);
            let own = of_namespace.entry(namespace).or_default();
            self.tables_of(actual, *head, in_use, own);
            if new.contains(head) {
                self.elements(actual, *head, own);
            }
        }
        let mut all: Vec<(&str, Vec<Write>)> = of_namespace.into_iter().collect();
        all.sort_by_key(|(namespace, own)| (!namespace.is_empty(), own.len()));
        writes.extend(all.into_iter().flat_map(|(_, own)| own));
    }

    /// What is missing or wrong in `port_bits` and `peer_bits` of a group.
    fn tables_of(
        &self,
        actual: &Actual,
        head: u32,
        in_use: &BTreeMap<u32, AtomSet>,
        writes: &mut Vec<Write>,
    ) {
        let Some(Live { content: Some(content), ids }) = self.live.get(&head) else { return };
        for (id, link) in ids.iter().zip(content.links()) {
            for entry in link.ports {
                let (len, key) = port_key::port_entry(*id, &entry);
                if actual.port_bits.get(&(len, key)) != Some(&entry.bits) {
                    writes.push(Write::PutPortBits { len, key, bits: entry.bits });
                }
            }
        }
        for (ident, atoms) in in_use {
            for (link, bits) in content.column(atoms) {
                let Some(id) = ids.get(link as usize) else { continue };
                let key = PeerKey { group: *id, ident: *ident };
                if actual.peer_bits.get(&key) != Some(&bits) {
                    writes.push(Write::PutPeerBits { key, bits });
                }
            }
        }
    }

    /// The elements of `groups` of a group, the last first.
    fn elements(&self, actual: &Actual, head: u32, writes: &mut Vec<Write>) {
        let Some(live) = self.live.get(&head) else { return };
        let elements = render(live);
        for (id, element) in elements.into_iter().rev() {
            if actual.groups.get(&id) != Some(&element) {
                writes.push(Write::PutGroup { id, group: Box::new(element) });
            }
        }
    }

    /// The bits of new identities in the groups that stay, and in those that are about to go.
    fn columns(
        &self,
        minted: &BTreeMap<u32, switch::Minted>,
        (new, retrying): (&BTreeSet<u32>, &BTreeSet<u32>),
        assigned: &Assigned,
        writes: &mut Vec<Write>,
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
                    writes.push(Write::PutPeerBits { key, bits });
                }
            }
        }
        for (ident, minted) in minted {
            for (group, bits) in &*minted.as_before {
                let key = PeerKey { group: *group, ident: *ident };
                writes.push(Write::PutPeerBits { key, bits: *bits });
            }
        }
    }

    /// The number of a group; it has one, unless there was no room.
    fn id_of(&self, group: &Arc<model::RuleSet>) -> u32 {
        self.by_content.get(group).copied().unwrap_or(FULL)
    }

    fn put_pods(
        &self,
        (actual, pods): (&Actual, &Pods),
        desired: &DesiredPolicies,
        assigned: &Assigned,
        wanted: &DesiredTables<'_>,
        writes: &mut Vec<Write>,
    ) {
        let pending = assigned.pending_group.as_ref().map_or(0, |group| self.id_of(group));
        let ids: Vec<u32> = desired.groups.iter().map(|group| self.id_of(group)).collect();
        let id = |index: Option<u32>| {
            index.map_or(0, |index| ids.get(index as usize).copied().unwrap_or(FULL))
        };
        for (veth, pod) in wanted.veths.iter().zip(&assigned.veths) {
            let groups = match pod {
                Whose::Pod(groups) => groups.map(id),
                Whose::NoPod([ingress, egress]) => {
                    [ingress, egress, &false, &false].map(|cut| if *cut { pending } else { 0 })
                }
            };
            writes.extend(put_pod((actual, pods), veth, groups, wanted.pickup_until));
        }
        delete_pods(actual, wanted.veths, writes);
    }

    fn pending_ids(&self, assigned: &Assigned) -> [u32; 2] {
        let id = assigned.pending_group.as_ref().map_or(0, |group| self.id_of(group));
        assigned.pending.map(|pending| if pending { id } else { 0 })
    }

    fn put_state(
        &self,
        actual: &Actual,
        desired: &DesiredPolicies,
        assigned: &Assigned,
        changed: bool,
        writes: &mut Vec<Write>,
    ) {
        let [pending_ingress, pending_egress] = self.pending_ids(assigned);
        let old = actual.policy;
        let mut state = PolicyState { pending_ingress, pending_egress, ..old };
        let begins = desired.any && old.epoch == 0;
        if begins || (old.epoch != 0 && (changed || state != old)) {
            // Neither 0 nor `UNJUDGED`.
            state.epoch = (old.epoch.wrapping_add(1) % UNJUDGED).max(1);
        }
        if state != old {
            writes.push(Write::PutPolicyState(state));
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
    fn referred(&self, actual: &Actual) -> BTreeSet<u32> {
        let PolicyState { pending_ingress, pending_egress, .. } = actual.policy;
        let pods = actual.pods.values().flat_map(pods::groups);
        pods.chain([pending_ingress, pending_egress]).filter(|id| *id != 0).collect()
    }
}

/// Before anything is known of policies: numbers stay, devices come and go.
fn follow_devices(actual: &Actual, devices: &BTreeMap<Addr, Ident>, writes: &mut Vec<Write>) {
    const OF_CLUSTER: IdentFlags = IdentFlags::POD.with(IdentFlags::NODE).with(IdentFlags::HERE);
    for (addr, device) in devices {
        let known = actual.ident.get(addr);
        let mut ident = *device;
        ident.ident = actual.ident_of(addr);
        if !device.flags.contains(IdentFlags::LOCAL_NODE) {
            ident.flags |= known.map_or(IdentFlags::NONE, |known| known.flags.only(OF_CLUSTER));
        }
        if known != Some(&ident) {
            writes.push(Write::PutIdent { addr: *addr, ident });
        }
    }
    for (addr, known) in &actual.ident {
        if devices.contains_key(addr) {
            continue;
        }
        if !known.flags.intersects(OF_CLUSTER) {
            writes.push(Write::DeleteIdent { addr: *addr });
        } else if known.ifindex != 0 {
            let ident = Ident { ifindex: 0, ..*known };
            writes.push(Write::PutIdent { addr: *addr, ident });
        }
    }
}

/// The write of a device's element of `pods`, if it has another one.
fn put_pod(
    (actual, pods): (&Actual, &Pods),
    veth: &PodDevice,
    groups: GroupIds,
    pickup_until: u32,
) -> Option<Write> {
    let ifindex = veth.ifindex;
    let pod = pods.element((ifindex, &veth.device_part), actual, groups, pickup_until);
    (actual.pods.get(&ifindex) != Some(&pod)).then(|| Write::PutPod { ifindex, pod: Box::new(pod) })
}

/// The writes for devices that are gone, but whose element could not be removed then.
fn delete_pods(actual: &Actual, veths: &[PodDevice], writes: &mut Vec<Write>) {
    let there: HashSet<u32> = veths.iter().map(|veth| veth.ifindex).collect();
    let gone = actual.pods.keys().filter(|ifindex| !there.contains(ifindex));
    writes.extend(gone.map(|ifindex| Write::DeletePod { ifindex: *ifindex }));
}

/// Whether a write changes what is enforced.
fn is_enforced(actual: &Actual, write: &Write) -> bool {
    match write {
        Write::PutIdent { .. }
        | Write::DeleteIdent { .. }
        | Write::PutCidr { .. }
        | Write::PutGroup { .. } => true,
        Write::PutPod { ifindex, pod } => {
            let before = actual.pods.get(ifindex).map(pods::groups);
            before.is_some_and(|before| before != pods::groups(pod))
        }
        _ => false,
    }
}

/// The elements of `groups` of a group.
fn render(live: &Live) -> Vec<(u32, Group)> {
    let Some(content) = &live.content else { return Vec::new() };
    let next = live.ids.iter().skip(1).copied().chain([0]);
    let links = live.ids.iter().zip(content.links()).zip(next);
    links.map(|((id, link), next)| (*id, Group { next, ..link.element })).collect()
}
