//! What policies mean: objects compiled to tables, and the tables asked by the evaluator that the kernel runs.

pub(crate) mod naive;
pub(crate) mod random;
mod shares;
mod trial;
mod trouble;
mod unknown;

use lb_common::policy::tier;
use lb_core::cluster::Action::{Accept, Deny, Pass};
use lb_core::cluster::{Peer, Policy, Tier};
use lb_core::model::policy::PolicyDirection::{Egress, Ingress};
use lb_testkit::objects::{
    across, addr, allow, block, cluster_policy, network_policy, own, pod, rule, selector,
};
use lb_testkit::world::{World, WorldFlow, ifindex, split};

/// Pods of two namespaces on two nodes, in both families.
fn world() -> World {
    World::default()
        .namespace("a", "team=red")
        .namespace("b", "team=blue")
        .node("n1", &["192.0.2.1"], "")
        .node("n2", &["192.0.2.2", "2001:db8:f::2"], "role=edge")
        .pod("a/web", pod("n1", &["10.1.0.2", "fd01::2"], "app=web", &[("http", 6, 8080)]))
        .pod("a/old", pod("n1", &["10.1.0.3"], "app=web", &[("http", 6, 80), ("dns", 17, 53)]))
        .pod("a/db", pod("n2", &["10.2.0.2", "fd02::2"], "app=db", &[("sql", 6, 5432)]))
        .pod("a/db2", pod("n2", &["10.2.0.3"], "app=db tier=new", &[("sql", 6, 5433)]))
        .pod("b/web", pod("n2", &["10.2.0.4"], "app=web", &[("http", 6, 9090)]))
        .pod("b/host", {
            let mut host = pod("n2", &["192.0.2.2"], "app=web", &[("http", 6, 9090)]);
            host.host_network = true;
            host
        })
}

fn ingress(subject: &str, rules: Vec<lb_core::cluster::Rule>) -> Policy {
    Policy { ingress: Some(rules.into()), ..network_policy(subject) }
}

fn egress(subject: &str, rules: Vec<lb_core::cluster::Rule>) -> Policy {
    Policy { egress: Some(rules.into()), ..network_policy(subject) }
}

/// Each line: subject, direction, peer, protocol and port; `+` = allowed.
fn check(world: &World, lines: &str) {
    let tables = world.tables();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [sign, subject, arrow, peer, port] = words[..] else { panic!("{line}") };
        let (protocol, port) = port.split_once('/').unwrap_or((port, "0"));
        let flow = WorldFlow {
            ifindex: ifindex(&split(subject)),
            direction: if arrow == "<-" { Ingress } else { Egress },
            peer: addr(peer),
            protocol: match protocol {
                "tcp" => 6,
                "udp" => 17,
                "icmp" => 1,
                other => panic!("{other}"),
            },
            port: port.parse().unwrap(),
            shadow: false,
        };
        let denied = flow.judge(&tables).denied();
        assert_eq!(denied, naive::denied(world, &flow), "the objects say otherwise: {line}");
        assert_eq!(denied, sign == "-", "{line}");
    }
}

#[test]
fn s39_ports_and_protocols() {
    let everyone = || Some(vec![block("0.0.0.0/0", &[])]);
    check(
        &world().policy("a/p", ingress("app=web", vec![rule(Accept, everyone(), Some(&["tcp"]))])),
        "+ a/web <- 198.51.100.1 tcp/80
         + a/web <- 198.51.100.1 tcp/1
         - a/web <- 198.51.100.1 udp/80
         - a/web <- 198.51.100.1 icmp",
    );
    check(
        &world().policy("a/p", ingress("", vec![rule(Accept, everyone(), None)])),
        "+ a/web <- 198.51.100.1 icmp
         + a/web <- 198.51.100.1 udp/80
         - a/web <- 2001:db8::1 tcp/80",
    );
    let rules = vec![
        rule(Accept, None, Some(&["tcp/1000-2000", "tcp/1500-3000"])),
        allow(vec![block("203.0.113.0/24", &[])], &["tcp/1-65535"]),
    ];
    check(
        &world().policy("a/p", ingress("", rules)),
        "- a/web <- 198.51.100.1 tcp/999
         + a/web <- 198.51.100.1 tcp/1000
         + a/web <- 198.51.100.1 tcp/3000
         - a/web <- 198.51.100.1 tcp/3001
         - a/web <- 198.51.100.1 icmp
         + a/web <- 203.0.113.9 tcp/1
         + a/web <- 203.0.113.9 tcp/65535
         - a/web <- 203.0.113.9 tcp/0
         - a/web <- 203.0.113.9 icmp",
    );
}

#[test]
fn s39_absent_and_empty() {
    check(
        &world().policy("a/p", ingress("app=web", vec![])),
        "- a/web <- 10.2.0.2 tcp/80
         - a/web <- 192.0.2.2 tcp/80
         + a/web <- 192.0.2.1 tcp/80
         + a/web -> 10.2.0.2 tcp/80",
    );
    check(
        &world().policy("a/p", ingress("app=web", vec![rule(Accept, None, None)])),
        "+ a/web <- 10.2.0.2 tcp/80
         + a/web <- 2001:db8::1 icmp",
    );
    check(
        &world().policy(
            "a/p",
            ingress("", vec![rule(Accept, Some(vec![]), None), rule(Accept, None, Some(&[]))]),
        ),
        "- a/web <- 10.2.0.2 tcp/80",
    );
    check(
        &world().policy("a/p", ingress("", vec![allow(vec![Peer::Pods(own(""))], &[])])),
        "+ a/web <- 10.2.0.2 tcp/80
         - a/web <- 10.2.0.4 tcp/80
         - a/web <- 198.51.100.1 tcp/80",
    );
    check(
        &world().policy("a/p", ingress("", vec![allow(vec![Peer::Pods(across("", ""))], &[])])),
        "+ a/web <- 10.2.0.4 tcp/80
         - a/web <- 192.0.2.2 tcp/80
         - a/web <- 198.51.100.1 tcp/80",
    );
    check(&world(), "+ a/web <- 198.51.100.1 icmp");
}

#[test]
fn s41_an_exception_is_of_its_own_block_only() {
    let rules = vec![
        allow(vec![block("10.0.0.0/8", &["10.2.0.0/16"])], &["tcp/80"]),
        allow(vec![block("10.2.0.0/24", &["10.2.0.3/32"])], &["tcp/443"]),
        allow(vec![block("::/0", &["2001:db8::/32"])], &["tcp/8080"]),
    ];
    check(
        &world().policy("a/p", ingress("", rules)),
        "+ a/web <- 10.9.0.1 tcp/80
         - a/web <- 10.9.0.1 tcp/443
         - a/web <- 10.9.0.1 tcp/8080
         - a/web <- 10.2.0.2 tcp/80
         + a/web <- 10.2.0.2 tcp/443
         - a/web <- 10.2.0.3 tcp/443
         - a/web <- 10.2.1.1 tcp/443
         + a/web <- fd02::2 tcp/8080
         - a/web <- 2001:db8::1 tcp/8080
         + a/web <- fe80::9 tcp/8080
         - a/web <- 198.51.100.1 tcp/8080",
    );
}

#[test]
fn s40_blocks_are_of_pods_and_nodes_too() {
    check(
        &world().policy("a/p", ingress("", vec![allow(vec![block("10.2.0.0/31", &[])], &[])])),
        "+ a/web <- 10.2.0.1 tcp/80
         - a/web <- 10.2.0.2 tcp/80
         - a/web <- fd02::2 tcp/80",
    );
    check(
        &world().policy("a/p", ingress("", vec![allow(vec![block("10.2.0.2/32", &[])], &[])])),
        "+ a/web <- 10.2.0.2 tcp/80
         - a/web <- fd02::2 tcp/80",
    );
    check(
        &world().policy("a/p", ingress("", vec![allow(vec![block("192.0.2.0/24", &[])], &[])])),
        "+ a/web <- 192.0.2.2 tcp/80
         + a/web <- 192.0.2.77 tcp/80
         - a/web <- 2001:db8:f::2 tcp/80",
    );
}

#[test]
fn s48_pods_of_the_host_network_are_not_peers() {
    let rules = vec![allow(vec![Peer::Pods(across("", "app=web"))], &[])];
    check(
        &world().policy("a/p", ingress("", rules)),
        "+ a/web <- 10.2.0.4 tcp/80
         - a/web <- 192.0.2.2 tcp/80",
    );
    let nodes = cluster_policy(Tier::Admin, 1, across("", ""));
    let nodes = Policy {
        ingress: Some([rule(Deny, Some(vec![Peer::Nodes(selector("role=edge"))]), None)].into()),
        ..nodes
    };
    check(
        &world().policy("nodes", nodes),
        "- a/web <- 192.0.2.2 tcp/80
         - a/web <- 2001:db8:f::2 tcp/80
         + a/web <- 192.0.2.1 tcp/80
         + a/web <- 10.2.0.4 tcp/80",
    );
}

#[test]
fn of_two_pods_with_one_address_the_living_one_is_meant() {
    let from_db = || ingress("app=web", vec![allow(vec![Peer::Pods(own("app=db"))], &["tcp/80"])]);
    let other = |deleting: bool, created: i64, labels: &str| {
        let created = std::num::NonZeroI64::new(created);
        lb_core::cluster::Pod { deleting, created, ..pod("n2", &["10.2.0.9"], labels, &[]) }
    };
    let cases = [
        (
            "an old one that is being deleted does not deny",
            ("a/a", false, 5, "app=db"),
            ("a/z", true, 9, "app=x"),
            "+",
        ),
        ("whatever their names", ("a/z", false, 5, "app=db"), ("a/a", true, 9, "app=x"), "+"),
        ("nor to let a stranger in", ("a/a", false, 5, "app=x"), ("a/z", true, 9, "app=db"), "-"),
        (
            "the one on a dead node is the older one",
            ("a/a", false, 5, "app=x"),
            ("a/z", false, 1, "app=db"),
            "-",
        ),
        ("and the other way round", ("a/z", false, 1, "app=x"), ("a/a", false, 5, "app=db"), "+"),
    ];
    for (what, one, two, want) in cases {
        let mut world = world().policy("a/p", from_db());
        for (name, deleting, created, labels) in [one, two] {
            world = world.pod(name, other(deleting, created, labels));
        }
        println!("{what}");
        check(&world, &format!("{want} a/web <- 10.2.0.9 tcp/80\n- a/web <- 10.2.0.9 tcp/81"));
    }
    // Alone, one that is going is itself until it is gone.
    let world = world().policy("a/p", from_db()).pod("a/z", other(true, 1, "app=db"));
    check(&world, "+ a/web <- 10.2.0.9 tcp/80");
}

#[test]
fn s43_one_port_name_and_other_numbers() {
    check(
        &world().policy(
            "a/p",
            ingress("app=web", vec![rule(Accept, None, Some(&["tcp/http", "udp/dns"]))]),
        ),
        "+ a/web <- 10.2.0.2 tcp/8080
         - a/web <- 10.2.0.2 tcp/80
         + a/old <- 10.2.0.2 tcp/80
         - a/old <- 10.2.0.2 tcp/8080
         + a/old <- 10.2.0.2 udp/53
         - a/web <- 10.2.0.2 udp/53",
    );
    let rules = vec![
        allow(vec![Peer::Pods(own("app=db"))], &["tcp/sql", "tcp/9"]),
        allow(vec![block("10.2.0.4/32", &[]), block("198.51.100.0/24", &[])], &["tcp/http"]),
    ];
    check(
        &world().policy("a/p", egress("app=web", rules)),
        "+ a/web -> 10.2.0.2 tcp/5432
         - a/web -> 10.2.0.2 tcp/5433
         + a/web -> 10.2.0.3 tcp/5433
         - a/web -> 10.2.0.3 tcp/5432
         + a/web -> 10.2.0.3 tcp/9
         + a/web -> 10.2.0.4 tcp/9090
         - a/web -> 198.51.100.1 tcp/9090
         - a/web -> 10.2.0.4 tcp/8080",
    );
    let any = cluster_policy(Tier::Baseline, 3, across("", ""));
    let any = Policy { egress: Some([rule(Deny, None, Some(&["*/sql"]))].into()), ..any };
    check(
        &world().policy("any", any),
        "- a/web -> 10.2.0.2 tcp/5432
         + a/web -> 10.2.0.3 tcp/5432
         - a/web -> 10.2.0.3 tcp/5433
         + a/web -> 198.51.100.1 tcp/5432",
    );
}

#[test]
fn s50_tiers_and_priorities() {
    let of = |tier, priority, action, peer: &str| Policy {
        ingress: Some([rule(action, Some(vec![block(peer, &[])]), None)].into()),
        ..cluster_policy(tier, priority, across("team=red", ""))
    };
    check(
        &world()
            .policy("x", of(Tier::Admin, 2, Deny, "10.0.0.0/8"))
            .policy("y", of(Tier::Admin, 1, Pass, "10.2.0.0/31"))
            .policy("z", of(Tier::Admin, 1, Accept, "10.2.0.0/30"))
            .policy("base", of(Tier::Baseline, 0, Deny, "0.0.0.0/0"))
            .policy("a/p", ingress("app=web", vec![allow(vec![block("10.2.0.1/32", &[])], &[])]))
            .pod("a/free", pod("n1", &["10.1.0.9"], "app=free", &[])),
        "- a/web <- 10.2.0.9 tcp/80
         + a/web <- 10.2.0.3 tcp/80
         + a/web <- 10.2.0.1 tcp/80
         - a/web <- 10.2.0.0 tcp/80
         - a/web <- 198.51.100.1 tcp/80
         - a/free <- 198.51.100.1 tcp/80
         - a/free <- 10.2.0.0 tcp/80
         + a/free <- fd00::1 tcp/80",
    );
}

#[test]
fn shadow_policies_are_only_tried() {
    let shadow = Policy { shadow: true, ..ingress("app=web", vec![]) };
    let world = world().policy("a/p", shadow);
    check(&world, "+ a/web <- 10.2.0.2 tcp/80");
    let tables = world.tables();
    let mut flow = WorldFlow {
        ifindex: ifindex(&split("a/web")),
        direction: Ingress,
        peer: addr("10.2.0.2"),
        protocol: 6,
        port: 80,
        shadow: true,
    };
    assert!(flow.judge(&tables).denied());
    flow.direction = Egress;
    assert!(!flow.judge(&tables).denied());
}

#[test]
fn many_rules_chain_and_too_many_deny() {
    // Each at ports of its own, or they would be one rule.
    let rules = |n: u32| {
        let peer = |i: u32| block(&format!("172.{}.{}.0/24", 16 + i / 256, i % 256), &[]);
        let rule = |i| allow(vec![peer(i)], &["tcp/80", &format!("udp/{}", i + 1)]);
        (0..n).map(rule).collect::<Vec<_>>()
    };
    let crowd = world().policy("a/p", ingress("", rules(2048)));
    let tables = crowd.tables();
    for (i, peer) in
        [(0, "172.16.0.1"), (255, "172.16.255.1"), (256, "172.17.0.1"), (2047, "172.23.255.1")]
    {
        let ifindex = ifindex(&split("a/web"));
        let flow = WorldFlow {
            ifindex,
            direction: Ingress,
            peer: addr(peer),
            protocol: 6,
            port: 80,
            shadow: false,
        };
        let judgement = flow.judge(&tables);
        assert_eq!((judgement.rule(), judgement.tier()), (Some(i), tier::NETWORK_POLICY), "{peer}");
        assert!(WorldFlow { port: 81, ..flow }.judge(&tables).denied());
    }
    let crowd = world().policy("a/p", ingress("", rules(2049)));
    let desired = lb_core::model::policy::compile(&crowd.cluster());
    assert_eq!(
        desired.issues.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "NetworkPolicy a/p: spec.ingress[2048]: a Pod that it selects exceeds the limit of rules for one Pod: all traffic of that Pod in this direction is denied"
        ]
    );
    check_denied(&crowd, "172.16.0.1");
}

#[test]
fn rules_that_differ_in_their_peers_are_one_where_they_are_too_many() {
    let list = |ports: &str, from: u32, n: u32| {
        let peer = |i: u32| block(&format!("172.{}.{}.0/28", 16 + i / 256, i % 256), &[]);
        (from..from + n).map(|i| allow(vec![peer(i)], &[ports])).collect::<Vec<_>>()
    };
    // Of one policy, and of two that come together in a Pod.
    let mut all = list("tcp/80", 0, 3000);
    all.push(allow(vec![block("198.51.100.0/24", &[])], &["tcp/443"]));
    let one = world().policy("a/p", ingress("", all));
    let two = world()
        .policy("a/p", ingress("app=web", list("tcp/80", 0, 1500)))
        .policy("a/q", ingress("", list("tcp/80", 1500, 1500)));
    for world in [&one, &two] {
        let desired = lb_core::model::policy::compile(&world.cluster());
        assert_eq!(desired.issues, []);
        assert!(desired.idents.len() < 10, "{} identities", desired.idents.len());
        let lines = (0..3000).step_by(97).map(|i| {
            let (b, c) = (16 + i / 256, i % 256);
            format!("+ a/web <- 172.{b}.{c}.15 tcp/80\n- a/web <- 172.{b}.{c}.16 tcp/80\n- a/web <- 172.{b}.{c}.1 tcp/443")
        });
        check(world, &lines.collect::<Vec<_>>().join("\n"));
    }
    check(&one, "+ a/web <- 198.51.100.1 tcp/443\n- a/web <- 198.51.100.1 tcp/80");
    // What is one rule says so.
    let desired = lb_core::model::policy::compile(&one.cluster());
    let group = desired.groups.iter().find(|group| group.rules.len() == 2).unwrap();
    let sources = group.rules.iter().map(|(_, rule)| (rule.source.index, rule.source.others.len()));
    assert_eq!(sources.collect::<Vec<_>>(), [(0, 2999), (3000, 0)]);
    // Few rules are as they are written.
    let few = world().policy("a/p", ingress("", list("tcp/80", 0, 2048)));
    let desired = lb_core::model::policy::compile(&few.cluster());
    assert!(desired.groups.iter().all(|group| group.rules.len() == 2048));
}

#[test]
fn rules_of_the_cluster_are_one_only_where_they_follow_each_other() {
    let peer = |i: u32| block(&format!("172.{}.{}.0/24", 16 + i / 256, i % 256), &[]);
    let some = |action, from: u32, n: u32| {
        (from..from + n).map(move |i| rule(action, Some(vec![peer(i)]), Some(&["tcp/80"])))
    };
    let all = cluster_policy(Tier::Admin, 1, across("team=red", ""));
    let around = rule(Deny, Some(vec![block("172.16.0.0/12", &[])]), Some(&["tcp/80"]));
    let within = some(Accept, 0, 2000).chain([around]).chain(some(Accept, 2000, 1000));
    let world = world().policy("all", Policy { ingress: Some(within.collect()), ..all });
    let desired = lb_core::model::policy::compile(&world.cluster());
    assert_eq!(desired.issues, []);
    check(
        &world.policy("a/p", ingress("", vec![rule(Accept, None, None)])),
        "+ a/web <- 172.16.0.1 tcp/80
         + a/web <- 172.23.207.1 tcp/80
         - a/web <- 172.23.208.1 tcp/80
         - a/web <- 172.27.1.1 tcp/80
         + a/web <- 172.27.1.1 tcp/81",
    );
}

fn check_denied(world: &World, peer: &str) {
    let ifindex = ifindex(&split("a/web"));
    let flow = WorldFlow {
        ifindex,
        direction: Ingress,
        peer: addr(peer),
        protocol: 6,
        port: 80,
        shadow: false,
    };
    assert!(flow.judge(&world.tables()).denied());
}
