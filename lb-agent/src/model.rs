//! Desired state: which frontends there should be, and which backends serve each of them.
//!
//! A pure function of the cluster, computed again only for services that something touched.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::addr::Addr;

use crate::cluster::{Cluster, Dirty, Family, Name, ServiceType};
use crate::issue::Issue;

/// What the maps should say.
#[derive(Debug, Default)]
pub struct Desired {
    /// By Service. Not to be changed but by [`Desired::update`].
    pub services: BTreeMap<Name, DesiredService>,
    issues: BTreeMap<Name, Vec<Issue>>,
}

/// Services whose desired state changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Their names; those that are gone have no entry in [`Desired::services`].
    pub services: Vec<Name>,
}

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    /// `spec.type`.
    pub service_type: ServiceType,
    /// ClusterIPs all of whose undefined ports are refused.
    pub wildcards: Vec<Addr>,
    /// One for each service port and family that has a frontend.
    pub ports: Vec<DesiredPort>,
}

/// One service port in one family: IPv4 and IPv6 of a Service are served independently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort {
    /// Name of the service port, may be empty.
    pub port_name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port clients dial.
    pub port: u16,
    /// Family of the frontends and backends.
    pub family: Family,
    /// Addresses clients dial, sorted.
    pub frontends: Vec<Addr>,
    /// Whether the frontends use the backends on this node only (`internalTrafficPolicy: Local`).
    pub local_only: bool,
    /// The backends, without duplicates, sorted by [`DesiredBackend::class`], address and port.
    pub backends: Vec<DesiredBackend>,
}

/// An endpoint chosen for a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// For which traffic it was chosen.
    pub class: Class,
    /// Its address.
    pub addr: Addr,
    /// Its port.
    pub port: u16,
    /// Ready, or only chosen because no endpoint is.
    pub state: EndpointState,
    /// The Pod, if the slice says so.
    pub pod: Option<Name>,
    /// Name of its node.
    pub node: Option<Arc<str>>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
}

/// For which traffic an endpoint was chosen. Sorted by it, both lists are contiguous parts of one slot range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Traffic policy Cluster only.
    Cluster,
    /// Cluster and Local.
    Both,
    /// Local only: it terminates, and other nodes have ready ones.
    Local,
}

/// In which condition a chosen endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointState {
    /// Ready.
    Ready,
    /// Shutting down but still serving, and none is ready (KEP-1669).
    Terminating,
}

impl Desired {
    /// Computes the dirty services again and says which of them came out differently.
    pub fn update(&mut self, _cluster: &Cluster, _dirty: &Dirty) -> Changed {
        Changed::default()
    }

    /// The issues found while modelling.
    pub fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.values().flatten()
    }
}
