//! What the programs have to know of this node and of the address ranges.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;
use lb_common::config::Settings;

use super::{DesiredNode, rules};
use crate::cluster::{Cluster, Family, Name};
use crate::issue::{Issue, ObjectRef};

/// What should be in the map `settings`, and what has no room there.
pub(super) fn model(cluster: &Cluster) -> (DesiredNode, Vec<Issue>) {
    let mut issues = Vec::new();
    let mut service_cidrs = Vec::new();
    for (name, prefix) in cluster.service_cidrs() {
        if service_cidrs.contains(prefix) {
            continue;
        }
        if service_cidrs.len() == Settings::ZERO.service_cidrs.len() {
            let message = format!(
                "{prefix} exceeds the number of supported CIDRs: packets to its unallocated addresses are routed instead of dropped"
            );
            issues.push(Issue::new(ObjectRef::new("ServiceCIDR", name), "spec.cidrs", message));
        } else {
            service_cidrs.push(*prefix);
        }
    }
    service_cidrs.sort_unstable();
    let most = Settings::ZERO.tunnel_ports.len();
    for port in cluster.tunnel_ports().iter().skip(most) {
        let message = format!(
            "tunnels use more than {most} UDP ports: packets from Pods to port {port} are not dropped"
        );
        let node = Name::new("", cluster.node_name());
        issues.push(Issue::new(ObjectRef::new("Node", &node), "", message));
    }
    let node = |family| rules::primary(cluster, family).unwrap_or(Addr::NONE);
    let desired = DesiredNode {
        node4: node(Family::V4),
        node6: node(Family::V6),
        service_cidrs: service_cidrs.into(),
        addrs: rules::addrs_of_node(cluster).into(),
        tunnel_ports: cluster.tunnel_ports().iter().take(most).copied().collect(),
        other_proxy: cluster.is_beside_another_proxy(),
    };
    (desired, issues)
}
