//! What the scenarios do not show, since it is in no map: answers of health checks, rejected endpoints, sizes.
#![forbid(unsafe_code)]

use std::num::NonZeroU16;

use lb_common::addr::Addr;
use lb_common::flow::proto;
use lb_common::service::MAGLEV_SLOTS;

use super::rules::{NodePortAddresses, Rules};
use super::topology::Rejection;
use super::{Desired, DesiredPort, DesiredService, Scope};
use crate::cluster::{
    Algorithm, Change, Cluster, Conditions, Dirty, Endpoint, EndpointSlice, Event, Extra, Family,
    Hints, Kind, Labels, Name, Service, ServicePort, ServiceType, SlicePort, TrafficPolicy,
};

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

/// A LoadBalancer of both families with `externalTrafficPolicy: Local`.
fn service() -> Service {
    let extra = Extra {
        external_policy: TrafficPolicy::Local,
        health_port: NonZeroU16::new(31_000),
        ..Extra::default()
    };
    Service {
        service_type: ServiceType::LoadBalancer,
        cluster_ips: [addr("10.96.0.1"), addr("fd96::1")].into(),
        ports: [ServicePort { name: "".into(), protocol: proto::TCP, port: 80, node_port: None }]
            .into(),
        internal_policy: TrafficPolicy::Cluster,
        created: None,
        selector: Labels::default(),
        extra: Some(Box::new(extra)),
    }
}

/// An endpoint with its address, whether it is here, and the first letters of its conditions.
fn endpoint(text: &str, here: bool, conditions: &str) -> Endpoint {
    let has = |letter| conditions.contains(letter);
    Endpoint {
        addr: addr(text),
        conditions: Conditions { ready: has('r'), serving: has('s'), terminating: has('t') },
        node: Some(if here { "n1" } else { "n2" }.into()),
        zone: None,
        pod: None,
        hints: None,
    }
}

fn slice(family: Family, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        service: "web".into(),
        family,
        ports: [SlicePort { name: "".into(), protocol: proto::TCP, port: 8080 }].into(),
        endpoints: endpoints.into(),
        trigger_ms: None,
    }
}

fn model(service: Service, slices: Vec<EndpointSlice>) -> (Cluster, Desired) {
    let mut cluster = Cluster::new("n1");
    let name = Name::new("ns", "web");
    let mut dirty = cluster.apply(Event::Service(Change::Applied(name, service)));
    for (i, slice) in slices.into_iter().enumerate() {
        let name = Name::new("ns", format!("web-{i}"));
        dirty.merge(cluster.apply(Event::Slice(Change::Applied(name, slice))));
    }
    let mut desired = Desired::default();
    desired.update(&cluster, &dirty);
    (cluster, desired)
}

#[test]
fn s06_health_counts_ready_endpoints_of_this_node_only() {
    let v4 = |endpoints| slice(Family::V4, endpoints);
    let [here, also] = ["10.244.1.1", "10.244.1.2"];
    let ready = endpoint(here, true, "rs");
    let cases: [(&str, Vec<EndpointSlice>, u32); 9] = [
        ("nothing", vec![], 0),
        ("one here", vec![v4(vec![ready.clone()])], 1),
        ("one elsewhere", vec![v4(vec![endpoint(here, false, "rs")])], 0),
        ("one that terminates and serves", vec![v4(vec![endpoint(here, true, "st")])], 0),
        ("one that is not ready", vec![v4(vec![endpoint(here, true, "s")])], 0),
        ("published although it terminates", vec![v4(vec![endpoint(here, true, "rst")])], 1),
        ("one of two", vec![v4(vec![ready.clone(), endpoint(also, true, "st")])], 1),
        ("in two slices at once", vec![v4(vec![ready.clone()]), v4(vec![ready.clone()])], 1),
        (
            "of both families",
            vec![v4(vec![ready]), slice(Family::V6, vec![endpoint("fd44::1", true, "rs")])],
            1,
        ),
    ];
    for (name, slices, want) in cases {
        let (_, desired) = model(service(), slices);
        let health: Vec<_> =
            desired.health().map(|(n, port, ready)| (n.to_string(), port, ready)).collect();
        assert_eq!(health, [("ns/web".to_owned(), 31_000, want)], "{name}");
    }
}

#[test]
fn s06_no_health_without_its_port() {
    let (_, desired) = model(Service { extra: None, ..service() }, vec![]);
    assert_eq!(desired.health().count(), 0);
}

#[test]
fn rejected_endpoints_have_a_reason() {
    let hinted = |mut endpoint: Endpoint, zone: &str| {
        endpoint.hints = Some(Box::new(Hints { zones: [zone.into()].into(), nodes: [].into() }));
        endpoint
    };
    let slices = vec![slice(
        Family::V4,
        vec![
            hinted(endpoint("10.244.1.1", false, "rs"), "a"),
            endpoint("10.244.1.3", false, ""),
            endpoint("10.244.1.4", false, "t"),
            endpoint("10.244.1.5", false, "st"),
            hinted(endpoint("10.244.1.2", false, "rs"), "b"),
        ],
    )];
    let (mut cluster, mut desired) = model(Service { extra: None, ..service() }, slices);
    let node = crate::cluster::Node {
        addresses: [].into(),
        pod_cidrs: [].into(),
        zone: Some("a".into()),
        ..crate::cluster::Node::default()
    };
    Kind::ALL.into_iter().for_each(|kind| drop(cluster.apply(Event::Synced(kind))));
    let dirty: Dirty = cluster.apply(Event::Node(Change::Applied(Name::new("", "n1"), node)));
    assert_eq!(dirty.services.len(), 1, "hints are judged again in another zone");
    desired.update(&cluster, &dirty);
    let name = Name::new("ns", "web");
    let port = &desired.services[&name].ports[0];
    let rejected = Desired::rejected(&cluster, &name, port);
    let rejected: Vec<_> = rejected.iter().map(|(a, p, r)| (a.to_string(), *p, *r)).collect();
    let want = [
        ("10.244.1.2", Rejection::OtherZone),
        ("10.244.1.3", Rejection::NotReady),
        ("10.244.1.4", Rejection::NotServing),
        ("10.244.1.5", Rejection::TerminatingWhileOthersReady),
    ];
    assert_eq!(rejected, want.map(|(addr, reason)| (addr.to_owned(), 8080, reason)));
}

#[test]
fn more_endpoints_than_a_maglev_table_has_room_for_are_an_issue() {
    let most = MAGLEV_SLOTS as usize;
    let cases = [
        (Algorithm::Maglev, most, true, None),
        (Algorithm::Maglev, most + 1, true, Some("1022 IPv4 endpoints: using random")),
        // No client outside would be served by a table.
        (Algorithm::Maglev, most + 1, false, None),
        (Algorithm::Random, most + 1, true, None),
    ];
    for (algorithm, n, is_node_port, want) in cases {
        let extra = Extra { algorithm, ..Extra::default() };
        let mut service = Service { extra: Some(Box::new(extra)), ..service() };
        service.ports[0].node_port = NonZeroU16::new(if is_node_port { 30_080 } else { 0 });
        let endpoints =
            (0..n).map(|i| endpoint(&format!("10.244.{}.{}", i / 200, i % 200 + 1), false, "rs"));
        let (_, desired) = model(service, vec![slice(Family::V4, endpoints.collect())]);
        let found: Vec<_> = desired.issues().map(ToString::to_string).collect();
        let found: Vec<_> = found.into_iter().filter(|text| text.contains("annotations")).collect();
        let name = format!("{algorithm:?} with {n}, NodePort {is_node_port}: {found:?}");
        let start = "Service ns/web: metadata.annotations[lb-agent.io/algorithm]: maglev supports 1021 endpoints, but port 80 has ";
        let want: Vec<_> = want.iter().map(|end| format!("{start}{end}")).collect();
        assert_eq!(found, want, "{name}");
    }
}

#[test]
fn records_of_plain_services_stay_small() {
    // There are ten thousand of each.
    assert_eq!(size_of::<Service>(), 72);
    assert_eq!(size_of::<ServicePort>(), 24);
    assert_eq!(size_of::<DesiredService>(), 48);
    assert_eq!(size_of::<DesiredPort>(), 64);
    // Twenty thousand.
    assert_eq!(size_of::<Endpoint>(), 80);
    // Sixty thousand in the first plan.
    assert_eq!(size_of::<crate::plan::Write>(), 64);
}

#[test]
fn s24_addresses_of_node_ports_are_those_asked_for() {
    let mut cluster = Cluster::new("n1");
    let within = |ranges: &[&str]| {
        NodePortAddresses::Within(ranges.iter().map(|range| range.parse().unwrap()).collect())
    };
    let check = |cluster: &Cluster, node_ports: NodePortAddresses, want: &[&str]| {
        let text = format!("{node_ports:?}");
        let rules = Rules { node_ports, ..Rules::default() };
        let addrs: Vec<_> = rules.node_port_addrs(cluster).iter().map(Addr::to_string).collect();
        assert_eq!(addrs, want, "{text}");
    };
    check(&cluster, NodePortAddresses::Primary, &[]);
    let host = ["192.168.1.5", "172.31.0.1", "10.244.1.1", "2001:db8::5"].map(addr);
    cluster.apply(Event::Host(host.into()));
    // Without a Node object, as with manifests, the first of the host.
    check(&cluster, NodePortAddresses::Primary, &["192.168.1.5", "2001:db8::5"]);
    let node = crate::cluster::Node {
        addresses: ["172.31.0.1", "203.0.113.1"].map(addr).into(),
        pod_cidrs: [].into(),
        zone: None,
        ..crate::cluster::Node::default()
    };
    cluster.apply(Event::Node(Change::Applied(Name::new("", "n1"), node)));
    check(&cluster, NodePortAddresses::Primary, &["172.31.0.1", "2001:db8::5"]);
    check(&cluster, within(&["172.31.0.0/16", "192.168.0.0/16"]), &["172.31.0.1", "192.168.1.5"]);
    check(&cluster, within(&["::/0"]), &["2001:db8::5"]);
    check(&cluster, within(&["198.18.0.0/15"]), &[]);
}

#[test]
fn localhost_node_ports_can_be_turned_off() {
    for localhost in [true, false] {
        let mut cluster = Cluster::new("n1");
        let mut service = Service { extra: None, ..service() };
        service.ports[0].node_port = NonZeroU16::new(30_080);
        let name = Name::new("ns", "web");
        let dirty = cluster.apply(Event::Service(Change::Applied(name.clone(), service)));
        let mut desired = Desired::new(Rules { localhost, ..Rules::default() });
        desired.update(&cluster, &dirty);
        let ports = desired.services[&name].ports.iter();
        let externals: Vec<_> =
            ports.flat_map(|port| &port.extra).flat_map(|e| &e.externals).collect();
        let scopes: Vec<_> =
            externals.iter().map(|e| (e.addr.to_string(), e.port, e.scope)).collect();
        let both = ["127.0.0.1", "::1"].map(|ip| (ip.to_owned(), 30_080, Scope::Localhost));
        assert_eq!(scopes, if localhost { both.to_vec() } else { vec![] });
    }
}

#[test]
fn external_ips_are_served_where_kubernetes_has_them_on_or_the_flag_allows_them() {
    let range = |text: &str| Some([text.parse().unwrap()].into());
    let off = "192.0.2.7 is not in --external-ip-cidrs: not served";
    let off_by_version = "192.0.2.7 is not in --external-ip-cidrs, and Kubernetes 1.40 disables externalIPs: not served";
    let off_by_later = "192.0.2.7 is not in --external-ip-cidrs, and Kubernetes 2.0 disables externalIPs: not served";
    for (name, version, external_ips, is_on, want) in [
        ("unknown", None, None, false, Some(off)),
        ("1.36", Some((1, 36)), None, true, None),
        ("1.39", Some((1, 39)), None, true, None),
        ("1.40", Some((1, 40)), None, false, Some(off_by_version)),
        ("2.0", Some((2, 0)), None, false, Some(off_by_later)),
        ("1.40, allowed", Some((1, 40)), range("192.0.2.0/24"), true, None),
        ("unknown, allowed", None, range("192.0.2.0/24"), true, None),
        ("1.36, others are", Some((1, 36)), range("198.51.100.0/24"), true, Some(off)),
        ("1.36, none", Some((1, 36)), Some(Box::default()), false, Some(off)),
    ] {
        let mut cluster = Cluster::new("n1");
        let extra = Extra { external_ips: [addr("192.0.2.7")].into(), ..Extra::default() };
        let service = Service { extra: Some(Box::new(extra)), ..service() };
        let web = Name::new("ns", "web");
        let mut dirty = cluster.apply(Event::Service(Change::Applied(web.clone(), service)));
        if let Some(version) = version {
            dirty.merge(cluster.apply(Event::Server(version)));
        }
        let mut desired = Desired::new(Rules { external_ips, ..Rules::default() });
        desired.update(&cluster, &dirty);
        let issues: Vec<_> = desired.issues().map(|issue| issue.message.clone()).collect();
        assert_eq!(issues, want.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{name}");
        let externals = desired.services[&web].ports.iter().flat_map(|port| &port.extra);
        let served = externals.flat_map(|extra| &extra.externals).count();
        assert_eq!(served > 0, want.is_none(), "{name}");
        assert_eq!(desired.rules().external_ips(&cluster).is_on(), is_on, "{name}");
    }
}
