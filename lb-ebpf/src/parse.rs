//! Bytes → 5-tuple. The link layer is Ethernet, or there is none (the devices of tunnels, as packets leave by them).

use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::flow::{Flow, proto};

use crate::packet::Packet;

/// Offset of the network header behind an Ethernet header.
pub(crate) const L3: usize = 14;
const ETH_IPV4: u16 = 0x0800u16.to_be();
const ETH_IPV6: u16 = 0x86ddu16.to_be();

/// A packet we know how to track. Lives in the scratch room.
#[repr(C)]
pub(crate) struct Parsed {
    /// The 5-tuple.
    pub(crate) flow: Flow,
    /// Offset of the network header.
    pub(crate) l3: usize,
    /// Offset of the layer 4 header.
    pub(crate) l4: usize,
    /// Whether the network header is IPv4.
    pub(crate) v4: bool,
    /// TCP flags; 0 for other protocols.
    pub(crate) tcp_flags: u8,
    /// Identification of the datagram, if this is a piece of one.
    pub(crate) fragment_id: u32,
    /// A fragment but the first: `l4` is payload, and nothing is to be changed there.
    pub(crate) later: bool,
}

/// What a packet turned out to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One to track: all of [`Parsed`] holds.
    Flow,
    /// The same, and the first piece of a datagram: it tells the others their ports.
    FirstFragment,
    /// A later piece: it has addresses and no ports.
    LaterFragment,
    /// An ICMP error: it quotes a packet, whose flow it belongs to.
    IcmpError,
    /// An IP packet of no flow: multicast, broadcast, other ICMP, cut short. What of [`Parsed`] is not known is 0; layer
    /// 4 is not to be touched.
    Untracked,
    /// Nothing of ours: not IP, or what IPv6 needs to find its neighbours.
    Other,
}

/// Parses the packet into `parsed`; its network header is at `l3`.
#[inline(always)]
pub(crate) fn parse(packet: Packet, parsed: &mut Parsed, l3: usize) -> Kind {
    parsed.l3 = l3;
    match packet.ethertype() {
        ETH_IPV4 => {
            packet.pull(l3 + size_of::<Ipv4>());
            ipv4(packet, parsed, l3)
        }
        ETH_IPV6 => {
            packet.pull(l3 + size_of::<Ipv6>());
            ipv6(packet, parsed, l3)
        }
        _ => Kind::Other,
    }
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
    const MULTICAST: u32 = 0xe000_0000;
    let Some(ip) = packet.load::<Ipv4>(l3) else { return Kind::Other };
    let header = usize::from(ip.version_ihl & 0xf) * 4;
    let dst = Be32::from_wire(ip.dst);
    if ip.version_ihl >> 4 != 4 || header < 20 {
        return Kind::Other;
    }
    parsed.v4 = true;
    parsed.l4 = l3 + header;
    parsed.flow = Flow {
        src: Addr::v4(Be32::from_wire(ip.src)),
        dst: Addr::v4(dst),
        sport: Be16::new(0),
        dport: Be16::new(0),
        proto: ip.protocol,
    };
    if ip.fragment & (OFFSET_MASK | MORE_FRAGMENTS) == 0 {
        let kind = transport(packet, parsed);
        // Multicast and limited broadcast (224/4, 240/4) are no flows.
        return if dst.get() >= MULTICAST { Kind::Untracked } else { kind };
    }
    if dst.get() >= MULTICAST {
        return Kind::Untracked;
    }
    parsed.fragment_id = u32::from(ip.id);
    if ip.fragment & OFFSET_MASK != 0 {
        // Nothing behind the header is read, so nothing else sees that the packet ends in it.
        return if parsed.l4 > packet.len() as usize { Kind::Untracked } else { later(parsed) };
    }
    first(transport(packet, parsed))
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
    let Some(ip) = packet.load::<Ipv6>(l3) else { return Kind::Other };
    let [d0, d1, d2, d3] = ip.dst;
    if u32::from_be(ip.version_flow) >> 28 != 6 {
        return Kind::Other;
    }
    let multicast = Be32::from_wire(d0).get() >> 24 == 0xff;
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
        match skip_extensions(packet, ip.next_header, l3) {
            Extensions::Upper { protocol, offset } => {
                parsed.flow.proto = protocol;
                parsed.l4 = offset;
            }
            _ if multicast => return Kind::Untracked,
            Extensions::First { protocol, offset, id } => {
                parsed.flow.proto = protocol;
                parsed.l4 = offset;
                parsed.fragment_id = id;
                return first(transport(packet, parsed));
            }
            Extensions::Later { protocol, id } => {
                parsed.flow.proto = protocol;
                parsed.fragment_id = id;
                return later(parsed);
            }
            Extensions::Unknown => return Kind::Untracked,
        }
    }
    let kind = transport(packet, parsed);
    if multicast && kind != Kind::Other { Kind::Untracked } else { kind }
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

#[inline(always)]
fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

enum Extensions {
    Upper { protocol: u8, offset: usize },
    First { protocol: u8, offset: usize, id: u32 },
    Later { protocol: u8, id: u32 },
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
                // The upper layer header follows at once: a fragment header is the last of the unfragmentable
                // part, and what follows it in a first fragment is rarely another extension.
                let offset_bits = u32::from_be(position) & 0xfff8;
                let more = u32::from_be(position) & 1;
                if offset_bits != 0 {
                    return Extensions::Later { protocol: next, id };
                }
                if more != 0 {
                    return Extensions::First { protocol: next, offset: offset + 8, id };
                }
                8
            }
            // RFC 4302: in units of 4 bytes, minus 2.
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        protocol = next;
        offset += size;
        i += 1;
    }
    Extensions::Unknown
}

#[inline(always)]
fn later(parsed: &mut Parsed) -> Kind {
    parsed.tcp_flags = 0;
    parsed.later = true;
    Kind::LaterFragment
}

#[inline(always)]
fn first(kind: Kind) -> Kind {
    if kind == Kind::Flow { Kind::FirstFragment } else { kind }
}

/// Reads the ports.
#[inline(always)]
fn transport(packet: Packet, parsed: &mut Parsed) -> Kind {
    parsed.later = false;
    parsed.tcp_flags = 0;
    // The header without options; of the others, ports or the first two words.
    packet.pull(parsed.l4 + if parsed.flow.proto == proto::TCP { 20 } else { 8 });
    match parsed.flow.proto {
        proto::TCP => {
            let Some([ports, _, _, word3]) = packet.load::<[u32; 4]>(parsed.l4) else {
                return Kind::Untracked;
            };
            set_ports(&mut parsed.flow, ports);
            // Byte 13 of the header, the second of its fourth word.
            parsed.tcp_flags = (u32::from_be(word3) >> 16) as u8;
        }
        proto::UDP | proto::SCTP => {
            let Some(ports) = packet.load::<u32>(parsed.l4) else { return Kind::Untracked };
            set_ports(&mut parsed.flow, ports);
        }
        proto::ICMP | proto::ICMP6 => {
            let Some([head, id_seq]) = packet.load::<[u32; 2]>(parsed.l4) else {
                return Kind::Untracked;
            };
            let icmp_type = (u32::from_be(head) >> 24) as u8;
            if is_error(icmp_type, parsed.v4) {
                return Kind::IcmpError;
            }
            if !is_echo(icmp_type, parsed.v4) {
                let neighbours = is_neighbourly(icmp_type, parsed.v4);
                return if neighbours { Kind::Other } else { Kind::Untracked };
            }
            let id = Be16::new((u32::from_be(id_seq) >> 16) as u16);
            parsed.flow.sport = id;
            parsed.flow.dport = id;
        }
        _ => {}
    }
    Kind::Flow
}

#[inline(always)]
fn set_ports(flow: &mut Flow, ports: u32) {
    flow.sport = Be16::from_wire(ports as u16);
    flow.dport = Be16::from_wire((ports >> 16) as u16);
}

/// Multicast listeners, routers and neighbours: RFC 2710 (130-132), RFC 4861 (133-136), RFC 3810 (143). Without them an
/// IPv6 address reaches nobody on its own link.
#[inline(always)]
fn is_neighbourly(icmp_type: u8, v4: bool) -> bool {
    !v4 && matches!(icmp_type, 130..=136 | 143)
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
