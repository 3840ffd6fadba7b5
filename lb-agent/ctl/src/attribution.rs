//! Which policy did it: from a group and a judgement, as events and the evaluator have them, to a policy and the path
//! of its rule.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use lb_common::policy::Judgement;
use serde::Serialize;

use lb_core::names::{GroupName, Names, PolicyRef};

/// Who decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct By {
    /// The policy whose rule decided; where none did, the policies that isolate the Pod.
    pub policies: Vec<String>,
    /// Path of the rule in `spec`, like `ingress[1]`, or `ingress[1] or one of 7 like it`; empty when none decided.
    pub rule: String,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.policies.join(","))?;
        match self.rule.as_str() {
            "" if self.policies.is_empty() => Ok(()),
            "" => f.write_str(" default-deny"),
            rule => write!(f, " {rule}"),
        }
    }
}

/// What the name table says of the groups.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    groups: HashMap<u32, Group>,
}

/// One group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// All policies in it.
    pub policies: Vec<String>,
    /// The policies that isolate the Pods with it.
    pub isolating: Vec<String>,
    /// The policy of each rule, and its path, by its number.
    pub rules: BTreeMap<u32, (String, String)>,
    /// Whether it denies everything for want of room.
    pub no_room: bool,
}

impl Policies {
    /// From the name table.
    pub fn of(names: &Names<'_>) -> Self {
        let group = |group: &GroupName<'_>| {
            let policy = |position: u32| {
                let position = usize::try_from(position).unwrap_or(usize::MAX);
                group.policies.get(position).map(full).unwrap_or_default()
            };
            let alike: HashMap<u32, u32> = group.alike.iter().copied().collect();
            let rules = group.rules.iter().map(|rule| {
                let direction = if rule.ingress { "ingress" } else { "egress" };
                let path = match alike.get(&rule.number) {
                    None => format!("{direction}[{}]", rule.index),
                    Some(n) => format!("{direction}[{}] or one of {n} identical rules", rule.index),
                };
                (rule.number, (policy(rule.policy), path))
            });
            let isolating = group.isolating.iter().map(|position| policy(*position)).collect();
            let policies = group.policies.iter().map(full).collect();
            let (rules, no_room) = (rules.collect(), group.no_room);
            (group.id, Group { policies, isolating, rules, no_room })
        };
        Self::new(names.groups.iter().map(group))
    }

    /// From groups by the index of their first element.
    pub fn new(groups: impl IntoIterator<Item = (u32, Group)>) -> Self {
        Self { groups: groups.into_iter().collect() }
    }

    /// The group with this index.
    pub fn group(&self, index: u32) -> Option<&Group> {
        self.groups.get(&index)
    }

    /// The policies about a Pod in one direction, by its two groups: `open`, `isolated(3)`, `cluster(1)` when only
    /// some of the cluster are about it, `+shadow(1)` with those that are tried.
    pub fn about(&self, group: u32, shadow: u32) -> String {
        let known = self.groups.get(&group);
        let enforced = match known {
            _ if group == 0 => String::new(),
            Some(Group { no_room: true, .. }) => "no-room".to_owned(),
            Some(Group { policies, isolating, .. })
                if isolating.is_empty() && policies.is_empty() =>
            {
                "pending".to_owned()
            }
            Some(Group { policies, isolating, .. }) if isolating.is_empty() => {
                format!("cluster({})", policies.len())
            }
            Some(Group { policies, .. }) => format!("isolated({})", policies.len()),
            None => format!("group({group})"),
        };
        let tried = self.groups.get(&shadow).filter(|_| shadow != 0).map(|shadow| {
            let enforced = known.map(|group| group.policies.as_slice()).unwrap_or_default();
            let only = shadow.policies.iter().filter(|policy| !enforced.contains(policy));
            format!("shadow({})", only.count())
        });
        match (enforced, tried) {
            (enforced, None) if enforced.is_empty() => "open".to_owned(),
            (enforced, None) => enforced,
            (enforced, Some(tried)) if enforced.is_empty() => tried,
            (enforced, Some(tried)) => format!("{enforced}+{tried}"),
        }
    }

    /// Who decided; numbers where the names are not known.
    pub fn by(&self, group: u32, judgement: Judgement) -> By {
        if group == 0 {
            return By::default();
        }
        let known = self.groups.get(&group);
        if let Some(number) = judgement.rule() {
            return match known.and_then(|group| group.rules.get(&number)) {
                Some((policy, path)) => By { policies: vec![policy.clone()], rule: path.clone() },
                None => By { policies: vec![format!("#{group}")], rule: format!("rule[{number}]") },
            };
        }
        if !judgement.denied() {
            return By::default();
        }
        let policies = match known {
            Some(group) => group.isolating.clone(),
            None => vec![format!("#{group}")],
        };
        By { policies, rule: String::new() }
    }
}

/// `namespace/name`, or the name of one of the cluster.
fn full(policy: &PolicyRef<'_>) -> String {
    match &*policy.namespace {
        "" => policy.name.to_string(),
        namespace => format!("{namespace}/{}", policy.name),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::policy::Judgement;

    use super::{Group, Policies};

    #[test]
    fn judgements_in_words() {
        let group = Group {
            policies: vec!["db/deny-all".to_owned(), "db/access".to_owned()],
            isolating: vec!["db/deny-all".to_owned(), "db/access".to_owned()],
            rules: BTreeMap::from([(3, ("db/access".to_owned(), "ingress[1]".to_owned()))]),
            no_room: false,
        };
        let policies = Policies::new([(7, group)]);
        let by_rule = Judgement::from_number(4 | 2 << 16);
        for (group, judgement, want) in [
            (7, by_rule, "db/access ingress[1]"),
            (7, Judgement::ISOLATED, "db/deny-all,db/access default-deny"),
            (7, Judgement::ALLOWED, ""),
            (8, by_rule, "#8 rule[3]"),
            (8, Judgement::ISOLATED, "#8 default-deny"),
            (0, Judgement::ALLOWED, ""),
        ] {
            assert_eq!(policies.by(group, judgement).to_string(), want);
        }
        for (group, shadow, want) in
            [(0, 0, "open"), (7, 0, "isolated(2)"), (0, 7, "shadow(2)"), (8, 0, "group(8)")]
        {
            assert_eq!(policies.about(group, shadow), want);
        }
    }
}
