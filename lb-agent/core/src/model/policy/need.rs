//! Whether this node needs the Pods of all nodes. If not, it watches only its own: in a large cluster, each Pod that comes or
//! goes would be told to each node.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::is_subject;
use super::rules::Subjects;
use crate::cluster::{Name, Peer, Policy, PortSpec, Rule, Snapshot};

/// Returns whether a policy that selects a Pod of this node has rules about other Pods; or whether addresses alone do not
/// tell which Pods are another node's, since the CNI plugin does not take them from `spec.podCIDRs`.
pub fn needs_all_pods(cluster: &Snapshot) -> bool {
    has_strays(cluster) || is_asked_by_policies(cluster)
}

/// Whether Pods have addresses outside of the ranges of their node, as far as this node knows.
fn has_strays(cluster: &Snapshot) -> bool {
    if cluster.has_stray_endpoints() || cluster.nodes().any(|(_, node)| !node.tunnels.is_empty()) {
        return true;
    }
    let this = cluster.nodes().find(|(name, _)| cluster.is_this_node(name));
    let ranges = this.map_or(&[][..], |(_, node)| &node.pod_cidrs);
    let own = cluster.all_pods().filter(|(_, pod)| is_subject(cluster, pod));
    let mut ips = own.flat_map(|(_, pod)| &pod.ips);
    ips.any(|ip| !ranges.iter().any(|range| range.contains(ip)))
}

fn is_asked_by_policies(cluster: &Snapshot) -> bool {
    let policies: Vec<(&Name, &Arc<Policy>)> =
        cluster.policies().filter(|(_, policy)| is_about_pods(policy)).collect();
    !policies.is_empty() && Subjects::select(cluster, &policies).selects_any()
}

fn is_about_pods(policy: &Policy) -> bool {
    let [ingress, egress] =
        [&policy.ingress, &policy.egress].map(|rules| rules.as_deref().unwrap_or_default());
    ingress.iter().chain(egress).any(has_pods) || egress.iter().any(has_names)
}

fn has_pods(rule: &Rule) -> bool {
    let peers = rule.peers.as_deref().unwrap_or_default();
    peers.iter().any(|peer| matches!(peer, Peer::Pods(_)))
}

/// The name of a port means what the destination's containers call so.
fn has_names(rule: &Rule) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    ports.iter().any(|port| matches!(port.ports, PortSpec::Named(_)))
}

#[cfg(test)]
mod tests;
