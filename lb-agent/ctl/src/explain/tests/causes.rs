//! Causes as data: what the hop that decides has found. The wording has tests of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::config::Cidr;
use lb_common::policy::GroupFlags;

use super::world::{World, pod, policy, service};
use super::{TO_WEB, base};
use crate::attribution::{DecidedBy, GroupPolicies, PolicyId, PolicyNames, RuleAt, RuleId};
use crate::explain::code::Code;
use crate::explain::trace::{
    Allowed, Cause, Closest, Denial, Hop, Lacks, Listener, NoEndpoints, PeerLack, PolicyHop,
    PolicyVerdict, PortLack, Shadow, Tally, Trace, TraceOutcome, Unseen, Unserved, Who, Why,
};
use crate::explain::{Listening, Stale, args, offline};
use crate::view::View;
use lb_core::admin::context::{FlowContext, Lacking, Miss};
use lb_core::admin::query;
use lb_core::cluster::{
    Name, Namespaces, Operator, Peer, PodSelector, PortMatch, PortSpec, Prefix, Requirement,
    Selector,
};
use lb_core::model::policy::PolicyDirection;
use lb_core::names::IssueLine;

fn world(more: &[String]) -> World {
    World::new(&format!("{}{}", base(), more.concat()))
}

fn base_world() -> World {
    world(&[])
}

/// The denial of the only hop that stops the flow.
fn denial(trace: &Trace) -> (PolicyDirection, &Denial) {
    let denials: Vec<_> = trace.hops.iter().filter_map(denied).collect();
    let [one] = denials.as_slice() else { panic!("{trace:?}") };
    assert_eq!(trace.outcome(), TraceOutcome::Stopped);
    *one
}

fn denied(hop: &Hop) -> Option<(PolicyDirection, &Denial)> {
    match hop {
        Hop::Policy(PolicyHop { direction, verdict: PolicyVerdict::Denied(denial), .. }) => {
            Some((*direction, denial))
        }
        _ => None,
    }
}

fn unserved(trace: &Trace) -> &Unserved {
    let found = trace.hops.iter().find_map(|hop| match hop {
        Hop::Unserved(unserved) => Some(unserved),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{trace:?}"))
}

fn requirement(key: &str, value: &str) -> Requirement {
    Requirement { key: key.into(), operator: Operator::In([value.into()].into()) }
}

fn lacking(key: &str, wants: &str, has: Option<&str>) -> Lacking {
    Lacking { wants: requirement(key, wants), has: has.map(Arc::from) }
}

fn own(key: &str, value: &str) -> Peer {
    let pods = Selector([requirement(key, value)].into());
    Peer::Pods(PodSelector { namespaces: Namespaces::Own, pods })
}

fn block(prefix: &str, excepts: &[&str]) -> Peer {
    let read = |text: &str| text.parse::<Prefix>().unwrap();
    Peer::Block { prefix: read(prefix), excepts: excepts.iter().map(|text| read(text)).collect() }
}

fn tcp(ports: PortSpec) -> PortMatch {
    PortMatch { protocol: Some(6), ports }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What the closest rule of a policy about web-1, or about client, lacks.
#[test]
fn the_closest_rule_and_what_it_lacks() {
    let ingress = |rules: &str| {
        let spec = format!("{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{rules}]}}");
        policy("default/p", &spec)
    };
    let egress = |rules: &str| {
        let of = "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]";
        policy("default/p", &format!("{{{of}, egress: [{rules}]}}"))
    };
    let port = |lack| Lacks::Port(lack);
    let peer = |at, wants, why| Lacks::Peer { at, wants, why };
    let web_port = tcp(PortSpec::Range(80, 80));
    let team = Selector([requirement("team", "a")].into());
    let teams = PodSelector { namespaces: Namespaces::Selected(team), pods: Selector::default() };
    let through = at("10.96.0.10:80");
    let internet = block("0.0.0.0/0", &["10.1.0.0/16"]);
    let excluded = "10.1.0.0/16".parse().unwrap();
    let cases = [
        // The second rule lacks less: only a port.
        (
            ingress(
                "{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 9}]}, {ports: [{port: 9090}]}",
            ),
            (1, port(PortLack::Other(vec![tcp(PortSpec::Range(9090, 9090))]))),
            Code::DenyPort,
        ),
        (
            ingress("{ports: [{port: 9090}, {port: 80}]}"),
            (0, port(PortLack::OfService { at: 1, wants: web_port, through })),
            Code::DenyPortPreNat,
        ),
        (
            ingress("{ports: [{port: 9090}, {port: http}]}"),
            (0, port(PortLack::Unnamed { at: 1, name: "http".into() })),
            Code::NamedPortUnresolved,
        ),
        (
            ingress(
                "{from: [{podSelector: {matchLabels: {app: api, tier: x}}}, {podSelector: {matchLabels: {app: api}}}]}",
            ),
            (
                0,
                peer(
                    1,
                    own("app", "api"),
                    PeerLack::Labels(vec![lacking("app", "api", Some("client"))]),
                ),
            ),
            Code::DenyIngressPeer,
        ),
        (
            ingress("{from: [{namespaceSelector: {matchLabels: {team: a}}}]}"),
            (0, peer(0, Peer::Pods(teams), PeerLack::NamespaceLabel(lacking("team", "a", None)))),
            Code::DenyNsLabel,
        ),
        (
            ingress("{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}"),
            (0, peer(0, block("192.0.2.0/24", &[]), PeerLack::Block)),
            Code::DenyIngressPeer,
        ),
        (
            egress("{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}]}"),
            // The excluded range has the Pod, and the block has the Service's address: that is what was meant.
            (0, peer(0, internet.clone(), PeerLack::OfService(through.ip()))),
            Code::DenyIpblockNat,
        ),
    ];
    for (more, (rule, lacks), code) in cases {
        let trace = world(&[more]).trace(TO_WEB.0, TO_WEB.1);
        let (_, denial) = denial(&trace);
        let closest = Closest { policy: Name::parse("default/p"), rule, lacks };
        assert_eq!(denial.cause, Cause::Closest(closest));
        assert_eq!(trace.code(), Some(code));
    }
    // Dialed without the Service, the excluded range is the reason.
    let spec = egress("{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.1.0.0/16]}}]}");
    let trace = world(&[spec]).trace("client", "default/web-1:8080");
    let lacks = peer(0, internet, PeerLack::Except(excluded));
    let closest = Closest { policy: Name::parse("default/p"), rule: 0, lacks };
    assert_eq!(denial(&trace).1.cause, Cause::Closest(closest));
}

#[test]
fn a_pod_of_another_namespace_is_not_a_peer_by_its_labels() {
    let spec = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: shop}}}]}]}";
    let trace = world(&[policy("default/p", spec)]).trace("front/shop", "svc:web:80");
    let (direction, denial) = denial(&trace);
    assert_eq!(direction, PolicyDirection::Ingress);
    assert_eq!(denial.peer, Who::Object(Name::parse("front/shop")));
    let lacks = Lacks::Peer { at: 0, wants: own("app", "shop"), why: PeerLack::Namespace };
    let closest = Closest { policy: Name::parse("default/p"), rule: 0, lacks };
    assert_eq!(denial.cause, Cause::Closest(closest));
}

#[test]
fn isolation_without_rules_and_without_an_agent() {
    let spec = "{podSelector: {matchLabels: {app: web}}}";
    let world = world(&[policy("default/deny-all", spec)]);
    let by =
        DecidedBy { policies: vec![PolicyId::Named(Name::parse("default/deny-all"))], rule: None };
    for (trace, cause) in [
        (world.trace(TO_WEB.0, TO_WEB.1), Cause::NoRules),
        (world.trace_alone(TO_WEB.0, TO_WEB.1), Cause::Unexplained),
    ] {
        let (_, denial) = denial(&trace);
        assert_eq!((&denial.by, &denial.cause, denial.rule), (&by, &cause, None));
        assert_eq!(trace.code(), Some(Code::DefaultDeny));
    }
}

/// A group that denies everything says why in its flags.
#[test]
fn groups_that_wait_and_groups_without_room() {
    let spec = "{podSelector: {matchLabels: {app: web}}, ingress: [{}]}";
    for (flag, cause, code) in [
        (GroupFlags::PENDING, Cause::Pending, Code::PolicyPending),
        (GroupFlags::OVERFLOW, Cause::NoRoom, Code::PolicyOverflow),
    ] {
        let mut world = world(&[policy("default/all", spec)]);
        assert_eq!(world.trace(TO_WEB.0, TO_WEB.1).outcome(), TraceOutcome::Delivered);
        world.tables.groups.values_mut().for_each(|group| group.flags |= flag);
        let trace = world.trace(TO_WEB.0, TO_WEB.1);
        assert_eq!(denial(&trace).1.cause, cause);
        assert_eq!(trace.code(), Some(code));
    }
}

/// The maps deny what the records allow: they are about to be written, or cannot be.
#[test]
fn maps_behind_the_records() {
    let spec = |rule: &str| {
        policy(
            "default/p",
            &format!("{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{rule}]}}"),
        )
    };
    let (old, new) = (world(&[spec("")]), world(&[spec("{ports: [{port: 8080}]}")]));
    let wanted = args::words(TO_WEB.0, TO_WEB.1, None).unwrap();
    let trace = old.trace_with(&wanted, &query::context(&new.cluster, &wanted));
    assert_eq!(denial(&trace).1.cause, Cause::NotProgrammed);
    assert_eq!(trace.code(), Some(Code::NotProgrammed));
    let mut empty = world(&[]);
    empty.snapshot.frontends.clear();
    let trace = empty.trace(TO_WEB.0, TO_WEB.1);
    assert_eq!(unserved(&trace).why, Why::NotProgrammed(vec![at("10.96.0.10:80")]));
    assert_eq!(trace.code(), Some(Code::NotProgrammed));
}

#[test]
fn services_that_lead_nowhere() {
    let more = [
        service("default/none", "10.96.0.20", "port: 80", "", ""),
        service("default/typo", "10.96.0.21", "port: 80", "app: wen", ""),
        pod("default/late", "10.1.0.8", "n1", "app: late", false),
        service("default/late", "10.96.0.22", "port: 80", "app: late", ""),
        service("default/named", "10.96.0.23", "port: 80, targetPort: http", "app: web", ""),
    ];
    let world = world(&more);
    let cause_of = |trace: &Trace, service: &str| match &unserved(trace).why {
        Why::NoEndpoints { cause, .. } => cause.clone(),
        other => panic!("{service}: {other:?}"),
    };
    let cause = |name: &str| cause_of(&world.trace("client", &format!("svc:{name}:80")), name);
    assert_eq!(cause("none"), NoEndpoints::NoSelector);
    let NoEndpoints::NoPod { selector, similar } = cause("typo") else { panic!() };
    assert_eq!(selector.get("app").map(|value| &**value), Some("wen"));
    assert_eq!(similar, [(("app".into(), "web".into()), 1)]);
    let NoEndpoints::NotReady { n: 1, first, .. } = cause("late") else { panic!() };
    assert_eq!(first[0].pod, Some(Name::parse("default/late")));
    assert_eq!(cause("named"), NoEndpoints::NotEndpoints { selected: 1 });
    // An agent that does not know the Pods of other nodes does not know what a selector selects.
    for name in ["typo", "named"] {
        let wanted = args::words("client", &format!("svc:{name}:80"), None).unwrap();
        let context = FlowContext { complete: false, ..query::context(&world.cluster, &wanted) };
        let trace = world.trace_with(&wanted, &context);
        assert_eq!(cause_of(&trace, name), NoEndpoints::Unknown, "{name}");
    }
    // The name table has no selectors.
    for name in ["none", "typo", "late", "named"] {
        let trace = world.trace_alone("client", &format!("svc:{name}:80"));
        assert_eq!(cause_of(&trace, name), NoEndpoints::Unknown, "{name}");
        assert_eq!(trace.code(), Some(Code::NoEndpoints));
    }
    // Records with a ready endpoint say nothing of maps without one.
    let mut world = base_world();
    world.snapshot.backends.clear();
    let trace = world.trace(TO_WEB.0, TO_WEB.1);
    assert_eq!(cause_of(&trace, "web"), NoEndpoints::Unknown);
    assert_eq!(trace.outcome(), TraceOutcome::Stopped);
}

#[test]
fn an_address_of_a_service_that_is_not_known() {
    let world = world(&[]);
    let wanted = args::words("client", "10.96.0.10:81", None).unwrap();
    let view = View::new(&world.snapshot, &world.names, 0);
    let context = offline::context(&view, &wanted);
    assert_eq!(context.service, None);
    let trace = world.trace_with(&wanted, &context);
    assert_eq!(*unserved(&trace), Unserved { port: None, service: None, why: Why::UnknownPort });
    assert_eq!(trace.code(), Some(Code::UndefinedPort));
}

#[test]
fn clients_outside_the_source_ranges() {
    let more = service(
        "default/lb",
        "10.96.0.11",
        "port: 80, targetPort: 8080",
        "app: web",
        ", type: LoadBalancer, loadBalancerSourceRanges: [198.51.100.0/24]",
    );
    let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.80}]}}\n";
    let world = world(&[more, status.to_owned()]);
    let trace = world.trace("world", "192.0.2.80:80");
    let clients = vec!["203.0.113.1".parse().unwrap()];
    let ranges = vec!["198.51.100.0/24".parse().unwrap()];
    assert_eq!(unserved(&trace).why, Why::SourceRange { clients, ranges });
    assert_eq!(trace.code(), Some(Code::SourceRange));
    assert_eq!(world.trace("198.51.100.7", "192.0.2.80:80").outcome(), TraceOutcome::Delivered);
}

#[test]
fn cluster_ips_that_no_service_has() {
    let mut world = base_world();
    world.snapshot.service_cidrs = vec![Cidr::new(Addr::from_ip(ip("10.96.0.0")), 12).unwrap()];
    for client in ["client", "node/n1"] {
        let trace = world.trace(client, "10.96.0.77:80");
        assert_eq!(unserved(&trace).why, Why::Unallocated(ip("10.96.0.77")));
        assert_eq!(trace.code(), Some(Code::UnallocatedIp));
        assert_eq!(trace.outcome(), TraceOutcome::Stopped);
    }
    assert_eq!(world.trace("client", "10.96.0.10:80").outcome(), TraceOutcome::Delivered);
    assert_eq!(world.trace("client", "198.51.100.7:80").outcome(), TraceOutcome::Delivered);
}

#[test]
fn addresses_of_a_service_that_are_not_served() {
    let more = service(
        "default/shop",
        "10.96.0.11",
        "port: 80, targetPort: 8080",
        "app: web",
        ", externalIPs: [192.0.2.5]",
    );
    let mut world = world(&[more]);
    let because = "192.0.2.5 is not in --external-ip-cidrs: not served";
    world.snapshot.frontends.retain(|known| known.socket().ip() != ip("192.0.2.5"));
    world.names.issues.push(IssueLine {
        object: "Service default/shop".into(),
        field: "spec.externalIPs".into(),
        message: because.into(),
        ..IssueLine::default()
    });
    for (src, dst) in
        [("client", "192.0.2.5:80"), ("world", "192.0.2.5:80"), ("world", "svc:shop:80")]
    {
        let trace = world.trace(src, dst);
        let (field, because) = ("spec.externalIPs".to_owned(), because.to_owned());
        assert_eq!(unserved(&trace).why, Why::NotServed { field, because }, "{src} {dst}");
        assert_eq!(trace.code(), Some(Code::AddressNotServed));
    }
}

/// A branch counts once, no matter how many of its hops stop the flow.
#[test]
fn branches_are_counted_by_what_stops_them() {
    let more = [
        pod("default/web-2", "10.1.1.3", "n2", "app: web", true),
        policy("default/deny-all", "{podSelector: {matchLabels: {app: web}}}"),
    ];
    let mut world = world(&more);
    let trace = world.trace(TO_WEB.0, TO_WEB.1);
    assert_eq!(trace.tally(), Tally { all: 2, stopped: 2, unknown: 0 });
    assert_eq!(trace.deciding(), []);
    // Without the agent's records, nothing is known of the other node's policies.
    let alone = world.trace_alone(TO_WEB.0, TO_WEB.1);
    assert_eq!(alone.tally(), Tally { all: 2, stopped: 1, unknown: 1 });
    assert_eq!(alone.deciding(), [Some(&"n2".into())]);
    // A socket that refuses stops the branch that a policy stops already.
    world.sockets = vec![at("127.0.0.1:8080")];
    let refused = world.trace(TO_WEB.0, TO_WEB.1);
    assert_eq!(refused.tally(), trace.tally());
    let found: Vec<_> = refused.findings().filter_map(Hop::code).collect();
    assert_eq!(found, [Code::DefaultDeny, Code::ListensOnLoopback, Code::DefaultDeny]);
    let is_reply = |hop: &Hop| matches!(hop, Hop::Reply(_));
    assert!(!refused.hops.iter().any(is_reply));
    assert!(alone.hops.iter().any(is_reply), "by way of the other backend");
    // Sockets that cannot be seen leave nothing open.
    let unseen = Listening::Unknown(Unseen::Namespace);
    let trace = base_world().trace_on("client", "web-1:8080", &unseen);
    assert_eq!(trace.outcome(), TraceOutcome::Delivered);
    assert!(
        matches!(&trace.hops[..], [.., Hop::Socket(s)] if matches!(s.found, Listener::Unknown(_)))
    );
}

#[test]
fn policies_in_shadow_mode_are_beside_the_verdict() {
    let more = policy("default/try", "{podSelector: {matchLabels: {app: web}}}")
        .replace("name: try,", "name: try, annotations: {lb-agent.io/mode: shadow},");
    let trace = world(&[more]).trace(TO_WEB.0, TO_WEB.1);
    let by = DecidedBy { policies: vec![PolicyId::Named(Name::parse("default/try"))], rule: None };
    let want = PolicyHop {
        direction: PolicyDirection::Ingress,
        subject: Who::Object(Name::parse("default/web-1")),
        verdict: PolicyVerdict::Allowed(Allowed::NotSelected),
        shadow: Some(Shadow { by, denies: true }),
        by_record: None,
    };
    assert!(trace.hops.contains(&Hop::Policy(want)), "{trace:?}");
    assert_eq!((trace.outcome(), trace.code()), (TraceOutcome::Delivered, None));
}

/// A rule that stands for identical ones, too, gets the hint about its peers.
#[test]
fn a_rule_with_twins_may_be_written_by_mistake() {
    let front = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: front}}}";
    let from = format!("{{from: [{front}, {{podSelector: {{matchLabels: {{app: api}}}}}}]}}");
    let spec = format!("{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{from}]}}");
    let mut world = world(&[policy("default/p", &spec)]);
    let name = Name::parse("default/p");
    let group = GroupPolicies {
        policies: vec![name.clone()],
        isolating: vec![name.clone()],
        rules: [(
            0,
            (name.clone(), RuleAt { direction: PolicyDirection::Ingress, index: 0, others: 3 }),
        )]
        .into(),
        no_room: false,
    };
    let id = world.snapshot.pods.values().find(|pod| pod.ingress != 0).unwrap().ingress;
    world.policies = PolicyNames::new([(id, group)]);
    let trace = world.trace("front/shop", "svc:web:80");
    assert_eq!(trace.code(), Some(Code::HintPeerOr));
    let found = trace.hops.iter().find_map(|hop| match hop {
        Hop::Policy(PolicyHop {
            verdict: PolicyVerdict::Allowed(Allowed::Rule { by, mistake }),
            ..
        }) => Some((by.rule, mistake.as_deref()?)),
        _ => None,
    });
    let (rule, mistake) = found.unwrap();
    let at = RuleAt { direction: PolicyDirection::Ingress, index: 0, others: 3 };
    assert_eq!(rule, Some(RuleId::Written(at)));
    assert_eq!((mistake.rule, mistake.at, &mistake.other), (0, 0, &own("app", "api")));
}

/// Only flows to what is dialed now are worth mentioning.
#[test]
fn stale_flows_of_what_is_dialed() {
    let mut world = world(&[]);
    let stale = |dialed| Stale { dialed: at(dialed), backend: at("10.1.1.4:8080") };
    world.stale = vec![stale("10.96.0.10:81")];
    assert_eq!(world.trace(TO_WEB.0, TO_WEB.1).code(), None);
    world.stale.push(stale("10.96.0.10:80"));
    assert_eq!(world.trace(TO_WEB.0, TO_WEB.1).code(), Some(Code::StaleFlow));
}

/// Records cross the socket as they are.
#[test]
fn misses_are_records() {
    let misses = vec![
        Miss::Label(lacking("app", "api", Some("web"))),
        Miss::Except("2001:db8::/64".parse().unwrap()),
    ];
    let text = serde_json::to_string(&misses).unwrap();
    assert!(text.contains("\"except\":\"2001:db8::/64\""), "{text}");
    assert_eq!(serde_json::from_str::<Vec<Miss>>(&text).unwrap(), misses);
    assert!(serde_json::from_str::<Miss>("{\"except\":\"2001:db8::/129\"}").is_err());
}
