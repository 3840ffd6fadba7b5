//! What is said of each cause, word by word.

use expect_test::{Expect, expect};
use lb_common::flow::proto;
use lb_common::verdict::DropReason;

use self::world::{World, pod, policy, service, text};
use crate::explain::{Code, Outcome, Stale, render};
use lb_core::names::DropExample;

mod causes;
mod worked;
mod world;

/// A client and a Service with one Pod, here.
fn base() -> String {
    [
        pod("default/client", "10.1.0.2", "n1", "app: client", true),
        pod("front/shop", "10.1.0.5", "n1", "app: shop", true),
        pod("default/web-1", "10.1.0.3", "n1", "app: web", true),
        service("default/web", "10.96.0.10", "port: 80, targetPort: 8080", "app: web", ""),
    ]
    .concat()
}

/// Explains a flow in the base world with more in it.
fn check(more: &str, (src, dst): (&str, &str), code: Option<Code>, want: Expect) {
    check_in(&World::new(&format!("{}{more}", base())), (src, dst), code, want);
}

fn check_in(world: &World, (src, dst): (&str, &str), code: Option<Code>, want: Expect) {
    let trace = world.trace(src, dst);
    want.assert_eq(&text(&trace));
    assert_eq!(trace.code(), code, "{trace:?}");
}

const TO_WEB: (&str, &str) = ("client", "svc:web:80");

#[test]
fn delivered() {
    check(
        "",
        TO_WEB,
        None,
        expect![[r#"
            DELIVERED: default/client to svc:default/web:80/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   no policy selects default/client in egress
              5  ok  ingress policy  no policy selects default/web-1 in ingress
              6  ok  socket          a process listens on 0.0.0.0:8080
              7  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
        "#]],
    );
}

#[test]
fn no_endpoints_selector() {
    let more = [
        service("default/api", "10.96.0.11", "port: 80", "app: wen, tier: x", ""),
        service("default/wep", "10.96.0.12", "port: 80", "app: wep", ""),
    ]
    .concat();
    check(
        &more,
        ("client", "svc:wep:80"),
        Some(Code::NoEndpointsSelector),
        expect![[r#"
            STOPPED: default/client to svc:default/wep:80/TCP: no Pod matches the selector of default/wep
              1  ok    source   Pod default/client 10.1.0.2 on this node
              2  STOP  service  default/wep:80: no Pod matches the selector of default/wep
            because: default/wep selects app=wep; no Pod of its namespace matches; closest: 1 Pod with app=web
            to fix: change spec.selector or the labels of the Pods so that they match
            code: NO_ENDPOINTS_SELECTOR
        "#]],
    );
    check(
        &more,
        ("client", "10.96.0.11:80"),
        Some(Code::NoEndpointsSelector),
        expect![[r#"
            STOPPED: default/client to 10.96.0.11:80/TCP: no Pod matches the selector of default/api
              1  ok    source   Pod default/client 10.1.0.2 on this node
              2  STOP  service  default/api:80: no Pod matches the selector of default/api
            because: default/api selects app=wen,tier=x; no Pod of its namespace matches; closest: 1 Pod with app=web
            to fix: change spec.selector or the labels of the Pods so that they match
            code: NO_ENDPOINTS_SELECTOR
        "#]],
    );
}

#[test]
fn no_endpoints_not_ready() {
    let more = [
        pod("default/api-1", "10.1.0.7", "n1", "app: api", false),
        service("default/api", "10.96.0.11", "port: 80", "app: api", ""),
    ]
    .concat();
    check(
        &more,
        ("client", "svc:api"),
        Some(Code::NoEndpointsNotReady),
        expect![[r#"
            STOPPED: default/client to svc:default/api/TCP: default/api has 1 endpoint, 0 ready
              1  ok    source   Pod default/client 10.1.0.2 on this node
              2  STOP  service  default/api:80: default/api has 1 endpoint, 0 ready
            because: default/api-1 is not-ready
            to fix: check the readiness probes and the Events of these Pods
            code: NO_ENDPOINTS_NOT_READY
        "#]],
    );
}

#[test]
fn named_port_unresolved_by_a_service() {
    let more = service("default/api", "10.96.0.11", "port: 80, targetPort: http", "app: web", "");
    check(
        &more,
        ("client", "svc:api"),
        Some(Code::NamedPortUnresolved),
        expect![[r#"
            STOPPED: default/client to svc:default/api/TCP: default/api selects 1 Pod, but it is not an endpoint
              1  ok    source   Pod default/client 10.1.0.2 on this node
              2  STOP  service  default/api:80: default/api selects 1 Pod, but it is not an endpoint
            because: no container declares a port with the name in targetPort, or the Pods have no address yet
            to fix: declare the named port in the containers, or set targetPort to a number
            code: NAMED_PORT_UNRESOLVED
        "#]],
    );
}

#[test]
fn undefined_port() {
    check(
        "",
        ("client", "svc:web:81"),
        Some(Code::UndefinedPort),
        expect![[r#"
            STOPPED: default/client to svc:default/web:81/TCP: default/web has no port 81/TCP
              1  ok    source   Pod default/client 10.1.0.2 on this node
              2  STOP  service  default/web: default/web has no port 81/TCP
            because: default/web has 80/TCP
            to fix: use one of these ports, or declare the port in spec.ports
            code: UNDEFINED_PORT
        "#]],
    );
    check(
        "",
        ("client", "10.96.0.10:81"),
        Some(Code::UndefinedPort),
        expect![[r#"
            STOPPED: default/client to 10.96.0.10:81/TCP: default/web has no port 81/TCP
              1  ok    source   Pod default/client 10.1.0.2 on this node
              2  STOP  service  default/web: default/web has no port 81/TCP
            because: default/web has 80/TCP
            to fix: use one of these ports, or declare the port in spec.ports
            code: UNDEFINED_PORT
        "#]],
    );
}

#[test]
fn no_local_endpoint() {
    let more = [
        pod("default/api-1", "10.1.1.7", "n2", "app: api", true),
        service(
            "default/api",
            "10.96.0.11",
            "port: 80",
            "app: api",
            ", internalTrafficPolicy: Local",
        ),
    ]
    .concat();
    check(
        &more,
        ("client", "svc:api"),
        Some(Code::NoLocalEndpoint),
        expect![[r#"
            STOPPED: default/client to svc:default/api/TCP: default/api has no endpoint on this node, and its internalTrafficPolicy is Local
              1  ok    source   Pod default/client 10.1.0.2 on this node
              2  STOP  service  default/api:80: default/api has no endpoint on this node, and its internalTrafficPolicy is Local
            because: n1 has no ready Pod of default/api; n2 has one
            to fix: use a node that has one, run a Pod of it on this node, or set internalTrafficPolicy to Cluster
            code: NO_LOCAL_ENDPOINT
        "#]],
    );
}

#[test]
fn from_outside() {
    let more = [
        service(
            "default/lb",
            "10.96.0.11",
            "port: 80, targetPort: 8080",
            "app: web",
            ", type: LoadBalancer",
        ),
        service(
            "default/np",
            "10.96.0.12",
            "port: 80, targetPort: 8080, nodePort: 30080",
            "app: web",
            ", type: NodePort",
        ),
    ]
    .concat();
    check(
        &more,
        ("world", "svc:lb:80"),
        Some(Code::LbNoAddress),
        expect![[r#"
            STOPPED: world to svc:default/lb:80/TCP: default/lb has no external address
              1  ok    source   an external client, evaluated as 203.0.113.1, 2001:db8::1
              2  STOP  service  default/lb: default/lb has no external address
            because: default/lb is of type LoadBalancer, but no address has been assigned to it
            to fix: install a controller that assigns addresses (a cloud controller, MetalLB), or use the NodePort
            code: LB_NO_ADDRESS
        "#]],
    );
    check(
        &more,
        ("world", "svc:web:80"),
        Some(Code::NoFrontend),
        expect![[r#"
            STOPPED: world to svc:default/web:80/TCP: default/web is not reachable from outside the cluster
              1  ok    source   an external client, evaluated as 203.0.113.1, 2001:db8::1
              2  STOP  service  default/web: default/web is not reachable from outside the cluster
            because: default/web is of type ClusterIP
            to fix: change its type to NodePort or LoadBalancer
            code: NO_FRONTEND
        "#]],
    );
    check(
        &more,
        ("world", "svc:np:80"),
        None,
        expect![[r#"
            DELIVERED: world to svc:default/np:80/TCP
              1  ok  source          an external client, evaluated as 203.0.113.1, 2001:db8::1
              2  ok  service         default/np:80 10.0.0.1:30080/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  ingress policy  no policy selects default/web-1 in ingress
              5  ok  socket          a process listens on 0.0.0.0:8080
              6  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.0.0.1:30080; policies do not evaluate replies
        "#]],
    );
}

#[test]
fn sockets() {
    let mut world = World::new(&base());
    world.sockets = vec!["127.0.0.1:8080".parse().unwrap()];
    check_in(
        &world,
        TO_WEB,
        Some(Code::ListensOnLoopback),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: default/web-1 listens on 127.0.0.1:8080 only
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  ok    ingress policy  no policy selects default/web-1 in ingress
              6  STOP  socket          default/web-1 listens on 127.0.0.1:8080 only
            because: the process in default/web-1 listens on 127.0.0.1:8080, not on the Pod's address 10.1.0.3
            to fix: configure the process to listen on all addresses (0.0.0.0 or ::)
            code: LISTENS_ON_LOOPBACK
        "#]],
    );
    world.sockets = vec!["0.0.0.0:80".parse().unwrap(), "[::]:9090".parse().unwrap()];
    check_in(
        &world,
        TO_WEB,
        Some(Code::BackendRefuses),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP: no process listens on 10.1.0.3:8080 in default/web-1
              1  ok    source          Pod default/client 10.1.0.2 on this node
              2  ok    service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok    egress policy   no policy selects default/client in egress
              5  ok    ingress policy  no policy selects default/web-1 in ingress
              6  STOP  socket          no process listens on 10.1.0.3:8080 in default/web-1
            because: no process listens on port 8080 of default/web-1; it listens on 80, 9090
            to fix: set targetPort (or the destination port) to a port that the process listens on
            code: BACKEND_REFUSES
        "#]],
    );
}

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
            to fix: add the labels app=api to default/client, or change the rule
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
            to fix: add the labels app=db to default/web-1, or change the rule
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
              6  ok  socket          a process listens on 0.0.0.0:8080
              7  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
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
              6  ok  socket          a process listens on 0.0.0.0:8080
              7  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
            because: default/access ingress[0] lists two peers, and matching either is enough: front/shop matches all Pods of namespaces with kubernetes.io/metadata.name=front, but not Pods with app=api of namespace default
            to fix: if both must match, put podSelector and namespaceSelector into one entry of the list
            code: HINT_PEER_OR
        "#]],
    );
}

#[test]
fn a_table_without_room() {
    let mut world = World::new(&base());
    let drop = |reason: DropReason| DropExample {
        reason: reason as u8,
        ingress: false,
        protocol: proto::TCP,
        src: "10.1.0.9:4000".parse().unwrap(),
        dst: "10.96.0.10:80".parse().unwrap(),
        ifindex: 11,
        service_id: 1,
        at: 0,
        group: 0,
        judgement: 0,
    };
    world.names.drops = vec![drop(DropReason::NoEndpoints), drop(DropReason::ConntrackFull)];
    check_in(
        &world,
        TO_WEB,
        Some(Code::TableFull),
        expect![[r#"
            DELIVERED: default/client to svc:default/web:80/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   no policy selects default/client in egress
              5  ok  ingress policy  no policy selects default/web-1 in ingress
              6  ok  socket          a process listens on 0.0.0.0:8080
              7  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
            because: 0 s ago a flow from 10.1.0.9:4000 to 10.96.0.10:80 was dropped on this node: CONNTRACK_FULL
            to fix: check `lbctl maps`; raise --ct-entries
            code: TABLE_FULL
        "#]],
    );
}

#[test]
fn a_node_that_does_not_forward() {
    let far = pod("default/far", "10.1.1.4", "n2", "app: far", true);
    let mut world = World::new(&format!("{}{far}", base()));
    world.forwards = [false, true];
    check_in(
        &world,
        ("client", "far:8080"),
        Some(Code::HostSetup),
        expect![[r#"
            CANNOT TELL: default/client to default/far:8080/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ?   route           net.ipv4.ip_forward is 0: the node forwards no packets unless a device overrides it
              3  ok  egress policy   no policy selects default/client in egress
              4  ok  ingress policy  the cluster has no policies
            because: net.ipv4.ip_forward is 0: the kernel does not forward IPv4 packets between devices, and so not between a Pod and another node, unless the receiving device overrides the setting
            to fix: run `sysctl -w net.ipv4.ip_forward=1`, add it to /etc/sysctl.d, and find out what set it to 0
            assumed: a process in default/far listens on port 8080
            code: HOST_SETUP
        "#]],
    );
    // On one node a bridge may do without.
    let near = world.trace(TO_WEB.0, TO_WEB.1);
    assert_eq!(near.code(), None, "{near:?}");
}

#[test]
fn stale_flow() {
    let mut world = World::new(&base());
    let [dialed, backend] = ["10.96.0.10:80", "10.1.1.4:8080"].map(|at| at.parse().unwrap());
    world.stale = vec![Stale { dialed, backend }];
    check_in(
        &world,
        TO_WEB,
        Some(Code::StaleFlow),
        expect![[r#"
            DELIVERED: default/client to svc:default/web:80/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  service         default/web:80 10.96.0.10:80/TCP: 1 backend
              3  ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4  ok  egress policy   no policy selects default/client in egress
              5  ok  ingress policy  no policy selects default/web-1 in ingress
              6  ok  socket          a process listens on 0.0.0.0:8080
              7  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
            because: an open flow to 10.96.0.10:80 is pinned to 10.1.1.4:8080, which was removed: its next packet resets a TCP connection; other protocols get a new backend
            to fix: reconnect the client
            code: STALE_FLOW
        "#]],
    );
}

#[test]
fn another_node_decides() {
    let more = [
        pod("default/web-2", "10.1.1.3", "n2", "app: web", true),
        policy("default/deny-all", "{podSelector: {matchLabels: {app: web}}}"),
    ]
    .concat();
    check(
        &more,
        ("client", "default/web-2:8080"),
        Some(Code::OtherNode),
        expect![[r#"
            CANNOT TELL: default/client to default/web-2:8080/TCP: n2 decides
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  egress policy   no policy selects default/client in egress
              3  ?   ingress policy  evaluated on n2, where default/web-2 runs; 1 policy selects it
            assumed:
              ingress policy of default/web-2: run `lbctl explain` on n2
              a process in default/web-2 listens on port 8080
            code: OTHER_NODE
        "#]],
    );
    check(
        &more,
        ("default/web-2", "default/client:8080"),
        Some(Code::OtherNode),
        expect![[r#"
            CANNOT TELL: default/web-2 to default/client:8080/TCP: n2 decides
              1  ok  source          Pod default/web-2 10.1.1.3 on n2
              2  ?   egress policy   evaluated on n2, where default/web-2 runs; no policy selects it
              3  ok  ingress policy  no policy selects default/client in ingress
              4  ok  socket          a process listens on 0.0.0.0:8080
            assumed: egress policy of default/web-2: run `lbctl explain` on n2
            code: OTHER_NODE
        "#]],
    );
    // One backend here, denied, and one elsewhere.
    check(
        &more,
        TO_WEB,
        Some(Code::DefaultDeny),
        expect![[r#"
            STOPPED: default/client to svc:default/web:80/TCP (for 1 of 2 backends): default/deny-all isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              1   ok    source          Pod default/client 10.1.0.2 on this node
              2   ok    service         default/web:80 10.96.0.10:80/TCP: 2 backends, random
              3   ok    backend         10.1.0.3:8080 default/web-1 on n1, ready
              4   ok    egress policy   no policy selects default/client in egress
              5   STOP  ingress policy  default/deny-all isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client
              6   ok    socket          a process listens on 0.0.0.0:8080
              7   ok    backend         10.1.1.3:8080 default/web-2 on n2, ready
              8   ok    egress policy   no policy selects default/client in egress
              9   ?     ingress policy  evaluated on n2, where default/web-2 runs; 1 policy selects it
              10  ok    reply           the source of replies is translated from the backend back to 10.96.0.10:80; policies do not evaluate replies
            because: default/deny-all has no rule for ingress
            to fix: add a rule that allows 8080/TCP from default/client to a policy that selects default/web-1
            assumed:
              ingress policy of default/web-2: run `lbctl explain` on n2
              a process in default/web-2 listens on port 8080
            code: DEFAULT_DENY
        "#]],
    );
}

#[test]
fn hosts_and_oneself() {
    let host = pod("default/agent", "10.0.0.2", "n2", "app: agent", true)
        .replace("spec: {nodeName", "spec: {hostNetwork: true, nodeName");
    let more = [
        host,
        service("default/agent", "10.96.0.13", "port: 80, targetPort: 8080", "app: agent", ""),
        policy("default/deny-all", "{podSelector: {}}"),
    ]
    .concat();
    check(
        &more,
        ("client", "svc:agent:80"),
        None,
        expect![[r#"
            DELIVERED: default/client to svc:default/agent:80/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  service         default/agent:80 10.96.0.13:80/TCP: 1 backend
              3  ok  backend         10.0.0.2:8080 default/agent on n2, ready
              4  ok  egress policy   no policy selects default/client in egress
              5  ok  ingress policy  NetworkPolicies never apply to a node or to a Pod on its host network
              6  ok  reply           the source of replies is translated from 10.0.0.2:8080 back to 10.96.0.13:80; policies do not evaluate replies
            assumed: a process in default/agent listens on port 8080
        "#]],
    );
    check(
        &more,
        ("client", "node/n2:10250"),
        None,
        expect![[r#"
            DELIVERED: default/client to node/n2:10250/TCP
              1  ok  source          Pod default/client 10.1.0.2 on this node
              2  ok  egress policy   no policy selects default/client in egress
              3  ok  ingress policy  NetworkPolicies never apply to a node or to a Pod on its host network
            assumed: a process of node n2 listens on port 10250
        "#]],
    );
    // Through no Service, and without leaving.
    check(
        &more,
        ("web-1", "web-1:8080"),
        None,
        expect![[r#"
            DELIVERED: default/web-1 to default/web-1:8080/TCP
              1  ok  source    Pod default/web-1 10.1.0.3 on this node
              2  ok  loopback  traffic from default/web-1 to itself never leaves the Pod
              3  ok  socket    a process listens on 0.0.0.0:8080
        "#]],
    );
}

#[test]
fn without_policies_no_other_node_has_anything_to_say() {
    let more = pod("default/web-2", "10.1.1.3", "n2", "app: web", true);
    check(
        &more,
        ("default/web-2", "svc:web:80"),
        None,
        expect![[r#"
            DELIVERED: default/web-2 to svc:default/web:80/TCP
              1   ok  source          Pod default/web-2 10.1.1.3 on n2
              2   ok  service         default/web:80 10.96.0.10:80/TCP: 2 backends, random
              3   ok  backend         10.1.0.3:8080 default/web-1 on n1, ready
              4   ok  egress policy   the cluster has no policies
              5   ok  ingress policy  no policy selects default/web-1 in ingress
              6   ok  socket          a process listens on 0.0.0.0:8080
              7   ok  backend         10.1.1.3:8080 default/web-2 on n2, ready
              8   ok  egress policy   the cluster has no policies
              9   ok  ingress policy  the cluster has no policies
              10  ok  reply           the source of replies is translated from the backend back to 10.96.0.10:80; policies do not evaluate replies
            assumed:
              the maps of n2, where the Service is translated, match those of this node
              a process in default/web-2 listens on port 8080
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
              6  ok  socket          a process listens on 0.0.0.0:8080
              7  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
            assumed: shadow policies are not enforced; if they were, default/try default-deny would deny it
        "#]],
    );
}

#[test]
fn without_an_agent() {
    let more = policy("default/deny-all", "{podSelector: {matchLabels: {app: web}}}");
    let world = World::new(&format!("{}{more}", base()));
    let trace = world.trace_alone("client", "svc:web:80");
    assert_eq!(trace.outcome(), Outcome::Stopped);
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

#[test]
fn the_document_has_stable_keys() {
    let more = policy(
        "default/access",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}",
    );
    let trace = World::new(&format!("{}{more}", base())).trace("client", "svc:web:80");
    let explanation = render(&trace);
    let text = serde_json::to_string_pretty(&explanation).unwrap();
    expect![[r#"
        {
          "outcome": "stopped",
          "verdict": "default/client to svc:default/web:80/TCP: default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client",
          "steps": [
            {
              "state": "ok",
              "what": "source",
              "text": "Pod default/client 10.1.0.2 on this node"
            },
            {
              "state": "ok",
              "what": "service",
              "text": "default/web:80 10.96.0.10:80/TCP: 1 backend"
            },
            {
              "state": "ok",
              "what": "backend",
              "text": "10.1.0.3:8080 default/web-1 on n1, ready"
            },
            {
              "state": "ok",
              "what": "egress policy",
              "text": "no policy selects default/client in egress"
            },
            {
              "state": "stop",
              "what": "ingress policy",
              "text": "default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client"
            },
            {
              "state": "ok",
              "what": "socket",
              "text": "a process listens on 0.0.0.0:8080"
            }
          ],
          "code": "DENY_INGRESS_PEER",
          "object": "NetworkPolicy default/access",
          "path": "spec.ingress[0].from[0]",
          "headline": "default/access isolates default/web-1 in ingress, and no rule allows 8080/TCP from default/client",
          "because": [
            "default/access ingress[0].from[0] wants app=api, but default/client has app=client"
          ],
          "toFix": [
            "add the labels app=api to default/client, or change the rule"
          ],
          "nearest": {
            "policy": "default/access",
            "path": "ingress[0].from[0]",
            "wants": "app=api",
            "has": "default/client has app=client"
          },
          "evidence": [
            "group 2: no rule applies"
          ],
          "also": [],
          "assumed": []
        }"#]].assert_eq(&text);
    assert_eq!(explanation.outcome.exit(), 3);
}

#[test]
fn every_code_is_documented_once() {
    let documented = include_str!("../../../../docs/src/explain.md");
    let mut names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    for name in &names {
        assert_eq!(documented.matches(&format!("| `{name}` |")).count(), 1, "{name}");
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Code::ALL.len());
}
