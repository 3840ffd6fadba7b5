//! The map `cidrs`: ranges of addresses, of which the longest counts.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use lb_common::addr::Addr;

use crate::model::policy::{CidrRange, number};

/// The map `cidrs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cidrs {
    ranges: BTreeMap<CidrRange, u32>,
    /// How many there are of each length.
    lengths: BTreeMap<u8, u32>,
}

impl Cidrs {
    /// Adds or replaces.
    pub fn insert(&mut self, range: CidrRange, ident: u32) {
        if self.ranges.insert(range, ident).is_none() {
            *self.lengths.entry(range.len).or_default() += 1;
        }
    }

    /// Removes.
    pub fn remove(&mut self, range: &CidrRange) {
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
        let mut found = lengths.filter_map(|len| self.ranges.get(&CidrRange::around(addr, *len)));
        found.next().copied().unwrap_or(0)
    }

    /// The value of this very range.
    pub fn get(&self, range: &CidrRange) -> Option<u32> {
        self.ranges.get(range).copied()
    }

    /// All of them, those that cover others before them.
    pub fn iter(&self) -> impl Iterator<Item = (CidrRange, u32)> {
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
