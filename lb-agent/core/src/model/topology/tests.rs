//! The cases of endpoint choice, one line each: the state of an endpoint → its lists.
#![forbid(unsafe_code)]

use super::{Candidate, Choice, Hint, Lists, Rejection, choose, rejections};
use crate::cluster::Conditions;
use crate::model::{Class, EndpointState};

/// An endpoint as a word: `r` ready, `p` ready though terminating (`publishNotReadyAddresses`), `t` serving and
/// terminating, `d` terminating and no longer serving, `u` serving but not ready, `n` not ready; a capital is on this
/// node. Then its hints: `z` for this zone, `y` for another; `h` for this node, `g` for another.
fn candidate(word: &str) -> Candidate {
    let (letter, hints) = word.split_at(1);
    let conditions = |ready, serving, terminating| Conditions { ready, serving, terminating };
    let conditions = match letter.to_ascii_lowercase().as_str() {
        "r" => conditions(true, true, false),
        "p" => conditions(true, true, true),
        "t" => conditions(false, true, true),
        "d" => conditions(false, false, true),
        "u" => conditions(false, true, false),
        "n" => conditions(false, false, false),
        _ => panic!("{word}"),
    };
    let hint = |here, elsewhere| match (hints.contains(here), hints.contains(elsewhere)) {
        (true, _) => Hint::Here,
        (false, true) => Hint::Elsewhere,
        (false, false) => Hint::Absent,
    };
    let local = letter.chars().all(char::is_uppercase);
    Candidate { conditions, local, zones: hint('z', 'y'), nodes: hint('h', 'g') }
}

/// The result for one endpoint: `C`, `L` or `B` for the lists it is in, small while it terminates; `!` and why it is in none.
fn outcome(chosen: Option<(Class, EndpointState)>, rejection: Option<Rejection>) -> &'static str {
    use {Class::*, EndpointState::*};
    match (chosen, rejection) {
        (Some((Cluster, Ready)), None) => "C",
        (Some((Cluster, Terminating)), None) => "c",
        (Some((Both, Ready)), None) => "B",
        (Some((Both, Terminating)), None) => "b",
        (Some((Local, Ready)), None) => "L",
        (Some((Local, Terminating)), None) => "l",
        (None, Some(Rejection::NotReady)) => "!ready",
        (None, Some(Rejection::NotServing)) => "!serving",
        (None, Some(Rejection::TerminatingWhileOthersReady)) => "!late",
        (None, Some(Rejection::OtherNode)) => "!node",
        (None, Some(Rejection::OtherZone)) => "!zone",
        (None, Some(Rejection::NotLocal)) => "!local",
        both => panic!("{both:?}"),
    }
}

/// Name, lists in use, endpoints, result for each. With `+` if some endpoint is usable anywhere.
type Case = (&'static str, &'static str, &'static str, &'static str);

fn check(cases: &[Case]) {
    for (name, lists, given, want) in cases {
        let lists = Lists { cluster: lists.contains('C'), local: lists.contains('L') };
        let candidates: Vec<_> = given.split_whitespace().map(candidate).collect();
        let Choice { chosen, anywhere } = choose(&candidates, lists);
        let reasons = rejections(&candidates, lists);
        let mut words: Vec<_> =
            chosen.into_iter().zip(reasons).map(|(c, r)| outcome(c, r)).collect();
        if anywhere {
            words.push("+");
        }
        assert_eq!(words.join(" "), *want, "{name}");
    }
}

#[test]
fn s01_readiness_alone() {
    check(&[
        ("nothing", "C", "", ""),
        ("nothing, for both lists", "CL", "", ""),
        ("one ready", "C", "r", "C +"),
        ("one ready here", "C", "R", "C +"),
        ("two ready", "C", "r R", "C C +"),
        ("not ready", "C", "n", "!ready"),
        ("not ready here", "CL", "N", "!ready"),
        ("one of two ready", "C", "r n", "C !ready +"),
        ("serving without being ready or terminating", "CL", "u U", "!ready !ready"),
        ("published although not ready", "CL", "p P", "C B +"),
        ("published beside one that terminates", "CL", "P T", "B !late +"),
    ]);
}

#[test]
fn s05_terminating_fallback_is_separate_for_each_list() {
    check(&[
        ("ready ones", "CL", "r R", "C B +"),
        ("a ready one hides terminating ones", "CL", "t T r", "!late l C +"),
        ("a ready one here hides both", "CL", "t T R", "!late !late B +"),
        ("none ready", "CL", "t T", "c b +"),
        ("none ready, none here", "CL", "t t", "c c +"),
        ("none ready, all here", "CL", "T T", "b b +"),
        ("no longer serving", "CL", "d D", "!serving !serving"),
        ("one of two terminating ones serves", "C", "t d", "c !serving +"),
        ("endpoints that are not ready are not a fallback", "C", "n t", "!ready c +"),
        ("not ready here, ready elsewhere", "CL", "N r", "!ready C +"),
        ("not ready here, terminating elsewhere", "CL", "N t", "!ready c +"),
        ("all here and ready", "CL", "R R", "B B +"),
        ("the cluster list alone does without those that are late", "C", "T r", "!late C +"),
        ("the cluster list alone falls back", "C", "T t", "c c +"),
        ("the fallback ends with the first ready one", "C", "t t t r", "!late !late !late C +"),
        ("a late one here serves its node alone", "CL", "T r r", "l C C +"),
    ]);
}

#[test]
fn s02_s04_traffic_policy_local() {
    check(&[
        ("ready here", "L", "R", "L +"),
        ("ready elsewhere", "L", "r", "!local +"),
        ("ready here and elsewhere", "L", "R r", "L !local +"),
        ("terminating here", "L", "T", "l +"),
        ("terminating here, ready elsewhere", "L", "T r", "l !local +"),
        ("terminating elsewhere", "L", "t", "!local +"),
        ("late here", "L", "R T", "L !late +"),
        ("not ready here", "L", "N", "!ready"),
        ("not ready anywhere", "L", "N n d", "!ready !ready !serving"),
        ("hints have no say", "L", "Ry Rg r", "L L !local +"),
    ]);
}

#[test]
fn s03_s04_both_lists_at_once() {
    check(&[
        ("remote ones are for the cluster list", "CL", "r r", "C C +"),
        ("one here is in both", "CL", "R r", "B C +"),
        ("a hint keeps one here out of the cluster list only", "CL", "Ry rz", "L C +"),
        ("and one elsewhere out of all", "CL", "Rz ry", "B !zone +"),
        ("a hint for nodes likewise", "CL", "Rg rh", "L C +"),
        ("late here, kept out by its hint", "CL", "Ty rz", "l C +"),
        ("all are late, whatever their hints", "CL", "Ty tz", "b c +"),
    ]);
}

#[test]
fn s08_s10_hints_for_zones() {
    check(&[
        ("all for this zone", "C", "rz rz", "C C +"),
        ("one of two for this zone", "C", "rz ry", "C !zone +"),
        ("for both", "C", "rzy ry", "C !zone +"),
        ("none for this zone: all", "C", "ry ry", "C C +"),
        ("one has no hint: all", "C", "rz r", "C C +"),
        ("one has no hint, others are for another zone: all", "C", "ry r", "C C +"),
        ("one that is not ready needs no hint", "C", "rz ry n", "C !zone !ready +"),
        ("one that terminates needs no hint", "C", "rz ry t", "C !zone !late +"),
        ("hints of those that are not ready do not count", "C", "ry nz", "C !ready +"),
        ("nor do those of terminating ones", "C", "ry tz", "C !late +"),
        ("the fallback to terminating ones drops hints", "C", "ty tz", "c c +"),
        ("only one for this zone, here", "CL", "Rz ry ry", "B !zone !zone +"),
        ("no zone of this node is known", "C", "ry ry r", "C C C +"),
        ("published ones count as ready", "C", "pz ry", "C !zone +"),
        ("published ones need a hint, too", "C", "p rz", "C C +"),
    ]);
}

#[test]
fn s09_hints_for_nodes_fall_back_to_the_zone_and_then_to_all() {
    check(&[
        ("one for this node", "C", "rh rg", "C !node +"),
        ("the node before the zone", "C", "rzh rzg ryg", "C !node !node +"),
        ("even where the zone says otherwise", "C", "ryh rzg", "C !node +"),
        ("none for this node: the zone", "C", "rzg ryg", "C !zone +"),
        ("one without a hint for nodes: the zone", "C", "rzh rz ry", "C C !zone +"),
        ("none for this zone either: all", "C", "ryg ryg", "C C +"),
        ("hints for nodes alone, none for this one: all", "C", "rg rg", "C C +"),
        ("one without any: all", "C", "rh r", "C C +"),
        ("judged by hints, not by where it is", "CL", "Rg rh", "L C +"),
        ("one for this node that is not ready", "C", "nh rg rg", "!ready C C +"),
        ("one for this node that terminates", "C", "th rg", "!late C +"),
        ("all terminate: all", "C", "th tg", "c c +"),
    ]);
}
