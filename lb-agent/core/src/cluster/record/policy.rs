//! Policies: `NetworkPolicy` (networking.k8s.io/v1) and `ClusterNetworkPolicy` (policy.networking.k8s.io/v1alpha2) in one
//! shape.
//!
//! What is unreadable in an object has been given its safe reading on the way here: an allow that cannot be read
//! matches nothing, a deny (or pass) that cannot be read denies everything.
#![forbid(unsafe_code)]

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Labels;
use crate::cluster::Prefix;

/// Where a policy stands in the order of evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// `ClusterNetworkPolicy` with `spec.tier: Admin`.
    Admin,
    /// `NetworkPolicy`.
    NetworkPolicy,
    /// `ClusterNetworkPolicy` with `spec.tier: Baseline`.
    Baseline,
}

impl Tier {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Baseline => "Baseline",
        }
    }

    /// The kind of its objects.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Admin | Self::Baseline => "ClusterNetworkPolicy",
        }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its tier, which also tells the kind of the object.
    pub tier: Tier,
    /// `spec.priority` within the tier, the lowest first; 0 of a `NetworkPolicy`.
    pub priority: u16,
    /// The Pods it is about. Pods of the host network never are.
    pub subject: PodSelector,
    /// What may enter those Pods. `Some` of a `NetworkPolicy` isolates them, even with no rule in it
    /// (`spec.policyTypes`, with its default filled in).
    pub ingress: Option<Box<[Rule]>>,
    /// What may leave them, likewise.
    pub egress: Option<Box<[Rule]>>,
    /// Whether it is only tried: counted and shown, not enforced.
    pub shadow: bool,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp` in seconds since 1970, 0 = not known.
    pub created: i64,
}

impl Policy {
    /// All its strings, to be replaced by shared ones of the same content.
    pub(in crate::cluster) fn for_each_string(&mut self, share: &mut impl FnMut(&mut Arc<str>)) {
        self.subject.for_each_string(share);
        for rule in self.ingress.iter_mut().chain(&mut self.egress).flatten() {
            share(&mut rule.name);
            for peer in rule.peers.iter_mut().flatten() {
                match peer {
                    Peer::Pods(pods) => pods.for_each_string(share),
                    Peer::Nodes(nodes) => nodes.for_each_string(share),
                    Peer::Block { .. } => {}
                }
            }
            for port in rule.ports.iter_mut().flatten() {
                match &mut port.ports {
                    PortSpec::Named(name) => share(name),
                    PortSpec::All | PortSpec::Range(..) => {}
                }
            }
        }
    }
}

/// Pods by their namespaces and their labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodSelector {
    /// Their namespaces.
    pub namespaces: Namespaces,
    /// Their labels.
    pub pods: Selector,
}

impl PodSelector {
    fn for_each_string(&mut self, share: &mut impl FnMut(&mut Arc<str>)) {
        match &mut self.namespaces {
            Namespaces::Own => {}
            Namespaces::Selected(namespaces) => namespaces.for_each_string(share),
        }
        self.pods.for_each_string(share);
    }
}

/// Namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Namespaces {
    /// The policy's own: no selector was given, which is not the same as an empty one.
    Own,
    /// Those with such labels.
    Selected(Selector),
}

/// A label selector; everything must hold. Without requirements it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Selector(pub Box<[Requirement]>);

impl Selector {
    /// Whether the labels satisfy all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }

    fn for_each_string(&mut self, share: &mut impl FnMut(&mut Arc<str>)) {
        for requirement in &mut self.0 {
            share(&mut requirement.key);
            match &mut requirement.operator {
                Operator::In(values) | Operator::NotIn(values) => {
                    values.iter_mut().for_each(&mut *share)
                }
                Operator::Exists | Operator::DoesNotExist => {}
            }
        }
    }
}

/// What one label must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Requirement {
    /// Key of the label.
    pub key: Arc<str>,
    /// What is wanted of it.
    pub operator: Operator,
}

/// What is wanted of a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// It is there with one of these values; `matchLabels` has one.
    In(Box<[Arc<str>]>),
    /// It is not there, or has another value.
    NotIn(Box<[Arc<str>]>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Requirement {
    /// Whether the labels satisfy it.
    pub fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => {
                value.is_some_and(|value| values.iter().any(|v| **v == **value))
            }
            Operator::NotIn(values) => {
                value.is_none_or(|value| values.iter().all(|v| **v != **value))
            }
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// What a rule does with the flows it applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Allows them. The only action of a `NetworkPolicy`.
    Accept,
    /// Denies them.
    Deny,
    /// Leaves them to the next tier.
    Pass,
}

impl Action {
    /// The name in `action`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        }
    }
}

/// One entry of `spec.ingress` or `spec.egress`, at the same index as in the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `name`, empty when it has none.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// `from` or `to`, any of them: `None` = all peers; an empty list = no peer (no valid entry).
    pub peers: Option<Box<[Peer]>>,
    /// `ports` or `protocols`, any of them: `None` = every protocol and port; an empty list = none.
    pub ports: Option<Box<[PortMatch]>>,
}

/// The other end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Peer {
    /// Pods; never those of the host network.
    Pods(PodSelector),
    /// The addresses of nodes with such labels.
    Nodes(Selector),
    /// Addresses in a range, but for those in the ranges within it: whoever has them, Pods and nodes included.
    Block {
        /// `ipBlock.cidr`, or one of `networks`.
        prefix: Prefix,
        /// `ipBlock.except`, sorted.
        excepts: Box<[Prefix]>,
    },
}

/// Protocol and destination ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMatch {
    /// IP protocol number; `None` with a named port of any protocol (`destinationNamedPort`).
    pub protocol: Option<u8>,
    /// The ports.
    pub ports: PortSpec,
}

/// Destination ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortSpec {
    /// All of the protocol.
    All,
    /// From the first to the last.
    Range(u16, u16),
    /// The port of a container that has this name, in the Pod that is the destination.
    Named(Arc<str>),
}

#[cfg(test)]
mod tests {
    use super::{Labels, Operator, Requirement, Selector};

    #[test]
    fn selectors_by_operator() {
        let labels = Labels::new([("app".into(), "web".into()), ("tier".into(), "".into())]);
        let values = |values: &[&str]| values.iter().map(|value| (*value).into()).collect();
        let cases = [
            ("app", Operator::In(values(&["db", "web"])), true),
            ("app", Operator::In(values(&["db"])), false),
            ("app", Operator::In(values(&[])), false),
            ("tier", Operator::In(values(&[""])), true),
            ("gone", Operator::In(values(&[""])), false),
            ("app", Operator::NotIn(values(&["web"])), false),
            ("gone", Operator::NotIn(values(&["web"])), true),
            ("tier", Operator::Exists, true),
            ("App", Operator::Exists, false),
            ("app", Operator::DoesNotExist, false),
            ("gone", Operator::DoesNotExist, true),
        ];
        for (key, operator, want) in cases {
            let requirement = Requirement { key: key.into(), operator };
            assert_eq!(requirement.holds(&labels), want, "{requirement:?}");
            let twice = [requirement.clone(), requirement];
            assert_eq!(Selector(twice.into()).matches(&labels), want);
        }
        assert!(Selector::default().matches(&Labels::default()), "an empty selector takes all");
    }
}
