//! Policies without the Pods of other nodes, whose list is not available: nothing is allowed that those could deny.

use lb_common::addr::Addr;
use lb_core::cluster::Action::{Accept, Deny, Pass};
use lb_core::cluster::{Peer, PodScope, Prefix, Rule, Tier};
use lb_core::model::policy::PolicyDirection::{Egress, Ingress};
use lb_testkit::objects::{
    across, addr, allow, block, cluster_policy, network_policy, own, pod, rule,
};
use lb_testkit::world::{NODE, World, WorldFlow, ifindex, split};
use proptest::prelude::*;

use super::naive;
use super::random::{flows, world};

/// Every node takes the addresses of its Pods from a range of its own: here, from as many as it has Pods.
fn with_ranges(mut world: World) -> World {
    let of_node = |node: &str| -> Vec<Prefix> {
        let pods = world.pods.values().filter(|pod| *pod.node == *node && !pod.host_network);
        pods.flat_map(|pod| &pod.ips).map(|ip| Prefix::host(*ip)).collect()
    };
    let ranges = world.nodes.keys().map(|node| (node.clone(), of_node(node))).collect();
    world.pod_cidrs = ranges;
    world
}

/// A Pod here, two elsewhere, and each Pod's address in the range of its node.
fn two_nodes() -> World {
    let world = World::default()
        .namespace("a", "team=red")
        .namespace("b", "team=blue")
        .node(NODE, &["192.0.2.1"], "")
        .node("n2", &["192.0.2.2"], "")
        .pod("a/web", pod(NODE, &["10.1.0.2"], "app=web", &[("http", 6, 8080)]))
        .pod("a/near", pod(NODE, &["10.1.0.3"], "app=client", &[]))
        .pod("a/client", pod("n2", &["10.2.0.2"], "app=client", &[("http", 6, 9090)]))
        .pod("b/client", pod("n2", &["10.2.0.3"], "app=client", &[("http", 6, 9091)]));
    with_ranges(world)
}

const WORLD: &str = "198.51.100.1";

/// Each line: what holds with all Pods, what holds without those of other nodes (`+` = allowed), the flow of `a/web`.
fn check(world: &World, lines: &str) {
    let (exact, strict) = (world.tables(), world.tables_with(PodScope::Own));
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [signs, arrow, peer, port] = words[..] else { panic!("{line}") };
        let flow = WorldFlow {
            ifindex: ifindex(&split("a/web")),
            direction: if arrow == "<-" { Ingress } else { Egress },
            peer: addr(peer),
            protocol: 6,
            port: port.parse().unwrap(),
            shadow: false,
        };
        let sign = |denied: bool| if denied { '-' } else { '+' };
        let got = [&exact, &strict].map(|tables| sign(flow.judge(tables).denied()));
        assert_eq!(got.iter().collect::<String>(), signs, "{line}");
        assert_eq!(got[0], sign(naive::denied(world, &flow)), "the objects say otherwise: {line}");
    }
}

#[test]
fn pods_that_are_not_known_are_not_allowed_by_their_labels() {
    let rules = vec![allow(vec![Peer::Pods(own("app=client"))], &[]), {
        allow(vec![block("10.2.0.3/32", &[]), block("198.51.100.0/24", &[])], &["tcp/80"])
    }];
    let mut policy = network_policy("app=web");
    policy.ingress = Some(rules.into());
    policy.egress = Some([allow(vec![Peer::Pods(across("", ""))], &["tcp/http"])].into());
    check(
        &two_nodes().policy("a/p", policy),
        "+- <- 10.2.0.2 80
         ++ <- 10.1.0.3 80
         ++ <- 10.2.0.3 80
         -- <- 10.2.0.3 81
         ++ <- 198.51.100.1 80
         -- <- 198.51.100.1 81
         ++ <- 192.0.2.1 81
         +- -> 10.2.0.2 9090
         -- -> 10.2.0.2 80
         -- -> 198.51.100.1 80",
    );
}

#[test]
fn pods_that_are_not_known_may_be_those_that_a_rule_denies() {
    let policy = |tier, rules: Vec<Rule>| {
        let mut policy = cluster_policy(tier, 1, across("", ""));
        policy.ingress = Some(rules.clone().into());
        policy.egress = Some(rules.into());
        policy
    };
    let clients = || Some(vec![Peer::Pods(across("team=blue", ""))]);
    let deny = vec![rule(Deny, clients(), Some(&["tcp/80"]))];
    check(
        &two_nodes().policy("deny", policy(Tier::Admin, deny)),
        "+- <- 10.2.0.2 80
         -- <- 10.2.0.3 80
         ++ <- 10.2.0.3 81
         ++ <- 10.1.0.3 80
         ++ <- 198.51.100.1 80
         ++ <- 192.0.2.2 80
         +- -> 10.2.0.2 80",
    );
    // What may be left to the next tier or not.
    let pass = vec![rule(Pass, clients(), None), rule(Deny, None, None)];
    check(
        &two_nodes().policy("pass", policy(Tier::Admin, pass)),
        "-- <- 10.2.0.2 80
         +- <- 10.2.0.3 80
         -- <- 198.51.100.1 80",
    );
    // An address that is allowed before is allowed.
    let first = vec![rule(Accept, Some(vec![block("10.2.0.2/32", &[])]), None)];
    let then = vec![rule(Deny, clients(), None)];
    check(
        &two_nodes().policy("a", policy(Tier::Admin, [first, then].concat())),
        "++ <- 10.2.0.2 80
         -- <- 10.2.0.3 80",
    );
    // The number that a name stands for is not known.
    let mut named = cluster_policy(Tier::Baseline, 1, across("", ""));
    named.egress = Some([rule(Deny, None, Some(&["tcp/http"]))].into());
    check(
        &two_nodes().policy("named", named),
        "-- -> 10.2.0.2 9090
         +- -> 10.2.0.2 80
         ++ -> 198.51.100.1 80",
    );
    // Where addresses do not show which Pods are other nodes', any may be one.
    let mut strays = two_nodes();
    strays.pod_cidrs.clear();
    let deny = vec![rule(Deny, clients(), None)];
    check(
        &strays.policy("deny", policy(Tier::Admin, deny)),
        &format!(
            "+- <- 10.2.0.2 80
             +- <- {WORLD} 80
             +- <- 2001:db8::1 80
             ++ <- 10.1.0.3 80
             ++ <- 192.0.2.2 80"
        ),
    );
}

/// Whether it is known whose an address is.
fn is_known(world: &World, addr: &Addr, is_ranged: bool) -> bool {
    let here = world.local().any(|(_, pod)| pod.ips.contains(addr));
    let of_node = world.nodes.values().any(|(addrs, _)| addrs.contains(addr));
    here || of_node || is_ranged && !world.pods.values().any(|pod| pod.ips.contains(addr))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 4000 }))]

    #[test]
    fn what_is_denied_is_denied_without_the_pods_of_other_nodes(world in world(), is_ranged: bool) {
        let world = if is_ranged { with_ranges(world) } else { world };
        let has_own = world.local().next().is_some();
        let tables = world.tables_with(PodScope::Own);
        for shadow in [false, true] {
            for flow in flows(&[&world], shadow) {
                let got = flow.judge(&tables).denied();
                let want = naive::denied(&world, &flow);
                prop_assert!(got || !want, "allowed: {:?}", flow);
                let is_exact = has_own && is_known(&world, &flow.peer, is_ranged);
                prop_assert!(got == want || !is_exact, "denied: {:?}", flow);
            }
        }
    }
}
