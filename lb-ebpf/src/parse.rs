//! Bytes → 5-tuple. The link layer is Ethernet, or there is none (the devices of tunnels, as packets leave by them).
//!
//! A packet that cannot be parsed has a kind of its own, so that no stage treats it as harmless: a receiver may parse it in
//! another way (RFC 3128, RFC 7112), and then no rule about ports would have been applied.

use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::flow::{Flow, proto};

use crate::packet::{Packet, reread};
use crate::parsed::{Kind, Parsed};

const ETH_IPV4: u16 = 0x0800u16.to_be();
const ETH_IPV6: u16 = 0x86ddu16.to_be();
const ETH_ARP: u16 = 0x0806u16.to_be();
/// Bytes of a TCP header without options. Up to there no fragment may overlap another's (RFC 3128).
const TCP_HEADER: u32 = 20;

/// Parses the packet into `parsed`; its network header is at `l3`.
#[inline(always)]
pub(crate) fn parse(packet: Packet, parsed: &mut Parsed, l3: usize) -> Kind {
    parsed.l3 = l3;
    parsed.kind = match packet.ethertype() {
        ETH_IPV4 => {
            packet.pull(l3 + size_of::<Ipv4>());
            ipv4(packet, parsed, l3)
        }
        ETH_IPV6 => {
            packet.pull(l3 + size_of::<Ipv6>());
            ipv6(packet, parsed, l3)
        }
        ethertype => {
            parsed.flow = NOTHING;
            if ethertype == ETH_ARP { Kind::ARP } else { Kind::NOT_IP }
        }
    };
    addressed(parsed)
}

/// The kind of a packet in view of its addresses. What was stored is read again, or the verifier would follow each way on
/// that led to the same: it forgets what is in memory.
#[inline(always)]
fn addressed(parsed: &Parsed) -> Kind {
    let kind = reread(&parsed.kind);
    if matches!(kind, Kind::ARP | Kind::NOT_IP) {
        return kind;
    }
    let (src, dst) = (parsed.flow.src.words(), parsed.flow.dst.words());
    if reread(&parsed.v4) {
        let ([.., src], [.., dst]) = (src, dst);
        return addressed4(kind, reread(&src).get(), reread(&dst).get());
    }
    addressed6(kind, reread(&src), reread(&dst))
}

/// The flow of what has none: for events.
pub(crate) const NOTHING: Flow =
    Flow { src: Addr::NONE, dst: Addr::NONE, sport: Be16::new(0), dport: Be16::new(0), proto: 0 };

#[inline(always)]
fn unreadable(parsed: &mut Parsed) -> Kind {
    parsed.flow = NOTHING;
    // Else the family is that of the packet before, and for IPv4 no source is a bad address.
    parsed.v4 = false;
    Kind::UNREADABLE
}

/// IPv4 header (RFC 791) as words in wire order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    src: u32,
    dst: u32,
}

#[inline(always)]
fn ipv4(packet: Packet, parsed: &mut Parsed, l3: usize) -> Kind {
    const OFFSET_MASK: u16 = 0x1fffu16.to_be();
    const MORE_FRAGMENTS: u16 = 0x2000u16.to_be();
    let Some(ip) = packet.load::<Ipv4>(l3) else { return unreadable(parsed) };
    let header = usize::from(ip.version_ihl & 0xf) * 4;
    let (src, dst) = (Be32::from_wire(ip.src), Be32::from_wire(ip.dst));
    if ip.version_ihl >> 4 != 4 || header < 20 {
        return unreadable(parsed);
    }
    parsed.v4 = true;
    parsed.l4 = l3 + header;
    parsed.flow = Flow {
        src: Addr::v4(src),
        dst: Addr::v4(dst),
        sport: Be16::new(0),
        dport: Be16::new(0),
        proto: ip.protocol,
    };
    if ip.fragment & (OFFSET_MASK | MORE_FRAGMENTS) == 0 {
        return transport(packet, parsed);
    }
    parsed.fragment_id = u32::from(ip.id);
    let offset = u32::from(u16::from_be(ip.fragment & OFFSET_MASK)) * 8;
    if offset == 0 {
        let payload = u32::from(u16::from_be(ip.total_len)).wrapping_sub(header as u32);
        return first(packet, parsed, payload);
    }
    // Nothing behind the header is read, so nothing else sees that the packet ends in it.
    if parsed.l4 > packet.len() as usize { Kind::UNREADABLE } else { later(parsed, offset) }
}

/// Sources that no packet has (RFC 1122 §3.2.1.3): loopback, multicast, reserved; unspecified, but for one who asks for
/// an address. Multicast and limited broadcast (224/4, 240/4) are not tracked.
#[inline(always)]
fn addressed4(kind: Kind, src: u32, dst: u32) -> Kind {
    const LOOPBACK: u32 = 127;
    const MULTICAST: u32 = 224;
    let group = dst >> 24 >= MULTICAST;
    let first = src >> 24;
    if first >= MULTICAST || first == LOOPBACK || dst >> 24 == LOOPBACK || src == 0 && !group {
        return Kind::BAD_ADDRESS;
    }
    if group { no_flow(kind) } else { kind }
}

/// What is sent to a group begins no flow.
#[inline(always)]
fn no_flow(kind: Kind) -> Kind {
    match kind {
        Kind::FLOW | Kind::FIRST_FRAGMENT | Kind::LATER_FRAGMENT | Kind::ICMP_ERROR => {
            Kind::UNTRACKED
        }
        kind => kind,
    }
}

/// IPv6 header (RFC 8200) as words in wire order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6 {
    version_flow: u32,
    payload_len: u16,
    next_header: u8,
    hop_limit: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

#[inline(always)]
fn ipv6(packet: Packet, parsed: &mut Parsed, l3: usize) -> Kind {
    let Some(ip) = packet.load::<Ipv6>(l3) else { return unreadable(parsed) };
    let [d0, d1, d2, d3] = ip.dst;
    if u32::from_be(ip.version_flow) >> 28 != 6 {
        return unreadable(parsed);
    }
    let [s0, s1, s2, s3] = ip.src;
    parsed.v4 = false;
    parsed.l4 = l3 + size_of::<Ipv6>();
    parsed.flow = Flow {
        src: Addr::v6([
            Be32::from_wire(s0),
            Be32::from_wire(s1),
            Be32::from_wire(s2),
            Be32::from_wire(s3),
        ]),
        dst: Addr::v6([
            Be32::from_wire(d0),
            Be32::from_wire(d1),
            Be32::from_wire(d2),
            Be32::from_wire(d3),
        ]),
        sport: Be16::new(0),
        dport: Be16::new(0),
        proto: ip.next_header,
    };
    if is_extension(ip.next_header) {
        return extended(packet, parsed, ip.payload_len);
    }
    transport(packet, parsed)
}

/// The same for IPv6; who asks whether an address is free has none yet (RFC 4862 §5.4).
#[inline(always)]
fn addressed6(kind: Kind, src: [Be32; 4], dst: [Be32; 4]) -> Kind {
    let (src, dst) = (src.map(Be32::to_wire), dst.map(Be32::to_wire));
    let group = |[first, ..]: [u32; 4]| u32::from_be(first) >> 24 == 0xff;
    let unspecified = |[a, b, c, d]: [u32; 4]| a | b | c | d == 0;
    let asks = kind == Kind::NEIGHBOR && unspecified(src);
    if is_bad6(dst) || group(src) || is_bad6(src) && !asks {
        // Of a packet without readable addresses nothing more is said.
        let nothing = kind == Kind::UNREADABLE && unspecified(dst);
        return if nothing { kind } else { Kind::BAD_ADDRESS };
    }
    if group(dst) { no_flow(kind) } else { kind }
}

/// What is behind extension headers. By itself, so that the verifier forgets at its end which way it took.
#[inline(never)]
fn extended(packet: Packet, parsed: &mut Parsed, payload_len: u16) -> Kind {
    let l3 = parsed.l3;
    match skip_extensions(packet, parsed.flow.proto, l3) {
        Extensions::Upper { protocol, offset } => {
            parsed.flow.proto = protocol;
            parsed.l4 = offset;
            transport(packet, parsed)
        }
        Extensions::First { protocol, offset, id } => {
            parsed.flow.proto = protocol;
            parsed.l4 = offset;
            parsed.fragment_id = id;
            // A chain that goes on behind the fragment header is in the first fragment as a whole (RFC 7112), but the
            // others do not show its protocol.
            if is_extension(protocol) {
                return Kind::UNREADABLE;
            }
            let before = (offset - l3 - size_of::<Ipv6>()) as u32;
            let payload = u32::from(u16::from_be(payload_len)).wrapping_sub(before);
            first(packet, parsed, payload)
        }
        Extensions::Later { protocol, position, id } => {
            parsed.flow.proto = protocol;
            parsed.fragment_id = id;
            if is_extension(protocol) { Kind::UNREADABLE } else { later(parsed, position) }
        }
        Extensions::Unknown => Kind::UNREADABLE,
    }
}

/// Whether an address cannot be on a wire: unspecified, loopback, IPv4-compatible and IPv4-mapped (RFC 4291 §2.5,
/// RFC 6890). The last would be taken for an IPv4 address, which is written the same way everywhere here.
#[inline(always)]
fn is_bad6([a, b, c, _]: [u32; 4]) -> bool {
    a | b == 0 && (c == 0 || c == 0xffffu32.to_be())
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// What hides or signs what it carries (RFC 4303, RFC 4302).
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;

#[inline(always)]
fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}

enum Extensions {
    Upper { protocol: u8, offset: usize },
    First { protocol: u8, offset: usize, id: u32 },
    Later { protocol: u8, position: u32, id: u32 },
    Unknown,
}

/// Walks at most 6 extension headers (RFC 8200 §4.1 lists no longer chain).
#[inline(always)]
fn skip_extensions(packet: Packet, first: u8, l3: usize) -> Extensions {
    let mut protocol = first;
    let mut offset = l3 + size_of::<Ipv6>();
    let mut i = 0;
    while i < 6 {
        if !is_extension(protocol) {
            return Extensions::Upper { protocol, offset };
        }
        packet.pull(offset + 8);
        let Some([next, length]) = packet.load::<[u8; 2]>(offset) else {
            return Extensions::Unknown;
        };
        let size = match protocol {
            FRAGMENT => {
                let Some([position, id]) = packet.load::<[u32; 2]>(offset) else {
                    return Extensions::Unknown;
                };
                // In units of 8 bytes, above three bits: the number of bytes, as it stands.
                let offset_bits = u32::from_be(position) & 0xfff8;
                let more = u32::from_be(position) & 1;
                if offset_bits != 0 {
                    return Extensions::Later { protocol: next, position: offset_bits, id };
                }
                if more != 0 {
                    return Extensions::First { protocol: next, offset: offset + 8, id };
                }
                8
            }
            _ => (usize::from(length) + 1) * 8,
        };
        protocol = next;
        offset += size;
        i += 1;
    }
    Extensions::Unknown
}

/// Parses a later fragment, which begins `position` bytes into the datagram.
#[inline(always)]
fn later(parsed: &mut Parsed, position: u32) -> Kind {
    parsed.tcp_flags = 0;
    parsed.later = true;
    parsed.port_unknown = true;
    match parsed.flow.proto {
        // It would write over the flags of the first (RFC 3128).
        proto::TCP if position < TCP_HEADER => Kind::UNREADABLE,
        ESP | AUTHENTICATION => Kind::OPAQUE,
        _ => Kind::LATER_FRAGMENT,
    }
}

/// Parses a first fragment, which has `payload` bytes behind the network header. The part of the transport header that is in
/// other fragments is unknown.
#[inline(always)]
fn first(packet: Packet, parsed: &mut Parsed, payload: u32) -> Kind {
    let least = if parsed.flow.proto == proto::TCP { TCP_HEADER } else { 8 };
    if payload < least || payload > 0xffff {
        return Kind::UNREADABLE;
    }
    match transport(packet, parsed) {
        Kind::FLOW => Kind::FIRST_FRAGMENT,
        // Never in pieces (RFC 6980).
        Kind::NEIGHBOR => Kind::UNTRACKED,
        kind => kind,
    }
}

/// Reads the ports.
#[inline(always)]
fn transport(packet: Packet, parsed: &mut Parsed) -> Kind {
    parsed.later = false;
    parsed.port_unknown = false;
    parsed.tcp_flags = 0;
    // Read once more: on 6.1 the verifier forgets the bound of an offset that the compiler has put on the stack.
    let l4 = reread(&parsed.l4);
    // The header without options; of the others, ports or the first two words.
    packet.pull(l4 + if parsed.flow.proto == proto::TCP { 20 } else { 8 });
    match parsed.flow.proto {
        proto::TCP => {
            let Some([ports, _, _, word3]) = packet.load::<[u32; 4]>(l4) else {
                return Kind::UNREADABLE;
            };
            set_ports(&mut parsed.flow, ports);
            // Byte 13 of the header, the second of its fourth word.
            parsed.tcp_flags = (u32::from_be(word3) >> 16) as u8;
        }
        proto::UDP | proto::SCTP => {
            let Some(ports) = packet.load::<u32>(l4) else { return Kind::UNREADABLE };
            set_ports(&mut parsed.flow, ports);
        }
        proto::ICMP | proto::ICMP6 => {
            let Some([head, id_seq]) = packet.load::<[u32; 2]>(l4) else {
                return Kind::UNREADABLE;
            };
            let [icmp_type, code, ..] = head.to_ne_bytes();
            if is_error(icmp_type, parsed.v4) {
                return Kind::ICMP_ERROR;
            }
            if !is_echo(icmp_type, parsed.v4) {
                return control(packet, parsed, icmp_type, code);
            }
            let id = Be16::new((u32::from_be(id_seq) >> 16) as u16);
            parsed.flow.sport = id;
            parsed.flow.dport = id;
        }
        ESP | AUTHENTICATION => return Kind::OPAQUE,
        _ => {}
    }
    Kind::FLOW
}

#[inline(always)]
fn set_ports(flow: &mut Flow, ports: u32) {
    flow.sport = Be16::from_wire(ports as u16);
    flow.dport = Be16::from_wire((ports >> 16) as u16);
}

/// Types of ICMPv6 between neighbors (RFC 4861 §4).
pub(crate) mod neighbor {
    /// Router solicitation: the first of them.
    pub(crate) const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbor solicitation.
    pub(crate) const SOLICITATION: u8 = 135;
    /// Neighbor advertisement.
    pub(crate) const ADVERTISEMENT: u8 = 136;
    /// Redirect: the last of them.
    pub(crate) const REDIRECT: u8 = 137;
}

/// An ICMP message that is neither error nor echo. Multicast listeners speak with a hop limit of 1 to a group (RFC 2710
/// §3, RFC 3810 §5), routers and neighbors with 255, which no router passes on (RFC 4861 §6.1, §7.1): what came from
/// off the link, or means to leave it, is not one of them.
#[inline(always)]
fn control(packet: Packet, parsed: &Parsed, icmp_type: u8, code: u8) -> Kind {
    if parsed.v4 {
        return Kind::UNTRACKED;
    }
    // Two bytes, as in `route::length`.
    let [_, hops] = packet.load::<[u8; 2]>(parsed.l3 + 6).unwrap_or([0, 0]);
    let proper = match icmp_type {
        130..=132 | 143 => hops == 1 && is_group(&parsed.flow.dst),
        neighbor::ROUTER_SOLICITATION..=neighbor::REDIRECT => {
            let most = if icmp_type == neighbor::ROUTER_ADVERTISEMENT {
                ADVERTISEMENT_MOST
            } else {
                NEIGHBOR_MOST
            };
            hops == 255 && code == 0 && packet.len() <= most
        }
        _ => false,
    };
    if proper { Kind::NEIGHBOR } else { Kind::UNTRACKED }
}

/// Bytes of the longest frame that is taken for a router advertisement, with options for routes, prefixes and names,
const ADVERTISEMENT_MOST: u32 = 14 + 1280;
/// and for one of the others, which have an address or two: longer ones carry something else.
const NEIGHBOR_MOST: u32 = 200;

/// Whether an IPv6 address is a group's.
#[inline(always)]
pub(crate) fn is_group(addr: &Addr) -> bool {
    let [first, ..] = addr.words();
    first.get() >> 24 == 0xff
}

/// Destination unreachable, time exceeded, parameter problem: RFC 792 (3, 11, 12), RFC 4443 (1, 2, 3, 4).
#[inline(always)]
fn is_error(icmp_type: u8, v4: bool) -> bool {
    if v4 { matches!(icmp_type, 3 | 11 | 12) } else { matches!(icmp_type, 1..=4) }
}

/// Parses the packet that an ICMP error quotes at `offset`, as far as its ports (of an echo: its identifier);
/// `None` when there is less of it.
#[inline(always)]
pub(crate) fn quoted(
    packet: Packet,
    outer: &Parsed,
    offset: usize,
    inner: &mut Parsed,
) -> Option<()> {
    inner.v4 = outer.v4;
    inner.tcp_flags = 0;
    inner.later = false;
    inner.port_unknown = false;
    packet.pull(offset + size_of::<Ipv6>() + 8);
    let (header, src, dst, protocol) = if outer.v4 {
        let ip = packet.load::<Ipv4>(offset)?;
        let header = usize::from(ip.version_ihl & 0xf) * 4;
        if ip.fragment & 0x1fffu16.to_be() != 0 || header < 20 {
            return None;
        }
        let src = Addr::v4(Be32::from_wire(ip.src));
        (header, src, Addr::v4(Be32::from_wire(ip.dst)), ip.protocol)
    } else {
        let ip = packet.load::<Ipv6>(offset)?;
        if is_bad6(ip.src) || is_bad6(ip.dst) {
            return None;
        }
        let [src, dst] = [ip.src, ip.dst].map(|words| Addr::v6(words.map(Be32::from_wire)));
        (size_of::<Ipv6>(), src, dst, ip.next_header)
    };
    inner.l4 = offset + header;
    inner.flow = Flow { src, dst, sport: Be16::new(0), dport: Be16::new(0), proto: protocol };
    match protocol {
        proto::TCP | proto::UDP | proto::SCTP => {
            set_ports(&mut inner.flow, packet.load::<u32>(inner.l4)?);
        }
        proto::ICMP | proto::ICMP6 => {
            let id = Be16::from_wire(packet.load::<u16>(inner.l4 + 4)?);
            (inner.flow.sport, inner.flow.dport) = (id, id);
        }
        _ => {}
    }
    Some(())
}

/// Echo request or reply: RFC 792 (8, 0), RFC 4443 (128, 129).
#[inline(always)]
fn is_echo(icmp_type: u8, v4: bool) -> bool {
    if v4 { matches!(icmp_type, 0 | 8) } else { matches!(icmp_type, 128 | 129) }
}
