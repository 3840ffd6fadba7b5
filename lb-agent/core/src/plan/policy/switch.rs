//! Addresses get the identities they should have: which number each gets, and the writes to `ident` and `cidrs`.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::endpoint::{Ident, IdentFlags};
use lb_common::policy::{Bits, PeerKey};

use super::assigned::Assigned;
use super::{DesiredTables, PolicyPlanner};
use crate::model::policy::{AtomSet, CidrRange, DesiredPolicies};
use crate::plan::actual::Actual;
use crate::plan::cidrs::Cidrs;
use crate::plan::write::Write;

/// The bits of an identity in the groups that are about to go.
type IdentityBits = Arc<[(u32, Bits)]>;

/// A new identity.
#[derive(Debug)]
pub(super) struct Minted {
    /// What it is.
    pub(super) atoms: AtomSet,
    /// What it is in the groups that are about to go: what its addresses were before.
    pub(super) as_before: IdentityBits,
}

/// The result.
#[derive(Default)]
pub(super) struct Switched {
    /// New identities.
    pub(super) minted: BTreeMap<u32, Minted>,
    /// All identities that addresses have afterwards, but for 0.
    pub(super) in_use: BTreeMap<u32, AtomSet>,
    /// Before the Pods get their new groups.
    pub(super) before: Vec<Write>,
    /// After that.
    pub(super) after: Vec<Write>,
}

pub(super) struct Switch<'a> {
    planner: &'a PolicyPlanner,
    actual: &'a Actual,
    desired: &'a DesiredPolicies,
    /// The elements of the groups that are about to go.
    going: Vec<u32>,
    next: u32,
    chosen: HashMap<(u32, u32), u32>,
    alike: HashMap<(u32, IdentityBits), u32>,
    columns: HashMap<u32, IdentityBits>,
    out: Switched,
}

impl<'a> Switch<'a> {
    pub(super) fn new(
        planner: &'a PolicyPlanner,
        actual: &'a Actual,
        assigned: &Assigned,
        desired: &'a DesiredPolicies,
    ) -> Self {
        let wanted: Vec<u32> = assigned.groups.iter().map(|group| planner.id_of(group)).collect();
        let going = planner.referred(actual).into_iter().filter(|head| !wanted.contains(head));
        Self {
            planner,
            actual,
            desired,
            going: going.flat_map(|head| actual.chain(head)).collect(),
            next: planner.next_ident,
            chosen: HashMap::new(),
            alike: HashMap::new(),
            columns: HashMap::new(),
            out: Switched::default(),
        }
    }

    pub(super) fn run(mut self, wanted: &DesiredTables<'_>) -> Switched {
        let desired = self.desired;
        for (addr, known) in &desired.addrs {
            let device = wanted.devices.get(addr);
            if let Some(local) = device.filter(|of| of.flags.contains(IdentFlags::LOCAL_NODE)) {
                // As other nodes see it: for packets that only claim to be this node's.
                self.put(addr, known.ident, *local);
                continue;
            }
            let ifindex = device.map_or(0, |device| device.ifindex);
            self.put(addr, known.ident, Ident { flags: known.flags, ifindex, ..Ident::ZERO });
        }
        for (addr, device) in wanted.devices {
            if !desired.addrs.contains_key(addr) {
                self.put(addr, desired.ranges.find(addr), *device);
            }
        }
        let regions = self.cidrs();
        self.remove(wanted, &regions);
        self.out
    }

    fn put(&mut self, addr: &Addr, want: u32, value: Ident) {
        let actual = self.actual;
        let known = actual.ident.get(addr);
        let have = known.map_or_else(|| actual.cidrs.find(addr), |known| known.ident);
        let ident = Ident { ident: self.choose(have, want), ..value };
        if known != Some(&ident) {
            self.out.before.push(Write::PutIdent { addr: *addr, ident });
        }
    }

    /// Addresses without an owner: the ranges decide what they are.
    fn remove(&mut self, wanted: &DesiredTables<'_>, regions: &Cidrs) {
        for (addr, known) in &self.actual.ident {
            if wanted.devices.contains_key(addr) || self.desired.addrs.contains_key(addr) {
                continue;
            }
            let delete = Write::DeleteIdent { addr: *addr };
            if !self.going.is_empty() {
                let ident = self.choose(known.ident, self.desired.ranges.find(addr));
                if ident != regions.find(addr) {
                    let ident = Ident { ident, ..Ident::ZERO };
                    self.out.before.push(Write::PutIdent { addr: *addr, ident });
                    self.out.after.push(delete);
                    continue;
                }
            }
            self.out.before.push(delete);
        }
    }

    /// Plans the ranges. Writes nested ranges before the ranges around them, and deletes a range only after the range around
    /// it has its final identity. Returns the ranges as they are before that.
    fn cidrs(&mut self) -> Cidrs {
        let wanted: BTreeMap<CidrRange, u32> = self.desired.ranges.iter().collect();
        let mut all: BTreeMap<CidrRange, (Option<u32>, Option<u32>)> = BTreeMap::new();
        for (range, have) in self.actual.cidrs.iter() {
            all.entry(range).or_default().0 = Some(have);
        }
        for (range, want) in wanted {
            all.entry(range).or_default().1 = Some(want);
        }
        let mut regions = Cidrs::default();
        let mut puts: Vec<(CidrRange, u32)> = Vec::new();
        let mut around: Vec<(CidrRange, u32, u32)> = Vec::new();
        for (range, (have, want)) in all {
            while around.last().is_some_and(|(outer, ..)| !outer.covers(&range)) {
                around.pop();
            }
            let (outer_have, outer_want) =
                around.last().map_or((0, 0), |(_, have, want)| (*have, *want));
            let before = have.unwrap_or(outer_have);
            let after = want.unwrap_or(outer_want);
            around.push((range, before, after));
            let ident = self.choose(before, after);
            if have != Some(ident) {
                puts.push((range, ident));
            }
            regions.insert(range, ident);
            if want.is_none() {
                self.out.after.push(Write::DeleteCidr { range });
            }
        }
        puts.sort_by_key(|(range, _)| (std::cmp::Reverse(range.len), *range));
        let puts = puts.into_iter().map(|(range, ident)| Write::PutCidr { range, ident });
        self.out.before.extend(puts);
        regions
    }

    /// The number for what has number `have` now and should be the identity with index `want`.
    fn choose(&mut self, have: u32, want: u32) -> u32 {
        if let Some(chosen) = self.chosen.get(&(have, want)) {
            return *chosen;
        }
        let atoms = self.desired.idents.get(want as usize).cloned().unwrap_or_default();
        let ident = self.find(have, want, &atoms);
        self.chosen.insert((have, want), ident);
        if ident != 0 {
            self.out.in_use.insert(ident, atoms);
        }
        ident
    }

    fn find(&mut self, have: u32, want: u32, atoms: &AtomSet) -> u32 {
        let planner = self.planner;
        let canonical =
            if atoms.is_empty() { Some(0) } else { planner.by_atoms.get(atoms).copied() };
        let is_so = planner.idents.get(&have) == Some(atoms) || (have == 0 && atoms.is_empty());
        if is_so && (canonical == Some(have) || !self.going.is_empty()) {
            return have;
        }
        let before = self.column(have);
        if let Some(canonical) = canonical
            && self.column(canonical) == before
        {
            return canonical;
        }
        if let Some(minted) = self.alike.get(&(want, Arc::clone(&before))) {
            return *minted;
        }
        let id = self.next;
        self.next += 1;
        self.alike.insert((want, Arc::clone(&before)), id);
        self.out.minted.insert(id, Minted { atoms: atoms.clone(), as_before: before });
        id
    }

    /// The bits of an identity in the groups that are about to go.
    fn column(&mut self, ident: u32) -> IdentityBits {
        let (actual, going) = (self.actual, &self.going);
        let column = self.columns.entry(ident).or_insert_with(|| {
            let bits = |group: &u32| {
                let key = PeerKey { group: *group, ident };
                Some((*group, *actual.peer_bits.get(&key)?))
            };
            going.iter().filter_map(bits).collect()
        });
        Arc::clone(column)
    }
}
