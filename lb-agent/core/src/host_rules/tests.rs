//! What is not understood matters; what never gets to a Pod's packet does not.

use std::collections::BTreeMap;

use lb_common::addr::Addr;

use super::{
    BaseChain, ChainHook, HostChain, HostJudgement, HostRule, HostRuleset, HostTable, PacketField,
    PodTraffic, RuleCondition, RuleStep, RuleVerdict, TableFamily, judge, state,
};

fn traffic() -> PodTraffic {
    let addresses = ["10.1.0.2", "10.1.0.3"].map(|text| Addr::from_ip(text.parse().unwrap()));
    PodTraffic {
        addresses: addresses.into(),
        routed: [(5, "veth5".to_owned()), (6, "veth6".to_owned())].into(),
        ports: [].into(),
    }
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
    let chains: BTreeMap<_, _> =
        chains.iter().map(|(name, chain)| ((*name).to_owned(), chain.clone())).collect();
    let table = HostTable {
        family: TableFamily::V4,
        title: "ip t".to_owned(),
        name: "t".to_owned(),
        chains,
    };
    judge(&HostRuleset { tables: vec![table] }, &traffic())
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
