//! Lookups of names, and answers that were seen before.

use expect_test::expect;
use lb_common::flow::proto;

use super::base;
use super::world::{World, pod, policy, service, text};
use crate::explain::code::Code;
use crate::explain::trace::{Hop, TraceOutcome};
use crate::explain::{Answered, render};

const DNS: &str = "\
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
";

fn dns() -> String {
    let ports = "name: dns, protocol: UDP, port: 53, targetPort: 53";
    [
        DNS.to_owned(),
        pod("kube-system/coredns-1", "10.1.0.53", "n1", "k8s-app: kube-dns", true),
        service("kube-system/kube-dns", "10.96.0.3", ports, "k8s-app: kube-dns", ""),
    ]
    .concat()
}

/// The client may reach the Service, and nothing else.
fn only_web() -> String {
    policy(
        "default/only-web",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}",
    )
}

#[test]
fn a_lookup_that_fails_stops_the_flow_by_name() {
    let world = World::new(&[base(), dns(), only_web()].concat());
    let trace = world.trace_by_name("client", "svc:web:80");
    expect![[r#"
        STOPPED: default/client to svc:default/web:80/TCP: lookups at kube-system/kube-dns fail: default/only-web isolates default/client in egress, and no rule allows 53/UDP to kube-system/coredns-1
          1  ok    source          Pod default/client 10.1.0.2 on this node
          2  STOP  name            lookups at kube-system/kube-dns fail: default/only-web isolates default/client in egress, and no rule allows 53/UDP to kube-system/coredns-1
          3  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
          4  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
          5  ok    egress policy   allowed by default/only-web egress[0]
          6  ok    ingress policy  no policy selects default/web-1 in ingress
          7  ok    path            goes past the host's IP stack and netfilter to default/web-1
          8  ok    socket          a process listens on 0.0.0.0:8080
          9  ok    reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
        because:
          default/client dials a name: without an answer of kube-system/kube-dns no packet is sent to svc:default/web
          default/only-web egress[0].to[0] wants Pods of the policy's namespace default, but kube-system/coredns-1 is in kube-system
          every DNS lookup of the Pod will time out
        to fix: add an egress rule for UDP and TCP port 53 to kube-system to a policy that selects default/client
        assumed: the Pod asks the cluster's DNS (dnsPolicy ClusterFirst) at kube-system/kube-dns; a client that dials the address does not need it
        code: DENY_EGRESS_DNS
    "#]].assert_eq(&text(&trace));
    assert_eq!((trace.outcome(), trace.code()), (TraceOutcome::Stopped, Some(Code::DenyEgressDns)));
    let document = serde_json::to_value(render(&trace)).unwrap();
    assert_eq!(document["lookup"]["service"], "kube-system/kube-dns");
    assert_eq!(document["lookup"]["outcome"], "stopped");
    assert_eq!(document["branches"]["stopped"], 0);
    // By address no name is looked up, and a process of a node asks another DNS.
    for (src, dst) in [("client", "10.96.0.10:80"), ("node/n1", "svc:web:80")] {
        let trace = world.trace_by_name(src, dst);
        assert_eq!((trace.outcome(), trace.lookup), (TraceOutcome::Delivered, None), "{src} {dst}");
    }
    let of_dns = world.trace_by_name("client", "svc:kube-system/kube-dns:53/udp");
    assert_eq!((of_dns.code(), of_dns.lookup), (Some(Code::DenyEgressDns), None));
}

#[test]
fn what_stops_the_flow_itself_comes_before_its_lookup() {
    let deny = policy("default/deny", "{podSelector: {matchLabels: {app: web}}, ingress: []}");
    let world = World::new(&[base(), dns(), only_web(), deny].concat());
    let trace = world.trace_by_name("client", "svc:web:80");
    assert_eq!(trace.code(), Some(Code::DefaultDeny));
    let also = render(&trace).also;
    assert!(also.iter().any(|finding| finding.code == Some(Code::DenyEgressDns)), "{also:?}");
}

#[test]
fn a_dns_without_endpoints_stops_flows_by_name() {
    let without = dns().replace("status: \"True\"", "status: \"False\"");
    let world = World::new(&[base(), without].concat());
    let trace = world.trace_by_name("client", "svc:web:80");
    assert_eq!(trace.code(), Some(Code::DnsUnreachable), "{}", text(&trace));
    assert!(text(&trace).starts_with(
        "STOPPED: default/client to svc:default/web:80/TCP: lookups at kube-system/kube-dns fail"
    ));
}

#[test]
fn lookups_that_succeed_or_end_on_the_node_stop_nothing() {
    let world = World::new(&[base(), dns()].concat());
    let trace = world.trace_by_name("client", "svc:web:80");
    assert_eq!((trace.outcome(), trace.code()), (TraceOutcome::Delivered, None));
    assert!(
        text(&trace).contains("name            lookups reach kube-system/kube-dns"),
        "{}",
        text(&trace)
    );
    let cache = pod("kube-system/node-local-dns-x2x4k", "10.0.0.1", "n1", "a: b", true)
        .replace("spec: {nodeName", "spec: {hostNetwork: true, nodeName");
    let world = World::new(&[base(), dns(), only_web(), cache].concat());
    assert_eq!(world.trace_by_name("client", "svc:web:80").lookup, None);
    // Without a DNS of the cluster there is nothing to follow.
    assert_eq!(World::new(&base()).trace_by_name("client", "svc:web:80").lookup, None);
}

#[test]
fn a_reset_from_another_node_is_remembered() {
    let other = pod("default/far-1", "10.1.1.3", "n2", "app: far", true);
    let mut world = World::new(&[base(), other].concat());
    let at = "10.1.1.3:8080".parse().unwrap();
    world.answers = vec![Answered { at, accepted: false, ago: 4 }];
    let trace = world.trace("client", "default/far-1:8080");
    expect![[r#"
        STOPPED: default/client to default/far-1:8080/TCP: default/far-1 refused a connection to 10.1.1.3:8080 4 s ago
          1  ok    source          Pod default/client 10.1.0.2 on this node
          2  ok    egress policy   no policy selects default/client in egress
          3  ok    ingress policy  the cluster has no policies
          4  ok    path            goes past the host's IP stack and netfilter between n1 and n2
          5  STOP  answer          10.1.1.3:8080 refused a connection of this source 4 s ago
        because: 4 s ago default/far-1 answered a connection of default/client to 10.1.1.3:8080 with a reset: no process listens on port 8080 there, or only on a loopback address
        to fix: set targetPort (or the destination port) to a port that the process listens on; `lbctl explain` on n2 shows which these are
        assumed: the next connection is answered like that one; the sockets of default/far-1 were not looked at; ask n2: kubectl -n kube-system exec "$(kubectl -n kube-system get pods -l k8s-app=lb-agent --field-selector spec.nodeName=n2 -o name)" -- lbctl explain default/client default/far-1:8080/tcp
        code: BACKEND_REFUSES
    "#]].assert_eq(&text(&trace));
    assert_eq!(trace.code(), Some(Code::BackendRefuses));
    world.answers = vec![Answered { at, accepted: true, ago: 1 }];
    let trace = world.trace("client", "default/far-1:8080");
    assert_eq!(trace.outcome(), TraceOutcome::Delivered);
    assert!(render(&trace).assumed.is_empty(), "it was answered");
    // Another port, another protocol: nothing is known.
    for dst in ["default/far-1:81", "default/far-1:8080/udp"] {
        let trace = world.trace("client", dst);
        assert!(trace.hops.iter().any(|hop| matches!(hop, Hop::Unchecked(_))), "{dst}");
    }
    assert_eq!(trace.wanted.protocol, proto::TCP);
}
