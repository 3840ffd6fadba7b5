//! Specifications in, policies and issues out, both as short texts.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::{ClusterNetworkPolicy, NetworkPolicy};
use crate::watched::{Watched, read};
use lb_core::cluster::{
    Action, Change, Event, Namespaces, Operator, Peer, PodSelector, Policy, PortMatch, PortSpec,
    Requirement, Rule, Selector, Tier,
};

fn text_of_selector(selector: &Selector) -> String {
    let requirement = |Requirement { key, operator }: &Requirement| match operator {
        Operator::In(values) => format!("{key}={}", values.join("|")),
        Operator::NotIn(values) => format!("{key}!={}", values.join("|")),
        Operator::Exists => key.to_string(),
        Operator::DoesNotExist => format!("!{key}"),
    };
    let all: Vec<_> = selector.0.iter().map(requirement).collect();
    if all.is_empty() { "*".to_owned() } else { all.join("&") }
}

fn text_of_pods(PodSelector { namespaces, pods }: &PodSelector) -> String {
    let namespaces = match namespaces {
        Namespaces::Own => "own".to_owned(),
        Namespaces::Selected(selector) => text_of_selector(selector),
    };
    format!("{namespaces}/{}", text_of_selector(pods))
}

fn text_of_peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods(pods) => text_of_pods(pods),
        Peer::Nodes(nodes) => format!("nodes {}", text_of_selector(nodes)),
        Peer::Block { prefix, excepts } => {
            excepts.iter().fold(prefix.to_string(), |text, except| format!("{text}-{except}"))
        }
    }
}

fn text_of_port(PortMatch { protocol, ports }: &PortMatch) -> String {
    let protocol = protocol.map_or("any".to_owned(), |protocol| protocol.to_string());
    match ports {
        PortSpec::All => protocol,
        PortSpec::Range(first, last) if first == last => format!("{protocol}:{first}"),
        PortSpec::Range(first, last) => format!("{protocol}:{first}-{last}"),
        PortSpec::Named(name) => format!("{protocol}:{name}"),
    }
}

fn text_of_rule(rule: &Rule) -> String {
    let action = match rule.action {
        Action::Accept => "accept",
        Action::Deny => "deny",
        Action::Pass => "pass",
    };
    let list = |texts: Option<Vec<String>>| match texts {
        None => "all".to_owned(),
        Some(texts) => format!("[{}]", texts.join(" ")),
    };
    let peers = rule.peers.as_ref().map(|peers| peers.iter().map(text_of_peer).collect());
    let ports = rule.ports.as_ref().map(|ports| ports.iter().map(text_of_port).collect());
    format!("{action}{} {} {}", rule.name, list(peers), list(ports))
}

/// `subject; in: rules; out: rules`, without a direction that is left alone.
fn text_of(policy: &Policy) -> String {
    let mut text = text_of_pods(&policy.subject);
    for (direction, rules) in [("in", &policy.ingress), ("out", &policy.egress)] {
        if let Some(rules) = rules {
            let rules: Vec<_> = rules.iter().map(text_of_rule).collect();
            text = format!("{text}; {direction}: {}", rules.join(", "));
        }
    }
    text
}

/// Policy and issues of an object, the issues without its name.
fn policy<K: Watched>(object: Value) -> (Policy, Vec<String>) {
    let object: K = serde_json::from_value(object).unwrap();
    let (event, issues) = read(&object, object.name());
    let policy = match event {
        Event::NetworkPolicy(Change::Applied(name, policy)) => {
            assert_eq!(name.to_string(), "ns/p");
            policy
        }
        Event::ClusterNetworkPolicy(Change::Applied(name, policy)) => {
            assert_eq!(name.to_string(), "p");
            policy
        }
        other => panic!("{other:?}"),
    };
    (policy, issues.iter().map(|issue| format!("{}: {}", issue.field, issue.message)).collect())
}

fn object(spec: &str) -> Value {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec})
}

/// Specification of a NetworkPolicy, the resulting record, and its issues.
type Case = (&'static str, &'static str, &'static [&'static str]);

fn check_network(cases: &[Case]) {
    for (spec, want, want_issues) in cases {
        let (policy, issues) = policy::<NetworkPolicy>(object(spec));
        assert_eq!(
            (text_of(&policy).as_str(), policy.tier),
            (*want, Tier::NetworkPolicy),
            "{spec}"
        );
        assert_eq!(issues, *want_issues, "{spec}");
    }
}

#[test]
fn s39_policy_types_and_their_default() {
    check_network(&[
        ("{podSelector: {}}", "own/*; in: ", &[]),
        ("{}", "own/*; in: ", &[]),
        ("", "own/*; in: ", &[]),
        ("{policyTypes: []}", "own/*; in: ", &[]),
        ("{ingress: [{}]}", "own/*; in: accept all all", &[]),
        ("{egress: []}", "own/*; in: ", &[]),
        ("{egress: [{}]}", "own/*; in: ; out: accept all all", &[]),
        ("{policyTypes: [Ingress], egress: [{}]}", "own/*; in: ", &[]),
        ("{policyTypes: [Egress]}", "own/*; out: ", &[]),
        ("{policyTypes: [Egress], ingress: [{}]}", "own/*; out: ", &[]),
        ("{policyTypes: [Ingress, Egress]}", "own/*; in: ; out: ", &[]),
        (
            "{policyTypes: [ingress]}",
            "own/*; in: ; out: ",
            &["spec.policyTypes[0]: `ingress` is not a policy type: both directions are isolated"],
        ),
        (
            "{policyTypes: Ingress}",
            "own/*; in: ; out: ",
            &["spec.policyTypes: is not a list: both directions are isolated"],
        ),
        (
            "{egress: {}}",
            "own/*; in: ; out: ",
            &["spec.egress: is not a list: no traffic is allowed"],
        ),
    ]);
}

#[test]
fn s39_absent_and_empty_lists_of_a_rule_are_all() {
    check_network(&[
        ("{ingress: [{from: []}]}", "own/*; in: accept all all", &[]),
        ("{ingress: [{from: null, ports: null}]}", "own/*; in: accept all all", &[]),
        ("{ingress: [{ports: []}]}", "own/*; in: accept all all", &[]),
        ("{ingress: [{ports: [{}]}]}", "own/*; in: accept all [6]", &[]),
        ("{egress: [{to: [{podSelector: {}}]}]}", "own/*; in: ; out: accept [own/*] all", &[]),
    ]);
}

#[test]
fn ports_of_a_network_policy() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("{port: 80}", "6:80", &[]),
        ("{protocol: UDP}", "17", &[]),
        ("{protocol: SCTP, port: 7}", "132:7", &[]),
        ("{port: 80, endPort: 90}", "6:80-90", &[]),
        ("{port: 80, endPort: 80}", "6:80", &[]),
        ("{port: 1, endPort: 65535, protocol: UDP}", "17:1-65535", &[]),
        ("{port: http}", "6:http", &[]),
        ("{port: 90, endPort: 80}", "", &["endPort: 80 is less than 90"]),
        ("{port: http, endPort: 80}", "", &["endPort: cannot be combined with a named port"]),
        ("{endPort: 80}", "", &["endPort: requires port"]),
        ("{port: 0}", "", &["port: 0 is not a port"]),
        ("{port: 65536}", "", &["port: 65536 is not a port"]),
        ("{port: '80'}", "", &["port: `80` is not a port name"]),
        ("{port: 80.5}", "", &["port: is not an integer"]),
        ("{protocol: ICMP}", "", &["protocol: `ICMP` is not a protocol"]),
        ("{protocol: tcp}", "", &["protocol: `tcp` is not a protocol"]),
        ("{port: 80, appProtocol: h2c}", "", &["appProtocol: is not a known field"]),
    ];
    for (port, want, want_issues) in cases {
        let spec = format!("{{ingress: [{{ports: [{{port: 1}}, {port}]}}]}}");
        let (policy, issues) = policy::<NetworkPolicy>(object(&spec));
        let want = format!("own/*; in: accept all [{}]", format!("6:1 {want}").trim());
        assert_eq!(text_of(&policy), want, "{port}");
        let at =
            |issue: &&str| format!("spec.ingress[0].ports[1].{issue}: the port matches nothing");
        assert_eq!(issues, want_issues.iter().map(at).collect::<Vec<_>>(), "{port}");
    }
}

#[test]
fn peers_of_a_network_policy() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("{podSelector: {}}", "own/*", &[]),
        ("{podSelector: {matchLabels: {a: b}}}", "own/a=b", &[]),
        ("{namespaceSelector: {}}", "*/*", &[]),
        ("{namespaceSelector: {matchLabels: {n: m}}}", "n=m/*", &[]),
        ("{namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}", "*/a=b", &[]),
        ("{namespaceSelector: {matchLabels: {n: m}}, podSelector: {}}", "n=m/*", &[]),
        ("{ipBlock: {cidr: 10.1.2.3/8}}", "10.0.0.0/8", &[]),
        ("{ipBlock: {cidr: 010.001.002.003/8}}", "10.0.0.0/8", &[]),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.1.0.0/16]}}",
            "10.0.0.0/8-10.1.0.0/16-10.2.0.0/16",
            &[],
        ),
        (
            "{ipBlock: {cidr: '2001:db8::/32', except: ['2001:db8:1::/48']}}",
            "2001:db8::/32-2001:db8:1::/48",
            &[],
        ),
        ("{}", "", &[": has no known field"]),
        ("{serviceAccountSelector: {}}", "", &[".serviceAccountSelector: is not a known field"]),
        (
            "{podSelector: {}, serviceAccountSelector: {}}",
            "",
            &[".serviceAccountSelector: is not a known field"],
        ),
        (
            "{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}",
            "",
            &[".ipBlock: cannot be combined with a selector"],
        ),
        ("{ipBlock: {}}", "", &[".ipBlock.cidr: is missing"]),
        (
            "{ipBlock: {cidr: 10.0.0.0}}",
            "",
            &[".ipBlock.cidr: `10.0.0.0` is not a CIDR like 10.0.0.0/8"],
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}",
            "",
            &[".ipBlock.except[0]: 11.0.0.0/16 is not within 10.0.0.0/8"],
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}",
            "",
            &[".ipBlock.except[0]: 10.0.0.0/8 is not within 10.0.0.0/8"],
        ),
        (
            "{ipBlock: {cidr: 0.0.0.0/0, except: ['::/1']}}",
            "",
            &[".ipBlock.except[0]: ::/1 is not within 0.0.0.0/0"],
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0]}}",
            "",
            &[".ipBlock.except[0]: `10.1.0.0` is not a CIDR like 10.0.0.0/8"],
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}",
            "",
            &[".podSelector.matchExpressions[0].operator: `Equals` is not an operator"],
        ),
        ("{podSelector: []}", "", &[".podSelector: is not an object"]),
        ("pods", "", &[": is not an object"]),
    ];
    for (peer, want, want_issues) in cases {
        let spec =
            format!("{{egress: [{{to: [{{podSelector: {{}}}}, {peer}]}}], policyTypes: [Egress]}}");
        let (policy, issues) = policy::<NetworkPolicy>(object(&spec));
        let want = format!("own/*; out: accept [{}] all", format!("own/* {want}").trim());
        assert_eq!(text_of(&policy), want, "{peer}");
        let at = |issue: &&str| format!("spec.egress[0].to[1]{issue}: the peer matches nothing");
        assert_eq!(issues, want_issues.iter().map(at).collect::<Vec<_>>(), "{peer}");
    }
}

#[test]
fn selectors_by_every_operator_and_what_is_none() {
    let closed = "own/*; in: accept [] []";
    let readable: &[(&str, &str)] = &[
        ("{matchLabels: {b: '2', a: '1'}}", "a=1&b=2"),
        ("{matchExpressions: [{key: a, operator: In, values: [z, x, z]}]}", "a=x|z"),
        ("{matchExpressions: [{key: a, operator: NotIn, values: [x]}]}", "a!=x"),
        ("{matchExpressions: [{key: a, operator: Exists}]}", "a"),
        ("{matchExpressions: [{key: a, operator: Exists, values: []}]}", "a"),
        ("{matchExpressions: [{key: a, operator: DoesNotExist}]}", "!a"),
        ("{matchLabels: {a: x}, matchExpressions: [{key: a, operator: In, values: [x]}]}", "a=x"),
        ("{matchLabels: null, matchExpressions: []}", "*"),
    ];
    for (selector, want) in readable {
        let (policy, issues) =
            policy::<NetworkPolicy>(object(&format!("{{podSelector: {selector}}}")));
        assert_eq!((text_of(&policy), issues), (format!("own/{want}; in: "), vec![]), "{selector}");
    }
    for (selector, want) in [
        ("{matchExpressions: [{key: a, operator: In}]}", "operator: requires values"),
        (
            "{matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            "operator: requires values",
        ),
        (
            "{matchExpressions: [{key: a, operator: Exists, values: [x]}]}",
            "operator: does not take values",
        ),
        (
            "{matchExpressions: [{key: a, operator: in, values: [x]}]}",
            "operator: `in` is not an operator",
        ),
        ("{matchExpressions: [{key: a, values: [x]}]}", "operator: is missing"),
        ("{matchExpressions: [{operator: Exists}]}", "key: is missing"),
        ("{matchExpressions: [{key: '', operator: Exists}]}", "key: is empty"),
        ("{matchExpressions: [{key: a, operator: In, values: [1]}]}", "values[0]: is not a string"),
        (
            "{matchExpressions: [{key: a, operator: Exists, not: true}]}",
            "not: is not a known field",
        ),
    ] {
        let spec = format!("{{podSelector: {selector}, ingress: [{{}}]}}");
        let (policy, issues) = policy::<NetworkPolicy>(object(&spec));
        let want = format!(
            "spec.podSelector.matchExpressions[0].{want}: all Pods of the namespace are isolated, and no traffic is allowed"
        );
        assert_eq!((text_of(&policy), issues), (closed.to_owned(), vec![want]));
    }
}

#[test]
fn what_is_unreadable_costs_no_more_than_it_must() {
    check_network(&[
        (
            "{ingress: [{from: x}, {to: []}, 7, {ports: [{port: 80}]}]}",
            "own/*; in: accept [] [], accept [] [], accept [] [], accept all [6:80]",
            &[
                "spec.ingress[0].from: is not a list: the rule allows nothing",
                "spec.ingress[1].to: is not a known field: the rule allows nothing",
                "spec.ingress[2]: is not an object: the rule allows nothing",
            ],
        ),
        (
            "{ingress: [{from: [{}]}]}",
            "own/*; in: accept [] all",
            &["spec.ingress[0].from[0]: has no known field: the peer matches nothing"],
        ),
        ("{ingress: 7}", "own/*; in: ", &["spec.ingress: is not a list: no traffic is allowed"]),
        (
            "{podSelector: x, egress: [{}]}",
            "own/*; in: ; out: accept [] []",
            &[
                "spec.podSelector: is not an object: all Pods of the namespace are isolated, and no traffic is allowed",
            ],
        ),
        (
            "everything",
            "own/*; in: ; out: ",
            &[
                "spec: is not an object: all Pods of the namespace are isolated, and no traffic is allowed",
            ],
        ),
        ("{podSelectr: {}}", "own/*; in: ", &["spec.podSelectr: is not a known field: ignored"]),
    ]);
}

#[test]
fn shadow_mode_and_age() {
    let policy = |mode: Value| {
        let mut object = object("{}");
        object["metadata"]["annotations"] = json!({"lb-agent.io/mode": mode});
        object["metadata"]["generation"] = json!(3);
        object["metadata"]["creationTimestamp"] = json!("2024-01-01T00:00:00Z");
        let (policy, issues) = policy::<NetworkPolicy>(object);
        assert_eq!((policy.generation, policy.created), (3, 1_704_067_200));
        (policy.shadow, issues)
    };
    assert_eq!(policy(json!("shadow")), (true, vec![]));
    assert_eq!(policy(json!("enforce")), (false, vec![]));
    let want = "metadata.annotations[lb-agent.io/mode]: `dry-run` is not enforce or shadow: the policy is enforced";
    assert_eq!(policy(json!("dry-run")), (false, vec![want.to_owned()]));
    let (policy, issues) = self::policy::<ClusterNetworkPolicy>(object(
        "{tier: Admin, priority: 1, subject: {namespaces: {}}}",
    ));
    assert_eq!((policy.shadow, policy.generation, policy.created, issues), (false, 0, 0, vec![]));
}

/// A ClusterNetworkPolicy with these rules.
fn cluster(rules: &str) -> (String, Vec<String>) {
    let spec = format!("{{tier: Admin, priority: 7, subject: {{namespaces: {{}}}}, {rules}}}");
    let (policy, issues) = policy::<ClusterNetworkPolicy>(object(&spec));
    assert_eq!((policy.tier, policy.priority), (Tier::Admin, 7));
    (text_of(&policy), issues)
}

#[test]
fn cluster_network_policies_in_full() {
    for (rules, want) in [
        ("ingress: []", "*/*"),
        (
            "ingress: [{name: -a, action: Accept, from: [{namespaces: {}}]}, {action: Pass, from: [{pods: {podSelector: {}}}]}]",
            "*/*; in: accept-a [*/*] all, pass [*/*] all",
        ),
        (
            "ingress: [{action: Deny, from: [{pods: {namespaceSelector: {matchLabels: {n: m}}, podSelector: {matchLabels: {a: b}}}}]}]",
            "*/*; in: deny [n=m/a=b] all",
        ),
        (
            "egress: [{action: Deny, to: [{nodes: {}}, {networks: [10.0.0.0/8, 'fd00::/8']}]}]",
            "*/*; out: deny [nodes * 10.0.0.0/8 fd00::/8] all",
        ),
        (
            "egress: [{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 53, end: 60}}}}, {sctp: {destinationPort: {number: 9}}}, {destinationNamedPort: web}]}]",
            "*/*; out: accept [*/*] [6:80 17:53-60 132:9 any:web]",
        ),
    ] {
        assert_eq!(cluster(rules), (want.to_owned(), vec![]), "{rules}");
    }
    for (subject, want) in [
        ("{namespaces: {matchLabels: {n: m}}}", "n=m/*"),
        ("{pods: {namespaceSelector: {matchLabels: {n: m}}, podSelector: {}}}", "n=m/*"),
        ("{pods: {podSelector: {matchLabels: {a: b}}}}", "*/a=b"),
    ] {
        let spec = format!("{{tier: Baseline, priority: 1000, subject: {subject}}}");
        let (policy, issues) = policy::<ClusterNetworkPolicy>(object(&spec));
        assert_eq!((text_of(&policy).as_str(), issues), (want, vec![]));
        assert_eq!((policy.tier, policy.priority), (Tier::Baseline, 1000));
    }
}

#[test]
fn s50_what_is_unreadable_in_a_rule_fails_closed_by_its_action() {
    let cases: &[(&str, &str)] = &[
        // Peers.
        ("from: [{}]", "from[0]: has no known field"),
        ("from: [{namespaces: {}}, {services: {}}]", "from[1].services: is not a known field"),
        (
            "from: [{namespaces: {}, pods: {podSelector: {}}}]",
            "from[0]: has both namespaces and pods",
        ),
        ("from: [{nodes: {}}]", "from[0].nodes: is not a known field"),
        ("from: []", "from: is empty"),
        ("protocols: []", "from: is missing"),
        ("from: [{pods: {namespaceSelector: {}}}]", "from[0].pods.podSelector: is missing"),
        (
            "from: [{namespaces: {matchLabels: {a: 1}}}]",
            "from[0].namespaces.matchLabels.a: is not a string",
        ),
        // Protocols.
        ("from: [{namespaces: {}}], protocols: []", "protocols: is empty"),
        ("from: [{namespaces: {}}], protocols: [{}]", "protocols[0]: has no known field"),
        (
            "from: [{namespaces: {}}], protocols: [{icmp: {}}]",
            "protocols[0].icmp: is not a known field",
        ),
        (
            "from: [{namespaces: {}}], protocols: [{tcp: {}}]",
            "protocols[0].tcp.destinationPort: is missing",
        ),
        (
            "from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]",
            "protocols[0].tcp.destinationPort.number: 0 is not a port",
        ),
        (
            "from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 8}}}}]",
            "protocols[0].tcp.destinationPort.range: 8 is less than 9",
        ),
        (
            "from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]",
            "protocols[0].tcp.destinationPort: has both number and range",
        ),
        ("from: [{namespaces: {}}], ports: []", "ports: is not a known field"),
    ];
    for (content, want) in cases {
        for (action, rule, reading) in [
            ("Accept", "accept [] []", "accepts nothing"),
            ("Deny", "deny all all", "denies everything"),
            ("Pass", "deny all all", "denies everything"),
        ] {
            let (text, issues) = cluster(&format!(
                "ingress: [{{action: {action}, {content}}}, {{action: Pass, from: [{{namespaces: {{}}}}]}}]"
            ));
            assert_eq!(text, format!("*/*; in: {rule}, pass [*/*] all"), "{content}");
            assert_eq!(issues, [format!("spec.ingress[0].{want}: the rule {reading}")]);
        }
    }
    for (content, want) in [
        ("to: [{domainNames: [a.example]}]", "to[0]: domain names are not supported"),
        (
            "to: [{networks: [10.0.0.0/8, x]}]",
            "to[0].networks[1]: `x` is not a CIDR like 10.0.0.0/8",
        ),
        ("to: [{networks: []}]", "to[0].networks: is empty"),
        (
            "to: [{nodes: {}}], protocols: [{destinationNamedPort: a}]",
            "protocols[0]: nodes and networks have no named ports",
        ),
    ] {
        let (text, issues) = cluster(&format!("egress: [{{action: Accept, {content}}}]"));
        assert_eq!(text, "*/*; out: accept [] []", "{content}");
        assert_eq!(issues, [format!("spec.egress[0].{want}: the rule accepts nothing")]);
    }
    for (rule, want) in [
        ("{action: Allow, from: [{namespaces: {}}]}", ".action: `Allow` is not an action"),
        ("{from: [{namespaces: {}}]}", ".action: is missing"),
        ("7", ".action: is missing"),
    ] {
        let (text, issues) = cluster(&format!("ingress: [{rule}]"));
        assert_eq!(text, "*/*; in: deny all all", "{rule}");
        assert_eq!(issues, [format!("spec.ingress[0]{want}: the rule denies everything")]);
    }
    let (text, issues) = cluster("ingress: {}");
    assert_eq!(text, "*/*; in: deny all all");
    assert_eq!(issues, ["spec.ingress: is not a list: all traffic is denied"]);
}

#[test]
fn rules_of_one_name_are_distinguished_by_their_index() {
    let rule = "{name: -a, action: Deny, from: [{namespaces: {}}]}";
    let (text, issues) = cluster(&format!("ingress: [{rule}, {rule}]"));
    assert_eq!(text, "*/*; in: deny-a [*/*] all, deny-a [*/*] all");
    assert_eq!(issues, ["spec.ingress[1].name: `-a` is also the name of ingress[0]"]);
}

#[test]
fn where_a_cluster_network_policy_stands_must_be_known() {
    let closed = "it applies to all Pods, accepts nothing, and denies what it would pass";
    let subject = "subject: {pods: {podSelector: {matchLabels: {a: b}}}}";
    let cases: [(String, (Tier, u16), &str, String); 9] = [
        (
            format!("tier: Admin, priority: 1001, {subject}"),
            (Tier::Admin, 1000),
            "",
            "spec.priority: 1001 is not between 0 and 1000: 1000 is used".into(),
        ),
        (
            format!("tier: Baseline, priority: -1, {subject}"),
            (Tier::Baseline, 0),
            "",
            "spec.priority: -1 is not between 0 and 1000: 0 is used".into(),
        ),
        (
            format!("tier: Admin, priority: high, {subject}"),
            (Tier::Admin, 0),
            "*/a=b",
            format!("spec.priority: is not an integer: {closed}"),
        ),
        (
            format!("tier: Admin, {subject}"),
            (Tier::Admin, 0),
            "*/a=b",
            format!("spec.priority: is missing: {closed}"),
        ),
        (
            format!("tier: Platform, priority: 3, {subject}"),
            (Tier::Admin, 0),
            "*/a=b",
            format!("spec.tier: `Platform` is not a tier: {closed}"),
        ),
        (
            "tier: Admin, priority: 3, subject: {}".into(),
            (Tier::Admin, 3),
            "*/*",
            format!("spec.subject: has no known field: {closed}"),
        ),
        (
            "tier: Admin, priority: 3, subject: {nodes: {}}".into(),
            (Tier::Admin, 3),
            "*/*",
            format!("spec.subject.nodes: is not a known field: {closed}"),
        ),
        (
            "tier: Admin, priority: 3".into(),
            (Tier::Admin, 3),
            "*/*",
            format!("spec.subject: is missing: {closed}"),
        ),
        (
            format!("tier: Admin, priority: 3, more: 1, {subject}"),
            (Tier::Admin, 3),
            "",
            "spec.more: is not a known field: ignored".into(),
        ),
    ];
    let rules = ["Accept", "Deny", "Pass"]
        .map(|action| format!("{{action: {action}, from: [{{namespaces: {{}}}}]}}"));
    for (head, place, closed_for, want) in cases {
        let spec = format!("{{{head}, ingress: [{}]}}", rules.join(", "));
        let (policy, issues) = policy::<ClusterNetworkPolicy>(object(&spec));
        let text = if closed_for.is_empty() {
            "*/a=b; in: accept [*/*] all, deny [*/*] all, pass [*/*] all".to_owned()
        } else {
            format!("{closed_for}; in: accept [] [], deny [*/*] all, deny [*/*] all")
        };
        assert_eq!((policy.tier, policy.priority), place, "{head}");
        assert_eq!((text_of(&policy), issues), (text, vec![want]), "{head}");
    }
    let (policy, issues) = policy::<ClusterNetworkPolicy>(object("7"));
    assert_eq!((policy.ingress, policy.egress), (None, None));
    assert_eq!(issues.len(), 4);
}
