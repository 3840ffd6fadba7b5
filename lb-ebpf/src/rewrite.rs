//! Changes addresses and ports in a packet, with their checksums.

use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::csum;
use lb_common::flow::{Flow, proto};

use crate::packet::{ChecksumKind, HelperError, Packet};
use crate::parsed::{L3, Parsed};
use crate::scratch::Scratch;
use crate::sctp;

/// Makes the packet's source `addr:port`.
#[inline(always)]
pub(crate) fn source(
    packet: Packet,
    parsed: &Parsed,
    addr: &Addr,
    port: Be16,
) -> Result<(), HelperError> {
    let Flow { src, sport, .. } = parsed.flow;
    let field = if parsed.v4 { 12 } else { 8 };
    address(packet, parsed, field, &src, addr)?;
    ported(packet, parsed, parsed.l4, sport, port)
}

/// Makes the packet's destination `addr:port`.
#[inline(always)]
pub(crate) fn destination(
    packet: Packet,
    parsed: &Parsed,
    addr: &Addr,
    port: Be16,
) -> Result<(), HelperError> {
    let Flow { dst, dport, .. } = parsed.flow;
    let field = if parsed.v4 { 16 } else { 24 };
    address(packet, parsed, field, &dst, addr)?;
    ported(packet, parsed, parsed.l4 + 2, dport, port)
}

/// Sends the frame back where it came from: swaps the two MAC addresses.
#[inline(always)]
pub(crate) fn swap_macs(packet: Packet) -> Result<(), HelperError> {
    let Some([d0, d1, d2, s0, s1, s2]) = packet.load::<[u16; 6]>(0) else {
        return Err(HelperError);
    };
    packet.store(0, &[s0, s1, s2, d0, d1, d2])
}

#[inline(always)]
fn address(
    packet: Packet,
    parsed: &Parsed,
    field: usize,
    from: &Addr,
    to: &Addr,
) -> Result<(), HelperError> {
    let diff = csum::diff(from, to);
    if parsed.v4 {
        packet.l3_csum(parsed.l3 + 10, diff)?;
        packet.store(parsed.l3 + field, &to.word3())?;
    } else {
        packet.store(parsed.l3 + field, to)?;
    }
    match checksum(parsed) {
        Some((offset, kind)) => packet.l4_csum_addr(offset, diff, kind),
        None => Ok(()),
    }
}

#[inline(always)]
fn ported(
    packet: Packet,
    parsed: &Parsed,
    field: usize,
    from: Be16,
    to: Be16,
) -> Result<(), HelperError> {
    if from == to || parsed.later {
        return Ok(());
    }
    if parsed.flow.proto == proto::SCTP {
        sctp::port_changes(packet, parsed, field, from, to)?;
    } else if let Some((offset, kind)) = checksum(parsed) {
        packet.l4_csum_port(offset, from.to_wire(), to.to_wire(), kind)?;
    }
    packet.store(field, &to.to_wire())
}

/// Makes both ends of a packet those in `scratch.to`, and its hops one less: we are a router on its way. The caller has seen
/// that more than one hop is left.
///
/// All at once, since each call of a helper costs more than the sums: the IPv4 header's checksum is computed here and
/// written with what it covers.
#[inline(never)]
pub(crate) fn forwarded(packet: Packet, scratch: &mut Scratch) -> Result<(), HelperError> {
    let Scratch { parsed, to, piece, .. } = scratch;
    let from = &parsed.flow;
    let diff = csum::add(csum::diff(&from.src, &to.src), csum::diff(&from.dst, &to.dst));
    let summed = checksum(parsed);
    // The ports follow, unless there are options in between.
    let ports_too = summed.is_some() && parsed.l4 == L3 + if parsed.v4 { 20 } else { 40 };
    let [w0, w1, w2, w3, w4, w5, w6, w7, w8, ..] = piece;
    let len = if parsed.v4 {
        let Some(head) = packet.load::<[u8; 4]>(L3 + 8) else { return Err(HelperError) };
        *w0 = ttl_word(head, diff);
        (*w1, *w2) = (to.src.word3().to_wire(), to.dst.word3().to_wire());
        *w3 = ports_word(to);
        12
    } else {
        let Some(hops) = packet.load::<u8>(L3 + 7) else { return Err(HelperError) };
        packet.store(L3 + 7, &hops.wrapping_sub(1))?;
        [*w0, *w1, *w2, *w3] = to.src.words().map(Be32::to_wire);
        [*w4, *w5, *w6, *w7] = to.dst.words().map(Be32::to_wire);
        *w8 = ports_word(to);
        32
    };
    packet.copy_from(L3 + 8, piece, if ports_too { len + 4 } else { len })?;
    let Some((offset, kind)) = summed else {
        ported(packet, parsed, parsed.l4, from.sport, to.sport)?;
        return ported(packet, parsed, parsed.l4 + 2, from.dport, to.dport);
    };
    packet.l4_csum_addr(offset, diff, kind)?;
    if from.sport == to.sport && from.dport == to.dport {
        return Ok(());
    }
    let ports = |flow: &Flow| [flow.sport.to_wire(), flow.dport.to_wire()];
    let diff = ports(from).iter().fold(0, |sum, port| csum::add(sum, !u32::from(*port)));
    let diff = ports(to).iter().fold(diff, |sum, port| csum::add(sum, u32::from(*port)));
    packet.l4_csum_ports(offset, diff, kind)?;
    if ports_too { Ok(()) } else { packet.store(parsed.l4, &ports(to)) }
}

/// Both ports as they follow each other in memory.
#[inline(always)]
fn ports_word(flow: &Flow) -> u32 {
    let [a, b] = flow.sport.to_wire().to_ne_bytes();
    let [c, d] = flow.dport.to_wire().to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Makes the packet's hops one less: we are a router on its way. The caller has seen that more than one is left.
#[inline(always)]
pub(crate) fn one_hop_less(packet: Packet, v4: bool) -> Result<(), HelperError> {
    if !v4 {
        let Some(hops) = packet.load::<u8>(L3 + 7) else { return Err(HelperError) };
        return packet.store(L3 + 7, &hops.wrapping_sub(1));
    }
    let Some([ttl, proto, c0, c1]) = packet.load::<[u8; 4]>(L3 + 8) else {
        return Err(HelperError);
    };
    packet.store(L3 + 8, &ttl_word([ttl, proto, c0, c1], 0))
}

/// The word of an IPv4 header with TTL, protocol and checksum, as it is with one hop less and what `diff` says.
#[inline(always)]
fn ttl_word([ttl, proto, c0, c1]: [u8; 4], diff: u32) -> u32 {
    let less = ttl.wrapping_sub(1);
    // TTL is one half of its checksummed word; the other does not change.
    let hop = csum::add(word(!ttl, !0), word(less, 0));
    let checksum = !u16::from_ne_bytes([c0, c1]);
    let sum = csum::add(csum::add(diff, hop), u32::from(checksum));
    let [c0, c1] = (!csum::fold(sum)).to_ne_bytes();
    u32::from_ne_bytes([less, proto, c0, c1])
}

/// Two bytes as a word of a checksum.
#[inline(always)]
fn word(high: u8, low: u8) -> u32 {
    u32::from(u16::from_ne_bytes([high, low]))
}

/// Offset and kind of the layer 4 checksum that covers addresses. It is in the first fragment only.
#[inline(always)]
fn checksum(parsed: &Parsed) -> Option<(usize, ChecksumKind)> {
    if parsed.later {
        return None;
    }
    let v6 = !parsed.v4;
    match parsed.flow.proto {
        proto::TCP => Some((parsed.l4 + 16, ChecksumKind { udp: false, v6 })),
        proto::UDP => Some((parsed.l4 + 6, ChecksumKind { udp: true, v6 })),
        proto::ICMP6 => Some((parsed.l4 + 2, ChecksumKind { udp: false, v6 })),
        _ => None,
    }
}
