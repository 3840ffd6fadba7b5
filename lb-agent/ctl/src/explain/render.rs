//! A trace in words: the steps, the findings and what was assumed.

use std::net::IpAddr;
use std::sync::Arc;

use crate::explain::explanation::{Explanation, Finding, Step};
use crate::explain::host::FORWARDING;
use crate::explain::trace::{
    Hop, PathHop, PodRoute, PolicyHop, PolicyVerdict, Records, SourceEnd, StaleFlow, TableFull,
    Trace, TraceOutcome, Unchecked, Who,
};
use crate::network::protocol_name;
use lb_core::admin::context::{EndKind, Party};

mod closest;
mod lookup;
mod paste;
mod policy;
mod service;
mod socket;

/// Returns the explanation of a trace.
pub fn render(trace: &Trace) -> Explanation {
    let outcome = trace.outcome();
    let lookup = trace.failed_lookup().map(|failed| lookup::finding(trace, failed));
    let stops = trace.tally().stopped > 0;
    let mut findings = trace.findings().map(|hop| finding(trace, hop));
    // What stops the flow itself comes before what stops the lookup of its name.
    let (mut first, second) = match lookup {
        Some(lookup) if !stops => (lookup, None),
        lookup => (findings.next().unwrap_or_default(), lookup),
    };
    first.code = trace.code();
    let mut also: Vec<Finding> = Vec::new();
    for other in second.into_iter().chain(findings) {
        if other != first && !also.contains(&other) {
            also.push(other);
        }
    }
    let mut assumed: Vec<String> = Vec::new();
    for text in trace.hops.iter().flat_map(|hop| assumptions(trace, hop)) {
        if !assumed.contains(&text) {
            assumed.push(text);
        }
    }
    if let Some(failed) = trace.failed_lookup() {
        assumed.push(lookup::assumption(failed));
    }
    let mut steps: Vec<Step> = trace.hops.iter().filter_map(|hop| step(trace, hop)).collect();
    if let Some(lookup) = &trace.lookup {
        let after = usize::from(steps.first().is_some_and(|step| step.what == "source"));
        steps.insert(after, lookup::step(lookup));
    }
    Explanation {
        outcome,
        verdict: verdict(trace, outcome, &first),
        branches: trace.tally(),
        steps,
        finding: first,
        also,
        assumed,
        lookup: trace.lookup.as_ref().map(lookup::result),
    }
}

/// The first line.
fn verdict(trace: &Trace, outcome: TraceOutcome, finding: &Finding) -> String {
    let wanted = &trace.wanted;
    let port = wanted.port.map(|port| format!(":{port}")).unwrap_or_default();
    let protocol = protocol_name(wanted.protocol);
    let flow = format!("{} to {}{port}/{protocol}", wanted.src, wanted.dst);
    let tally = trace.tally();
    let some = |n: usize| match n < tally.all {
        true => format!(" (for {n} of {} backends)", tally.all),
        false => String::new(),
    };
    match outcome {
        TraceOutcome::Delivered => format!("{flow}{}", socket::unseen(trace)),
        TraceOutcome::Stopped if tally.stopped == 0 => format!("{flow}: {}", finding.headline),
        TraceOutcome::Stopped => format!("{flow}{}: {}", some(tally.stopped), finding.headline),
        TraceOutcome::CannotTell => {
            let nodes: Vec<&str> = trace.deciding().into_iter().map(place).collect();
            let decides = match nodes.as_slice() {
                [] => String::new(),
                [one] => format!(": {one} decides"),
                nodes => format!(": {} decide", nodes.join(", ")),
            };
            format!("{flow}{}{decides}", some(tally.unknown))
        }
    }
}

/// The step of a hop; none of what is beside the path.
fn step(trace: &Trace, hop: &Hop) -> Option<Step> {
    let (what, text) = match hop {
        Hop::Source(found) => ("source", source(trace, found)),
        Hop::Unserved(unserved) => ("service", service::unserved_step(trace, unserved)),
        Hop::Service(found) => ("service", service::step(trace, found)),
        Hop::NoAddress => {
            let dst = &trace.wanted.dst;
            ("destination", format!("{dst} has no address of a family that the source has"))
        }
        Hop::Loopback(who) => {
            ("loopback", format!("traffic from {who} to itself never leaves the Pod"))
        }
        Hop::Backend(backend) => ("backend", service::backend(backend)),
        Hop::Unforwarded { v4 } => ("route", unforwarded(trace, *v4).headline),
        Hop::Policy(hop) => (policy::name(hop.direction), policy::step(trace, hop)),
        Hop::Path(path) => ("path", path_step(trace, path)),
        Hop::Socket(socket) => ("socket", socket::step(socket)),
        Hop::Handshake(seen) => ("answer", socket::answer(seen)),
        Hop::Reply(reply) => ("reply", service::reply(reply)),
        Hop::Records(_)
        | Hop::TableFull(_)
        | Hop::StaleFlow(_)
        | Hop::ClientHidden { .. }
        | Hop::Unchecked(_) => return None,
    };
    Some(Step { state: hop.state()?, what, text })
}

/// The cause, or what is worth knowing, of a hop that has a code.
fn finding(trace: &Trace, hop: &Hop) -> Finding {
    let finding = match hop {
        Hop::Source(found) => host_source(found),
        Hop::TableFull(full) => table_full(trace, full),
        Hop::Unserved(unserved) => service::unserved(trace, unserved),
        Hop::StaleFlow(stale) => stale_flow(stale),
        Hop::Unforwarded { v4 } => unforwarded(trace, *v4),
        Hop::Policy(hop) => policy::finding(trace, hop),
        Hop::Socket(socket) => socket::finding(socket),
        Hop::Handshake(seen) => socket::refused(trace, seen),
        Hop::Records(_)
        | Hop::Service(_)
        | Hop::NoAddress
        | Hop::Loopback(_)
        | Hop::Backend(_)
        | Hop::Path(_)
        | Hop::ClientHidden { .. }
        | Hop::Unchecked(_)
        | Hop::Reply(_) => Finding::default(),
    };
    Finding { code: hop.code(), ..finding }
}

/// What a hop takes for granted.
fn assumptions(trace: &Trace, hop: &Hop) -> Option<String> {
    match hop {
        Hop::Records(Records::Incomplete) => {
            Some("the agent has not read the whole cluster state yet".to_owned())
        }
        Hop::Records(Records::Unavailable) => {
            Some("agent not reachable: using cached names; reasons may be missing".to_owned())
        }
        Hop::Service(service) => service.translated_on.as_ref().map(|node| {
            format!("the maps of {node}, where the Service is translated, match those of this node")
        }),
        Hop::ClientHidden { node } => Some(format!(
            "{} sees an address of {} instead of the client's: ipBlock rules for the client do not match there (externalTrafficPolicy: Local preserves the client's address)",
            place(node.as_ref()),
            own(trace)
        )),
        Hop::Policy(hop) => policy_assumption(trace, hop).or_else(|| record_assumption(hop)),
        Hop::Socket(socket) => socket::assumption(trace, socket),
        Hop::Handshake(seen) => socket::refused_assumption(trace, seen),
        Hop::Unchecked(unchecked) => Some(match unchecked {
            Unchecked::Pod(who, port) => process(who, *port),
            Unchecked::Node(node, port) => {
                let node = node.as_deref().unwrap_or_default();
                format!("a process of node {node} listens on port {port}")
            }
            Unchecked::Network(ip) => format!("the network routes packets to {ip} and back"),
        }),
        Hop::Source(_)
        | Hop::TableFull(_)
        | Hop::Unserved(_)
        | Hop::StaleFlow(_)
        | Hop::NoAddress
        | Hop::Loopback(_)
        | Hop::Backend(_)
        | Hop::Path(_)
        | Hop::Unforwarded { .. }
        | Hop::Reply(_) => None,
    }
}

fn policy_assumption(trace: &Trace, hop: &PolicyHop) -> Option<String> {
    let (what, subject) = (policy::name(hop.direction), &hop.subject);
    match &hop.verdict {
        PolicyVerdict::NoDevice => {
            Some(format!("{what} of {subject}: check `lbctl pods` and `lbctl status`"))
        }
        PolicyVerdict::OtherNode { node, .. } => Some(match node {
            Some(node) => {
                let line = paste::exec(trace, node);
                format!("{what} of {subject}: {node} decides; ask it: {line}")
            }
            None => format!("{what} of {subject}: another node decides"),
        }),
        _ => hop.shadow.as_ref().map(|shadow| {
            let would = if shadow.denies { "deny" } else { "allow" };
            let by = &shadow.by;
            format!("shadow policies are not enforced; if they were, {by} would {would} it")
        }),
    }
}

/// A judgement by record holds if the other node has the same.
fn record_assumption(hop: &PolicyHop) -> Option<String> {
    let node = hop.by_record.as_ref()?;
    Some(format!("the agent of {node} has the same policies, Pods and namespaces as this one"))
}

/// A node, or the words for one whose name is not known.
fn place(node: Option<&Arc<str>>) -> &str {
    node.map_or("another node", |node| node)
}

/// The node whose trace it is.
fn own(trace: &Trace) -> &str {
    place(Some(&trace.node).filter(|node| !node.is_empty()))
}

fn process(who: &Who, port: u16) -> String {
    format!("a process in {who} listens on port {port}")
}

/// Items with commas between.
fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Where packets go on this node, between two Pods.
fn path_step(trace: &Trace, path: &PathHop) -> String {
    let PathHop { to, route } = path;
    match route {
        PodRoute::Past => format!("goes past the host's IP stack and netfilter to {to}"),
        PodRoute::Hop { node } => {
            let (here, there) = (own(trace), place(node.as_ref()));
            format!("goes past the host's IP stack and netfilter between {here} and {there}")
        }
        PodRoute::StackBetween { why } => format!("goes through the host's IP stack: {why}"),
        PodRoute::Bridge => format!("goes over the bridge of both Pods, past netfilter, to {to}"),
        PodRoute::Stack { reason, rule } if rule.is_empty() || !reason.is_of_a_rule() => {
            format!("goes through the host's IP stack: {}", reason.name())
        }
        PodRoute::Stack { reason, rule } => {
            format!("goes through the host's IP stack: {} ({rule})", reason.name())
        }
    }
}

/// Where the flow comes from.
fn source(trace: &Trace, source: &SourceEnd) -> String {
    let end = &source.end;
    let ips = list(&end.ips);
    let name = match (&end.name, end.ips.first()) {
        (Some(name), _) => name.to_string(),
        (None, ip) => ip.map(IpAddr::to_string).unwrap_or_default(),
    };
    match end.kind {
        EndKind::Pod if end.ips.is_empty() => {
            format!("Pod {name} has no address yet, and sends nothing until it has one")
        }
        EndKind::Pod if source.here => format!("Pod {name} {ips} on this node"),
        EndKind::Pod => format!("Pod {name} {ips} on {}", place(end.node.as_ref())),
        EndKind::HostPod => {
            format!("Pod {name} on the host network of {}", place(end.node.as_ref()))
        }
        EndKind::Node => format!("node {name}"),
        EndKind::Outside | EndKind::Service | EndKind::Missing => match trace.wanted.src {
            Party::World => format!("an external client, evaluated as {ips}"),
            _ => format!("{ips}, outside the cluster"),
        },
    }
}

fn host_source(source: &SourceEnd) -> Finding {
    Finding {
        object: format!("Node {}", source.end.node.as_deref().unwrap_or_default()),
        headline: "the source is a node".to_owned(),
        because: vec![
            "NetworkPolicies never apply to traffic from a node or from a Pod on the host network"
                .to_owned(),
        ],
        ..Finding::default()
    }
}

fn table_full(trace: &Trace, full: &TableFull) -> Finding {
    let TableFull { reason, ago, src, dst } = full;
    let name = reason.name();
    Finding {
        headline: "a table was recently too full for new flows".to_owned(),
        because: vec![format!(
            "{ago} s ago a flow from {src} to {dst} was dropped on {}: {name}",
            own(trace)
        )],
        to_fix: vec![reason.what_to_do().to_owned()],
        evidence: vec![format!("lbctl drops: {name}")],
        ..Finding::default()
    }
}

fn stale_flow(stale: &StaleFlow) -> Finding {
    let StaleFlow { service, dialed, backend } = stale;
    Finding {
        object: format!("Service {service}"),
        headline: format!("a flow to {dialed} is pinned to {backend}, which was removed"),
        because: vec![format!(
            "an open flow to {dialed} is pinned to {backend}, which was removed: its next packet resets a TCP connection; other protocols get a new backend"
        )],
        to_fix: vec!["reconnect the client".to_owned()],
        ..Finding::default()
    }
}

/// The kernel does not forward what the flow needs.
fn unforwarded(trace: &Trace, v4: bool) -> Finding {
    let [ipv4, ipv6] = FORWARDING;
    let (family, setting) = if v4 { ("IPv4", ipv4) } else { ("IPv6", ipv6) };
    Finding {
        object: format!("Node {}", trace.node),
        headline: format!(
            "{setting} is 0: the node forwards no packets unless a device overrides it"
        ),
        because: vec![format!(
            "{setting} is 0: the kernel does not forward {family} packets between devices, and so not between a Pod and another node, unless the receiving device overrides the setting"
        )],
        to_fix: vec![format!(
            "run `sysctl -w {setting}=1`, add it to /etc/sysctl.d, and find out what set it to 0"
        )],
        evidence: vec![format!("sysctl {setting}")],
        ..Finding::default()
    }
}
