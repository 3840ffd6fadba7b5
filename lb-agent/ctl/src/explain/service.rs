//! The Service: which frontend is dialed, which backends it may select, and when there is none, why.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::policy::PolicyLookup;
use lb_common::service::{FrontendFlags, FrontendKey};

use crate::explain::facts::Facts;
use crate::explain::trace::{BackendEvidence, Excluded, ServiceHop, Unserved, Who};
use crate::explain::unserved;
use crate::frontend::FrontendSlots;
use crate::network::socket;
use crate::view::BackendState;
use lb_core::admin::context::{
    EndKind, EndpointContext, FlowEnd, Party, ServiceContext, ServicePortContext,
};
use lb_core::cluster::Name;
use lb_core::names::EndpointConditions;

/// Where the flow goes.
#[derive(Debug)]
pub(super) enum Route {
    /// To what is dialed.
    Plain,
    /// Through a frontend.
    Service(Box<FrontendMatch>),
    /// Nowhere.
    Unserved(Unserved),
}

/// A frontend and what it leads to.
#[derive(Debug)]
pub(super) struct FrontendMatch {
    /// The Service.
    pub(super) hop: ServiceHop,
    /// Backends that a new flow may get, each once.
    pub(super) targets: Vec<Target>,
}

/// Where a flow may end.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The backend, or what is dialed.
    pub(super) backend: BackendEvidence,
    /// The frontend by which the flow comes, if it does.
    pub(super) through: Option<SocketAddr>,
    /// That frontend's flows go through the IP stack.
    pub(super) by_stack: bool,
}

impl Target {
    /// The end that is dialed itself.
    pub(super) fn plain(at: SocketAddr, end: &FlowEnd) -> Self {
        let pod = end.name.clone().filter(|_| end.kind == EndKind::Pod);
        let state = BackendState::Endpoint(EndpointConditions::Ready);
        let backend = BackendEvidence { at, pod, node: end.node.clone(), state };
        Self { backend, through: None, by_stack: false }
    }

    /// Whether a Pod gets back to itself, through a Service.
    pub(super) fn is_through_itself<T: PolicyLookup>(&self, facts: &Facts<'_, T>) -> bool {
        self.through.is_some() && facts.context.src.ips.contains(&self.backend.at.ip())
    }

    /// What it is called.
    pub(super) fn who(&self) -> Who {
        Who::of(self.backend.pod.as_ref(), self.backend.at.ip())
    }
}

/// Returns where the flow goes.
pub(super) fn route<T: PolicyLookup>(facts: &Facts<'_, T>) -> Route {
    let outside = facts.is_outside();
    let dialed = dialed(facts, outside);
    let frontends = &facts.view.snapshot.frontends;
    let protocol = facts.wanted.protocol;
    let key =
        |at: &SocketAddr| FrontendKey::new(Addr::from_ip(at.ip()), Be16::new(at.port()), protocol);
    let frontend_at = |at: &SocketAddr| frontends.iter().find(|frontend| frontend.key == key(at));
    let Some(frontend) = dialed.iter().find_map(frontend_at) else {
        return unserved::without_frontend(facts, &dialed).map_or(Route::Plain, Route::Unserved);
    };
    let local = outside && frontend.has(FrontendFlags::EXTERNAL_LOCAL);
    let ids = if local { &frontend.local_ids } else { &frontend.backend_ids };
    let ids: BTreeSet<u32> = ids.iter().copied().collect();
    let targets: Vec<Target> = ids.iter().filter_map(|id| target(facts, frontend, *id)).collect();
    let (targets, of_node) = match local_elsewhere(facts, frontend) {
        Some((node, targets)) => (targets, Some(node)),
        None => (targets, None),
    };
    let port = port_name(facts, frontend);
    let why = unserved::source_range(facts, frontend).or_else(|| {
        targets.is_empty().then(|| unserved::without_backend(facts, frontend, of_node))
    });
    if let Some(why) = why {
        let name = facts.context.service.as_ref().map(|service| service.name.to_string());
        let service = Some(name.unwrap_or_else(|| port.clone()));
        return Route::Unserved(Unserved { port: Some(port), service, why });
    }
    let hop = hop(facts, frontend, port, &targets);
    Route::Service(Box::new(FrontendMatch { hop, targets }))
}

/// The endpoints that a Service whose internal traffic policy is Local has on the source's node, if that is another one. The maps
/// of this node have those of this node.
fn local_elsewhere<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    frontend: &FrontendSlots,
) -> Option<(Arc<str>, Vec<Target>)> {
    let service = facts.context.service.as_ref().filter(|service| service.internal_local)?;
    let node = facts.context.src.node.as_ref().filter(|node| !facts.is_here(Some(node)))?;
    let at = frontend.socket();
    if frontend.is_external() || !service.cluster_ips.contains(&at.ip()) {
        return None;
    }
    let is_dialed = |port: &&ServicePortContext| {
        (port.port, port.protocol) == (at.port(), facts.wanted.protocol)
    };
    let port = service.ports.iter().find(is_dialed)?;
    let local = |endpoint: &&EndpointContext| {
        endpoint.node.as_ref() == Some(node)
            && (&endpoint.port_name, endpoint.protocol) == (&port.name, port.protocol)
            && endpoint.at.is_ipv4() == at.is_ipv4()
    };
    let of = |conditions| {
        let all = service.endpoints.iter().filter(local);
        let found = all.filter(move |endpoint| endpoint.conditions == conditions);
        found.map(|endpoint| Target {
            backend: BackendEvidence {
                at: endpoint.at,
                pod: endpoint.pod.clone(),
                node: endpoint.node.clone(),
                state: BackendState::Endpoint(endpoint.conditions),
            },
            through: Some(at),
            by_stack: frontend.has(FrontendFlags::BY_STACK),
        })
    };
    // Terminating ones serve while none is ready (KEP-1669).
    let mut targets: Vec<Target> = of(EndpointConditions::Ready).collect();
    if targets.is_empty() {
        targets = of(EndpointConditions::Serving).collect();
    }
    Some((Arc::clone(node), targets))
}

/// What the service port is called: by the agent's records, by the name table, else by its number in the maps.
fn port_name<T: PolicyLookup>(facts: &Facts<'_, T>, frontend: &FrontendSlots) -> String {
    let id = frontend.frontend.service_id;
    let named = facts.view.directory.service_port(id);
    match &facts.context.service {
        Some(service) if named.starts_with('#') => {
            format!("{}:{}", service.name, frontend.socket().port())
        }
        _ => named,
    }
}

fn hop<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    frontend: &FrontendSlots,
    port: String,
    targets: &[Target],
) -> ServiceHop {
    // The names may be older than the maps, which decide.
    let is_target = |at| targets.iter().any(|target| target.backend.at == at);
    let excluded = facts.view.rejected_of(frontend.frontend.service_id).iter();
    let excluded = excluded.filter(|endpoint| !is_target(endpoint.endpoint));
    let excluded = excluded.map(|endpoint| Excluded {
        at: endpoint.endpoint,
        pod: pod_name(&endpoint.pod),
        why: endpoint.why.to_string(),
    });
    let node = facts.context.src.node.as_ref();
    ServiceHop {
        port,
        at: frontend.socket(),
        algorithm: frontend.algorithm(),
        n: targets.len(),
        excluded: excluded.collect(),
        translated_on: node.filter(|node| !facts.is_here(Some(node))).cloned(),
    }
}

fn target<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    frontend: &FrontendSlots,
    id: u32,
) -> Option<Target> {
    let view = facts.view;
    let backend = view.snapshot.backends.get(&id)?;
    let at = socket(backend.addr, backend.port);
    // What the agent says now comes before the name table, which it writes up to a second after the maps.
    let endpoints = facts.context.service.iter().flat_map(|service| &service.endpoints);
    let known = endpoints.filter(|it| it.protocol == facts.wanted.protocol).find(|it| it.at == at);
    let place = view.directory.place(view.directory.backend(id));
    let node = place.map(|place| &*place.node).filter(|node| !node.is_empty());
    let backend = BackendEvidence {
        at,
        pod: known.and_then(|known| known.pod.clone()).or_else(|| pod_name(&view.pod_of(id))),
        node: known.and_then(|known| known.node.clone()).or_else(|| node.map(Arc::from)),
        state: match known {
            Some(known) if node.is_none() => BackendState::Endpoint(known.conditions),
            _ => view.state_of(id, backend),
        },
    };
    let by_stack = frontend.has(FrontendFlags::BY_STACK);
    Some(Target { backend, through: Some(frontend.socket()), by_stack })
}

/// Reads a Pod of the name table; there it is empty if it is not known.
fn pod_name(full: &str) -> Option<Name> {
    (!full.is_empty()).then(|| Name::parse(full))
}

/// Returns the addresses and ports to dial, IPv4 first.
fn dialed<T: PolicyLookup>(facts: &Facts<'_, T>, outside: bool) -> Vec<SocketAddr> {
    match (&facts.wanted.dst, &facts.context.service) {
        (Party::Ip(ip), _) => vec![SocketAddr::new(*ip, facts.wanted.port.unwrap_or_default())],
        (Party::Service(_), Some(service)) => {
            let mut all = addresses(facts, service, outside);
            // IPv6 only where the source has no IPv4.
            let own = &facts.context.src.ips;
            all.retain(|at| own.is_empty() || own.iter().any(|ip| ip.is_ipv4() == at.is_ipv4()));
            all.sort_by_key(SocketAddr::is_ipv6);
            all
        }
        (Party::Service(_), None)
        | (Party::Pod(_) | Party::Workload(..) | Party::Node(_) | Party::World, _) => Vec::new(),
    }
}

/// Returns the addresses of a Service at which the source may dial the wanted port.
fn addresses<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    service: &ServiceContext,
    outside: bool,
) -> Vec<SocketAddr> {
    let wanted = facts.wanted;
    let is_wanted = |port: &&ServicePortContext| {
        port.protocol == wanted.protocol
            && wanted.port.is_none_or(|number| [port.port, port.node_port].contains(&number))
    };
    let mut all = Vec::new();
    let mut extend = |ips: &[IpAddr], port: u16| {
        all.extend(ips.iter().map(|ip| SocketAddr::new(*ip, port)));
    };
    for port in service.ports.iter().filter(is_wanted) {
        if outside {
            extend(&service.lb_ips, port.port);
            if port.node_port != 0 {
                extend(&node_ips(facts), port.node_port);
            }
        } else {
            extend(&service.cluster_ips, port.port);
        }
    }
    all
}

/// Returns the addresses that have external frontends, those of this node among them.
fn node_ips<T: PolicyLookup>(facts: &Facts<'_, T>) -> Vec<IpAddr> {
    let frontends = facts.view.snapshot.frontends.iter();
    let external =
        frontends.filter(|frontend| frontend.is_external() && !frontend.key.is_wildcard());
    let ips: BTreeSet<IpAddr> = external.map(|frontend| frontend.key.addr.to_ip()).collect();
    ips.into_iter().collect()
}
