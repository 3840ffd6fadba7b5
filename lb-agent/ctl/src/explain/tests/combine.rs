//! The traces of two nodes as one.

use expect_test::{Expect, expect};

use super::base;
use super::world::{World, pod, policy, service, text};
use crate::explain::Code;
use crate::explain::combine::{Combined, combine};
use crate::explain::trace::{Trace, TraceOutcome};

/// A client on n1, and a Service with a Pod on each node.
fn both() -> String {
    [base(), pod("default/web-2", "10.1.1.3", "n2", "app: web", true)].concat()
}

/// As a trace travels.
fn sent(trace: &Trace) -> Trace {
    serde_json::from_str(&serde_json::to_string(trace).unwrap()).unwrap()
}

struct Nodes {
    n1: World,
    n2: World,
}

impl Nodes {
    fn new(manifests: &str) -> Self {
        Self { n1: World::on("n1", manifests), n2: World::on("n2", manifests) }
    }

    fn combined(&self, src: &str, dst: &str) -> Combined {
        let traces = [sent(&self.n1.trace(src, dst)), sent(&self.n2.trace(src, dst))];
        let combined = combine(&traces).unwrap();
        let [n1, n2] = traces;
        assert_eq!(
            combine(&[n2, n1]).unwrap(),
            combined,
            "the order of the answers is not one of facts"
        );
        combined
    }

    fn check(&self, src: &str, dst: &str, code: Option<Code>, want: Expect) {
        let Combined { trace, .. } = self.combined(src, dst);
        want.assert_eq(&text(&trace));
        assert_eq!(trace.code(), code);
    }
}

#[test]
fn a_trace_survives_the_way_to_the_laptop() {
    let nodes =
        Nodes::new(&[both(), policy("default/deny", "{podSelector: {}, ingress: []}")].concat());
    for world in [&nodes.n1, &nodes.n2] {
        for (src, dst) in
            [("client", "svc:web:80"), ("world", "svc:web:80"), ("client", "svc:web:81")]
        {
            let trace = world.trace(src, dst);
            assert_eq!(sent(&trace), trace);
        }
    }
}

#[test]
fn each_backend_is_judged_where_it_runs() {
    Nodes::new(&both()).check("client", "svc:web:80", None, expect![[r#"
        DELIVERED: default/client to svc:default/web:80/TCP
          1   ok  source          Pod default/client 10.1.0.2 on this node
          2   ok  service         default/web:80 10.96.0.10:80/TCP: 2 backends, random
          3   ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
          4   ok  egress policy   no policy selects default/client in egress
          5   ok  ingress policy  no policy selects default/web-1 in ingress
          6   ok  path            goes past the host's IP stack and netfilter to default/web-1
          7   ok  socket          a process listens on 0.0.0.0:8080
          8   ok  backend         10.1.1.3:8080 default/web-2 on n2, ready
          9   ok  egress policy   no policy selects default/client in egress
          10  ok  ingress policy  no policy selects default/web-2 in ingress
          11  ok  path            goes past the host's IP stack and netfilter between n1 and n2
          12  ok  socket          a process listens on 0.0.0.0:8080
          13  ok  reply           the source of replies is translated from the backend back to 10.96.0.10:80; policies do not evaluate replies
    "#]]);
}

#[test]
fn the_sockets_of_the_other_node_stop_the_flow() {
    let mut nodes = Nodes::new(&both());
    nodes.n2.sockets = vec!["127.0.0.1:8080".parse().unwrap()];
    nodes.check("client", "svc:web:80", Some(Code::ListensOnLoopback), expect![[r#"
        STOPPED: default/client to svc:default/web:80/TCP (for 1 of 2 backends): default/web-2 listens on 127.0.0.1:8080 only
          1   ok    source          Pod default/client 10.1.0.2 on this node
          2   ok    service         default/web:80 10.96.0.10:80/TCP: 2 backends, random
          3   ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
          4   ok    egress policy   no policy selects default/client in egress
          5   ok    ingress policy  no policy selects default/web-1 in ingress
          6   ok    path            goes past the host's IP stack and netfilter to default/web-1
          7   ok    socket          a process listens on 0.0.0.0:8080
          8   ok    backend         10.1.1.3:8080 default/web-2 on n2, ready
          9   ok    egress policy   no policy selects default/client in egress
          10  ok    ingress policy  no policy selects default/web-2 in ingress
          11  ok    path            goes past the host's IP stack and netfilter between n1 and n2
          12  STOP  socket          default/web-2 listens on 127.0.0.1:8080 only
          13  ok    reply           the source of replies is translated from the backend back to 10.96.0.10:80; policies do not evaluate replies
        because: the process in default/web-2 listens on 127.0.0.1:8080, not on the Pod's address 10.1.1.3
        to fix: configure the process to listen on all addresses (0.0.0.0 or ::)
        code: LISTENS_ON_LOOPBACK
    "#]]);
    nodes.check("client", "default/web-2:8080", Some(Code::ListensOnLoopback), expect![[r#"
        STOPPED: default/client to default/web-2:8080/TCP: default/web-2 listens on 127.0.0.1:8080 only
          1  ok    source          Pod default/client 10.1.0.2 on this node
          2  ok    egress policy   no policy selects default/client in egress
          3  ok    ingress policy  no policy selects default/web-2 in ingress
          4  ok    path            goes past the host's IP stack and netfilter between n1 and n2
          5  STOP  socket          default/web-2 listens on 127.0.0.1:8080 only
        because: the process in default/web-2 listens on 127.0.0.1:8080, not on the Pod's address 10.1.1.3
        to fix: configure the process to listen on all addresses (0.0.0.0 or ::)
        code: LISTENS_ON_LOOPBACK
    "#]]);
}

#[test]
fn the_tables_of_the_other_node_beat_the_records_of_this_one() {
    let deny = policy("default/deny", "{podSelector: {matchLabels: {app: web}}, ingress: []}");
    let with = [both(), deny].concat();
    let ahead = Nodes { n1: World::on("n1", &both()), n2: World::on("n2", &with) };
    ahead.check("client", "default/web-2:8080", Some(Code::DefaultDeny), expect![[r#"
        STOPPED: default/client to default/web-2:8080/TCP: default/deny isolates default/web-2 in ingress, and no rule allows 8080/TCP from default/client
          1  ok    source          Pod default/client 10.1.0.2 on this node
          2  ok    egress policy   no policy selects default/client in egress
          3  STOP  ingress policy  default/deny isolates default/web-2 in ingress, and no rule allows 8080/TCP from default/client
          4  ok    socket          a process listens on 0.0.0.0:8080
        because: default/deny has no rule for ingress
        to fix: add a rule that allows 8080/TCP from default/client to a policy that selects default/web-2
        code: DEFAULT_DENY
    "#]]);
    let behind = Nodes { n1: World::on("n1", &with), n2: World::on("n2", &both()) };
    let Combined { trace, .. } = behind.combined("client", "default/web-2:8080");
    assert_eq!(trace.outcome(), TraceOutcome::Delivered, "n2 has no policies yet");
}

#[test]
fn the_source_decides_on_its_egress() {
    let deny = policy(
        "default/deny",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}",
    );
    let nodes = Nodes::new(&[both(), deny].concat());
    nodes.check("client", "default/web-2:8080", Some(Code::DefaultDeny), expect![[r#"
        STOPPED: default/client to default/web-2:8080/TCP: default/deny isolates default/client in egress, and no rule allows 8080/TCP to default/web-2
          1  ok    source          Pod default/client 10.1.0.2 on this node
          2  STOP  egress policy   default/deny isolates default/client in egress, and no rule allows 8080/TCP to default/web-2
          3  ok    ingress policy  no policy selects default/web-2 in ingress
          4  ok    socket          a process listens on 0.0.0.0:8080
        because: default/deny has no rule for egress
        to fix: add a rule that allows 8080/TCP to default/web-2 to a policy that selects default/client
        code: DEFAULT_DENY
    "#]]);
}

#[test]
fn without_the_source_the_destination_tells() {
    let nodes = Nodes::new(&both());
    let alone = combine(&[sent(&nodes.n2.trace("client", "default/web-2:8080"))]).unwrap();
    assert_eq!(alone.trace.outcome(), TraceOutcome::Delivered);
    assert_eq!(&*alone.trace.node, "n2");
    assert!(combine(&[]).is_none());
}

#[test]
fn a_client_outside_enters_where_it_is_delivered() {
    let local = service(
        "default/local",
        "10.96.0.20",
        "port: 80, targetPort: 8080, nodePort: 30080",
        "app: far",
        ", type: NodePort, externalTrafficPolicy: Local",
    );
    let far = pod("default/far", "10.1.1.4", "n2", "app: far", true);
    let nodes = Nodes::new(&[base(), far, local].concat());
    let dst = "svc:default/local:80";
    let Combined { trace, stopped_at } = nodes.combined("world", dst);
    assert_eq!((trace.outcome(), &*trace.node), (TraceOutcome::Delivered, "n2"), "{trace:?}");
    let stopped_at: Vec<&str> = stopped_at.iter().map(|node| &**node).collect();
    assert_eq!(stopped_at, ["n1"]);
}

#[test]
fn with_both_nodes_there_is_always_an_answer() {
    let policies = [
        policy(
            "default/in",
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        ),
        policy(
            "default/out",
            "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}",
        ),
    ];
    let nodes = Nodes::new(&[both(), policies.concat()].concat());
    let pods =
        ["default/client", "front/shop", "default/web-1", "default/web-2", "node/n1", "node/n2"];
    for src in pods {
        for dst in [
            "default/web-1:8080",
            "default/web-2:8080",
            "svc:default/web:80",
            "default/client:8080",
        ] {
            let Combined { trace, .. } = nodes.combined(src, dst);
            assert_ne!(trace.outcome(), TraceOutcome::CannotTell, "{src} {dst}: {trace:?}");
        }
    }
}
