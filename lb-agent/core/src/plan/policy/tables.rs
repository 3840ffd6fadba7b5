//! What the policy maps say, or would say, as plain tables that the evaluator can ask.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::endpoint::Ident;
use lb_common::policy::{Bits, Group, PeerKey, PolicyState, PortKey, Tables};

use super::{GroupIds, Op};
use crate::model::policy::{PortEntry, Range, number};

/// What the maps say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actual {
    /// The array `groups`, but for elements that are zero.
    pub groups: BTreeMap<u32, Group>,
    /// The map `peer_bits`.
    pub peer_bits: HashMap<PeerKey, Bits>,
    /// The map `port_bits`, with the lengths of its prefixes.
    pub port_bits: HashMap<(u32, PortKey), Bits>,
    /// The map `cidrs`.
    pub cidrs: Cidrs,
    /// The map `ident`.
    pub ident: HashMap<Addr, Ident>,
    /// The groups in the map `pods`, by ifindex.
    pub pods: BTreeMap<u32, GroupIds>,
    /// The only element of `policy`.
    pub state: PolicyState,
}

impl Default for Actual {
    fn default() -> Self {
        Self {
            groups: BTreeMap::new(),
            peer_bits: HashMap::new(),
            port_bits: HashMap::new(),
            cidrs: Cidrs::default(),
            ident: HashMap::new(),
            pods: BTreeMap::new(),
            state: PolicyState::ZERO,
        }
    }
}

impl Actual {
    /// A write happened.
    pub fn done(&mut self, op: &Op) {
        match op {
            Op::PutGroup { id, group } => {
                self.groups.insert(*id, **group);
            }
            Op::PutPeerBits { key, bits } => {
                self.peer_bits.insert(*key, *bits);
            }
            Op::DeletePeerBits { key } => {
                self.peer_bits.remove(key);
            }
            Op::PutPortBits { len, key, bits } => {
                self.port_bits.insert((*len, *key), *bits);
            }
            Op::DeletePortBits { len, key } => {
                self.port_bits.remove(&(*len, *key));
            }
            Op::PutIdent { addr, ident } => {
                self.ident.insert(*addr, *ident);
            }
            Op::DeleteIdent { addr } => {
                self.ident.remove(addr);
            }
            Op::PutCidr { range, ident } => self.cidrs.insert(*range, *ident),
            Op::DeleteCidr { range } => self.cidrs.remove(range),
            Op::SetGroups { ifindex, groups } => {
                self.pods.insert(*ifindex, *groups);
            }
            Op::PutState(state) => self.state = *state,
        }
    }

    /// The elements of `groups` that are chained to this one, it first.
    pub(super) fn chain(&self, head: u32) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut next = head;
        while next != 0 && !ids.contains(&next) {
            ids.push(next);
            next = self.groups.get(&next).map_or(0, |group| group.next);
        }
        ids
    }

    /// The identity of an address, whoever has it.
    pub(super) fn ident_of(&self, addr: &Addr) -> u32 {
        self.ident.get(addr).map_or_else(|| self.cidrs.find(addr), |known| known.ident)
    }
}

impl Tables for Actual {
    fn ident(&self, addr: &Addr) -> Option<&Ident> {
        self.ident.get(addr)
    }

    fn cidr(&self, addr: &Addr) -> u32 {
        self.cidrs.find(addr)
    }

    fn group(&self, index: u32) -> Option<&Group> {
        self.groups.get(&index)
    }

    fn peer_bits(&self, key: &PeerKey) -> Option<&Bits> {
        self.peer_bits.get(key)
    }

    fn port_bits(&self, key: &PortKey) -> Option<&Bits> {
        let lengths = (PortKey::ANY_PORT..=PortKey::ONE_PORT).rev();
        lengths.chain([PortKey::ANY_PROTOCOL]).find_map(|len| {
            let prefix = port_prefix(key.group, len, key.proto, key.port.get());
            self.port_bits.get(&(len, PortKey { guess: key.guess, ..prefix }))
        })
    }
}

/// The element of a group.
pub(super) fn port_entry(group: u32, entry: &PortEntry) -> (u32, PortKey) {
    let prefix = port_prefix(group, entry.len, entry.protocol, entry.port);
    (entry.len, PortKey { guess: entry.guess, ..prefix })
}

/// The key of a prefix of this length, what is beyond it zero.
fn port_prefix(group: u32, len: u32, protocol: u8, port: u16) -> PortKey {
    let proto = if len < PortKey::ANY_PORT { 0 } else { protocol };
    let bits = len.saturating_sub(PortKey::ANY_PORT);
    let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
    PortKey { group, guess: 0, proto, port: Be16::new(port & mask) }
}

/// The map `cidrs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cidrs {
    ranges: BTreeMap<Range, u32>,
    /// How many there are of each length.
    lengths: BTreeMap<u8, u32>,
}

impl Cidrs {
    /// Adds or replaces.
    pub fn insert(&mut self, range: Range, ident: u32) {
        if self.ranges.insert(range, ident).is_none() {
            *self.lengths.entry(range.len).or_default() += 1;
        }
    }

    /// Removes.
    pub fn remove(&mut self, range: &Range) {
        if self.ranges.remove(range).is_some()
            && let Some(n) = self.lengths.get_mut(&range.len)
        {
            *n -= 1;
            if *n == 0 {
                self.lengths.remove(&range.len);
            }
        }
    }

    /// The identity of the longest range that an address is in; 0 = it is in none.
    pub fn find(&self, addr: &Addr) -> u32 {
        let addr = number(addr);
        let lengths = self.lengths.keys().rev();
        let mut found = lengths.filter_map(|len| self.ranges.get(&Range::around(addr, *len)));
        found.next().copied().unwrap_or(0)
    }

    /// The value of this very range.
    pub fn get(&self, range: &Range) -> Option<u32> {
        self.ranges.get(range).copied()
    }

    /// All of them, those that cover others before them.
    pub fn iter(&self) -> impl Iterator<Item = (Range, u32)> {
        self.ranges.iter().map(|(range, ident)| (*range, *ident))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}
