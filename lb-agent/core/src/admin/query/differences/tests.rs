//! A cluster with each difference, beside its twin that has none.

use std::num::NonZeroU16;

use super::*;
use crate::cluster::{
    Action, Change, Conditions, Endpoint, EndpointSlice, Event, Extra, Family, Kind, Labels,
    Namespaces, Node, PodSelector, Prefix, Selector, ServicePort, ServiceType, SlicePort,
};

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

fn name(text: &str) -> Name {
    Name::new("shop", text)
}

fn cluster(host: &[&str]) -> Cluster {
    let mut cluster = Cluster::new("n1");
    let node = Node { addresses: [addr("192.0.2.1")].into(), ..Node::default() };
    cluster.apply(Event::Node(Change::Applied(Name::new("", "n1"), node)));
    cluster.apply(Event::Host(host.iter().map(|ip| addr(ip)).collect()));
    Kind::ALL.into_iter().for_each(|kind| drop(cluster.apply(Event::Synced(kind))));
    cluster
}

/// A Service with one endpoint, the Pod of the same name.
fn put(cluster: &mut Cluster, of: &str, protocol: u8, node_port: u16, extra: Option<Extra>) {
    let ip = addr(&format!("10.244.1.{}", of.len()));
    let service = Service {
        service_type: ServiceType::NodePort,
        cluster_ips: [addr(&format!("10.96.0.{}", of.len()))].into(),
        ports: [ServicePort {
            name: "".into(),
            protocol,
            port: 80,
            node_port: NonZeroU16::new(node_port),
        }]
        .into(),
        internal_policy: TrafficPolicy::Cluster,
        created: None,
        selector: Labels::default(),
        extra: extra.map(Box::new),
    };
    let endpoint = Endpoint {
        addr: ip,
        conditions: Conditions { ready: true, serving: true, terminating: false },
        node: Some("n1".into()),
        zone: None,
        pod: Some(of.into()),
        hints: None,
    };
    let slice = EndpointSlice {
        service: of.into(),
        family: Family::V4,
        ports: [SlicePort { name: "".into(), protocol, port: 8080 }].into(),
        endpoints: [endpoint].into(),
        trigger_ms: None,
    };
    let labels = Labels::new([("app".into(), of.into())]);
    let pod = Pod { ips: [ip].into(), node: "n1".into(), labels, ..Pod::default() };
    cluster.apply(Event::Service(Change::Applied(name(of), service)));
    cluster.apply(Event::Slice(Change::Applied(name(of), slice)));
    cluster.apply(Event::Pod(Change::Applied(name(of), pod)));
}

/// A policy for all Pods of the namespace that admits these ranges.
fn policy(cluster: &mut Cluster, of: &str, ranges: &[&str]) {
    let block = |text: &&str| Peer::Block {
        prefix: text.parse::<Prefix>().unwrap(),
        excepts: Box::default(),
    };
    let rule = Rule {
        name: "".into(),
        action: Action::Accept,
        peers: Some(ranges.iter().map(block).collect()),
        ports: None,
    };
    let subject = PodSelector { namespaces: Namespaces::Own, pods: Selector(Box::default()) };
    let policy = Policy {
        tier: Tier::NetworkPolicy,
        priority: 0,
        generation: 1,
        created: 0,
        shadow: false,
        subject,
        ingress: Some([rule].into()),
        egress: None,
    };
    cluster.apply(Event::NetworkPolicy(Change::Applied(name(of), policy)));
}

fn found(cluster: &Cluster, rules: &Rules) -> Vec<String> {
    let remarks = differences(cluster, rules);
    remarks.into_iter().map(|r| format!("{}: {}: {}", r.object, r.field, r.message)).collect()
}

#[test]
fn what_objects_do_not_have_is_not_told() {
    let mut cluster = cluster(&["192.0.2.1"]);
    put(&mut cluster, "web", proto::TCP, 30_080, None);
    put(&mut cluster, "inside", proto::TCP, 0, None);
    assert_eq!(found(&cluster, &Rules::default()), [""; 0]);
    // A rule for all clients.
    policy(&mut cluster, "all", &["0.0.0.0/0"]);
    policy(&mut cluster, "some", &["10.0.0.0/8"]);
    assert_eq!(found(&cluster, &Rules::default()), [""; 0]);
}

#[test]
fn node_ports_at_other_addresses() {
    let mut cluster = cluster(&["192.0.2.1", "198.51.100.1", "203.0.113.9"]);
    assert_eq!(found(&cluster, &Rules::default()), [""; 0], "without NodePorts");
    put(&mut cluster, "web", proto::TCP, 30_080, None);
    assert_eq!(
        found(&cluster, &Rules::default()),
        [
            "Node n1: --node-port-addresses: 1 Services have NodePorts, which are served at 192.0.2.1 only; kube-proxy also serves them at 198.51.100.1, 203.0.113.9 unless it was given --nodeport-addresses"
        ]
    );
    let within = NodePortAddresses::Within(["0.0.0.0/0".parse().unwrap()].into());
    assert_eq!(found(&cluster, &Rules { node_ports: within, ..Rules::default() }), [""; 0]);
}

#[test]
fn protocols_and_modes() {
    let mut cluster = cluster(&["192.0.2.1"]);
    put(&mut cluster, "sctp", proto::SCTP, 0, None);
    let extra = Extra { proxied: true, ..Extra::default() };
    put(&mut cluster, "lb", proto::TCP, 0, Some(extra));
    assert_eq!(
        found(&cluster, &Rules::default()),
        [
            "Service shop/lb: status.loadBalancer.ingress[].ipMode: is Proxy: clients in the cluster reach the load balancer itself; kube-proxy before 1.29 sends them directly to the Pods",
            "Service shop/sctp: spec.ports[].protocol: port 80 is SCTP: it is served to Pods and external clients, but not to host processes and Pods on the host network",
        ]
    );
}

#[test]
fn policies_behind_services_for_clients_outside() {
    let mut cluster = cluster(&["192.0.2.1"]);
    put(&mut cluster, "web", proto::TCP, 30_080, None);
    put(&mut cluster, "inside", proto::TCP, 0, None);
    let local = Extra { external_policy: TrafficPolicy::Local, ..Extra::default() };
    put(&mut cluster, "local", proto::TCP, 30_081, Some(local));
    policy(&mut cluster, "p", &["10.0.0.0/8"]);
    let want = "Service shop/web: spec.externalTrafficPolicy: is Cluster, and NetworkPolicy shop/p isolates Pod shop/web behind it: policies see an external client by its own address if the Pod is on the node that the client contacted, and as that node otherwise; with kube-proxy every external client appears as a node. Allow the clients' addresses";
    assert_eq!(found(&cluster, &Rules::default()), [want]);
    policy(&mut cluster, "p", &["10.0.0.0/8", "192.0.2.0/24"]);
    let want =
        format!("{want} (the ipBlock for nodes in ingress[0].from[1] no longer matches them)");
    assert_eq!(found(&cluster, &Rules::default()), [want]);
}
