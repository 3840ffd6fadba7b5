//! Desired state: which frontends there should be, and which backends serve each of them.
//!
//! A pure function of the cluster, computed again only for services that something touched.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::num::{NonZeroI64, NonZeroU16};
use std::sync::Arc;

use lb_common::addr::Addr;

use self::rules::Rules;
use self::topology::{Lists, Rejection};
use crate::cluster::{Algorithm, Cluster, Dirty, Family, Name, Prefix, ServiceType};
use crate::issue::Issue;

mod backend;
mod external;
mod frontend;
mod node;
pub mod policy;
pub mod rules;
mod service;
pub(crate) mod share;
pub mod topology;

#[cfg(test)]
mod tests;

/// What the maps should say.
#[derive(Debug, Default)]
pub struct Desired {
    /// By Service. Not to be changed but by [`Desired::update`].
    pub services: BTreeMap<Name, DesiredService>,
    /// This node and the address ranges.
    pub node: DesiredNode,
    rules: Rules,
    issues: BTreeMap<Name, Vec<Issue>>,
    node_issues: Vec<Issue>,
}

/// What the programs have to know of this node and of the address ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredNode {
    /// The address that stands for host processes as clients, IPv4; `::` = none.
    pub node4: Addr,
    /// The same for IPv6.
    pub node6: Addr,
    /// Ranges of ClusterIPs, sorted; at most as many as [`lb_common::config::Settings`] holds.
    pub service_cidrs: Box<[Prefix]>,
    /// All addresses of this node, sorted: backends there are processes of this host.
    pub addrs: Box<[Addr]>,
    /// UDP ports of this node's tunnels, at most as many as `Settings` holds.
    pub tunnel_ports: Box<[u16]>,
    /// Whether flows that are older than ours may be another proxy's.
    pub other_proxy: bool,
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
    /// `metadata.creationTimestamp` in seconds since 1970, if known.
    pub created: Option<NonZeroI64>,
    /// Its addresses that no other Service answers for: an element of their own says that they are a Service's.
    pub wildcards: Box<[Wildcard]>,
    /// One for each service port and family that has a frontend.
    pub ports: Box<[DesiredPort]>,
    /// What `healthCheckNodePort` says; `None` when the Service has none.
    pub health: Option<Health>,
}

/// An address of a Service as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wildcard {
    /// The address.
    pub addr: Addr,
    /// Whether it is one outside the cluster: packets to its undefined ports pass. Those to a ClusterIP are refused.
    pub external: bool,
}

/// The answer of a Service's `healthCheckNodePort` on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The port to answer on.
    pub port: NonZeroU16,
    /// Number of ready endpoints on this node; terminating ones do not count.
    pub local_ready: u16,
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
    /// Its ClusterIPs, sorted.
    pub frontends: Box<[Addr]>,
    /// Whether these use the backends on this node only (`internalTrafficPolicy: Local`).
    pub local_only: bool,
    /// Whether some node has an endpoint: if so, a list without backends is so by the traffic policy.
    pub anywhere: bool,
    /// The backends, without duplicates, sorted by [`DesiredBackend::class`], address and port.
    pub backends: Box<[DesiredBackend]>,
    /// Rare settings; `None` if all of them have their defaults.
    pub extra: Option<Box<PortExtra>>,
}

impl DesiredPort {
    /// The lists of backends that its frontends use.
    pub fn lists(&self) -> Lists {
        let internal = !self.frontends.is_empty();
        let extra = self.extra.as_deref();
        let external = extra.is_some_and(|extra| !extra.externals.is_empty());
        Lists {
            cluster: (internal && !self.local_only) || external,
            local: (internal && self.local_only) || extra.is_some_and(|extra| extra.external_local),
        }
    }
}

impl DesiredPort {
    /// The backends of a Maglev table, with their places in [`DesiredPort::backends`]: those that clients outside the
    /// cluster get. `None` when the port has none, for want of the annotation or of an address outside.
    pub fn maglev(&self) -> Option<impl Iterator<Item = (usize, &DesiredBackend)>> {
        let extra = self.extra.as_deref()?;
        if extra.algorithm != Algorithm::Maglev || extra.externals.is_empty() {
            return None;
        }
        Some(self.backends.iter().enumerate().filter(|(_, backend)| match backend.class {
            Class::Both => true,
            Class::Cluster => !extra.external_local,
            Class::Local => extra.external_local,
        }))
    }
}

/// Settings that few service ports have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortExtra {
    /// Whether clients outside the cluster get the backends on this node only (`externalTrafficPolicy: Local`).
    pub external_local: bool,
    /// The frontends for clients outside the cluster and at localhost, sorted.
    pub externals: Box<[External]>,
    /// Timeout of session affinity in seconds; 0 = none.
    pub affinity_secs: u32,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Whether flows of Pods to it go through the IP stack.
    pub by_stack: bool,
    /// The clients of [`Scope::is_gated`] frontends, sorted; `None` = all clients.
    pub source_ranges: Option<Box<[Prefix]>>,
    /// Weights in the order of the backends; empty when all are 1.
    pub weights: Box<[u8]>,
}

/// A frontend that is not a ClusterIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct External {
    /// Address clients dial.
    pub addr: Addr,
    /// The port clients dial.
    pub port: u16,
    /// What the address is.
    pub scope: Scope,
}

/// The kind of the address of a frontend that is not a ClusterIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// A load balancer's.
    LoadBalancer,
    /// In `spec.externalIPs`.
    ExternalIp,
    /// This node's.
    NodePort,
    /// Loopback, for processes of this host.
    Localhost,
}

/// An endpoint chosen for a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// For which traffic it was chosen.
    pub class: Class,
    /// Its address.
    pub addr: Addr,
    /// Port number, in host byte order.
    pub port: u16,
    /// Ready, or only chosen because no endpoint is.
    pub state: EndpointState,
    /// Whether it is a Pod (`targetRef`), so that its end is known.
    pub is_pod: bool,
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
    /// Nothing yet, under these rules.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// What the operator decided.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The Services with a `healthCheckNodePort`: name, port, number of ready endpoints on this node.
    pub fn health(&self) -> impl Iterator<Item = (&Name, u16, u32)> {
        self.services.iter().filter_map(|(name, service)| {
            let health = service.health?;
            Some((name, health.port.get(), health.local_ready.into()))
        })
    }

    /// The NodePorts that this node serves, each perhaps more than once.
    pub fn node_ports(&self) -> impl Iterator<Item = u16> {
        let ports = self.services.values().flat_map(|service| &service.ports);
        let externals = ports.flat_map(|port| &port.extra).flat_map(|extra| &extra.externals);
        let node_ports = externals.filter(|external| match external.scope {
            Scope::NodePort | Scope::Localhost => true,
            Scope::LoadBalancer | Scope::ExternalIp => false,
        });
        node_ports.map(|external| external.port)
    }

    /// The endpoints of a Service port that serve no client on this node: address, port, reason.
    pub fn rejected(
        cluster: &Cluster,
        service: &Name,
        port: &DesiredPort,
    ) -> Vec<(Addr, u16, Rejection)> {
        let slices: Vec<_> = cluster.slices_of(service).collect();
        backend::rejected(cluster, &slices, port)
    }

    /// Computes the dirty services again and says which of them came out differently.
    pub fn update(&mut self, cluster: &Cluster, dirty: &Dirty) -> Changed {
        (self.node, self.node_issues) = node::model(cluster);
        let mut changed = Changed::default();
        let mut first = Vec::new();
        for name in &dirty.services {
            let modelled = cluster.service(name).map(|found| {
                let (desired, issues) = service::model(cluster, &self.rules, found);
                (found.0.clone(), desired, issues)
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
        self.issues.values().flatten().chain(&self.node_issues)
    }
}
