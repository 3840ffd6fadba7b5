//! What `lbctl policy try` and `lbctl shadow report` make of the agent's answers.

use std::collections::HashMap;
use std::net::IpAddr;

use expect_test::expect;
use lb_common::policy::Judgement;

use super::check;
use super::sample::names;
use crate::columns::{Format, Style};
use crate::pairs::LivePair;
use crate::shadow::{self, ShadowFacts};
use crate::trial::{self, TrialAnswer, TrialFacts, TrialReport, number};
use lb_core::admin::context::RecordJudgement;
use lb_core::admin::what_if::{ChangedVerdict, SeenFlow, WhatIfAnswer};
use lb_core::cluster::Name;
use lb_core::model::policy::PolicyDirection;

fn flow(src: &str, dst: &str, port: u16) -> SeenFlow {
    let [src, dst] = [src, dst].map(|ip| ip.parse().unwrap());
    SeenFlow { src, dst, protocol: 6, port, from_host: false }
}

fn judgement(denied: bool) -> RecordJudgement {
    let isolated = Judgement::ISOLATED.number();
    RecordJudgement {
        number: if denied { isolated } else { 0 },
        selected: true,
        policies: if denied { vec![Name::new("db", "from-cart")] } else { Vec::new() },
        ..RecordJudgement::default()
    }
}

fn change(flow: u32, direction: PolicyDirection, denied: bool) -> ChangedVerdict {
    let (now, then) = (judgement(!denied), judgement(denied));
    ChangedVerdict { flow, direction, subject: Name::new("db", "orders-0"), denied, now, then }
}

fn owner(ip: IpAddr) -> String {
    let name = match ip.to_string().as_str() {
        "10.1.0.2" => "shop/cart-7d4b9c6f5d-x2x7k",
        "10.1.0.4" => "shop/cart-7d4b9c6f5d-b4b4b",
        "10.1.0.3" => "db/orders-0",
        _ => "",
    };
    name.to_owned()
}

fn pair(flow: SeenFlow, count: u64) -> LivePair {
    let via = "db/orders:pg".to_owned();
    LivePair { flow, via, is_answered: true, count, idle: 3, totals: None }
}

/// Two Pods of a workload, a client outside, and a flow that two Pods judge.
fn flows() -> [SeenFlow; 4] {
    [
        flow("10.1.0.2", "10.1.0.3", 5432),
        flow("10.1.0.4", "10.1.0.3", 5432),
        flow("192.0.2.7", "10.1.0.3", 5432),
        flow("10.1.0.3", "10.1.0.2", 80),
    ]
}

fn answer(changes: Vec<ChangedVerdict>, still_denied: &[u32]) -> TrialAnswer {
    let mut answer = TrialAnswer::default();
    let still_denied = still_denied.to_vec();
    let given = WhatIfAnswer { complete: true, changes, still_denied, ..WhatIfAnswer::default() };
    answer.add(&flows(), given);
    answer
}

#[test]
fn a_trial_counts_what_would_change_by_workload_and_rule() {
    use PolicyDirection::{Egress, Ingress};
    let changes = vec![
        change(0, Ingress, true),
        change(1, Ingress, true),
        change(2, Ingress, false),
        change(3, Egress, true),
        change(3, Ingress, true),
    ];
    let [a, b, outside, both] = flows();
    let live = [pair(a, 11), pair(b, 1), pair(both, 4_201)];
    let facts = TrialFacts {
        node: "n1",
        live: &live,
        denied: &[pair(outside, 5)],
        owner: &owner,
        is_counted: &|_| true,
    };
    let trial = trial::trial(&facts, answer(changes, &[]));
    assert!(trial.breaks());
    let longer = TrialReport { seconds: 30, ..trial.clone() };
    let counted = "of 4,213 live flows on n1 in 30 s 4,213 would be denied";
    assert!(longer.summary().starts_with(counted), "{}", longer.summary());
    let mut out = Vec::new();
    trial::print(&mut out, &trial, &Style { output: Format::Wide, ..Style::default() }).unwrap();
    expect![[r#"
        of 4,213 live flows on n1 4,213 would be denied; of 5 recently denied 5 would be allowed
        CHANGE   COUNT  SRC        DST        PORT  PROTO  VIA           DIRECTION  BY                         SRC-ADDRESS  DST-ADDRESS
        denied   4201   db/orders  shop/cart  80    TCP    db/orders:pg  egress     db/from-cart default-deny  <none>       <none>
        denied   12     shop/cart  db/orders  5432  TCP    db/orders:pg  ingress    db/from-cart default-deny  <none>       <none>
        allowed  5      192.0.2.7  db/orders  5432  TCP    db/orders:pg  ingress    db/from-cart default-deny  192.0.2.7    <none>
    "#]].assert_eq(&String::from_utf8(out).unwrap());
    let item = serde_json::to_value(&trial).unwrap()["items"][1].to_string();
    expect![[r#"{"change":"denied","count":12,"src":{"name":"shop/cart","address":""},"dst":{"name":"db/orders","address":""},"port":5432,"protocol":"TCP","via":"db/orders:pg","direction":"ingress","by":{"policies":["db/from-cart"],"rule":""}}"#]].assert_eq(&item);
}

/// Two nodes deny the same flows, one where they leave and one where they arrive; a third one denies others.
#[test]
fn the_answers_of_nodes_count_a_flow_once() {
    let [a, b, ..] = flows();
    let report = |node, direction, live: &[LivePair], counted: bool| {
        let changes = vec![change(0, direction, true), change(1, direction, true)];
        let is_counted = |_: &LivePair| counted;
        let facts = TrialFacts { node, live, denied: &[], owner: &owner, is_counted: &is_counted };
        trial::trial(&facts, answer(changes, &[]))
    };
    let out = report("n1", PolicyDirection::Egress, &[pair(a, 3)], true);
    let into = report("n2", PolicyDirection::Ingress, &[pair(a, 3), pair(b, 4)], false);
    let whole = trial::together(vec![out, into]).unwrap();
    assert_eq!((whole.node.as_str(), whole.flows, whole.denied), ("2 nodes", 3, 7));
    let [row] = &whole.items[..] else { panic!("{whole:?}") };
    assert_eq!((row.count, row.direction.as_str()), (7, "ingress"));
    assert!(trial::together(Vec::new()).is_none());
}

/// The node of the server denies flows, and does not see the Service; the node of the client does, and denies nothing.
#[test]
fn the_service_of_a_row_is_what_the_node_of_the_client_saw() {
    let [a, ..] = flows();
    let direct = || LivePair { via: String::new(), ..pair(a, 3) };
    let report = |clients: &[LivePair]| {
        let server = [direct()];
        let facts = |node, live, is_counted| TrialFacts {
            node,
            live,
            denied: &[],
            owner: &owner,
            is_counted,
        };
        let [there, here] = [facts("n1", clients, &|_| true), facts("n2", &server, &|_| false)];
        let client = trial::trial(&there, TrialAnswer::default());
        let client = TrialReport { dialed: trial::dialed(&there), ..client };
        let changes = vec![change(0, PolicyDirection::Ingress, true)];
        let server = trial::trial(&here, answer(changes, &[]));
        assert!(trial::dialed(&here).is_empty());
        trial::together(vec![client, server]).unwrap()
    };
    let via = |clients: &[LivePair]| report(clients).items[0].via.clone();
    assert_eq!(via(&[pair(a, 3)]), "db/orders:pg");
    assert!(report(&[pair(a, 3)]).dialed.is_empty());
    // Some dialed the Pod itself: the Service is not that of all flows of the row.
    assert_eq!(via(&[pair(a, 2), direct()]), "");
    assert_eq!(via(&[]), "");
}

#[test]
fn a_flow_that_another_pod_denies_anyway_does_not_change() {
    use PolicyDirection::{Egress, Ingress};
    let changes = vec![change(0, Egress, false), change(1, Egress, true)];
    assert!(answer(changes.clone(), &[0, 1]).fates.is_empty());
    assert_eq!(answer(changes, &[]).fates.len(), 2);
    // Denied in the one direction now, and in the other then.
    let moved = vec![change(0, Egress, false), change(0, Ingress, true)];
    assert!(answer(moved, &[]).fates.is_empty());
}

#[test]
fn nothing_to_report_is_one_line() {
    let facts =
        TrialFacts { node: "", live: &[], denied: &[], owner: &owner, is_counted: &|_| true };
    let trial = trial::trial(&facts, TrialAnswer::default());
    let mut out = Vec::new();
    trial::print(&mut out, &trial, &Style::default()).unwrap();
    let want =
        "of 0 live flows on this node 0 would be denied; of 0 recently denied 0 would be allowed\n";
    assert_eq!(String::from_utf8(out).unwrap(), want);
    for (n, want) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(number(n), want);
    }
}

#[test]
fn the_shadow_report_joins_live_flows_and_the_sample() {
    let changes = vec![change(0, PolicyDirection::Ingress, true)];
    let fates: HashMap<_, _> = answer(changes, &[]).fates;
    let [a, b, ..] = flows();
    let live = [pair(a, 11), pair(b, 1)];
    let sample = super::policies::rows_of_sample();
    let now_ms = 1_795_294_095_123 + 90_000;
    let rows = |namespace, policy| {
        shadow::rows(&ShadowFacts {
            live: &live,
            fates: &fates,
            sample: &sample,
            owner: &owner,
            now_ms,
            namespace,
            policy,
        })
    };
    check(
        &names(),
        Format::Table,
        |_| rows(None, None),
        expect![[r#"
            SRC             DST          PORT  PROTO  NOW      WOULD-BE  BY                                       LIVE  COUNT  FIRST   LAST
            shop/cart       db/orders    5432  TCP    allowed  denied    db/from-cart default-deny                11    0      <none>  3s
            default/client  default/web  8080  TCP    allowed  denied    default/access,default/try default-deny  0     1      90s     90s
        "#]],
    );
    assert_eq!(rows(Some("shop"), None).len(), 1);
    assert_eq!(rows(Some("web"), None).len(), 0);
    assert_eq!(rows(None, Some("default/try")).len(), 1);
    assert_eq!(rows(None, Some("db/from-cart")).len(), 1);
}
