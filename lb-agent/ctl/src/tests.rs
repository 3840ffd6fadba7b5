//! What each command prints for one small node, with names and without.

mod documents;
mod escapes;
mod fields;
mod flows;
mod k9s;
mod policies;
mod sample;
mod trials;

use expect_test::{Expect, expect};
use lb_common::limits::CT;
use lb_common::verdict::{Counter, DropReason};

use self::sample::{NOW, names, snapshot};
use crate::columns::{self, Format, Row, Style};
use crate::selection::Selection;
use crate::snapshot::{MapUse, TableSnapshot};
use crate::view::View;
use crate::{backends, drops, maps, pods, services, status, tree};
use lb_core::counts::Counts;
use lb_core::names::Names;

fn check<R: Row>(
    names: &Names<'static>,
    output: Format,
    rows: impl Fn(&View<'_>) -> Vec<R>,
    want: Expect,
) {
    check_on(&snapshot(), names, output, rows, want);
}

fn check_on<R: Row>(
    snapshot: &TableSnapshot,
    names: &Names<'static>,
    output: Format,
    rows: impl Fn(&View<'_>) -> Vec<R>,
    want: Expect,
) {
    let view = View::new(snapshot, names, NOW);
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
            NAMESPACE    NAME  PORT         TYPE       FRONTENDS                    READY  LOCAL  FLOWS  AGE     INTERNAL  EXTERNAL  ALGORITHM  AFFINITY  ID  ISSUE
            default      web   http:80/TCP  ClusterIP  10.96.0.10:80,[fd96::10]:80  3/4    2      5      120m    Cluster   <none>    random     <none>    1   endpoints[2].addresses[0]: "::zz" is not an IP address
            kube-system  dns   53/UDP       ClusterIP  10.96.0.53:53                0/0    0      0      <none>  <none>    <none>    random     <none>    2   missing in the maps: [fd96::53]:53; no usable endpoint, connections refused at 10.96.0.53:53
            <none>       #9    443/TCP      <none>     10.96.0.99:443               1/1    0      0      <none>  Cluster   <none>    random     <none>    9
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
        Prot LocalAddress:Port Scheduler Service Scope Flags
          -> RemoteAddress:Port  Forward  Weight  ActiveConn  InActConn  Pod            Node    Zone    State     List     Why-Not
        TCP  10.96.0.10:80 random default/web:http ClusterIP policy=Cluster
          -> 10.1.0.3:8080       Masq     1       3           1          default/web-1  n1      a       ready     cluster
          -> 10.1.1.3:8080       Masq     1       0           0          default/web-2  n2      <none>  serving   cluster
          -> 10.1.1.4:8080       Masq     0       1           0          default/web-3  n2      <none>  draining  <none>
        TCP  [fd96::10]:80 random default/web:http ClusterIP policy=Cluster
          -> [fd01::3]:8080      Masq     1       0           0          default/web-1  n1      a       ready     cluster
        UDP  10.96.0.53:53 random kube-system/dns:53 ClusterIP new=refused
        TCP  10.96.0.99:443 random #9 ClusterIP policy=Cluster
          -> 10.1.1.9:6443       Masq     1       0           0          <none>         <none>  <none>  active    cluster
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
            ADDRESS         POD     NODE    ZONE    STATE     SERVICE  FRONTENDS       ACTIVE  INACTIVE  LOAD    PROTO  ID  GENERATION  IFINDEX
            10.1.0.3:8080   <none>  <none>  <none>  active    #1       10.96.0.10:80   3       1         <none>  TCP    1   1           12
            10.1.1.3:8080   <none>  <none>  <none>  active    #1       10.96.0.10:80   0       0         <none>  TCP    2   1           <none>
            [fd01::3]:8080  <none>  <none>  <none>  active    #1       [fd96::10]:80   0       0         <none>  TCP    3   1           12
            10.1.1.9:6443   <none>  <none>  <none>  active    #9       10.96.0.99:443  0       0         <none>  TCP    5   1           <none>
            10.1.1.4:8080   <none>  <none>  <none>  draining  <none>   <none>          1       0         <none>  TCP    4   1           <none>
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
            NAMESPACE  NAME    IP                IFACE   INGRESS  EGRESS  AGE   IFINDEX  MAC                BRIDGED  HOOKS           PATH            ISSUE
            default    client  10.1.0.2,fd01::2  veth11  open     open    4d3h  11       02:00:00:00:00:02  false    pod_in,pod_out  past
            default    web-1   10.1.0.3,fd01::3  veth12  open     open    4d3h  12       02:00:00:00:00:03  false    <none>          other-programs
        "#]],
    );
    check(
        &Names::default(),
        Format::Table,
        all,
        expect![[r#"
            NAMESPACE  NAME    IP                IFACE   INGRESS  EGRESS  AGE     ISSUE
            <none>     <none>  10.1.0.2,fd01::2  veth11  open     open    <none>
            <none>     <none>  10.1.0.3,fd01::3  <none>  open     open    <none>
        "#]],
    );
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
        verdicts: Vec::new(),
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
            REASON        DIRECTION  COUNT  LAST    EXAMPLE                                                         BY      WHAT-TO-DO
            BACKEND_GONE  ingress    1234   <none>  <none>                                                          <none>  none: the endpoint was removed and its open connections were reset
            NO_ENDPOINTS  egress     42     7s      UDP default/client:40000 -> 10.96.0.53:53 (kube-system/dns:53)  <none>  check the Service's selector and the readiness of its Pods
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
        size: max,
        max,
        bytes: Some(5_242_880),
        pin: format!("/sys/fs/bpf/lb/{name}_v1"),
    }
}

fn map_uses() -> [MapUse; 5] {
    [
        map("fragments", "lru_hash", Some(8192), Some(8192)),
        map("ct", "lru_hash", Some(65_536), Some(CT.into())),
        map("sk_nat", "sk_storage", None, None),
        map("pods", "hash", Some(2), Some(4096)),
        MapUse { size: Some(65_536), ..map("backends", "array", Some(60_000), Some(2_097_152)) },
    ]
}

#[test]
fn maps_and_their_fill() {
    check(
        &names(),
        Format::Table,
        |_| maps::rows(&map_uses()),
        expect![[r#"
            MAP        TYPE        USED    SIZE    MAX      %       BYTES  PIN
            fragments  lru_hash    8192    8192    8192     100.0   5.0Mi  /sys/fs/bpf/lb/fragments_v1
            ct         lru_hash    65536   131072  131072   50.0    5.0Mi  /sys/fs/bpf/lb/ct_v1
            sk_nat     sk_storage  <none>  <none>  <none>   <none>  5.0Mi  /sys/fs/bpf/lb/sk_nat_v1
            pods       hash        2       4096    4096     0.0     5.0Mi  /sys/fs/bpf/lb/pods_v1
            backends   array       60000   65536   2097152  2.8     5.0Mi  /sys/fs/bpf/lb/backends_v1
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
    let found = status::StatusFacts { view: &view, maps, counts: &counts, running, names_error };
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
            tables     OK     service ports 3, frontends 4, backends 5, pods 2
            maps       OK     fragments 8192/8192 (100%), ct 65536/131072 (50%), pods 2/4096 (0%), backends 60000/2097152 (2%)

            COUNTER             COUNT
            flow_plain          0
            flow_service        7
            flow_hairpin        0
            flow_picked_up      0
            flow_moved          0
            untracked           0
            port_mapped         0
            socket_translated   0
            socket_refused      0
            event_lost          0
            event_suppressed    0
            fragment_forgotten  0
            flow_external       0
            flow_masqueraded    0
            flow_to_host        0
            affinity_hit        0
            affinity_forgotten  0
            entry_restored      0
            plain_closed        0
            over_budget         0
            port_taken_over     0
            packet_cut          0
            flow_veth           0
            pair_closed         0
            flow_stack_node     0
            flow_stack_pod      0
            flow_stack_service  0
            flow_peer           0
            flow_hop            0
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
            DEGRADED: agent failed, tables degraded, map frontends is 95% full (use fewer Services, or fewer with Maglev, weights or affinity), 1 issue of an object

            SUBSYSTEM  STATE     DETAIL
            agent      FAILED    not running: traffic continues with the maps written 20s ago; last was 0.1.0 on n1, synced 30s ago
            api        OK        last known: https://10.0.0.1:6443, 5 kinds listed
            tables     DEGRADED  service ports 3, frontends 4, backends 5, pods 2, frontends missing 1
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
            agent      FAILED  not running: traffic continues with the maps as they are
            names      FAILED  name table /run/lb/names.json: No such file or directory (os error 2)
            tables     OK      service ports 3, frontends 4, backends 5, pods 2
            maps       OK      fragments 8192/8192 (100%), ct 65536/131072 (50%), pods 2/4096 (0%), backends 60000/2097152 (2%)
        "#]],
    );
}
