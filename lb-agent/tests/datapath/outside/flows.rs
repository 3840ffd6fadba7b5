//! Rules are for first packets: what is open goes on when its frontend changes or goes, as long as its backend is there.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtEntry, CtKey};
use lb_common::flow::proto;
use lb_common::limits;
use lb_common::service::{Frontend, FrontendKey, state};

use lb_testkit::bed::{Bed, Verdict, outcome};
use lb_testkit::node::{Addrs, FAMILIES, Way};
use lb_testkit::packet;

use super::{ip, source};

/// Where the backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Here,
    Elsewhere,
    Host,
}

const PLACES: [Place; 3] = [Place::Here, Place::Elsewhere, Place::Host];

impl Place {
    fn backend(self, family: &Addrs) -> String {
        match self {
            Self::Here => family.at(family.pod, 8080),
            Self::Elsewhere => family.at(family.far_pod, 8080),
            Self::Host => family.at(family.node, 6443),
        }
    }

    /// A packet of the backend.
    fn answers(self, bed: &Bed, text: &str) -> String {
        match self {
            Self::Here => bed.leave(text),
            Self::Elsewhere => bed.arrive(text),
            Self::Host => bed.depart(text),
        }
    }
}

/// The tables of flows are empty again.
pub(crate) fn forget_all(bed: &mut Bed) {
    for (key, _) in bed.conntrack() {
        bed.forget(key);
        if bed.get::<CtKey, CtEntry>("kept", key).is_some() {
            bed.remove::<CtKey, CtEntry>("kept", key);
        }
    }
    bed.counted();
}

/// A flow from a client to a backend through a frontend.
struct Open {
    bed: Bed,
    id: u32,
    place: Place,
    client: String,
    frontend: String,
    backend: String,
    /// The client as the backend sees it.
    seen: String,
    protocol: &'static str,
}

impl Open {
    fn new(
        mut bed: Bed,
        family: &Addrs,
        place: Place,
        frontend: &str,
        protocol: &'static str,
    ) -> Self {
        let (client, backend) = (family.at(family.client, 4000), place.backend(family));
        let id = bed.backend(&backend, lb_testkit::bed::protocol(protocol));
        bed.outside(frontend, lb_testkit::bed::protocol(protocol), &[id], &Way::default());
        if place == Place::Host {
            bed.add_port("host_ports", 6443);
        }
        let syn = if protocol == "tcp" { " S seq=1" } else { "" };
        let seen = source(&bed.arrive(&format!("{client} > {frontend} {protocol}{syn}")));
        let frontend = frontend.to_owned();
        let open =
            Self { bed, id, place, client, frontend, backend, seen: seen.to_string(), protocol };
        let (ack, last) =
            if protocol == "tcp" { (" SA seq=7 ack=2", " A seq=2 ack=8") } else { ("", "") };
        open.lives(ack, last);
        open
    }

    /// A packet of each side reaches the other.
    fn lives(&self, answer: &str, request: &str) {
        let Self { client, frontend, backend, seen, protocol, .. } = self;
        let outcome =
            self.place.answers(&self.bed, &format!("{backend} > {seen} {protocol}{answer}"));
        assert!(
            outcome.contains(&format!("{frontend} > {client} {protocol}{answer}")),
            "{outcome}"
        );
        let outcome = self.request(request);
        assert!(outcome.contains(&format!("{seen} > {backend} {protocol}{request}")), "{outcome}");
    }

    /// The client sends.
    fn request(&self, what: &str) -> String {
        let Self { client, frontend, protocol, .. } = self;
        self.bed.arrive(&format!("{client} > {frontend} {protocol}{what}"))
    }

    /// The packet of the client if no program changes it.
    fn untouched(&self, what: &str) -> String {
        let Self { client, frontend, protocol, .. } = self;
        packet::show(&packet::build(&format!("{client} > {frontend} {protocol}{what}")))
    }

    fn remove_frontend(&mut self) {
        let at: std::net::SocketAddr = self.frontend.parse().unwrap();
        let key = FrontendKey::new(
            Addr::from_ip(at.ip()),
            Be16::new(at.port()),
            lb_testkit::bed::protocol(self.protocol),
        );
        self.bed.remove::<_, Frontend>("frontends", key);
        self.bed.counted();
    }

    /// Says that flows to its former frontend may be left.
    fn say_so(&mut self) {
        let port = self.frontend.parse::<std::net::SocketAddr>().unwrap().port();
        self.bed.add_port("former_ports", port);
    }

    /// It is over and forgotten.
    fn end(self) -> Bed {
        let mut bed = self.bed;
        forget_all(&mut bed);
        for word in 0..limits::PORT_WORDS {
            bed.set("former_ports", word, 0_u64);
        }
        bed
    }
}

#[test]
fn s52_a_connection_goes_on_when_its_frontend_is_gone_and_new_ones_do_not_begin() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        for place in PLACES {
            for (at, left) in [(family.node, true), (family.lb, true), (family.unallocated, false)]
            {
                let frontend = family.at(at, 30080);
                let mut open = Open::new(bed, family, place, &frontend, "tcp");
                open.remove_frontend();
                // What the bit is for: other traffic to the port costs nothing.
                let data = " A seq=2 ack=8 len=9";
                let is_left = |open: &Open, what: &str| {
                    let want = if left { open.untouched(what) } else { "drop".to_owned() };
                    assert_eq!(open.request(what), want, "{place:?} {frontend}{what}");
                };
                is_left(&open, data);
                open.say_so();
                open.bed.counted();
                open.lives(" A seq=8 ack=2 len=5", data);
                assert_eq!(open.bed.counted(), "");
                // Another connection is not ours, nor is this one when it is opened again.
                let client = std::mem::replace(&mut open.client, family.at(family.client, 4001));
                is_left(&open, " S seq=1");
                is_left(&open, data);
                open.client = client;
                // The frontend comes back, for another Service.
                let other = open.bed.backend(&family.at(family.other_pod, 9), proto::TCP);
                open.bed.outside(&frontend, proto::TCP, &[other], &Way::default());
                open.lives(" A seq=13 ack=11 len=1", data);
                open.remove_frontend();
                // It ends with its backend.
                open.bed.set_state(open.id, state::DRAINING);
                open.lives(" A seq=14 ack=11 len=1", data);
                open.bed.set_state(open.id, state::DEAD);
                let Open { client, .. } = &open;
                assert_eq!(
                    open.request(" A seq=12 ack=15 len=1"),
                    format!("redirect back {frontend} > {client} tcp R seq=15 ack=0 len=0")
                );
                assert_eq!(open.bed.reasons(), "BACKEND_GONE/in+1");
                bed = open.end();
            }
        }
    }
}

#[test]
fn s52_datagrams_go_on_while_their_backend_takes_new_ones() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        for place in PLACES {
            let frontend = family.at(family.lb, 5353);
            let mut open = Open::new(bed, family, place, &frontend, "udp");
            open.remove_frontend();
            assert_eq!(open.request(""), open.untouched(""));
            open.say_so();
            open.lives("", "");
            in_pieces(&open);
            open.bed.set_state(open.id, state::DRAINING);
            assert_eq!(
                open.request(""),
                open.untouched(""),
                "UDP chooses again, and there is no choice"
            );
            assert_eq!(open.bed.counted(), "");
            bed = open.end();
        }
    }
}

/// A datagram of the client in two fragments reaches the backend.
fn in_pieces(open: &Open) {
    let Open { client, frontend, backend, seen, .. } = open;
    let datagram = packet::build(&format!("{client} > {frontend} udp len=900"));
    let pieces = packet::in_two(&datagram, 504, 77).map(|piece| {
        let (verdict, out) = open.bed.run("dev_in", &piece);
        let to_host = open.place == Place::Host;
        assert_eq!(verdict, if to_host { Verdict::Next } else { Verdict::Redirect });
        out
    });
    assert_eq!(packet::show(&packet::whole(pieces)), format!("{seen} > {backend} udp"));
}

#[test]
fn s52_errors_about_a_connection_whose_frontend_is_gone_arrive() {
    for family in &FAMILIES {
        let kind = if family.v4() { "icmp 3.4" } else { "icmp 2.0" };
        let router = if family.v4() { "198.18.0.1" } else { "2001:db8:18::1" };
        let mut bed = Bed::node();
        for place in PLACES {
            let frontend = family.at(family.lb, 80);
            let mut open = Open::new(bed, family, place, &frontend, "tcp");
            open.remove_frontend();
            open.say_so();
            let Open { client, backend, seen, .. } = &open;
            let quote = format!("{frontend} > {client} tcp A seq=8 ack=2 len=20");
            let error = packet::too_big(ip(router), ip(family.lb), &quote);
            let (verdict, out) = open.bed.run("dev_in", &error);
            let outcome = outcome(verdict, &out);
            assert!(
                outcome.contains(&format!("{kind} [{backend} > {seen} tcp")),
                "{place:?}: {outcome}"
            );
            bed = open.end();
        }
    }
}

/// One packet with these ports of another protocol than TCP.
fn datagram(from: &str, to: &str, protocol: u8) -> Vec<u8> {
    if protocol == proto::SCTP {
        super::sctp(from, to, 24)
    } else {
        packet::build(&format!("{from} > {to} udp len=20"))
    }
}

#[test]
fn s54_answers_to_what_the_node_sends_from_the_port_of_a_frontend_are_its_own() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        for protocol in [proto::UDP, proto::SCTP] {
            let frontend = family.at(family.node, 30053);
            let id = bed.backend(&family.at(family.pod, 8080), protocol);
            bed.outside(&frontend, protocol, &[id], &Way::default());
            let remote = family.at(family.client, 7);
            let is_left = |bed: &Bed, program: &str, from: &str, to: &str| {
                let bytes = datagram(from, to, protocol);
                bed.run(program, &bytes) == (Verdict::Next, bytes)
            };
            // A process of the host, or netfilter for a Pod: by now it cannot be told.
            assert!(is_left(&bed, "dev_out", &frontend, &remote));
            assert!(is_left(&bed, "dev_in", &remote, &frontend), "its answer");
            assert_eq!((bed.counted().as_str(), bed.conntrack().len()), ("", 0));
            let stranger = family.at(family.client, 8);
            assert!(!is_left(&bed, "dev_in", &stranger, &frontend), "a client, from another port");
            // What answers a client is not sent by the node of its own accord.
            let [(key, _)] = own_flows(&bed)[..] else { panic!("{:?}", own_flows(&bed)) };
            assert!(is_left(&bed, "dev_out", &frontend, &stranger));
            assert_eq!(own_flows(&bed).len(), 1);
            forget_all(&mut bed);
            assert!(!is_left(&bed, "dev_in", &stranger, &frontend), "a client still");
            forget_all(&mut bed);
            // Nor is what leaves from other ports, or from other addresses.
            for from in [family.at(family.node, 30054), family.at(family.pod, 30053)] {
                assert!(is_left(&bed, "dev_out", &from, &remote));
            }
            assert_eq!(own_flows(&bed).len(), 1);
            // It is over after a while; each packet of either side puts that off.
            let secs = if protocol == proto::UDP { 120 } else { 600 };
            for (ago, program, from, to) in [
                (secs - 5, "dev_in", &remote, &frontend),
                (secs + 5, "dev_out", &frontend, &remote),
            ] {
                seen_before(&mut bed, key, ago);
                assert!(is_left(&bed, program, from, to));
                assert!(is_left(&bed, "dev_in", &remote, &frontend));
            }
            seen_before(&mut bed, key, secs + 5);
            assert!(!is_left(&bed, "dev_in", &remote, &frontend), "a client, after all");
            bed.remove::<CtKey, u32>("own_flows", key);
            forget_all(&mut bed);
        }
    }
}

/// Flows of the node's own, and when they were seen.
fn own_flows(bed: &Bed) -> Vec<(CtKey, u32)> {
    bed.all("own_flows")
}

/// A flow of the node itself was last seen this number of seconds ago.
fn seen_before(bed: &mut Bed, key: CtKey, secs: u32) {
    let hz = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    let hz = (1_000_000_000 / hz.tv_nsec()) as u32;
    let now = bed.stamp();
    bed.put("own_flows", key, now.wrapping_sub(secs * hz / 256));
}
