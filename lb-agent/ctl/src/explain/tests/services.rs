//! The wording of what is found at a Service.

use expect_test::expect;

use super::world::{World, pod, service, text};
use super::{TO_WEB, base, check, check_in};
use crate::explain::Stale;
use crate::explain::code::Code;
use crate::explain::trace::{Hop, NoEndpoints, TraceOutcome, Unserved, Why};
use crate::unready::UnreadyPod;
use lb_core::cluster::Name;

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
            because: Pod default/api-1 (10.1.0.7:80) is not-ready
            to fix: check the readiness probes and the Events of Pod default/api-1: `kubectl -n default describe pod api-1`
            code: NO_ENDPOINTS_NOT_READY
        "#]],
    );
}

#[test]
fn the_pod_that_is_not_ready_is_named_with_its_reason() {
    let more = [
        base(),
        pod("default/api-1", "10.1.0.7", "n1", "app: api", false),
        pod("default/api-2", "10.1.0.8", "n1", "app: api", false),
        service("default/api", "10.96.0.11", "port: 80", "app: api", ""),
    ];
    let mut trace = World::new(&more.concat()).trace("client", "svc:api:80");
    let mut causes = trace.hops.iter_mut().filter_map(|hop| match hop {
        Hop::Unserved(Unserved { why: Why::NoEndpoints { cause, .. }, .. }) => Some(cause),
        _ => None,
    });
    let Some(NoEndpoints::NotReady { pods, .. }) = causes.next() else { panic!("{more:?}") };
    pods.push(UnreadyPod {
        pod: Name::parse("default/api-2"),
        container: "api".to_owned(),
        reason: "CrashLoopBackOff".to_owned(),
        message: "it last ended with exit status 1".to_owned(),
        seconds: Some(300),
    });
    drop(causes);
    assert_eq!(trace.code(), Some(Code::NoEndpointsNotReady));
    expect![[r#"
        STOPPED: default/client to svc:default/api:80/TCP: default/api has 2 endpoints, 0 ready
          1  ok    source   Pod default/client 10.1.0.2 on this node
          2  STOP  service  default/api:80: default/api has 2 endpoints, 0 ready
        because: Pod default/api-1 (10.1.0.7:80) is not-ready; Pod default/api-2 (10.1.0.8:80) is not-ready: container api: CrashLoopBackOff for 5m (it last ended with exit status 1)
        to fix: find out why container api of Pod default/api-2 ends: `kubectl -n default logs api-2 -c api --previous`
        code: NO_ENDPOINTS_NOT_READY
    "#]]
    .assert_eq(&text(&trace));
}

#[test]
fn pods_without_an_address_are_named_with_their_reason() {
    let late = pod("default/api-1", "10.1.0.7", "", "app: api", false)
        .replace(", podIP: 10.1.0.7, podIPs: [{ip: 10.1.0.7}]", "")
        .replace("Running", "Pending");
    let more = [base(), late, service("default/api", "10.96.0.11", "port: 80", "app: api", "")];
    let mut trace = World::new(&more.concat()).trace("client", "svc:api:80");
    assert_eq!(trace.code(), Some(Code::NoEndpointsAddress));
    expect![[r#"
        STOPPED: default/client to svc:default/api:80/TCP: default/api selects 1 Pod, which has no address yet
          1  ok    source   Pod default/client 10.1.0.2 on this node
          2  STOP  service  default/api:80: default/api selects 1 Pod, which has no address yet
        because: a Pod gets its address when the CNI plugin sets up its network, once it is scheduled and starts: Pod default/api-1
        to fix: check the Events of Pod default/api-1: `kubectl -n default describe pod api-1`
        code: NO_ENDPOINTS_ADDRESS
    "#]].assert_eq(&text(&trace));
    let cause = trace.hops.iter_mut().find_map(|hop| match hop {
        Hop::Unserved(Unserved { why: Why::NoEndpoints { cause, .. }, .. }) => Some(cause),
        _ => None,
    });
    let Some(NoEndpoints::NoAddress { pods, .. }) = cause else { panic!("{more:?}") };
    pods.push(UnreadyPod {
        pod: Name::parse("default/api-1"),
        container: String::new(),
        reason: "Unschedulable".to_owned(),
        message: "0/3 nodes are available: 3 Insufficient memory.".to_owned(),
        seconds: Some(300),
    });
    expect![[r#"
        STOPPED: default/client to svc:default/api:80/TCP: default/api selects 1 Pod, which has no address yet
          1  ok    source   Pod default/client 10.1.0.2 on this node
          2  STOP  service  default/api:80: default/api selects 1 Pod, which has no address yet
        because: Pod default/api-1: Unschedulable for 5m (0/3 nodes are available: 3 Insufficient memory)
        to fix: check the Events of Pod default/api-1: `kubectl -n default describe pod api-1`
        code: NO_ENDPOINTS_ADDRESS
    "#]].assert_eq(&text(&trace));
}

#[test]
fn a_source_without_an_address_sends_nothing() {
    let late = pod("default/late", "10.1.0.7", "", "app: late", false)
        .replace(", podIP: 10.1.0.7, podIPs: [{ip: 10.1.0.7}]", "")
        .replace("Running", "Pending");
    let trace = World::new(&[base(), late].concat()).trace("late", "svc:web:80");
    assert_eq!(trace.outcome(), TraceOutcome::CannotTell);
    let said = text(&trace);
    assert!(said.contains("default/late has no address yet, and sends nothing"), "{said}");
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
            because: no container of them declares a port with the name in targetPort
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
              6  ok  path            goes past the host's IP stack and netfilter to default/web-1
              7  ok  socket          a process listens on 0.0.0.0:8080
              8  ok  reply           the source of replies is translated from 10.1.0.3:8080 back to 10.96.0.10:80; policies do not evaluate replies
            because: an open flow to 10.96.0.10:80 is pinned to 10.1.1.4:8080, which was removed: its next packet resets a TCP connection; other protocols get a new backend
            to fix: reconnect the client
            code: STALE_FLOW
        "#]],
    );
}
