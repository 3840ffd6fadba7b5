//! Lists, liveness of addresses, and which services an event touches.
#![forbid(unsafe_code)]

use std::num::NonZeroU16;

use lb_common::addr::Addr;
use lb_common::flow::proto;

use super::{
    Change, Cluster, Conditions, Endpoint, EndpointSlice, Event, Extra, Family, Kind, Labels, Name,
    NamedPort, Namespace, Namespaces, Node, Pod, PodSelector, Policy, Selector, Service,
    ServiceCidr, ServicePort, ServiceType, SlicePort, Tier, TrafficPolicy,
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
        selector: Labels::default(),
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

fn labels(app: &str) -> Labels {
    Labels::new([("app".into(), app.into())])
}

fn put_pod(n: &str, pod: Pod) -> Event {
    Event::Pod(Change::Applied(name(n), pod))
}

fn policy(tier: Tier, generation: i64) -> Policy {
    Policy {
        tier,
        priority: 0,
        subject: PodSelector { namespaces: Namespaces::Own, pods: Selector::default() },
        ingress: Some([].into()),
        egress: None,
        shadow: false,
        generation,
        created: 0,
    }
}

fn put_policy(n: &str) -> Event {
    Event::NetworkPolicy(Change::Applied(name(n), policy(Tier::NetworkPolicy, 1)))
}

fn gone_policy(n: &str) -> Event {
    Event::NetworkPolicy(Change::Deleted(name(n)))
}

fn put_namespace(app: &str, terminating: bool) -> Event {
    let namespace = Namespace { labels: labels(app), terminating };
    Event::Namespace(Change::Applied(Name::new("", "ns"), namespace))
}

fn gone_namespace() -> Event {
    Event::Namespace(Change::Deleted(Name::new("", "ns")))
}

/// The names of all policies in force.
fn policies(cluster: &Cluster) -> Vec<String> {
    let mut names: Vec<_> = cluster.policies().map(|(name, _)| name.to_string()).collect();
    names.sort();
    names
}

#[test]
fn what_policies_depend_on_makes_them_dirty_and_nothing_else() {
    let pod = || Pod { ips: [addr("10.244.2.1")].into(), node: "n2".into(), ..Pod::default() };
    let port = NamedPort { name: "http".into(), protocol: proto::TCP, port: 80 };
    let node = |labels, ip: &str, pod_cidr: &str| {
        let node = Node {
            addresses: [addr(ip)].into(),
            pod_cidrs: [pod_cidr.parse().unwrap()].into(),
            labels,
            ..Node::default()
        };
        Event::Node(Change::Applied(Name::new("", "n2"), node))
    };
    let cnp = |generation| {
        let policy = policy(Tier::Admin, generation);
        Event::ClusterNetworkPolicy(Change::Applied(Name::new("", "c"), policy))
    };
    let steps = [
        ("a Pod", put_pod("p", pod()), true),
        ("the same", put_pod("p", pod()), false),
        ("its labels", put_pod("p", Pod { labels: labels("a"), ..pod() }), true),
        ("its ports", put_pod("p", Pod { ports: [port].into(), ..pod() }), true),
        ("its node", put_pod("p", Pod { node: "n1".into(), ..pod() }), true),
        ("its network", put_pod("p", Pod { host_network: true, ..pod() }), true),
        ("its addresses", put_pod("p", Pod { ips: [].into(), ..pod() }), true),
        ("no Pod", Event::Pod(Change::Deleted(name("p"))), true),
        ("none before", Event::Pod(Change::Deleted(name("p"))), false),
        ("a namespace", put_namespace("a", false), true),
        ("its labels", put_namespace("b", false), true),
        ("that it is going", put_namespace("b", true), false),
        ("a node", node(labels("a"), "172.31.0.2", "10.244.2.0/24"), true),
        ("its ranges", node(labels("a"), "172.31.0.2", "10.244.3.0/24"), true),
        ("its labels", node(labels("b"), "172.31.0.2", "10.244.3.0/24"), true),
        ("its addresses", node(labels("b"), "172.31.0.3", "10.244.3.0/24"), true),
        ("no node", Event::Node(Change::Deleted(Name::new("", "n2"))), true),
        ("a policy", put_policy("p"), true),
        ("the same", put_policy("p"), false),
        ("one of the cluster", cnp(1), true),
        ("the same", cnp(1), false),
        ("another", cnp(2), true),
        ("none", Event::ClusterNetworkPolicy(Change::Deleted(Name::new("", "c"))), true),
        ("none before", Event::ClusterNetworkPolicy(Change::Deleted(Name::new("", "c"))), false),
        ("no namespace", gone_namespace(), true),
        ("no policy", gone_policy("p"), true),
        ("none before", gone_policy("p"), false),
        ("a Service", put_service("a", "10.96.0.1"), false),
        ("a slice", put_slice("a-1", "a", &["10.244.2.1"]), false),
    ];
    let mut cluster = synced();
    for (what, event, dirty) in steps {
        assert_eq!(cluster.apply(event).policies, dirty, "{what}");
    }
}

#[test]
fn a_list_makes_policies_dirty_only_by_what_it_does_not_repeat() {
    let mut cluster = synced();
    let events = || [put_pod("p", Pod::default()), put_policy("p"), put_namespace("a", false)];
    for event in events() {
        cluster.apply(event);
    }
    for kept in [3, 2] {
        let mut dirty = false;
        let restarted = Kind::ALL.map(Event::Restarted);
        let node = put_node("n1", "172.31.0.1", "a");
        let kept = events().into_iter().skip(3 - kept).chain([node]);
        let want = kept.clone().count() == 3;
        for event in restarted.into_iter().chain(kept).chain(Kind::ALL.map(Event::Synced)) {
            dirty |= cluster.apply(event).policies;
        }
        assert_eq!(dirty, want);
    }
}

#[test]
fn pods_of_other_nodes_are_there_for_policies_and_connections_to_them() {
    let mut cluster = synced();
    let at =
        |node: &str| Pod { ips: [addr("10.244.1.1")].into(), node: node.into(), ..Pod::default() };
    let state = |cluster: &Cluster| {
        let (own, all) = (cluster.pods().count(), cluster.all_pods().count());
        (
            own,
            all,
            cluster.is_alive(&addr("10.244.1.1")),
            cluster.pod_at(&addr("10.244.1.1")).is_some(),
        )
    };
    for (node, want) in
        [("", (0, 1, true, false)), ("n1", (1, 1, true, true)), ("n2", (0, 1, true, false))]
    {
        cluster.apply(put_pod("p", at(node)));
        assert_eq!(state(&cluster), want, "node `{node}`");
    }
    cluster.apply(Event::Pod(Change::Deleted(name("p"))));
    assert_eq!(state(&cluster), (0, 0, false, false));
}

/// Calls with every order of the numbers below `n`.
fn permutations(n: usize, taken: &mut Vec<usize>, then: &mut dyn FnMut(&[usize])) {
    if taken.len() == n {
        return then(taken);
    }
    for i in (0..n).filter(|i| !taken.contains(i)).collect::<Vec<_>>() {
        taken.push(i);
        permutations(n, taken, then);
        taken.pop();
    }
}

#[test]
fn policies_hold_until_their_namespace_is_gone_in_whatever_order_that_is_told() {
    // CVE-2024-7598. Between the watches of policies and of namespaces there is no order.
    let events = || {
        [put_namespace("a", true), gone_policy("a"), gone_policy("b"), put_pod("p", Pod::default())]
    };
    permutations(4, &mut Vec::new(), &mut |order| {
        let mut cluster = synced();
        for event in [put_namespace("a", false), put_policy("a"), put_policy("b")] {
            cluster.apply(event);
        }
        let events = events();
        for i in order {
            let before = policies(&cluster);
            let dirty = cluster.apply(events[*i].clone()).policies;
            assert!(dirty || policies(&cluster) == before, "{order:?}");
        }
        assert_eq!(policies(&cluster), ["ns/a", "ns/b"], "{order:?}");
        cluster.pass();
        cluster.pass();
        assert!(!cluster.apply(put_namespace("a", true)).policies);
        assert_eq!(policies(&cluster), ["ns/a", "ns/b"], "{order:?}");
        assert!(cluster.apply(gone_namespace()).policies);
        assert_eq!(policies(&cluster), [""; 0], "{order:?}");
    });
    // And the end of the namespace may be told before that of its policies.
    permutations(3, &mut Vec::new(), &mut |order| {
        let mut cluster = synced();
        for event in [put_namespace("a", true), put_policy("a"), put_policy("b")] {
            cluster.apply(event);
        }
        for i in order {
            cluster.apply([gone_namespace(), gone_policy("a"), gone_policy("b")][*i].clone());
        }
        assert_eq!(policies(&cluster), [""; 0], "{order:?}");
    });
}

#[test]
fn policies_of_a_namespace_that_stays_are_gone_at_once() {
    let mut cluster = synced();
    for event in [put_namespace("a", false), put_policy("a"), put_policy("b")] {
        cluster.apply(event);
    }
    assert!(cluster.apply(gone_policy("a")).policies);
    assert_eq!(policies(&cluster), ["ns/b"]);
    cluster.pass();
    cluster.pass();
    assert!(!cluster.apply(put_namespace("a", true)).policies, "that was long ago");
    assert_eq!(policies(&cluster), ["ns/b"]);
    let of_none = Name::new("elsewhere", "c");
    let put = Change::Applied(of_none.clone(), policy(Tier::NetworkPolicy, 1));
    cluster.apply(Event::NetworkPolicy(put));
    assert!(cluster.apply(Event::NetworkPolicy(Change::Deleted(of_none))).policies);
    assert_eq!(policies(&cluster), ["ns/b"], "manifests need not have the namespace");
}

#[test]
fn a_list_while_a_namespace_is_going() {
    let lists = |namespace: Option<Event>| {
        let kinds = [Kind::NetworkPolicy, Kind::Namespace];
        let [policies, namespaces] =
            kinds.map(|kind| (Event::Restarted(kind), Event::Synced(kind)));
        let mut events = vec![policies.0, namespaces.0, policies.1];
        events.extend(namespace);
        events.push(namespaces.1);
        events
    };
    for (going, namespace, want) in [
        // What the lists say, and what holds after that; until they are complete all holds.
        (true, Some(put_namespace("a", true)), &["ns/a"][..]),
        (false, Some(put_namespace("a", true)), &["ns/a"]),
        (true, None, &[]),
        (false, None, &[]),
        // Deleted and created again.
        (true, Some(put_namespace("a", false)), &[]),
        (false, Some(put_namespace("a", false)), &[]),
    ] {
        let mut cluster = synced();
        for event in [put_namespace("a", going), put_policy("a")] {
            cluster.apply(event);
        }
        let mut dirty = false;
        for event in lists(namespace.clone()) {
            if !matches!(event, Event::Synced(Kind::Namespace)) {
                assert_eq!(policies(&cluster), ["ns/a"], "{namespace:?}");
            }
            dirty |= cluster.apply(event).policies;
        }
        assert_eq!(policies(&cluster), want, "{going} {namespace:?}");
        assert_eq!(dirty, want.is_empty(), "{going} {namespace:?}");
    }
}

#[test]
fn a_namespace_that_is_created_again_has_its_own_policies() {
    let mut cluster = synced();
    for event in [
        put_namespace("a", true),
        put_policy("a"),
        put_policy("b"),
        gone_policy("a"),
        gone_policy("b"),
    ] {
        cluster.apply(event);
    }
    // The policy of the new namespace is told before that.
    cluster.apply(Event::NetworkPolicy(Change::Applied(name("a"), policy(Tier::NetworkPolicy, 7))));
    assert_eq!(policies(&cluster), ["ns/a", "ns/b"]);
    cluster.apply(gone_namespace());
    cluster.apply(put_namespace("a", false));
    let generations: Vec<_> =
        cluster.policies().map(|(name, it)| (name.to_string(), it.generation)).collect();
    assert_eq!(generations, [("ns/a".to_owned(), 7)]);
    assert!(cluster.apply(gone_policy("a")).policies);
    assert_eq!(policies(&cluster), [""; 0]);
}
