//! Ten thousand Services with two endpoints each: what one change costs, in writes and in time.
//!
//! The bounds on time are far above what is measured, so that they only catch work that grows with the number of
//! Services.

use std::num::{NonZeroI64, NonZeroU16};
use std::time::{Duration, Instant};

use lb_common::flow::proto;
use lb_core::cluster::{
    Change, Cluster, Endpoint, Event, Extra, Kind, Labels, Name, NamedPort, Namespaces, Node, Peer,
    Pod, PodSelector, Policy, ServiceType,
};
use lb_core::model::Desired;
use lb_core::plan::{Actual, Capacity, MapError, MapStore, Planner, Write};
use lb_testkit::objects::{allow, block, endpoint, network_policy, nth, selector, service, slice};

use super::{alone, resident};

const SERVICES: u32 = 10_000;

/// Maps whose writes cost nothing.
#[derive(Default)]
struct Sink;

impl MapStore for Sink {
    fn apply(&mut self, _: &Write) -> Result<(), MapError> {
        Ok(())
    }
}

fn service_event(i: u32) -> Event {
    let mut service = service(nth("10.96.0.1", i), [("http", 80)]);
    service.created = NonZeroI64::new(1_700_000_000);
    let name = Name::new(format!("team-{}", i % 50), format!("service-{i}"));
    Event::Service(Change::Applied(name, service))
}

fn slice_event(i: u32, n_endpoints: u32) -> Event {
    let endpoint = |k: u32| Endpoint {
        node: Some(format!("node-{}", i % 100).into()),
        zone: Some("zone-a".into()),
        pod: Some(format!("service-{i}-5d8f7c9b4-abcd{k}").into()),
        ..endpoint(nth("10.244.0.0", i * 2 + k))
    };
    let endpoints = (0..n_endpoints).map(endpoint);
    let mut slice = slice(&format!("service-{i}"), [("http", 8080)], endpoints);
    slice.trigger_ms = Some(1_700_000_000_000);
    let name = Name::new(format!("team-{}", i % 50), format!("service-{i}-x7k2p"));
    Event::Slice(Change::Applied(name, slice))
}

#[test]
fn one_change_among_ten_thousand_services_costs_what_one_change_costs() {
    alone("services::one_change_among_ten_thousand_services_costs_what_one_change_costs", || {
        let start = resident();
        let mut cluster = Cluster::new("node-1");
        let mut desired = Desired::default();
        let mut planner = Planner::restore(Actual::default(), Capacity::default());
        let mut round = |events: &mut dyn Iterator<Item = Event>, now: Duration| {
            let at = Instant::now();
            let mut dirty = lb_core::cluster::Dirty::default();
            for event in events {
                dirty.merge(cluster.apply(event));
            }
            let outcome = at.elapsed();
            let changed = desired.update(&cluster, &dirty);
            let modelled = at.elapsed();
            let plan = planner.plan(&desired, &changed, &|addr| cluster.is_alive(addr), now);
            let ops = plan.writes.len();
            let planned = at.elapsed();
            let applied = planner.apply(plan, &mut Sink, &mut || now);
            assert_eq!(applied.failed.len(), 0);
            (ops, [outcome, modelled - outcome, planned - modelled, at.elapsed() - planned])
        };

        let all = (0..SERVICES).flat_map(|i| [service_event(i), slice_event(i, 2)]);
        // One after the other, as they arrive.
        let mut events = all.chain(Kind::ALL.map(Event::Synced));
        let (ops, times) = round(&mut events, Duration::ZERO);
        println!("first plan: {ops} writes; cluster, model, plan, apply: {times:?}");
        println!("resident: {} KiB more than before", resident() - start);
        // Two backends, two slots, the frontend, its wildcard; and once the port that all have.
        assert_eq!(ops, SERVICES as usize * 6 + 1);
        assert!(times.iter().sum::<Duration>() < Duration::from_secs(10));

        let mut all = Vec::new();
        for k in 0..200 {
            let i = k * 37;
            let (ops, times) = round(
                &mut [slice_event(i, 1)].into_iter(),
                Duration::from_millis(10 * u64::from(k)),
            );
            assert_eq!(ops, 3, "a slot, the frontend, the backend that left");
            all.push(times.iter().sum());
        }
        let most = nine_of_ten(all);
        println!("one endpoint less in one Service: nine of ten take at most {most:?}");
        assert!(most < Duration::from_millis(100), "{most:?}");
    });
}

/// What nine of ten take at most: the machine may stop a process for as long as it likes, but not all the time.
fn nine_of_ten(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 9 / 10 - 1]
}

/// A LoadBalancer with a NodePort and an address that all share with it, as where the nodes are the load balancer.
fn load_balancer(i: u32) -> Event {
    let Event::Service(Change::Applied(name, mut service)) = service_event(i) else {
        panic!("no Service");
    };
    let port = u16::try_from(i).unwrap();
    service.service_type = ServiceType::LoadBalancer;
    service.ports[0].port = 1024 + port;
    service.ports[0].node_port = NonZeroU16::new(30_000 + port);
    let lb_ips = [nth("172.31.0.1", 0), nth("203.0.113.0", i)];
    service.extra = Some(Box::new(Extra { lb_ips: lb_ips.into(), ..Extra::default() }));
    Event::Service(Change::Applied(name, service))
}

fn node(i: u32) -> Event {
    let node = Node {
        addresses: [nth("172.31.0.0", i)].into(),
        pod_cidrs: [format!("10.{}.{}.0/24", 128 + i / 256, i % 256).parse().unwrap()].into(),
        zone: Some("zone-a".into()),
        ..Node::default()
    };
    Event::Node(Change::Applied(Name::new("", format!("node-{i}")), node))
}

#[test]
fn two_thousand_load_balancers_on_one_address_in_a_thousand_nodes() {
    alone("services::two_thousand_load_balancers_on_one_address_in_a_thousand_nodes", || {
        let mut cluster = Cluster::new("node-1");
        let mut desired = Desired::default();
        let mut planner = Planner::restore(Actual::default(), Capacity::default());
        let mut round = |events: &mut dyn Iterator<Item = Event>| {
            let at = Instant::now();
            let mut dirty = lb_core::cluster::Dirty::default();
            for event in events {
                dirty.merge(cluster.apply(event));
            }
            let changed = desired.update(&cluster, &dirty);
            let plan = planner.plan(&desired, &changed, &|_| true, Duration::ZERO);
            let ops = plan.writes.len();
            let applied = planner.apply(plan, &mut Sink, &mut || Duration::ZERO);
            assert_eq!(applied.failed.len(), 0);
            (ops, at.elapsed())
        };
        let all = (0..2000).flat_map(|i| [load_balancer(i), slice_event(i, 2)]);
        let mut events = (0..1000).map(node).chain(all).chain(Kind::ALL.map(Event::Synced));
        let (ops, took) = round(&mut events);
        println!("first plan: {ops} writes, {took:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
        let mut times = Vec::new();
        for i in (0..2000).step_by(100) {
            let (ops, took) = round(&mut [slice_event(i, 1)].into_iter());
            // A slot, the backend that left, and its frontends: the ClusterIP, two addresses, the node, localhost.
            assert_eq!(ops, 7);
            times.push(took);
        }
        let most = nine_of_ten(times);
        println!("one endpoint less in one Service: nine of ten take at most {most:?}");
        assert!(most < Duration::from_millis(100), "{most:?}");
    });
}

/// One of twenty of its ReplicaSet, with the labels and ports that Pods usually have.
fn pod(i: u32) -> Event {
    let set = i / 20;
    let label = |key: &str, value: String| (key.into(), value.as_str().into());
    let ports = [("http", 8080), ("metrics", 9090)];
    let pod = Pod {
        ips: [nth("10.244.0.0", i)].into(),
        host_network: false,
        node: format!("node-{}", i % 100).into(),
        labels: Labels::new([
            label("app.kubernetes.io/name", format!("service-{set}")),
            label("app.kubernetes.io/instance", format!("service-{set}")),
            label("app.kubernetes.io/component", "server".to_owned()),
            label("app.kubernetes.io/managed-by", "Helm".to_owned()),
            label("pod-template-hash", format!("5d8f7c{set:04}")),
        ]),
        ports: ports
            .map(|(name, port)| NamedPort { name: name.into(), protocol: proto::TCP, port })
            .into(),
        ..Pod::default()
    };
    let name =
        Name::new(format!("team-{}", set % 50), format!("service-{set}-5d8f7c{set:04}-{i:05}"));
    Event::Pod(Change::Applied(name, pod))
}

/// From two kinds of peers to two ports, and to a range of addresses.
fn policy(i: u32) -> Event {
    let selector = |key: &str, value: String| selector(&format!("{key}={value}"));
    let peer = |k: u32| {
        let namespaces = selector("kubernetes.io/metadata.name", format!("team-{}", (i + k) % 50));
        let pods = selector("app.kubernetes.io/name", format!("service-{}", (i + k) % 500));
        Peer::Pods(PodSelector { namespaces: Namespaces::Selected(namespaces), pods })
    };
    let ports = ["tcp/http", "tcp/metrics"];
    let policy = Policy {
        ingress: Some([allow(vec![peer(0), peer(1)], &ports), allow(vec![peer(2)], &ports)].into()),
        egress: Some([allow(vec![block("10.0.0.0/8", &["10.1.0.0/16"])], &ports)].into()),
        created: 1_700_000_000,
        ..network_policy(&format!("app.kubernetes.io/name=service-{}", i % 500))
    };
    let name = Name::new(format!("team-{}", i % 50), format!("allow-service-{i}"));
    Event::NetworkPolicy(Change::Applied(name, policy))
}

#[test]
fn ten_thousand_pods_and_a_thousand_policies_fit_into_ten_mebibytes() {
    alone("services::ten_thousand_pods_and_a_thousand_policies_fit_into_ten_mebibytes", || {
        let start = resident();
        let mut cluster = Cluster::new("node-1");
        // One after the other, as they arrive.
        for event in (0..10_000).map(pod).chain((0..1000).map(policy)) {
            cluster.apply(event);
        }
        Kind::ALL.into_iter().for_each(|kind| drop(cluster.apply(Event::Synced(kind))));
        let more = resident() - start;
        println!("resident: {more} KiB more than before");
        assert!(more < 10 * 1024, "{more} KiB");
        let at = Instant::now();
        for i in 0..10_000 {
            assert!(!cluster.apply(pod(i)).policies, "told again");
        }
        println!("all Pods told again: {:?}", at.elapsed());
        assert_eq!((cluster.all_pods().count(), cluster.policies().count()), (10_000, 1000));
    });
}
