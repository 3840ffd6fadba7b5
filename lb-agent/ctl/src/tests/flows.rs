//! What `lbctl ct` makes of conntrack entries.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use expect_test::expect;
use lb_common::account::{AccountEntry, AccountKey};
use lb_common::be::Be16;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, scope};
use lb_common::flow::{proto, tcp};

use super::sample::{addr, names, snapshot};
use super::{NOW, check};
use crate::account::{self, CountedFlows, FlowTotals};
use crate::columns::Format;
use crate::ct::{self, CountBy, CtRow};
use crate::explain::Stale;
use crate::flows::FlowFilter;
use crate::pairs::{self, PairBy, PairFacts};
use crate::snapshot::{CtFilter, FlowCount, Now, count_flow};
use crate::view::View;
use lb_core::names::Names;

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
fn entry(nat: &str, aux: &str, backend_id: u32, flags: CtFlags, idle: u32) -> CtEntry {
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
    let open = tcp::SYN | tcp::ACK;
    let both = CtFlags::tcp(open, open);
    let none = "[::]:0";
    vec![
        // client → web, to web-1 on this node: three entries, one flow.
        (
            key("10.1.0.2:40000", "10.96.0.10:80", proto::TCP, 11),
            entry("10.1.0.3:8080", "[::]:40000", 1, CtFlags::FORWARD | both, 9),
        ),
        (
            key("10.1.0.2:40000", "10.1.0.3:8080", proto::TCP, 11),
            entry("10.96.0.10:80", "10.1.0.2:40000", 1, CtFlags::REPLY | both, 4),
        ),
        (
            key("10.1.0.3:8080", "10.1.0.2:40000", proto::TCP, 12),
            entry(none, none, 0, CtFlags::INBOUND | both, 4),
        ),
        // Closing, to the draining backend.
        (
            key("10.1.0.2:40001", "10.96.0.10:80", proto::TCP, 11),
            entry(
                "10.1.1.4:8080",
                "[::]:40001",
                4,
                CtFlags::FORWARD | CtFlags::tcp(open | tcp::FIN, 0),
                10,
            ),
        ),
        // web-1 to itself.
        (
            key("10.1.0.3:50000", "10.96.0.10:80", proto::TCP, 12),
            entry(
                "10.1.0.3:8080",
                "169.254.42.1:50000",
                1,
                CtFlags::FORWARD | CtFlags::HAIRPIN | both,
                2,
            ),
        ),
        (
            key("10.1.0.3:8080", "169.254.42.1:50000", proto::TCP, 12),
            entry(
                "10.96.0.10:80",
                "10.1.0.3:50000",
                1,
                CtFlags::REPLY | CtFlags::HAIRPIN | both,
                2,
            ),
        ),
        // Without translation, both ways; one way; from outside.
        (
            key("10.1.0.2:5353", "8.8.8.8:53", proto::UDP, 11),
            entry(none, none, 0, CtFlags::SEEN_OUT | CtFlags::SEEN_IN | CtFlags::TIMES, 100),
        ),
        (
            key("10.1.0.2:5354", "8.8.8.8:53", proto::UDP, 11),
            entry(none, none, 0, CtFlags::SEEN_OUT, 90),
        ),
        (
            key("10.1.0.3:8080", "192.0.2.7:555", proto::TCP, 12),
            entry(none, none, 0, CtFlags::INBOUND | CtFlags::tcp(0, tcp::SYN), 1),
        ),
        // Its backend has another generation now.
        (
            key("10.1.0.2:40002", "10.96.0.10:80", proto::TCP, 11),
            CtEntry {
                backend_gen: 0,
                ..entry(
                    "10.1.1.3:8080",
                    "[::]:40002",
                    2,
                    CtFlags::FORWARD | CtFlags::tcp(open, 0),
                    60,
                )
            },
        ),
    ]
}

fn uncounted(entries: Vec<(CtKey, CtEntry)>) -> CountedFlows {
    CountedFlows { entries, accounts: None }
}

/// The flows, and what was counted of some of them.
fn counted() -> CountedFlows {
    let packets =
        |src: &str, dst: &str, protocol| AccountKey::from_local(&key(src, dst, protocol, 0));
    let of = |packets, bytes| AccountEntry { packets, bytes, ..AccountEntry::ZERO };
    let accounts = [
        // To the Service; the backend answers the Pod.
        (packets("10.1.0.2:40000", "10.96.0.10:80", proto::TCP), of(12, 1_400)),
        (packets("10.1.0.3:8080", "10.1.0.2:40000", proto::TCP), of(9, 123_456)),
        // No answer was seen.
        (packets("10.1.0.2:40001", "10.96.0.10:80", proto::TCP), of(3, 180)),
        // To itself: it answers the address that stands for it.
        (packets("10.1.0.3:50000", "10.96.0.10:80", proto::TCP), of(5, 500)),
        (packets("10.1.0.3:8080", "169.254.42.1:50000", proto::TCP), of(4, 400)),
        // From outside.
        (packets("192.0.2.7:555", "10.1.0.3:8080", proto::TCP), of(1, 60)),
        // The answer alone: the other count was evicted.
        (packets("8.8.8.8:53", "10.1.0.2:5353", proto::UDP), of(1, 90)),
    ];
    CountedFlows { entries: flows(), accounts: Some(accounts.into()) }
}

#[test]
fn counts_are_those_of_both_directions() {
    let (snapshot, names) = (snapshot(), names());
    let view = View::new(&snapshot, &names, NOW);
    let rows = ct::rows(&view, &counted(), STAMPS, false);
    let totals: Vec<_> = rows.iter().map(|row| (row.src.as_str(), row.totals)).collect();
    let of = |packets, bytes, reply_packets, reply_bytes| {
        let (reply_packets, reply_bytes) = (Some(reply_packets), Some(reply_bytes));
        Some(FlowTotals { packets, bytes, reply_packets, reply_bytes })
    };
    let want = [
        ("192.0.2.7:555", of(1, 60, 0, 0)),
        ("default/client:5353", None),
        ("default/client:40000", of(12, 1_400, 9, 123_456)),
        ("default/client:40001", of(3, 180, 0, 0)),
        ("default/client:40002", None),
        ("default/web-1:50000", of(5, 500, 4, 400)),
    ];
    assert_eq!(totals, want);
    let json = |row: &CtRow| serde_json::to_value(row).unwrap();
    let with: Vec<_> = rows.iter().map(json).filter(|row| row.get("bytes").is_some()).collect();
    assert_eq!(with.len(), 4, "absent where nothing was counted");
    assert_eq!(with[1]["replyBytes"], 123_456);
    // All flows of a pair together.
    let live = pairs::live(&view, &counted(), STAMPS);
    let owner = |_| String::new();
    let facts = PairFacts { live: &live, sample: &[], owner: &owner, now_ms: 0 };
    let rows = pairs::rows(&facts, &FlowFilter::default(), PairBy::Pod);
    let totals = |src: &str, dst: &str| {
        let mut rows = rows.iter();
        let row = rows.find(|row| row.src.name == src && row.dst.name == dst);
        row.unwrap_or_else(|| panic!("{src} to {dst}: {rows:?}")).totals
    };
    assert_eq!(totals("10.1.0.2", "10.1.0.3"), of(12, 1_400, 9, 123_456));
    assert_eq!(totals("10.1.0.3", "10.1.0.3"), of(5, 500, 4, 400));
    assert_eq!(totals("10.1.0.2", "8.8.8.8"), None);
    let mut sum = None;
    account::add(&mut sum, of(1, 2, 3, 4));
    account::add(&mut sum, None);
    account::add(&mut sum, Some(FlowTotals { packets: 10, bytes: 20, ..FlowTotals::default() }));
    assert_eq!(sum, of(11, 22, 3, 4));
}

#[test]
fn a_flow_is_one_line() {
    let one = |view: &View<'_>| ct::rows(view, &uncounted(flows()), STAMPS, false);
    check(
        &names(),
        Format::Table,
        one,
        expect![[r#"
            PROTO  SRC                   DST                 VIA               BACKEND             MASQUERADE  PATH   STATE        IDLE  EXPIRES
            TCP    192.0.2.7:555         default/web-1:8080  <none>            <none>              <none>      stack  NEW          1s    59s
            UDP    default/client:5353   8.8.8.8:53          <none>            <none>              <none>      stack  ESTABLISHED  100s  20s
            TCP    default/client:40000  10.96.0.10:80       default/web:http  default/web-1:8080  <none>      stack  ESTABLISHED  4s    23h
            TCP    default/client:40001  10.96.0.10:80       default/web:http  default/web-3:8080  <none>      stack  CLOSING      10s   59m
            TCP    default/client:40002  10.96.0.10:80       default/web:http  default/web-2:8080  <none>      stack  GONE         60s   23h
            TCP    default/web-1:50000   10.96.0.10:80       default/web:http  default/web-1:8080  <none>      back   ESTABLISHED  2s    23h
        "#]],
    );
    check(
        &Names::default(),
        Format::Table,
        one,
        expect![[r#"
            PROTO  SRC             DST            VIA     BACKEND        MASQUERADE  PATH   STATE        IDLE  EXPIRES
            UDP    10.1.0.2:5353   8.8.8.8:53     <none>  <none>         <none>      stack  ESTABLISHED  100s  20s
            TCP    10.1.0.2:40000  10.96.0.10:80  #1      10.1.0.3:8080  <none>      stack  ESTABLISHED  4s    23h
            TCP    10.1.0.2:40001  10.96.0.10:80  #1      10.1.1.4:8080  <none>      stack  CLOSING      10s   59m
            TCP    10.1.0.2:40002  10.96.0.10:80  #1      10.1.1.3:8080  <none>      stack  GONE         60s   23h
            TCP    10.1.0.3:50000  10.96.0.10:80  #1      10.1.0.3:8080  <none>      back   ESTABLISHED  2s    23h
            TCP    192.0.2.7:555   10.1.0.3:8080  <none>  <none>         <none>      stack  NEW          1s    59s
        "#]],
    );
    let every = |view: &View<'_>| ct::rows(view, &uncounted(flows()), STAMPS, true);
    check(
        &names(),
        Format::Wide,
        every,
        expect![[r#"
            PROTO  SRC                   DST                 VIA               BACKEND             MASQUERADE  PATH   STATE        IDLE  EXPIRES  SRC-ADDRESS     DST-ADDRESS         BACKEND-ADDRESS  FLAGS          PACKETS  BYTES   REPLY-PACKETS  REPLY-BYTES
            TCP    192.0.2.7:555         default/web-1:8080  <none>            <none>              <none>      stack  NEW          1s    59s      192.0.2.7:555   10.1.0.3:8080       <none>           inbound        <none>   <none>  <none>         <none>
            UDP    default/client:5353   8.8.8.8:53          <none>            <none>              <none>      stack  ESTABLISHED  100s  20s      10.1.0.2:5353   8.8.8.8:53          <none>           <none>         <none>   <none>  <none>         <none>
            UDP    default/client:5354   8.8.8.8:53          <none>            <none>              <none>      stack  EXPIRED      90s   0s       10.1.0.2:5354   8.8.8.8:53          <none>           <none>         <none>   <none>  <none>         <none>
            TCP    default/client:40000  10.96.0.10:80       default/web:http  default/web-1:8080  <none>      stack  ESTABLISHED  9s    23h      10.1.0.2:40000  10.96.0.10:80       10.1.0.3:8080    <none>         <none>   <none>  <none>         <none>
            TCP    default/client:40000  default/web-1:8080  default/web:http  <none>              <none>      stack  ESTABLISHED  4s    23h      10.1.0.2:40000  10.1.0.3:8080       <none>           reply          <none>   <none>  <none>         <none>
            TCP    default/client:40000  default/web-1:8080  <none>            <none>              <none>      stack  ESTABLISHED  4s    23h      10.1.0.2:40000  10.1.0.3:8080       <none>           inbound        <none>   <none>  <none>         <none>
            TCP    default/client:40001  10.96.0.10:80       default/web:http  default/web-3:8080  <none>      stack  CLOSING      10s   59m      10.1.0.2:40001  10.96.0.10:80       10.1.1.4:8080    <none>         <none>   <none>  <none>         <none>
            TCP    default/client:40002  10.96.0.10:80       default/web:http  default/web-2:8080  <none>      stack  GONE         60s   23h      10.1.0.2:40002  10.96.0.10:80       10.1.1.3:8080    <none>         <none>   <none>  <none>         <none>
            TCP    default/web-1:8080    169.254.42.1:50000  default/web:http  <none>              <none>      back   ESTABLISHED  2s    23h      10.1.0.3:8080   169.254.42.1:50000  <none>           reply,hairpin  <none>   <none>  <none>         <none>
            TCP    default/web-1:50000   10.96.0.10:80       default/web:http  default/web-1:8080  <none>      back   ESTABLISHED  2s    23h      10.1.0.3:50000  10.96.0.10:80       10.1.0.3:8080    hairpin        <none>   <none>  <none>         <none>
        "#]],
    );
}

#[test]
fn flows_of_removed_backends_are_found() {
    let (snapshot, names) = (snapshot(), names());
    let view = View::new(&snapshot, &names, NOW);
    let [dialed, backend] = ["10.96.0.10:80", "10.1.1.3:8080"].map(|at| at.parse().unwrap());
    assert_eq!(ct::stale(&view, &flows(), STAMPS), [Stale { dialed, backend }]);
}

#[test]
fn flows_are_counted() {
    let by = |by| {
        move |view: &View<'_>| ct::count(&ct::rows(view, &uncounted(flows()), STAMPS, false), by)
    };
    check(
        &names(),
        Format::Table,
        by(CountBy::Service),
        expect![[r#"
        BY                COUNT
        default/web:http  4
        <none>            2
    "#]],
    );
    check(
        &names(),
        Format::Table,
        by(CountBy::Src),
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
        by(CountBy::State),
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
fn pairs_count_live_flows_by_their_ends() {
    let owner = |ip: IpAddr| match ip.to_string().as_str() {
        "10.1.0.2" => "default/client-7d4b9c6f5d-x2x7k".to_owned(),
        "10.1.0.3" => "default/web-1".to_owned(),
        "10.1.1.3" => "default/web-2".to_owned(),
        "10.1.1.4" => "default/web-3".to_owned(),
        _ => String::new(),
    };
    let rows = |view: &View<'_>, by: PairBy, wanted: &FlowFilter| {
        let entries: Vec<_> = flows().into_iter().chain(external_flows()).collect();
        let live = pairs::live(view, &uncounted(entries), STAMPS);
        let denied = super::policies::rows_of_sample();
        let now_ms = 1_795_294_095_123 + 90_000;
        let facts = PairFacts { live: &live, sample: &denied, owner: &owner, now_ms };
        pairs::rows(&facts, wanted, by)
    };
    let all = FlowFilter::default();
    check(
        &names(),
        Format::Table,
        |view: &View<'_>| rows(view, PairBy::Pair, &all),
        expect![[r#"
            SRC             DST          PORT  PROTO  VIA                 VERDICT     COUNT  LAST  BY
            default/client  default/web  8080  TCP    default/web:http    allowed     3      4s    <none>
            192.0.2.7       default/web  8080  TCP    <none>              dropped     1      90s   fence ingress[4]
            192.0.2.7       default/web  8080  TCP    <none>              unanswered  1      1s    <none>
            203.0.113.5     default/web  8080  TCP    default/web:http    allowed     1      3s    <none>
            203.0.113.6     default/web  8080  TCP    default/web:http    allowed     1      5s    <none>
            default/client  8.8.8.8      53    UDP    <none>              allowed     1      100s  <none>
            default/client  10.96.0.53   53    TCP    kube-system/dns:53  dropped     1      90s   NO_ENDPOINTS
            default/client  default/web  8080  TCP    <none>              dropped     1      90s   default/access default-deny
            default/client  default/web  8080  TCP    <none>              would-deny  1      90s   default/access,default/try default-deny
            default/web     default/web  8080  TCP    default/web:http    allowed     1      2s    <none>
        "#]],
    );
    let to_web_1 = FlowFilter { to: Some("default/web-1".to_owned()), ..FlowFilter::default() };
    check(
        &names(),
        Format::Wide,
        |view: &View<'_>| rows(view, PairBy::Pod, &to_web_1),
        expect![[r#"
            SRC                              DST            PORT  PROTO  VIA               VERDICT     COUNT  LAST  BY                                       SRC-ADDRESS  DST-ADDRESS  PACKETS  BYTES   REPLY-PACKETS  REPLY-BYTES
            192.0.2.7                        default/web-1  8080  TCP    <none>            dropped     1      90s   fence ingress[4]                         192.0.2.7    10.1.0.3     <none>   <none>  <none>         <none>
            192.0.2.7                        default/web-1  8080  TCP    <none>            unanswered  1      1s    <none>                                   192.0.2.7    10.1.0.3     <none>   <none>  <none>         <none>
            203.0.113.5                      default/web-1  8080  TCP    default/web:http  allowed     1      3s    <none>                                   203.0.113.5  10.1.0.3     <none>   <none>  <none>         <none>
            default/client                   default/web-1  8080  TCP    <none>            dropped     1      90s   default/access default-deny              10.1.0.2     10.1.0.3     <none>   <none>  <none>         <none>
            default/client                   default/web-1  8080  TCP    <none>            would-deny  1      90s   default/access,default/try default-deny  10.1.0.2     10.1.0.3     <none>   <none>  <none>         <none>
            default/client-7d4b9c6f5d-x2x7k  default/web-1  8080  TCP    default/web:http  allowed     1      4s    <none>                                   10.1.0.2     10.1.0.3     <none>   <none>  <none>         <none>
            default/web-1                    default/web-1  8080  TCP    default/web:http  allowed     1      2s    <none>                                   10.1.0.3     10.1.0.3     <none>   <none>  <none>         <none>
        "#]],
    );
    let by_policy = FlowFilter { policy: Some("fence".to_owned()), ..FlowFilter::default() };
    check(
        &names(),
        Format::Json,
        |view: &View<'_>| rows(view, PairBy::Pair, &by_policy),
        expect![[r#"
            {
              "node": "n1",
              "items": [
                {
                  "src": {
                    "name": "192.0.2.7",
                    "address": "192.0.2.7"
                  },
                  "dst": {
                    "name": "default/web",
                    "address": ""
                  },
                  "port": 8080,
                  "protocol": "TCP",
                  "via": "",
                  "verdict": "dropped",
                  "count": 1,
                  "idle": 90,
                  "by": "fence ingress[4]"
                }
              ]
            }
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
    let mut counts = HashMap::new();
    for (key, entry) in flows() {
        count_flow(&mut counts, &key, &entry, STAMPS);
    }
    let mut counts: Vec<(u32, FlowCount)> = counts.into_iter().collect();
    counts.sort_by_key(|(id, _)| *id);
    let count = |active, inactive| FlowCount { active, inactive };
    assert_eq!(counts, [(1, count(2, 0)), (2, count(1, 0)), (4, count(0, 1))]);
}

/// From outside to web: to web-1 on this node, to web-2 on another one, to a process of this host.
fn external_flows() -> Vec<(CtKey, CtEntry)> {
    let (syn, open) = (CtFlags::tcp(tcp::SYN, 0), tcp::SYN | tcp::ACK);
    let both = CtFlags::tcp(open, open);
    let scoped = |scope, local: &str, remote: &str, veth| CtKey {
        scope,
        ..key(local, remote, proto::TCP, veth)
    };
    let forward = CtFlags::FORWARD | CtFlags::EXTERNAL;
    let reply = CtFlags::REPLY | CtFlags::EXTERNAL;
    let (web, client) = ("10.96.0.10:80", "203.0.113.5:4000");
    let (web_1, web_2, host) = ("10.1.0.3:8080", "10.1.1.3:8080", "192.0.2.1:6443");
    let masquerade = "192.0.2.1:61000";
    vec![
        (
            scoped(scope::EXTERNAL, web, client, 0),
            CtEntry { epoch: 12, ..entry(web_1, client, 1, forward | both, 8) },
        ),
        (scoped(scope::POD, web_1, client, 12), entry(web, client, 1, reply | both, 3)),
        (
            scoped(scope::EXTERNAL, web, "203.0.113.6:4001", 0),
            entry(web_2, masquerade, 2, forward | CtFlags::MASQUERADED | both, 9),
        ),
        (
            scoped(scope::EXTERNAL_REPLY, web_2, masquerade, 0),
            entry(web, "203.0.113.6:4001", 2, reply | CtFlags::MASQUERADED | both, 5),
        ),
        (
            scoped(scope::EXTERNAL, "10.96.0.99:443", client, 0),
            entry(host, client, 5, forward | CtFlags::TO_HOST | syn, 2),
        ),
        (
            scoped(scope::EXTERNAL_REPLY, host, client, 0),
            entry("10.96.0.99:443", client, 5, reply, 2),
        ),
    ]
}

#[test]
fn a_flow_from_outside_is_one_line_with_its_masquerade() {
    check(
        &names(),
        Format::Table,
        |view: &View<'_>| ct::rows(view, &uncounted(external_flows()), STAMPS, false),
        expect![[r#"
            PROTO  SRC               DST             VIA               BACKEND             MASQUERADE       PATH   STATE        IDLE  EXPIRES
            TCP    203.0.113.5:4000  10.96.0.10:80   default/web:http  default/web-1:8080  <none>           veth   ESTABLISHED  3s    23h
            TCP    203.0.113.5:4000  10.96.0.99:443  #9                192.0.2.1:6443      <none>           stack  NEW          2s    58s
            TCP    203.0.113.6:4001  10.96.0.10:80   default/web:http  default/web-2:8080  192.0.2.1:61000  hop    ESTABLISHED  5s    23h
        "#]],
    );
    check(
        &names(),
        Format::Wide,
        |view: &View<'_>| ct::rows(view, &uncounted(external_flows()), STAMPS, true),
        expect![[r#"
            PROTO  SRC               DST                 VIA               BACKEND             MASQUERADE       PATH   STATE        IDLE  EXPIRES  SRC-ADDRESS       DST-ADDRESS     BACKEND-ADDRESS  FLAGS                       PACKETS  BYTES   REPLY-PACKETS  REPLY-BYTES
            TCP    192.0.2.1:61000   default/web-2:8080  default/web:http  <none>              <none>           hop    ESTABLISHED  5s    23h      192.0.2.1:61000   10.1.1.3:8080   <none>           external,reply,masqueraded  <none>   <none>  <none>         <none>
            TCP    203.0.113.5:4000  10.96.0.10:80       default/web:http  default/web-1:8080  <none>           veth   ESTABLISHED  8s    23h      203.0.113.5:4000  10.96.0.10:80   10.1.0.3:8080    external                    <none>   <none>  <none>         <none>
            TCP    203.0.113.5:4000  10.96.0.99:443      #9                192.0.2.1:6443      <none>           stack  NEW          2s    58s      203.0.113.5:4000  10.96.0.99:443  192.0.2.1:6443   external,to-host            <none>   <none>  <none>         <none>
            TCP    203.0.113.5:4000  192.0.2.1:6443      #9                <none>              <none>           hop    NEW          2s    58s      203.0.113.5:4000  192.0.2.1:6443  <none>           external,reply              <none>   <none>  <none>         <none>
            TCP    203.0.113.5:4000  default/web-1:8080  default/web:http  <none>              <none>           hop    ESTABLISHED  3s    23h      203.0.113.5:4000  10.1.0.3:8080   <none>           external,reply              <none>   <none>  <none>         <none>
            TCP    203.0.113.6:4001  10.96.0.10:80       default/web:http  default/web-2:8080  192.0.2.1:61000  hop    ESTABLISHED  9s    23h      203.0.113.6:4001  10.96.0.10:80   10.1.1.3:8080    external,masqueraded        <none>   <none>  <none>         <none>
        "#]],
    );
    let kept =
        |filter: &CtFilter| external_flows().iter().filter(|(k, e)| filter.keeps(k, e)).count();
    let set = |ip: &str| Some([addr(ip)].into());
    assert_eq!(kept(&CtFilter { locals: set("10.1.0.3"), ..CtFilter::default() }), 2, "its Pod");
    assert_eq!(kept(&CtFilter { locals: set("10.96.0.10"), ..CtFilter::default() }), 0);
    assert_eq!(kept(&CtFilter { addrs: set("203.0.113.6"), ..CtFilter::default() }), 2);
    assert_eq!(kept(&CtFilter { addrs: set("192.0.2.1"), ..CtFilter::default() }), 4, "the node");
}
