//! What a restart finds in the maps: whose numbers those are is found out by what addresses and Pods have them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use lb_common::policy::{Bits, PeerKey};

use super::assigned::{Assigned, Whose};
use super::{DesiredTables, FULL, Live, PolicyPlanner, port_key, render};
use crate::model::policy::{self as model, AtomSet, DesiredPolicies};
use crate::plan::actual::Actual;
use crate::plan::pods;

/// All that the maps have is there and not understood.
pub(super) fn planner(actual: &Actual) -> PolicyPlanner {
    let mut ids: BTreeSet<u32> = actual.groups.keys().copied().collect();
    ids.extend(actual.peer_bits.keys().map(|key| key.group));
    ids.extend(actual.port_bits.keys().map(|(_, key)| key.group));
    ids.extend(actual.pods.values().flat_map(pods::groups));
    let pending = [actual.policy.pending_ingress, actual.policy.pending_egress];
    ids.extend(pending);
    let mut live = BTreeMap::new();
    let next_group = ids.last().copied().unwrap_or(0).max(FULL) + 1;
    let free: VecDeque<u32> = (FULL + 1..next_group).filter(|id| !ids.contains(id)).collect();
    ids.remove(&0);
    ids.remove(&FULL);
    let heads = actual.pods.values().flat_map(pods::groups).chain(pending);
    for head in heads.collect::<Vec<_>>() {
        if ids.remove(&head) {
            let chain = actual.chain(head);
            chain.iter().for_each(|id| {
                ids.remove(id);
            });
            live.insert(head, Live { content: None, ids: chain });
        }
    }
    live.extend(ids.into_iter().map(|id| (id, Live { content: None, ids: vec![id] })));
    let mut strangers: BTreeSet<u32> = actual.peer_bits.keys().map(|key| key.ident).collect();
    strangers.extend(actual.ident.values().map(|known| known.ident));
    strangers.extend(actual.cidrs.iter().map(|(_, ident)| ident));
    strangers.remove(&0);
    PolicyPlanner {
        live,
        by_content: HashMap::new(),
        idents: BTreeMap::new(),
        by_atoms: HashMap::new(),
        next_ident: strangers.last().copied().unwrap_or(0) + 1,
        strangers,
        free,
        next_group,
        resting: Vec::new(),
        incomplete: BTreeSet::new(),
        unwritten: None,
        roomless: Vec::new(),
        retry: None,
        begun: false,
    }
}

/// Numbers that mean what they should keep it, so that a restart on unchanged input writes nothing.
pub(super) fn adopt(
    planner: &mut PolicyPlanner,
    actual: &Actual,
    desired: &DesiredPolicies,
    wanted: &DesiredTables<'_>,
) {
    let idents = identities(actual, desired, wanted);
    let ports = ports(actual);
    for (head, content) in candidates(actual, desired, wanted) {
        let Some(live) = planner.live.get(&head) else { continue };
        let live = Live { content: Some(Arc::clone(&content)), ids: live.ids.clone() };
        let known = planner.by_content.contains_key(&content);
        if !known && is_so(actual, &live, &content, &idents, &ports) {
            planner.live.insert(head, live);
            planner.by_content.insert(content, head);
        }
    }
    for (id, atoms) in idents {
        planner.strangers.remove(&id);
        planner.by_atoms.entry(atoms.clone()).or_insert(id);
        planner.idents.insert(id, atoms);
    }
}

/// The identities all of whose addresses should be the same.
fn identities(
    actual: &Actual,
    desired: &DesiredPolicies,
    wanted: &DesiredTables<'_>,
) -> BTreeMap<u32, AtomSet> {
    let addrs = desired.addrs.keys().chain(wanted.devices.keys());
    let addrs = addrs.map(|addr| (actual.ident_of(addr), desired.ident_of(addr)));
    let ranges = desired.ranges.iter();
    let ranges = ranges.filter_map(|(range, want)| Some((actual.cidrs.get(&range)?, want)));
    let mut found: BTreeMap<u32, Option<u32>> = BTreeMap::new();
    for (have, want) in addrs.chain(ranges) {
        let one = found.entry(have).or_insert(Some(want));
        if *one != Some(want) {
            *one = None;
        }
    }
    found.remove(&0);
    let atoms = |want: u32| desired.idents.get(want as usize).cloned();
    found.into_iter().filter_map(|(have, want)| Some((have, atoms(want?)?))).collect()
}

/// The groups that devices have, and what they should be.
fn candidates(
    actual: &Actual,
    desired: &DesiredPolicies,
    wanted: &DesiredTables<'_>,
) -> BTreeMap<u32, Arc<model::RuleSet>> {
    let assigned = Assigned::of(desired, wanted);
    let mut found = BTreeMap::new();
    for (veth, want) in wanted.veths.iter().zip(&assigned.veths) {
        let have = actual.pods.get(&veth.ifindex).map(pods::groups);
        let Whose::Pod(want) = want else { continue };
        for (have, want) in have.into_iter().flatten().zip(want) {
            let want = want.and_then(|index| desired.groups.get(index as usize));
            if let Some(want) = want.filter(|_| have != 0) {
                found.insert(have, Arc::clone(want));
            }
        }
    }
    let state = &actual.policy;
    for have in [state.pending_ingress, state.pending_egress] {
        if let Some(want) = assigned.pending_group.as_ref().filter(|_| have != 0) {
            found.insert(have, Arc::clone(want));
        }
    }
    found
}

type PortBits = HashMap<u32, HashMap<(u32, lb_common::policy::PortKey), Bits>>;

fn ports(actual: &Actual) -> PortBits {
    let mut ports = PortBits::new();
    for (key, bits) in &actual.port_bits {
        ports.entry(key.1.group).or_default().insert(*key, *bits);
    }
    ports
}

/// Whether the maps say this of the group.
fn is_so(
    actual: &Actual,
    live: &Live,
    content: &model::RuleSet,
    idents: &BTreeMap<u32, AtomSet>,
    ports: &PortBits,
) -> bool {
    let elements = render(live);
    if elements.len() != live.ids.len()
        || elements.iter().any(|(id, element)| actual.groups.get(id) != Some(element))
    {
        return false;
    }
    let links = live.ids.iter().zip(content.links());
    let mut same_ports = links.map(|(id, link)| {
        let prefix = |entry: &model::PortEntry| port_key::port_entry(*id, entry);
        let want: HashMap<_, _> = link.ports.iter().map(|e| (prefix(e), e.bits)).collect();
        ports.get(id).map_or(want.is_empty(), |have| *have == want)
    });
    let same_peers = idents.iter().all(|(ident, atoms)| {
        let column = content.column(atoms);
        (0u32..).zip(&live.ids).all(|(link, id)| {
            let key = PeerKey { group: *id, ident: *ident };
            actual.peer_bits.get(&key) == column.get(&link)
        })
    });
    same_peers && same_ports.all(|same| same)
}
