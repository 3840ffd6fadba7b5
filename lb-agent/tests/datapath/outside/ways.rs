//! Where packets of flows from outside go on: as the routing table says, which is asked once a stamp.

use lb_common::conntrack::{CtEntry, CtKey, scope};
use lb_common::flow::proto;
use lb_common::outside::OutsideWay;
use lb_testkit::bed::{Bed, Verdict, outcome};
use lb_testkit::node::{Addrs, FAMILIES, FAR_MTU, Way, sh};
use lb_testkit::objects::addr;
use lb_testkit::packet;

use super::source;

const GATEWAY: &str = "192.0.2.254";
/// The device that test runs come in by.
const LOOPBACK: u32 = 1;
/// The packet does not reach its backend any more.
const UNREACHABLE: &str =
    "ip route add unreachable 10.2.0.9/32; ip route add unreachable 10.1.0.2/32
    ip -6 route add unreachable fd00:2::9/128; ip -6 route add unreachable fd00:1::2/128";

fn ifindex(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap()
}

/// A conversation from outside, and what happens to its packets.
struct Talk {
    bed: Bed,
    family: &'static Addrs,
    far: bool,
    question: String,
    answer: String,
}

impl Talk {
    fn new(family: &'static Addrs, far: bool) -> Self {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30053));
        let pod = family.at(if far { family.far_pod } else { family.pod }, 53);
        let id = bed.backend(&pod, proto::UDP);
        bed.outside(&frontend, proto::UDP, &[id], &Way::default());
        let question = format!("{client} > {frontend} udp");
        let seen = source(&bed.arrive(&question));
        let talk = Self { bed, family, far, question, answer: format!("{pod} > {seen} udp") };
        assert_eq!(talk.answers(8), format!("redirect {frontend} > {client} udp"));
        talk
    }

    /// All of them, of both families.
    fn each(mut of: impl FnMut(Self)) {
        for family in &FAMILIES {
            for far in [false, true] {
                of(Self::new(family, far));
            }
        }
    }

    fn asks(&self, len: usize) -> String {
        self.bed.arrive(&format!("{} len={len}", self.question))
    }

    fn answers(&self, len: usize) -> String {
        let bytes = packet::build(&format!("{} len={len}", self.answer));
        let (verdict, out) =
            if self.far { self.bed.run("dev_in", &bytes) } else { self.bed.leave_bytes(&bytes) };
        outcome(verdict, &out)
    }

    fn goes_on(&self) -> bool {
        self.asks(8).starts_with("redirect") && !self.asks(8).starts_with("redirect back")
    }

    /// The ways that the entry of the questions and that of the answers have.
    fn ways(&self) -> [Option<OutsideWay>; 2] {
        let of = |external: bool| {
            let mut entries = self.bed.conntrack().into_iter();
            let is_it = |(key, _): &(CtKey, CtEntry)| (key.scope == scope::EXTERNAL) == external;
            let (_, entry) = entries.find(is_it).unwrap();
            OutsideWay::of_addr(&entry.way)
        };
        [of(true), of(false)]
    }

    /// Changes the ways in the entries.
    fn change(&mut self, change: impl Fn(OutsideWay) -> OutsideWay) {
        for (key, mut entry) in self.bed.conntrack() {
            if let Some(way) = OutsideWay::of_addr(&entry.way) {
                entry.way = change(way).to_addr();
                self.bed.put("ct", key, entry);
            }
        }
    }

    /// As if the routing table had been asked just now: a stamp may have passed since.
    fn renew(&mut self) {
        let asked = self.bed.stamp() as u16;
        self.change(|way| OutsideWay { asked, ..way });
    }

    /// Lets the routing table be asked again at the next packet.
    fn outdate(&mut self) {
        self.change(|way| OutsideWay { asked: way.asked.wrapping_sub(1), ..way });
    }
}

#[test]
fn both_entries_remember_where_their_packets_go() {
    Talk::each(|talk| {
        let way = |device: &str, next: &str, mtu| {
            let next4 = addr(next).word3();
            Some((ifindex(device), next4, LOOPBACK, mtu))
        };
        let want = match (talk.family.v4(), talk.far) {
            (false, _) => [None, None],
            (true, true) => [way("far0", "192.0.3.2", FAR_MTU), way("out0", GATEWAY, 1500)],
            (true, false) => [way("pod0", talk.family.pod, 1500), way("out0", GATEWAY, 1500)],
        };
        let got = talk.ways().map(|way| way.map(|it| (it.device, it.next4, it.from, it.mtu)));
        assert_eq!(got, want);
        assert!(talk.goes_on());
    });
}

#[test]
fn a_way_to_a_neighbor_that_is_not_known_is_not_remembered() {
    for far in [false, true] {
        let mut talk = Talk::new(&FAMILIES[0], far);
        sh("ip neigh flush all nud permanent");
        talk.outdate();
        let before = talk.ways();
        assert!(talk.goes_on());
        assert!(talk.answers(8).starts_with("redirect"));
        assert_eq!(talk.ways(), before, "asked for each packet");
    }
}

#[test]
fn a_changed_route_is_obeyed_when_the_routing_table_is_asked_again() {
    for far in [false, true] {
        let mut talk = Talk::new(&FAMILIES[0], far);
        sh("ip route replace 10.2.0.0/24 via 192.0.2.254
            ip route replace 10.1.0.0/24 via 192.0.2.254
            ip route replace default via 192.0.3.2");
        talk.renew();
        let before = talk.ways();
        assert!(talk.goes_on() && talk.answers(8).starts_with("redirect"));
        assert_eq!(talk.ways(), before, "not asked yet");
        talk.outdate();
        assert!(talk.goes_on() && talk.answers(8).starts_with("redirect"));
        let devices = talk.ways().map(|way| way.unwrap().device);
        assert_eq!(devices, [ifindex("out0"), ifindex("far0")]);
    }
}

#[test]
fn a_route_that_is_gone_stops_a_flow_within_a_stamp() {
    Talk::each(|mut talk| {
        talk.bed.counted();
        sh(UNREACHABLE);
        talk.renew();
        // IPv6 asks for each packet.
        assert_eq!(talk.asks(8).starts_with("redirect"), talk.family.v4());
        talk.outdate();
        assert_eq!(talk.asks(8), "drop");
        let n = if talk.family.v4() { 1 } else { 2 };
        assert_eq!(talk.bed.counted(), format!("NO_ROUTE/in+{n}"));
        sh("ip route del unreachable 10.2.0.9/32; ip route del unreachable 10.1.0.2/32
            ip -6 route del unreachable fd00:2::9/128; ip -6 route del unreachable fd00:1::2/128");
        assert!(talk.goes_on(), "at once");
    });
}

#[test]
fn a_device_that_is_gone_is_left_within_a_stamp() {
    for far in [false, true] {
        let mut talk = Talk::new(&FAMILIES[0], far);
        let device = if far { "far0" } else { "pod0" };
        let gone = ifindex(device);
        sh(&format!("ip link del {device}"));
        talk.outdate();
        assert!(talk.goes_on());
        let [way, _] = talk.ways();
        assert_ne!(way.unwrap().device, gone, "the default route");
    }
}

#[test]
fn a_packet_that_came_in_by_another_device_is_asked_about() {
    for far in [false, true] {
        let mut talk = Talk::new(&FAMILIES[0], far);
        let right = talk.ways();
        let elsewhere = ifindex("out1");
        talk.change(|way| OutsideWay { from: elsewhere, device: elsewhere, ..way });
        assert!(talk.goes_on() && talk.answers(8).starts_with("redirect"));
        assert_eq!(talk.ways(), right);
    }
}

#[test]
fn rules_about_sources_are_obeyed() {
    let rules = "ip rule add from 192.0.3.1 lookup 100
        ip route add 10.2.0.0/24 via 192.0.2.254 table 100";
    for rules_first in [true, false] {
        let mut talk = Talk::new(&FAMILIES[0], true);
        sh(rules);
        if rules_first {
            for (key, _) in talk.bed.conntrack() {
                talk.bed.forget(key);
            }
        } else {
            talk.outdate();
        }
        assert!(talk.goes_on());
        let mut forward = talk.bed.conntrack().into_iter();
        let (_, entry) = forward.find(|(key, _)| key.scope == scope::EXTERNAL).unwrap();
        assert_eq!(OutsideWay::of_addr(&entry.way).unwrap().device, ifindex("out0"));
    }
}

/// Where a packet does not fit the way that is remembered, the routing table is asked, whenever.
#[test]
fn an_mtu_is_obeyed_at_once_if_it_grows_and_within_a_stamp_if_it_shrinks() {
    let mut talk = Talk::new(&FAMILIES[0], true);
    let fits = usize::from(FAR_MTU) - 28;
    assert!(talk.asks(fits).starts_with("redirect 192"));
    assert!(talk.asks(fits + 1).starts_with("redirect back"));
    sh("ip link set far0 mtu 1450");
    assert!(talk.asks(fits + 1).starts_with("redirect 192"));
    sh("ip link set far0 mtu 1300");
    talk.outdate();
    assert!(talk.asks(fits + 1).starts_with("redirect back"));
    assert!(talk.asks(1300 - 28).starts_with("redirect 192"));
    assert!(talk.asks(1300 - 27).starts_with("redirect back"));
    let [way, _] = talk.ways();
    assert_eq!(way.unwrap().mtu, 1300);
    // An answer is left to the stack, which tells the Pod.
    let talk = Talk::new(&FAMILIES[0], false);
    assert!(talk.answers(1472).starts_with("redirect"));
    let big = packet::build(&format!("{} len=1473", talk.answer));
    assert_eq!(talk.bed.leave_bytes(&big), (Verdict::Next, big));
}
