//! Changes addresses and ports in a packet, with their checksums.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::csum;
use lb_common::flow::{Flow, proto};

use crate::packet::{ChecksumKind, HelperError, Packet};
use crate::parse::{L3, Parsed};
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

/// One hop less to go. The caller has seen that more than one is left.
#[inline(always)]
pub(crate) fn decrement_ttl(packet: Packet, parsed: &Parsed, ttl: u8) -> Result<(), HelperError> {
    let less = ttl.wrapping_sub(1);
    if !parsed.v4 {
        return packet.store(L3 + 7, &less);
    }
    // TTL is the high byte of its checksummed word; the low byte does not change.
    let diff = csum::add(
        !u32::from(u16::from_ne_bytes([ttl, 0])),
        u32::from(u16::from_ne_bytes([less, 0])),
    );
    packet.l3_csum(L3 + 10, diff)?;
    packet.store(L3 + 8, &less)
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
