//! Why a Service leads nowhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::policy::PolicyLookup;
use lb_common::service::{FrontendFlags, FrontendKey};

use crate::explain::facts::Facts;
use crate::explain::trace::{NoEndpoints, Unserved, Why};
use crate::frontend::FrontendSlots;
use lb_core::admin::context::ServiceContext;
use lb_core::cluster::ServiceType;
use lb_core::names::{EndpointConditions, IssueLine};

/// Endpoints that are named.
const NAMED: usize = 3;

/// Returns why there is no frontend at what is dialed; `None` if no Service has the address.
pub(super) fn without_frontend<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    dialed: &[SocketAddr],
) -> Option<Unserved> {
    let Some(service) = &facts.context.service else {
        let why = match is_claimed(facts, dialed) {
            true => Some(Why::UnknownPort),
            false => unallocated(facts, dialed).map(Why::Unallocated),
        };
        return why.map(|why| Unserved { port: None, service: None, why });
    };
    let protocol = facts.wanted.protocol;
    let has = |port: u16| {
        let mut ports = service.ports.iter().filter(|known| known.protocol == protocol);
        ports.any(|known| known.port == port || known.node_port == port)
    };
    let outside = facts.is_outside();
    let is_balanced = service.service_type == ServiceType::LoadBalancer;
    let why = match facts.wanted.port.filter(|port| !has(*port)) {
        Some(port) => {
            let has = service.ports.iter().map(|port| (port.port, port.protocol)).collect();
            Why::NoSuchPort { port, has }
        }
        None if let Some(why) = not_served(facts, service, dialed, outside) => why,
        None if outside && is_balanced && service.lb_ips.is_empty() => Why::NoLoadBalancerAddress,
        None if outside => Why::NotExternal(service.service_type),
        None => Why::NotProgrammed(dialed.to_vec()),
    };
    let name = service.name.to_string();
    Some(Unserved { port: Some(name.clone()), service: Some(name), why })
}

/// Which of the addresses is in the range of ClusterIPs, while no Service has any address there.
fn unallocated<T: PolicyLookup>(facts: &Facts<'_, T>, dialed: &[SocketAddr]) -> Option<IpAddr> {
    let snapshot = &facts.view.snapshot;
    let is_free = |ip: &IpAddr| {
        let addr = Addr::from_ip(*ip);
        let key = FrontendKey::wildcard(addr);
        snapshot.service_cidrs.iter().any(|cidr| cidr.contains(&addr))
            && snapshot.frontends.iter().all(|known| known.key != key)
    };
    dialed.iter().map(SocketAddr::ip).find(is_free)
}

/// Why an address outside the cluster that the Service has is not served, as the agent says in its issues.
fn not_served<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    service: &ServiceContext,
    dialed: &[SocketAddr],
    outside: bool,
) -> Option<Why> {
    let object = format!("Service {}", service.name);
    let mut issues = facts.view.names.issues.iter().filter(|issue| issue.object == object);
    let about = |issue: &&IssueLine<'_>| {
        let is_external = ["spec.externalIPs", "status.loadBalancer"]
            .iter()
            .any(|of| issue.field.starts_with(of));
        let names = |at: &SocketAddr| issue.message.starts_with(&format!("{} ", at.ip()));
        is_external && (outside && dialed.is_empty() || dialed.iter().any(names))
    };
    let found = issues.find(about)?;
    Some(Why::NotServed { field: found.field.to_string(), because: found.message.to_string() })
}

/// Whether a Service has one of the addresses.
fn is_claimed<T: PolicyLookup>(facts: &Facts<'_, T>, dialed: &[SocketAddr]) -> bool {
    let frontends = &facts.view.snapshot.frontends;
    dialed.iter().any(|at| {
        let key = FrontendKey::wildcard(Addr::from_ip(at.ip()));
        let mut found = frontends.iter().filter(|known| known.key == key);
        found.any(|known| !known.has(FrontendFlags::ADDRESS_ONLY))
    })
}

/// Returns why the client may not use the frontend, if it may not.
pub(super) fn source_range<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    frontend: &FrontendSlots,
) -> Option<Why> {
    if !frontend.has(FrontendFlags::SOURCE_RANGES) {
        return None;
    }
    let ranges = facts.view.snapshot.fields.source_ranges.get(&frontend.frontend.service_id);
    let ranges = ranges.map(Vec::as_slice).unwrap_or_default();
    let of_family = |ip: &&IpAddr| ip.is_ipv4() == frontend.socket().is_ipv4();
    let clients: Vec<IpAddr> = facts.context.src.ips.iter().filter(of_family).copied().collect();
    let admitted = |ip: &IpAddr| ranges.iter().any(|range| range.contains(&Addr::from_ip(*ip)));
    let is_refused = !clients.iter().any(admitted);
    is_refused.then(|| Why::SourceRange { clients, ranges: ranges.to_vec() })
}

/// Returns why a frontend has no backend: on this node, or on another one, of whose tables the traffic policy Local makes others.
pub(super) fn without_backend<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    frontend: &FrontendSlots,
    of_node: Option<Arc<str>>,
) -> Why {
    let service = facts.context.service.as_ref();
    let at = frontend.socket();
    if of_node.is_some()
        && let Some(ready_on) = service.map(ready_on).filter(|nodes| !nodes.is_empty())
    {
        return Why::NoLocal { frontend: at, external: false, node: of_node, ready_on };
    }
    if !frontend.has(FrontendFlags::ELSEWHERE) {
        // The records of an agent alone tell why.
        let records = service.filter(|_| facts.context.agent);
        let is_complete = facts.context.complete;
        let cause = records.map_or(NoEndpoints::Unknown, |it| no_endpoints(it, is_complete));
        return Why::NoEndpoints { frontend: at, cause };
    }
    let ready_on = service.map(ready_on).unwrap_or_default();
    Why::NoLocal { frontend: at, external: frontend.is_external(), node: None, ready_on }
}

/// The nodes with ready endpoints of a Service.
pub(super) fn ready_on(service: &ServiceContext) -> Vec<Arc<str>> {
    let endpoints = service.endpoints.iter();
    let ready = endpoints.filter(|endpoint| endpoint.conditions == EndpointConditions::Ready);
    let nodes: BTreeSet<Arc<str>> = ready.filter_map(|endpoint| endpoint.node.clone()).collect();
    nodes.into_iter().filter(|node| !node.is_empty()).collect()
}

/// What the records of an agent say. Without the Pods of other nodes, they say nothing of what the selector selects.
fn no_endpoints(service: &ServiceContext, is_complete: bool) -> NoEndpoints {
    let has_selector = service.selector.iter().next().is_some();
    let endpoints = service.endpoints.as_slice();
    match (endpoints, has_selector, service.selected) {
        // Endpoints without a port for this one, or the maps are about to change.
        ([], false, _) if service.n_endpoints > 0 => NoEndpoints::Unknown,
        _ if endpoints.iter().any(|it| it.conditions == EndpointConditions::Ready) => {
            NoEndpoints::Unknown
        }
        ([], false, _) => NoEndpoints::NoSelector,
        ([], true, _) if !is_complete => NoEndpoints::Unknown,
        ([], true, 0) => NoEndpoints::NoPod {
            selector: service.selector.clone(),
            similar: service.similar.clone(),
        },
        ([], true, selected) if service.addressless == selected => {
            let first = service.without_address.iter().take(NAMED).cloned().collect();
            NoEndpoints::NoAddress { selected, first, pods: Vec::new() }
        }
        ([], true, selected) => NoEndpoints::NotEndpoints { selected },
        (endpoints, _, _) => {
            let first = endpoints.iter().take(NAMED).cloned().collect();
            NoEndpoints::NotReady { n: service.n_endpoints, first, pods: Vec::new() }
        }
    }
}
