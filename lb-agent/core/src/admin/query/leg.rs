//! The policies about one Pod in one direction, each rule compared with the flow: what of it applies, and what is
//! missing of the rest.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;

use super::OwnerRecord;
use crate::admin::context::{self, Lacking, Leg, Miss};
use crate::cluster::{
    self, Cluster, Labels, Name, NamedPort, NamespaceRecords as _, Namespaces, Peer, Pod,
    PodSelector, PortMatch, PortSpec, Rule, Selector,
};
use crate::model::policy::PolicyDirection;

pub(super) struct OtherEnd<'a> {
    pub(super) addr: Addr,
    pub(super) holder: &'a OwnerRecord<'a>,
}

/// The flow at the Pod.
#[derive(Clone, Copy)]
pub(super) struct FlowAtPod {
    /// Whether it enters the Pod: then the port is the Pod's own.
    pub(super) direction: PolicyDirection,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// Returns the policies about this Pod.
pub(super) fn leg(
    cluster: &Cluster,
    subject: (&Name, &Pod),
    peer: &OtherEnd<'_>,
    flow: FlowAtPod,
) -> Leg {
    let (name, pod) = subject;
    let mut policies: Vec<_> = cluster
        .policies()
        .filter(|(_, policy)| list(policy, flow.direction).is_some())
        .filter(|(policy_name, policy)| cluster.selects(policy_name, &policy.subject, subject))
        .collect();
    policies.sort_by_key(|(name, policy)| (policy.tier, policy.priority, *name));
    let ports: &[NamedPort] = match (flow.direction, peer.holder) {
        (PolicyDirection::Ingress, _) => &pod.ports,
        (PolicyDirection::Egress, OwnerRecord::Pod(_, other, _)) => &other.ports,
        (PolicyDirection::Egress, _) => &[],
    };
    let against = Against { cluster, peer, flow, ports };
    let policies = policies.into_iter().map(|(name, policy)| against.policy(name, policy));
    Leg {
        direction: flow.direction,
        subject: name.clone(),
        peer: peer.addr.to_ip(),
        port: flow.port,
        policies: policies.collect(),
        by_record: None,
    }
}

fn list(policy: &cluster::Policy, direction: PolicyDirection) -> Option<&[Rule]> {
    match direction {
        PolicyDirection::Ingress => policy.ingress.as_deref(),
        PolicyDirection::Egress => policy.egress.as_deref(),
    }
}

/// What rules are compared with.
struct Against<'a> {
    cluster: &'a Cluster,
    peer: &'a OtherEnd<'a>,
    flow: FlowAtPod,
    /// What names of ports mean in the destination.
    ports: &'a [NamedPort],
}

impl Against<'_> {
    fn policy(&self, name: &Name, policy: &cluster::Policy) -> context::PolicyContext {
        let rules = list(policy, self.flow.direction).unwrap_or_default();
        context::PolicyContext {
            name: name.clone(),
            tier: policy.tier,
            shadow: policy.shadow,
            rules: rules.iter().map(|rule| self.rule(name, rule)).collect(),
        }
    }

    fn rule(&self, policy: &Name, rule: &Rule) -> context::RuleContext {
        let peer = |peer: &Peer| context::PeerContext {
            wants: peer.clone(),
            misses: self.misses(policy, peer),
        };
        context::RuleContext {
            action: rule.action,
            peers: rule.peers.as_ref().map(|peers| peers.iter().map(peer).collect()),
            ports: rule.ports.as_ref().map(|ports| ports.iter().map(|p| self.port(p)).collect()),
        }
    }

    fn misses(&self, policy: &Name, peer: &Peer) -> Vec<Miss> {
        match (peer, self.peer.holder) {
            (Peer::Block { prefix, excepts }, _) => {
                let addr = &self.peer.addr;
                if !prefix.contains(addr) {
                    return vec![Miss::Block];
                }
                let except = excepts.iter().find(|except| except.contains(addr));
                except.map(|except| Miss::Except(*except)).into_iter().collect()
            }
            (Peer::Pods(wanted), OwnerRecord::Pod(name, pod, _)) if !pod.host_network => {
                self.pod_misses(policy, wanted, name, pod)
            }
            (Peer::Pods(_), _) => vec![Miss::NotPod],
            (Peer::Nodes(wanted), OwnerRecord::Node(_, _, labels)) => {
                missing(wanted, labels).map(Miss::Label).collect()
            }
            (Peer::Nodes(_), _) => vec![Miss::NotNode],
        }
    }

    fn pod_misses(&self, policy: &Name, wanted: &PodSelector, name: &Name, pod: &Pod) -> Vec<Miss> {
        let mut misses = Vec::new();
        match &wanted.namespaces {
            Namespaces::Own if name.namespace != policy.namespace => misses.push(Miss::Namespace),
            Namespaces::Own => {}
            Namespaces::Selected(namespaces) => {
                let labels = self.cluster.namespace_labels(&name.namespace);
                misses.extend(missing(namespaces, &labels).map(Miss::NamespaceLabel));
            }
        }
        misses.extend(missing(&wanted.pods, &pod.labels).map(Miss::Label));
        misses
    }

    fn port(&self, port: &PortMatch) -> context::PortContext {
        let is_protocol = port.protocol.is_none_or(|protocol| protocol == self.flow.protocol);
        let meaning = |name: &str| {
            let is = |known: &&NamedPort| {
                *known.name == *name && port.protocol.is_none_or(|p| p == known.protocol)
            };
            self.ports.iter().find(is).map(|known| known.port)
        };
        let (means, is_port) = match &port.ports {
            PortSpec::All => (None, true),
            PortSpec::Range(first, last) => (None, (first..=last).contains(&&self.flow.port)),
            PortSpec::Named(name) => {
                let means = meaning(name);
                (means, means == Some(self.flow.port))
            }
        };
        context::PortContext { wants: port.clone(), matches: is_protocol && is_port, means }
    }
}

/// Returns the requirements of a selector that the labels do not satisfy, with what they have instead.
fn missing(selector: &Selector, labels: &Labels) -> impl Iterator<Item = Lacking> {
    let failing = selector.0.iter().filter(|requirement| !requirement.holds(labels));
    failing.map(|requirement| Lacking {
        wants: requirement.clone(),
        has: labels.get(&requirement.key).cloned(),
    })
}
