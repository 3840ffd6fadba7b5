//! Policies, groups and identities for the name table.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use lb_common::addr::Addr;
use lb_common::policy::GroupFlags;

use crate::agent::hits::Hits;
use lb_core::cluster::{Cluster, Name, Owners, Tier};
use lb_core::model::policy::{BitRule, DesiredPolicies, PolicyDirection, PolicyInfo, RuleSet};
use lb_core::names::{GroupName, IdentName, PolicyName, PolicyRef, RuleName};
use lb_core::plan::Actual;

/// Pods that are named for an identity.
const EXAMPLES: usize = 3;

pub(in crate::agent) fn policies<'a>(
    desired: &'a DesiredPolicies,
    hits: &Hits,
) -> Vec<PolicyName<'a>> {
    let mut of_policy = hits.of_policies();
    let name = |info: &'a PolicyInfo| {
        let hits = of_policy.remove(&(&info.name, info.tier)).unwrap_or_default();
        PolicyName {
            namespace: Cow::Owned(info.name.namespace.to_string()),
            name: Cow::Owned(info.name.name.to_string()),
            tier: Cow::Borrowed(info.tier.name()),
            priority: info.priority,
            generation: info.generation,
            shadow: info.shadow,
            subjects: info.subjects,
            rules: info.rules,
            created: u64::try_from(info.created).unwrap_or_default(),
            hits: hits.count,
            last_hit: hits.last,
        }
    };
    desired.policies.iter().map(name).collect()
}

pub(in crate::agent) fn group(id: u32, group: &RuleSet) -> GroupName<'_> {
    let policies = group.policies();
    let position = |name: &Name, tier: Tier| {
        let at = policies.iter().position(|known| *known == (name, tier));
        at.and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX)
    };
    let others = |rule: &BitRule| u32::try_from(rule.source.others.len()).unwrap_or(u32::MAX);
    let alike = group.rules.iter().map(|(number, rule)| (*number, others(rule)));
    let alike = alike.filter(|(_, others)| *others > 0).collect();
    let rules = group.rules.iter().map(|(number, rule)| RuleName {
        number: *number,
        policy: position(&rule.source.policy, rule.source.tier),
        ingress: rule.source.direction == PolicyDirection::Ingress,
        index: rule.source.index,
    });
    let isolating = group.isolating.iter().map(|name| position(name, Tier::NetworkPolicy));
    let (rules, isolating) = (rules.collect(), isolating.collect());
    let reference = |(name, tier): &(&'_ Name, Tier)| PolicyRef {
        namespace: Cow::Owned(name.namespace.to_string()),
        name: Cow::Owned(name.name.to_string()),
        tier: Cow::Borrowed(tier.name()),
    };
    let no_room = group.flags.contains(GroupFlags::OVERFLOW);
    let policies = policies.iter().map(reference).collect();
    GroupName { id, policies, rules, alike, isolating, no_room }
}

/// The identities that Pods have.
pub(in crate::agent) fn idents<'a>(cluster: &'a Cluster, actual: &Actual) -> Vec<IdentName<'a>> {
    let mut found: BTreeMap<u32, Vec<Cow<'a, str>>> = BTreeMap::new();
    let is_shown = |ip: &Addr| actual.ident.get(ip).is_some_and(|ident| ident.ident != 0);
    let owners = Owners::of_some(cluster, is_shown);
    for (name, pod) in cluster.all_pods() {
        let own = pod.ips.iter().filter(|ip| owners.is_pods(name, ip));
        for ident in own.filter_map(|ip| actual.ident.get(ip)) {
            let pods = found.entry(ident.ident).or_default();
            if ident.ident != 0 && pods.len() < EXAMPLES {
                pods.push(Cow::Owned(name.to_string()));
            }
        }
    }
    found.remove(&0);
    found.into_iter().map(|(id, pods)| IdentName { id, pods }).collect()
}
