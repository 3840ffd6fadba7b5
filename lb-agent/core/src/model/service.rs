//! One Service: its record and its slices → its ports with their frontends and backends.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::service::MAGLEV_SLOTS;

use super::external::Outside;
use super::rules::{self, Rules};
use super::{
    DesiredBackend, DesiredPort, DesiredService, External, Health, PortExtra, Scope, Wildcard,
    backend, frontend,
};
use crate::annotation::Annotation;
use crate::cluster::{
    Algorithm, Cluster, EndpointSlice, Extra, Family, Name, Prefix, Service, ServicePort,
    TrafficPolicy, Weighted,
};
use crate::issue::{Issue, ObjectRef};

/// What the Service should be, and what is wrong with it.
pub(super) fn model(
    cluster: &Cluster,
    rules: &Rules,
    (name, service): (&Name, &Service),
) -> (DesiredService, Vec<Issue>) {
    let slices: Vec<_> = cluster.slices_of(name).collect();
    let mut issues = Vec::new();
    let mut outside = Outside::new(cluster, rules, (name, service), &mut issues);
    let mut ports = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
    for port in &service.ports {
        for family in [Family::V4, Family::V6] {
            let own = service.cluster_ips.iter().filter(|addr| Family::of(addr) == family);
            if own.clone().next().is_none() {
                continue;
            }
            let mut frontends = Vec::new();
            for addr in own {
                match frontend::owner(cluster, name, addr, port) {
                    Ok(()) => frontends.push(*addr),
                    Err(older) => issues.push(frontend::contested(name, addr, port, older)),
                }
            }
            frontends.sort_unstable();
            frontends.dedup();
            let externals = outside.frontends(port, family, &mut issues);
            if frontends.is_empty() && externals.is_empty() {
                continue;
            }
            let inside = ServicePortInputs { cluster, service, slices: &slices, port, family };
            ports.push(inside.port(frontends, externals));
        }
    }
    issues.extend(unrestricted(name, service, &ports));
    issues.extend(ports.iter().filter_map(|port| crowded(name, port)));
    let cluster_ips = service.cluster_ips.iter();
    let own = cluster_ips.filter(|addr| frontend::owns_wildcard(cluster, name, addr));
    let own = own.map(|addr| Wildcard { addr: *addr, external: false });
    let wildcards: Vec<Wildcard> = own.chain(outside.wildcards()).collect();
    let desired = DesiredService {
        service_type: service.service_type,
        created: service.created,
        wildcards: wildcards.into(),
        ports: ports.into(),
        health: health(cluster, service, &slices),
    };
    (desired, issues)
}

/// What one port in one family is made from.
struct ServicePortInputs<'a> {
    cluster: &'a Cluster,
    service: &'a Service,
    slices: &'a [(Name, &'a EndpointSlice)],
    port: &'a ServicePort,
    family: Family,
}

impl ServicePortInputs<'_> {
    fn port(&self, frontends: Vec<Addr>, externals: Vec<External>) -> DesiredPort {
        let extra = self.service.extra.as_deref();
        let local_only = self.service.internal_policy == TrafficPolicy::Local;
        let external_local =
            extra.is_some_and(|extra| extra.external_policy == TrafficPolicy::Local);
        let mut port = DesiredPort {
            port_name: Arc::clone(&self.port.name),
            protocol: self.port.protocol,
            port: self.port.port,
            family: self.family,
            frontends: frontends.into(),
            local_only,
            anywhere: false,
            backends: Box::default(),
            extra: None,
        };
        let external_local = external_local && !externals.is_empty();
        let mut own =
            PortExtra { external_local, externals: externals.into(), ..Default::default() };
        if let Some(extra) = extra {
            own.affinity_secs = extra.affinity_secs.map_or(0, Into::into);
            own.algorithm = extra.algorithm;
            own.by_stack = extra.by_stack;
            own.source_ranges = self.source_ranges(extra, &own.externals);
        }
        if own != PortExtra::default() {
            port.extra = Some(Box::new(own));
        }
        let chosen = backend::backends(self.cluster, self.slices, &port);
        port.anywhere = chosen.anywhere;
        let weights = extra.map(|extra| weights(extra, &chosen.backends, self.slices));
        if let Some(weights) = weights.filter(|weights| !weights.is_empty()) {
            port.extra.get_or_insert_default().weights = weights;
        }
        port.backends = chosen.backends.into();
        port
    }

    /// Returns the clients that may use the gated frontends; `None` = all clients.
    ///
    /// Ranges of one family leave the other open, as with kube-proxy; an empty list (no valid
    /// entry) means no client, not all clients. An address of this node in them stands for all its processes, whichever of its
    /// addresses they use.
    fn source_ranges(&self, extra: &Extra, externals: &[External]) -> Option<Box<[Prefix]>> {
        let given = extra.source_ranges.as_deref()?;
        if !externals.iter().any(|external| external.scope.is_gated()) {
            return None;
        }
        let of_family = |prefix: &&Prefix| prefix.family() == self.family;
        let mut ranges: Vec<Prefix> = given.iter().filter(of_family).copied().collect();
        if ranges.is_empty() && !given.is_empty() {
            return None;
        }
        let node = rules::addrs_of_node(self.cluster);
        if node.iter().any(|addr| ranges.iter().any(|range| range.contains(addr))) {
            let own = node.into_iter().filter(|addr| Family::of(addr) == self.family);
            ranges.extend(own.map(Prefix::host));
        }
        ranges.sort_unstable();
        ranges.dedup();
        Some(ranges.into())
    }
}

/// The weights in the order of the backends, with their common divisor taken out; empty when all are the same.
fn weights(
    extra: &Extra,
    backends: &[DesiredBackend],
    slices: &[(Name, &EndpointSlice)],
) -> Box<[u8]> {
    if extra.weights.is_empty() {
        return Box::default();
    }
    let endpoints = || slices.iter().flat_map(|(_, slice)| &slice.endpoints);
    let weight = |backend: &DesiredBackend| {
        let is_it = |whose: &Weighted| match whose {
            Weighted::Addr(addr) => *addr == backend.addr,
            Weighted::Pod(pod) => endpoints()
                .any(|endpoint| endpoint.addr == backend.addr && endpoint.pod == Some(&**pod)),
        };
        extra.weights.iter().find(|(whose, _)| is_it(whose)).map_or(1, |(_, weight)| *weight)
    };
    let mut weights: Vec<u8> = backends.iter().map(weight).collect();
    let divisor = weights.iter().copied().fold(0, common_divisor);
    if divisor > 1 {
        weights.iter_mut().for_each(|weight| *weight /= divisor);
    }
    if weights.iter().all(|weight| *weight == 1) { Box::default() } else { weights.into() }
}

fn common_divisor(a: u8, b: u8) -> u8 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// An issue when source ranges are of one family and the Service is open in the other.
fn unrestricted(name: &Name, service: &Service, ports: &[DesiredPort]) -> Option<Issue> {
    service.extra.as_ref()?.source_ranges.as_ref()?;
    let open = ports.iter().find(|port| {
        port.extra.as_ref().is_some_and(|extra| {
            extra.source_ranges.is_none()
                && extra.externals.iter().any(|external| external.scope.is_gated())
        })
    })?;
    let family = family_name(open.family);
    let message =
        format!("contains no {family} range: its {family} addresses are open to all clients");
    let field = "spec.loadBalancerSourceRanges";
    Some(Issue::new(ObjectRef::new("Service", name), field, message))
}

/// An issue when the annotation asks for a table that cannot be made.
fn crowded(name: &Name, port: &DesiredPort) -> Option<Issue> {
    let n = port.maglev()?.count();
    if n <= MAGLEV_SLOTS as usize {
        return None;
    }
    let message = format!(
        "maglev supports {MAGLEV_SLOTS} endpoints, but port {} has {n} {} endpoints: using random",
        port.port,
        family_name(port.family)
    );
    let field = Annotation::Algorithm.field();
    Some(Issue::new(ObjectRef::new("Service", name), field, message))
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// How many ready endpoints are on this node, by address: what `healthCheckNodePort` answers. Terminating ones do not
/// count even while they serve, so that load balancers turn away in time (KEP-1669). A Pod of both families counts
/// once.
fn health(
    cluster: &Cluster,
    service: &Service,
    slices: &[(Name, &EndpointSlice)],
) -> Option<Health> {
    let port = service.extra.as_ref()?.health_port?;
    let ready = |family: Family| {
        let slices = slices.iter().map(|(_, slice)| slice);
        let slices = slices.filter(|slice| slice.family == family && !slice.ports.is_empty());
        let local = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| {
            let local = endpoint.node.is_some_and(|node| **node == *cluster.node_name());
            endpoint.conditions.ready && local
        });
        local.map(|endpoint| endpoint.addr).collect::<BTreeSet<_>>().len()
    };
    let local_ready = ready(Family::V4).max(ready(Family::V6));
    Some(Health { port, local_ready: u16::try_from(local_ready).unwrap_or(u16::MAX) })
}

impl Scope {
    /// Whether `spec.loadBalancerSourceRanges` is about such addresses: not about those of nodes.
    pub const fn is_gated(self) -> bool {
        match self {
            Self::LoadBalancer | Self::ExternalIp => true,
            Self::NodePort | Self::Localhost => false,
        }
    }
}

impl Default for PortExtra {
    fn default() -> Self {
        Self {
            external_local: false,
            externals: Box::default(),
            affinity_secs: 0,
            algorithm: Algorithm::Random,
            by_stack: false,
            source_ranges: None,
            weights: Box::default(),
        }
    }
}
