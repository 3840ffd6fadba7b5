//! Lists, liveness of addresses, and which services an event touches.
#![forbid(unsafe_code)]

use std::num::NonZeroU16;

use lb_common::addr::Addr;
use lb_common::flow::proto;

use super::{
    Change, Cluster, Conditions, Endpoint, EndpointSlice, Event, Extra, Family, Kind, Name, Node,
    Pod, Service, ServiceCidr, ServicePort, ServiceType, SlicePort, TrafficPolicy,
};
use crate::issue::{Issue, ObjectRef};

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

fn name(name: &str) -> Name {
    Name::new("ns", name)
}

fn service(ip: &str) -> Service {
    Service {
        service_type: ServiceType::ClusterIp,
        cluster_ips: [addr(ip)].into(),
        ports: [ServicePort { name: "".into(), protocol: proto::TCP, port: 80, node_port: None }]
            .into(),
        internal_policy: TrafficPolicy::Cluster,
        created: None,
        extra: None,
    }
}

fn slice(service: &str, addrs: &[&str]) -> EndpointSlice {
    let endpoint = |text: &&str| Endpoint {
        addr: addr(text),
        conditions: Conditions { ready: true, serving: true, terminating: false },
        node: None,
        zone: None,
        pod: None,
        hints: None,
    };
    EndpointSlice {
        service: service.into(),
        family: Family::V4,
        ports: [SlicePort { name: "".into(), protocol: proto::TCP, port: 80 }].into(),
        endpoints: addrs.iter().map(endpoint).collect(),
        trigger_ms: None,
    }
}

fn put_service(n: &str, ip: &str) -> Event {
    Event::Service(Change::Applied(name(n), service(ip)))
}

fn put_slice(n: &str, of: &str, addrs: &[&str]) -> Event {
    Event::Slice(Change::Applied(name(n), slice(of, addrs)))
}

fn touched(cluster: &mut Cluster, event: Event) -> Vec<String> {
    cluster.apply(event).services.iter().map(|name| name.name.to_string()).collect()
}

#[test]
fn events_touch_the_services_they_change() {
    let mut cluster = Cluster::new("n1");
    for kind in Kind::ALL {
        cluster.apply(Event::Synced(kind));
    }
    let none: [&str; 0] = [];
    assert_eq!(touched(&mut cluster, put_service("a", "10.96.0.1")), ["a"]);
    assert_eq!(touched(&mut cluster, put_service("a", "10.96.0.1")), none, "nothing new");
    assert_eq!(touched(&mut cluster, put_slice("a-1", "a", &["10.244.1.1"])), ["a"]);
    assert_eq!(touched(&mut cluster, put_slice("a-1", "b", &["10.244.1.1"])), ["a", "b"], "moves");
    assert_eq!(touched(&mut cluster, put_service("b", "10.96.0.1")), ["a", "b"], "both claim it");
    assert_eq!(touched(&mut cluster, put_service("b", "10.96.0.2")), ["a", "b"], "no longer");
    assert_eq!(touched(&mut cluster, Event::Slice(Change::Deleted(name("a-1")))), ["b"]);
    assert_eq!(touched(&mut cluster, Event::Service(Change::Deleted(name("a")))), ["a"]);
    assert_eq!(touched(&mut cluster, Event::Service(Change::Deleted(name("a")))), none);
}

#[test]
fn s37_what_a_list_does_not_repeat_is_gone_only_when_it_is_complete() {
    let mut cluster = Cluster::new("n1");
    for kind in Kind::ALL {
        assert!(!cluster.synced());
        cluster.apply(Event::Synced(kind));
    }
    assert!(cluster.synced());
    cluster.apply(put_service("kept", "10.96.0.1"));
    cluster.apply(put_service("gone", "10.96.0.2"));
    let object = ObjectRef::new("Service", &name("gone"));
    cluster.apply(Event::Issues(object.clone(), vec![Issue::new(object, "spec", "is odd")]));

    cluster.apply(Event::Restarted(Kind::Service));
    cluster.apply(put_service("kept", "10.96.0.1"));
    assert!(cluster.service(&name("gone")).is_some());
    assert_eq!(cluster.issues().count(), 1);

    assert_eq!(touched(&mut cluster, Event::Synced(Kind::Service)), ["gone"]);
    assert!(cluster.service(&name("kept")).is_some());
    assert_eq!(cluster.issues().count(), 0);
    assert!(cluster.synced(), "a list under way does not take that back");
}

#[test]
fn an_address_lives_as_long_as_an_endpoint_or_a_pod_has_it() {
    let mut cluster = Cluster::new("n1");
    let pod = |host_network| Pod {
        ips: [addr("10.244.1.1")].into(),
        host_network,
        node: "n1".into(),
        ..Pod::default()
    };
    let alive = |cluster: &Cluster| cluster.is_alive(&addr("10.244.1.1"));
    cluster.apply(put_slice("a-1", "a", &["10.244.1.1"]));
    cluster.apply(put_slice("a-2", "a", &["10.244.1.1"]));
    cluster.apply(put_slice("a-1", "a", &[]));
    assert!(alive(&cluster), "the other slice has it");
    cluster.apply(Event::Pod(Change::Applied(name("p"), pod(false))));
    cluster.apply(Event::Slice(Change::Deleted(name("a-2"))));
    assert!(alive(&cluster), "the Pod has it");
    assert_eq!(cluster.pod_at(&addr("10.244.1.1")), Some(&name("p")));
    cluster.apply(Event::Pod(Change::Applied(name("q"), pod(false))));
    cluster.apply(Event::Pod(Change::Deleted(name("p"))));
    assert_eq!(cluster.pod_at(&addr("10.244.1.1")), Some(&name("q")), "it took it over");
    cluster.apply(Event::Pod(Change::Applied(name("q"), pod(true))));
    assert_eq!(cluster.pod_at(&addr("10.244.1.1")), None, "it is the node's");
    cluster.apply(Event::Pod(Change::Deleted(name("q"))));
    assert!(!alive(&cluster));
}

#[test]
fn slices_of_a_service_are_its_own() {
    let mut cluster = Cluster::new("n1");
    for (slice, of) in [("b-2", "b"), ("a-1", "a"), ("b-1", "b"), ("ba-1", "ba")] {
        cluster.apply(put_slice(slice, of, &[]));
    }
    let of = |service: &str| -> Vec<String> {
        cluster.slices_of(&name(service)).map(|(name, _)| name.name.to_string()).collect()
    };
    assert_eq!(of("b"), ["b-1", "b-2"]);
    assert_eq!(of("a"), ["a-1"]);
    assert_eq!(of("c"), [""; 0]);
}

/// A cluster that is synced, with node `n1`.
fn synced() -> Cluster {
    let mut cluster = Cluster::new("n1");
    cluster.apply(put_node("n1", "172.31.0.1", "a"));
    for kind in Kind::ALL {
        cluster.apply(Event::Synced(kind));
    }
    cluster
}

fn put_node(name: &str, ip: &str, zone: &str) -> Event {
    let node = Node {
        addresses: [addr(ip)].into(),
        pod_cidrs: [].into(),
        zone: Some(zone.into()),
        ..Node::default()
    };
    Event::Node(Change::Applied(Name::new("", name), node))
}

/// A Service with an address of a load balancer and, if not 0, a NodePort.
fn put_external(n: &str, ip: &str, lb: &str, node_port: u16) -> Event {
    let mut service = service(ip);
    service.service_type = ServiceType::LoadBalancer;
    service.ports[0].node_port = NonZeroU16::new(node_port);
    service.extra = Some(Box::new(Extra { lb_ips: [addr(lb)].into(), ..Extra::default() }));
    Event::Service(Change::Applied(name(n), service))
}

#[test]
fn rivals_for_addresses_and_ports_of_nodes_are_touched() {
    let mut cluster = synced();
    let none: [&str; 0] = [];
    assert_eq!(touched(&mut cluster, put_service("plain", "10.96.0.9")), ["plain"]);
    assert_eq!(touched(&mut cluster, put_external("a", "10.96.0.1", "203.0.113.1", 30_080)), ["a"]);
    let rival = put_external("b", "10.96.0.2", "203.0.113.1", 0);
    assert_eq!(touched(&mut cluster, rival), ["a", "b"], "one address");
    let rival = put_external("c", "10.96.0.3", "203.0.113.3", 30_080);
    assert_eq!(touched(&mut cluster, rival), ["a", "c"], "one NodePort");
    assert_eq!(
        touched(&mut cluster, put_service("d", "203.0.113.3")),
        ["c", "d"],
        "an address of a load balancer becomes a ClusterIP"
    );
    let pod = Pod { ips: [addr("203.0.113.1")].into(), node: "n1".into(), ..Pod::default() };
    assert_eq!(touched(&mut cluster, Event::Pod(Change::Applied(name("p"), pod))), ["a", "b"]);
    assert_eq!(touched(&mut cluster, Event::Pod(Change::Deleted(name("p")))), ["a", "b"]);
    assert_eq!(touched(&mut cluster, put_node("n1", "172.31.0.2", "a")), ["a", "b", "c"]);
    assert_eq!(touched(&mut cluster, put_node("n1", "172.31.0.2", "a")), none);
    assert_eq!(touched(&mut cluster, put_node("n2", "172.31.0.3", "z")), ["a", "b", "c"]);
    let all = ["a", "b", "c", "d", "plain"];
    assert_eq!(touched(&mut cluster, put_node("n1", "172.31.0.2", "b")), all, "another zone");
    let host = Event::Host([addr("172.31.0.2")].into());
    assert_eq!(touched(&mut cluster, host.clone()), ["a", "b", "c"]);
    assert_eq!(touched(&mut cluster, host), none);
    let lb_at_node = put_external("e", "10.96.0.5", "172.31.0.2", 0);
    assert_eq!(touched(&mut cluster, lb_at_node), ["e"], "no NodePort has its number");
    let rival = put_external("f", "10.96.0.6", "203.0.113.6", 80);
    assert_eq!(touched(&mut cluster, rival), ["e", "f"], "a NodePort with its number");
    assert_eq!(touched(&mut cluster, Event::Service(Change::Deleted(name("f")))), ["e", "f"]);
}

#[test]
fn the_node_and_the_ranges_are_news_without_any_service() {
    let mut cluster = synced();
    let cidr = ServiceCidr { prefixes: ["10.96.0.0/16".parse().unwrap()].into() };
    let name = Name::new("", "kubernetes");
    for (event, node) in [
        (Event::ServiceCidr(Change::Applied(name.clone(), cidr)), true),
        (Event::ServiceCidr(Change::Deleted(name)), true),
        (Event::Host([addr("172.31.0.1")].into()), true),
        (Event::Host([addr("172.31.0.1")].into()), false),
        (put_node("n1", "172.31.0.1", "a"), false),
        (put_node("n2", "172.31.0.9", "a"), false),
        (put_node("n1", "172.31.0.7", "a"), true),
    ] {
        let text = format!("{event:?}");
        assert_eq!(cluster.apply(event).node, node, "{text}");
    }
}
