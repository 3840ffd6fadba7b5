//! What `lbctl flows`, `drops`, `pods` and `policy` say of policies.

use std::borrow::Cow;

use expect_test::expect;
use lb_common::endpoint::PodEntry;
use lb_common::event::outcome;
use lb_common::flow::proto;
use lb_common::policy::Judgement;
use lb_common::verdict::DropReason;

use super::sample::{HOUR, NOW, addr, names, snapshot};
use super::{check, check_on};
use crate::columns::{Format, RowStream, Style};
use crate::flows::{self, FlowFilter, FlowRow, FlowVerdict};
use crate::selection::Selection;
use crate::view::View;
use crate::{drops, pods, policies};
use lb_core::admin::policy::{DeniedFlows, PolicyView as Policy, RuleView, Selected};
use lb_core::admin::{Covers, FlowDecision, FlowOwner, FlowRecord, Remark};
use lb_core::cluster::{
    Action, Name, Namespaces, Operator, Peer, PodSelector, PortMatch, PortSpec, Requirement,
    Selector, Tier,
};
use lb_core::counts::Counts;
use lb_core::model::policy::PolicyDirection;
use lb_core::names::{DropExample, GroupName, IssueLine, Names, PolicyName, PolicyRef, RuleName};
use lb_core::uid::Uid;

/// default/access and a policy in shadow mode about web-1, a policy of the cluster before them.
pub(super) fn named() -> Names<'static> {
    let text = Cow::Borrowed;
    let reference = |namespace, name| PolicyRef {
        namespace: text(namespace),
        name: text(name),
        tier: text(if namespace.is_empty() { "Admin" } else { "NetworkPolicy" }),
    };
    let rule = |number, policy, index| RuleName { number, policy, ingress: true, index };
    let policy = |namespace, name, tier, priority, shadow| PolicyName {
        namespace: text(namespace),
        name: text(name),
        tier: text(tier),
        priority,
        generation: 3,
        shadow,
        subjects: 1,
        rules: 2,
        created: NOW - 2 * HOUR,
        hits: if name == "access" { 12 } else { 0 },
        last_hit: if name == "access" { NOW - 75 } else { 0 },
    };
    let mut names = names();
    names.policies = vec![
        policy("", "fence", "Admin", 10, false),
        policy("default", "access", "NetworkPolicy", 0, false),
        policy("default", "try", "NetworkPolicy", 0, true),
        policy("shop", "broken", "NetworkPolicy", 0, false),
    ];
    names.groups = vec![
        GroupName {
            id: 7,
            policies: vec![reference("", "fence"), reference("default", "access")],
            rules: vec![rule(0, 0, 4), rule(64, 1, 0), rule(65, 1, 1)],
            isolating: vec![1],
            ..GroupName::default()
        },
        GroupName {
            id: 8,
            policies: vec![
                reference("", "fence"),
                reference("default", "access"),
                reference("default", "try"),
            ],
            rules: vec![rule(0, 0, 4)],
            isolating: vec![1, 2],
            ..GroupName::default()
        },
        GroupName { id: 9, policies: vec![reference("", "fence")], ..GroupName::default() },
    ];
    names.issues.push(IssueLine {
        object: text("NetworkPolicy shop/broken"),
        field: text("spec.ingress[0].from[0].ipBlock.cidr"),
        message: text("\"10/8\" is not a range"),
        ..IssueLine::default()
    });
    names.drops.push(DropExample {
        reason: DropReason::PolicyIsolated as u8,
        ingress: true,
        protocol: proto::TCP,
        src: "10.1.0.2:40000".parse().unwrap(),
        dst: "10.1.0.3:8080".parse().unwrap(),
        ifindex: 12,
        service_id: 0,
        at: NOW - 3,
        group: 7,
        judgement: Judgement::ISOLATED.number(),
    });
    names
}

fn flow(src: &str, dst: &str, reason: Option<DropReason>, judged: (u32, u32, u8)) -> FlowRecord {
    let (group, judgement, outcome) = judged;
    let decided = |policies: &[&str], rule| {
        let policies = policies.iter().map(|name| Name::parse(name)).collect();
        Some(FlowDecision { policies, rule })
    };
    let owner = |ip: &str| match ip.rsplit_once(':').map(|(ip, _)| ip) {
        Some("10.1.0.2") => FlowOwner::Pod(Name::parse("default/client"), Uid(1)),
        Some("10.1.0.3") => FlowOwner::Pod(Name::parse("default/web-1"), Uid(0)),
        Some("10.0.0.2") => FlowOwner::Node("n2".into()),
        _ => FlowOwner::Unknown,
    };
    FlowRecord {
        src_owner: owner(src),
        dst_owner: owner(dst),
        via: if reason == Some(DropReason::NoEndpoints) { "kube-system/dns:53" } else { "" }.into(),
        decision: match (group, Judgement::from_number(judgement).rule()) {
            (7, Some(0)) => decided(&["fence"], Some((PolicyDirection::Ingress, 4, 0))),
            (7, Some(_)) => decided(&["default/access"], Some((PolicyDirection::Ingress, 1, 0))),
            (7, None) => decided(&["default/access"], None),
            (8, _) => decided(&["default/access", "default/try"], None),
            _ => None,
        },
        at_ms: 1_795_294_095_123,
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: proto::TCP,
        reason: reason.map_or(0, |reason| reason as u8),
        ingress: true,
        outcome,
        ifindex: 12,
        suppressed: 4,
        group,
        judgement,
        ident: 5,
    }
}

/// Denied flows, one that policies in shadow mode would deny, and an allowed one.
pub(super) fn rows_of_sample() -> Vec<FlowRecord> {
    let isolated = Judgement::ISOLATED.number();
    let (client, web, far) = ("10.1.0.2:40000", "10.1.0.3:8080", "192.0.2.7:555");
    vec![
        flow(client, web, Some(DropReason::PolicyIsolated), (7, isolated, outcome::DROPPED)),
        flow(
            far,
            web,
            Some(DropReason::PolicyDenied),
            (7, 1 | 1 << 16 | 1 << 31, outcome::DROPPED),
        ),
        flow(client, "10.96.0.53:53", Some(DropReason::NoEndpoints), (0, 0, outcome::DROPPED)),
        flow("10.0.0.2:9", web, None, (7, 66 | 2 << 16, outcome::ALLOWED)),
        flow(client, web, None, (8, isolated, outcome::WOULD_DENY)),
    ]
}

fn rows() -> Vec<FlowRow> {
    rows_of_sample().iter().map(flows::row).collect()
}

#[test]
fn flows_say_who_did_it() {
    let text = |output| {
        let mut out = Vec::new();
        let style = Style { output, ..Style::default() };
        let mut stream = RowStream::new(&style).unwrap();
        let all = rows();
        stream.print(&mut out, &all[..3]).unwrap();
        stream.print(&mut out, &all[3..]).unwrap();
        String::from_utf8(out).unwrap()
    };
    expect![[r#"
        TIME          VERDICT  SRC                   DST                 VIA                 PROTO  REASON           BY
        20:48:15.123  dropped  default/client:40000  default/web-1:8080  <none>              TCP    POLICY_ISOLATED  default/access default-deny
        20:48:15.123  dropped  192.0.2.7:555         default/web-1:8080  <none>              TCP    POLICY_DENIED    fence ingress[4]
        20:48:15.123  dropped  default/client:40000  10.96.0.53:53       kube-system/dns:53  TCP    NO_ENDPOINTS     <none>
        20:48:15.123  allowed     node/n2:9             default/web-1:8080  <none>              TCP    <none>           default/access ingress[1]
        20:48:15.123  would-deny  default/client:40000  default/web-1:8080  <none>              TCP    <none>           default/access,default/try default-deny
    "#]].assert_eq(&text(Format::Table));
    expect![[r#"{"time":"2026-11-21T20:48:15.123Z","verdict":"dropped","direction":"ingress","src":{"address":"10.1.0.2:40000","name":"default/client","uid":"00000000-0000-0000-0000-000000000001"},"dst":{"address":"10.1.0.3:8080","name":"default/web-1","uid":""},"via":"","protocol":"TCP","reason":"POLICY_ISOLATED","by":{"policies":["default/access"],"rule":""},"ident":5,"ifindex":12,"suppressed":4}"#]].assert_eq(text(Format::Json).lines().next().unwrap());
    assert!(RowStream::new(&Style { output: Format::Yaml, ..Style::default() }).is_err());
    let covers =
        Covers { since_ms: 1_000, now_ms: 193_500, flows: 40, forgotten: 0, suppressed: 214 };
    expect!["3 of 40 records of the last 3m12s; 214 packets suppressed by sampling, 2 lost in the ring buffer since the maps were created"].assert_eq(&flows::header(&covers, Some(2), Some(3)));
    let more = Covers { forgotten: 7, ..covers };
    expect!["40 records of the last 3m12s, 7 older ones evicted; 214 packets suppressed by sampling, lost count unavailable"].assert_eq(&flows::header(&more, None, None));
}

#[test]
fn flows_of_unknown_groups_have_numbers() {
    let by = |judgement| {
        let record = flow("10.1.0.2:1", "10.1.0.3:2", None, (6, judgement, outcome::DROPPED));
        flows::row(&record).by.to_string()
    };
    assert_eq!(by(Judgement::ISOLATED.number()), "#6 default-deny");
    assert_eq!(by(4 | 2 << 16), "#6 rule[3]");
    assert_eq!(by(Judgement::ALLOWED.number()), "");
}

#[test]
fn flows_are_filtered() {
    let rows = rows();
    let of = |set: &dyn Fn(&mut FlowFilter)| {
        let mut wanted = FlowFilter::default();
        set(&mut wanted);
        let wanted = wanted.complete().unwrap();
        (0..).zip(&rows).filter(|(_, row)| wanted.takes(row)).map(|(i, _)| i).collect::<Vec<i32>>()
    };
    assert_eq!(of(&|_| ()), [0, 1, 2, 3, 4]);
    assert_eq!(of(&|w| w.pod = Some("client".to_owned())), [0, 2, 4]);
    assert_eq!(of(&|w| w.from = Some("192.0.2.7".to_owned())), [1]);
    assert_eq!(of(&|w| w.from = Some("node/n2".to_owned())), [3]);
    assert_eq!(of(&|w| w.to = Some("default/web-1".to_owned())), [0, 1, 3, 4]);
    assert_eq!(of(&|w| w.namespace = Some("shop".to_owned())), Vec::<i32>::new());
    assert_eq!(of(&|w| w.namespace = Some("default".to_owned())), [0, 1, 2, 3, 4]);
    assert_eq!(of(&|w| w.port = Some(53)), [2]);
    assert_eq!(of(&|w| w.verdict = vec![FlowVerdict::Dropped]), [0, 1, 2]);
    assert_eq!(of(&|w| w.verdict = vec![FlowVerdict::Allowed]), [3, 4]);
    assert_eq!(of(&|w| w.verdict = vec![FlowVerdict::WouldDeny, FlowVerdict::WouldAllow]), [4]);
    assert_eq!(of(&|w| w.reason = vec!["policy-denied".to_owned()]), [1]);
    assert_eq!(of(&|w| w.policy = Some("default/access".to_owned())), [0, 3, 4]);
    assert_eq!(of(&|w| w.policy = Some("fence".to_owned())), [1]);
    let unknown = FlowFilter { reason: vec!["bad".to_owned()], ..FlowFilter::default() };
    assert!(unknown.complete().is_err());
}

#[test]
fn policies_are_listed() {
    let all = |view: &View<'_>| policies::rows(view, None);
    check(
        &named(),
        Format::Wide,
        all,
        expect![[r#"
        NAMESPACE  NAME    TIER           PRIO  SUBJECTS  RULES  HITS  LAST-HIT  STATE     GENERATION  AGE   ISSUE
        <none>     fence   Admin          10    1         2      0     <none>    enforced  3           120m
        default    access  NetworkPolicy  0     1         2      12    75s       enforced  3           120m
        default    try     NetworkPolicy  0     1         2      0     <none>    shadow    3           120m
        shop       broken  NetworkPolicy  0     1         2      0     <none>    error     3           120m  spec.ingress[0].from[0].ipBlock.cidr: "10/8" is not a range
    "#]],
    );
    let shop = |view: &View<'_>| policies::rows(view, Some("shop"));
    check(
        &named(),
        Format::Name,
        shop,
        expect![[r#"
        shop/broken
    "#]],
    );
}

#[test]
fn pods_and_drops_name_policies() {
    let mut snapshot = snapshot();
    let grouped = |ip: &str, ingress, egress, shadow_ingress| PodEntry {
        ip4: addr(ip),
        ingress,
        egress,
        shadow_ingress,
        ..PodEntry::ZERO
    };
    snapshot.pods =
        [(11, grouped("10.1.0.2", 9, 0, 0)), (12, grouped("10.1.0.3", 7, 33, 8))].into();
    let all = |view: &View<'_>| pods::rows(view, &Selection::default());
    check_on(
        &snapshot,
        &named(),
        Format::Table,
        all,
        expect![[r#"
            NAMESPACE  NAME    IP        IFACE   INGRESS                EGRESS     AGE   ISSUE
            default    client  10.1.0.2  veth11  cluster(1)             open       4d3h
            default    web-1   10.1.0.3  veth12  isolated(2)+shadow(1)  group(33)  4d3h
        "#]],
    );
    let counts = Counts {
        drops: vec![(DropReason::PolicyIsolated, true, 12)],
        counters: Vec::new(),
        verdicts: Vec::new(),
    };
    let dropped = |view: &View<'_>| drops::rows(view, &counts, false);
    check(
        &named(),
        Format::Table,
        dropped,
        expect![[r#"
            REASON           DIRECTION  COUNT  LAST  EXAMPLE                                         BY                           WHAT-TO-DO
            POLICY_ISOLATED  ingress    12     3s    TCP default/client:40000 -> default/web-1:8080  default/access default-deny  run `lbctl explain SRC DST` (`kubectl lb explain`) with the ends of the example: it says which NetworkPolicy isolates the Pod, and why its rules do not match
        "#]],
    );
}

/// default/access, with the Pods that its rules select.
fn access() -> Policy {
    let selected = |examples: &[&str]| Selected {
        count: u32::try_from(examples.len()).unwrap(),
        examples: examples.iter().copied().map(Name::parse).collect(),
    };
    let of_app = |value: &str| {
        let operator = Operator::In([value.into()].into());
        let requirement = Requirement { key: "app".into(), operator };
        PodSelector { namespaces: Namespaces::Own, pods: Selector([requirement].into()) }
    };
    let rule = |peers, ports: Option<Vec<PortMatch>>| RuleView {
        action: Action::Accept,
        name: "".into(),
        hits: if ports.is_some() { 3 } else { 0 },
        peers,
        ports,
        counted_in: None,
    };
    let block = Peer::Block { prefix: "10.0.0.0/8".parse().unwrap(), excepts: [].into() };
    let peers = vec![
        (Peer::Pods(of_app("api")), selected(&[])),
        (block, selected(&["default/client", "default/web-1"])),
    ];
    let ports = [PortSpec::Range(8080, 8080), PortSpec::Named("web".into())];
    let ports = ports.map(|ports| PortMatch { protocol: Some(proto::TCP), ports });
    Policy {
        name: Name::parse("default/access"),
        tier: Tier::NetworkPolicy,
        priority: 0,
        shadow: false,
        generation: 3,
        subject: (of_app("web"), selected(&["default/web-1"])),
        ingress: Some(vec![rule(Some(peers), Some(ports.to_vec())), rule(None, None)]),
        egress: None,
        issues: vec![Remark {
            object: "NetworkPolicy default/access".to_owned(),
            field: "spec.ingress[0].ports[2]".to_owned(),
            message: "is not a port".to_owned(),
        }],
        default_denied: DeniedFlows { ingress: 9, egress: 0 },
    }
}

#[test]
fn a_policy_is_shown_as_it_is_written() {
    let policy = access();
    let mut out = Vec::new();
    policies::print(&mut out, &policy).unwrap();
    expect![[r#"
        NetworkPolicy default/access
          tier        NetworkPolicy, priority 0
          mode        enforced
          generation  3
          subject     Pods with app=web of namespace default: 1 Pod (default/web-1)
          issue       spec.ingress[0].ports[2]: is not a port
          ingress     2 rules; 9 flows denied by isolation
          egress      not covered by this policy
        ingress[0] accept: 8080/TCP, web/TCP; 3 hits
          ingress[0].from[0]  Pods with app=api of namespace default: 0 Pods
          ingress[0].from[1]  10.0.0.0/8: 2 Pods (default/client, default/web-1)
        ingress[1] accept: all protocols and ports; 0 hits
          all peers
    "#]]
    .assert_eq(std::str::from_utf8(&out).unwrap());
    let empty = Policy { ingress: Some(Vec::new()), shadow: true, issues: Vec::new(), ..policy };
    let mut out = Vec::new();
    policies::print(&mut out, &empty).unwrap();
    expect![[r#"
        NetworkPolicy default/access
          tier        NetworkPolicy, priority 0
          mode        shadow: evaluated and counted, but not enforced
          generation  3
          subject     Pods with app=web of namespace default: 1 Pod (default/web-1)
          ingress     isolated, no traffic allowed; 9 flows denied by isolation
          egress      not covered by this policy
    "#]]
    .assert_eq(std::str::from_utf8(&out).unwrap());
}

#[test]
fn nodes_are_called_nodes() {
    let all = Peer::Nodes(Selector::default());
    let one = Selected { count: 1, examples: vec![Name::parse("n1")] };
    let mut policy = Policy { tier: Tier::Admin, name: Name::parse("fence"), ..access() };
    let rule = policy.ingress.as_mut().unwrap().last_mut().unwrap();
    rule.peers = Some(vec![(all.clone(), one), (all, Selected::default())]);
    rule.counted_in = Some(0);
    let mut out = Vec::new();
    policies::print(&mut out, &policy).unwrap();
    let text = String::from_utf8(out).unwrap();
    let last: Vec<&str> = text.lines().rev().take(3).collect();
    assert_eq!(
        last,
        [
            "  ingress[1].from[1]  all nodes: 0 nodes",
            "  ingress[1].from[0]  all nodes: 1 node (n1)",
            "ingress[1] accept: all protocols and ports; hits counted in ingress[0]",
        ]
    );
}

#[test]
fn the_document_of_a_policy_has_stable_keys() {
    let mut policy = access();
    policy.ingress.as_mut().unwrap().last_mut().unwrap().counted_in = Some(0);
    let document = policies::document(&policy);
    expect![[r#"
        {
          "name": "default/access",
          "kind": "NetworkPolicy",
          "tier": "NetworkPolicy",
          "priority": 0,
          "shadow": false,
          "generation": 3,
          "subject": {
            "wants": "Pods with app=web of namespace default",
            "count": 1,
            "examples": [
              "default/web-1"
            ]
          },
          "ingress": [
            {
              "path": "ingress[0]",
              "action": "Accept",
              "peers": [
                {
                  "path": "ingress[0].from[0]",
                  "wants": "Pods with app=api of namespace default",
                  "count": 0,
                  "examples": []
                },
                {
                  "path": "ingress[0].from[1]",
                  "wants": "10.0.0.0/8",
                  "count": 2,
                  "examples": [
                    "default/client",
                    "default/web-1"
                  ]
                }
              ],
              "ports": [
                "8080/TCP",
                "web/TCP"
              ],
              "hits": 3
            },
            {
              "path": "ingress[1]",
              "action": "Accept",
              "peers": null,
              "ports": null,
              "hits": 0,
              "countedIn": "ingress[0]"
            }
          ],
          "egress": null,
          "defaultDenied": {
            "ingress": 9,
            "egress": 0
          },
          "issues": [
            "spec.ingress[0].ports[2]: is not a port"
          ]
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&document).unwrap());
}
