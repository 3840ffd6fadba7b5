//! Records of policies in words: selectors, peers, ports and paths: `app=api`, `5432/TCP`.

use crate::network::protocol_name;
use lb_core::cluster::{
    Namespaces, Operator, Peer, PodSelector, PortMatch, PortSpec, Prefix, Requirement, Selector,
};
use lb_core::model::policy::PolicyDirection;

/// A requirement: `app=api`, `app in (a,b)`, `app`, `!app`.
pub fn requirement(requirement: &Requirement) -> String {
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
pub fn selector(selector: &Selector) -> String {
    selector.0.iter().map(requirement).collect::<Vec<_>>().join(",")
}

/// A selector of Pods of a policy in this namespace (empty = of the cluster).
pub fn pods(namespace: &str, selected: &PodSelector) -> String {
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
pub fn peer(namespace: &str, peer: &Peer) -> String {
    match peer {
        Peer::Pods(selected) => pods(namespace, selected),
        Peer::Nodes(nodes) => match selector(nodes) {
            all if all.is_empty() => "all nodes".to_owned(),
            some => format!("nodes with {some}"),
        },
        Peer::Block { prefix, excepts } => match &**excepts {
            [] => prefix.to_string(),
            excepts => {
                let excepts: Vec<String> = excepts.iter().map(Prefix::to_string).collect();
                format!("{prefix} except {}", excepts.join(","))
            }
        },
    }
}

/// `5432/TCP`, `8000-8080/TCP`, `http`, `TCP`.
pub fn port(port: &PortMatch) -> String {
    let protocol = port.protocol.map(protocol_name);
    let with = |what: String| match &protocol {
        Some(protocol) => format!("{what}/{protocol}"),
        None => what,
    };
    match &port.ports {
        PortSpec::All => protocol.unwrap_or_else(|| "all".to_owned()),
        PortSpec::Range(first, last) if first == last => with(first.to_string()),
        PortSpec::Range(first, last) => with(format!("{first}-{last}")),
        PortSpec::Named(name) => with(name.to_string()),
    }
}

/// The path of a rule in `spec`: `ingress[1]`.
pub fn rule_path(direction: PolicyDirection, rule: u32) -> String {
    format!("{}[{rule}]", direction.name())
}

/// The path of one of its peers: `ingress[1].from[0]`.
pub fn peer_path(direction: PolicyDirection, rule: u32, peer: u32) -> String {
    let list = match direction {
        PolicyDirection::Ingress => "from",
        PolicyDirection::Egress => "to",
    };
    format!("{}.{list}[{peer}]", rule_path(direction, rule))
}
