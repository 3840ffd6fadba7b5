//! The policies about one Pod in one direction, each rule held against the flow: what of it applies, and what is
//! missing of the rest.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;

use super::policy::selects;
use super::{Holder, namespace_labels, words};
use crate::admin::context::{self, Form, Leg, Miss};
use crate::cluster::{
    self, Action, Cluster, Labels, Name, NamedPort, Namespaces, Operator, Pod, PodSelector, Ports,
    Requirement, Selector,
};

/// The other end.
pub(super) struct Peer<'a> {
    pub(super) addr: Addr,
    pub(super) holder: &'a Holder<'a>,
}

/// What is asked of the Pod.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    /// Whether it enters the Pod: then the port is the Pod's own.
    pub(super) own: bool,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// The policies about this Pod.
pub(super) fn leg(cluster: &Cluster, subject: (&Name, &Pod), peer: &Peer<'_>, flow: Flow) -> Leg {
    let (name, pod) = subject;
    let mut policies: Vec<_> = cluster
        .policies()
        .filter(|(_, policy)| list(policy, flow.own).is_some())
        .filter(|(policy_name, policy)| selects(cluster, policy_name, &policy.subject, subject))
        .collect();
    policies.sort_by_key(|(name, policy)| (policy.tier, policy.priority, *name));
    let ports: &[NamedPort] = match (flow.own, peer.holder) {
        (true, _) => &pod.ports,
        (false, Holder::Pod(_, other, _)) => &other.ports,
        (false, _) => &[],
    };
    let against = Against { cluster, peer, flow, ports };
    let policies = policies.into_iter().map(|(name, policy)| against.policy(name, policy));
    Leg {
        ingress: flow.own,
        subject: name.to_string(),
        node: pod.node.to_string(),
        peer: Some(peer.addr.to_ip()),
        peer_name: match peer.holder {
            Holder::Pod(name, ..) => name.to_string(),
            Holder::Node(name, ..) => format!("node/{name}"),
            Holder::Outside(_) | Holder::Service | Holder::Missing(_) => String::new(),
        },
        port: flow.port,
        policies: policies.collect(),
    }
}

fn list(policy: &cluster::Policy, ingress: bool) -> Option<&[cluster::Rule]> {
    if ingress { policy.ingress.as_deref() } else { policy.egress.as_deref() }
}

/// What rules are held against.
struct Against<'a> {
    cluster: &'a Cluster,
    peer: &'a Peer<'a>,
    flow: Flow,
    /// What names of ports mean in the destination.
    ports: &'a [NamedPort],
}

impl Against<'_> {
    fn policy(&self, name: &Name, policy: &cluster::Policy) -> context::Policy {
        let rules = list(policy, self.flow.own).unwrap_or_default();
        context::Policy {
            name: name.to_string(),
            tier: policy.tier.name().to_owned(),
            shadow: policy.shadow,
            rules: rules.iter().enumerate().map(|(i, rule)| self.rule(name, i, rule)).collect(),
        }
    }

    fn rule(&self, policy: &Name, index: usize, rule: &cluster::Rule) -> context::Rule {
        let (direction, list) = if self.flow.own { ("ingress", "from") } else { ("egress", "to") };
        let path = format!("{direction}[{index}]");
        let ports = if policy.namespace.is_empty() { "protocols" } else { "ports" };
        let peers = rule.peers.as_ref().map(|peers| {
            let peers = peers.iter().enumerate();
            peers.map(|(i, peer)| self.peer(policy, format!("{path}.{list}[{i}]"), peer)).collect()
        });
        let ports = rule.ports.as_ref().map(|matches| {
            let matches = matches.iter().enumerate();
            matches.map(|(i, port)| self.port(format!("{path}.{ports}[{i}]"), port)).collect()
        });
        let action = match rule.action {
            Action::Accept => "Accept",
            Action::Deny => "Deny",
            Action::Pass => "Pass",
        };
        context::Rule { path, action: action.to_owned(), peers, ports }
    }

    fn peer(&self, policy: &Name, path: String, peer: &cluster::Peer) -> context::Peer {
        let form = match peer {
            cluster::Peer::Pods(PodSelector { namespaces: Namespaces::Own, .. }) => Form::Pods,
            cluster::Peer::Pods(PodSelector { pods, .. }) if pods.0.is_empty() => Form::Namespaces,
            cluster::Peer::Pods(_) => Form::Both,
            cluster::Peer::Nodes(_) => Form::Nodes,
            cluster::Peer::Block { .. } => Form::Block,
        };
        let wants = words::peer(&policy.namespace, peer);
        context::Peer { path, form, wants, misses: self.misses(policy, peer) }
    }

    fn misses(&self, policy: &Name, peer: &cluster::Peer) -> Vec<Miss> {
        match (peer, self.peer.holder) {
            (cluster::Peer::Block { prefix, excepts }, _) => {
                let addr = &self.peer.addr;
                if !prefix.contains(addr) {
                    return vec![Miss::Block];
                }
                let except = excepts.iter().find(|except| except.contains(addr));
                except.map(|except| Miss::Except(words::prefix(except))).into_iter().collect()
            }
            (cluster::Peer::Pods(wanted), Holder::Pod(name, pod, _)) if !pod.host_network => {
                self.pod_misses(policy, wanted, name, pod)
            }
            (cluster::Peer::Pods(_), _) => vec![Miss::NotPod],
            (cluster::Peer::Nodes(wanted), Holder::Node(_, _, labels)) => {
                missing(wanted, labels).map(|(wants, has)| Miss::Label { wants, has }).collect()
            }
            (cluster::Peer::Nodes(_), _) => vec![Miss::NotNode],
        }
    }

    fn pod_misses(&self, policy: &Name, wanted: &PodSelector, name: &Name, pod: &Pod) -> Vec<Miss> {
        let mut misses = Vec::new();
        match &wanted.namespaces {
            Namespaces::Own if name.namespace != policy.namespace => {
                misses.push(Miss::Namespace {
                    wants: policy.namespace.to_string(),
                    has: name.namespace.to_string(),
                });
            }
            Namespaces::Own => {}
            Namespaces::Selected(namespaces) => {
                let labels = namespace_labels(self.cluster, &name.namespace);
                let missing = missing(namespaces, &labels);
                misses.extend(missing.map(|(wants, has)| Miss::NamespaceLabel { wants, has }));
            }
        }
        let missing = missing(&wanted.pods, &pod.labels);
        misses.extend(missing.map(|(wants, has)| Miss::Label { wants, has }));
        misses
    }

    fn port(&self, path: String, port: &cluster::PortMatch) -> context::PortMatch {
        let is_protocol = port.protocol.is_none_or(|protocol| protocol == self.flow.protocol);
        let meaning = |name: &str| {
            let is = |known: &&NamedPort| {
                *known.name == *name && port.protocol.is_none_or(|p| p == known.protocol)
            };
            self.ports.iter().find(is).map(|known| known.port)
        };
        let (range, name) = match &port.ports {
            Ports::All => (None, None),
            Ports::Range(first, last) => (Some((*first, *last)), None),
            Ports::Named(name) => (None, Some(name.to_string())),
        };
        let means = name.as_deref().and_then(meaning);
        let is_port = match (range, &name) {
            (Some((first, last)), _) => (first..=last).contains(&self.flow.port),
            (None, Some(_)) => means == Some(self.flow.port),
            (None, None) => true,
        };
        let wants = words::port(port);
        context::PortMatch { path, wants, matches: is_protocol && is_port, range, name, means }
    }
}

/// What a selector wants that the labels have not, and what they have instead.
fn missing(selector: &Selector, labels: &Labels) -> impl Iterator<Item = (String, String)> {
    let failing = selector.0.iter().filter(|requirement| !requirement.holds(labels));
    failing.map(|requirement| (words::requirement(requirement), has(requirement, labels)))
}

fn has(requirement: &Requirement, labels: &Labels) -> String {
    let key = &requirement.key;
    match (&requirement.operator, labels.get(key)) {
        (Operator::In(_) | Operator::NotIn(_) | Operator::DoesNotExist, Some(value)) => {
            format!("{key}={value}")
        }
        (Operator::In(_) | Operator::NotIn(_) | Operator::DoesNotExist | Operator::Exists, _) => {
            format!("no label {key}")
        }
    }
}
