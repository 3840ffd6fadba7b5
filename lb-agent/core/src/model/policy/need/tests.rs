//! What makes a node need the Pods of all nodes, and what is known without them.

use lb_common::addr::Addr;
use lb_common::flow::proto;

use super::needs_all_pods;
use crate::cluster::{
    Action, Change, Cluster, Conditions, Endpoint, EndpointSlice, Event, Family, Kind, Labels,
    Name, Namespaces, Node, Peer, Pod, PodScope, PodSelector, Policy, PortMatch, PortSpec, Rule,
    Selector, Tier,
};

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

/// This node and another one, a Pod of this node, and lists that are complete.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new("n1");
    cluster.apply(Event::Pods(PodScope::Own));
    for (name, range) in [("n1", "10.244.1.0/24"), ("n2", "10.244.2.0/24")] {
        let node = Node { pod_cidrs: [range.parse().unwrap()].into(), ..Node::default() };
        cluster.apply(Event::Node(Change::Applied(Name::new("", name), node)));
    }
    cluster.apply(pod("web", "10.244.1.2"));
    for kind in Kind::ALL {
        cluster.apply(Event::Synced(kind));
    }
    cluster
}

fn pod(name: &str, ip: &str) -> Event {
    let labels = Labels::new([("app".into(), name.into())]);
    let pod = Pod { ips: [addr(ip)].into(), node: "n1".into(), labels, ..Pod::default() };
    Event::Pod(Change::Applied(Name::new("shop", name), pod))
}

fn rule(peers: Option<Vec<Peer>>, ports: Option<PortSpec>) -> Rule {
    let port = |ports| [PortMatch { protocol: Some(proto::TCP), ports }].into();
    Rule {
        name: "".into(),
        action: Action::Accept,
        peers: peers.map(Vec::into_boxed_slice),
        ports: ports.map(port),
    }
}

fn policy(namespace: &str, ingress: Option<Rule>, egress: Option<Rule>) -> Event {
    let list = |rule: Rule| [rule].into();
    let policy = Policy {
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: PodSelector { namespaces: Namespaces::Own, pods: Selector::default() },
        ingress: ingress.map(list),
        egress: egress.map(list),
        shadow: false,
        generation: 1,
        created: 0,
    };
    Event::NetworkPolicy(Change::Applied(Name::new(namespace, "policy"), policy))
}

fn needs(event: Event) -> bool {
    let mut cluster = cluster();
    cluster.apply(event);
    needs_all_pods(&cluster.snapshot())
}

#[test]
fn only_rules_about_pods_that_concern_this_node_need_them() {
    assert!(!needs_all_pods(&cluster().snapshot()));
    let pods = || {
        let all = PodSelector { namespaces: Namespaces::Own, pods: Selector::default() };
        Some(vec![Peer::Pods(all)])
    };
    let block =
        || Some(vec![Peer::Block { prefix: "10.0.0.0/8".parse().unwrap(), excepts: [].into() }]);
    let named = || Some(PortSpec::Named("http".into()));
    for (namespace, ingress, egress, want) in [
        ("shop", None, None, false),
        ("shop", Some(rule(None, None)), None, false),
        ("shop", Some(rule(block(), None)), Some(rule(block(), None)), false),
        ("shop", Some(rule(pods(), None)), None, true),
        ("shop", None, Some(rule(pods(), None)), true),
        ("other", Some(rule(pods(), None)), None, false),
        // A name is that of a port of the destination: of a Pod of this node for ingress.
        ("shop", Some(rule(None, named())), None, false),
        ("shop", None, Some(rule(None, named())), true),
    ] {
        let case = format!("{namespace} {ingress:?} {egress:?}");
        assert_eq!(needs(policy(namespace, ingress, egress)), want, "{case}");
    }
}

fn slice(ip: &str, node: &str) -> Event {
    slice_of(ip, node, false)
}

fn slice_of(ip: &str, node: &str, terminating: bool) -> Event {
    let endpoint = Endpoint {
        addr: addr(ip),
        conditions: Conditions { ready: true, serving: true, terminating },
        node: Some(node.into()),
        zone: None,
        pod: Some("web".into()),
        hints: None,
    };
    let slice = EndpointSlice {
        service: "web".into(),
        family: Family::V4,
        ports: [].into(),
        endpoints: [endpoint].into(),
        trigger_ms: None,
    };
    Event::Slice(Change::Applied(Name::new("shop", "web-1"), slice))
}

#[test]
fn pods_outside_of_the_ranges_of_their_nodes_must_be_known_one_by_one() {
    assert!(needs(pod("stray", "10.9.9.9")));
    assert!(!needs(pod("other", "10.244.1.9")));
    assert!(!needs(slice("10.244.2.9", "n2")));
    assert!(needs(slice("10.244.9.9", "n2")));
    assert!(!needs(slice("10.244.9.9", "n3")), "an unknown node");
    let node = Node {
        pod_cidrs: ["10.244.3.0/24".parse().unwrap()].into(),
        tunnels: [addr("10.9.0.1")].into(),
        ..Node::default()
    };
    assert!(needs(Event::Node(Change::Applied(Name::new("", "n3"), node))), "another IPAM");
}

#[test]
fn the_ranges_of_other_nodes_stand_for_their_pods_until_all_are_known() {
    let mut cluster = cluster();
    let ranges = |cluster: &Cluster| -> Vec<String> {
        let desired = super::super::compile(cluster);
        desired.pod_ranges.iter().map(ToString::to_string).collect()
    };
    assert_eq!(ranges(&cluster), ["10.244.2.0/24"]);
    cluster.apply(Event::Pods(PodScope::All));
    cluster.apply(Event::Restarted(Kind::Pod));
    assert_eq!(ranges(&cluster), ["10.244.2.0/24"], "the list has only begun");
    assert!(!cluster.knows_all_pods());
    assert!(cluster.apply(Event::Synced(Kind::Pod)).policies);
    assert!(cluster.knows_all_pods());
    assert!(ranges(&cluster).is_empty());
    // A server that was away is asked for the same again.
    cluster.apply(Event::Pods(PodScope::All));
    assert!(cluster.knows_all_pods());
}

#[test]
fn a_pod_of_another_node_lives_until_its_endpoint_has_ended() {
    let mut cluster = cluster();
    let (there, here) = (addr("10.244.2.9"), addr("10.244.1.9"));
    assert!(cluster.is_alive(&there), "it may have left its Services");
    assert!(!cluster.is_alive(&here), "all Pods of this node are known");
    assert!(!cluster.is_alive(&addr("192.0.2.9")), "no node's");
    cluster.apply(slice("10.244.2.9", "n2"));
    let gone = || Event::Slice(Change::Deleted(Name::new("shop", "web-1")));
    cluster.apply(gone());
    assert!(cluster.is_alive(&there));
    cluster.apply(slice_of("10.244.2.9", "n2", true));
    assert!(cluster.is_alive(&there), "until it is gone");
    cluster.apply(gone());
    assert!(!cluster.is_alive(&there));
    cluster.apply(slice("10.244.2.9", "n2"));
    cluster.apply(gone());
    assert!(cluster.is_alive(&there), "another Pod had it");
}
