//! A Service in words: its backends, or why there is none.

use std::sync::Arc;

use super::list;
use crate::explain::explanation::Finding;
use crate::explain::trace::{
    BackendEvidence, NoEndpoints, Reply, ServiceHop, Trace, Unserved, Why,
};
use crate::network::protocol_name;
use crate::unready::{UnreadyPod, look_at, see_events};
use lb_core::admin::context::EndpointContext;

pub(super) fn step(trace: &Trace, hop: &ServiceHop) -> String {
    let ServiceHop { port, at, algorithm, n, excluded, .. } = hop;
    let backends = match n {
        1 => "1 backend".to_owned(),
        n => format!("{n} backends, {}", algorithm.name()),
    };
    let excluded = excluded.iter().map(|endpoint| match &endpoint.pod {
        None => format!("{}: {}", endpoint.at, endpoint.why),
        Some(pod) => format!("{} of {pod}: {}", endpoint.at, endpoint.why),
    });
    let excluded = match list(excluded) {
        none if none.is_empty() => none,
        some => format!("; excluded: {some}"),
    };
    format!("{port} {at}/{}: {backends}{excluded}", protocol_name(trace.wanted.protocol))
}

pub(super) fn backend(backend: &BackendEvidence) -> String {
    let BackendEvidence { at, pod, node, state } = backend;
    let pod = pod.as_ref().map(|pod| format!(" {pod}")).unwrap_or_default();
    let node = node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    format!("{at}{pod}{node}, {state}")
}

pub(super) fn reply(reply: &Reply) -> String {
    let Reply { from, at, to_process } = reply;
    let from = from.map_or_else(|| "the backend".to_owned(), |from| from.to_string());
    let policies = "policies do not evaluate replies";
    if *to_process {
        format!("{from} replies directly to the process, whose socket shows {at}; {policies}")
    } else {
        format!("the source of replies is translated from {from} back to {at}; {policies}")
    }
}

pub(super) fn unserved_step(trace: &Trace, unserved: &Unserved) -> String {
    let port = unserved.port.as_deref().unwrap_or("address");
    format!("{port}: {}", self::unserved(trace, unserved).headline)
}

/// Why a Service leads nowhere.
pub(super) fn unserved(trace: &Trace, unserved: &Unserved) -> Finding {
    let name = unserved.service.as_deref().unwrap_or_default();
    let finding = match &unserved.why {
        Why::UnknownPort => {
            let headline = "the address belongs to a Service that does not have this port";
            return Finding { headline: headline.to_owned(), ..Finding::default() };
        }
        Why::NoSuchPort { port, has } => no_such_port(trace, name, *port, has),
        Why::Unallocated(ip) => {
            return Finding {
                headline: format!("no Service has the ClusterIP {ip}"),
                because: vec![format!(
                    "{ip} is in the range of ClusterIPs, and no Service has it: packets to it are dropped, and connections of host processes fail at once"
                )],
                to_fix: vec![
                    "use the name of the Service, or its address in `kubectl get services -A`"
                        .to_owned(),
                ],
                ..Finding::default()
            };
        }
        Why::NotServed { field, because } => new(
            field,
            format!("{name} has this address, but it is not served"),
            because.clone(),
            "change what is named, or use another address of the Service",
        ),
        Why::NoLoadBalancerAddress => new(
            "status.loadBalancer.ingress",
            format!("{name} has no external address"),
            format!("{name} is of type LoadBalancer, but no address has been assigned to it"),
            "install a controller that assigns addresses (a cloud controller, MetalLB), or use the NodePort",
        ),
        Why::NotExternal(service_type) => new(
            "spec.type",
            format!("{name} is not reachable from outside the cluster"),
            format!("{name} is of type {}", service_type.name()),
            "change its type to NodePort or LoadBalancer",
        ),
        Why::NotProgrammed(dialed) => new(
            "",
            format!("the maps of this node have no frontend for {name}"),
            format!("the maps contain no frontend at {}", list(dialed)),
            "check `lbctl status` and `lbctl services`",
        ),
        Why::SourceRange { clients, ranges } => new(
            "spec.loadBalancerSourceRanges",
            format!("{name} does not accept clients from {}", list(clients)),
            format!("its source ranges are {}", list(ranges)),
            "add the client's address to spec.loadBalancerSourceRanges",
        ),
        Why::NoLocal { external, node, ready_on, .. } => {
            no_local(trace, name, (*external, node.as_ref()), ready_on)
        }
        Why::NoEndpoints { cause, .. } => no_endpoints(name, cause),
    };
    let evidence = match &unserved.why {
        Why::NoLocal { frontend, .. } | Why::NoEndpoints { frontend, .. } => {
            vec![format!("frontend {frontend} has no backend")]
        }
        _ => Vec::new(),
    };
    Finding { object: format!("Service {name}"), evidence, ..finding }
}

fn new(path: &str, headline: String, because: String, fix: &str) -> Finding {
    Finding {
        path: path.to_owned(),
        headline,
        because: vec![because],
        to_fix: vec![fix.to_owned()],
        ..Finding::default()
    }
}

fn no_such_port(trace: &Trace, name: &str, port: u16, has: &[(u16, u8)]) -> Finding {
    let has = has.iter().map(|(port, protocol)| format!("{port}/{}", protocol_name(*protocol)));
    let protocol = protocol_name(trace.wanted.protocol);
    new(
        "spec.ports",
        format!("{name} has no port {port}/{protocol}"),
        format!("{name} has {}", list(has)),
        "use one of these ports, or declare the port in spec.ports",
    )
}

fn no_local(
    trace: &Trace,
    name: &str,
    (external, node): (bool, Option<&Arc<str>>),
    ready_on: &[Arc<str>],
) -> Finding {
    let elsewhere = match ready_on {
        [] => "other nodes have one".to_owned(),
        [one] => format!("{one} has one"),
        nodes => format!("{} have one", list(nodes)),
    };
    let policy = if external { "externalTrafficPolicy" } else { "internalTrafficPolicy" };
    new(
        &format!("spec.{policy}"),
        match node {
            None => format!("{name} has no endpoint on this node, and its {policy} is Local"),
            Some(node) => format!("{name} has no endpoint on {node}, and its {policy} is Local"),
        },
        format!("{} has no ready Pod of {name}; {elsewhere}", node.unwrap_or(&trace.node)),
        &format!(
            "use a node that has one, run a Pod of it on this node, or set {policy} to Cluster"
        ),
    )
}

fn no_endpoints(name: &str, cause: &NoEndpoints) -> Finding {
    match cause {
        NoEndpoints::Unknown => new(
            "",
            format!("{name} has no usable endpoint"),
            "the maps contain no backend for it".to_owned(),
            "check its selector and the readiness of its Pods",
        ),
        NoEndpoints::NotReady { n, first, pods } => {
            let noun = if *n == 1 { "endpoint" } else { "endpoints" };
            let known = pods.first().map(UnreadyPod::remedy);
            let named = || first.iter().find_map(|endpoint| endpoint.pod.as_ref()).map(look_at);
            let fix = known.or_else(named);
            new(
                "",
                format!("{name} has {n} {noun}, 0 ready"),
                first.iter().map(|one| not_ready(one, pods)).collect::<Vec<_>>().join("; "),
                fix.as_deref().unwrap_or("check what sets the conditions of these endpoints"),
            )
        }
        NoEndpoints::NoSelector => new(
            "spec.selector",
            format!("{name} has no endpoints"),
            "it has no selector, and there are no EndpointSlices for it".to_owned(),
            "add a selector, or create an EndpointSlice",
        ),
        NoEndpoints::NoPod { selector, similar } => {
            let labels = selector.iter().map(|(key, value)| format!("{key}={value}"));
            let selects = labels.collect::<Vec<_>>().join(",");
            let similar = similar.iter().map(|((key, value), n)| {
                format!("{n} {} with {key}={value}", if *n == 1 { "Pod" } else { "Pods" })
            });
            let closest = match list(similar) {
                none if none.is_empty() => none,
                some => format!("; closest: {some}"),
            };
            new(
                "spec.selector",
                format!("no Pod matches the selector of {name}"),
                format!("{name} selects {selects}; no Pod of its namespace matches{closest}"),
                "change spec.selector or the labels of the Pods so that they match",
            )
        }
        NoEndpoints::NoAddress { selected, first, pods } => {
            let reasons = pods.iter().map(|pod| format!("Pod {}: {pod}", pod.pod));
            let because = match reasons.collect::<Vec<_>>().join("; ") {
                none if none.is_empty() => {
                    let named = if first.is_empty() { "" } else { ": Pod " };
                    format!(
                        "a Pod gets its address when the CNI plugin sets up its network, once it is scheduled and starts{named}{}",
                        list(first)
                    )
                }
                reasons => reasons,
            };
            let fix =
                pods.first().map(UnreadyPod::remedy).or_else(|| first.first().map(see_events));
            new(
                "",
                match selected {
                    1 => format!("{name} selects 1 Pod, which has no address yet"),
                    n => format!("{name} selects {n} Pods, and none has an address yet"),
                },
                because,
                fix.as_deref().unwrap_or("check the Events of these Pods (`kubectl describe pod`)"),
            )
        }
        NoEndpoints::NotEndpoints { selected } => new(
            "spec.ports",
            match selected {
                1 => format!("{name} selects 1 Pod, but it is not an endpoint"),
                n => format!("{name} selects {n} Pods, but none of them is an endpoint"),
            },
            "no container of them declares a port with the name in targetPort".to_owned(),
            "declare the named port in the containers, or set targetPort to a number",
        ),
    }
}

fn not_ready(endpoint: &EndpointContext, pods: &[UnreadyPod]) -> String {
    let state = endpoint.conditions.name();
    let Some(pod) = &endpoint.pod else {
        return format!("endpoint {} is {state}", endpoint.at);
    };
    let known = pods.iter().find(|known| known.pod == *pod);
    let why = known.map(|known| format!(": {known}")).unwrap_or_default();
    format!("Pod {pod} ({}) is {state}{why}", endpoint.at)
}
