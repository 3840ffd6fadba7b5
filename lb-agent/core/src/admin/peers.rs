//! Who the ends of flows are, with what policies select them by: for policies that are made from what was seen.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::{Labels, Name, Prefix};

/// Which Pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersWanted {
    /// All Pods of this namespace.
    pub namespace: Arc<str>,
    /// And all of the namespaces of the Pods that have these addresses.
    pub addrs: Vec<IpAddr>,
}

/// What is known of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeers {
    /// Pods with addresses of their own.
    pub pods: Vec<LabeledPod>,
    /// The ranges that Pods of all nodes get their addresses from.
    pub pod_ranges: Vec<Prefix>,
    /// Which Pods resolve names: namespace and labels; `None` = there is no Service `kube-dns` with a selector.
    pub dns: Option<(Arc<str>, Labels)>,
    /// Whether the Pods of all nodes are known.
    pub complete: bool,
}

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LabeledPod {
    /// Its name.
    pub name: Name,
    /// Those of its addresses that are not another's.
    pub ips: Vec<IpAddr>,
    /// `metadata.labels`.
    pub labels: Labels,
}
