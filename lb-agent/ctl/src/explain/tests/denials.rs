//! The wording of denials and of what policies allow.

use expect_test::expect;

use super::world::{World, pod, policy, service, text};
use super::{TO_WEB, base, check};
use crate::explain::code::Code;
use crate::explain::trace::TraceOutcome;

#[test]
fn deny_egress_dns() {
    let more = [
        pod("kube-system/dns", "10.1.0.53", "n1", "k8s-app: kube-dns", true),
        service(
            "kube-system/kube-dns",
            "10.96.0.53",
            "port: 53, protocol: UDP",
            "k8s-app: kube-dns",
            "",
        ),
        policy("default/deny-all", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
    ]
    .concat();
    let dns = ("client", "svc:kube-system/kube-dns:53/udp");
    check(
        &more,
        dns,
        Some(Code::DenyEgressDns),
        expect![[r#"
            STOPPED: default/client to svc:kube-system/kube-dns:53/UDP: default/deny-all isolates default/client in egress, and no rule allows 53/UDP to kube-system/dns
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         kube-system/kube-dns:53 10.96.0.53:53/UDP: 1 backend
              3  ok    backend         10.1.0.53:53 kube-system/dns on n1, ready
              4  STOP  egress policy   default/deny-all isolates default/client in egress, and no rule allows 53/UDP to kube-system/dns
              5  ok    ingress policy  no policy selects kube-system/dns in ingress
              6  ok    socket          a process listens on 0.0.0.0:53
            because:
              default/deny-all has no rule for egress
              every DNS lookup of the Pod will time out
            to fix: add an egress rule for UDP and TCP port 53 to kube-system to a policy that selects default/client
            code: DENY_EGRESS_DNS
        "#]],
    );
}

#[test]
fn deny_ingress_peer() {
    let more = policy(
        "default/access",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 8080}]}, {from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}",
    );
    check(
        &more,
        TO_WEB,
        Some(Code::DenyIngressPeer),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  STOP  ingress policy  default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: default/access ingress[0].from[0] wants app=api, but default/client has app=client
            to fix: change the rule, or the labels of default/client to app=api if nothing else needs app=client
            code: DENY_INGRESS_PEER
        "#]],
    );
    check(
        &more,
        ("front/shop", "default/web-1:8080"),
        Some(Code::DenyIngressPeer),
        expect![[r#"
            STOPPED: front/shop to default/web-1:8080/TCP: default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from front/shop
              1  ok    source          Pod front/shop 10.1.0.5 on this node
              2  ok    egress policy   no policy selects front/shop in egress
              3  STOP  ingress policy  default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from front/shop
              4  ok    socket          a process listens on 0.0.0.0:8080
            because: default/access ingress[1].from[0] wants 192.0.2.0/24, but front/shop is not in it
            to fix: add a peer for front/shop
            code: DENY_INGRESS_PEER
        "#]],
    );
}

#[test]
fn deny_egress_peer() {
    let more = policy(
        "default/out",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
    );
    check(
        &more,
        TO_WEB,
        Some(Code::DenyEgressPeer),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/out isolates default/client in egress, and no rule allows 8080/TCP to default/web-1
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  STOP  egress policy   default/out isolates default/client in egress, and no rule allows 8080/TCP to default/web-1
              5  ok    ingress policy  no policy selects default/web-1 in ingress
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: default/out egress[0].to[0] wants app=db, but default/web-1 has app=web
            to fix: change the rule, or the labels of default/web-1 to app=db if nothing else needs app=web
            code: DENY_EGRESS_PEER
        "#]],
    );
}

#[test]
fn deny_ns_label() {
    let more = policy(
        "default/access",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]}",
    );
    check(
        &more,
        ("front/shop", "svc:web:80"),
        Some(Code::DenyNsLabel),
        expect![[r#"
            STOPPED: front/shop to svc:default/web:80/TCP: default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from front/shop
              1  ok    source          Pod front/shop 10.1.0.5 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects front/shop in egress
              5  STOP  ingress policy  default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from front/shop
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: default/access ingress[0].from[0] wants a namespace with team=a, but namespace front has no label team
            to fix: add the label team=a to namespace front, or change the rule
            code: DENY_NS_LABEL
        "#]],
    );
}

#[test]
fn deny_port() {
    let of = |port: &str| {
        policy(
            "default/access",
            &format!(
                "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{ports: [{{port: {port}}}]}}]}}"
            ),
        )
    };
    check(
        &of("9090"),
        TO_WEB,
        Some(Code::DenyPort),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  STOP  ingress policy  default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: default/access ingress[0].ports[0] wants 9090/TCP, but the flow is for 8080/TCP
            to fix: add 8080/TCP to ingress[0].ports
            code: DENY_PORT
        "#]],
    );
    check(
        &of("80"),
        TO_WEB,
        Some(Code::DenyPortPreNat),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  STOP  ingress policy  default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: default/access ingress[0].ports[0] wants 80/TCP, but policies see port 8080, to which 10.96.0.10:80 is translated
            to fix: allow the Pod's port 8080/TCP: policies never see the Service's port
            code: DENY_PORT_PRE_NAT
        "#]],
    );
    check(
        &of("http"),
        TO_WEB,
        Some(Code::NamedPortUnresolved),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  STOP  ingress policy  default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: default/access ingress[0].ports[0] wants port 'http', but default/web-1 declares no port with that name
            to fix: declare port 'http' in a container of default/web-1, or use the port number in the rule
            code: NAMED_PORT_UNRESOLVED
        "#]],
    );
    check(
        &of("web"),
        TO_WEB,
        None,
        expect![[r#"
            DELIVERED: default/client to svc:default/web:80/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   no policy selects default/client in egress
              5  ok  ingress policy  allowed by default/access ingress[0]
              6  ok  path            goes past the host's IP stack and netfilter to default/web-1
              7  ok  socket          a process listens on 0.0.0.0:8080
              8  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
        "#]],
    );
}

#[test]
fn deny_ipblock_nat() {
    let more = policy(
        "default/out",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.0/16}}]}]}",
    );
    check(
        &more,
        TO_WEB,
        Some(Code::DenyIpblockNat),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/out isolates default/client in egress, and no rule allows 8080/TCP to default/web-1
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  STOP  egress policy   default/out isolates default/client in egress, and no rule allows 8080/TCP to default/web-1
              5  ok    ingress policy  no policy selects default/web-1 in ingress
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: default/out egress[0].to[0] wants 10.96.0.0/16, but policies see 10.1.0.3, not 10.96.0.10
            to fix: allow the Pods behind the Service by their labels: policies never see the address of a Service
            code: DENY_IPBLOCK_NAT
        "#]],
    );
}

#[test]
fn deny_by_a_policy_of_the_cluster() {
    let more = r#"---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: fence}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}
  ingress:
  - {name: no-front, action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: front}}}]}
"#;
    check(
        more,
        ("front/shop", "svc:web:80"),
        Some(Code::DenyCnp),
        expect![[r#"
            STOPPED: front/shop to svc:default/web:80/TCP: fence ingress[0] denies it
              1  ok    source          Pod front/shop 10.1.0.5 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects front/shop in egress
              5  STOP  ingress policy  fence ingress[0] denies it
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: fence ingress[0] denies traffic between front/shop and default/web-1 on 8080/TCP; a NetworkPolicy cannot override that
            to fix: ask the owner of the ClusterNetworkPolicy to add an Accept rule before it or to narrow it
            code: DENY_CNP
        "#]],
    );
}

#[test]
fn default_deny_names_who_isolates() {
    let more = [
        policy("default/deny-all", "{podSelector: {}}"),
        policy(
            "default/web-deny",
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}",
        ),
    ]
    .concat();
    check(
        &more,
        TO_WEB,
        Some(Code::DefaultDeny),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/deny-all, default/web-deny isolate default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  STOP  ingress policy  default/deny-all, default/web-deny isolate default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              6  ok    socket          a process listens on 0.0.0.0:8080
            because: none of them has a rule for ingress
            to fix: add a rule that allows 8080/TCP from default/client to a policy that selects default/web-1
            code: DEFAULT_DENY
        "#]],
    );
    // A Pod always reaches itself.
    check(
        &more,
        ("web-1", "svc:web:80"),
        None,
        expect![[r#"
            DELIVERED: default/web-1 to svc:default/web:80/TCP
              1  ok  source          Pod default/web-1 10.1.0.3 on this node
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   no policy selects default/web-1 in egress
              5  ok  ingress policy  traffic from a Pod to itself is checked on egress only
              6  ok  socket          a process listens on 0.0.0.0:8080
              7  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
        "#]],
    );
    // And its node reaches it.
    check(
        &more,
        ("node/n1", "svc:web:80"),
        Some(Code::HostNotSelectable),
        expect![[r#"
            DELIVERED: node/n1 to svc:default/web:80/TCP
              1  ok  source          node n1
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   NetworkPolicies never apply to traffic of the node itself
              5  ok  ingress policy  the peer is this node itself, which is always allowed
              6  ok  socket          a process listens on 0.0.0.0:8080
              7  ok  reply           10.1.0.3:8080 replies directly to the process, whose socket shows 10.96.0.10:80; policies do not evaluate replies
            because: NetworkPolicies never apply to traffic from a node or from a Pod on the host network
            code: HOST_NOT_SELECTABLE
        "#]],
    );
}

#[test]
fn hint_peer_or() {
    let more = policy(
        "default/access",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: front}}}, {podSelector: {matchLabels: {app: api}}}]}]}",
    );
    check(
        &more,
        ("front/shop", "svc:web:80"),
        Some(Code::HintPeerOr),
        expect![[r#"
            DELIVERED: front/shop to svc:default/web:80/TCP
              1  ok  source          Pod front/shop 10.1.0.5 on this node
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   no policy selects front/shop in egress
              5  ok  ingress policy  allowed by default/access ingress[0]
              6  ok  path            goes past the host's IP stack and netfilter to default/web-1
              7  ok  socket          a process listens on 0.0.0.0:8080
              8  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
            because: default/access ingress[0] lists two peers, and matching either is enough: front/shop matches all Pods of namespaces with kubernetes.io/metadata.name=front, but not Pods with app=api of namespace default
            to fix: if both must match, put podSelector and namespaceSelector into one entry of the list
            code: HINT_PEER_OR
        "#]],
    );
}

#[test]
fn out_of_the_cluster() {
    let more = policy(
        "default/out",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24]}}]}]}",
    );
    check(
        &more,
        ("client", "198.51.100.7:443"),
        None,
        expect![[r#"
            DELIVERED: default/client to 198.51.100.7:443/TCP
              1  ok  source         Pod default/client 10.1.0.2 on this node
              2  ok  egress policy  allowed by default/out egress[0]
            assumed: the network routes packets to 198.51.100.7 and back
        "#]],
    );
    check(
        &more,
        ("client", "192.0.2.9:443"),
        Some(Code::DenyEgressPeer),
        expect![[r#"
            STOPPED: default/client to 192.0.2.9:443/TCP: default/out isolates default/client in egress, and no rule allows 443/TCP to 192.0.2.9
              1  ok    source         Pod default/client 10.1.0.2 on this node
              2  STOP  egress policy  default/out isolates default/client in egress, and no rule allows 443/TCP to 192.0.2.9
            because: default/out egress[0].to[0] wants 0.0.0.0/0 except 192.0.2.0/24, but 192.0.2.9 is in the excluded 192.0.2.0/24
            to fix: narrow the except field
            code: DENY_EGRESS_PEER
        "#]],
    );
}

#[test]
fn policies_in_shadow_mode_are_told() {
    let more = policy("default/try", "{podSelector: {matchLabels: {app: web}}}")
        .replace("name: try,", "name: try, annotations: {lb-agent.io/mode: shadow},");
    check(
        &more,
        TO_WEB,
        None,
        expect![[r#"
            DELIVERED: default/client to svc:default/web:80/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   no policy selects default/client in egress
              5  ok  ingress policy  no enforced policy selects default/web-1 in ingress
              6  ok  path            goes past the host's IP stack and netfilter to default/web-1
              7  ok  socket          a process listens on 0.0.0.0:8080
              8  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
            assumed: shadow policies are not enforced; if they were, default/try default-deny would deny it
        "#]],
    );
}

#[test]
fn without_an_agent() {
    let more = policy("default/deny-all", "{podSelector: {matchLabels: {app: web}}}");
    let world = World::new(&format!("{}{more}", base()));
    let trace = world.trace_alone("client", "svc:web:80");
    assert_eq!(trace.outcome(), TraceOutcome::Stopped);
    expect![[r#"
        STOPPED: default/client to svc:default/web:80/TCP: default/deny-all isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
          1  ok    source          Pod default/client 10.1.0.2 on this node
          2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
          3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
          4  ok    egress policy   no policy selects default/client in egress
          5  STOP  ingress policy  default/deny-all isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
          6  ok    socket          a process listens on 0.0.0.0:8080
        because: why no rule matches is only known to the agent, which does not answer
        to fix: add a rule that allows 8080/TCP from default/client to a policy that selects default/web-1
        assumed: agent not reachable: using cached names; reasons may be missing
        code: DEFAULT_DENY
    "#]].assert_eq(&text(&trace));
}
