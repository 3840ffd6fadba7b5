//! A group: the rules of all policies that select a Pod in one direction, in the order of evaluation, and what the
//! tables say of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::policy::{self, Bits, CHAIN, GroupFlags, RULES, WORDS};
use serde::{Deserialize, Serialize};

use super::ports::{self, PortEntry, set};
use super::{AtomId, AtomSet};
use crate::cluster::{Action, Name, Tier};

/// Rules of one element of the map `groups`.
const PER_LINK: u32 = RULES as u32;

/// The rules of one direction of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleSet {
    /// What the programs must know of it.
    pub flags: GroupFlags,
    /// The rules with their numbers, ascending.
    pub rules: Box<[(u32, Arc<BitRule>)]>,
    /// The `NetworkPolicy` objects that select the Pod.
    pub isolating: Box<[Name]>,
    /// Which rules have an atom as a peer, sorted.
    of_atom: Box<[(AtomId, u32)]>,
}

/// A rule, or a part of one, that one bit stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BitRule {
    /// Where it is written.
    pub source: RuleSource,
    /// What it does.
    pub action: Action,
    /// The peers, any of them, in ascending order; `None` = all peers.
    pub peers: Option<Box<[AtomId]>>,
    /// Protocols and ports, any of them; `None` = all.
    pub ports: Option<Box<[Span]>>,
}

/// Where a rule is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleSource {
    /// The policy.
    pub policy: Name,
    /// Its tier.
    pub tier: Tier,
    /// In which of its two lists.
    pub direction: PolicyDirection,
    /// At which index there.
    pub index: u32,
    /// The indices of others that it stands for, too: those that are alike are one where they are too many.
    pub others: Arc<[u32]>,
}

/// Direction of a flow as the Pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyDirection {
    /// Into the Pod.
    Ingress,
    /// Out of it.
    Egress,
}

impl PolicyDirection {
    /// The name in `spec`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Ports of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// IP protocol number.
    pub protocol: u8,
    /// The first port; 0 only of all ports: what has no ports is judged with port 0.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl Span {
    /// All of a protocol, which may have no ports.
    pub const fn all(protocol: u8) -> Self {
        Self { protocol, first: 0, last: u16::MAX }
    }

    /// Whether it is all of the protocol.
    pub const fn is_all(&self) -> bool {
        self.first == 0 && self.last == u16::MAX
    }
}

/// An element of the map `groups` with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLink {
    /// The element, without the index of the next.
    pub element: policy::Group,
    /// Its elements of `port_bits`.
    pub ports: Vec<PortEntry>,
}

impl RuleSet {
    /// Rules that one direction of a Pod has room for.
    pub(super) const MOST_RULES: u32 = CHAIN * PER_LINK;

    /// The group of these rules, in order; the index of the first that has no place any more is the error.
    pub(super) fn new(rules: &[Arc<BitRule>], isolating: Box<[Name]>) -> Result<Self, usize> {
        let mut placed = Vec::with_capacity(rules.len());
        let mut of_atom = Vec::new();
        let mut next = 0u32;
        let mut tier = None;
        for (i, rule) in rules.iter().enumerate() {
            if tier.is_some_and(|tier| tier != rule.source.tier) {
                next = next.next_multiple_of(64);
            }
            if next >= Self::MOST_RULES {
                return Err(i);
            }
            tier = Some(rule.source.tier);
            of_atom.extend(rule.peers.iter().flatten().map(|atom| (*atom, next)));
            placed.push((next, Arc::clone(rule)));
            next += 1;
        }
        of_atom.sort_unstable();
        let mut flags = GroupFlags::ISOLATED.when(!isolating.is_empty());
        if rules.iter().any(|rule| ports::is_guessed(guessed_as(rule), rule.ports.as_deref())) {
            flags |= GroupFlags::SOME_PORTS;
        }
        Ok(Self { flags, rules: placed.into(), isolating, of_atom: of_atom.into() })
    }

    /// The group of a Pod that is not known yet.
    pub fn pending() -> Self {
        Self { flags: GroupFlags::PENDING, ..Self::default() }
    }

    /// A group that denies everything, since its rules are too many.
    pub(super) fn overflow(isolating: Box<[Name]>) -> Self {
        Self { flags: GroupFlags::OVERFLOW, isolating, ..Self::default() }
    }

    /// Elements of the map `groups` that it takes.
    pub fn n_links(&self) -> u32 {
        self.rules.last().map_or(1, |(number, _)| number / PER_LINK + 1)
    }

    /// Elements of the map `port_bits` that it takes.
    pub(super) fn n_ports(&self) -> u64 {
        self.links().iter().map(|link| link.ports.len() as u64).sum()
    }

    /// At least as many as [`RuleSet::n_ports`], found out quickly.
    pub(super) fn most_ports(&self) -> u64 {
        // Each end of a range is in one prefix of each length at most.
        let most = |span: &Span| if span.first == span.last || span.is_all() { 1 } else { 32 };
        let spans = || self.rules.iter().filter_map(|(_, rule)| rule.ports.as_deref()).flatten();
        let widest = spans().map(most).max().unwrap_or(0);
        // And for each protocol one, and of each element of `groups` one for all, under each guess.
        let n_spans = spans().count() as u64;
        n_spans * (widest + 3) + 3 * u64::from(self.n_links())
    }

    /// The atoms that are peers, sorted, by element of `groups`.
    pub(super) fn atoms(&self) -> Vec<Vec<(AtomId, ())>> {
        let mut links = vec![Vec::new(); self.n_links() as usize];
        for (atom, number) in &self.of_atom {
            if let Some(atoms) = links.get_mut((number / PER_LINK) as usize) {
                atoms.push((*atom, ()));
            }
        }
        links.iter_mut().for_each(Vec::dedup);
        links
    }

    /// Those elements.
    pub fn links(&self) -> Vec<GroupLink> {
        let links = (0..self.n_links()).map(|link| {
            let mut element =
                policy::Group { first: link * PER_LINK, flags: self.flags, ..policy::Group::ZERO };
            let here = || self.rules.iter().filter(move |(number, _)| number / PER_LINK == link);
            for (number, rule) in here() {
                place(&mut element, *number, rule);
            }
            let rules = here()
                .map(|(number, rule)| (number % PER_LINK, guessed_as(rule), rule.ports.as_deref()));
            let guesses = self.flags.contains(GroupFlags::SOME_PORTS);
            GroupLink { element, ports: ports::entries(rules, guesses) }
        });
        links.collect()
    }

    /// The rules that have an address of this identity as a peer: of each element that has some.
    pub fn column(&self, ident: &AtomSet) -> BTreeMap<u32, Bits> {
        let mut found = BTreeMap::new();
        ident.join(&self.of_atom, &mut |number: u32| {
            let bits = found.entry(number / PER_LINK).or_insert(Bits::ZERO);
            set(bits, number % PER_LINK);
        });
        found
    }

    /// Where the rule with this number is written.
    pub fn source(&self, number: u32) -> Option<&RuleSource> {
        let at = self.rules.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.rules.get(at).map(|(_, rule)| &rule.source)
    }

    /// The policies in it, in order.
    pub fn policies(&self) -> Vec<(&Name, Tier)> {
        let of_rules = self.rules.iter().map(|(_, rule)| (&rule.source.policy, rule.source.tier));
        let isolating = self.isolating.iter().map(|name| (name, Tier::NetworkPolicy));
        let mut all: Vec<_> = of_rules.chain(isolating).collect();
        all.sort_by_key(|(name, tier)| (*tier, *name));
        all.dedup();
        all
    }
}

fn place(element: &mut policy::Group, number: u32, rule: &BitRule) {
    let at = (number % PER_LINK) as usize / 64 % WORDS;
    let bit = 1 << (number % 64);
    let put = |words: &mut [u64; WORDS], wanted: bool| {
        if let Some(word) = words.get_mut(at).filter(|_| wanted) {
            *word |= bit;
        }
    };
    put(&mut element.any, rule.peers.is_none());
    put(&mut element.accept, rule.action == Action::Accept);
    put(&mut element.deny, rule.action == Action::Deny);
    if let Some(tier) = element.tiers.get_mut(at) {
        *tier = match rule.source.tier {
            Tier::Admin => policy::tier::ADMIN,
            Tier::NetworkPolicy => policy::tier::NETWORK_POLICY,
            Tier::Baseline => policy::tier::BASELINE,
        };
    }
}
/// What a rule comes to where ports are guessed: behind the Baseline tier everything is allowed, so a Pass there is an
/// Accept, and not to be taken for granted beside a Pass of the Admin tier at another port.
fn guessed_as(rule: &BitRule) -> Action {
    match rule.action {
        Action::Pass if rule.source.tier == Tier::Baseline => Action::Accept,
        action => action,
    }
}
