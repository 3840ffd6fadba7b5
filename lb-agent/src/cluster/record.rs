//! The records: what we keep of each object, compact, since ten thousand of them must fit into a few MiB.
//!
//! Everything in them is valid: what was not has become an [`crate::issue::Issue`] on the way here.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lb_common::addr::Addr;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceType {
    /// Reachable at its ClusterIPs.
    ClusterIp,
    /// Also at a port of every node.
    NodePort,
    /// Also at the addresses of a load balancer.
    LoadBalancer,
}

impl ServiceType {
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
    pub created: Option<i64>,
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
    pub endpoints: Box<[Endpoint]>,
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

/// One entry of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// `addresses[0]`; the others are interchangeable with it and unused, as in kube-proxy.
    pub addr: Addr,
    /// `conditions`, with the defaults of absent ones filled in.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// Name of the Pod in `targetRef`, in the slice's namespace.
    pub pod: Option<Arc<str>>,
}

/// Conditions of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conditions {
    /// May get new connections; absent means true.
    pub ready: bool,
    /// Answers, whether or not it is terminating; absent means as `ready`.
    pub serving: bool,
    /// Is being shut down; absent means false.
    pub terminating: bool,
}

/// A Pod of this node that has not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `status.podIPs`.
    pub ips: Box<[Addr]>,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `status.addresses` of types InternalIP and ExternalIP.
    pub addresses: Box<[Addr]>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Whether the cluster autoscaler is about to remove it (taint `ToBeDeletedByClusterAutoscaler`): load
    /// balancers must see `/healthz` fail (KEP-3836).
    pub deleting: bool,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.labels`, sorted by key.
    pub labels: Box<[(Arc<str>, Arc<str>)]>,
}
