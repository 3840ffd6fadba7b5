//! The records: what we keep of each object, compact, since ten thousand of them must fit into a few MiB.
//!
//! Everything in them is valid: what was not has become an [`crate::issue::Issue`] on the way here.
#![forbid(unsafe_code)]

use std::num::{NonZeroI64, NonZeroU16, NonZeroU32};
use std::sync::Arc;

use lb_common::addr::Addr;
use serde::{Deserialize, Serialize};

use super::{Endpoints, Prefix};
use crate::uid::Uid;

pub use self::policy::{
    Action, Namespaces, Operator, Peer, PodSelector, Policy, PortMatch, PortSpec, Requirement,
    Rule, Selector, Tier,
};

mod policy;

/// IP family of an address, a frontend, a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(addr: &Addr) -> Self {
        if addr.is_v4() { Self::V4 } else { Self::V6 }
    }
}

/// Type of a Service that has frontends (`spec.type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reachable at its ClusterIPs.
    ClusterIp,
    /// Also at a port of every node.
    NodePort,
    /// Also at the addresses of a load balancer.
    LoadBalancer,
}

impl ServiceType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ClusterIp, Self::NodePort, Self::LoadBalancer];

    /// The name in `spec.type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Which endpoints may serve: all of the cluster or only those of the client's node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// All.
    #[default]
    Cluster,
    /// Those on this node.
    Local,
}

/// A Service with frontends: not headless, not ExternalName, not another proxy's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `spec.type`.
    pub service_type: ServiceType,
    /// `spec.clusterIPs`, at most one per family.
    pub cluster_ips: Box<[Addr]>,
    /// `spec.ports`, the valid ones, in the order of the object.
    pub ports: Box<[ServicePort]>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `metadata.creationTimestamp` in seconds since 1970; the older of two Services keeps a contested address.
    pub created: Option<NonZeroI64>,
    /// `spec.selector`: only to say why there are no endpoints.
    pub selector: Labels,
    /// Rare fields; `None` if all of them have their defaults.
    pub extra: Option<Box<Extra>>,
}

impl Service {
    /// The addresses outside the cluster that it names: of load balancers, then `spec.externalIPs`.
    pub fn external_addrs(&self) -> impl Iterator<Item = Addr> {
        let extra = self.extra.iter();
        extra.flat_map(|extra| extra.lb_ips.iter().chain(&extra.external_ips)).copied()
    }
}

/// The fields of a Service that few have, apart so that the others stay small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `status.loadBalancer.ingress[].ip` of a LoadBalancer, but for those with `ipMode: Proxy` (KEP-1860).
    pub lb_ips: Box<[Addr]>,
    /// Whether there are such with `ipMode: Proxy`.
    pub proxied: bool,
    /// `spec.externalIPs`.
    pub external_ips: Box<[Addr]>,
    /// `spec.loadBalancerSourceRanges`: `None` = all clients; an empty list (no valid entry) = no client.
    pub source_ranges: Option<Box<[Prefix]>>,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` with `sessionAffinity: ClientIP`; `None` = no affinity.
    pub affinity_secs: Option<NonZeroU32>,
    /// `spec.healthCheckNodePort` of a LoadBalancer with `externalTrafficPolicy: Local`.
    pub health_port: Option<NonZeroU16>,
    /// Annotation `lb-agent.io/algorithm`.
    pub algorithm: Algorithm,
    /// Annotation `lb-agent.io/path: stack`: its flows go through the IP stack.
    pub by_stack: bool,
    /// Annotation `lb-agent.io/weights`; an endpoint that is not named has weight 1.
    pub weights: Box<[(Weighted, u8)]>,
}

/// How a backend is chosen for a new flow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Algorithm {
    /// At random.
    #[default]
    Random,
    /// For clients outside the cluster by a hash of the flow that is the same on every node; else at random.
    Maglev,
    /// Of two random ones the one with fewer live flows.
    LeastConnections,
}

impl Algorithm {
    /// The name in the annotation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Maglev => "maglev",
            Self::LeastConnections => "least-connections",
        }
    }
}

/// Which endpoints a weight is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weighted {
    /// The one with this address.
    Addr(Addr),
    /// Those of the Pod with this name in the Service's namespace.
    Pod(Arc<str>),
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty when it has none; endpoints are matched by it.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port clients dial.
    pub port: u16,
    /// `nodePort`, of a NodePort or a LoadBalancer.
    pub node_port: Option<NonZeroU16>,
}

/// An EndpointSlice of family IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// Name of the Service it belongs to, in its own namespace (label `kubernetes.io/service-name`).
    pub service: Arc<str>,
    /// `addressType`.
    pub family: Family,
    /// `ports`; those without a number are left out.
    pub ports: Box<[SlicePort]>,
    /// `endpoints` with a usable address of the family.
    pub endpoints: Endpoints,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time` in milliseconds since 1970: the start of
    /// `kubeproxy_network_programming_duration_seconds`.
    pub trigger_ms: Option<u64>,
}

/// One entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// Name of the Service port it serves.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port the endpoints listen on; may differ from slice to slice for a named target port.
    pub port: u16,
}

/// For clients where an endpoint is meant (KEP-2433, KEP-4444).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// `forZones[].name`.
    pub zones: Box<[Arc<str>]>,
    /// `forNodes[].name`.
    pub nodes: Box<[Arc<str>]>,
}

/// Conditions of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Conditions {
    /// May get new connections; absent means true.
    pub ready: bool,
    /// Answers, whether or not it is terminating; absent means true.
    pub serving: bool,
    /// Is being shut down; absent means false.
    pub terminating: bool,
}

impl Conditions {
    /// How useful an endpoint with these conditions is; more is better. Of several with one address the best counts.
    pub const fn rank(self) -> u8 {
        match self {
            Self { ready: true, .. } => 2,
            Self { serving: true, terminating: true, .. } => 1,
            Self { .. } => 0,
        }
    }
}

/// A Pod of any node that has not finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// A number for `metadata.uid`; 0 when it has none, as in manifests. One that is made again under the same name is
    /// another Pod.
    pub uid: u64,
    /// `metadata.uid` itself, for records of evidence.
    pub uuid: Uid,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: Option<NonZeroI64>,
    /// Whether it has a `metadata.deletionTimestamp`.
    pub deleting: bool,
    /// Annotation `lb-agent.io/allowed-sources`: what it may send from beside its own addresses.
    pub sources: Option<Box<[Prefix]>>,
    /// `status.podIPs`.
    pub ips: Box<[Addr]>,
    /// Annotation `lb-agent.io/path: stack`: its flows go through the IP stack.
    pub by_stack: bool,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
    /// Whether it is a kube-proxy.
    pub kube_proxy: bool,
    /// `spec.nodeName`; empty before it is scheduled.
    pub node: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.containers[].ports` that have a name, those of init containers that keep running included.
    pub ports: Box<[NamedPort]>,
}

/// A port of a container, by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedPort {
    /// `name`.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// `containerPort`.
    pub port: u16,
}

/// The labels of an object, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Labels(Box<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// From pairs of key and value in any order; of two with one key the last counts.
    pub fn new(pairs: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let sorted: std::collections::BTreeMap<_, _> = pairs.into_iter().collect();
        Self(sorted.into_iter().collect())
    }

    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// All pairs of key and value.
    pub fn iter(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> {
        self.0.iter()
    }

    /// The same, to be replaced by shared strings of the same content.
    pub(super) fn strings_mut(&mut self) -> impl Iterator<Item = &mut Arc<str>> {
        self.0.iter_mut().flat_map(|(key, value)| [key, value])
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `status.addresses` of types InternalIP and ExternalIP, the internal ones first.
    pub addresses: Box<[Addr]>,
    /// Its addresses in the network of the Pods, as far as annotations of the CNI (Calico) tell.
    pub tunnels: Box<[Addr]>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Box<[Prefix]>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: Option<NonZeroI64>,
    /// Whether nothing has been heard of it for a while (condition `Ready` is `Unknown`).
    pub lost: bool,
    /// Whether the cluster autoscaler is about to remove it (taint `ToBeDeletedByClusterAutoscaler`): load
    /// balancers must see `/healthz` fail (KEP-3836).
    pub deleting: bool,
    /// `metadata.labels`.
    pub labels: Labels,
}

/// A ServiceCIDR: where ClusterIPs come from (KEP-1880).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `spec.cidrs`.
    pub prefixes: Box<[Prefix]>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.labels`.
    pub labels: Labels,
    /// Whether it is being deleted: its policies hold until it is gone, since they may go before its Pods.
    pub terminating: bool,
}
