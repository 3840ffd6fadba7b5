//! Selectors, peers and ports in words, as one would say them: `app=api`, `5432/TCP`.
#![forbid(unsafe_code)]

use lb_common::flow::proto;

use crate::cluster::{
    Namespaces, Operator, Peer, PodSelector, PortMatch, Ports, Prefix, Requirement, Selector,
};

/// A requirement: `app=api`, `app in (a,b)`, `app`, `!app`.
pub(super) fn requirement(requirement: &Requirement) -> String {
    let Requirement { key, operator } = requirement;
    match operator {
        Operator::In(values) => match &**values {
            [value] => format!("{key}={value}"),
            values => format!("{key} in ({})", values.join(",")),
        },
        Operator::NotIn(values) => match &**values {
            [value] => format!("{key}!={value}"),
            values => format!("{key} notin ({})", values.join(",")),
        },
        Operator::Exists => key.to_string(),
        Operator::DoesNotExist => format!("!{key}"),
    }
}

/// A selector: its requirements with commas between, or nothing.
pub(super) fn selector(selector: &Selector) -> String {
    selector.0.iter().map(requirement).collect::<Vec<_>>().join(",")
}

/// A selector of Pods of a policy in this namespace (empty = of the cluster).
pub(super) fn pods(namespace: &str, selected: &PodSelector) -> String {
    let pods = match selector(&selected.pods) {
        all if all.is_empty() => "all Pods".to_owned(),
        some => format!("Pods with {some}"),
    };
    match &selected.namespaces {
        Namespaces::Own => format!("{pods} of namespace {namespace}"),
        Namespaces::Selected(namespaces) => match selector(namespaces) {
            all if all.is_empty() => format!("{pods} of all namespaces"),
            some => format!("{pods} of namespaces with {some}"),
        },
    }
}

/// A peer of a policy in this namespace.
pub(super) fn peer(namespace: &str, peer: &Peer) -> String {
    match peer {
        Peer::Pods(selected) => pods(namespace, selected),
        Peer::Nodes(nodes) => match selector(nodes) {
            all if all.is_empty() => "all nodes".to_owned(),
            some => format!("nodes with {some}"),
        },
        Peer::Block { prefix: block, excepts } => match &**excepts {
            [] => prefix(block),
            excepts => {
                let excepts: Vec<String> = excepts.iter().map(prefix).collect();
                format!("{} except {}", prefix(block), excepts.join(","))
            }
        },
    }
}

/// `10.0.0.0/8`.
pub(super) fn prefix(prefix: &Prefix) -> String {
    prefix.to_string()
}

/// `5432/TCP`, `8000-8080/TCP`, `http`, `TCP`.
pub(super) fn port(port: &PortMatch) -> String {
    let protocol = port.protocol.map(protocol);
    let with = |what: String| match &protocol {
        Some(protocol) => format!("{what}/{protocol}"),
        None => what,
    };
    match &port.ports {
        Ports::All => protocol.unwrap_or_else(|| "all".to_owned()),
        Ports::Range(first, last) if first == last => with(first.to_string()),
        Ports::Range(first, last) => with(format!("{first}-{last}")),
        Ports::Named(name) => with(name.to_string()),
    }
}

/// Name of an IP protocol.
pub(super) fn protocol(protocol: u8) -> String {
    match protocol {
        proto::TCP => "TCP".to_owned(),
        proto::UDP => "UDP".to_owned(),
        proto::SCTP => "SCTP".to_owned(),
        proto::ICMP => "ICMP".to_owned(),
        proto::ICMP6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    }
}
