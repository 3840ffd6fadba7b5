//! Random clusters: the tables say what the objects say; and from one cluster to the next each write leaves each
//! flow judged as before or as after.

use lb_common::policy::Judgement;
use lb_core::admin::context::{FlowQuery, Party, RecordVerdict};
use lb_core::admin::query;
use lb_core::cluster::{Action, Name, Peer, Policy, Rule, Tier};
use lb_core::model::policy::{Compiler, DesiredPolicies, PolicyDirection};
use lb_core::plan::policy::DesiredTables;
use lb_core::plan::{Capacity, Planner, Write, groups};
use lb_testkit::objects::{
    across, block, cluster_policy, network_policy, own, pod, port, selector,
};
use lb_testkit::world::{NODE, Running, World, WorldFlow, ifindex};
use proptest::prelude::*;

use super::naive;

const BLOCKS: [&str; 9] = [
    "10.1.0.0/30",
    "10.1.0.0/16",
    "10.0.0.0/8",
    "10.1.0.2/32",
    "0.0.0.0/0",
    "::/0",
    "fd01::/64",
    "192.0.2.0/30",
    "fd01::2/128",
];
const OTHERS: [&str; 7] =
    ["10.1.0.9", "10.200.0.1", "198.51.100.1", "fd01::9", "2001:db8::1", "192.0.2.3", "0.0.0.9"];
const SELECTORS: [&str; 6] = ["", "x=1", "x=2", "y", "!y", "x!=1"];
const PORTS: [&str; 9] = [
    "tcp",
    "tcp/80",
    "udp/53",
    "tcp/70-90",
    "tcp/1-65535",
    "tcp/http",
    "*/http",
    "icmp",
    "tcp/79-81",
];

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(from)
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        pick(&SELECTORS).prop_map(|pods| Peer::Pods(own(pods))),
        (pick(&["", "t=1", "!t"]), pick(&SELECTORS)).prop_map(|(n, p)| Peer::Pods(across(n, p))),
        pick(&["", "r=1"]).prop_map(|nodes| Peer::Nodes(selector(nodes))),
        (pick(&BLOCKS), prop::collection::vec(pick(&BLOCKS), 0..2)).prop_map(
            |(prefix, excepts)| {
                let whole: lb_core::cluster::Prefix = prefix.parse().unwrap();
                let inside = |except: &&&str| {
                    let except: lb_core::cluster::Prefix = except.parse().unwrap();
                    whole.contains(&except.addr()) && except.wide_bits() > whole.wide_bits()
                };
                let excepts: Vec<&str> = excepts.iter().filter(inside).copied().collect();
                block(prefix, &excepts)
            }
        ),
    ]
}

/// Ranges of one family that lie in one another more often than not.
fn range(v6: bool) -> impl Strategy<Value = lb_core::cluster::Prefix> {
    let v4 =
        (0..4u8, any::<u8>(), prop::sample::select(vec![0u8, 5, 8, 15, 16, 24, 29, 30, 31, 32]));
    let bits6 = prop::sample::select(vec![0u8, 7, 16, 64, 96, 125, 126, 127, 128]);
    let bits4 = v4.prop_map(|(b, d, bits)| format!("10.{b}.0.{}/{bits}", d & 7));
    let bits6 = (0..4u8, any::<u8>(), bits6);
    let bits6 = bits6.prop_map(|(b, d, bits)| format!("fd0{b}::{:x}/{bits}", d & 7));
    let text = if v6 { bits6.boxed() } else { bits4.boxed() };
    text.prop_map(|text| text.parse().unwrap())
}

/// A block with many exceptions, some within others.
fn holed() -> impl Strategy<Value = Peer> {
    any::<bool>().prop_flat_map(|v6| {
        (range(v6), prop::collection::vec(range(v6), 0..12)).prop_map(|(prefix, mut excepts)| {
            excepts.retain(|except| {
                prefix.contains(&except.addr()) && except.wide_bits() > prefix.wide_bits()
            });
            excepts.sort_unstable();
            Peer::Block { prefix, excepts: excepts.into() }
        })
    })
}

/// Rules whose blocks overlap, and all addresses that they distinguish.
fn holed_world() -> impl Strategy<Value = World> {
    let rule = (prop::collection::vec(holed(), 0..6), pick(&PORTS[..4]));
    let rule = rule.prop_map(|(peers, ports)| lb_testkit::objects::allow(peers, &[ports]));
    let policy = prop::collection::vec(rule, 0..5).prop_map(Vec::into_boxed_slice);
    prop::collection::vec(policy, 1..4).prop_map(|policies| {
        let mut world = World::default().node(NODE, &["192.0.2.1"], "");
        for i in 0..3 {
            let ips = [format!("10.1.0.{i}"), format!("fd01::{i}")];
            let ips = ips.each_ref().map(|ip| &**ip);
            let of = format!("x={i}");
            world = world.pod(&format!("a/w{i}"), pod(NODE, &ips, &of, &[("http", 6, 80)]));
        }
        for (i, rules) in policies.into_iter().enumerate() {
            let policy = network_policy(if i == 0 { "" } else { "x=1" });
            let policy = Policy { ingress: Some(rules.clone()), egress: Some(rules), ..policy };
            world = world.policy(&format!("a/p{i}"), policy);
        }
        world
    })
}

fn rule(action: impl Strategy<Value = Action>) -> impl Strategy<Value = Rule> {
    let peers = prop::option::of(prop::collection::vec(peer(), 0..3));
    let ports = prop::option::of(prop::collection::vec(pick(&PORTS), 0..3));
    (action, peers, ports).prop_map(|(action, peers, ports)| Rule {
        name: "".into(),
        action,
        peers: peers.map(Vec::into_boxed_slice),
        ports: ports.map(|ports| ports.into_iter().map(port).collect()),
    })
}

fn rules(actions: &'static [Action]) -> impl Strategy<Value = Option<Box<[Rule]>>> {
    let rules = prop::collection::vec(rule(prop::sample::select(actions)), 0..3);
    prop::option::of(rules.prop_map(Vec::into_boxed_slice))
}

pub(crate) fn policy() -> impl Strategy<Value = (String, Policy)> {
    const ALL: [Action; 3] = [Action::Accept, Action::Deny, Action::Pass];
    let network =
        (0..2u8, 0..3u8, pick(&SELECTORS), rules(&ALL[..1]), rules(&ALL[..1]), any::<bool>());
    let network = network.prop_map(|(ns, i, subject, ingress, egress, shadow)| {
        let shadow = shadow && i == 0;
        let policy = Policy { ingress, egress, shadow, ..network_policy(subject) };
        (format!("ns{ns}/p{i}"), policy)
    });
    let tiers = prop::sample::select(vec![Tier::Admin, Tier::Baseline]);
    let subject = (pick(&["", "t=1"]), pick(&SELECTORS));
    let cluster = (0..3u8, tiers, 0..2u16, subject, rules(&ALL), rules(&ALL));
    let cluster = cluster.prop_map(|(i, tier, priority, (n, p), ingress, egress)| {
        let policy = cluster_policy(tier, priority, across(n, p));
        (format!("c{i}"), Policy { ingress, egress, ..policy })
    });
    prop_oneof![network, cluster]
}

pub(crate) fn world() -> impl Strategy<Value = World> {
    let pod_of =
        (pick(&["", "x=1", "x=2", "x=1 y=1", "y=2"]), prop::option::of(0..3u8), 0..12u8, 0..8u8);
    let pods = prop::collection::btree_map((0..2u8, 0..4u8), pod_of, 0..6);
    let policies = prop::collection::vec(policy(), 0..5);
    (pods, policies, pick(&["", "t=1"]), pick(&["", "r=1"])).prop_map(
        |(pods, policies, team, role)| {
            let mut world = World::default()
                .namespace("ns0", "t=1")
                .namespace("ns1", team)
                .node(NODE, &["192.0.2.1"], "r=1")
                .node("n2", &["192.0.2.2", "fd01::ffff"], role);
            for ((ns, i), (labels, http, at, kind)) in pods {
                // Each Pod has addresses of its own, but not always the same ones.
                let at = u16::from(at) * 8 + u16::from(ns) * 4 + u16::from(i) + 2;
                let ips = [format!("10.1.0.{at}"), format!("fd01::{at:x}")];
                let ips: Vec<&str> =
                    ips.iter().map(String::as_str).take(1 + usize::from(kind % 2)).collect();
                let ports: Vec<_> =
                    http.map(|n| ("http", 6, 79 + u16::from(n))).into_iter().collect();
                let node = if kind < 5 { NODE } else { "n2" };
                world = world.pod(&format!("ns{ns}/w{i}"), pod(node, &ips, labels, &ports));
            }
            for (name, policy) in policies {
                world = world.policy(&name, policy);
            }
            world
        },
    )
}

/// Worlds of which each has much in common with the one before it.
pub(crate) fn related() -> impl Strategy<Value = Vec<World>> {
    let worlds = prop::collection::vec((world(), any::<u32>()), 2..5);
    worlds.prop_map(|parts| {
        let mut worlds: Vec<World> = Vec::new();
        for (mut world, mask) in parts {
            if let Some(before) = worlds.last() {
                keep(&mut world.pods, &before.pods, mask);
                keep(&mut world.policies, &before.policies, mask >> 8);
                keep(&mut world.namespaces, &before.namespaces, mask >> 16);
                keep(&mut world.nodes, &before.nodes, mask >> 24);
            }
            worlds.push(world);
        }
        worlds
    })
}

/// What the mask has bits for is as it was before.
fn keep<K: Ord + Clone, V: Clone>(
    now: &mut std::collections::BTreeMap<K, V>,
    before: &std::collections::BTreeMap<K, V>,
    mask: u32,
) {
    let keys: std::collections::BTreeSet<K> = now.keys().chain(before.keys()).cloned().collect();
    for (i, key) in keys.into_iter().enumerate() {
        if mask >> (i % 8) & 1 != 0 {
            match before.get(&key) {
                Some(value) => now.insert(key, value.clone()),
                None => now.remove(&key),
            };
        }
    }
}

fn settle(node: &mut Running, world: &World, desired: &DesiredPolicies) {
    for _ in 0..8 {
        node.now += std::time::Duration::from_secs(2);
        node.follow(world, desired);
    }
}

pub(crate) fn flows(worlds: &[&World], shadow: bool) -> Vec<WorldFlow> {
    let mut peers: Vec<_> = OTHERS.iter().map(|ip| lb_testkit::objects::addr(ip)).collect();
    let mut devices: Vec<u32> = Vec::new();
    for world in worlds {
        peers.extend(world.pods.values().flat_map(|pod| pod.ips.iter().copied()));
        peers.extend(world.nodes.values().flat_map(|(addrs, _)| addrs.iter().copied()));
        devices.extend(world.local().map(|(ifindex, _)| ifindex));
    }
    devices.sort_unstable();
    devices.dedup();
    peers.sort_unstable();
    peers.dedup();
    let mut flows = Vec::new();
    for ifindex in devices {
        for peer in &peers {
            for direction in [PolicyDirection::Ingress, PolicyDirection::Egress] {
                for (protocol, port) in
                    [(6, 80), (6, 79), (6, 81), (6, 0), (17, 53), (1, 0), (47, 0)]
                {
                    flows.push(WorldFlow {
                        ifindex,
                        direction,
                        peer: *peer,
                        protocol,
                        port,
                        shadow,
                    });
                }
            }
        }
    }
    flows
}

/// Goes from one cluster to the next: after each write, each flow is judged as before or as after. With `killed_after`, the rest is
/// never written.
fn go_over(
    node: &mut Running,
    compiler: &mut Compiler,
    [before, after]: [&World; 2],
    killed_after: Option<prop::sample::Index>,
) -> Result<(), TestCaseError> {
    let desired = compiler.compile(&after.cluster().snapshot());
    node.devices(after, Some(&desired));
    let flows = flows(&[before, after], false);
    // A Pod that changes its addresses is another Pod: what is judged are devices that stay.
    let stays = |flow: &&WorldFlow| {
        let ips = |world: &World| {
            world.local().find(|(i, _)| *i == flow.ifindex).map(|(_, pod)| pod.ips.clone())
        };
        ips(before).is_some() && ips(before) == ips(after)
    };
    let flows: Vec<&WorldFlow> = flows.iter().filter(stays).collect();
    let judged = |node: &Running| -> Vec<bool> {
        flows.iter().map(|flow| flow.judge(&node.store).denied()).collect()
    };
    let first = judged(node);
    let want: Vec<bool> = flows.iter().map(|flow| naive::denied(after, flow)).collect();
    let devices = after.devices();
    let veths = after.veths();
    let wanted = DesiredTables {
        desired: Some(&desired),
        devices: &devices,
        veths: &veths,
        strict: false,
        pickup_until: 0,
    };
    node.now += std::time::Duration::from_millis(700);
    let plan = node.planner.plan_policies(&wanted, node.now);
    // A Pod that leaves a group which others keep is judged by that until it is switched.
    let mut then = node.store.pods.clone();
    for write in &plan.writes {
        if let Write::PutPod { ifindex, pod } = write {
            then.insert(*ifindex, **pod);
        }
    }
    let leaves = |flow: &WorldFlow| {
        let at = usize::from(flow.direction == PolicyDirection::Egress);
        let group = node.store.pods.get(&flow.ifindex).map(|pod| groups(pod)[at]);
        then.get(&flow.ifindex).map(|pod| groups(pod)[at]) != group
            && then.values().flat_map(groups).any(|id| Some(id) == group)
    };
    let excused: Vec<bool> = flows.iter().map(|flow| leaves(flow)).collect();
    let epoch = node.store.policy.epoch;
    let end = killed_after.map_or(plan.writes.len(), |at| at.index(plan.writes.len() + 1));
    for write in plan.writes.iter().take(end) {
        node.store.record(write);
        for (((now, flow), (old, new)), excused) in
            judged(node).iter().zip(&flows).zip(first.iter().zip(&want)).zip(&excused)
        {
            prop_assert!(
                *excused || now == old || now == new,
                "after {write:?}: {flow:?} is {now}, was {old}, should be {new}"
            );
        }
    }
    if killed_after.is_some() {
        return Ok(());
    }
    prop_assert_eq!(judged(node), want);
    prop_assert!(node.store.policy.epoch >= epoch);
    let mut copy = node.planner.actual().clone();
    let now = node.now;
    let applied = node.planner.apply(plan, &mut copy, &mut || now);
    prop_assert!(applied.failed.is_empty());
    prop_assert_eq!(&copy, &node.store);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 4000 }))]

    #[test]
    fn tables_say_what_the_objects_say(world in world()) {
        let tables = world.tables();
        for shadow in [false, true] {
            for flow in flows(&[&world], shadow) {
                let got = flow.judge(&tables).denied();
                prop_assert_eq!(got, naive::denied(&world, &flow), "{:?}", flow);
            }
        }
    }

    /// What an agent says of the Pods of another node is what that node's tables say.
    #[test]
    fn records_say_what_the_tables_of_the_other_node_say(world in world(), from in any::<prop::sample::Index>()) {
        let tables = world.tables();
        let cluster = world.cluster_at("elsewhere");
        let flows = flows(&[&world], false);
        // Each question compiles the policies.
        for flow in flows.iter().cycle().skip(from.index(flows.len().max(1))).step_by(7).take(flows.len().min(12)) {
            let Some(((namespace, name), pod)) =
                world.pods.iter().find(|(at, _)| ifindex(at) == flow.ifindex)
            else { continue };
            let subject = Name::new(&**namespace, &**name);
            for ip in &pod.ips {
                let ends = [Party::Ip(flow.peer.to_ip()), Party::Ip(ip.to_ip())];
                let [src, dst] = match flow.direction {
                    PolicyDirection::Ingress => ends,
                    PolicyDirection::Egress => { let [peer, own] = ends; [own, peer] }
                };
                let wanted = FlowQuery { src, dst, protocol: flow.protocol, port: Some(flow.port), port_name: None };
                let context = query::context(&cluster, &wanted);
                let legs = context.legs.iter().filter(|leg| {
                    let of = (leg.direction, &leg.subject, leg.peer);
                    of == (flow.direction, &subject, flow.peer.to_ip())
                });
                for leg in legs {
                    let denied = match leg.by_record.as_ref().unwrap() {
                        RecordVerdict::NotSelected | RecordVerdict::FromOwnNode => false,
                        RecordVerdict::Judged(enforced, _) => {
                            Judgement::from_number(enforced.number).denied()
                        }
                    };
                    prop_assert_eq!(denied, flow.judge(&tables).denied(), "{:?} {:?}", flow, leg);
                }
            }
        }
    }

    #[test]
    fn blocks_with_holes_say_what_the_objects_say(world in holed_world()) {
        let tables = world.tables();
        let mut peers = Vec::new();
        for b in 0..4u8 {
            let near = (0..8u8).flat_map(|d| [format!("10.{b}.0.{d}"), format!("fd0{b}::{d:x}")]);
            peers.extend(near.chain([format!("10.{b}.1.1"), format!("fd0{b}:1::1")]));
        }
        peers.extend(OTHERS.map(str::to_owned));
        for peer in peers.iter().map(|ip| lb_testkit::objects::addr(ip)) {
            for (ifindex, _) in world.local() {
                for direction in [PolicyDirection::Ingress, PolicyDirection::Egress] {
                    for (protocol, port) in [(6, 80), (6, 79), (17, 53)] {
                        let flow = WorldFlow { ifindex, direction, peer, protocol, port, shadow: false };
                        let got = flow.judge(&tables).denied();
                        prop_assert_eq!(got, naive::denied(&world, &flow), "{:?}", flow);
                    }
                }
            }
        }
    }

    #[test]
    fn each_prefix_of_a_plan_is_before_or_after(worlds in related(), restart in 0..4u8) {
        let mut node = Running::default();
        let mut compiler = Compiler::default();
        node.follow(&worlds[0], &compiler.compile(&worlds[0].cluster().snapshot()));
        for pair in worlds.windows(2) {
            let [before, after] = pair else { unreachable!() };
            if restart == 1 {
                let desired = compiler.compile(&before.cluster().snapshot());
                settle(&mut node, before, &desired);
            }
            if restart > 0 {
                node.planner = Planner::restore(node.store.clone(), Capacity::default());
                compiler = Compiler::default();
            }
            if restart == 1 {
                // Nothing has changed, so nothing is written.
                let writes = node.follow(before, &compiler.compile(&before.cluster().snapshot()));
                prop_assert_eq!(writes, 0);
            }
            go_over(&mut node, &mut compiler, [before, after], None)?;
        }
        // In the end nothing is left of what is not in use.
        let last = worlds.last().unwrap();
        let desired = compiler.compile(&last.cluster().snapshot());
        settle(&mut node, last, &desired);
        prop_assert_eq!(node.planner.policies().next_wakeup(), None);
        let fresh = last.tables();
        prop_assert_eq!(node.store.peer_bits.len(), fresh.peer_bits.len());
        prop_assert_eq!(node.store.port_bits.len(), fresh.port_bits.len());
        prop_assert_eq!(node.store.cidrs.len(), fresh.cidrs.len());
        prop_assert_eq!(node.store.ident.len(), fresh.ident.len());
    }

    /// An agent that is killed within a plan leaves such tables, and so do those after it, whatever has changed meanwhile.
    #[test]
    fn agents_killed_within_their_plans_leave_each_flow_before_or_after(
        worlds in related(),
        kills in prop::collection::vec(prop::option::weighted(0.7, any::<prop::sample::Index>()), 5),
    ) {
        let mut node = Running::default();
        let mut compiler = Compiler::default();
        node.follow(&worlds[0], &compiler.compile(&worlds[0].cluster().snapshot()));
        for (pair, killed_after) in worlds.windows(2).zip(kills) {
            let [before, after] = pair else { unreachable!() };
            go_over(&mut node, &mut compiler, [before, after], killed_after)?;
            if killed_after.is_some() {
                node.planner = Planner::restore(node.store.clone(), Capacity::default());
                compiler = Compiler::default();
            }
        }
        let last = worlds.last().unwrap();
        go_over(&mut node, &mut compiler, [last, last], None)?;
    }
}
