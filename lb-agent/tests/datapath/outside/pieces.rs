//! IPv4 packets that are too big for the next device and may be cut: in pieces, translated, to where the whole would go.

use lb_common::flow::proto;
use testbed::raw::Port;

use lb_testkit::bed::{Bed, Verdict, outcome, protocol};
use lb_testkit::node::{FAMILIES, FAR_MTU, Way, sh};
use lb_testkit::packet;

use super::source;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE: u16 = 0x2000;
/// Offset of the IPv4 payload.
const PAYLOAD: usize = 34;

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Sets length, flags and offset of the packet, and the header's checksum.
fn set(bytes: &mut [u8], id: u16, fragment: u16) {
    let total = (bytes.len() - 14) as u16;
    for (at, value) in [(16, total), (18, id), (20, fragment), (24, 0)] {
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
    let sum: u32 = (14..PAYLOAD).step_by(2).map(|at| u32::from(word(bytes, at))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// A packet whose sender allows to cut it.
fn divisible(text: &str, id: u16) -> Vec<u8> {
    let mut bytes = packet::build(text);
    set(&mut bytes, id, 0);
    bytes
}

/// The pieces that its sender makes of a packet, for a link of 1,500 bytes.
fn cut_by_sender(bytes: &[u8], id: u16) -> Vec<Vec<u8>> {
    const PIECE: usize = 1480;
    let payload = &bytes[PAYLOAD..];
    let n = payload.len().div_ceil(PIECE);
    let piece = |(i, part): (usize, &[u8])| {
        let mut piece = [&bytes[..PAYLOAD], part].concat();
        let more = if i + 1 < n { MORE } else { 0 };
        set(&mut piece, id, more | (i * PIECE / 8) as u16);
        piece
    };
    payload.chunks(PIECE).enumerate().map(piece).collect()
}

/// Returns the packets that pass, in their order, of packets that arrive one after the other.
fn sent_on(bed: &Bed, loopback: &Port, program: &str, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut waiting: std::collections::VecDeque<Vec<u8>> = packets.iter().cloned().collect();
    while let Some(bytes) = waiting.pop_front() {
        let (verdict, bytes) = bed.run(program, &bytes);
        assert_eq!(verdict, Verdict::Redirect, "{:?}", packet_head(&bytes));
        out.push(bytes);
        for (i, rest) in loopback.received().unwrap().into_iter().enumerate() {
            waiting.insert(i, rest);
        }
    }
    out
}

fn packet_head(bytes: &[u8]) -> &[u8] {
    &bytes[14..bytes.len().min(42)]
}

/// The packet that the pieces are of: each fits, and begins where the one before ends.
fn whole(pieces: &[Vec<u8>], mtu: u16) -> Vec<u8> {
    let mut all = pieces[0].clone();
    for (i, piece) in pieces.iter().enumerate() {
        let fragment = word(piece, 20);
        assert!(piece.len() <= 14 + usize::from(mtu), "piece {i} has {} bytes", piece.len());
        assert_eq!(usize::from(word(piece, 16)) + 14, piece.len());
        assert_eq!(word(piece, 18), word(&all, 18), "identification");
        assert_eq!(fragment & MORE != 0, i + 1 < pieces.len(), "piece {i}");
        assert_eq!(piece[22], 63, "one hop less, once");
        assert!(packet::sums_hold(&piece[14..34 + piece.len() - PAYLOAD], 20, 255), "piece {i}");
        if i > 0 {
            assert_eq!(usize::from(fragment & 0x1fff) * 8, all.len() - PAYLOAD);
            assert_eq!(piece[26..PAYLOAD], all[26..PAYLOAD], "addresses");
            all.extend(&piece[PAYLOAD..]);
        }
    }
    let id = word(&all, 18);
    set(&mut all, id, 0);
    all
}

/// A node whose Pods and clients are behind devices as small as the way to the other nodes.
fn small() -> (Bed, Port) {
    let bed = Bed::node();
    sh(&format!("ip link set pod0 mtu {FAR_MTU}; ip link set out0 mtu {FAR_MTU}"));
    (bed, Port::open_here("lo").unwrap())
}

#[test]
fn packets_that_may_be_cut_are_cut_in_both_directions() {
    let family = &FAMILIES[0];
    let (mut bed, loopback) = small();
    for (port, (name, len, pieces)) in (30053..).zip([
        ("udp", 1_422, 2),
        ("udp", 1_373, 2),
        ("udp0", 1_422, 2),
        ("udp", 3_400, 3),
        ("tcp A", 1_460, 2),
    ]) {
        let transport = &name[..3];
        for (address, backend) in [(family.node, family.pod), (family.lb, family.far_pod)] {
            let (client, frontend) = (family.at(family.client, 4000), family.at(address, port));
            let pod = family.at(backend, port);
            let id = bed.backend(&pod, protocol(transport));
            bed.outside(&frontend, protocol(transport), &[id], &Way::default());
            if transport == "tcp" {
                let syn = format!("{client} > {frontend} tcp S");
                assert!(bed.arrive(&syn).starts_with("redirect"));
                bed.counted();
            }
            let request = divisible(&format!("{client} > {frontend} {name} len={len}"), 77);
            let sent = sent_on(&bed, &loopback, "dev_in", std::slice::from_ref(&request));
            assert_eq!(sent.len(), pieces, "{name} {len} to {backend}");
            let got = whole(&sent, FAR_MTU);
            assert!(got.ends_with(&request[request.len() - len..]), "{name} {len}");
            let text = packet::show(&got);
            let seen = source(&text);
            let to = packet::show(&divisible(&format!("{seen} > {pod} {name} len={len}"), 77));
            assert_eq!(text, to, "checksums hold");
            assert_eq!(seen.to_string() == client, backend == family.pod, "{seen}");
            let cut = format!("packet_cut+{}", pieces - 1);
            assert!(bed.counted().contains(&cut), "{cut}");

            let program = if backend == family.pod { "pod_out" } else { "dev_in" };
            let answer = divisible(&format!("{pod} > {seen} {name} len={len}"), 78);
            let sent = sent_on(&bed, &loopback, program, &[answer]);
            assert_eq!(sent.len(), pieces, "{name} {len} from {backend}");
            let want = divisible(&format!("{frontend} > {client} {name} len={len}"), 78);
            let got = whole(&sent, FAR_MTU);
            assert_eq!(packet::show(&got), packet::show(&want));
            assert!(got.ends_with(&want[want.len() - len..]), "{name} {len}");
            assert!(bed.counted().contains(&cut), "{cut}");
        }
    }
}

/// A datagram of 4,000 bytes that its sender has cut for its own link.
#[test]
fn pieces_that_are_too_big_are_cut_again() {
    let family = &FAMILIES[0];
    let (mut bed, loopback) = small();
    for (address, backend) in [(family.node, family.pod), (family.lb, family.far_pod)] {
        let (client, frontend) = (family.at(family.client, 4000), family.at(address, 53));
        let pod = family.at(backend, 53);
        let id = bed.backend(&pod, proto::UDP);
        bed.outside(&frontend, proto::UDP, &[id], &Way::default());
        let request = divisible(&format!("{client} > {frontend} udp len=3972"), 5);
        let sent = sent_on(&bed, &loopback, "dev_in", &cut_by_sender(&request, 5));
        assert_eq!(sent.len(), 5, "two of the three are too big");
        let text = packet::show(&whole(&sent, FAR_MTU));
        let seen = source(&text);
        assert_eq!(text, format!("{seen} > {pod} udp"));

        let program = if backend == family.pod { "pod_out" } else { "dev_in" };
        let answer = divisible(&format!("{pod} > {seen} udp len=3972"), 6);
        let sent = sent_on(&bed, &loopback, program, &cut_by_sender(&answer, 6));
        assert_eq!(sent.len(), 5);
        assert_eq!(packet::show(&whole(&sent, FAR_MTU)), format!("{frontend} > {client} udp"));
        assert_eq!(bed.dropped(), 0);
    }
}

/// What its sender does not want cut, and what would not be itself any more.
#[test]
fn packets_that_may_not_be_cut_are_not() {
    let family = &FAMILIES[0];
    let (mut bed, loopback) = small();
    let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30053));
    let id = bed.backend(&family.at(family.far_pod, 53), proto::UDP);
    bed.outside(&frontend, proto::UDP, &[id], &Way::default());
    let request = format!("{client} > {frontend} udp len=1422");
    let mut stubborn = divisible(&request, 5);
    set(&mut stubborn, 5, DONT_FRAGMENT);
    // A piece of the kind: its later ones get no answer (RFC 1122 §3.2.2).
    let mut later = stubborn.clone();
    set(&mut later, 6, DONT_FRAGMENT | 185);
    let mut first = stubborn.clone();
    set(&mut first, 6, DONT_FRAGMENT | MORE);
    let error = format!("redirect back {} > {} icmp 3.4", family.node, family.client);
    for (bytes, want) in [(stubborn, error.as_str()), (first, &error), (later, "drop")] {
        let (verdict, out) = bed.run("dev_in", &bytes);
        let said = outcome(verdict, &out);
        assert!(said.starts_with(want), "{said}");
        assert!(loopback.received().unwrap().is_empty());
    }
    let counted = bed.counted();
    assert!(counted.contains("TOO_BIG/in+3") && !counted.contains("packet_cut"), "{counted}");
    // A datagram that is shorter than its header says.
    let mut short = divisible(&request, 7);
    short.truncate(1_440);
    let (verdict, _) = bed.run("dev_in", &short);
    assert_ne!(verdict, Verdict::Next);
    assert!(loopback.received().unwrap().is_empty());
}
