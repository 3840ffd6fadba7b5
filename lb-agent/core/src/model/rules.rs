//! What the operator decided about addresses outside the cluster.
#![forbid(unsafe_code)]

use std::fmt;

use lb_common::addr::Addr;

use crate::cluster::{Cluster, Family, Prefix, Version};

/// kube-proxy's feature gate `AllowServiceExternalIPs` is on before this version and off from it on (KEP-5707).
const WITHOUT_EXTERNAL_IPS: Version = (1, 40);

/// The operator's decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `--node-port-addresses`.
    pub node_ports: NodePortAddresses,
    /// `--localhost-node-ports`: whether host processes reach NodePorts at 127.0.0.1 and ::1.
    pub localhost: bool,
    /// `--external-ip-cidrs`: what `spec.externalIPs` may hold; `None` = what the cluster's Kubernetes lets it hold.
    /// Whoever may write a Service can take an address with them (CVE-2020-8554), so Kubernetes is about to leave
    /// them out.
    pub external_ips: Option<Box<[Prefix]>>,
}

/// Which addresses in `spec.externalIPs` are served, and why. Never those of Pods, Services and nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalIps {
    /// Those in `--external-ip-cidrs`.
    Ranges,
    /// None: `--external-ip-cidrs` has no range.
    NoRanges,
    /// All: this version of Kubernetes has them on.
    On(Version),
    /// None: this version of Kubernetes has them off.
    Off(Version),
    /// None: no API server has said its version.
    Unknown,
}

impl ExternalIps {
    /// In one word, for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ranges | Self::NoRanges => "flag",
            Self::On(_) | Self::Off(_) => "version",
            Self::Unknown => "unknown",
        }
    }

    /// Whether any may be served.
    pub fn is_on(self) -> bool {
        matches!(self, Self::Ranges | Self::On(_))
    }
}

impl fmt::Display for ExternalIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ranges => f.write_str("served within --external-ip-cidrs"),
            Self::NoRanges => f.write_str("not served: --external-ip-cidrs is none"),
            Self::On((major, minor)) => {
                write!(f, "served, because Kubernetes {major}.{minor} enables them (--external-ip-cidrs can restrict them)")
            }
            Self::Off((major, minor)) => {
                write!(f, "not served, because Kubernetes {major}.{minor} disables them (--external-ip-cidrs can allow ranges)")
            }
            Self::Unknown => f.write_str(
                "not served: the version of the API server is unknown (--external-ip-cidrs can allow ranges)",
            ),
        }
    }
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
        Self { node_ports: NodePortAddresses::Primary, localhost: true, external_ips: None }
    }
}

impl Rules {
    /// Which addresses in `spec.externalIPs` are served.
    pub fn external_ips(&self, cluster: &Cluster) -> ExternalIps {
        match (&self.external_ips, cluster.server_version()) {
            (Some(ranges), _) if ranges.is_empty() => ExternalIps::NoRanges,
            (Some(_), _) => ExternalIps::Ranges,
            (None, Some(version)) if version < WITHOUT_EXTERNAL_IPS => ExternalIps::On(version),
            (None, Some(version)) => ExternalIps::Off(version),
            (None, None) => ExternalIps::Unknown,
        }
    }

    /// Why an address in `spec.externalIPs` is not served, if that is by the operator's or the cluster's decision.
    pub fn refuses_external_ip(&self, cluster: &Cluster, addr: &Addr) -> Option<String> {
        let contains = |ranges: &[Prefix]| ranges.iter().any(|range| range.contains(addr));
        match self.external_ips(cluster) {
            ExternalIps::On(_) => None,
            ExternalIps::Ranges if self.external_ips.as_deref().is_some_and(contains) => None,
            ExternalIps::Off((major, minor)) => Some(format!(
                "is not in --external-ip-cidrs, and Kubernetes {major}.{minor} disables externalIPs"
            )),
            ExternalIps::Ranges | ExternalIps::NoRanges | ExternalIps::Unknown => {
                Some("is not in --external-ip-cidrs".to_owned())
            }
        }
    }

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
