//! What `lbctl` shows of Services that use every field.

use std::borrow::Cow;

use expect_test::{Expect, expect};
use lb_common::endpoint::PodEntry;
use lb_common::flow::proto;
use lb_common::service::{Affinity, AffinityKey, Frontend, FrontendFlags, state};

use super::sample::{addr, backend, frontend};
use crate::columns::{self, Format};
use crate::fields::{Fields, Ticks};
use crate::frontend::FrontendSlots;
use crate::selection::Selection;
use crate::snapshot::{FlowCount, TableSnapshot};
use crate::view::View;
use crate::{affinity, pods, services, tree};
use lb_core::names::{
    BackendName, EndpointConditions, ExternalName, ExternalScope, LAYOUT, Names, Place, PodName,
    RejectedName, ServiceName,
};

const TICKS: Ticks = Ticks { now: 5_000, hz: 250 };
const EDGE: u32 = 1;
const API: u32 = 2;

/// Service shop/edge: of a load balancer, traffic policy Local, affinity, Maglev, source ranges. Its backends have the
/// slots `1 1 2` for clients in the cluster and `1 1` for those outside; 3 drains.
fn edge(at: &str, flags: FrontendFlags, maglev_n: u32) -> FrontendSlots {
    let is_local = flags.contains(FrontendFlags::EXTERNAL_LOCAL);
    let (local_base, local_n) = if is_local { (12, 2) } else { (0, 0) };
    let plain = frontend(at, proto::TCP, EDGE, &[2, 1, 1]);
    let value = Frontend {
        flags,
        base: 11,
        local_base,
        local_n,
        maglev_n,
        affinity_secs: 10,
        ..plain.frontend
    };
    let local_ids = if is_local { vec![1, 1] } else { Vec::new() };
    FrontendSlots { frontend: value, local_ids, ..plain }
}

/// Service shop/api: internal traffic policy Local, least connections; on this node in IPv4 only.
fn api(at: &str, id: u32, on_this_node: bool) -> FrontendSlots {
    let ids: &[u32] = if on_this_node { &[4] } else { &[] };
    let plain = frontend(at, proto::TCP, id, ids);
    let base = if on_this_node { 20 } else { 0 };
    let policy = FrontendFlags::ELSEWHERE.when(!on_this_node);
    let value = Frontend {
        flags: FrontendFlags::LEAST_CONNECTIONS | policy,
        base,
        local_base: base,
        local_n: plain.frontend.n,
        ..plain.frontend
    };
    FrontendSlots { frontend: value, local_ids: ids.to_vec(), ..plain }
}

fn client(ip: &str, service_id: u32, backend_id: u32, secs_ago: u32) -> (AffinityKey, Affinity) {
    let last = TICKS.now - u64::from(secs_ago * TICKS.hz);
    let key = AffinityKey { client: addr(ip), service_id };
    (key, Affinity::new(backend_id, 1, last))
}

pub(super) fn snapshot() -> TableSnapshot {
    let outside = FrontendFlags::EXTERNAL | FrontendFlags::EXTERNAL_LOCAL;
    let ranges = ["10.0.0.0/8", "192.0.2.0/24"].map(|range| range.parse().unwrap());
    TableSnapshot {
        frontends: vec![
            edge("10.96.0.20:80", FrontendFlags::NONE, 0),
            edge("192.0.2.1:30080", outside, 1021),
            edge("198.51.100.1:80", outside | FrontendFlags::SOURCE_RANGES, 1021),
            edge("203.0.113.1:80", outside, 1021),
            edge(
                "127.0.0.1:30080",
                FrontendFlags::SOCKET_ONLY | FrontendFlags::EXTERNAL_LOCAL,
                1021,
            ),
            api("10.96.0.30:443", API, true),
            api("[fd96::30]:443", API + 1, false),
        ],
        backends: [
            (1, backend("10.1.0.3:8080", proto::TCP, state::ACTIVE)),
            (2, backend("10.1.1.3:8080", proto::TCP, state::ACTIVE)),
            (3, backend("10.1.1.4:8080", proto::TCP, state::DRAINING)),
            (4, backend("10.1.0.9:6443", proto::TCP, state::ACTIVE)),
        ]
        .into(),
        flows: [(1, FlowCount { active: 3, inactive: 1 })].into(),
        fields: Fields {
            clients: vec![
                client("203.0.113.5", EDGE, 1, 4),
                client("10.1.0.3", EDGE, 2, 10),
                client("203.0.113.6", EDGE, 1, 11),
                client("203.0.113.7", EDGE, 3, 0),
                client("203.0.113.8", API, 4, 0),
            ],
            source_ranges: [(EDGE, ranges.to_vec())].into(),
            loads: [(4, 7)].into(),
            ticks: TICKS,
        },
        ..TableSnapshot::default()
    }
}

pub(super) fn names() -> Names<'static> {
    let text = Cow::Borrowed;
    let backend = |id, service_id, pod, place| BackendName {
        id,
        service_id,
        pod: text(pod),
        place,
        ..BackendName::default()
    };
    let external = |at: &str, scope| ExternalName { at: at.parse().unwrap(), scope };
    let rejected = |service_id, endpoint: &str, pod, conditions, why| RejectedName {
        service_id,
        endpoint: endpoint.parse().unwrap(),
        pod: text(pod),
        place: 2,
        conditions,
        why: text(why),
    };
    let service = |id, name, port, at: &str| ServiceName {
        id,
        namespace: text("shop"),
        name: text(name),
        port,
        frontends: vec![at.parse().unwrap()],
        ..ServiceName::default()
    };
    Names {
        layout: LAYOUT,
        node: text("n1"),
        services: vec![
            ServiceName {
                kind: text("LoadBalancer"),
                externals: vec![
                    external("198.51.100.1:80", ExternalScope::LoadBalancer),
                    external("203.0.113.1:80", ExternalScope::ExternalIp),
                    external("192.0.2.1:30080", ExternalScope::NodePort),
                    external("192.0.2.2:30080", ExternalScope::NodePort),
                    external("127.0.0.1:30080", ExternalScope::Localhost),
                ],
                endpoints: 4,
                ready: 2,
                ..service(EDGE, "edge", 80, "10.96.0.20:80")
            },
            service(API, "api", 443, "10.96.0.30:443"),
            service(API + 1, "api", 443, "[fd96::30]:443"),
        ],
        backends: vec![
            backend(1, EDGE, "shop/edge-1", 1),
            backend(2, EDGE, "shop/edge-2", 2),
            backend(3, EDGE, "shop/edge-3", 2),
            backend(4, API, "shop/api-1", 1),
        ],
        places: vec![
            Place { node: text("n1"), zone: text("a") },
            Place { node: text("n2"), zone: text("b") },
        ],
        rejected: vec![
            rejected(
                EDGE,
                "10.1.1.4:8080",
                "shop/edge-3",
                EndpointConditions::Serving,
                "terminating, others are ready",
            ),
            rejected(
                EDGE,
                "10.1.1.5:8080",
                "shop/edge-4",
                EndpointConditions::NotReady,
                "not ready",
            ),
            rejected(API + 1, "[fd01::9]:6443", "", EndpointConditions::Ready, "on another node"),
        ],
        ..Names::default()
    }
}

fn check_tree(names: &Names<'static>, want: Expect) {
    let snapshot = snapshot();
    let view = View::new(&snapshot, names, 0);
    let branches = tree::branches(&view, &services::rows(&view, &Selection::default()));
    let mut out = Vec::new();
    tree::print(&mut out, &branches, true).unwrap();
    want.assert_eq(std::str::from_utf8(&out).unwrap());
}

#[test]
fn tree_shows_every_field_and_every_endpoint() {
    check_tree(
        &names(),
        expect![[r#"
            Prot LocalAddress:Port Scheduler Service Scope Flags
              -> RemoteAddress:Port  Forward  Weight  ActiveConn  InActConn  Pod          Node  Zone  State      List           Why-Not
            TCP  10.96.0.30:443 lc shop/api:443 ClusterIP policy=Local
              -> 10.1.0.9:6443       Masq     1       0           0          shop/api-1   n1    a     ready      local
            TCP  [fd96::30]:443 lc shop/api:443 ClusterIP policy=Local new=dropped
              -> [fd01::9]:6443      -        0       0           0          <none>       n2    b     ready      <none>         on another node
            TCP  10.96.0.20:80 random shop/edge:80 ClusterIP policy=Cluster affinity=10s clients=2
              -> 10.1.0.3:8080       Masq     2       3           1          shop/edge-1  n1    a     ready      cluster
              -> 10.1.1.3:8080       Masq     1       0           0          shop/edge-2  n2    b     ready      cluster
              -> 10.1.1.4:8080       Masq     0       0           0          shop/edge-3  n2    b     draining   <none>         terminating, others are ready
              -> 10.1.1.5:8080       -        0       0           0          shop/edge-4  n2    b     not-ready  <none>         not ready
            TCP  127.0.0.1:30080 mh shop/edge:80 Localhost policy=Cluster affinity=10s clients=2
              -> 10.1.0.3:8080       Masq     2       3           1          shop/edge-1  n1    a     ready      cluster
              -> 10.1.1.3:8080       Masq     1       0           0          shop/edge-2  n2    b     ready      cluster
              -> 10.1.1.4:8080       Masq     0       0           0          shop/edge-3  n2    b     draining   <none>         terminating, others are ready
              -> 10.1.1.5:8080       -        0       0           0          shop/edge-4  n2    b     not-ready  <none>         not ready
            TCP  192.0.2.1:30080 mh shop/edge:80 NodePort policy=Local affinity=10s clients=2
              -> 10.1.0.3:8080       Masq     2       3           1          shop/edge-1  n1    a     ready      cluster,local
              -> 10.1.1.3:8080       Masq     1       0           0          shop/edge-2  n2    b     ready      cluster
              -> 10.1.1.4:8080       Masq     0       0           0          shop/edge-3  n2    b     draining   <none>         terminating, others are ready
              -> 10.1.1.5:8080       -        0       0           0          shop/edge-4  n2    b     not-ready  <none>         not ready
            TCP  198.51.100.1:80 mh shop/edge:80 LoadBalancer policy=Local affinity=10s clients=2 sources=10.0.0.0/8,192.0.2.0/24
              -> 10.1.0.3:8080       Masq     2       3           1          shop/edge-1  n1    a     ready      cluster,local
              -> 10.1.1.3:8080       Masq     1       0           0          shop/edge-2  n2    b     ready      cluster
              -> 10.1.1.4:8080       Masq     0       0           0          shop/edge-3  n2    b     draining   <none>         terminating, others are ready
              -> 10.1.1.5:8080       -        0       0           0          shop/edge-4  n2    b     not-ready  <none>         not ready
            TCP  203.0.113.1:80 mh shop/edge:80 ExternalIP policy=Local affinity=10s clients=2
              -> 10.1.0.3:8080       Masq     2       3           1          shop/edge-1  n1    a     ready      cluster,local
              -> 10.1.1.3:8080       Masq     1       0           0          shop/edge-2  n2    b     ready      cluster
              -> 10.1.1.4:8080       Masq     0       0           0          shop/edge-3  n2    b     draining   <none>         terminating, others are ready
              -> 10.1.1.5:8080       -        0       0           0          shop/edge-4  n2    b     not-ready  <none>         not ready
        "#]],
    );
}

#[test]
fn tree_shows_what_the_maps_tell_without_names() {
    check_tree(
        &Names::default(),
        expect![[r#"
            Prot LocalAddress:Port Scheduler Service Scope Flags
              -> RemoteAddress:Port  Forward  Weight  ActiveConn  InActConn  Pod     Node    Zone    State   List           Why-Not
            TCP  10.96.0.20:80 random #1 ClusterIP policy=Cluster affinity=10s clients=2
              -> 10.1.0.3:8080       Masq     2       3           1          <none>  <none>  <none>  active  cluster
              -> 10.1.1.3:8080       Masq     1       0           0          <none>  <none>  <none>  active  cluster
            TCP  127.0.0.1:30080 mh #1 Localhost policy=Cluster affinity=10s clients=2
              -> 10.1.0.3:8080       Masq     2       3           1          <none>  <none>  <none>  active  cluster
              -> 10.1.1.3:8080       Masq     1       0           0          <none>  <none>  <none>  active  cluster
            TCP  192.0.2.1:30080 mh #1 External policy=Local affinity=10s clients=2
              -> 10.1.0.3:8080       Masq     2       3           1          <none>  <none>  <none>  active  cluster,local
              -> 10.1.1.3:8080       Masq     1       0           0          <none>  <none>  <none>  active  cluster
            TCP  198.51.100.1:80 mh #1 External policy=Local affinity=10s clients=2 sources=10.0.0.0/8,192.0.2.0/24
              -> 10.1.0.3:8080       Masq     2       3           1          <none>  <none>  <none>  active  cluster,local
              -> 10.1.1.3:8080       Masq     1       0           0          <none>  <none>  <none>  active  cluster
            TCP  203.0.113.1:80 mh #1 External policy=Local affinity=10s clients=2
              -> 10.1.0.3:8080       Masq     2       3           1          <none>  <none>  <none>  active  cluster,local
              -> 10.1.1.3:8080       Masq     1       0           0          <none>  <none>  <none>  active  cluster
            TCP  10.96.0.30:443 lc #2 ClusterIP policy=Local
              -> 10.1.0.9:6443       Masq     1       0           0          <none>  <none>  <none>  active  local
            TCP  [fd96::30]:443 lc #3 ClusterIP policy=Local new=dropped
        "#]],
    );
}

#[test]
fn tree_as_a_document_has_the_same() {
    let (snapshot, names) = (snapshot(), names());
    let view = View::new(&snapshot, &names, 0);
    let branches = tree::branches(&view, &services::rows(&view, &Selection::default()));
    let branch = branches.iter().find(|branch| branch.scope == "LoadBalancer").unwrap();
    let mut out = Vec::new();
    columns::document(&mut out, branch, Format::Yaml).unwrap();
    expect![[r#"
        protocol: TCP
        frontend: 198.51.100.1:80
        scheduler: mh
        algorithm: maglev
        service: shop/edge:80
        scope: LoadBalancer
        policy: Local
        affinitySecs: 10
        affinityClients: 2
        sourceRanges:
        - 10.0.0.0/8
        - 192.0.2.0/24
        unserved: null
        backends:
        - weight: 2
          lists:
          - cluster
          - local
          whyNot: ""
          address: 10.1.0.3:8080
          protocol: TCP
          pod: shop/edge-1
          node: n1
          zone: a
          state: ready
          service: shop/edge:80
          frontends:
          - 10.96.0.20:80
          - 127.0.0.1:30080
          - 192.0.2.1:30080
          - 198.51.100.1:80
          - 203.0.113.1:80
          active: 3
          inactive: 1
          load: null
          id: 1
          generation: 1
          ifindex: 0
        - weight: 1
          lists:
          - cluster
          whyNot: ""
          address: 10.1.1.3:8080
          protocol: TCP
          pod: shop/edge-2
          node: n2
          zone: b
          state: ready
          service: shop/edge:80
          frontends:
          - 10.96.0.20:80
          - 127.0.0.1:30080
          - 192.0.2.1:30080
          - 198.51.100.1:80
          - 203.0.113.1:80
          active: 0
          inactive: 0
          load: null
          id: 2
          generation: 1
          ifindex: 0
        - weight: 0
          lists: []
          whyNot: terminating, others are ready
          address: 10.1.1.4:8080
          protocol: TCP
          pod: shop/edge-3
          node: n2
          zone: b
          state: draining
          service: shop/edge:80
          frontends: []
          active: 0
          inactive: 0
          load: null
          id: 3
          generation: 1
          ifindex: 0
        rejected:
        - address: 10.1.1.5:8080
          pod: shop/edge-4
          node: n2
          zone: b
          state: not-ready
          whyNot: not ready
    "#]]
    .assert_eq(std::str::from_utf8(&out).unwrap());
}

#[test]
fn services_show_their_fields_when_wide() {
    super::check_on(
        &snapshot(),
        &names(),
        Format::Wide,
        |view: &View<'_>| services::rows(view, &Selection::default()),
        expect![[r#"
            NAMESPACE  NAME  PORT     TYPE          FRONTENDS                                                                     READY  LOCAL  FLOWS  AGE     INTERNAL  EXTERNAL  ALGORITHM          AFFINITY  ID  ISSUE
            shop       api   443/TCP  ClusterIP     10.96.0.30:443                                                                0/0    1      0      <none>  Local     <none>    least-connections  <none>    2
            shop       api   443/TCP  ClusterIP     [fd96::30]:443                                                                0/0    0      0      <none>  Local     <none>    least-connections  <none>    3   no usable endpoint on this node (traffic policy), packets dropped at [fd96::30]:443
            shop       edge  80/TCP   LoadBalancer  10.96.0.20:80,127.0.0.1:30080,192.0.2.1:30080,198.51.100.1:80,203.0.113.1:80  2/4    1      4      <none>  Cluster   Local     maglev             10s       1   missing in the maps: 192.0.2.2:30080
        "#]],
    );
}

#[test]
fn rejected_endpoints_lead_to_their_service() {
    let (snapshot, names) = (snapshot(), names());
    let view = View::new(&snapshot, &names, 0);
    let of = |set: &dyn Fn(&mut Selection)| {
        let rows = services::rows(&view, &super::select(set));
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(of(&|s| s.pod = Some("shop/edge-4".to_owned())), [EDGE]);
    assert_eq!(of(&|s| s.ip = Some("fd01::9".parse().unwrap())), [API + 1]);
}

#[test]
fn pods_that_are_not_ready_are_named() {
    let (mut snapshot, mut names) = (snapshot(), names());
    snapshot.pods.insert(40, PodEntry::ZERO);
    let (namespace, name) = (Cow::Borrowed("shop"), Cow::Borrowed("edge-4"));
    names.pods.push(PodName { ifindex: 40, namespace, name, ..PodName::default() });
    let edge = |names: &Names<'static>| {
        let rows = services::rows(&View::new(&snapshot, names, 0), &Selection::default());
        rows.into_iter().find(|row| row.id == EDGE).unwrap()
    };
    assert!(edge(&names).not_ready.is_empty(), "others are ready");
    let pods = pods::rows(&View::new(&snapshot, &names, 0), &Selection::default());
    let pod = pods.iter().find(|row| row.name == "edge-4").unwrap();
    assert_eq!(pod.unready_for, ["shop/edge:80"]);
    names.services[0].ready = 0;
    let row = edge(&names);
    assert_eq!(row.not_ready, ["shop/edge-4"]);
    assert_eq!(row.issues.last().unwrap(), "not ready: shop/edge-4");
}

#[test]
fn affinity_shows_which_client_returns_to_which_backend() {
    let show = |all: bool, output, want| {
        super::check_on(
            &snapshot(),
            &names(),
            output,
            |view: &View<'_>| affinity::rows(view, &Selection::default(), all),
            want,
        );
    };
    show(
        false,
        Format::Table,
        expect![[r#"
        CLIENT       SERVICE       BACKEND           AGE  EXPIRES
        203.0.113.5  shop/edge:80  shop/edge-1:8080  4s   6s
        shop/edge-1  shop/edge:80  shop/edge-2:8080  10s  0s
    "#]],
    );
    show(
        true,
        Format::Wide,
        expect![[r#"
        CLIENT       SERVICE       BACKEND           AGE  EXPIRES  STATE    CLIENT-ADDRESS  BACKEND-ADDRESS
        203.0.113.8  shop/api:443  shop/api-1:6443   0s   0s       EXPIRED  203.0.113.8     10.1.0.9:6443
        203.0.113.5  shop/edge:80  shop/edge-1:8080  4s   6s       VALID    203.0.113.5     10.1.0.3:8080
        203.0.113.6  shop/edge:80  shop/edge-1:8080  11s  0s       EXPIRED  203.0.113.6     10.1.0.3:8080
        203.0.113.7  shop/edge:80  shop/edge-3:8080  0s   10s      GONE     203.0.113.7     10.1.1.4:8080
        shop/edge-1  shop/edge:80  shop/edge-2:8080  10s  0s       VALID    10.1.0.3        10.1.1.3:8080
    "#]],
    );
    let (snapshot, names) = (snapshot(), names());
    let view = View::new(&snapshot, &names, 0);
    let of = |set: &dyn Fn(&mut Selection)| affinity::rows(&view, &super::select(set), true).len();
    assert_eq!(of(&|s| s.service = Some("shop/edge".to_owned())), 4);
    assert_eq!(of(&|s| s.ip = Some("203.0.113.5".parse().unwrap())), 1, "a client");
    assert_eq!(of(&|s| s.ip = Some("10.1.1.3".parse().unwrap())), 1, "a backend");
    assert_eq!(of(&|s| s.pod = Some("shop/edge-1".to_owned())), 3, "client once, backend twice");
    assert_eq!(of(&|s| s.namespace = Some("other".to_owned())), 0);
}
