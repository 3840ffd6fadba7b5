//! The order of those who claim an address, and that nothing else decides.

use std::num::NonZeroI64;

use lb_common::addr::Addr;
use lb_common::endpoint::IdentFlags;
use proptest::prelude::*;

use super::{Owner, Owners};
use crate::cluster::{Change, Cluster, Event, Kind, Name, Node, Pod};
use crate::model::policy;

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

fn pod(created: i64, uid: u64, deleting: bool) -> Pod {
    let (ips, created) = ([addr("10.1.0.2")].into(), NonZeroI64::new(created));
    Pod { ips, created, uid, deleting, node: "n1".into(), ..Pod::default() }
}

fn node(created: i64, lost: bool) -> Node {
    let addresses = [addr("10.1.0.2")].into();
    Node { addresses, created: NonZeroI64::new(created), lost, ..Node::default() }
}

/// Pods by name.
type Claims<'a> = &'a [(&'a str, Pod)];

fn shown(owner: Option<Owner<'_>>) -> String {
    match owner {
        Some(Owner::Pod(name, _)) => name.to_string(),
        Some(Owner::Node(name, _)) => format!("node {name}"),
        None => String::new(),
    }
}

#[test]
fn who_has_an_address_before_others() {
    let host = || Pod { host_network: true, ..pod(9, 9, false) };
    // The claimants, and who has the address.
    let cases: [(&str, Claims<'_>, &str); 9] = [
        ("no object", &[], ""),
        ("one that is going", &[("z", pod(1, 1, true))], "ns/z"),
        ("not going", &[("z", pod(9, 9, true)), ("a", pod(1, 1, false))], "ns/a"),
        ("newer", &[("z", pod(1, 9, false)), ("a", pod(2, 1, false))], "ns/a"),
        (
            "newer of those that are going",
            &[("z", pod(1, 9, true)), ("a", pod(2, 1, true))],
            "ns/a",
        ),
        ("the same second", &[("z", pod(1, 1, false)), ("a", pod(1, 2, false))], "ns/a"),
        ("from manifests", &[("z", pod(0, 0, false)), ("a", pod(0, 0, false))], "ns/a"),
        ("of the host network", &[("z", host()), ("a", pod(1, 1, true))], "ns/a"),
        ("only of the host network", &[("z", host())], ""),
    ];
    for (what, pods, want) in cases {
        check(what, pods, &[], want);
    }
    let living = [("z", pod(9, 9, false))];
    let nodes = [("a", node(1, false)), ("z", node(1, true))];
    check("a node, whatever is said of Pods", &living, &nodes, "node a");
    check("a node that is lost", &living, &nodes[1..], "ns/z");
    check("no Pod", &[], &nodes[1..], "node z");
    let nodes = [("a", node(2, false)), ("z", node(1, false)), ("zz", node(3, true))];
    check("of two nodes the newer one", &[], &nodes, "node a");
}

fn check(what: &str, pods: Claims<'_>, nodes: &[(&str, Node)], want: &str) {
    let pods: Vec<_> = pods.iter().map(|(name, pod)| (Name::new("ns", *name), pod)).collect();
    let nodes: Vec<_> = nodes.iter().map(|(name, node)| (Name::new("", *name), node)).collect();
    let pods = || pods.iter().map(|(name, pod)| (name, *pod));
    let nodes = || nodes.iter().map(|(name, node)| (name, *node));
    let at = addr("10.1.0.2");
    assert_eq!(shown(Owners::among(pods(), nodes(), |_| true).get(&at)), want, "{what}");
    let reversed = Vec::from_iter(pods()).into_iter().rev();
    let nodes = Vec::from_iter(nodes()).into_iter().rev();
    assert_eq!(shown(Owners::among(reversed, nodes, |_| true).get(&at)), want, "{what}, reversed");
}

const ADDRS: [&str; 3] = ["10.1.0.2", "10.1.0.3", "fd01::2"];

/// A Pod or a node by its number, as it is now, or that it is gone.
#[derive(Clone, Debug)]
enum Told {
    Pod(u8, Option<Pod>),
    Node(u8, Option<Node>),
}

fn step() -> impl Strategy<Value = Told> {
    let addrs = || prop::sample::subsequence(&ADDRS[..], 0..=3);
    let addrs = || addrs().prop_map(|all| all.into_iter().map(addr).collect::<Box<[Addr]>>());
    let pod = (addrs(), 0..3i64, any::<bool>(), 0..8u8, any::<bool>(), 0..5u8);
    let pod = pod.prop_map(|(ips, created, deleting, host, here, i)| {
        let node = if here { "n1" } else { "n2" };
        let created = NonZeroI64::new(created);
        let (host_network, uid) = (host == 0, u64::from(i) * 7 % 5);
        (i, Pod { ips, created, deleting, host_network, uid, node: node.into(), ..Pod::default() })
    });
    let node = (addrs(), 0..3i64, any::<bool>(), 0..3u8);
    let node = node.prop_map(|(addresses, created, lost, i)| {
        (i, Node { addresses, created: NonZeroI64::new(created), lost, ..Node::default() })
    });
    prop_oneof![
        4 => pod.prop_map(|(i, pod)| Told::Pod(i, Some(pod))),
        1 => (0..5u8).prop_map(|i| Told::Pod(i, None)),
        1 => node.prop_map(|(i, node)| Told::Node(i, Some(node))),
        1 => (0..3u8).prop_map(|i| Told::Node(i, None)),
    ]
}

fn event(step: &Told) -> Event {
    let change_pod = |i: &u8| Name::new("ns", format!("p{i}"));
    let change_node = |i: &u8| Name::new("", format!("n{i}"));
    match step {
        Told::Pod(i, Some(pod)) => Event::Pod(Change::Applied(change_pod(i), pod.clone())),
        Told::Pod(i, None) => Event::Pod(Change::Deleted(change_pod(i))),
        Told::Node(i, Some(node)) => Event::Node(Change::Applied(change_node(i), node.clone())),
        Told::Node(i, None) => Event::Node(Change::Deleted(change_node(i))),
    }
}

fn cluster(events: impl Iterator<Item = Event>) -> Cluster {
    let mut cluster = Cluster::new("n1");
    for event in events.chain(Kind::ALL.map(Event::Synced)) {
        cluster.apply(event);
    }
    cluster
}

/// Who has which address, by all who say so: one way of asking must not differ from another.
fn answers(cluster: &Cluster) -> Vec<String> {
    let compiled = policy::compile(cluster);
    let snapshot = cluster.snapshot();
    let all = Owners::of(&snapshot);
    let mut answers = Vec::new();
    for at in ADDRS.map(addr) {
        let owner = cluster.owner(&at);
        assert_eq!(shown(owner), shown(all.get(&at)));
        let flags = compiled.addrs.get(&at).map_or(IdentFlags::NONE, |known| known.flags);
        let here = |pod: &Pod| IdentFlags::HERE.when(cluster.is_own(pod));
        let want = match owner {
            Some(Owner::Pod(_, pod)) => IdentFlags::POD | here(pod),
            Some(Owner::Node(..)) => IdentFlags::NODE,
            None => IdentFlags::NONE,
        };
        assert_eq!(flags, want, "{at}: {owner:?}");
        if let Some(Owner::Pod(name, pod)) = owner
            && cluster.is_own(pod)
        {
            assert_eq!(cluster.pod_at(&at), Some(name));
        }
        let local = cluster.pod_at(&at).map(ToString::to_string);
        answers.push(format!("{at} {} {local:?}", shown(owner)));
    }
    answers
}

proptest! {
    /// Whatever was told in whatever order, the same has an address as when only what is true now is told, in any order.
    #[test]
    fn the_order_of_arrival_decides_nothing(
        history in prop::collection::vec(step(), 0..40),
        seed in any::<u64>(),
    ) {
        let lived = cluster(history.iter().map(event));
        let mut now = std::collections::BTreeMap::new();
        for step in &history {
            let key = match step {
                Told::Pod(i, _) => (0, *i),
                Told::Node(i, _) => (1, *i),
            };
            now.insert(key, step);
        }
        let mut last: Vec<&Told> = now.into_values().collect();
        last.sort_by_key(|step| {
            let (kind, i) = match step {
                Told::Pod(i, _) => (0u64, *i),
                Told::Node(i, _) => (1, *i),
            };
            (seed ^ (kind * 8 + u64::from(i))).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        let told_now = cluster(last.iter().copied().map(event));
        let reversed = cluster(last.iter().rev().copied().map(event));
        let want = answers(&lived);
        prop_assert_eq!(answers(&told_now), want.clone());
        prop_assert_eq!(answers(&reversed), want);
    }
}
