//! A thousand policies, ten thousand Pods, 110 of them here: what compiling costs, what one change costs, and memory.
//!
//! The bounds on time are far above what is measured.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_common::addr::Addr;
use lb_common::endpoint::Ident;
use lb_core::cluster::{
    Change, Cluster, Event, Kind, Labels, Name, NamedPort, Namespace, Node, Peer, Pod, Snapshot,
};
use lb_core::model::policy::{Compiler, DesiredPolicies};
use lb_core::plan::policy::{Behind, DesiredTables, PodDevice};
use lb_core::plan::{Actual, Capacity, MapError, MapStore, Planner, Write};
use lb_testkit::objects::{across, allow, block, network_policy, nth, own};

use super::{alone, resident};

const PODS: u32 = 10_000;
const NAMESPACES: u32 = 200;
const NODES: u32 = 91;

/// Maps whose writes cost nothing.
struct Sink;

impl MapStore for Sink {
    fn apply(&mut self, _: &Write) -> Result<(), MapError> {
        Ok(())
    }
}

fn ip(i: u32) -> Addr {
    nth("10.1.0.0", i)
}

fn pod(i: u32, app: &str) -> Event {
    let labels = [
        ("app", app.to_owned()),
        ("pod-template-hash", format!("5d8f7c9b4{}", i % 500)),
        ("version", format!("v{}", i % 3)),
        ("controller-revision", format!("r{i}")),
    ];
    let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into()));
    let pod = Pod {
        ips: [ip(i)].into(),
        host_network: false,
        node: format!("node-{}", i % NODES).into(),
        labels: Labels::new(labels),
        ports: [NamedPort { name: "http".into(), protocol: 6, port: 8080 }].into(),
        ..Pod::default()
    };
    Event::Pod(Change::Applied(name(i), pod))
}

fn name(i: u32) -> Name {
    Name::new(format!("team-{}", i % NAMESPACES), format!("pod-{i}"))
}

fn app(i: u32) -> String {
    format!("app-{}", i / NAMESPACES % 10)
}

fn policy(i: u32, n: u32) -> Event {
    let app = |k: u32| format!("app=app-{k}");
    let mut policy = network_policy("");
    match n {
        0 => policy.ingress = Some([].into()),
        1 => policy.ingress = Some([allow(vec![Peer::Pods(own(""))], &[])].into()),
        2 => {
            policy.subject = own(&app(i % 10));
            let peers = across(&format!("tier=tier-{}", i % 7), &app(i % 10));
            policy.ingress = Some([allow(vec![Peer::Pods(peers)], &["tcp/8000-8100"])].into());
        }
        3 => {
            let team = format!("172.16.{i}");
            let block_of_team = block(&format!("{team}.0/24"), &[&format!("{team}.128/25")]);
            let rules = [
                allow(vec![block_of_team], &[]),
                allow(vec![block("0.0.0.0/0", &[])], &["tcp/443"]),
                allow(vec![Peer::Pods(own(&app(1)))], &["tcp/http"]),
            ];
            policy.egress = Some(rules.into());
        }
        _ => {
            let dns = across("kubernetes.io/metadata.name=team-0", &app(0));
            policy.egress = Some([allow(vec![Peer::Pods(dns)], &["tcp/53"])].into());
        }
    }
    Event::NetworkPolicy(Change::Applied(Name::new(format!("team-{i}"), format!("p{n}")), policy))
}

/// All objects, as they arrive at first.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new("node-1");
    for i in 0..NAMESPACES {
        let labels = Labels::new([("tier".into(), format!("tier-{}", i % 7).into())]);
        let namespace = Namespace { labels, terminating: false };
        let name = Name::new("", format!("team-{i}"));
        cluster.apply(Event::Namespace(Change::Applied(name, namespace)));
    }
    for i in 0..NODES {
        let addresses = [Addr::from_ip(std::net::Ipv4Addr::new(192, 0, 2, i as u8).into())].into();
        let name = Name::new("", format!("node-{i}"));
        let node = Node { addresses, ..Node::default() };
        cluster.apply(Event::Node(Change::Applied(name, node)));
    }
    for i in 0..PODS {
        cluster.apply(pod(i, &app(i)));
    }
    for i in 0..NAMESPACES {
        (0..5).for_each(|n| {
            cluster.apply(policy(i, n));
        });
    }
    for kind in Kind::ALL {
        cluster.apply(Event::Synced(kind));
    }
    cluster
}

/// The devices of this node's Pods.
fn veths() -> Vec<PodDevice> {
    let behind = |i: u32| Behind::Pod(name(i), 0);
    let device_part = lb_common::endpoint::PodEntry::ZERO;
    let here = (0..PODS).filter(|i| i % NODES == 1);
    here.map(|i| PodDevice { ifindex: i, behind: behind(i), device_part }).collect()
}

#[test]
fn a_thousand_policies_on_ten_thousand_pods() {
    alone("policies::a_thousand_policies_on_ten_thousand_pods", policies_on_pods);
}

fn policies_on_pods() {
    let start = resident();
    let mut cluster = cluster();
    println!("records: {} KiB", resident() - start);
    let veths = veths();
    let device =
        |veth: &PodDevice| (ip(veth.ifindex), Ident { ifindex: veth.ifindex, ..Ident::ZERO });
    let devices: BTreeMap<Addr, Ident> = veths.iter().map(device).collect();
    let mut compiler = Compiler::default();
    let mut planner = Planner::restore(Actual::default(), Capacity::default());
    for veth in &veths {
        let plan = planner.plan_pod(None, veth, 0);
        planner.apply(plan, &mut Sink, &mut || Duration::ZERO);
    }
    let mut now = Duration::ZERO;
    let mut desired = DesiredPolicies::default();
    let mut round = |cluster: &Cluster| {
        let at = Instant::now();
        let snapshot = cluster.snapshot();
        println!("snapshot: {:?}", at.elapsed());
        desired = compiler.compile(&snapshot);
        let compiled = at.elapsed();
        drop(snapshot);
        now += Duration::from_secs(3);
        let wanted = DesiredTables {
            desired: Some(&desired),
            devices: &devices,
            veths: &veths,
            strict: false,
            pickup_until: 0,
        };
        let plan = planner.plan_policies(&wanted, now);
        let planned = at.elapsed();
        let n_ops = plan.writes.len();
        let applied = planner.apply(plan, &mut Sink, &mut || now);
        assert_eq!(applied.failed.len(), 0);
        let counts = (desired.groups.len(), desired.idents.len(), planner.actual().peer_bits.len());
        let times = [compiled, planned - compiled, at.elapsed() - planned];
        (n_ops, times, counts, planner.actual().port_bits.len(), planner.actual().cidrs.len())
    };
    let (n_ops, times, (groups, idents, peer_bits), port_bits, cidrs) = round(&cluster);
    println!("first: {n_ops} writes; compile, plan, apply: {times:?}");
    println!(
        "{groups} groups, {idents} identities, {peer_bits} peer bits, {port_bits} port bits, {cidrs} cidrs"
    );
    println!("resident: {} KiB more than before", resident() - start);
    assert!(times.iter().sum::<Duration>() < Duration::from_secs(10));
    let mut steps: Vec<(&str, Event)> = vec![
        ("one label", pod(4321, "app-9")),
        ("one label back", pod(4321, &app(4321))),
        ("a local label", pod(92, "app-9")),
        ("a new Pod", pod(PODS, "app-1")),
        ("a policy less", Event::NetworkPolicy(Change::Deleted(Name::new("team-1", "p1")))),
        ("a policy more", policy(1, 1)),
    ];
    steps.push(("nothing", pod(4321, &app(4321))));
    let mut worst = Duration::ZERO;
    for (what, event) in steps {
        cluster.apply(event);
        let (n_ops, times, counts, ..) = round(&cluster);
        println!("{what}: {n_ops} writes, {times:?} {counts:?}");
        worst = worst.max(times.iter().sum());
    }
    // A change while a reader holds the previous records costs a copy of the names, once.
    let snapshot = cluster.snapshot();
    let at = Instant::now();
    for (what, app) in [("first", "app-8"), ("second", "app-7")] {
        cluster.apply(pod(4321, app));
        println!("{what} change beside a snapshot: {:?}", at.elapsed());
    }
    assert!(at.elapsed() < Duration::from_millis(500));
    let name = Name::new("team-121", "pod-4321");
    let app_of = |cluster: &Snapshot| {
        let mut pods = cluster.all_pods();
        pods.find(|(known, _)| **known == name).and_then(|(_, pod)| pod.labels.get("app").cloned())
    };
    assert_eq!(app_of(&snapshot).as_deref(), Some(&*app(4321)), "it stays as it was");
    assert_eq!(app_of(&cluster.snapshot()).as_deref(), Some("app-7"));
    drop(snapshot);
    println!("resident: {} KiB more than before", resident() - start);
    assert!(worst < Duration::from_secs(5), "{worst:?}");
    assert!(resident() - start < 60 * 1024, "{} KiB", resident() - start);
}
