//! Areas that overlap → disjoint ranges, each with all it is in.
//!
//! The map looks the longest prefix up, so each prefix carries everything that covers it. IPv4 is mapped into
//! `::ffff:0:0/96`, hence into any shorter prefix of IPv6, and must not get anything of that.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use lb_common::addr::Addr;

use super::area::Edge;
use super::range::{CidrRange, number};
use super::set::Pool;
use super::{AtomId, AtomSet};
use crate::cluster::Family;

/// The disjoint ranges. An address is of the longest that it is in.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    /// Sorted, so that what covers a range stands before it.
    nodes: Vec<BlockNode>,
    /// The distinct sets, the first empty.
    sets: Vec<AtomSet>,
}

#[derive(Clone, Copy, Debug)]
struct BlockNode {
    range: CidrRange,
    /// Index of the shortest that covers it.
    parent: Option<u32>,
    /// Index of its set; after [`Blocks::name`] of its identity.
    set: u32,
}

impl Blocks {
    /// The cost grows with the number of edges.
    pub(super) fn flatten<'a>(
        areas: impl Iterator<Item = (AtomId, &'a [Edge])>,
        pool: &mut Pool,
    ) -> Self {
        let mut changes: Vec<AtomChange> = Vec::new();
        for (atom, edges) in areas {
            let change = |edge: &Edge| (edge.range, edge.family, Some((atom, edge.inside)));
            changes.extend(edges.iter().map(change));
        }
        if changes.iter().any(|(range, ..)| range.covers(&CidrRange::IPV4)) {
            changes.push((CidrRange::IPV4, Family::V4, None));
        }
        changes.sort_unstable();
        let mut sets = Sets::new();
        let mut nodes: Vec<BlockNode> = Vec::new();
        let mut current: Vec<(CidrRange, Family, AtomSet, Option<u32>)> = Vec::new();
        for same in changes.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let Some(&(range, family, _)) = same.first() else { continue };
            while current.last().is_some_and(|(outer, ..)| !outer.covers(&range)) {
                current.pop();
            }
            let (mut set, parent) = match current.last() {
                Some((_, outer, set, node)) if *outer == family => (set.clone(), *node),
                // What covers IPv4 in IPv6 says nothing of it.
                Some((.., node)) => (AtomSet::default(), *node),
                None => (AtomSet::default(), None),
            };
            for (atom, inside) in same.iter().filter_map(|(.., change)| *change) {
                set = if inside { pool.with(&set, atom) } else { pool.without(&set, atom) };
            }
            let number = sets.number(&set);
            let above = parent.and_then(|at| nodes.get(at as usize)).map_or(0, |node| node.set);
            let mut node = parent;
            if above != number {
                node = u32::try_from(nodes.len()).ok();
                nodes.push(BlockNode { range, parent, set: number });
            }
            current.push((range, family, set, node));
        }
        nodes.shrink_to_fit();
        Self { nodes, sets: sets.list }
    }

    /// The set (after [`Blocks::name`]: the identity) of an address; 0 = it is in none.
    pub fn find(&self, addr: &Addr) -> u32 {
        let addr = number(addr);
        let after = self.nodes.partition_point(|node| node.range.first <= addr);
        let mut node = after.checked_sub(1).and_then(|at| self.nodes.get(at));
        while let Some(found) = node {
            if found.range.has(addr) {
                return found.set;
            }
            node = found.parent.and_then(|at| self.nodes.get(at as usize));
        }
        0
    }

    /// A set's atoms.
    pub(super) fn set(&self, number: u32) -> AtomSet {
        self.sets.get(number as usize).cloned().unwrap_or_default()
    }

    /// Replaces the numbers of sets by those that others know them by.
    pub(super) fn name(&mut self, mut name: impl FnMut(&AtomSet) -> u32) {
        let names: Vec<u32> = std::mem::take(&mut self.sets).iter().map(&mut name).collect();
        for node in &mut self.nodes {
            node.set = names.get(node.set as usize).copied().unwrap_or_default();
        }
    }

    /// All ranges with their identities, those that cover others before them.
    pub fn iter(&self) -> impl Iterator<Item = (CidrRange, u32)> {
        self.nodes.iter().map(|node| (node.range, node.set))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

/// A range, and the atom that its addresses have or lack from there on.
type AtomChange = (CidrRange, Family, Option<(AtomId, bool)>);

/// Distinct sets.
struct Sets {
    numbers: HashMap<AtomSet, u32>,
    list: Vec<AtomSet>,
}

impl Sets {
    fn new() -> Self {
        Self { numbers: HashMap::from([(AtomSet::default(), 0)]), list: vec![AtomSet::default()] }
    }

    fn number(&mut self, set: &AtomSet) -> u32 {
        if let Some(number) = self.numbers.get(set) {
            return *number;
        }
        let next = u32::try_from(self.list.len()).unwrap_or(0);
        self.numbers.insert(set.clone(), next);
        self.list.push(set.clone());
        next
    }
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;

    use super::Blocks;
    use crate::cluster::Prefix;
    use crate::model::policy::area::Area;
    use crate::model::policy::set::Pool;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn flatten<'a>(blocks: impl Iterator<Item = (u32, &'a Prefix, &'a [Prefix])>) -> Blocks {
        let areas: Vec<(u32, Area)> =
            blocks.map(|(id, p, e)| (id, Area::of([(p, e)].into_iter()))).collect();
        Blocks::flatten(areas.iter().map(|(id, area)| (*id, area.edges())), &mut Pool::default())
    }

    #[test]
    fn addresses_are_in_the_blocks_that_say_so() {
        let blocks: [(u32, &str, &[&str]); 9] = [
            (1, "10.0.0.0/8", &["10.1.0.0/16"]),
            (2, "10.1.2.0/24", &[]),
            (3, "0.0.0.0/0", &["10.0.0.0/8"]),
            (4, "::/0", &["2001:db8::/32"]),
            (5, "2001:db8:1::/48", &[]),
            (6, "10.0.0.0/8", &["10.0.0.0/9"]),
            (7, "192.0.2.0/24", &["192.0.2.0/24"]),
            (8, "192.0.2.0/24", &["192.0.2.0/25", "192.0.2.128/25"]),
            (9, "198.51.100.7/32", &[]),
        ];
        let parsed: Vec<(u32, Prefix, Vec<Prefix>)> = blocks
            .iter()
            .map(|(id, p, e)| (*id, prefix(p), e.iter().map(|e| prefix(e)).collect()))
            .collect();
        let flat = flatten(parsed.iter().map(|(id, p, e)| (*id, p, &**e)));
        let probes = [
            "10.0.0.1",
            "10.1.0.1",
            "10.1.2.3",
            "10.200.0.1",
            "11.0.0.1",
            "192.0.2.1",
            "192.0.2.200",
            "198.51.100.7",
            "198.51.100.8",
            "::1",
            "2001:db8::1",
            "2001:db8:1::1",
            "fe80::1",
            "0.0.0.0",
            "255.255.255.255",
            "::ffff:ffff:1",
        ];
        for probe in probes {
            let addr = Addr::from_ip(probe.parse().unwrap());
            let mut want: Vec<u32> = parsed
                .iter()
                .filter(|(_, p, e)| p.contains(&addr) && !e.iter().any(|e| e.contains(&addr)))
                .map(|(id, ..)| *id)
                .collect();
            want.sort_unstable();
            assert_eq!(flat.set(flat.find(&addr)).iter().collect::<Vec<_>>(), want, "{probe}");
        }
    }

    #[test]
    fn ipv4_is_distinguished_only_where_it_must_be() {
        let n = |blocks: &[&str]| {
            let blocks: Vec<Prefix> = blocks.iter().map(|b| prefix(b)).collect();
            let flat = flatten((1..).zip(&blocks).map(|(id, p)| (id, p, &[][..])));
            flat.iter().map(|(range, _)| (range.addr().to_string(), range.len)).collect::<Vec<_>>()
        };
        let all = |list: &[(&str, u8)]| {
            list.iter().map(|(a, l)| ((*a).to_owned(), *l)).collect::<Vec<_>>()
        };
        assert_eq!(n(&["::/0"]), all(&[("::", 0), ("0.0.0.0", 96)]));
        assert_eq!(n(&["2001:db8::/32"]), all(&[("2001:db8::", 32)]));
        assert_eq!(n(&["::/0", "0.0.0.0/0"]), all(&[("::", 0), ("0.0.0.0", 96)]));
        assert_eq!(n(&["10.0.0.0/8"]), all(&[("10.0.0.0", 104)]));
        assert_eq!(
            n(&["::/64", "10.0.0.0/8"]),
            all(&[("::", 64), ("0.0.0.0", 96), ("10.0.0.0", 104)])
        );
    }
}
