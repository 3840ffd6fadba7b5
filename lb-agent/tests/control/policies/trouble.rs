//! Maps that are full, writes that fail, Pods that are not known yet, agents that have just started.

use std::time::Duration;

use lb_common::endpoint::{Ident, IdentFlags, PodEntry};
use lb_common::policy::GroupFlags;
use lb_core::cluster::{Peer, Policy};
use lb_core::model::policy::{DesiredPolicies, PolicyDirection, compile};
use lb_core::plan::policy::{Behind, DesiredTables, PodDevice};
use lb_core::plan::{Actual, Capacity, MapError, MapStore, Planner, Write, groups};
use lb_testkit::objects::{addr, allow, block, network_policy, own, pod};
use lb_testkit::world::{NODE, Running, World, WorldFlow, ifindex, split};

/// Maps with little room.
struct Small {
    tables: Actual,
    peer_bits: usize,
    refuse: fn(&Write) -> bool,
}

impl MapStore for Small {
    fn apply(&mut self, op: &Write) -> Result<(), MapError> {
        let full = match op {
            Write::PutPeerBits { key, .. } => {
                self.tables.peer_bits.len() >= self.peer_bits
                    && !self.tables.peer_bits.contains_key(key)
            }
            other => (self.refuse)(other),
        };
        if full {
            return Err(MapError { map: "peer_bits", full: true, source: "no room".into() });
        }
        self.tables.record(op);
        Ok(())
    }
}

fn world(n: u32) -> World {
    let mut world = World::default().node(NODE, &["192.0.2.1"], "");
    for i in 0..n {
        let of = format!("app={i}");
        let ip = format!("10.1.0.{}", i + 2);
        world = world.pod(&format!("a/p{i}"), pod(NODE, &[&ip], &of, &[]));
        let peer = Peer::Pods(own(&format!("app={}", (i + 1) % n)));
        let rules = [allow(vec![peer], &["tcp/80"])];
        world = world.policy(
            &format!("a/p{i}"),
            Policy { ingress: Some(rules.into()), ..network_policy(&of) },
        );
    }
    world
}

fn is_denied(tables: &Actual, subject: u32, peer: u32) -> bool {
    let peer = addr(&format!("10.1.0.{}", peer + 2));
    let ifindex = ifindex(&split(&format!("a/p{subject}")));
    let flow = WorldFlow {
        ifindex,
        direction: PolicyDirection::Ingress,
        peer,
        protocol: 6,
        port: 80,
        shadow: false,
    };
    flow.judge(tables).denied()
}

fn follow(
    planner: &mut Planner,
    store: &mut Small,
    world: &World,
    desired: &DesiredPolicies,
    now: u64,
) -> usize {
    let (devices, veths, now) = (world.devices(), world.veths(), Duration::from_secs(now));
    for veth in &veths {
        let plan = planner.plan_pod(Some(desired), veth, 0);
        planner.apply(plan, store, &mut || now);
    }
    let wanted = DesiredTables {
        desired: Some(desired),
        devices: &devices,
        veths: &veths,
        strict: false,
        pickup_until: 0,
    };
    let plan = planner.plan_policies(&wanted, now);
    planner.apply(plan, store, &mut || now).failed.len()
}

#[test]
fn what_has_no_room_denies_everything_until_there_is_some() {
    let world = world(6);
    let desired = compile(&world.cluster());
    let mut planner = Planner::restore(Actual::default(), Capacity::default());
    let mut store = Small { tables: Actual::default(), peer_bits: 4, refuse: |_| false };
    assert_eq!(follow(&mut planner, &mut store, &world, &desired, 1), 2, "one write of each group");
    let allowed = |store: &Small| {
        let pairs = (0..6).flat_map(|a| (0..6).map(move |b| (a, b)));
        let all: Vec<_> = pairs.filter(|(a, b)| !is_denied(&store.tables, *a, *b)).collect();
        assert!(all.iter().all(|(a, b)| *b == (a + 1) % 6), "{all:?}");
        all.len()
    };
    assert_eq!(allowed(&store), 4);
    let issues: Vec<String> = planner.policies().issues().iter().map(ToString::to_string).collect();
    assert_eq!(issues.len(), 2, "{issues:?}");
    assert!(issues[0].starts_with("NetworkPolicy a/p"), "{issues:?}");
    assert_eq!(planner.policies().n_incomplete(), 2);

    assert_eq!(follow(&mut planner, &mut store, &world, &desired, 1), 0, "not before its time");
    let again = planner.policies().next_wakeup().unwrap();
    store.peer_bits = 100;
    follow(&mut planner, &mut store, &world, &desired, again.as_secs() + 1);
    assert_eq!(allowed(&store), 6);
    assert_eq!((planner.policies().issues(), planner.policies().n_incomplete()), (vec![], 0));
}

#[test]
fn an_address_that_keeps_an_old_identity_closes_those_who_mind() {
    let world = world(3);
    let desired = compile(&world.cluster());
    let mut planner = Planner::restore(Actual::default(), Capacity::default());
    let refuse =
        |op: &Write| matches!(op, Write::PutIdent { addr: to, .. } if *to == addr("10.1.0.3"));
    let mut store = Small { tables: Actual::default(), peer_bits: 100, refuse };
    follow(&mut planner, &mut store, &world, &desired, 1);
    assert!(is_denied(&store.tables, 0, 1), "it may, but is not known");
    assert!(!is_denied(&store.tables, 1, 2));
    assert_eq!(planner.policies().n_incomplete(), 1);
    store.refuse = |_| false;
    follow(&mut planner, &mut store, &world, &desired, 9);
    assert!(!is_denied(&store.tables, 0, 1));
    assert_eq!(planner.policies().n_incomplete(), 0);
}

#[test]
fn unknown_pods_are_under_what_the_strictest_may_be() {
    let world = world(2);
    let desired = compile(&world.cluster());
    let stranger =
        PodDevice { ifindex: 77, behind: Behind::Unknown(0), device_part: PodEntry::ZERO };
    for (strict, met, want) in [
        (false, 1, [GroupFlags::PENDING, GroupFlags::NONE]),
        (false, 2, [GroupFlags::NONE, GroupFlags::NONE]),
        (true, 2, [GroupFlags::PENDING, GroupFlags::PENDING]),
    ] {
        let mut node = Running::default();
        let mut veths: Vec<PodDevice> = world.veths().into_iter().take(met).collect();
        veths.push(stranger.clone());
        for veth in &veths {
            let plan = node.planner.plan_pod(Some(&desired), veth, 0);
            node.write(plan);
        }
        let devices = world.devices();
        let wanted = DesiredTables {
            desired: Some(&desired),
            devices: &devices,
            veths: &veths,
            strict,
            pickup_until: 0,
        };
        let plan = node.planner.plan_policies(&wanted, Duration::ZERO);
        node.write(plan);
        let tables = node.planner.actual();
        let flags = |id: u32| tables.groups.get(&id).map_or(GroupFlags::NONE, |group| group.flags);
        let [ingress, egress, ..] = groups(&tables.pods[&77]);
        assert_eq!([flags(ingress), flags(egress)], want, "{strict} {met}");
        let state = tables.policy;
        assert_eq!([state.pending_ingress, state.pending_egress], [ingress, egress]);
        assert_eq!(state.epoch, 1);
        // One that comes now.
        let late = PodDevice { ifindex: 78, ..stranger.clone() };
        let plan = node.planner.plan_pod(Some(&desired), &late, 0);
        node.write(plan);
        assert_eq!(groups(&node.store.pods[&78]), [ingress, egress, 0, 0]);
    }
}

#[test]
fn only_a_device_that_may_be_an_awaited_pods_is_cut_off() {
    let mut world = world(2);
    let created = |world: &mut World, at: i64| {
        for pod in world.pods.values_mut() {
            pod.created = std::num::NonZeroI64::new(at);
        }
    };
    created(&mut world, 1_000);
    let desired = compile(&world.cluster());
    let name = lb_core::cluster::Name::new("", "another");
    let cases = [
        ("it appeared after the awaited Pod was made", Behind::Unknown(1_001), true, true),
        ("a little before: clocks differ", Behind::Unknown(941), true, true),
        ("it was there before, as a container without a Pod", Behind::Unknown(939), true, false),
        ("it was waited for long enough", Behind::NoPod, true, false),
        ("no Pod is awaited", Behind::Unknown(1_001), false, false),
        ("a Pod that is not compiled yet", Behind::Pod(name, 7), true, true),
        ("one that claims to be another", Behind::Impostor, false, true),
    ];
    for (what, behind, awaited, want) in cases {
        let mut node = Running::default();
        let mut veths = world.veths();
        veths.truncate(if awaited { 1 } else { 2 });
        veths.push(PodDevice { ifindex: 77, behind, device_part: PodEntry::ZERO });
        for veth in &veths {
            let plan = node.planner.plan_pod(Some(&desired), veth, 0);
            node.write(plan);
        }
        let devices = world.devices();
        let wanted = DesiredTables {
            desired: Some(&desired),
            devices: &devices,
            veths: &veths,
            strict: false,
            pickup_until: 0,
        };
        let plan = node.planner.plan_policies(&wanted, Duration::ZERO);
        node.write(plan);
        let tables = node.planner.actual();
        let [ingress, ..] = groups(&tables.pods[&77]);
        let flags = tables.groups.get(&ingress).map_or(GroupFlags::NONE, |group| group.flags);
        assert_eq!(flags.contains(GroupFlags::PENDING), want, "{what}");
    }
}

#[test]
fn before_policies_are_known_devices_are_followed_and_the_rest_stays() {
    let world = world(3);
    let mut node = Running::default();
    let desired = compile(&world.cluster());
    node.follow(&world, &desired);
    let before = node.store.clone();
    node.planner = Planner::restore(before.clone(), Capacity::default());
    let mut devices = world.devices();
    devices.remove(&addr("10.1.0.2"));
    devices.remove(&addr("192.0.2.1"));
    devices.insert(addr("10.1.0.77"), Ident { ifindex: 9, ..Ident::ZERO });
    let veths = world.veths();
    let wanted = DesiredTables {
        desired: None,
        devices: &devices,
        veths: &veths,
        strict: false,
        pickup_until: 0,
    };
    let plan = node.planner.plan_policies(&wanted, Duration::ZERO);
    node.write(plan);
    let mut want = before;
    let gone = want.ident.get_mut(&addr("10.1.0.2")).unwrap();
    assert_eq!(gone.flags, IdentFlags::POD | IdentFlags::HERE);
    gone.ifindex = 0;
    want.ident.remove(&addr("192.0.2.1"));
    want.ident.insert(addr("10.1.0.77"), Ident { ifindex: 9, ..Ident::ZERO });
    assert_eq!(node.store, want);
}

#[test]
fn without_policies_the_maps_say_whose_addresses_are_whose() {
    let mut world = world(3);
    world.policies.clear();
    let tables = world.tables();
    let mut want = world.devices();
    for known in want.values_mut().filter(|known| known.ifindex != 0) {
        known.flags = IdentFlags::POD | IdentFlags::HERE;
    }
    assert_eq!(tables.ident.into_iter().collect::<std::collections::BTreeMap<_, _>>(), want);
    assert_eq!((tables.groups.len(), tables.policy.epoch), (0, 0));
}

#[test]
fn this_nodes_own_addresses_have_the_identity_that_others_see() {
    // For packets that only claim to be this node's: those that it made itself are under no policy.
    let rules = [allow(vec![block("192.0.2.0/24", &[])], &["tcp/80"])];
    let policy = Policy { ingress: Some(rules.into()), ..network_policy("app=0") };
    let world = world(2).policy("a/outside", policy);
    let desired = compile(&world.cluster());
    let mut node = Running::default();
    node.follow(&world, &desired);
    let own = node.store.ident[&addr("192.0.2.1")];
    assert_eq!(own.flags, IdentFlags::LOCAL_NODE);
    let atoms =
        node.planner.policies().idents().find(|(id, _)| *id == own.ident).map(|(_, atoms)| atoms);
    let want = &desired.idents[desired.ident_of(&addr("192.0.2.1")) as usize];
    assert_eq!((atoms, want.is_empty()), (Some(want), false));
    // A control: an address in no block has none.
    assert_eq!(desired.ident_of(&addr("198.51.100.1")), 0);
}

#[test]
fn whatever_is_refused_once_comes_again() {
    let world = world(4);
    let desired = compile(&world.cluster());
    let refusals: [fn(&Write) -> bool; 4] = [
        |op| matches!(op, Write::PutGroup { .. }),
        |op| matches!(op, Write::PutPortBits { .. }),
        |op| matches!(op, Write::PutPod { .. }),
        |op| matches!(op, Write::PutPolicyState(_)),
    ];
    for (i, refuse) in refusals.into_iter().enumerate() {
        let mut planner = Planner::restore(Actual::default(), Capacity::default());
        let mut store = Small { tables: Actual::default(), peer_bits: 100, refuse };
        // The devices are there before the policies are.
        for veth in world.veths() {
            let plan = planner.plan_pod(None, &veth, 0);
            planner.apply(plan, &mut store.tables, &mut || Duration::ZERO);
        }
        assert!(follow(&mut planner, &mut store, &world, &desired, 1) > 0, "{i}");
        assert!(
            planner.policies().next_wakeup().is_some_and(|at| at > Duration::from_secs(1)),
            "{i}"
        );
        assert_eq!(planner.node_issues().count(), 1, "{i}: the first of the writes that failed");
        store.refuse = |_| false;
        for now in [5, 10, 15] {
            follow(&mut planner, &mut store, &world, &desired, now);
        }
        assert_eq!(planner.policies().next_wakeup(), None, "{i}");
        assert_eq!(planner.node_issues().next(), None, "{i}");
        assert_eq!(planner.actual(), &store.tables, "{i}");
        for a in 0..4 {
            for b in 0..4 {
                assert_eq!(is_denied(&store.tables, a, b), b != (a + 1) % 4, "{i}: {a} {b}");
            }
        }
    }
}

#[test]
fn blocks_without_room_cut_off_the_pods_their_policy_selects_and_no_others() {
    let holed = |at: u32, n: u32| {
        let except = |i: u32| std::net::Ipv4Addr::from_bits((at << 24) + (i << 8));
        let mut excepts: Vec<lb_core::cluster::Prefix> =
            (0..n).map(|i| format!("{}/32", except(i)).parse().unwrap()).collect();
        excepts.sort_unstable();
        Peer::Block { prefix: "0.0.0.0/0".parse().unwrap(), excepts: excepts.into() }
    };
    let ingress = |subject: &str, peer: Peer| Policy {
        ingress: Some([allow(vec![peer], &["tcp/80"])].into()),
        ..network_policy(subject)
    };
    let world = |most: u32| {
        let mut world = World::default().node(NODE, &["192.0.2.1"], "");
        for (i, name) in ["a/p0", "big/p1", "big/p2", "big/p3"].into_iter().enumerate() {
            let ip = format!("10.200.0.{i}");
            world = world.pod(name, pod(NODE, &[&ip], &format!("x={i}"), &[]));
        }
        let any: Peer = holed(11, 10);
        world
            .policy("a/p", ingress("", any))
            .policy("big/p1", ingress("x=1", holed(12, most)))
            .policy("big/p2", ingress("x=2", holed(13, 20_000)))
            .policy("big/p3", ingress("x=3", holed(14, 15_000)))
    };
    let denied = |tables: &Actual, name: &str, peer: &str| {
        let (ifindex, peer) = (ifindex(&split(name)), addr(peer));
        let direction = PolicyDirection::Ingress;
        WorldFlow { ifindex, direction, peer, protocol: 6, port: 80, shadow: false }
            .judge(tables)
            .denied()
    };
    // From a peer that each of them admits; and the exceptions of one in each of the others.
    let check = |tables: &Actual, cut: bool| {
        let names = ["a/p0", "big/p1", "big/p2", "big/p3"];
        for (i, name) in names.into_iter().enumerate() {
            assert_eq!(denied(tables, name, "198.51.100.1"), cut && i == 1, "{name}");
            for except in 11..15 {
                let own = except == 11 + i;
                let peer = format!("{except}.0.3.0");
                assert_eq!(denied(tables, name, &peer), own || (cut && i == 1), "{name} {peer}");
            }
        }
    };
    let mut node = Running::default();
    let crowd = world(22_000);
    let desired = compile(&crowd.cluster());
    node.follow(&crowd, &desired);
    check(&node.store, true);
    let text = |issues: &[lb_core::issue::Issue]| {
        issues.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        text(&desired.issues),
        [
            "NetworkPolicy big/p1: spec.ingress: its ipBlocks need 22001 ranges, which do not fit among the 49152 address ranges that a node can distinguish: all traffic in this direction of the Pods it selects is denied"
        ]
    );
    assert_eq!(
        text(&desired.remarks),
        [
            "NetworkPolicy big/p2: spec.ingress: its ipBlocks use 20001 of the 49152 address ranges that a node can distinguish for all policies together",
            "NetworkPolicy big/p3: spec.ingress: its ipBlocks use 15001 of the 49152 address ranges that a node can distinguish for all policies together"
        ]
    );
    let less = world(10_000);
    let desired = compile(&less.cluster());
    node.follow(&less, &desired);
    check(&node.store, false);
    assert_eq!(desired.issues, []);
}
