//! What each command prints for one small node, with names and without.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use expect_test::{Expect, expect};
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtEntry, CtKey, bits};
use lb_common::endpoint::Pod;
use lb_common::flow::{proto, tcp};
use lb_common::limits::CT;
use lb_common::service::{Backend, Frontend, FrontendKey, state};
use lb_common::verdict::{Counter, DropReason};

use crate::bpf::read::Counts;
use crate::ctl::columns::{self, Format, Row, Style};
use crate::ctl::ct::By;
use crate::ctl::selection::Selection;
use crate::ctl::snapshot::{CtFilter, FlowCount, FrontendSlots, MapUse, Now, Snapshot};
use crate::ctl::view::View;
use crate::ctl::{backends, ct, drops, maps, pods, services, status, tree};
use crate::names::{
    Agent, BackendName, Conditions, DropExample, IssueLine, LAYOUT, Names, Place, PodName,
    ServiceName, State, Subsystem,
};

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().unwrap())
}

fn frontend(at: &str, protocol: u8, service_id: u32, backend_ids: &[u32]) -> FrontendSlots {
    let at: SocketAddr = at.parse().unwrap();
    let n = backend_ids.len() as u32;
    FrontendSlots {
        key: FrontendKey::new(at.ip().into(), Be16::new(at.port()), protocol),
        frontend: Frontend { service_id, n, ..Frontend::ZERO },
        backend_ids: backend_ids.to_vec(),
    }
}

fn backend(at: &str, protocol: u8, state: u8, ifindex: u32) -> Backend {
    let at: SocketAddr = at.parse().unwrap();
    Backend {
        addr: at.ip().into(),
        port: Be16::new(at.port()),
        proto: protocol,
        state,
        generation: 1,
        ifindex,
        ..Backend::ZERO
    }
}

/// Service default/web on two nodes and both families (one backend draining), kube-system/dns without endpoints, a
/// service port without a name; Pods client and web-1 of this node.
fn snapshot() -> Snapshot {
    let wildcard = FrontendSlots {
        key: FrontendKey::wildcard(addr("10.96.0.10")),
        frontend: Frontend::ZERO,
        backend_ids: Vec::new(),
    };
    let pod = |ip4: &str, ip6: &str, last: u8| Pod {
        ip4: addr(ip4),
        ip6: addr(ip6),
        mac: [2, 0, 0, 0, 0, last],
        ..Pod::ZERO
    };
    Snapshot {
        frontends: vec![
            wildcard,
            frontend("10.96.0.10:80", proto::TCP, 1, &[1, 2]),
            frontend("[fd96::10]:80", proto::TCP, 1, &[3]),
            frontend("10.96.0.53:53", proto::UDP, 2, &[]),
            frontend("10.96.0.99:443", proto::TCP, 9, &[5]),
        ],
        backends: [
            (1, backend("10.1.0.3:8080", proto::TCP, state::ACTIVE, 12)),
            (2, backend("10.1.1.3:8080", proto::TCP, state::ACTIVE, 0)),
            (3, backend("[fd01::3]:8080", proto::TCP, state::ACTIVE, 12)),
            (4, backend("10.1.1.4:8080", proto::TCP, state::DRAINING, 0)),
            (5, backend("10.1.1.9:6443", proto::TCP, state::ACTIVE, 0)),
        ]
        .into(),
        pods: [(11, pod("10.1.0.2", "fd01::2", 2)), (12, pod("10.1.0.3", "fd01::3", 3))].into(),
        hooks: [(11, vec!["pod_in".to_owned(), "pod_out".to_owned()])].into(),
        ifaces: [(11, "veth11".to_owned())].into(),
        flows: [
            (1, FlowCount { active: 3, inactive: 1 }),
            (4, FlowCount { active: 1, inactive: 0 }),
        ]
        .into(),
    }
}

fn names() -> Names<'static> {
    let text = Cow::Borrowed;
    let backend = |id, service_id, pod, place| BackendName {
        id,
        service_id,
        pod: text(pod),
        place,
        ..BackendName::default()
    };
    let pod = |ifindex, iface, name| PodName {
        ifindex,
        iface: text(iface),
        namespace: text("default"),
        name: text(name),
        created: NOW - 99 * HOUR,
    };
    Names {
        layout: LAYOUT,
        node: text("n1"),
        agent: Agent {
            version: text(env!("CARGO_PKG_VERSION")),
            pid: 1,
            started: NOW - HOUR,
            written: NOW - 20,
            synced: NOW - 30,
        },
        subsystems: vec![Subsystem {
            name: text("api"),
            state: State::Ok,
            detail: text("https://10.0.0.1:6443, 5 kinds listed"),
        }],
        issues: vec![IssueLine {
            object: text("EndpointSlice default/web-x7"),
            field: text("endpoints[2].addresses[0]"),
            message: text("\"::zz\" is not an IP address"),
            service: text("default/web"),
            since: NOW - 300,
        }],
        services: vec![
            ServiceName {
                id: 1,
                namespace: text("default"),
                name: text("web"),
                port_name: text("http"),
                port: 80,
                frontends: vec!["10.96.0.10:80".parse().unwrap(), "[fd96::10]:80".parse().unwrap()],
                endpoints: 4,
                ready: 3,
                created: NOW - 2 * HOUR,
                ..ServiceName::default()
            },
            ServiceName {
                id: 2,
                namespace: text("kube-system"),
                name: text("dns"),
                port: 53,
                protocol: proto::UDP,
                frontends: vec!["10.96.0.53:53".parse().unwrap(), "[fd96::53]:53".parse().unwrap()],
                ..ServiceName::default()
            },
        ],
        backends: vec![
            backend(1, 1, "default/web-1", 1),
            BackendName { conditions: Conditions::Serving, ..backend(2, 1, "default/web-2", 2) },
            backend(3, 1, "default/web-1", 1),
            backend(4, 1, "default/web-3", 2),
        ],
        places: vec![
            Place { node: text("n1"), zone: text("a") },
            Place { node: text("n2"), zone: text("") },
        ],
        pods: vec![pod(11, "veth-old", "client"), pod(12, "veth12", "web-1")],
        drops: vec![DropExample {
            reason: DropReason::NoEndpoints as u8,
            ingress: false,
            protocol: proto::UDP,
            src: "10.1.0.2:40000".parse().unwrap(),
            dst: "10.96.0.53:53".parse().unwrap(),
            ifindex: 11,
            service_id: 2,
            at: NOW - 7,
        }],
        ..Names::default()
    }
}

fn check<R: Row>(
    names: &Names<'static>,
    output: Format,
    rows: impl Fn(&View<'_>) -> Vec<R>,
    want: Expect,
) {
    let snapshot = snapshot();
    let view = View::new(&snapshot, names, NOW);
    let style = Style { output, ..Style::default() };
    let mut out = Vec::new();
    columns::print(&mut out, &rows(&view), view.directory.node, &style).unwrap();
    want.assert_eq(std::str::from_utf8(&out).unwrap());
}

fn select(set: impl Fn(&mut Selection)) -> Selection {
    let mut selection = Selection::default();
    set(&mut selection);
    selection.complete(None, false).unwrap()
}

#[test]
fn services_with_names_and_without() {
    let all = |view: &View<'_>| services::rows(view, &Selection::default());
    check(
        &names(),
        Format::Wide,
        all,
        expect![[r#"
        NAMESPACE    NAME  PORT         TYPE       FRONTENDS                    READY  LOCAL  FLOWS  AGE     ID  ISSUE
        default      web   http:80/TCP  ClusterIP  10.96.0.10:80,[fd96::10]:80  3/4    2      5      120m    1   endpoints[2].addresses[0]: "::zz" is not an IP address
        kube-system  dns   53/UDP       ClusterIP  10.96.0.53:53                0/0    0      0      <none>  2   not in the maps: [fd96::53]:53; no usable endpoint, refused: 10.96.0.53:53
        <none>       #9    443/TCP      <none>     10.96.0.99:443               1/1    0      0      <none>  9
    "#]],
    );
    check(
        &Names::default(),
        Format::Table,
        all,
        expect![[r#"
        NAMESPACE  NAME  PORT     TYPE    FRONTENDS                    READY  LOCAL  FLOWS  AGE     ISSUE
        <none>     #1    80/TCP   <none>  10.96.0.10:80,[fd96::10]:80  3/3    2      4      <none>
        <none>     #2    53/UDP   <none>  10.96.0.53:53                0/0    0      0      <none>
        <none>     #9    443/TCP  <none>  10.96.0.99:443               1/1    0      0      <none>
    "#]],
    );
    check(
        &names(),
        Format::Name,
        all,
        expect![[r#"
        default/web
        kube-system/dns
        #9
    "#]],
    );
}

#[test]
fn selections() {
    let cases = [
        (select(|s| s.namespace = Some("kube-system".to_owned())), vec!["kube-system/dns"]),
        (select(|s| s.service = Some("web".to_owned())), vec!["default/web"]),
        (select(|s| s.service = Some("kube-system/web".to_owned())), vec![]),
        (select(|s| s.pod = Some("default/web-2".to_owned())), vec!["default/web"]),
        (select(|s| s.ip = Some("10.96.0.53".parse().unwrap())), vec!["kube-system/dns"]),
        (select(|s| s.ip = Some("10.1.1.9".parse().unwrap())), vec!["#9"]),
        (select(|_| ()), vec!["default/web", "kube-system/dns", "#9"]),
    ];
    let (snapshot, names) = (snapshot(), names());
    let view = View::new(&snapshot, &names, NOW);
    for (selection, want) in cases {
        let rows = services::rows(&view, &selection);
        let found: Vec<String> = rows.iter().filter_map(Row::name).collect();
        assert_eq!(found, want, "{selection:?}");
    }
    let of = |selection: &Selection| pods::rows(&view, selection).len();
    assert_eq!(of(&select(|s| s.service = Some("web".to_owned()))), 1, "Pods behind the Service");
    assert_eq!(of(&select(|s| s.ip = Some("fd01::2".parse().unwrap()))), 1);
    assert_eq!(of(&select(|s| s.namespace = Some("other".to_owned()))), 0);
}

#[test]
fn tree_has_the_shape_of_ipvsadm() {
    let (snapshot, names) = (snapshot(), names());
    let view = View::new(&snapshot, &names, NOW);
    let branches = tree::branches(&view, &services::rows(&view, &Selection::default()));
    let mut out = Vec::new();
    tree::print(&mut out, &branches, true).unwrap();
    expect![[r#"
        Prot LocalAddress:Port Scheduler Service
          -> RemoteAddress:Port  Forward  Weight  ActiveConn  InActConn  Pod            Node    Zone    State
        TCP  10.96.0.10:80 random default/web:http
          -> 10.1.0.3:8080       Masq     1       3           1          default/web-1  n1      a       ready
          -> 10.1.1.3:8080       Masq     1       0           0          default/web-2  n2      <none>  serving
          -> 10.1.1.4:8080       Masq     0       1           0          default/web-3  n2      <none>  draining
        TCP  [fd96::10]:80 random default/web:http
          -> [fd01::3]:8080      Masq     1       0           0          default/web-1  n1      a       ready
        UDP  10.96.0.53:53 random kube-system/dns:53
        TCP  10.96.0.99:443 random #9
          -> 10.1.1.9:6443       Masq     1       0           0          <none>         <none>  <none>  active
    "#]].assert_eq(std::str::from_utf8(&out).unwrap());
}

#[test]
fn backends_with_names_and_without() {
    let all = |view: &View<'_>| backends::rows(view, &Selection::default());
    check(
        &names(),
        Format::Table,
        all,
        expect![[r#"
        ADDRESS         POD            NODE    ZONE    STATE     SERVICE           FRONTENDS       ACTIVE
        10.1.1.9:6443   <none>         <none>  <none>  active    #9                10.96.0.99:443  0
        10.1.0.3:8080   default/web-1  n1      a       ready     default/web:http  10.96.0.10:80   3
        10.1.1.3:8080   default/web-2  n2      <none>  serving   default/web:http  10.96.0.10:80   0
        10.1.1.4:8080   default/web-3  n2      <none>  draining  default/web:http  <none>          1
        [fd01::3]:8080  default/web-1  n1      a       ready     default/web:http  [fd96::10]:80   0
    "#]],
    );
    check(
        &Names::default(),
        Format::Wide,
        all,
        expect![[r#"
        ADDRESS         POD     NODE    ZONE    STATE     SERVICE  FRONTENDS       ACTIVE  INACTIVE  PROTO  ID  GENERATION  IFINDEX
        10.1.1.4:8080   <none>  <none>  <none>  draining  <none>   <none>          1       0         TCP    4   1           <none>
        10.1.0.3:8080   <none>  <none>  <none>  active    #1       10.96.0.10:80   3       1         TCP    1   1           12
        10.1.1.3:8080   <none>  <none>  <none>  active    #1       10.96.0.10:80   0       0         TCP    2   1           <none>
        [fd01::3]:8080  <none>  <none>  <none>  active    #1       [fd96::10]:80   0       0         TCP    3   1           12
        10.1.1.9:6443   <none>  <none>  <none>  active    #9       10.96.0.99:443  0       0         TCP    5   1           <none>
    "#]],
    );
}

#[test]
fn pods_of_this_node() {
    let all = |view: &View<'_>| pods::rows(view, &Selection::default());
    check(
        &names(),
        Format::Wide,
        all,
        expect![[r#"
            NAMESPACE  NAME    IP                IFACE   AGE   IFINDEX  MAC                BRIDGED  HOOKS
            default    client  10.1.0.2,fd01::2  veth11  4d3h  11       02:00:00:00:00:02  false    pod_in,pod_out
            default    web-1   10.1.0.3,fd01::3  veth12  4d3h  12       02:00:00:00:00:03  false    <none>
        "#]],
    );
    check(
        &Names::default(),
        Format::Table,
        all,
        expect![[r#"
        NAMESPACE  NAME    IP                IFACE   AGE
        <none>     <none>  10.1.0.2,fd01::2  veth11  <none>
        <none>     <none>  10.1.0.3,fd01::3  <none>  <none>
    "#]],
    );
}

fn key(local: &str, remote: &str, protocol: u8, veth: u16) -> CtKey {
    let local: SocketAddr = local.parse().unwrap();
    let remote: SocketAddr = remote.parse().unwrap();
    CtKey {
        local: local.ip().into(),
        remote: remote.ip().into(),
        local_port: Be16::new(local.port()),
        remote_port: Be16::new(remote.port()),
        proto: protocol,
        veth,
        ..CtKey::ZERO
    }
}

/// `nat` and `aux` as `address:port`; last packet `idle` seconds ago.
fn entry(nat: &str, aux: &str, backend_id: u32, flags: u32, idle: u32) -> CtEntry {
    let nat: SocketAddr = nat.parse().unwrap();
    let aux: SocketAddr = aux.parse().unwrap();
    CtEntry {
        nat_addr: nat.ip().into(),
        nat_port: Be16::new(nat.port()),
        aux_addr: aux.ip().into(),
        aux_port: Be16::new(aux.port()),
        backend_id,
        backend_gen: u32::from(backend_id != 0),
        last_seen: 1_000_000 - idle,
        flags,
        ..CtEntry::ZERO
    }
}

/// A stamp a second.
const STAMPS: Now = Now { stamp: 1_000_000, hz: 256 };

fn flows() -> Vec<(CtKey, CtEntry)> {
    let (syn, ack, fin) = (u32::from(tcp::SYN), u32::from(tcp::ACK), u32::from(tcp::FIN));
    let none = "[::]:0";
    vec![
        // client → web, to web-1 on this node: three entries, one flow.
        (
            key("10.1.0.2:40000", "10.96.0.10:80", proto::TCP, 11),
            entry("10.1.0.3:8080", "[::]:40000", 1, bits::FORWARD | syn, 9),
        ),
        (
            key("10.1.0.2:40000", "10.1.0.3:8080", proto::TCP, 11),
            entry("10.96.0.10:80", "10.1.0.2:40000", 1, bits::REPLY | (syn | ack) << 8, 4),
        ),
        (
            key("10.1.0.3:8080", "10.1.0.2:40000", proto::TCP, 12),
            entry(none, none, 0, bits::INBOUND | syn << 8 | syn | ack, 4),
        ),
        // Closing, to the draining backend.
        (
            key("10.1.0.2:40001", "10.96.0.10:80", proto::TCP, 11),
            entry("10.1.1.4:8080", "[::]:40001", 4, bits::FORWARD | syn | ack | fin, 10),
        ),
        // web-1 to itself.
        (
            key("10.1.0.3:50000", "10.96.0.10:80", proto::TCP, 12),
            entry("10.1.0.3:8080", "169.254.42.1:50000", 1, bits::FORWARD | bits::HAIRPIN | syn, 2),
        ),
        (
            key("10.1.0.3:8080", "169.254.42.1:50000", proto::TCP, 12),
            entry("10.96.0.10:80", "10.1.0.3:50000", 1, bits::REPLY | bits::HAIRPIN | syn | ack, 2),
        ),
        // Without translation, both ways; one way; from outside.
        (
            key("10.1.0.2:5353", "8.8.8.8:53", proto::UDP, 11),
            entry(none, none, 0, bits::SEEN_OUT | bits::SEEN_IN, 100),
        ),
        (
            key("10.1.0.2:5354", "8.8.8.8:53", proto::UDP, 11),
            entry(none, none, 0, bits::SEEN_OUT, 90),
        ),
        (
            key("10.1.0.3:8080", "192.0.2.7:555", proto::TCP, 12),
            entry(none, none, 0, bits::INBOUND | syn << 8, 1),
        ),
        // Its backend has another generation now.
        (
            key("10.1.0.2:40002", "10.96.0.10:80", proto::TCP, 11),
            CtEntry {
                backend_gen: 0,
                ..entry("10.1.1.3:8080", "[::]:40002", 2, bits::FORWARD | syn | ack, 60)
            },
        ),
    ]
}

#[test]
fn a_flow_is_one_line() {
    let one = |view: &View<'_>| ct::rows(view, &flows(), STAMPS, false);
    check(
        &names(),
        Format::Table,
        one,
        expect![[r#"
        PROTO  SRC                   DST                 VIA               BACKEND             STATE        AGE   EXPIRES
        TCP    192.0.2.7:555         default/web-1:8080  <none>            <none>              NEW          1s    29s
        UDP    default/client:5353   8.8.8.8:53          <none>            <none>              ESTABLISHED  100s  80s
        TCP    default/client:40000  10.96.0.10:80       default/web:http  default/web-1:8080  ESTABLISHED  4s    5h59m
        TCP    default/client:40001  10.96.0.10:80       default/web:http  default/web-3:8080  CLOSING      10s   60s
        TCP    default/client:40002  10.96.0.10:80       default/web:http  default/web-2:8080  GONE         60s   5h59m
        TCP    default/web-1:50000   10.96.0.10:80       default/web:http  default/web-1:8080  ESTABLISHED  2s    5h59m
    "#]],
    );
    check(
        &Names::default(),
        Format::Table,
        one,
        expect![[r#"
        PROTO  SRC             DST            VIA     BACKEND        STATE        AGE   EXPIRES
        UDP    10.1.0.2:5353   8.8.8.8:53     <none>  <none>         ESTABLISHED  100s  80s
        TCP    10.1.0.2:40000  10.96.0.10:80  #1      10.1.0.3:8080  ESTABLISHED  4s    5h59m
        TCP    10.1.0.2:40001  10.96.0.10:80  <none>  10.1.1.4:8080  CLOSING      10s   60s
        TCP    10.1.0.2:40002  10.96.0.10:80  #1      10.1.1.3:8080  GONE         60s   5h59m
        TCP    10.1.0.3:50000  10.96.0.10:80  #1      10.1.0.3:8080  ESTABLISHED  2s    5h59m
        TCP    192.0.2.7:555   10.1.0.3:8080  <none>  <none>         NEW          1s    29s
    "#]],
    );
    let every = |view: &View<'_>| ct::rows(view, &flows(), STAMPS, true);
    check(
        &names(),
        Format::Wide,
        every,
        expect![[r#"
        PROTO  SRC                   DST                 VIA               BACKEND             STATE        AGE   EXPIRES  SRC-ADDRESS     DST-ADDRESS         BACKEND-ADDRESS  FLAGS
        TCP    192.0.2.7:555         default/web-1:8080  <none>            <none>              NEW          1s    29s      192.0.2.7:555   10.1.0.3:8080       <none>           inbound
        UDP    default/client:5353   8.8.8.8:53          <none>            <none>              ESTABLISHED  100s  80s      10.1.0.2:5353   8.8.8.8:53          <none>           <none>
        UDP    default/client:5354   8.8.8.8:53          <none>            <none>              EXPIRED      90s   0s       10.1.0.2:5354   8.8.8.8:53          <none>           <none>
        TCP    default/client:40000  10.96.0.10:80       default/web:http  default/web-1:8080  NEW          9s    21s      10.1.0.2:40000  10.96.0.10:80       10.1.0.3:8080    <none>
        TCP    default/client:40000  default/web-1:8080  default/web:http  <none>              ESTABLISHED  4s    5h59m    10.1.0.2:40000  10.1.0.3:8080       <none>           reply
        TCP    default/client:40000  default/web-1:8080  <none>            <none>              ESTABLISHED  4s    5h59m    10.1.0.2:40000  10.1.0.3:8080       <none>           inbound
        TCP    default/client:40001  10.96.0.10:80       default/web:http  default/web-3:8080  CLOSING      10s   60s      10.1.0.2:40001  10.96.0.10:80       10.1.1.4:8080    <none>
        TCP    default/client:40002  10.96.0.10:80       default/web:http  default/web-2:8080  GONE         60s   5h59m    10.1.0.2:40002  10.96.0.10:80       10.1.1.3:8080    <none>
        TCP    default/web-1:8080    169.254.42.1:50000  default/web:http  <none>              ESTABLISHED  2s    5h59m    10.1.0.3:8080   169.254.42.1:50000  <none>           reply,hairpin
        TCP    default/web-1:50000   10.96.0.10:80       default/web:http  default/web-1:8080  NEW          2s    28s      10.1.0.3:50000  10.96.0.10:80       10.1.0.3:8080    hairpin
    "#]],
    );
}

#[test]
fn flows_are_counted() {
    let by = |by| move |view: &View<'_>| ct::count(&ct::rows(view, &flows(), STAMPS, false), by);
    check(
        &names(),
        Format::Table,
        by(By::Service),
        expect![[r#"
        BY                COUNT
        default/web:http  4
        <none>            2
    "#]],
    );
    check(
        &names(),
        Format::Table,
        by(By::Src),
        expect![[r#"
        BY              COUNT
        default/client  4
        192.0.2.7       1
        default/web-1   1
    "#]],
    );
    check(
        &names(),
        Format::Table,
        by(By::State),
        expect![[r#"
        BY           COUNT
        ESTABLISHED  3
        CLOSING      1
        GONE         1
        NEW          1
    "#]],
    );
}

#[test]
fn the_dump_is_filtered() {
    let kept = |filter: &CtFilter| flows().iter().filter(|(k, e)| filter.keeps(k, e)).count();
    let set = |ip: &str| Some([addr(ip)].into());
    assert_eq!(kept(&CtFilter::default()), 10);
    assert_eq!(kept(&CtFilter { addrs: set("10.1.1.4"), ..CtFilter::default() }), 1, "the backend");
    assert_eq!(kept(&CtFilter { addrs: set("8.8.8.8"), ..CtFilter::default() }), 2);
    assert_eq!(kept(&CtFilter { locals: set("10.1.0.3"), ..CtFilter::default() }), 4);
    assert_eq!(kept(&CtFilter { backend_ids: Some([4].into()), ..CtFilter::default() }), 1);
    assert_eq!(kept(&CtFilter { protocol: Some(proto::UDP), ..CtFilter::default() }), 2);
}

#[test]
fn only_opening_halves_count_as_flows() {
    let mut counts = std::collections::HashMap::new();
    for (key, entry) in flows() {
        crate::ctl::snapshot::count_flow(&mut counts, &key, &entry, STAMPS);
    }
    let mut counts: Vec<(u32, FlowCount)> = counts.into_iter().collect();
    counts.sort_by_key(|(id, _)| *id);
    let count = |active, inactive| FlowCount { active, inactive };
    assert_eq!(counts, [(1, count(0, 2)), (2, count(1, 0)), (4, count(0, 1))]);
}

fn counts() -> Counts {
    let dropped = |reason, ingress| match (reason, ingress) {
        (DropReason::NoEndpoints, false) => 42,
        (DropReason::BackendGone, true) => 1234,
        _ => 0,
    };
    let both = |reason| [false, true].map(|ingress| (reason, ingress, dropped(reason, ingress)));
    let counted = |counter| (counter, if counter == Counter::FlowService { 7 } else { 0 });
    Counts {
        drops: DropReason::ALL.into_iter().flat_map(both).collect(),
        counters: Counter::ALL.map(counted).to_vec(),
    }
}

#[test]
fn drops_say_what_to_do() {
    let occurred = |view: &View<'_>| drops::rows(view, &counts(), false);
    check(
        &names(),
        Format::Table,
        occurred,
        expect![[r#"
        REASON        DIRECTION  COUNT  LAST    EXAMPLE                                                         WHAT-TO-DO
        BACKEND_GONE  ingress    1234   <none>  <none>                                                          none: the endpoint was removed and its open connections were reset
        NO_ENDPOINTS  egress     42     7s      UDP default/client:40000 -> 10.96.0.53:53 (kube-system/dns:53)  check the Service's selector and the readiness of its Pods
    "#]],
    );
    let all = |view: &View<'_>| drops::rows(view, &counts(), true);
    let (snapshot, names) = (snapshot(), names());
    assert_eq!(all(&View::new(&snapshot, &names, NOW)).len(), DropReason::ALL.len() * 2);
}

fn map(name: &'static str, kind: &'static str, used: Option<u64>, max: Option<u64>) -> MapUse {
    MapUse {
        name,
        kind,
        used,
        max,
        bytes: Some(5_242_880),
        pin: format!("/sys/fs/bpf/lb/{name}_v1"),
    }
}

fn map_uses() -> [MapUse; 3] {
    [
        map("ct", "lru_hash", Some(65_536), Some(CT.into())),
        map("sk_nat", "sk_storage", None, None),
        map("pods", "hash", Some(2), Some(4096)),
    ]
}

#[test]
fn maps_and_their_fill() {
    check(
        &names(),
        Format::Table,
        |_| maps::rows(&map_uses()),
        expect![[r#"
        MAP     TYPE        USED    MAX     %       BYTES  PIN
        ct      lru_hash    65536   131072  50.0    5.0Mi  /sys/fs/bpf/lb/ct_v1
        sk_nat  sk_storage  <none>  <none>  <none>  5.0Mi  /sys/fs/bpf/lb/sk_nat_v1
        pods    hash        2       4096    0.0     5.0Mi  /sys/fs/bpf/lb/pods_v1
    "#]],
    );
}

fn check_status(
    names: &Names<'static>,
    running: Option<bool>,
    names_error: Option<&str>,
    maps: &[MapUse],
    want: Expect,
) {
    let snapshot = snapshot();
    let view = View::new(&snapshot, names, NOW);
    let counts = counts();
    let found = status::Found { view: &view, maps, counts: &counts, running, names_error };
    let report = status::report(&found);
    let mut out = Vec::new();
    status::print(&mut out, &report, running == Some(true) && names.issues.is_empty(), true)
        .unwrap();
    want.assert_eq(std::str::from_utf8(&out).unwrap());
}

#[test]
fn status_of_a_healthy_node() {
    let mut names = Names { issues: Vec::new(), ..names() };
    names.services[1].frontends.truncate(1);
    check_status(
        &names,
        Some(true),
        None,
        &map_uses(),
        expect![[r#"
            OK

            SUBSYSTEM  STATE  DETAIL
            agent      OK     0.1.0 on n1, up 60m, synced 30s ago
            api        OK     https://10.0.0.1:6443, 5 kinds listed
            tables     OK     3 service ports, 4 frontends, 5 backends, 2 pods
            maps       OK     ct 65536/131072 (50%), pods 2/4096 (0%)

            COUNTER            COUNT
            flow_plain         0
            flow_service       7
            flow_hairpin       0
            flow_picked_up     0
            flow_moved         0
            untracked          0
            port_mapped        0
            socket_translated  0
            socket_refused     0
            event_lost         0
            event_suppressed   0
        "#]],
    );
}

#[test]
fn status_with_the_agent_dead_and_a_full_map() {
    let full = [map("frontends", "hash", Some(250_000), Some(262_144))];
    check_status(
        &names(),
        Some(false),
        None,
        &full,
        expect![[r#"
            DEGRADED: agent failed, tables degraded, maps degraded, 1 issue

            SUBSYSTEM  STATE     DETAIL
            agent      FAILED    not running: traffic goes on with the tables written 20s ago; last was 0.1.0 on n1, synced 30s ago
            api        OK        last known: https://10.0.0.1:6443, 5 kinds listed
            tables     DEGRADED  3 service ports, 4 frontends, 5 backends, 2 pods; frontends missing: 1
            maps       DEGRADED  frontends 250000/262144 (95%)

            OBJECT                        SINCE  ISSUE
            EndpointSlice default/web-x7  5m     endpoints[2].addresses[0]: "::zz" is not an IP address
        "#]],
    );
}

#[test]
fn status_without_names() {
    let error = "name table /run/lb/names.json: No such file or directory (os error 2)";
    check_status(
        &Names::default(),
        Some(false),
        Some(error),
        &map_uses(),
        expect![[r#"
        DEGRADED: agent failed, names failed

        SUBSYSTEM  STATE   DETAIL
        agent      FAILED  not running: traffic goes on with the tables as they are
        names      FAILED  name table /run/lb/names.json: No such file or directory (os error 2)
        tables     OK      3 service ports, 4 frontends, 5 backends, 2 pods
        maps       OK      ct 65536/131072 (50%), pods 2/4096 (0%)
    "#]],
    );
}
