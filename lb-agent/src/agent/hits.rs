//! What policies decided: the kernel's counts by group and judgement, added up by policy and rule. The counts of a
//! policy begin with the agent and end with the policy.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lb_common::policy::{HitKey, Judgement};
use lb_common::verdict::Outcome;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::observe::metrics::policy::{ByPolicy, SERIES_BY_POLICY};
use lb_core::admin::policy::{PolicyView, RuleView};
use lb_core::cluster::{Name, Tier};
use lb_core::model::policy::{PolicyDirection, RuleSet};

/// Who decided, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Decision {
    policy: Name,
    tier: Tier,
    direction: PolicyDirection,
    /// Index of the rule in its list, and of those that are one with it; `None` = the policy isolates the Pod, and no rule
    /// allowed the flow.
    rule: Option<(u32, Arc<[u32]>)>,
    outcome: Outcome,
}

/// How often, and when last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hit {
    /// New flows.
    pub(super) count: u64,
    /// When the last of them was counted, in seconds since 1970; 0 = before the agent's start.
    pub(super) last: u64,
}

impl Hit {
    fn and(self, other: Self) -> Self {
        Self { count: self.count.saturating_add(other.count), last: self.last.max(other.last) }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Hits {
    /// The kernel's counts when they were last read; `None` before the first time.
    seen: Option<HashMap<HitKey, u64>>,
    decisions: BTreeMap<Decision, Hit>,
    /// Those with series of their own.
    published: BTreeSet<ByPolicy>,
}

impl Hits {
    /// Adds what the kernel has counted since the last time, at `now`, seconds since 1970; returns the keys of
    /// unknown groups, so that they can be deleted.
    pub(super) fn add<'a>(
        &mut self,
        counts: &[(HitKey, u64)],
        group: impl Fn(u32) -> Option<&'a RuleSet>,
        now: u64,
    ) -> Vec<HitKey> {
        let mut nameless = Vec::new();
        // The times of the counts of an earlier agent are unknown.
        let last = if self.seen.is_some() { now } else { 0 };
        let before = self.seen.take().unwrap_or_default();
        let mut seen = HashMap::with_capacity(counts.len());
        for (key, count) in counts {
            let Some(group) = group(key.group) else {
                nameless.push(*key);
                continue;
            };
            seen.insert(*key, *count);
            let new = count.saturating_sub(before.get(key).copied().unwrap_or_default());
            if new == 0 {
                continue;
            }
            for decision in decisions(group, key) {
                let hit = self.decisions.entry(decision).or_default();
                *hit = hit.and(Hit { count: new, last });
            }
        }
        self.seen = Some(seen);
        nameless
    }

    /// Leaves those of policies that are there.
    pub(super) fn retain(&mut self, is_live: impl Fn(&Name, Tier) -> bool) {
        self.decisions.retain(|decision, _| is_live(&decision.policy, decision.tier));
    }

    /// Each policy's.
    pub(super) fn of_policies(&self) -> HashMap<(&Name, Tier), Hit> {
        let mut sums = HashMap::<_, Hit>::new();
        for (decision, hit) in &self.decisions {
            let sum = sums.entry((&decision.policy, decision.tier)).or_default();
            *sum = sum.and(*hit);
        }
        sums
    }

    /// Writes into a policy's view how often each of its rules decided, and its isolation denied.
    pub(crate) fn count_in(&self, view: &mut PolicyView) {
        let PolicyView { name, tier, ingress, egress, default_denied, .. } = view;
        for (decision, hit) in &self.decisions {
            if (decision.tier, &decision.policy) != (*tier, &*name) {
                continue;
            }
            let (rules, denied) = match decision.direction {
                PolicyDirection::Ingress => (&mut *ingress, &mut default_denied.ingress),
                PolicyDirection::Egress => (&mut *egress, &mut default_denied.egress),
            };
            match &decision.rule {
                None => *denied = denied.saturating_add(hit.count),
                Some((index, others)) => {
                    let rules = rules.as_deref_mut().unwrap_or_default();
                    count(rules, (*index, others), hit.count);
                }
            }
        }
    }

    /// Elements of the kernel's map.
    pub(super) fn n_counted(&self) -> usize {
        self.seen.as_ref().map_or(0, HashMap::len)
    }

    /// Brings the metric up to date: a policy keeps its series as long as it lives, and those for which there is none
    /// share one.
    pub(super) fn publish(&mut self, family: &Family<ByPolicy, Counter>) {
        let mut sums = BTreeMap::<ByPolicy, u64>::new();
        for (decision, hit) in &self.decisions {
            let sum = sums.entry(labels(decision)).or_default();
            *sum = sum.saturating_add(hit.count);
        }
        self.published.retain(|labels| sums.contains_key(labels));
        family.clear();
        for (labels, sum) in sums {
            if self.published.len() < SERIES_BY_POLICY {
                self.published.insert(labels.clone());
            }
            let own = self.published.contains(&labels);
            family.get_or_create(&if own { labels } else { other() }).inc_by(sum);
        }
    }
}

/// Counts for a rule, and says of those that are one with it where they are counted.
fn count(rules: &mut [RuleView], (index, others): (u32, &[u32]), count: u64) {
    let Some(rule) = rules.get_mut(index as usize) else { return };
    rule.hits = rule.hits.saturating_add(count);
    for other in others {
        if let Some(other) = rules.get_mut(*other as usize) {
            other.counted_in = Some(index);
        }
    }
}

/// Whose decision it was. Several policies may isolate a Pod: it is the decision of each.
fn decisions(group: &RuleSet, key: &HitKey) -> Vec<Decision> {
    let judgement = Judgement::from_number(key.judgement);
    let Some(outcome) = Outcome::ALL.into_iter().find(|known| *known as u8 == key.outcome) else {
        return Vec::new();
    };
    let direction =
        if key.ingress != 0 { PolicyDirection::Ingress } else { PolicyDirection::Egress };
    let decision = |policy: &Name, tier, rule| Decision {
        policy: policy.clone(),
        tier,
        direction,
        rule,
        outcome,
    };
    match judgement.rule() {
        Some(number) => {
            let at = group.rules.binary_search_by_key(&number, |(number, _)| *number);
            let rule = at.ok().and_then(|at| group.rules.get(at));
            rule.map(|(_, rule)| {
                let source = &rule.source;
                let rule = (source.index, Arc::clone(&source.others));
                decision(&source.policy, source.tier, Some(rule))
            })
            .into_iter()
            .collect()
        }
        None => {
            let isolating = group.isolating.iter();
            isolating.map(|policy| decision(policy, Tier::NetworkPolicy, None)).collect()
        }
    }
}

fn labels(decision: &Decision) -> ByPolicy {
    let outcome = match (&decision.rule, decision.outcome) {
        (None, Outcome::Deny) => "default_deny",
        (_, outcome) => outcome.name(),
    };
    [
        ("namespace", decision.policy.namespace.to_string()),
        ("policy", decision.policy.name.to_string()),
        ("direction", decision.direction.name().to_owned()),
        ("outcome", outcome.to_owned()),
    ]
}

fn other() -> ByPolicy {
    [("namespace", ""), ("policy", "_other"), ("direction", ""), ("outcome", "")]
        .map(|(name, value)| (name, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use lb_common::policy::tier;

    use super::{
        Arc, ByPolicy, Counter, Decision, Family, Hit, HitKey, Hits, Judgement, Name, Outcome,
        PolicyDirection, RuleSet, SERIES_BY_POLICY, Tier,
    };
    use lb_core::admin::policy::{DeniedFlows, PolicyView, RuleView, Selected};
    use lb_core::cluster::{Action, Namespaces, PodSelector, Selector};
    use lb_core::model::policy::{BitRule, RuleSource};

    /// `shop/access` with two rules, the second of which has two bits; `shop/deny` isolates as well.
    fn group() -> RuleSet {
        let (access, deny) = (Name::new("shop", "access"), Name::new("shop", "deny"));
        let rule = |number, index| {
            let source = RuleSource {
                policy: access.clone(),
                tier: Tier::NetworkPolicy,
                direction: PolicyDirection::Ingress,
                index,
                others: if index == 1 { [2].into() } else { [].into() },
            };
            let rule = BitRule { source, action: Action::Accept, peers: None, ports: None };
            (number, Arc::new(rule))
        };
        let rules = [rule(0, 0), rule(1, 1), rule(2, 1)].into();
        let mut group = RuleSet::default();
        (group.rules, group.isolating) = (rules, [access, deny].into());
        group
    }

    /// A policy with three rules, before counts are added.
    fn view(name: &Name) -> PolicyView {
        let rule = RuleView {
            action: Action::Accept,
            name: "".into(),
            peers: None,
            ports: None,
            hits: 0,
            counted_in: None,
        };
        let all = PodSelector { namespaces: Namespaces::Own, pods: Selector::default() };
        PolicyView {
            name: name.clone(),
            tier: Tier::NetworkPolicy,
            priority: 0,
            shadow: false,
            generation: 1,
            subject: (all, Selected::default()),
            ingress: Some(vec![rule; 3]),
            egress: None,
            default_denied: DeniedFlows::default(),
            issues: Vec::new(),
        }
    }

    fn by_rule(rule: u32) -> HitKey {
        let judgement = (rule + 1) | u32::from(tier::NETWORK_POLICY) << 16;
        HitKey { group: 7, judgement, ingress: 1, ..HitKey::ZERO }
    }

    fn isolated() -> HitKey {
        let judgement = Judgement::ISOLATED.number();
        HitKey { group: 7, judgement, outcome: Outcome::Deny as u8, ingress: 1, zero: 0 }
    }

    #[test]
    fn counts_of_groups_become_counts_of_policies_and_rules() {
        let group = group();
        let find = |id: u32| (id == 7).then_some(&group);
        let mut hits = Hits::default();
        // An earlier agent's; and a group that is gone.
        let gone = HitKey { group: 8, ..isolated() };
        let forgotten = hits.add(&[(by_rule(0), 5), (gone, 1)], find, 100);
        assert_eq!(forgotten, [gone]);
        let counts = [(by_rule(0), 6), (by_rule(1), 2), (by_rule(2), 1), (isolated(), 4)];
        assert!(hits.add(&counts, find, 110).is_empty());
        assert!(hits.add(&counts, find, 120).is_empty(), "nothing new");
        let (access, deny) = (Name::new("shop", "access"), Name::new("shop", "deny"));
        let of_policies = hits.of_policies();
        let of = |name| of_policies[&(name, Tier::NetworkPolicy)];
        assert_eq!(of(&access), Hit { count: 13, last: 110 });
        assert_eq!(of(&deny), Hit { count: 4, last: 110 });
        let mut view = view(&access);
        hits.count_in(&mut view);
        let rules = view.ingress.unwrap();
        let of_rules: Vec<u64> = rules.iter().map(|rule| rule.hits).collect();
        let denied = DeniedFlows { ingress: 4, egress: 0 };
        assert_eq!((of_rules, view.default_denied), (vec![6, 3, 0], denied));
        let counted_in: Vec<Option<u32>> = rules.iter().map(|rule| rule.counted_in).collect();
        assert_eq!(counted_in, [None, None, Some(1)], "two rules that are one");
        hits.retain(|name, _| *name == deny);
        assert!(!hits.of_policies().contains_key(&(&access, Tier::NetworkPolicy)));
    }

    #[test]
    fn a_counter_that_was_reset_takes_nothing_away() {
        let group = group();
        let mut hits = Hits::default();
        for (count, now) in [(5, 1), (3, 2), (4, 3)] {
            assert!(hits.add(&[(by_rule(0), count)], |_| Some(&group), now).is_empty());
        }
        assert_eq!(hits.decisions.values().next(), Some(&Hit { count: 6, last: 3 }));
    }

    #[test]
    fn series_are_bounded_and_keep_their_policy() {
        let family = Family::<ByPolicy, Counter>::default();
        let mut hits = Hits::default();
        let decision = |name: String| Decision {
            policy: Name::new("shop", name),
            tier: Tier::NetworkPolicy,
            direction: PolicyDirection::Egress,
            rule: None,
            outcome: Outcome::Deny,
        };
        let hit = Hit { count: 2, last: 1 };
        for number in 100..100 + SERIES_BY_POLICY {
            hits.decisions.insert(decision(format!("m{number}")), hit);
        }
        hits.publish(&family);
        for early in ["a", "b", "c"] {
            hits.decisions.insert(decision(early.to_owned()), hit);
        }
        hits.publish(&family);
        let labels = |name: &str| super::labels(&decision(name.to_owned()));
        assert_eq!(family.get_or_create(&labels("m100")).get(), 2);
        assert_eq!(labels("m100")[3].1, "default_deny");
        assert_eq!(family.get_or_create(&super::other()).get(), 6);
        hits.retain(|name, _| &*name.name != "m100");
        hits.publish(&family);
        assert_eq!(family.get_or_create(&labels("a")).get(), 2, "a place became free");
        assert_eq!(family.get_or_create(&super::other()).get(), 4);
    }
}
