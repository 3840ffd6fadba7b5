//! One direction of a policy as it is written → its rules, and the addresses that the blocks of each come to. Where the
//! rules are too many for a Pod, those that differ in one thing only are one.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::RuleSet;
use super::area::Area;
use crate::cluster::{Peer, PortMatch, PortSpec, Prefix, Rule, Tier};

/// One direction of a policy.
pub(super) struct Read<'p> {
    written: &'p [Rule],
    tier: Tier,
    is_merged: bool,
    pub(super) lines: Vec<RuleLine<'p>>,
    /// Of each line.
    pub(super) areas: Vec<Area>,
    /// The first rule for which no Pod has room: what the blocks are need not be found out then.
    pub(super) beyond: Option<u32>,
}

/// A rule, or several that are one.
pub(super) struct RuleLine<'p> {
    /// Where it is written: the first of them.
    pub(super) index: u32,
    pub(super) others: Arc<[u32]>,
    pub(super) rule: Cow<'p, Rule>,
}

impl<'p> Read<'p> {
    pub(super) fn of(written: &'p [Rule], tier: Tier) -> Self {
        let line = |(index, rule): (u32, &'p Rule)| RuleLine {
            index,
            others: Arc::default(),
            rule: Cow::Borrowed(rule),
        };
        let lines: Vec<RuleLine<'p>> = (0u32..).zip(written).map(line).collect();
        let mut read =
            Self { written, tier, is_merged: false, lines, areas: Vec::new(), beyond: None };
        read.measure();
        if read.beyond.is_some() {
            read.merge();
        }
        read
    }

    /// Makes one rule of those that differ in their peers only, or in their ports; whether that has not been done.
    pub(super) fn merge(&mut self) -> bool {
        if self.is_merged {
            return false;
        }
        self.is_merged = true;
        self.lines = merged(self.written, self.tier);
        self.measure();
        true
    }

    /// Returns how many ranges of addresses it distinguishes.
    pub(super) fn n_ranges(&self) -> usize {
        let distinct: HashSet<&Area> = self.areas.iter().collect();
        distinct.into_iter().map(|area| area.edges().len()).sum()
    }

    fn measure(&mut self) {
        self.beyond = first_beyond(&self.lines);
        let area =
            |line: &RuleLine<'_>| Area::of(line.rule.peers.iter().flatten().filter_map(block));
        let lines = self.lines.iter().filter(|_| self.beyond.is_none());
        self.areas = lines.map(area).collect();
    }
}

fn block(peer: &Peer) -> Option<(&Prefix, &[Prefix])> {
    match peer {
        Peer::Block { prefix, excepts } => Some((prefix, excepts)),
        Peer::Pods(_) | Peer::Nodes(_) => None,
    }
}

/// The first rule of a list that alone is too long for a Pod. All that it selects are cut off then, and other Pods' groups
/// are spared telling its peers apart.
fn first_beyond(lines: &[RuleLine<'_>]) -> Option<u32> {
    let is_some = |line: &&RuleLine<'_>| {
        let numbered = |port: &PortMatch| !matches!(port.ports, PortSpec::Named(_));
        line.rule.peers.as_ref().is_none_or(|peers| !peers.is_empty())
            && line.rule.ports.as_ref().is_none_or(|ports| ports.iter().any(numbered))
    };
    lines.iter().filter(is_some).nth(RuleSet::MOST_RULES as usize).map(|line| line.index)
}

/// A rule that others are added to.
struct Draft<'p> {
    first: &'p Rule,
    index: u32,
    others: Vec<u32>,
    peers: Option<BTreeSet<&'p Peer>>,
    ports: Option<BTreeSet<&'p PortMatch>>,
}

impl Draft<'_> {
    /// Both apply where one of them does, if they have the same peers or the same ports.
    fn add(&mut self, other: Self) {
        self.others.push(other.index);
        self.others.extend(other.others);
        unite(&mut self.peers, other.peers);
        unite(&mut self.ports, other.ports);
    }
}

/// `None` is everything.
fn unite<T: Ord>(all: &mut Option<BTreeSet<T>>, more: Option<BTreeSet<T>>) {
    match (all.as_mut(), more) {
        (Some(all), Some(more)) => all.extend(more),
        (_, None) | (None, _) => *all = None,
    }
}

fn merged(rules: &[Rule], tier: Tier) -> Vec<RuleLine<'_>> {
    let drafts = (0u32..).zip(rules).map(|(index, rule)| Draft {
        first: rule,
        index,
        others: Vec::new(),
        peers: rule.peers.as_ref().map(|peers| peers.iter().collect()),
        ports: rule.ports.as_ref().map(|ports| ports.iter().collect()),
    });
    let drafts = match tier {
        // All of them allow, so their order does not matter.
        Tier::NetworkPolicy => {
            let drafts = by(drafts, |draft| draft.ports.clone());
            by(drafts.into_iter(), |draft| draft.peers.clone())
        }
        Tier::Admin | Tier::Baseline => neighbours(drafts),
    };
    let line = |mut draft: Draft<'_>| {
        draft.others.sort_unstable();
        let peers = draft.peers.map(|peers| peers.into_iter().cloned().collect());
        let ports = draft.ports.map(|ports| ports.into_iter().cloned().collect());
        let (name, action) = (Arc::clone(&draft.first.name), draft.first.action);
        let rule = Cow::Owned(Rule { name, action, peers, ports });
        RuleLine { index: draft.index, others: draft.others.into(), rule }
    };
    drafts.into_iter().map(line).collect()
}

/// Those that are alike are one, where the first of them was.
fn by<'p, K: Ord>(
    drafts: impl Iterator<Item = Draft<'p>>,
    key: impl Fn(&Draft<'p>) -> K,
) -> Vec<Draft<'p>> {
    let mut places: BTreeMap<K, usize> = BTreeMap::new();
    let mut all: Vec<Draft<'p>> = Vec::new();
    for draft in drafts {
        let place = *places.entry(key(&draft)).or_insert(all.len());
        match all.get_mut(place) {
            Some(known) => known.add(draft),
            None => all.push(draft),
        }
    }
    all
}

/// Those that are alike and follow each other are one: what stands between two with another action is not passed over.
fn neighbours<'p>(drafts: impl Iterator<Item = Draft<'p>>) -> Vec<Draft<'p>> {
    let mut all: Vec<Draft<'p>> = Vec::new();
    for draft in drafts {
        match all.last_mut() {
            Some(last)
                if last.first.action == draft.first.action
                    && (last.ports == draft.ports || last.peers == draft.peers) =>
            {
                last.add(draft);
            }
            Some(_) | None => all.push(draft),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::merged;
    use crate::cluster::{Action, Peer, PortMatch, PortSpec, Rule, Tier};

    /// Peers and ports as bits; `None` = all.
    type Written = (u8, Option<u8>, Option<u8>);

    fn rule((action, peers, ports): &Written) -> Rule {
        let bits = |bits: u8| (0..4u16).filter(move |i| bits >> i & 1 != 0);
        let peer = |i| {
            let prefix = format!("10.0.0.{i}/32").parse().unwrap();
            Peer::Block { prefix, excepts: [].into() }
        };
        let port = |i| PortMatch { protocol: Some(6), ports: PortSpec::Range(80 + i, 80 + i) };
        Rule {
            name: "".into(),
            action: [Action::Accept, Action::Deny, Action::Pass][usize::from(*action)],
            peers: peers.map(|peers| bits(peers).map(peer).collect()),
            ports: ports.map(|ports| bits(ports).map(port).collect()),
        }
    }

    fn applies(rule: &Rule, peer: u16, port: u16) -> bool {
        let [only_peer, only_port] = [Some(1 << peer), Some(1 << port)];
        let only = rule_of(only_peer, only_port);
        let has = |of: &Rule| {
            let (peers, ports) = (only.peers.as_deref().unwrap(), only.ports.as_deref().unwrap());
            of.peers.as_ref().is_none_or(|all| all.contains(&peers[0]))
                && of.ports.as_ref().is_none_or(|all| all.contains(&ports[0]))
        };
        has(rule)
    }

    fn rule_of(peers: Option<u8>, ports: Option<u8>) -> Rule {
        rule(&(0, peers, ports))
    }

    fn written(actions: u8) -> impl Strategy<Value = Vec<Written>> {
        let bits = || prop::option::weighted(0.9, 0u8..16);
        prop::collection::vec((0..actions, bits(), bits()), 0..12)
    }

    #[test]
    fn rules_that_differ_in_one_thing_are_one() {
        let text = |tier, rules: &[Written]| {
            let rules: Vec<Rule> = rules.iter().map(rule).collect();
            let lines = merged(&rules, tier);
            let line = |line: &super::RuleLine<'_>| {
                let n = |list: Option<usize>| list.map_or("*".to_owned(), |n| n.to_string());
                let peers = n(line.rule.peers.as_ref().map(|peers| peers.len()));
                let ports = n(line.rule.ports.as_ref().map(|ports| ports.len()));
                format!("{}{:?}: {peers} at {ports}", line.index, line.others)
            };
            lines.iter().map(line).collect::<Vec<_>>().join(", ")
        };
        let of = |peers, ports| (0, Some(peers), Some(ports));
        let deny = |peers, ports| (1, Some(peers), Some(ports));
        let np = Tier::NetworkPolicy;
        for (tier, rules, want) in [
            (np, &[of(1, 1), of(2, 1), of(4, 1)][..], "0[1, 2]: 3 at 1"),
            (np, &[of(1, 1), of(1, 2), of(2, 4)], "0[1]: 1 at 2, 2[]: 1 at 1"),
            (np, &[of(1, 1), of(8, 8), of(2, 1)], "0[2]: 2 at 1, 1[]: 1 at 1"),
            (np, &[of(1, 1), (0, None, Some(1))], "0[1]: * at 1"),
            (np, &[of(1, 1), (0, Some(1), None)], "0[1]: 1 at *"),
            (np, &[of(1, 1), of(2, 2)], "0[]: 1 at 1, 1[]: 1 at 1"),
            (Tier::Admin, &[of(1, 1), of(2, 1), of(2, 2)], "0[1]: 2 at 1, 2[]: 1 at 1"),
            (
                Tier::Admin,
                &[of(1, 1), deny(4, 1), of(2, 1)],
                "0[]: 1 at 1, 1[]: 1 at 1, 2[]: 1 at 1",
            ),
        ] {
            assert_eq!(text(tier, rules), want, "{rules:?}");
        }
    }

    proptest! {
        #[test]
        fn merged_rules_say_what_the_rules_say(accepts in written(1), ordered in written(3)) {
            for (tier, rules) in [(Tier::NetworkPolicy, accepts), (Tier::Admin, ordered)] {
                let rules: Vec<Rule> = rules.iter().map(rule).collect();
                let lines = merged(&rules, tier);
                for (peer, port) in (0..4).flat_map(|peer| (0..4).map(move |port| (peer, port))) {
                    let first = rules.iter().find(|rule| applies(rule, peer, port));
                    let line = lines.iter().find(|line| applies(&line.rule, peer, port));
                    prop_assert_eq!(line.map(|line| line.rule.action), first.map(|rule| rule.action));
                }
                let mut all: Vec<u32> = lines.iter().flat_map(|line| line.others.iter().copied().chain([line.index])).collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..rules.len() as u32).collect::<Vec<_>>());
            }
        }
    }
}
