//! ICMP errors about translated flows: the quoted packet and the error's addresses become what the receiver knows.
//! Without it a client whose packets are too big for the way to its backend never learns so (RFC 1191, RFC 8201).
//!
//! ```text
//! enters the Pod:    quotes Pod -> backend       becomes   Pod -> frontend
//! leaves the Pod:    quotes frontend -> Pod      becomes   backend -> Pod
//!                    quotes client -> Pod        becomes   client -> frontend
//! enters the node:   quotes frontend -> client   becomes   backend -> client (or its masquerade)
//!                    quotes node -> backend      becomes   client -> frontend
//! leaves the node:   quotes client -> backend    becomes   client -> frontend
//! ```
//! The quoted layer 4 checksum stays: receivers do not check it, and most quotes are cut off before its payload ends.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtKey, Direction, bits, scope};
use lb_common::csum;

use crate::maps::{self, Scratch, Tracked};
use crate::packet::{ChecksumKind, HelperError, Packet};
use crate::parse::{self, Parsed};
use crate::route::{self, Way};
use crate::{conntrack, rewrite};

/// Bytes of an ICMP header before the quoted packet.
const ICMP: usize = 8;
/// Offset of the checksum in it.
const CHECKSUM: usize = 2;

/// Translates an error at a Pod's veth if the flow it is about is translated. Returns the device by which it must go
/// past the IP stack, or 0. `Err` when a helper refused halfway.
#[inline(never)]
pub(crate) fn translate(
    packet: Packet,
    scratch: &mut Scratch,
    direction: Direction,
) -> Result<u32, HelperError> {
    let Scratch { parsed, quoted, key, .. } = scratch;
    let at = parsed.l4 + ICMP;
    if parse::quoted(packet, parsed, at, quoted).is_none() {
        return Ok(0);
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
    let Some(entry) = maps::ct(key) else { return Ok(0) };
    if entry.flags() & bits::EXTERNAL != 0 {
        return match direction {
            Direction::Egress => to_outside(packet, scratch, entry),
            Direction::Ingress => Ok(0),
        };
    }
    if entry.flags() & (want | bits::HAIRPIN) != want {
        return Ok(0);
    }
    let nat = (entry.nat_addr(), entry.nat_port());
    let mapped = entry.flags() & bits::PORT_MAPPED != 0;
    // A router's own address stays; the far end's becomes what the receiver knows it by.
    match direction {
        Direction::Ingress => {
            end(packet, parsed, quoted, End::Destination, nat)?;
            if mapped {
                end(packet, parsed, quoted, End::Source, (quoted.flow.src, entry.aux_port()))?;
            }
            if parsed.flow.src == quoted.flow.dst {
                rewrite::source(packet, parsed, &nat.0, parsed.flow.sport)?;
            }
        }
        Direction::Egress => {
            end(packet, parsed, quoted, End::Source, nat)?;
            if mapped {
                let own = (quoted.flow.dst, entry.aux_port());
                end(packet, parsed, quoted, End::Destination, own)?;
            }
            if parsed.flow.dst == quoted.flow.src {
                rewrite::destination(packet, parsed, &nat.0, parsed.flow.dport)?;
            }
        }
    }
    Ok(0)
}

/// The Pod answers a client outside with an error: it comes from the frontend, about a packet to the frontend.
#[inline(always)]
fn to_outside(packet: Packet, scratch: &mut Scratch, entry: Tracked) -> Result<u32, HelperError> {
    let (src, dst) = (scratch.parsed.flow.src, scratch.parsed.flow.dst);
    let Way::Via(ifindex) = route::way(packet, scratch, &src, &dst) else { return Ok(0) };
    let Scratch { parsed, quoted, .. } = scratch;
    from_backend(packet, parsed, quoted, entry)?;
    Ok(ifindex)
}

/// Translates an error that leaves the host about a packet to one of its processes.
#[inline(never)]
pub(crate) fn leaving(packet: Packet, scratch: &mut Scratch) -> Result<(), HelperError> {
    let Scratch { parsed, quoted, key, .. } = scratch;
    if parse::quoted(packet, parsed, parsed.l4 + ICMP, quoted).is_none() {
        return Ok(());
    }
    *key = CtKey { scope: scope::EXTERNAL_REPLY, ..conntrack::key_in(&quoted.flow, 0) };
    match maps::ct(key) {
        Some(entry) => from_backend(packet, parsed, quoted, entry),
        None => Ok(()),
    }
}

/// Of an error by the backend itself or by its node: the quoted destination becomes the frontend, and the sender too,
/// if it was the backend.
#[inline(always)]
fn from_backend(
    packet: Packet,
    parsed: &Parsed,
    quoted: &Parsed,
    reply: Tracked,
) -> Result<(), HelperError> {
    let frontend = (reply.nat_addr(), reply.nat_port());
    end(packet, parsed, quoted, End::Destination, frontend)?;
    if reply.flags() & bits::PORT_MAPPED != 0 {
        end(packet, parsed, quoted, End::Source, (quoted.flow.src, reply.aux_port()))?;
    }
    if parsed.flow.src == quoted.flow.dst {
        rewrite::source(packet, parsed, &frontend.0, parsed.flow.sport)?;
    }
    Ok(())
}

/// Where an error that entered the node goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onward {
    /// Not about a flow of ours, or for a process of this host: to the IP stack.
    Stack,
    /// To a client or a backend, by this device.
    Via(u32),
    /// The routing table has no way.
    Nowhere,
}

/// Translates an error that enters the node about a flow from outside.
#[inline(never)]
pub(crate) fn arriving(packet: Packet, scratch: &mut Scratch) -> Result<Onward, HelperError> {
    let Scratch { parsed, quoted, key, .. } = scratch;
    if parse::quoted(packet, parsed, parsed.l4 + ICMP, quoted).is_none() {
        return Ok(Onward::Stack);
    }
    *key = CtKey { scope: scope::EXTERNAL, ..conntrack::key_out(&quoted.flow, 0) };
    if let Some(forward) = maps::ct(key) {
        return about_reply(packet, scratch, forward);
    }
    *key = CtKey { scope: scope::EXTERNAL_REPLY, ..conntrack::key_in(&quoted.flow, 0) };
    match maps::ct(key) {
        Some(reply) if reply.flags() & bits::MASQUERADED != 0 => {
            about_request(packet, scratch, reply)
        }
        _ => Ok(Onward::Stack),
    }
}

/// About an answer on its way to the client: goes to the backend.
#[inline(always)]
fn about_reply(
    packet: Packet,
    scratch: &mut Scratch,
    forward: Tracked,
) -> Result<Onward, HelperError> {
    let backend = (forward.nat_addr(), forward.nat_port());
    let client = (forward.aux_addr(), forward.aux_port());
    let onward = if forward.flags() & bits::TO_HOST != 0 {
        Onward::Stack
    } else {
        onward(packet, scratch, &backend.0)
    };
    let Scratch { parsed, quoted, .. } = scratch;
    end(packet, parsed, quoted, End::Source, backend)?;
    end(packet, parsed, quoted, End::Destination, client)?;
    rewrite::destination(packet, parsed, &backend.0, parsed.flow.dport)?;
    if parsed.flow.src == quoted.flow.dst && parsed.flow.src != client.0 {
        rewrite::source(packet, parsed, &client.0, parsed.flow.sport)?;
    }
    Ok(onward)
}

/// About a masqueraded packet on its way to the backend: goes to the client.
#[inline(always)]
fn about_request(
    packet: Packet,
    scratch: &mut Scratch,
    reply: Tracked,
) -> Result<Onward, HelperError> {
    let client = (reply.aux_addr(), reply.aux_port());
    let frontend = (reply.nat_addr(), reply.nat_port());
    let onward = onward(packet, scratch, &client.0);
    let Scratch { parsed, quoted, .. } = scratch;
    end(packet, parsed, quoted, End::Source, client)?;
    end(packet, parsed, quoted, End::Destination, frontend)?;
    rewrite::destination(packet, parsed, &client.0, parsed.flow.dport)?;
    if parsed.flow.src == quoted.flow.dst {
        rewrite::source(packet, parsed, &frontend.0, parsed.flow.sport)?;
    }
    Ok(onward)
}

#[inline(always)]
fn onward(packet: Packet, scratch: &mut Scratch, to: &Addr) -> Onward {
    let from = scratch.parsed.flow.src;
    match route::way(packet, scratch, &from, to) {
        Way::Via(ifindex) => Onward::Via(ifindex),
        Way::TooBig(_) | Way::Expired | Way::None => Onward::Nowhere,
    }
}

/// One end of the quoted packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// Makes one end of the quoted packet `to`.
#[inline(always)]
fn end(
    packet: Packet,
    parsed: &Parsed,
    quoted: &Parsed,
    which: End,
    to: (Addr, Be16),
) -> Result<(), HelperError> {
    let at = parsed.l4 + ICMP;
    let flow = &quoted.flow;
    match which {
        End::Source => {
            let field = if parsed.v4 { 12 } else { 8 };
            inner_address(packet, parsed, at + field, &flow.src, &to.0)?;
            inner_port(packet, parsed, quoted.l4, flow.sport, to.1)
        }
        End::Destination => {
            let field = if parsed.v4 { 16 } else { 24 };
            inner_address(packet, parsed, at + field, &flow.dst, &to.0)?;
            inner_port(packet, parsed, quoted.l4 + 2, flow.dport, to.1)
        }
    }
}

#[inline(never)]
fn inner_address(
    packet: Packet,
    parsed: &Parsed,
    field: usize,
    from: &Addr,
    to: &Addr,
) -> Result<(), HelperError> {
    if from == to {
        return Ok(());
    }
    let diff = csum::diff(from, to);
    if parsed.v4 {
        // The quoted header checksum makes up for the address, so the ICMP checksum does not change.
        packet.l3_csum(parsed.l4 + ICMP + 10, diff)?;
        return packet.store(field, &to.word3());
    }
    packet.l4_csum_payload(parsed.l4 + CHECKSUM, diff)?;
    packet.store(field, to)
}

#[inline(always)]
fn inner_port(
    packet: Packet,
    parsed: &Parsed,
    field: usize,
    from: Be16,
    to: Be16,
) -> Result<(), HelperError> {
    if from == to {
        return Ok(());
    }
    let kind = ChecksumKind { udp: false, v6: !parsed.v4 };
    packet.l4_csum_port(parsed.l4 + CHECKSUM, from.to_wire(), to.to_wire(), kind)?;
    packet.store(field, &to.to_wire())
}
