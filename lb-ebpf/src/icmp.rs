//! ICMP errors about translated flows: the quoted packet and the sender's address become what the receiver knows.
//! Without it a Pod whose packets are too big for the way to its backend never learns so (RFC 1191, RFC 8201).
//!
//! ```text
//! enters the Pod: quotes Pod -> backend     becomes   Pod -> frontend
//! leaves the Pod: quotes frontend -> Pod    becomes   backend -> Pod
//! ```
//! The quoted layer 4 checksum stays: receivers do not check it, and most quotes are cut off before its payload ends.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{Direction, bits};
use lb_common::csum;

use crate::maps::{self, Scratch, Tracked};
use crate::packet::{ChecksumKind, HelperError, Packet};
use crate::parse::{self, Parsed};
use crate::{conntrack, rewrite};

/// Bytes of an ICMP header before the quoted packet.
const ICMP: usize = 8;
/// Offset of the checksum in it.
const CHECKSUM: usize = 2;

/// Translates the error in place if the flow it is about is translated. `Err` when a helper refused halfway.
#[inline(never)]
pub(crate) fn translate(
    packet: Packet,
    scratch: &mut Scratch,
    direction: Direction,
) -> Result<(), HelperError> {
    let Scratch { parsed, quoted, key, .. } = scratch;
    let at = parsed.l4 + ICMP;
    if parse::quoted(packet, parsed, at, quoted).is_none() {
        return Ok(());
    }
    // An error about a packet that left the Pod comes in, and the other way round.
    let want = match direction {
        Direction::Ingress => {
            *key = conntrack::key_out(&quoted.flow, packet.ifindex());
            bits::REPLY
        }
        Direction::Egress => {
            *key = conntrack::key_in(&quoted.flow, packet.ifindex());
            bits::FORWARD
        }
    };
    let Some(entry) = maps::ct(key) else { return Ok(()) };
    if entry.flags() & (want | bits::HAIRPIN) != want {
        return Ok(());
    }
    let remote = quoted_remote(quoted, direction);
    let nat = (entry.nat_addr(), entry.nat_port());
    inner_address(packet, parsed, &remote, at, &nat.0)?;
    inner_port(packet, parsed, remote.port, remote.port_at, nat.1)?;
    if entry.flags() & bits::PORT_MAPPED != 0 {
        mapped_port(packet, parsed, quoted, direction, entry)?;
    }
    // A router's own address stays; the far end's becomes what the receiver knows it by.
    match direction {
        Direction::Ingress if parsed.flow.src == remote.addr => {
            rewrite::source(packet, parsed, &nat.0, parsed.flow.sport)
        }
        Direction::Egress if parsed.flow.dst == remote.addr => {
            rewrite::destination(packet, parsed, &nat.0, parsed.flow.dport)
        }
        Direction::Ingress | Direction::Egress => Ok(()),
    }
}

/// The far side of the quoted packet.
struct Remote {
    addr: Addr,
    port: Be16,
    /// Offset of the address in an IPv4 and in an IPv6 header.
    addr_at: (usize, usize),
    /// Offset of the port in the packet.
    port_at: usize,
}

#[inline(always)]
fn quoted_remote(quoted: &Parsed, direction: Direction) -> Remote {
    let flow = &quoted.flow;
    match direction {
        Direction::Ingress => {
            Remote { addr: flow.dst, port: flow.dport, addr_at: (16, 24), port_at: quoted.l4 + 2 }
        }
        Direction::Egress => {
            Remote { addr: flow.src, port: flow.sport, addr_at: (12, 8), port_at: quoted.l4 }
        }
    }
}

#[inline(always)]
fn inner_address(
    packet: Packet,
    parsed: &Parsed,
    remote: &Remote,
    at: usize,
    to: &Addr,
) -> Result<(), HelperError> {
    let diff = csum::diff(&remote.addr, to);
    if parsed.v4 {
        // The quoted header checksum makes up for the address, so the ICMP checksum does not change.
        packet.l3_csum(at + 10, diff)?;
        return packet.store(at + remote.addr_at.0, &to.word3());
    }
    packet.l4_csum_payload(parsed.l4 + CHECKSUM, diff)?;
    packet.store(at + remote.addr_at.1, to)
}

#[inline(always)]
fn inner_port(
    packet: Packet,
    parsed: &Parsed,
    from: Be16,
    at: usize,
    to: Be16,
) -> Result<(), HelperError> {
    if from == to {
        return Ok(());
    }
    let kind = ChecksumKind { udp: false, v6: !parsed.v4 };
    packet.l4_csum_port(parsed.l4 + CHECKSUM, from.to_wire(), to.to_wire(), kind)?;
    packet.store(at, &to.to_wire())
}

/// The Pod's own port, where it differs behind the translation.
#[inline(always)]
fn mapped_port(
    packet: Packet,
    parsed: &Parsed,
    quoted: &Parsed,
    direction: Direction,
    entry: Tracked,
) -> Result<(), HelperError> {
    let (from, at) = match direction {
        Direction::Ingress => (quoted.flow.sport, quoted.l4),
        Direction::Egress => (quoted.flow.dport, quoted.l4 + 2),
    };
    inner_port(packet, parsed, from, at, entry.aux_port())
}
