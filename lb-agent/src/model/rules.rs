//! What the operator decided about addresses outside the cluster.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;

use crate::cluster::{Cluster, Family, Prefix};

/// The operator's decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `--node-port-addresses`.
    pub node_ports: NodePortAddresses,
    /// `--localhost-node-ports`: whether host processes reach NodePorts at 127.0.0.1 and ::1.
    pub localhost: bool,
    /// `--external-ip-cidrs`: what `spec.externalIPs` may hold. Empty by default, so that none is served: whoever may
    /// write a Service could take any address with them (CVE-2020-8554), and Kubernetes is about to leave them out.
    pub external_ips: Box<[Prefix]>,
}

/// Which addresses of this node have NodePorts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The first of each family in the Node's `status.addresses` (KEP-3866).
    Primary,
    /// All in these ranges.
    Within(Box<[Prefix]>),
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            node_ports: NodePortAddresses::Primary,
            localhost: true,
            external_ips: Box::default(),
        }
    }
}

impl Rules {
    /// The addresses of this node that have NodePorts, loopback excepted.
    pub fn node_port_addrs(&self, cluster: &Cluster) -> Vec<Addr> {
        let NodePortAddresses::Within(prefixes) = &self.node_ports else {
            return [Family::V4, Family::V6]
                .into_iter()
                .filter_map(|family| primary(cluster, family))
                .collect();
        };
        let mut addrs = addrs_of_node(cluster);
        addrs.retain(|addr| prefixes.iter().any(|prefix| prefix.contains(addr)));
        addrs
    }
}

/// The address of this node by which its family is known: the first in the Node object; without that, as with
/// manifests, the first of the host.
pub fn primary(cluster: &Cluster, family: Family) -> Option<Addr> {
    let node = cluster.this_node().map(|node| &*node.addresses).unwrap_or_default();
    node.iter().chain(cluster.host_addrs()).find(|addr| Family::of(addr) == family).copied()
}

/// All addresses of this node, sorted: those of its devices, as far as they were told, and those in the Node object.
pub fn addrs_of_node(cluster: &Cluster) -> Vec<Addr> {
    let node = cluster.this_node().map(|node| &*node.addresses).unwrap_or_default();
    let mut addrs: Vec<Addr> = cluster.host_addrs().iter().chain(node).copied().collect();
    addrs.sort_unstable();
    addrs.dedup();
    addrs
}
