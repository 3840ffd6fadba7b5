//! Frames to begin with: of every kind that the parser distinguishes.

use std::net::{IpAddr, SocketAddr};

use testbed::frame::{Ip, Link, PRIORITY_TAG, SERVICE_TAG, Tcp, flags};

const LINK: Link = Link { src: [2, 0, 0, 0, 0, 1], dst: [2, 0, 0, 0, 0, 2] };
const ENDS: [[&str; 2]; 2] =
    [["10.244.1.10:4000", "10.244.2.10:80"], ["[fd44::10]:4000", "[fd44:1::10]:80"]];
const SYN: Tcp = Tcp::flags(flags::SYN);

type Named = (&'static str, Vec<u8>);

/// What a stack sends.
pub(crate) fn honest() -> Vec<Named> {
    let mut frames = Vec::new();
    for ends in ENDS {
        let [src, dst] = ends.map(|end| end.parse::<SocketAddr>().unwrap());
        let (from, to) = (src.ip(), dst.ip());
        let tcp = Ip::tcp(src, dst, SYN, b"some payload of a segment");
        let udp = Ip::udp(src, dst, &[7; 60]);
        let echo = if from.is_ipv4() { [8, 0] } else { [128, 0] };
        let sctp = [src.port().to_be_bytes(), dst.port().to_be_bytes(), [0; 2], [0; 2]].concat();
        let mut add = |what, ip: &Ip| frames.push((what, LINK.frame(ip)));
        add("TCP", &tcp);
        add("UDP", &udp);
        add("echo", &Ip::icmp(from, to, echo, [0, 9, 0, 1], b"payload"));
        add("an error", &Ip::too_big(from, to, 1280, &Ip::tcp(dst, src, SYN, &[]).bytes()));
        add("SCTP", &Ip::new(from, to, 132, &[&sctp[..], &[0; 8]].concat()));
        add("GRE", &Ip::new(from, to, 47, &[0; 16]));
        for piece in udp.pieces(32, 5) {
            add("a piece", &piece);
        }
        for piece in tcp.pieces(24, 6) {
            add("a piece of TCP", &piece);
        }
        if let (IpAddr::V6(from6), IpAddr::V6(to6)) = (from, to) {
            add("one options header", &tcp.clone().options(1));
            add("three options headers", &udp.clone().options(3));
            add("a whole fragment", &udp.piece(0..udp.body.len(), false, 7));
            add("solicitation", &Ip::neighbour(from6, to6, 135, to6, LINK.src));
            add("to a group", &Ip::udp(src, "[ff02::1]:5353".parse().unwrap(), b"who?"));
        } else {
            add("to a group", &Ip::udp(src, "224.0.0.251:5353".parse().unwrap(), b"who?"));
        }
    }
    frames
}

/// What hides its port, or who it is.
pub(crate) fn hiding() -> Vec<Named> {
    let mut frames = Vec::new();
    for ends in ENDS {
        let [src, dst] = ends.map(|end| end.parse::<SocketAddr>().unwrap());
        let tcp = Ip::tcp(src, dst, SYN, b"some payload of a segment");
        let mut add = |what, ip: &Ip| frames.push((what, LINK.frame(ip)));
        add("a tiny first piece", &tcp.piece(0..8, true, 1));
        add("a first piece without flags", &tcp.piece(0..16, true, 1));
        add("a piece over the flags", &tcp.piece(8..32, false, 1));
        add("ESP", &Ip::new(src.ip(), dst.ip(), 50, &[0; 32]));
        add("AH", &tcp.clone().extension(51, &[0; 14]));
        if src.is_ipv6() {
            for n in [6, 7, 20] {
                add("many options headers", &tcp.clone().options(n));
            }
            add("options behind a fragment header", &tcp.clone().options(1).piece(0..40, true, 1));
            let mut long = tcp.clone().options(1);
            long.body[1] = 200;
            add("a header that is cut off", &long);
            for bad in ["::ffff:10.0.0.1", "::10.0.0.1", "::1", "ff02::1"] {
                let bad = SocketAddr::new(bad.parse().unwrap(), 4000);
                add("a bad source", &Ip::udp(bad, dst, b"payload"));
            }
            let mapped = SocketAddr::new("::ffff:10.0.0.1".parse().unwrap(), 80);
            add("a mapped destination", &Ip::udp(src, mapped, b"payload"));
        } else {
            for bad in ["127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"] {
                let bad = SocketAddr::new(bad.parse().unwrap(), 4000);
                add("a bad source", &Ip::udp(bad, dst, b"payload"));
            }
        }
        frames.push(("two tags", LINK.tagged(&[PRIORITY_TAG; 2], &tcp)));
        frames.push(("a service tag", LINK.tagged(&[SERVICE_TAG], &tcp)));
        frames.push(("MPLS", LINK.raw(&[], 0x8847, &tcp.bytes())));
    }
    frames
}
