//! The most expensive policies that one object can hold (etcd takes 1.5 MB): what compiling costs grows with the number
//! of blocks and not with its square, in time and in memory.
//!
//! Times are compared with each other; the bounds on them are far above what is measured

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use lb_common::addr::Addr;
use lb_core::cluster::{Change, Cluster, Event, Kind, Name, Namespace, Peer, Policy, Prefix, Rule};
use lb_core::model::policy::Compiler;
use lb_core::plan::policy::{Behind, DesiredTables, PodDevice};
use lb_core::plan::{Actual, Capacity, MapError, MapStore, Planner, Write};
use lb_testkit::objects::{allow, network_policy, pod};

use super::{alone, memory};

/// Peers or exceptions that fit in one object.
const MOST: u32 = 22_000;

/// Maps whose writes cost nothing.
struct Sink;

impl MapStore for Sink {
    fn apply(&mut self, _: &Write) -> Result<(), MapError> {
        Ok(())
    }
}

/// The `i`th range of a family; those within one another differ in length only.
fn range(v6: bool, nested: bool, i: u32) -> Prefix {
    let (at, deep) = if nested { (i / 8, 7 - (i % 8) as u8) } else { (i, 0) };
    if v6 {
        let addr = Ipv6Addr::from_bits(0xfd00_u128 << 112 | u128::from(at) << 40);
        Prefix::new(Addr::from_ip(addr.into()), 128 - deep * 4).unwrap()
    } else {
        let addr = Ipv4Addr::from_bits(0x0a00_0000 + (at << 8));
        Prefix::new(Addr::from_ip(addr.into()), 32 - deep).unwrap()
    }
}

fn all(v6: bool) -> Prefix {
    if v6 { "::/0" } else { "0.0.0.0/0" }.parse().unwrap()
}

fn rule(peers: Vec<Peer>, port: u16) -> Rule {
    allow(peers, &[&format!("tcp/{port}")])
}

fn policy(rules: Vec<Rule>) -> Policy {
    Policy { ingress: Some(rules.into()), ..network_policy("") }
}

/// How `n` ranges are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// One block each, with one exception.
    Peers { v6: bool, nested: bool },
    /// Exceptions of one block.
    Excepts { v6: bool, nested: bool },
    /// Exceptions of ten blocks that overlap.
    Blocks { v6: bool },
    /// As many rules as one Pod can have, and each tells other addresses apart.
    Rules { v6: bool },
    /// One rule each.
    OneEach,
}

fn written(shape: Shape, n: u32) -> Vec<Rule> {
    let holed = |v6, excepts: Vec<Prefix>| {
        let mut excepts = excepts;
        excepts.sort_unstable();
        Peer::Block { prefix: all(v6), excepts: excepts.into() }
    };
    match shape {
        Shape::Peers { v6, nested } => {
            vec![rule((0..n).map(|i| holed(v6, vec![range(v6, nested, i)])).collect(), 80)]
        }
        Shape::Excepts { v6, nested } => {
            let excepts = (0..n).map(|i| range(v6, nested, i)).collect();
            vec![rule(vec![holed(v6, excepts)], 80)]
        }
        Shape::Blocks { v6 } => {
            let block = |k| {
                holed(v6, (0..n).filter(|i| i % 10 == k).map(|i| range(v6, false, i)).collect())
            };
            vec![rule((0..10).map(block).collect(), 80)]
        }
        Shape::Rules { v6 } => {
            let of = |k| (0..n).filter(|i| i % 2048 == k).map(|i| range(v6, false, i)).collect();
            (0..n.min(2048)).map(|k| rule(vec![holed(v6, of(k))], 80)).collect()
        }
        Shape::OneEach => {
            let block = |i| Peer::Block { prefix: range(false, false, i), excepts: [].into() };
            (0..n).map(|i| rule(vec![block(i)], 80)).collect()
        }
    }
}

/// Two Pods of two tenants; one has this policy.
fn cluster(rules: Vec<Rule>) -> Cluster {
    let mut cluster = Cluster::new("n1");
    for (i, namespace) in ["a", "b"].into_iter().enumerate() {
        let name = Name::new("", namespace);
        cluster.apply(Event::Namespace(Change::Applied(name, Namespace::default())));
        let pod = pod("n1", &[&format!("10.200.0.{i}")], "", &[]);
        cluster.apply(Event::Pod(Change::Applied(Name::new(namespace, "pod"), pod)));
    }
    let any = Peer::Block { prefix: all(false), excepts: [].into() };
    for (namespace, rules) in [("a", rules), ("b", vec![rule(vec![any], 443)])] {
        let name = Name::new(namespace, "p");
        cluster.apply(Event::NetworkPolicy(Change::Applied(name, policy(rules))));
    }
    for kind in Kind::ALL {
        cluster.apply(Event::Synced(kind));
    }
    cluster
}

#[derive(Debug)]
struct Cost {
    compile: Duration,
    plan: Duration,
    /// Another compilation of the same.
    again: Duration,
    /// Memory in KiB, with the records and what the allocator keeps of the shapes before.
    peak: u64,
    kept: u64,
}

fn cost(shape: Shape, n: u32, start: u64) -> Cost {
    let cluster = cluster(written(shape, n));
    // Resets `VmHWM` (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let veths: Vec<PodDevice> = cluster
        .pods()
        .enumerate()
        .map(|(i, (name, pod))| PodDevice {
            ifindex: i as u32 + 1,
            behind: Behind::Pod(name.clone(), pod.uid),
            device_part: lb_common::endpoint::PodEntry::ZERO,
        })
        .collect();
    let mut compiler = Compiler::default();
    let mut planner = Planner::restore(Actual::default(), Capacity::default());
    for veth in &veths {
        let plan = planner.plan_pod(None, veth, 0);
        planner.apply(plan, &mut Sink, &mut || Duration::ZERO);
    }
    let at = Instant::now();
    let desired = compiler.compile(&cluster.snapshot());
    let compile = at.elapsed();
    let devices = BTreeMap::new();
    let wanted = DesiredTables {
        desired: Some(&desired),
        devices: &devices,
        veths: &veths,
        strict: false,
        pickup_until: 0,
    };
    let at = Instant::now();
    let plan = planner.plan_policies(&wanted, Duration::ZERO);
    let applied = planner.apply(plan, &mut Sink, &mut || Duration::ZERO);
    let plan = at.elapsed();
    assert_eq!(applied.failed.len(), 0);
    let at = Instant::now();
    let desired = compiler.compile(&cluster.snapshot());
    let again = at.elapsed();
    let counts = (desired.idents.len(), desired.ranges.len(), planner.actual().peer_bits.len());
    let peak = memory("VmHWM:") - start;
    let kept = memory("VmRSS:") - start;
    let cost = Cost { compile, plan, again, peak, kept };
    println!("{shape:?} {n}: {cost:?} {counts:?}");
    cost
}

#[test]
fn the_cost_of_one_object_grows_with_its_blocks() {
    alone("worst::the_cost_of_one_object_grows_with_its_blocks", || {
        let start = memory("VmRSS:");
        let mut shapes = vec![Shape::OneEach];
        for v6 in [false, true] {
            shapes.extend([
                Shape::Peers { v6, nested: false },
                Shape::Peers { v6, nested: true },
                Shape::Excepts { v6, nested: false },
                Shape::Excepts { v6, nested: true },
                Shape::Blocks { v6 },
                Shape::Rules { v6 },
            ]);
        }
        for shape in shapes {
            let costs = [3_000, 6_000, 12_000, MOST].map(|n| (n, cost(shape, n, start)));
            let [(few, first), .., (many, last)] = &costs;
            // Four times what is in proportion, and what is not worth measuring: the machine has other things to do.
            let bound = first.compile * (many / few) * 4 + Duration::from_millis(50);
            assert!(last.compile < bound, "{shape:?}: {costs:?}");
            for (_, cost) in &costs {
                let sum = cost.compile + cost.plan + cost.again;
                assert!(sum < Duration::from_secs(10), "{shape:?}: {cost:?}");
                assert!(cost.kept.max(cost.peak) < 100 * 1024, "{shape:?}: {cost:?}");
            }
        }
    });
}
