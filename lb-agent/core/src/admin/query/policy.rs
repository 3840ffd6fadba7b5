//! A policy with the Pods that it is about, and those that its rules let in or out.
#![forbid(unsafe_code)]

use super::{is, namespace_labels, words};
use crate::admin::policy::{Denied, Rule, Selected, View};
use crate::cluster::{self, Cluster, Name, Namespaces, Peer, PodSelector};

/// Pods that are named.
const EXAMPLES: usize = 3;

/// The policy with this name, if there is one.
pub fn policy(cluster: &Cluster, full: &str) -> Option<View> {
    let (name, policy) = cluster.policies().find(|(name, _)| is(name, full))?;
    let kind = match policy.tier {
        cluster::Tier::NetworkPolicy => "NetworkPolicy",
        cluster::Tier::Admin | cluster::Tier::Baseline => "ClusterNetworkPolicy",
    };
    let list = |direction: &str, rules: &Option<Box<[cluster::Rule]>>| {
        let rules = rules.as_ref()?.iter().enumerate();
        Some(rules.map(|(i, one)| rule(cluster, name, (direction, i), one)).collect())
    };
    let about = |issue: &&crate::issue::Issue| {
        issue.object.kind == kind
            && *issue.object.namespace == *name.namespace
            && *issue.object.name == *name.name
    };
    Some(View {
        name: name.to_string(),
        kind: kind.to_owned(),
        tier: policy.tier.name().to_owned(),
        priority: policy.priority,
        shadow: policy.shadow,
        generation: policy.generation,
        subject: {
            let wants = words::pods(&name.namespace, &policy.subject);
            let pods = cluster.all_pods().filter(|(pod_name, pod)| {
                !pod.host_network && selects(cluster, name, &policy.subject, (pod_name, pod))
            });
            selected(String::new(), wants, pods.map(|(name, _)| name))
        },
        ingress: list("ingress", &policy.ingress),
        egress: list("egress", &policy.egress),
        // The counts are another's.
        default_denied: Denied::default(),
        issues: cluster
            .issues()
            .filter(about)
            .map(|issue| format!("{}: {}", issue.field, issue.message))
            .collect(),
    })
}

fn rule(
    cluster: &Cluster,
    policy: &Name,
    (direction, index): (&str, usize),
    rule: &cluster::Rule,
) -> Rule {
    let path = format!("{direction}[{index}]");
    let side = if direction == "ingress" { "from" } else { "to" };
    let peers = rule.peers.as_ref().map(|peers| {
        let peers = peers.iter().enumerate();
        peers.map(|(i, one)| peer(cluster, policy, format!("{path}.{side}[{i}]"), one)).collect()
    });
    Rule {
        peers,
        action: format!("{:?}", rule.action),
        name: rule.name.to_string(),
        ports: rule.ports.as_ref().map(|ports| ports.iter().map(words::port).collect()),
        path,
        hits: 0,
        counted_in: String::new(),
    }
}

fn peer(cluster: &Cluster, policy: &Name, path: String, peer: &Peer) -> Selected {
    let wants = words::peer(&policy.namespace, peer);
    let pods = || cluster.all_pods().filter(|(_, pod)| !pod.host_network);
    match peer {
        Peer::Pods(wanted) => {
            let is = |(name, pod): &(&Name, &cluster::Pod)| {
                selects(cluster, policy, wanted, (name, pod))
            };
            selected(path, wants, pods().filter(is).map(|(name, _)| name))
        }
        Peer::Nodes(wanted) => {
            let nodes = cluster.nodes().filter(|(_, node)| wanted.matches(&node.labels));
            selected(path, wants, nodes.map(|(name, _)| name))
        }
        Peer::Block { prefix, excepts } => {
            let is = |pod: &cluster::Pod| {
                pod.ips.iter().any(|addr| {
                    prefix.contains(addr) && !excepts.iter().any(|except| except.contains(addr))
                })
            };
            selected(path, wants, pods().filter(|(_, pod)| is(pod)).map(|(name, _)| name))
        }
    }
}

fn selected<'a>(path: String, wants: String, found: impl Iterator<Item = &'a Name>) -> Selected {
    let mut count = 0;
    let mut examples = Vec::new();
    for name in found {
        count += 1;
        if examples.len() < EXAMPLES {
            examples.push(name.to_string());
        }
    }
    Selected { path, wants, count, examples }
}

/// Whether a selector of this policy selects the Pod.
pub(super) fn selects(
    cluster: &Cluster,
    policy: &Name,
    selector: &PodSelector,
    (name, pod): (&Name, &cluster::Pod),
) -> bool {
    let here = match &selector.namespaces {
        Namespaces::Own => name.namespace == policy.namespace,
        Namespaces::Selected(namespaces) => {
            namespaces.matches(&namespace_labels(cluster, &name.namespace))
        }
    };
    here && selector.pods.matches(&pod.labels)
}
