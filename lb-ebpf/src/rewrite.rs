//! Changes addresses and ports in a packet, with their checksums.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::csum;
use lb_common::flow::{Flow, proto};

use crate::packet::{ChecksumKind, HelperError, Packet};
use crate::parse::{L3, Parsed};

/// Makes the packet's source `addr:port`.
#[inline(always)]
pub(crate) fn source(
    packet: Packet,
    parsed: &Parsed,
    addr: &Addr,
    port: Be16,
) -> Result<(), HelperError> {
    let Flow { src, sport, .. } = parsed.flow;
    let field = if parsed.v4 { L3 + 12 } else { L3 + 8 };
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
    let field = if parsed.v4 { L3 + 16 } else { L3 + 24 };
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
        packet.l3_csum(L3 + 10, diff)?;
        packet.store(field, &to.word3())?;
    } else {
        packet.store(field, to)?;
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
    if let Some((offset, kind)) = checksum(parsed) {
        packet.l4_csum_port(offset, from.to_wire(), to.to_wire(), kind)?;
    }
    packet.store(field, &to.to_wire())
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
