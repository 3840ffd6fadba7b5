//! The Service: which frontend is dialled, which backends it may choose, and when it has none, why.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::policy::Tables;
use lb_common::service::{FrontendKey, frontend_flags};

use crate::explain::walk::{Facts, Target};
use crate::explain::{Code, Finding};
use crate::frontend::FrontendSlots;
use crate::snapshot::{protocol_name, socket};
use lb_core::admin::context::{Kind, Party, Service};

/// Where the flow goes.
#[derive(Debug)]
pub enum Route<'a> {
    /// To what was dialled.
    Plain,
    /// By a frontend to one of these.
    Service(Box<Chosen<'a>>),
    /// Nowhere.
    None {
        /// The Service's name.
        service: String,
        /// Why.
        finding: Box<Finding>,
    },
}

/// A frontend and what it leads to.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// The frontend.
    pub frontend: &'a FrontendSlots,
    /// Name of the service port.
    pub name: String,
    /// Backends that a new flow may get, each once.
    pub targets: Vec<Target>,
    /// Endpoints that it cannot get, and why.
    pub rejected: Vec<String>,
}

/// Where the flow goes.
pub fn route<'a, T: Tables>(facts: &Facts<'a, T>, outside: bool) -> Route<'a> {
    let service = facts.context.service.as_ref();
    let dialled = dialled(facts, outside);
    let wanted: Vec<FrontendKey> = dialled
        .iter()
        .map(|at| {
            FrontendKey::new(Addr::from_ip(at.ip()), Be16::new(at.port()), facts.wanted.protocol)
        })
        .collect();
    let frontends = &facts.view.snapshot.frontends;
    let found =
        wanted.iter().find_map(|key| frontends.iter().find(|frontend| frontend.key == *key));
    let Some(frontend) = found else {
        return unserved(facts, service, &dialled, outside);
    };
    let name = facts.view.directory.service_port(frontend.frontend.service_id);
    let object = service.map_or_else(|| name.clone(), |service| service.name.clone());
    if let Some(finding) = gated(facts, frontend, &object) {
        return Route::None { service: name, finding: Box::new(finding) };
    }
    let local = outside && frontend.has(frontend_flags::EXTERNAL_LOCAL);
    let ids = if local { &frontend.local_ids } else { &frontend.backend_ids };
    if ids.is_empty() {
        let finding = empty(facts, service, frontend, &object);
        return Route::None { service: name, finding: Box::new(finding) };
    }
    let ids: BTreeSet<u32> = ids.iter().copied().collect();
    let target = |id: &u32| {
        let backend = facts.view.snapshot.backends.get(id)?;
        let at = socket(backend.addr, backend.port);
        let place = facts.view.directory.place(facts.view.directory.backend(*id));
        Some(Target {
            at,
            pod: facts.view.pod_of(*id),
            node: place.map(|place| place.node.to_string()).unwrap_or_default(),
            through: Some(frontend.socket()),
            state: facts.view.state_of(*id, backend),
        })
    };
    let rejected = facts.view.rejected_of(frontend.frontend.service_id).iter();
    let rejected = rejected.map(|endpoint| {
        let who = if endpoint.pod.is_empty() { "" } else { " of " };
        format!("{}{who}{}: {}", endpoint.endpoint, endpoint.pod, endpoint.why)
    });
    Route::Service(Box::new(Chosen {
        frontend,
        name,
        targets: ids.iter().filter_map(target).collect(),
        rejected: rejected.collect(),
    }))
}

/// Addresses and ports that are dialled, those that the source can reach first.
fn dialled<T: Tables>(facts: &Facts<'_, T>, outside: bool) -> Vec<SocketAddr> {
    let protocol = facts.wanted.protocol;
    match &facts.wanted.dst {
        Party::Ip(ip) => vec![SocketAddr::new(*ip, facts.wanted.port.unwrap_or_default())],
        Party::Service(_) => {
            let Some(service) = &facts.context.service else { return Vec::new() };
            let ports = service.ports.iter().filter(|port| port.protocol == protocol);
            let ports: Vec<_> = ports
                .filter(|port| {
                    facts
                        .wanted
                        .port
                        .is_none_or(|wanted| port.port == wanted || port.node_port == wanted)
                })
                .collect();
            let mut all = Vec::new();
            for port in ports {
                let at = |ips: &[IpAddr], port: u16| {
                    ips.iter().map(move |ip| SocketAddr::new(*ip, port)).collect::<Vec<_>>()
                };
                if outside {
                    all.extend(at(&service.lb_ips, port.port));
                    if port.node_port != 0 {
                        all.extend(at(&facts.node_ips(), port.node_port));
                    }
                } else {
                    all.extend(at(&service.cluster_ips, port.port));
                }
            }
            // IPv6 only where the source has no IPv4.
            let own = &facts.context.src.ips;
            all.retain(|at| own.is_empty() || own.iter().any(|ip| ip.is_ipv4() == at.is_ipv4()));
            all.sort_by_key(SocketAddr::is_ipv6);
            all
        }
        Party::Pod(_) | Party::Node(_) | Party::World => Vec::new(),
    }
}

/// No frontend has what is dialled.
fn unserved<'a, T: Tables>(
    facts: &Facts<'a, T>,
    service: Option<&Service>,
    dialled: &[SocketAddr],
    outside: bool,
) -> Route<'a> {
    let wildcard = dialled.iter().any(|at| {
        let key = FrontendKey::wildcard(Addr::from_ip(at.ip()));
        let mut frontends = facts.view.snapshot.frontends.iter();
        frontends.any(|known| known.key == key && !known.has(frontend_flags::ADDRESS_ONLY))
    });
    let Some(service) = service else {
        if !wildcard {
            return Route::Plain;
        }
        let finding = Finding {
            code: Some(Code::UndefinedPort),
            headline: "the address belongs to a Service that does not have this port".to_owned(),
            ..Finding::default()
        };
        return Route::None { service: String::new(), finding: Box::new(finding) };
    };
    let object = format!("Service {}", service.name);
    let word = protocol_name(facts.wanted.protocol);
    let has = |port: u16| {
        service.ports.iter().any(|known| {
            known.protocol == facts.wanted.protocol
                && (known.port == port || known.node_port == port)
        })
    };
    let finding = if facts.wanted.port.is_some_and(|port| !has(port)) {
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| format!("{}/{}", port.port, protocol_name(port.protocol)))
            .collect();
        Finding {
            code: Some(Code::UndefinedPort),
            object,
            path: "spec.ports".to_owned(),
            headline: format!(
                "{} has no port {}/{word}",
                service.name,
                facts.wanted.port.unwrap_or_default()
            ),
            because: vec![format!("{} has {}", service.name, ports.join(", "))],
            to_fix: vec!["use one of these ports, or declare the port in spec.ports".to_owned()],
            ..Finding::default()
        }
    } else if outside && service.service_type == "LoadBalancer" && service.lb_ips.is_empty() {
        Finding {
            code: Some(Code::LbNoAddress),
            object,
            path: "status.loadBalancer.ingress".to_owned(),
            headline: format!("{} has no external address", service.name),
            because: vec![format!("{} is of type LoadBalancer, but no address has been assigned to it", service.name)],
            to_fix: vec!["install a controller that assigns addresses (a cloud controller, MetalLB), or use the NodePort".to_owned()],
            ..Finding::default()
        }
    } else if outside {
        Finding {
            code: Some(Code::NoFrontend),
            object,
            path: "spec.type".to_owned(),
            headline: format!("{} is not reachable from outside the cluster", service.name),
            because: vec![format!("{} is of type {}", service.name, service.service_type)],
            to_fix: vec!["change its type to NodePort or LoadBalancer".to_owned()],
            ..Finding::default()
        }
    } else {
        Finding {
            code: Some(Code::NotProgrammed),
            object,
            headline: format!("the maps of this node have no frontend for {}", service.name),
            because: vec![format!("the maps contain no frontend at {}", list(dialled))],
            to_fix: vec!["check `lbctl status` and `lbctl services`".to_owned()],
            ..Finding::default()
        }
    };
    Route::None { service: service.name.clone(), finding: Box::new(finding) }
}

/// The client may not use the frontend.
fn gated<T: Tables>(facts: &Facts<'_, T>, frontend: &FrontendSlots, name: &str) -> Option<Finding> {
    if !frontend.has(frontend_flags::SOURCE_RANGES) {
        return None;
    }
    let ranges = facts.view.snapshot.fields.source_ranges.get(&frontend.frontend.service_id);
    let ranges = ranges.map(Vec::as_slice).unwrap_or_default();
    let ips: Vec<IpAddr> = facts
        .context
        .src
        .ips
        .iter()
        .filter(|ip| ip.is_ipv4() == frontend.socket().is_ipv4())
        .copied()
        .collect();
    if ips.iter().any(|ip| ranges.iter().any(|range| range.contains(&Addr::from_ip(*ip)))) {
        return None;
    }
    Some(Finding {
        code: Some(Code::SourceRange),
        object: format!("Service {name}"),
        path: "spec.loadBalancerSourceRanges".to_owned(),
        headline: format!("{name} does not accept clients from {}", list(&ips)),
        because: vec![format!("its source ranges are {}", list(ranges))],
        to_fix: vec!["add the client's address to spec.loadBalancerSourceRanges".to_owned()],
        ..Finding::default()
    })
}

/// The frontend is there, with nothing behind it.
fn empty<T: Tables>(
    facts: &Facts<'_, T>,
    service: Option<&Service>,
    frontend: &FrontendSlots,
    name: &str,
) -> Finding {
    let finding = if frontend.has(frontend_flags::ELSEWHERE) {
        no_local(&facts.context.node, service, frontend, name)
    } else {
        no_endpoints(service, name)
    };
    Finding {
        object: format!("Service {name}"),
        evidence: vec![format!("frontend {} has no backend", frontend.socket())],
        ..finding
    }
}

/// There are endpoints, on other nodes, and those may not be chosen.
fn no_local(
    node: &str,
    service: Option<&Service>,
    frontend: &FrontendSlots,
    name: &str,
) -> Finding {
    let endpoints = service.iter().flat_map(|service| &service.endpoints);
    let ready = endpoints.filter(|endpoint| endpoint.state == "ready");
    let nodes: BTreeSet<&str> =
        ready.map(|endpoint| endpoint.node.as_str()).filter(|node| !node.is_empty()).collect();
    let nodes: Vec<&str> = nodes.into_iter().collect();
    let elsewhere = match nodes.as_slice() {
        [] => "other nodes have one".to_owned(),
        [one] => format!("{one} has one"),
        nodes => format!("{} have one", nodes.join(", ")),
    };
    let policy =
        if frontend.is_external() { "externalTrafficPolicy" } else { "internalTrafficPolicy" };
    Finding {
        code: Some(Code::NoLocalEndpoint),
        path: format!("spec.{policy}"),
        headline: format!("{name} has no endpoint on this node, and its {policy} is Local"),
        because: vec![format!("{node} has no ready Pod of {name}; {elsewhere}")],
        to_fix: vec![format!(
            "use a node that has one, run a Pod of it on this node, or set {policy} to Cluster"
        )],
        ..Finding::default()
    }
}

/// There are none at all that may be chosen.
fn no_endpoints(service: Option<&Service>, name: &str) -> Finding {
    let finding = |code, path: &str, headline: String, because: String, to_fix: &str| Finding {
        code: Some(code),
        path: path.to_owned(),
        headline,
        because: vec![because],
        to_fix: vec![to_fix.to_owned()],
        ..Finding::default()
    };
    let Some(service) = service.filter(|service| {
        // Only the agent knows why.
        !service.endpoints.is_empty() || !service.selector.is_empty() || service.n_endpoints == 0
    }) else {
        let headline = format!("{name} has no usable endpoint");
        let because = "the maps contain no backend for it".to_owned();
        let fix = "check its selector and the readiness of its Pods";
        return finding(Code::NoEndpoints, "", headline, because, fix);
    };
    if !service.endpoints.is_empty() {
        let not_ready = service.endpoints.iter().map(|endpoint| match endpoint.pod.as_str() {
            "" => format!("{} is {}", endpoint.at, endpoint.state),
            pod => format!("{pod} is {}", endpoint.state),
        });
        let because = not_ready.take(3).collect::<Vec<_>>().join("; ");
        let noun = if service.n_endpoints == 1 { "endpoint" } else { "endpoints" };
        let headline = format!("{name} has {} {noun}, 0 ready", service.n_endpoints);
        let fix = "check the readiness probes and the Events of these Pods";
        return finding(Code::NoEndpointsNotReady, "", headline, because, fix);
    }
    if service.selector.is_empty() {
        let headline = format!("{name} has no endpoints");
        let because = "it has no selector, and there are no EndpointSlices for it".to_owned();
        let fix = "add a selector, or create an EndpointSlice";
        return finding(Code::NoEndpoints, "spec.selector", headline, because, fix);
    }
    if service.selected == 0 {
        let nearest = service
            .nearest
            .iter()
            .map(|(label, n)| format!("{n} {} with {label}", if *n == 1 { "Pod" } else { "Pods" }));
        let nearest: Vec<String> = nearest.collect();
        let nearest = match nearest.as_slice() {
            [] => String::new(),
            nearest => format!("; closest: {}", nearest.join(", ")),
        };
        let headline = format!("no Pod matches the selector of {name}");
        let because = format!(
            "{name} selects {}; no Pod of its namespace matches{nearest}",
            service.selector.join(",")
        );
        let fix = "change spec.selector or the labels of the Pods so that they match";
        return finding(Code::NoEndpointsSelector, "spec.selector", headline, because, fix);
    }
    let headline = match service.selected {
        1 => format!("{name} selects 1 Pod, but it is not an endpoint"),
        n => format!("{name} selects {n} Pods, but none of them is an endpoint"),
    };
    let because =
        "no container declares a port with the name in targetPort, or the Pods have no address yet"
            .to_owned();
    let fix = "declare the named port in the containers, or set targetPort to a number";
    finding(Code::NamedPortUnresolved, "spec.ports", headline, because, fix)
}

/// Reports whether the source is outside the cluster.
pub fn is_outside<T: Tables>(facts: &Facts<'_, T>) -> bool {
    facts.context.src.kind == Kind::Outside
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
