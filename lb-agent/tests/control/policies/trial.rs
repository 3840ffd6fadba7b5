//! What a trial says of a change of policies is what the tables say once the change is applied.

use lb_core::admin::Remark;
use lb_core::admin::query::TrialQuestion;
use lb_core::admin::what_if::{PolicyChange, SeenFlow, WhatIf};
use lb_core::cluster::{Change, Cluster, Event, Name, Peer, Policy, Rule};
use lb_core::model::policy::PolicyDirection;
use lb_core::plan::groups;
use lb_testkit::objects::{addr, allow, endpoint, network_policy, own, pod, service, slice};
use lb_testkit::world::{NODE, World, WorldFlow, ifindex};
use proptest::prelude::*;

use super::random::{flows, policy, world};

/// A flow at a Pod of this node, as it is seen, and the same for the tables.
fn seen(world: &World, flow: &WorldFlow) -> Option<(SeenFlow, Name)> {
    let ((namespace, name), pod) = world.pods.iter().find(|(at, _)| ifindex(at) == flow.ifindex)?;
    let own = pod.ips.first().filter(|own| **own != flow.peer)?;
    // Both ends may be Pods of this node: it is asked for this one.
    let (src, dst) = match flow.direction {
        PolicyDirection::Ingress => (flow.peer, *own),
        PolicyDirection::Egress => (*own, flow.peer),
    };
    let is_own = pod.ips.contains(&flow.peer);
    let (src, dst, protocol, port) = (src.to_ip(), dst.to_ip(), flow.protocol, flow.port);
    let seen = SeenFlow { src, dst, protocol, port, from_host: false };
    (!is_own).then(|| (seen, Name::new(&**namespace, &**name)))
}

/// Asks about all flows; returns for each whether its verdict at its Pod changes, and to what.
fn changes(world: &World, change: PolicyChange, flows: &[WorldFlow]) -> Vec<(usize, Option<bool>)> {
    let known: Vec<_> =
        flows.iter().enumerate().filter_map(|(i, flow)| Some((i, seen(world, flow)?))).collect();
    let asked = known.iter().map(|(_, (flow, _))| *flow).collect();
    let answer = TrialQuestion::of(&world.cluster(), WhatIf { change, flows: asked }).answer();
    assert!(answer.complete);
    let of = known.iter().enumerate().map(|(number, (index, (_, subject)))| {
        let direction = flows[*index].direction;
        let found = answer.changes.iter().find(|change| {
            let at = (change.flow as usize, change.direction, &change.subject);
            at == (number, direction, subject)
        });
        (*index, found.map(|change| change.denied))
    });
    of.collect()
}

/// A client and a server that listens at 8080, behind a Service at 80.
fn shop() -> Cluster {
    let world = World::default()
        .node(NODE, &["192.0.2.1"], "")
        .pod("shop/cart", pod(NODE, &["10.1.0.2"], "app=cart", &[]))
        .pod("shop/web", pod(NODE, &["10.1.0.3"], "app=web", &[]));
    let mut cluster = world.cluster();
    let web = service(addr("10.96.0.10"), [("http", 80)]);
    cluster.apply(Event::Service(Change::Applied(Name::new("shop", "web"), web)));
    let of_web = slice("web", [("http", 8080)], [endpoint(addr("10.1.0.3"))]);
    cluster.apply(Event::Slice(Change::Applied(Name::new("shop", "web-1"), of_web)));
    cluster
}

fn remarks(rule: Rule) -> Vec<String> {
    let policy = Policy { ingress: Some([rule].into()), ..network_policy("app=web") };
    let put = vec![(Name::new("shop", "web"), policy)];
    let change = PolicyChange::Apply { put, delete: Vec::new() };
    let answer = TrialQuestion::of(&shop(), WhatIf { change, flows: Vec::new() }).answer();
    let line = |remark: &Remark| format!("{}: {}", remark.field, remark.message);
    answer.issues.iter().map(line).collect()
}

#[test]
fn a_peer_that_selects_no_pod_is_remarked() {
    let peers = vec![Peer::Pods(own("app=cart")), Peer::Pods(own("app=crat"))];
    let remarks = remarks(allow(peers, &["tcp/8080"]));
    assert_eq!(remarks, ["spec.ingress[0].from[1]: selects no Pod, so it allows nothing"]);
}

#[test]
fn the_port_of_a_service_is_remarked() {
    let rule = |port: &str| allow(vec![Peer::Pods(own("app=cart"))], &[port]);
    let wrong = "spec.ingress[0].ports[0].port: 80 is the port of Service shop/web; \
        policies judge the port of its Pods, 8080";
    assert_eq!(remarks(rule("tcp/80")), [wrong]);
    assert!(remarks(rule("udp/80")).is_empty());
    assert!(remarks(rule("tcp/8080")).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 2000 }))]

    #[test]
    fn a_trial_says_what_applying_does(
        before in world(),
        put in prop::collection::vec(policy(), 0..4),
        deleted in any::<u8>(),
    ) {
        let mut after = before.clone();
        let gone: Vec<_> = before
            .policies
            .keys()
            .enumerate()
            .filter(|(i, _)| deleted >> (i % 8) & 1 != 0)
            .map(|(_, name)| name.clone())
            .collect();
        for name in &gone {
            after.policies.remove(name);
        }
        for (name, policy) in &put {
            after = after.policy(name, policy.clone());
        }
        let change = PolicyChange::Apply {
            put: put.iter().map(|(name, policy)| (Name::parse(name), policy.clone())).collect(),
            delete: gone.iter().map(|(namespace, name)| Name::new(&**namespace, &**name)).collect(),
        };
        let flows = flows(&[&before], false);
        let (old, new) = (before.tables(), after.tables());
        for (index, changed) in changes(&before, change, &flows) {
            let flow = &flows[index];
            let [was, is] = [&old, &new].map(|tables| flow.judge(tables).denied());
            prop_assert_eq!(changed, (was != is).then_some(is), "{:?}", flow);
        }
    }

    #[test]
    fn a_trial_of_the_shadow_says_what_its_groups_say(world in world()) {
        let tables = world.tables();
        let flows = flows(&[&world], false);
        for (index, changed) in changes(&world, PolicyChange::EnforceShadow, &flows) {
            let flow = &flows[index];
            let was = flow.judge(&tables).denied();
            let at = if flow.direction == PolicyDirection::Ingress { 2 } else { 3 };
            let is_tried = tables.pods.get(&flow.ifindex).is_some_and(|pod| groups(pod)[at] != 0);
            let tried = WorldFlow { shadow: true, ..flow.clone() };
            let is = if is_tried { tried.judge(&tables).denied() } else { was };
            prop_assert_eq!(changed, (was != is).then_some(is), "{:?}", flow);
        }
    }
}
