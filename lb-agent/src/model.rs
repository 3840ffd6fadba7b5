//! Desired state: which frontends there should be, and which backends serve each of them.
//!
//! A pure function of the cluster, computed again only for services that something touched.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::addr::Addr;

use crate::cluster::{Cluster, Dirty, Family, Name, Service, ServiceType, TrafficPolicy};
use crate::issue::Issue;

mod backend;
mod frontend;
pub mod topology;

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
    pub wildcards: Box<[Addr]>,
    /// One for each service port and family that has a frontend.
    pub ports: Box<[DesiredPort]>,
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
    pub frontends: Box<[Addr]>,
    /// Whether the frontends use the backends on this node only (`internalTrafficPolicy: Local`).
    pub local_only: bool,
    /// The backends, without duplicates, sorted by [`DesiredBackend::class`], address and port.
    pub backends: Box<[DesiredBackend]>,
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

impl From<Vec<Name>> for Changed {
    fn from(services: Vec<Name>) -> Self {
        Self { services }
    }
}

impl Desired {
    /// Computes the dirty services again and says which of them came out differently.
    pub fn update(&mut self, cluster: &Cluster, dirty: &Dirty) -> Changed {
        let mut changed = Changed::default();
        let mut first = Vec::new();
        for name in &dirty.services {
            let modelled = cluster.service(name).map(|(name, service)| {
                let (desired, issues) = model(cluster, name, service);
                (name.clone(), desired, issues)
            });
            let Some((name, desired, issues)) = modelled else {
                self.issues.remove(name);
                if self.services.remove(name).is_some() {
                    changed.services.push(name.clone());
                }
                continue;
            };
            if issues.is_empty() {
                self.issues.remove(&name);
            } else {
                self.issues.insert(name.clone(), issues);
            }
            if self.services.is_empty() {
                changed.services.push(name.clone());
                first.push((name, desired));
            } else if self.services.get(&name) != Some(&desired) {
                changed.services.push(name.clone());
                self.services.insert(name, desired);
            }
        }
        if !first.is_empty() {
            // A tree made of a sorted list at once is packed; one that grows in order is little more than half full.
            self.services = first.into_iter().collect();
        }
        changed
    }

    /// The issues found while modelling.
    pub fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.values().flatten()
    }
}

/// One Service, from its record and its slices.
fn model(cluster: &Cluster, name: &Name, service: &Service) -> (DesiredService, Vec<Issue>) {
    let slices: Vec<_> = cluster.slices_of(name).collect();
    let mut issues = Vec::new();
    let mut ports = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
    for port in &service.ports {
        for family in [Family::V4, Family::V6] {
            let mut frontends = Vec::new();
            for addr in service.cluster_ips.iter().filter(|addr| Family::of(addr) == family) {
                match frontend::owner(cluster, name, addr, port) {
                    Ok(()) => frontends.push(*addr),
                    Err(older) => issues.push(frontend::contested(name, addr, port, older)),
                }
            }
            if frontends.is_empty() {
                continue;
            }
            frontends.sort_unstable();
            frontends.dedup();
            let local_only = service.internal_policy == TrafficPolicy::Local;
            let mut backends = backend::backends(cluster, &slices, port, family);
            if local_only {
                // All its frontends are ClusterIPs: nothing can choose the backends of other nodes.
                backends.retain(|backend| backend.class != Class::Cluster);
            }
            ports.push(DesiredPort {
                port_name: Arc::clone(&port.name),
                protocol: port.protocol,
                port: port.port,
                family,
                frontends: frontends.into(),
                local_only,
                backends: backends.into(),
            });
        }
    }
    let mut wildcards = service.cluster_ips.to_vec();
    wildcards.retain(|addr| frontend::owns_wildcard(cluster, name, addr));
    let (wildcards, ports) = (wildcards.into(), ports.into());
    (DesiredService { service_type: service.service_type, wildcards, ports }, issues)
}
