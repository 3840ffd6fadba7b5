//! Which policy did it: from a group and a judgement, as events and the evaluator have them, to a policy and the path
//! of its rule.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use lb_common::policy::Judgement;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};

use lb_core::cluster::Name;
use lb_core::model::policy::PolicyDirection;
use lb_core::names::{GroupName, Names, PolicyRef};

/// The policies that decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecidedBy {
    /// The policy whose rule decided; where none did, the policies that isolate the Pod.
    pub policies: Vec<PolicyId>,
    /// The rule; `None` when none decided.
    pub rule: Option<RuleId>,
}

/// A policy, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyId {
    /// By its name.
    Named(Name),
    /// One of the policies of this group, whose names are not known.
    InGroup(u32),
}

/// A rule, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleId {
    /// Where it is written.
    Written(RuleAt),
    /// Its number in the group, whose rules are not known.
    Number(u32),
}

/// Where a rule is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleAt {
    /// In which list of `spec`.
    pub direction: PolicyDirection,
    /// Its index there.
    pub index: u32,
    /// How many identical rules share its number, itself not counted.
    pub others: u32,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::InGroup(group) => write!(f, "#{group}"),
        }
    }
}

impl fmt::Display for RuleId {
    /// Writes its path in `spec`: `ingress[1]`, or `ingress[1] or one of 7 identical rules`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "rule[{number}]"),
            Self::Written(RuleAt { direction, index, others }) => {
                write!(f, "{}[{index}]", direction.name())?;
                match others {
                    0 => Ok(()),
                    n => write!(f, " or one of {n} identical rules"),
                }
            }
        }
    }
}

impl DecidedBy {
    /// The policies with this text between them.
    pub fn list(&self, between: &str) -> String {
        self.policies.iter().map(PolicyId::to_string).collect::<Vec<_>>().join(between)
    }

    /// The path of the rule, empty when none decided.
    pub fn path(&self) -> String {
        self.rule.as_ref().map(RuleId::to_string).unwrap_or_default()
    }
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.list(","))?;
        match &self.rule {
            None if self.policies.is_empty() => Ok(()),
            None => f.write_str(" default-deny"),
            Some(rule) => write!(f, " {rule}"),
        }
    }
}

impl Serialize for DecidedBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let policies: Vec<String> = self.policies.iter().map(PolicyId::to_string).collect();
        let mut by = serializer.serialize_struct("By", 2)?;
        by.serialize_field("policies", &policies)?;
        by.serialize_field("rule", &self.path())?;
        by.end()
    }
}

/// What the name table says of the groups.
#[derive(Clone, Debug, Default)]
pub struct PolicyNames {
    groups: HashMap<u32, GroupPolicies>,
}

/// One group.
#[derive(Clone, Debug, Default)]
pub struct GroupPolicies {
    /// All policies in it.
    pub policies: Vec<Name>,
    /// The policies that isolate the Pods with it.
    pub isolating: Vec<Name>,
    /// The policy of each rule, and where it is written, by its number.
    pub rules: BTreeMap<u32, (Name, RuleAt)>,
    /// Whether it denies everything for want of room.
    pub no_room: bool,
}

impl PolicyNames {
    /// From the name table.
    pub fn of(names: &Names<'_>) -> Self {
        let group = |group: &GroupName<'_>| {
            let policy = |position: u32| {
                let position = usize::try_from(position).unwrap_or(usize::MAX);
                group.policies.get(position).map_or_else(|| Name::new("", ""), full)
            };
            let alike: HashMap<u32, u32> = group.alike.iter().copied().collect();
            let rules = group.rules.iter().map(|rule| {
                let direction =
                    if rule.ingress { PolicyDirection::Ingress } else { PolicyDirection::Egress };
                let others = alike.get(&rule.number).copied().unwrap_or_default();
                let at = RuleAt { direction, index: rule.index, others };
                (rule.number, (policy(rule.policy), at))
            });
            let isolating = group.isolating.iter().map(|position| policy(*position)).collect();
            let policies = group.policies.iter().map(full).collect();
            let (rules, no_room) = (rules.collect(), group.no_room);
            (group.id, GroupPolicies { policies, isolating, rules, no_room })
        };
        Self::new(names.groups.iter().map(group))
    }

    /// From groups by the index of their first element.
    pub fn new(groups: impl IntoIterator<Item = (u32, GroupPolicies)>) -> Self {
        Self { groups: groups.into_iter().collect() }
    }

    /// The group with this index.
    pub fn group(&self, index: u32) -> Option<&GroupPolicies> {
        self.groups.get(&index)
    }

    /// The policies about a Pod in one direction, by its two groups: `open`, `isolated(3)`, `cluster(1)` when only
    /// some of the cluster are about it, `+shadow(1)` with those that are tried.
    pub fn about(&self, group: u32, shadow: u32) -> String {
        let known = self.groups.get(&group);
        let enforced = match known {
            _ if group == 0 => String::new(),
            Some(GroupPolicies { no_room: true, .. }) => "no-room".to_owned(),
            Some(GroupPolicies { policies, isolating, .. })
                if isolating.is_empty() && policies.is_empty() =>
            {
                "pending".to_owned()
            }
            Some(GroupPolicies { policies, isolating, .. }) if isolating.is_empty() => {
                format!("cluster({})", policies.len())
            }
            Some(GroupPolicies { policies, .. }) => format!("isolated({})", policies.len()),
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
    pub fn by(&self, group: u32, judgement: Judgement) -> DecidedBy {
        if group == 0 {
            return DecidedBy::default();
        }
        let known = self.groups.get(&group);
        if let Some(number) = judgement.rule() {
            return match known.and_then(|group| group.rules.get(&number)) {
                Some((policy, at)) => DecidedBy {
                    policies: vec![PolicyId::Named(policy.clone())],
                    rule: Some(RuleId::Written(*at)),
                },
                None => DecidedBy {
                    policies: vec![PolicyId::InGroup(group)],
                    rule: Some(RuleId::Number(number)),
                },
            };
        }
        if !judgement.denied() {
            return DecidedBy::default();
        }
        let policies = match known {
            Some(group) => group.isolating.iter().cloned().map(PolicyId::Named).collect(),
            None => vec![PolicyId::InGroup(group)],
        };
        DecidedBy { policies, rule: None }
    }
}

fn full(policy: &PolicyRef<'_>) -> Name {
    Name::new(&*policy.namespace, &*policy.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::policy::Judgement;

    use super::{GroupPolicies, Name, PolicyDirection, PolicyNames, RuleAt};

    #[test]
    fn judgements_in_words() {
        let both = ["db/deny-all", "db/access"].map(Name::parse);
        let at = |others| RuleAt { direction: PolicyDirection::Ingress, index: 1, others };
        let group = GroupPolicies {
            policies: both.to_vec(),
            isolating: both.to_vec(),
            rules: BTreeMap::from([
                (3, (Name::parse("db/access"), at(0))),
                (4, (Name::parse("db/access"), at(7))),
            ]),
            no_room: false,
        };
        let policies = PolicyNames::new([(7, group)]);
        let by_rule = Judgement::from_number(4 | 2 << 16);
        let by_one_of_many = Judgement::from_number(5 | 2 << 16);
        for (group, judgement, want) in [
            (7, by_rule, "db/access ingress[1]"),
            (7, by_one_of_many, "db/access ingress[1] or one of 7 identical rules"),
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
