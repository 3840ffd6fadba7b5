//! Node → record.
#![forbid(unsafe_code)]

use k8s_openapi::api::core::v1;

use super::Watched;
use super::field::{self, Findings};
use crate::cluster::{Change, Event, Kind, Node};

/// Label with the node's zone.
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that the cluster autoscaler is about to remove.
const TAINT_DELETING: &str = "ToBeDeletedByClusterAutoscaler";

impl Watched for v1::Node {
    const KIND: Kind = Kind::Node;
    type Record = Node;

    fn record(&self, findings: &mut Findings) -> Option<Node> {
        let addresses = self.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let addresses = addresses.enumerate().filter_map(|(i, given)| {
            let is_ip = matches!(given.type_.as_str(), "InternalIP" | "ExternalIP");
            let path = format!("status.addresses[{i}].address");
            is_ip.then(|| field::address(findings, &path, &given.address)).flatten()
        });
        let addresses = addresses.collect();
        let mut taints = self.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        Some(Node {
            addresses,
            zone: zone(self).map(Into::into),
            deleting: taints.any(|taint| taint.key == TAINT_DELETING),
        })
    }

    fn event(change: Change<Node>) -> Event {
        Event::Node(change)
    }
}

/// The node's zone.
pub(super) fn zone(node: &v1::Node) -> Option<&str> {
    field::value(node.metadata.labels.as_ref(), LABEL_ZONE).filter(|zone| !zone.is_empty())
}
