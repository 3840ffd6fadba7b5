//! A policy with the Pods that it is about, and those that its rules let in or out.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::admin::Remark;
use crate::admin::policy::{DeniedFlows, PolicyView, RuleView, Selected};
use crate::cluster::{self, Cluster, Name, NamespaceRecords as _, Peer};

/// Pods that are named.
const EXAMPLES: usize = 3;

/// Returns the policy with this name, if there is one.
pub fn policy(cluster: &Cluster, wanted: &Name) -> Option<PolicyView> {
    let (name, policy) = cluster.policies().find(|(name, _)| *name == wanted)?;
    let kind = policy.tier.kind();
    let list = |rules: &Option<Box<[cluster::Rule]>>| {
        Some(rules.as_ref()?.iter().map(|one| rule(cluster, name, one)).collect())
    };
    let about = |issue: &&crate::issue::Issue| {
        issue.object.kind == kind
            && *issue.object.namespace == *name.namespace
            && *issue.object.name == *name.name
    };
    let subjects = cluster.all_pods().filter(|(pod_name, pod)| {
        !pod.host_network && cluster.selects(name, &policy.subject, (pod_name, pod))
    });
    Some(PolicyView {
        name: name.clone(),
        tier: policy.tier,
        priority: policy.priority,
        shadow: policy.shadow,
        generation: policy.generation,
        subject: (policy.subject.clone(), selected(subjects.map(|(name, _)| name))),
        ingress: list(&policy.ingress),
        egress: list(&policy.egress),
        // The counts are not part of the records.
        default_denied: DeniedFlows::default(),
        issues: cluster.issues().filter(about).map(Remark::from).collect(),
    })
}

fn rule(cluster: &Cluster, policy: &Name, rule: &cluster::Rule) -> RuleView {
    let peer = |peer: &Peer| (peer.clone(), matching(cluster, policy, peer));
    RuleView {
        action: rule.action,
        name: Arc::clone(&rule.name),
        peers: rule.peers.as_ref().map(|peers| peers.iter().map(peer).collect()),
        ports: rule.ports.as_ref().map(|ports| ports.to_vec()),
        hits: 0,
        counted_in: None,
    }
}

/// Returns the Pods or nodes that a peer of this policy selects.
fn matching(cluster: &Cluster, policy: &Name, peer: &Peer) -> Selected {
    let pods = || cluster.all_pods().filter(|(_, pod)| !pod.host_network);
    match peer {
        Peer::Pods(wanted) => {
            let is = |pod: &(&Name, &cluster::Pod)| cluster.selects(policy, wanted, *pod);
            selected(pods().filter(is).map(|(name, _)| name))
        }
        Peer::Nodes(wanted) => {
            let nodes = cluster.nodes().filter(|(_, node)| wanted.matches(&node.labels));
            selected(nodes.map(|(name, _)| name))
        }
        Peer::Block { prefix, excepts } => {
            let is = |pod: &cluster::Pod| {
                pod.ips.iter().any(|addr| {
                    prefix.contains(addr) && !excepts.iter().any(|except| except.contains(addr))
                })
            };
            selected(pods().filter(|(_, pod)| is(pod)).map(|(name, _)| name))
        }
    }
}

fn selected<'a>(found: impl Iterator<Item = &'a Name>) -> Selected {
    let mut selected = Selected::default();
    for name in found {
        selected.count += 1;
        if selected.examples.len() < EXAMPLES {
            selected.examples.push(name.clone());
        }
    }
    selected
}
