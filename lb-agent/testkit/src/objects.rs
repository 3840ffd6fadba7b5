//! Builders of the cluster's records: each says in few words what a test is about, and leaves out the rest.

use std::net::Ipv4Addr;
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::flow::proto;
use lb_core::cluster::{
    Action, Conditions, Endpoint, EndpointSlice, Family, Labels, NamedPort, Namespaces, Operator,
    Peer, Pod, PodSelector, Policy, PortMatch, PortSpec, Requirement, Rule, Selector, Service,
    ServicePort, ServiceType, SlicePort, Tier, TrafficPolicy,
};

/// An address, from text.
pub fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

/// The `i`th address after an IPv4 address.
pub fn nth(first: &str, i: u32) -> Addr {
    let first: Ipv4Addr = first.parse().unwrap();
    Addr::from_ip(Ipv4Addr::from_bits(first.to_bits() + i).into())
}

/// A ClusterIP Service with these TCP ports, by name and number.
pub fn service<N: Into<Arc<str>>>(
    cluster_ip: Addr,
    ports: impl IntoIterator<Item = (N, u16)>,
) -> Service {
    let port = |(name, port): (N, u16)| ServicePort {
        name: name.into(),
        protocol: proto::TCP,
        port,
        node_port: None,
    };
    Service {
        service_type: ServiceType::ClusterIp,
        cluster_ips: [cluster_ip].into(),
        ports: ports.into_iter().map(port).collect(),
        internal_policy: TrafficPolicy::Cluster,
        created: None,
        selector: Labels::default(),
        extra: None,
    }
}

/// Endpoints of a Service at these TCP ports, by name and number.
pub fn slice<N: Into<Arc<str>>>(
    service: &str,
    ports: impl IntoIterator<Item = (N, u16)>,
    endpoints: impl IntoIterator<Item = Endpoint>,
) -> EndpointSlice {
    let port = |(name, port): (N, u16)| SlicePort { name: name.into(), protocol: proto::TCP, port };
    EndpointSlice {
        service: service.into(),
        family: Family::V4,
        ports: ports.into_iter().map(port).collect(),
        endpoints: endpoints.into_iter().collect(),
        trigger_ms: None,
    }
}

/// A ready endpoint whose place is not known.
pub fn endpoint(addr: Addr) -> Endpoint {
    Endpoint {
        addr,
        conditions: Conditions { ready: true, serving: true, terminating: false },
        node: None,
        zone: None,
        pod: None,
        hints: None,
    }
}

/// `app=web tier=db`.
pub fn labels(text: &str) -> Labels {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        (key.into(), value.into())
    };
    Labels::new(text.split_whitespace().map(pair))
}

/// `app=web !tier tier!=db app`.
pub fn selector(text: &str) -> Selector {
    let requirement = |word: &str| {
        let (key, operator) = if let Some((key, value)) = word.split_once("!=") {
            (key, Operator::NotIn([value.into()].into()))
        } else if let Some((key, value)) = word.split_once('=') {
            (key, Operator::In(value.split('|').map(Into::into).collect()))
        } else if let Some(key) = word.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (word, Operator::Exists)
        };
        Requirement { key: key.into(), operator }
    };
    Selector(text.split_whitespace().map(requirement).collect())
}

/// Pods of the policy's own namespace.
pub fn own(pods: &str) -> PodSelector {
    PodSelector { namespaces: Namespaces::Own, pods: selector(pods) }
}

/// Pods of the namespaces that a selector matches.
pub fn across(namespaces: &str, pods: &str) -> PodSelector {
    PodSelector { namespaces: Namespaces::Selected(selector(namespaces)), pods: selector(pods) }
}

/// Addresses of a prefix, without some within it.
pub fn block(prefix: &str, excepts: &[&str]) -> Peer {
    let mut excepts: Vec<_> = excepts.iter().map(|e| e.parse().unwrap()).collect();
    excepts.sort_unstable();
    Peer::Block { prefix: prefix.parse().unwrap(), excepts: excepts.into() }
}

/// `tcp/80`, `tcp/80-90`, `udp`, `tcp/web`, `*/web`.
pub fn port(text: &str) -> PortMatch {
    let (protocol, ports) = text.split_once('/').unwrap_or((text, ""));
    let protocol = match protocol {
        "*" => None,
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        "icmp" => Some(1),
        other => panic!("{other}"),
    };
    let number = |text: &str| text.parse::<u16>().ok();
    let ports = match (ports, number(ports), ports.split_once('-')) {
        ("", ..) => PortSpec::All,
        (_, Some(port), _) => PortSpec::Range(port, port),
        (_, None, Some((first, last))) => {
            PortSpec::Range(number(first).unwrap(), number(last).unwrap())
        }
        (name, None, None) => PortSpec::Named(name.into()),
    };
    PortMatch { protocol, ports }
}

/// A rule; no list means all.
pub fn rule(action: Action, peers: Option<Vec<Peer>>, ports: Option<&[&str]>) -> Rule {
    Rule {
        name: "".into(),
        action,
        peers: peers.map(Vec::into_boxed_slice),
        ports: ports.map(|ports| ports.iter().map(|text| port(text)).collect()),
    }
}

/// Accepts these peers; no ports means all.
pub fn allow(peers: Vec<Peer>, ports: &[&str]) -> Rule {
    rule(Action::Accept, Some(peers), (!ports.is_empty()).then_some(ports))
}

/// A NetworkPolicy for the Pods with these labels, without rules.
pub fn network_policy(subject: &str) -> Policy {
    Policy {
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: own(subject),
        ingress: None,
        egress: None,
        shadow: false,
        generation: 1,
        created: 0,
    }
}

/// A ClusterNetworkPolicy without rules.
pub fn cluster_policy(tier: Tier, priority: u16, subject: PodSelector) -> Policy {
    Policy { tier, priority, subject, ..network_policy("") }
}

/// A Pod on `node` with these addresses, labels and ports (name, protocol, number).
pub fn pod(node: &str, ips: &[&str], of: &str, ports: &[(&str, u8, u16)]) -> Pod {
    let port = |(name, protocol, port): &(&str, u8, u16)| NamedPort {
        name: (*name).into(),
        protocol: *protocol,
        port: *port,
    };
    Pod {
        ips: ips.iter().map(|ip| addr(ip)).collect(),
        host_network: false,
        node: node.into(),
        labels: labels(of),
        ports: ports.iter().map(port).collect(),
        ..Pod::default()
    }
}
