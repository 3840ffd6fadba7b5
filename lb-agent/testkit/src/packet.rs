//! Packets as text: `build("10.1.0.1:4000 > 10.96.0.1:80 tcp S")` gives bytes, `show` gives them back.
//!
//! Grammar: `SRC > DST PROTO [FLAGS] [seq=N] [ack=N] [len=N]`, PROTO one of tcp, udp, udp0 (no checksum), echo. The
//! shown form adds `back` when source and destination MAC are swapped, `BADSUM` when a checksum does not add up, and
//! for an ICMP error the packet it quotes.

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// MAC address of the Pod's end.
pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of its gateway.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

struct PacketSpec<'a> {
    src: SocketAddr,
    dst: SocketAddr,
    proto: &'a str,
    flags: &'a str,
    seq: u32,
    ack: u32,
    len: usize,
}

fn parse(text: &str) -> PacketSpec<'_> {
    let mut words = text.split_whitespace();
    let src = words.next().unwrap().parse().unwrap();
    assert_eq!(words.next(), Some(">"), "{text}");
    let dst = words.next().unwrap().parse().unwrap();
    let proto = words.next().unwrap();
    let mut spec = PacketSpec { src, dst, proto, flags: "", seq: 1, ack: 0, len: 0 };
    for word in words {
        match word.split_once('=') {
            Some(("seq", n)) => spec.seq = n.parse().unwrap(),
            Some(("ack", n)) => spec.ack = n.parse().unwrap(),
            Some(("len", n)) => spec.len = n.parse().unwrap(),
            _ => spec.flags = word,
        }
    }
    spec
}

/// Bytes of the packet that `text` describes, from the Pod to its gateway.
pub fn build(text: &str) -> Vec<u8> {
    let spec = parse(text);
    let eth = PacketBuilder::ethernet2(POD_MAC, GATEWAY_MAC);
    let ip = match (spec.src.ip(), spec.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => eth.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => eth.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("two families in {text}"),
    };
    let payload: Vec<u8> = (0..spec.len).map(|i| i as u8).collect();
    let mut out = Vec::new();
    match spec.proto {
        "tcp" => {
            let mut tcp = ip.tcp(spec.src.port(), spec.dst.port(), spec.seq, 64000);
            for flag in spec.flags.chars() {
                tcp = match flag {
                    'S' => tcp.syn(),
                    'A' => tcp.ack(spec.ack),
                    'F' => tcp.fin(),
                    'R' => tcp.rst(),
                    'P' => tcp.psh(),
                    _ => panic!("flag {flag}"),
                };
            }
            tcp.write(&mut out, &payload).unwrap();
        }
        "udp" => ip.udp(spec.src.port(), spec.dst.port()).write(&mut out, &payload).unwrap(),
        "udp0" => {
            ip.udp(spec.src.port(), spec.dst.port()).write(&mut out, &payload).unwrap();
            out[14 + 20 + 6..14 + 20 + 8].fill(0);
        }
        "echo" if spec.src.is_ipv4() => {
            ip.icmpv4_echo_request(spec.src.port(), 1).write(&mut out, &payload).unwrap();
        }
        "echo" => ip.icmpv6_echo_request(spec.src.port(), 1).write(&mut out, &payload).unwrap(),
        other => panic!("protocol {other}"),
    }
    out
}

/// An ICMP "packet too big" from `src` to `dst` (addresses without port) that quotes the packet `inner` describes.
pub fn too_big(src: IpAddr, dst: IpAddr, inner: &str) -> Vec<u8> {
    let quote = &build(inner)[14..];
    let eth = PacketBuilder::ethernet2(POD_MAC, GATEWAY_MAC);
    let mut out = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => eth
            .ipv4(src.octets(), dst.octets(), 64)
            .icmpv4_raw(3, 4, [0, 0, 5, 120])
            .write(&mut out, &quote[..28])
            .unwrap(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => eth
            .ipv6(src.octets(), dst.octets(), 64)
            .icmpv6_raw(2, 0, [0, 0, 5, 120])
            // As much as fits an error (RFC 4443 section 2.4).
            .write(&mut out, &quote[..quote.len().min(1280 - 48)])
            .unwrap(),
        _ => panic!("two families"),
    }
    out
}

/// An ARP request of the Pod, with this sender and for this target (RFC 826).
pub fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let ends = [&POD_MAC[..], &sender, &[0; 6], &target].concat();
    [&[0xff; 6][..], &POD_MAC, &[8, 6], &head, &ends].concat()
}

/// The packet as text.
pub fn show(bytes: &[u8]) -> String {
    let back = bytes[..6] == POD_MAC && bytes[6..12] == GATEWAY_MAC;
    let text = show_ip(&bytes[14..], true);
    if back { format!("back {text}") } else { text }
}

fn show_ip(ip: &[u8], complete: bool) -> String {
    let kind = if ip[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
    let lax = etherparse::LaxSlicedPacket::from_ether_type(kind, ip);
    let (src, dst, l4, proto): (IpAddr, IpAddr, usize, u8) = match &lax.net {
        Some(etherparse::LaxNetSlice::Ipv4(v4)) => {
            let header = v4.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                usize::from(header.ihl()) * 4,
                header.protocol().0,
            )
        }
        Some(etherparse::LaxNetSlice::Ipv6(v6)) => {
            let payload = v6.payload();
            let l4 = payload.payload.as_ptr() as usize - ip.as_ptr() as usize;
            let header = v6.header();
            (header.source_addr().into(), header.destination_addr().into(), l4, payload.ip_number.0)
        }
        _ => panic!("no IP header"),
    };
    let mut text = match proto {
        6 => {
            let at = |i: usize| u16::from_be_bytes([ip[l4 + i], ip[l4 + i + 1]]);
            if !complete {
                format!("{} > {} tcp", join(src, at(0)), join(dst, at(2)))
            } else {
                show_tcp(ip, src, dst, l4)
            }
        }
        17 => {
            let at = |i: usize| u16::from_be_bytes([ip[l4 + i], ip[l4 + i + 1]]);
            let name = if at(6) == 0 { "udp0" } else { "udp" };
            format!("{} > {} {name}", join(src, at(0)), join(dst, at(2)))
        }
        1 | 58 => {
            let at = |i: usize| u16::from_be_bytes([ip[l4 + i], ip[l4 + i + 1]]);
            match ip[l4] {
                0 | 8 | 128 | 129 => format!("{src} > {dst} echo {} id={}", ip[l4], at(4)),
                kind => {
                    let quoted = show_ip(&ip[l4 + 8..], false);
                    format!("{src} > {dst} icmp {kind}.{} [{quoted}]", ip[l4 + 1])
                }
            }
        }
        other => format!("{src} > {dst} proto {other}"),
    };
    if complete && !sums_hold(ip, l4, proto) {
        text += " BADSUM";
    }
    text
}

fn show_tcp(ip: &[u8], src: IpAddr, dst: IpAddr, l4: usize) -> String {
    let slice = etherparse::TcpSlice::from_slice(&ip[l4..]).unwrap();
    let flags: String = [
        (slice.syn(), 'S'),
        (slice.fin(), 'F'),
        (slice.rst(), 'R'),
        (slice.psh(), 'P'),
        (slice.ack(), 'A'),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect();
    format!(
        "{} > {} tcp {flags} seq={} ack={} len={}",
        join(src, slice.source_port()),
        join(dst, slice.destination_port()),
        slice.sequence_number(),
        slice.acknowledgment_number(),
        slice.payload().len(),
    )
}

fn join(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

/// Whether every checksum in the packet holds, by summing all it covers.
pub fn sums_hold(ip: &[u8], l4: usize, proto: u8) -> bool {
    let v4 = ip[0] >> 4 == 4;
    if v4 && sum(&ip[..usize::from(ip[0] & 15) * 4]) != 0xffff {
        return false;
    }
    let total = if v4 {
        usize::from(u16::from_be_bytes([ip[2], ip[3]]))
    } else {
        40 + usize::from(u16::from_be_bytes([ip[4], ip[5]]))
    };
    assert_eq!(total, ip.len(), "the IP length is the packet's");
    let addresses = if v4 { &ip[12..20] } else { &ip[8..40] };
    let length = (ip.len() - l4) as u32;
    let pseudo = [addresses, &length.to_be_bytes(), &[0, 0, 0, proto]].concat();
    match proto {
        6 | 58 => sum(&[&pseudo, &ip[l4..]].concat()) == 0xffff,
        17 if v4 && ip[l4 + 6..l4 + 8] == [0, 0] => true,
        17 => sum(&[&pseudo, &ip[l4..]].concat()) == 0xffff,
        1 => sum(&ip[l4..]) == 0xffff,
        _ => true,
    }
}

fn sum(bytes: &[u8]) -> u16 {
    let mut total: u32 = 0;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The source port of a packet.
pub fn source_port(bytes: &[u8]) -> u16 {
    let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
    assert!(matches!(sliced.net, Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_))));
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.source_port(),
        Some(TransportSlice::Udp(udp)) => udp.source_port(),
        other => panic!("no ports in {other:?}"),
    }
}

/// Cuts an IPv4 or IPv6 packet into two fragments after `at` bytes of IP payload (a multiple of 8).
pub fn in_two(bytes: &[u8], at: usize, id: u16) -> [Vec<u8>; 2] {
    let v4 = bytes[14] >> 4 == 4;
    let (head, payload) = bytes.split_at(14 + if v4 { 20 } else { 40 });
    [(0, &payload[..at], true), (at, &payload[at..], false)].map(|(offset, part, more)| {
        let mut ip = head[14..].to_vec();
        if v4 {
            let total = (20 + part.len()) as u16;
            ip[2..4].copy_from_slice(&total.to_be_bytes());
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            ip[6..8].copy_from_slice(&field.to_be_bytes());
            ip[10..12].fill(0);
            let sum =
                ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
            let sum = (sum & 0xffff) + (sum >> 16);
            ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            return [&head[..14], &ip, part].concat();
        }
        let length = (8 + part.len()) as u16;
        ip[4..6].copy_from_slice(&length.to_be_bytes());
        let next = ip[6];
        ip[6] = 44;
        let field = (offset as u16 | u16::from(more)).to_be_bytes();
        let id = u32::from(id).to_be_bytes();
        [&head[..14], &ip, &[next, 0], &field, &id, part].concat()
    })
}

/// Puts two fragments together again, as the receiver does.
pub fn whole([first, second]: [Vec<u8>; 2]) -> Vec<u8> {
    let v4 = first[14] >> 4 == 4;
    let skip = 14 + if v4 { 20 } else { 48 };
    let mut ip = first[14..14 + if v4 { 20 } else { 40 }].to_vec();
    assert_eq!(ip[8..10], second[22..24], "one TTL");
    let addresses = if v4 { 26..34 } else { 22..54 };
    assert_eq!(
        first[addresses.clone()],
        second[addresses],
        "both fragments have the same addresses"
    );
    let payload = [&first[skip..], &second[skip..]].concat();
    if v4 {
        ip[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
        ip[6..8].fill(0);
        ip[10..12].fill(0);
        let sum = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    } else {
        ip[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        ip[6] = first[54];
    }
    [&first[..14], &ip, &payload].concat()
}
