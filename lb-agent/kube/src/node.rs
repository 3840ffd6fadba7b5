//! Node → record.
#![forbid(unsafe_code)]

use std::num::NonZeroI64;

use k8s_openapi::api::core::v1;
use lb_common::addr::Addr;

use super::field::{self, Findings};
use super::notation;
use super::watched::Watched;
use lb_core::cluster::{Change, Event, Kind, Node, Prefix};

/// Label with the node's zone.
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that the cluster autoscaler is about to remove.
const TAINT_DELETING: &str = "ToBeDeletedByClusterAutoscaler";

/// Annotations with the addresses of tunnel devices.
const TUNNELS: [&str; 6] = [
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
    "network.cilium.io/ipv4-cilium-host",
];

impl Watched for v1::Node {
    const KIND: Kind = Kind::Node;
    type Record = Node;

    fn record(&self, findings: &mut Findings) -> Option<Node> {
        let given = self.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let given: Vec<_> = given.enumerate().collect();
        let mut addresses: Vec<Addr> = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for (i, given) in given.iter().filter(|(_, given)| given.type_ == wanted) {
                let path = format!("status.addresses[{i}].address");
                addresses.extend(field::address(findings, &path, &given.address));
            }
        }
        let created = self.metadata.creation_timestamp.as_ref();
        let mut taints = self.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        Some(Node {
            addresses: addresses.into(),
            tunnels: tunnels(self),
            pod_cidrs: pod_cidrs(self, findings),
            zone: zone(self).map(Into::into),
            created: created.and_then(|time| NonZeroI64::new(time.0.as_second())),
            lost: is_lost(self),
            deleting: taints.any(|taint| taint.key == TAINT_DELETING),
            labels: field::labels(self.metadata.labels.as_ref()),
        })
    }

    fn event(change: Change<Node>) -> Event {
        Event::Node(change)
    }
}

/// Whether the control plane has lost contact to the node: what it says there is old.
fn is_lost(node: &v1::Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "Unknown")
}

/// What Calico says of the node's tunnel devices.
fn tunnels(node: &v1::Node) -> Box<[Addr]> {
    let value = |key: &&str| field::value(node.metadata.annotations.as_ref(), key);
    let texts = TUNNELS.iter().filter_map(value);
    texts.filter_map(|text| text.parse().ok()).map(Addr::from_ip).collect()
}

/// `spec.podCIDRs`, or `spec.podCIDR` where a manifest has only that.
fn pod_cidrs(node: &v1::Node, findings: &mut Findings) -> Box<[Prefix]> {
    let Some(spec) = &node.spec else { return Box::default() };
    let list = spec.pod_cidrs.as_deref().unwrap_or_default();
    let texts = if list.is_empty() { spec.pod_cidr.as_slice() } else { list };
    let mut prefixes = Vec::with_capacity(texts.len());
    for text in texts.iter().filter(|text| !text.is_empty()) {
        match notation::prefix(text) {
            Ok(prefix) => prefixes.push(prefix),
            Err(err) => {
                findings.add("spec.podCIDRs", format!("`{text}` is {err}: ignored"));
            }
        }
    }
    prefixes.into()
}

/// The node's zone.
pub(super) fn zone(node: &v1::Node) -> Option<&str> {
    field::value(node.metadata.labels.as_ref(), LABEL_ZONE).filter(|zone| !zone.is_empty())
}
