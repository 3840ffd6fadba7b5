//! What is not understood matters; what never gets to a Pod's packet does not.

use std::collections::BTreeMap;

use lb_common::addr::Addr;

use super::routing::{NodeRouting, RoutingDoubt, RoutingRule};
use super::{
    BaseChain, ChainHook, HostChain, HostJudgement, HostRule, HostRuleset, HostTable, PacketField,
    PodTraffic, RuleCondition, RuleStep, RuleVerdict, TableFamily, judge, judge_across, state,
};
use crate::cluster::Prefix;

fn traffic() -> PodTraffic {
    let addresses = ["10.1.0.2", "10.1.0.3"].map(|text| Addr::from_ip(text.parse().unwrap()));
    PodTraffic {
        addresses: addresses.into(),
        routed: [(5, "veth5".to_owned()), (6, "veth6".to_owned())].into(),
        outward: [(2, "eth0".to_owned())].into(),
        elsewhere: [prefix("10.1.1.0/24"), prefix("10.1.2.0/24")].into(),
        nodes: ["192.0.2.2", "192.0.2.3"].map(|text| Addr::from_ip(text.parse().unwrap())).into(),
        ..PodTraffic::default()
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn chain(drops: bool, rules: &[&[RuleStep]]) -> HostChain {
    let base =
        BaseChain { hook: ChainHook::Forward, first_only: false, drops, devices: Vec::new() };
    HostChain { base: Some(base), ..called(rules) }
}

fn called(rules: &[&[RuleStep]]) -> HostChain {
    let rule = |(i, steps): (usize, &&[RuleStep])| HostRule {
        place: format!("rule {}", i + 1),
        steps: steps.to_vec(),
    };
    HostChain { base: None, rules: rules.iter().enumerate().map(rule).collect() }
}

fn judged(chains: &[(&str, HostChain)]) -> HostJudgement {
    judge(&ruleset(chains), &traffic())
}

fn ruleset(chains: &[(&str, HostChain)]) -> HostRuleset {
    let chains: BTreeMap<_, _> =
        chains.iter().map(|(name, chain)| ((*name).to_owned(), chain.clone())).collect();
    let table = HostTable {
        family: TableFamily::V4,
        title: "ip t".to_owned(),
        name: "t".to_owned(),
        chains,
    };
    HostRuleset { tables: vec![table] }
}

fn when(field: PacketField, value: &[u8]) -> RuleStep {
    RuleStep::When(RuleCondition::equal(field, value.to_vec()))
}

fn source(value: &[u8]) -> RuleStep {
    when(PacketField::Network { offset: 12, length: 4 }, value)
}

fn in_state(bits: u32) -> RuleStep {
    when(PacketField::State, &bits.to_ne_bytes())
}

fn jump(to: &str) -> RuleStep {
    RuleStep::Verdict(RuleVerdict::Jump(to.to_owned()))
}

const ACCEPT: RuleStep = RuleStep::Verdict(RuleVerdict::Accept);
const RETURN: RuleStep = RuleStep::Verdict(RuleVerdict::Return);
const DROP: RuleStep = RuleStep::Verdict(RuleVerdict::Stop(std::borrow::Cow::Borrowed("drop")));
const MAYBE: RuleStep = RuleStep::When(RuleCondition::UNKNOWN);

fn rule(text: &str) -> HostJudgement {
    HostJudgement::Rule(format!("ip t {text}"))
}

#[test]
fn a_condition_holds_for_all_some_or_none_of_the_pods() {
    let cases: [(&str, &[&[RuleStep]], HostJudgement); 9] = [
        ("nothing", &[], HostJudgement::Harmless),
        ("another source", &[&[source(&[10, 2]), DROP]], HostJudgement::Harmless),
        ("one of the Pods", &[&[source(&[10, 1, 0, 3]), DROP]], rule("f: rule 1: drop")),
        ("all accepted before", &[&[source(&[10, 1]), ACCEPT], &[DROP]], HostJudgement::Harmless),
        (
            "one accepted before",
            &[&[source(&[10, 1, 0, 3]), ACCEPT], &[DROP]],
            rule("f: rule 2: drop"),
        ),
        ("perhaps accepted before", &[&[MAYBE, ACCEPT], &[DROP]], rule("f: rule 2: drop")),
        ("perhaps", &[&[MAYBE, DROP]], rule("f: rule 1: drop")),
        (
            "all states, one after the other",
            &[
                &[in_state(state::NEW), ACCEPT],
                &[in_state(state::ESTABLISHED), ACCEPT],
                &[in_state(state::RELATED), ACCEPT],
                &[DROP],
            ],
            HostJudgement::Harmless,
        ),
        ("invalid packets are none", &[&[in_state(state::INVALID), DROP]], HostJudgement::Harmless),
    ];
    for (name, rules, want) in cases {
        assert_eq!(judged(&[("f", chain(false, rules))]), want, "{name}");
    }
}

fn target(value: &[u8]) -> RuleStep {
    when(PacketField::Network { offset: 16, length: 4 }, value)
}

fn named(field: PacketField, name: &str) -> RuleStep {
    let mut name = name.as_bytes().to_vec();
    name.resize(16, 0);
    when(field, &name)
}

#[test]
fn packets_between_nodes_are_not_those_within() {
    let in_by = |name| named(PacketField::InName, name);
    let out_by = |name| named(PacketField::OutName, name);
    let (first, second) = (rule("f: rule 1: drop"), rule("f: rule 2: drop"));
    let harmless = HostJudgement::Harmless;
    type Rules<'a> = &'a [&'a [RuleStep]];
    let cases: [(&str, Rules<'_>, [&HostJudgement; 2]); 13] = [
        ("out", &[&[out_by("eth0"), DROP]], [&harmless, &first]),
        ("in", &[&[in_by("eth0"), DROP]], [&harmless, &first]),
        (
            "out of a Pod's device to a Pod's device",
            &[&[in_by("veth5"), out_by("veth6"), DROP]],
            [&first, &harmless],
        ),
        ("through", &[&[in_by("eth0"), out_by("eth0"), DROP]], [&harmless, &harmless]),
        ("another device", &[&[in_by("eth1"), DROP]], [&harmless, &harmless]),
        ("from a Pod elsewhere", &[&[source(&[10, 1, 2]), DROP]], [&harmless, &first]),
        ("to one address elsewhere", &[&[target(&[10, 1, 2, 9]), DROP]], [&harmless, &first]),
        ("from a Pod here", &[&[source(&[10, 1, 0, 2]), DROP]], [&first, &first]),
        (
            "from a Pod here to one",
            &[&[source(&[10, 1, 0]), target(&[10, 1, 0]), DROP]],
            [&first, &harmless],
        ),
        (
            "between others",
            &[&[source(&[10, 1, 1]), target(&[10, 1, 2]), DROP]],
            [&harmless, &harmless],
        ),
        ("all accepted before", &[&[source(&[10, 1]), ACCEPT], &[DROP]], [&harmless, &harmless]),
        (
            "those here accepted before",
            &[&[source(&[10, 1, 0]), ACCEPT], &[DROP]],
            [&harmless, &second],
        ),
        (
            "one elsewhere is not all",
            &[&[source(&[10, 1, 1, 7]), ACCEPT], &[source(&[10, 1, 1]), DROP]],
            [&harmless, &second],
        ),
    ];
    for (name, rules, want) in cases {
        let ruleset = ruleset(&[("f", chain(false, rules))]);
        let traffic = PodTraffic { nodes: [].into(), ..traffic() };
        let got = [judge(&ruleset, &traffic), judge_across(&ruleset, &traffic)];
        assert_eq!(got.each_ref(), want, "{name}");
    }
    let drops = ruleset(&[("f", chain(true, &[]))]);
    for none in [
        PodTraffic { outward: [].into(), ..traffic() },
        PodTraffic { elsewhere: [].into(), nodes: [].into(), ..traffic() },
        PodTraffic { addresses: [].into(), ..traffic() },
    ] {
        assert_eq!(judge_across(&drops, &none), HostJudgement::Harmless, "nothing to judge");
    }
    assert_eq!(judge_across(&drops, &traffic()), rule("f: policy drop"));
}

/// What other nodes send to Pods, masqueraded or not, and the answers.
#[test]
fn packets_of_nodes_and_their_answers_are_judged() {
    let (first, harmless) = (rule("f: rule 1: drop"), HostJudgement::Harmless);
    let node: &[u8] = &[192, 0, 2, 3];
    let pod: &[u8] = &[10, 1, 0, 2];
    type Rules<'a> = &'a [&'a [RuleStep]];
    let cases: [(&str, Rules<'_>, &HostJudgement); 9] = [
        ("from a node", &[&[source(node), DROP]], &first),
        ("from this one or others", &[&[source(&[192, 0, 2, 1]), DROP]], &harmless),
        ("from a node to Pods elsewhere", &[&[source(node), target(&[10, 1, 1]), DROP]], &harmless),
        ("to a node: its answers", &[&[source(pod), target(node), DROP]], &first),
        (
            "to a node: what a Pod begins",
            &[&[source(pod), target(node), in_state(state::NEW), DROP]],
            &harmless,
        ),
        (
            "accepted between Pods alone",
            &[&[source(&[10, 1]), target(&[10, 1]), ACCEPT], &[target(node), DROP]],
            &rule("f: rule 2: drop"),
        ),
        (
            "accepted to and from Pods",
            &[&[source(&[10, 1]), ACCEPT], &[target(&[10, 1]), ACCEPT], &[DROP]],
            &harmless,
        ),
        (
            "both nodes accepted one by one",
            &[
                &[source(node), ACCEPT],
                &[source(&[192, 0, 2, 2]), ACCEPT],
                &[source(&[10, 1]), ACCEPT],
                &[DROP],
            ],
            &harmless,
        ),
        (
            "one of both nodes accepted",
            &[&[source(node), ACCEPT], &[source(&[10, 1]), ACCEPT], &[DROP]],
            &rule("f: rule 3: drop"),
        ),
    ];
    for (name, rules, want) in cases {
        let ruleset = ruleset(&[("f", chain(false, rules))]);
        assert_eq!(judge_across(&ruleset, &traffic()), *want, "{name}");
    }
    // What a Pod begins with a node is masqueraded, its answers are not.
    let base = |first_only| {
        let found = chain(false, &[&[source(&[10, 1]), target(node), DROP]]);
        let base = found.base.map(|base| BaseChain { first_only, ..base });
        HostChain { base, ..found }
    };
    let judged = |first_only| judge_across(&ruleset(&[("f", base(first_only))]), &traffic());
    assert_eq!([true, false].map(judged), [harmless, first]);
}

#[test]
fn a_node_more_is_not_judged_yet() {
    let known = traffic();
    let more = |text: &str| {
        let mut traffic = traffic();
        traffic.nodes.insert(Addr::from_ip(text.parse().unwrap()));
        traffic
    };
    assert!(traffic().is_elsewhere_within(&known));
    assert!(!more("192.0.2.4").is_elsewhere_within(&known));
    assert!(known.is_elsewhere_within(&more("192.0.2.4")));
}

#[test]
fn many_ranges_become_fewer_and_lose_nothing() {
    let host = |i: u32| {
        let [_, a, b, _] = i.to_be_bytes();
        Prefix::host(Addr::from_ip([10, 128 + a, b, 7].into()))
    };
    for n in [1, 64, 65, 3_000, 20_000] {
        let known: Vec<Prefix> = (0..n).map(|i| host(i << 8)).collect();
        let ranges = PodTraffic::ranges(known.iter().copied());
        assert!((1..=64).contains(&ranges.len()), "{n}: {}", ranges.len());
        for one in &known {
            assert!(ranges.iter().any(|range| range.covers(one)), "{one:?} of {n}");
        }
    }
    let both = ["10.1.2.3/32", "10.1.2.0/25", "fd00:1::7/128"].map(prefix);
    let ranges = PodTraffic::ranges(both.into_iter());
    assert_eq!(ranges, ["10.1.2.0/24", "fd00:1::/64"].map(prefix).into());
    let known = PodTraffic { elsewhere: ranges, ..PodTraffic::default() };
    for (text, want) in [("10.1.2.9/32", true), ("10.1.3.0/24", false), ("10.0.0.0/8", false)] {
        let now = PodTraffic { elsewhere: [prefix(text)].into(), ..PodTraffic::default() };
        assert_eq!(now.is_elsewhere_within(&known), want, "{text}");
    }
}

#[test]
fn a_rule_about_routes_matters_if_pods_packets_get_to_it() {
    let of = |table| RoutingRule { table, ..RoutingRule::default() };
    let from = |text| Some(prefix(text));
    let by = |name: &str| RoutingRule { in_by: name.to_owned(), ..of(100) };
    let cases = [
        ("main", of(254), false),
        ("local", of(255), false),
        ("default", of(253), false),
        ("main for some", RoutingRule { source: from("10.1.0.2/32"), ..of(254) }, false),
        ("another table for all, with or without a mark", of(100), true),
        ("blackhole", of(0), true),
        ("from a Pod here", RoutingRule { source: from("10.1.0.2/32"), ..of(100) }, true),
        ("to Pods elsewhere", RoutingRule { destination: from("10.1.2.128/25"), ..of(100) }, true),
        ("to a node", RoutingRule { destination: from("192.0.2.2/32"), ..of(100) }, true),
        ("to this node", RoutingRule { destination: from("192.0.2.1/32"), ..of(100) }, false),
        ("from all Pods", RoutingRule { source: from("10.0.0.0/8"), ..of(100) }, true),
        ("from others", RoutingRule { source: from("10.2.0.0/16"), ..of(100) }, false),
        (
            "not from others",
            RoutingRule { source: from("10.2.0.0/16"), inverted: true, ..of(100) },
            true,
        ),
        (
            "from a Pod to others",
            RoutingRule {
                source: from("10.1.0.0/16"),
                destination: from("198.51.100.0/24"),
                ..of(100)
            },
            false,
        ),
        ("in by a Pod's device", by("veth5"), true),
        ("in by the device of other nodes", by("eth0"), true),
        ("of the node itself", by("lo"), false),
        ("of sockets", RoutingRule { bound_to: "eth0".to_owned(), ..of(100) }, false),
        ("IPv6 without IPv6 Pods", RoutingRule { v6: true, ..of(100) }, false),
    ];
    for (name, rule, want) in cases {
        let routing = NodeRouting { rules: vec![of(255), rule, of(254)], has_policies: false };
        assert_eq!(routing.doubt(&traffic()).is_some(), want, "{name}");
    }
    let both = NodeRouting { rules: vec![of(100)], has_policies: true };
    assert_eq!(both.doubt(&traffic()), Some(RoutingDoubt::Ipsec));
    let rule = NodeRouting { rules: vec![of(100)], has_policies: false };
    assert_eq!(rule.doubt(&traffic()), Some(RoutingDoubt::Rule("ip rule 0".to_owned())));
}

#[test]
fn the_end_of_a_chain_is_its_policy_or_the_chain_that_jumped() {
    let cases: [(&str, HostChain, HostChain, HostJudgement); 8] = [
        ("a policy that accepts", chain(false, &[]), called(&[]), HostJudgement::Harmless),
        ("a policy that drops", chain(true, &[]), called(&[]), rule("f: policy drop")),
        ("accepted in time", chain(true, &[&[ACCEPT]]), called(&[]), HostJudgement::Harmless),
        (
            "accepted elsewhere",
            chain(true, &[&[jump("c")]]),
            called(&[&[ACCEPT]]),
            HostJudgement::Harmless,
        ),
        (
            "back from there",
            chain(true, &[&[jump("c")]]),
            called(&[&[RETURN], &[ACCEPT]]),
            rule("f: policy drop"),
        ),
        (
            "dropped there",
            chain(false, &[&[MAYBE, jump("c")]]),
            called(&[&[DROP]]),
            rule("c: rule 1: drop"),
        ),
        (
            "never back",
            chain(true, &[&[RuleStep::Verdict(RuleVerdict::Goto("c".to_owned()))], &[ACCEPT]]),
            called(&[]),
            rule("f: policy drop"),
        ),
        (
            "not read: kube-proxy's",
            chain(false, &[&[jump("KUBE-SERVICES")]]),
            called(&[]),
            HostJudgement::Harmless,
        ),
    ];
    for (name, base, other, want) in cases {
        assert_eq!(judged(&[("f", base), ("c", other)]), want, "{name}");
    }
}

#[test]
fn a_chain_that_jumps_to_itself_ends() {
    let base = chain(false, &[&[jump("c")]]);
    assert!(matches!(
        judged(&[("f", base), ("c", called(&[&[jump("c")]]))]),
        HostJudgement::Rule(_)
    ));
}

#[test]
fn a_policy_engine_is_named_before_any_rule() {
    let base = chain(false, &[&[MAYBE, DROP], &[MAYBE, jump("cali-FORWARD")]]);
    let want = HostJudgement::Engine("ip t cali-FORWARD".to_owned());
    assert_eq!(judged(&[("f", base), ("cali-FORWARD", called(&[]))]), want);
}
