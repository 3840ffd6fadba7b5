//! Whether this node needs the Pods of all nodes. If not, it watches only its own: in a large cluster, each Pod that comes or
//! goes would be told to each node.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use lb_common::addr::Addr;

use super::area::Area;
use super::doubt::{has_names, has_pods};
use super::others;
use super::rules::Subjects;
use crate::cluster::{Name, Policy, Prefix, Snapshot};

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
    let own = cluster.all_pods().filter(|(name, pod)| cluster.is_subject(name, pod));
    let mut ips = own.flat_map(|(_, pod)| &pod.ips);
    ips.any(|ip| !ranges.iter().any(|range| range.contains(ip)))
}

/// Where Pods may be that are not known: in the ranges of other nodes, or anywhere. `None` if all Pods are known.
pub(super) fn unknown(cluster: &Snapshot) -> Option<Area> {
    if cluster.knows_all_pods() {
        return None;
    }
    let ranges = match has_strays(cluster) {
        true => everywhere(),
        false => others::pod_ranges(cluster),
    };
    Some(Area::of(ranges.iter().map(|range| (range, &[][..]))))
}

fn everywhere() -> BTreeSet<Prefix> {
    let [v4, v6] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()].map(Addr::from_ip);
    [v4, v6].into_iter().filter_map(|addr| Prefix::new(addr, 0)).collect()
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

#[cfg(test)]
mod tests;
