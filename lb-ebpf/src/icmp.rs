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
//! An error passes for what it is about, past all policies, so it must be one: it goes to who sent the quoted packet, comes
//! from where that packet went or from a router on the way, and is no longer than errors are.
//!
//! The quoted layer 4 checksum stays: receivers do not check it, and most quotes are cut off before its payload ends.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{CtFlags, CtKey, Direction, scope};
use lb_common::csum;
use lb_common::endpoint::IdentFlags;

use crate::packet::{ChecksumKind, HelperError, Packet};
use crate::parsed::Parsed;
use crate::route::{self, Way};
use crate::scratch::{self, Scratch};
use crate::tracked::{self, Tracked};
use crate::{conntrack, maps, origin, parse, rewrite};

/// Bytes of an ICMP header before the quoted packet.
const ICMP: usize = 8;
/// Offset of the checksum in it.
const CHECKSUM: usize = 2;

/// Bytes of the longest error, as an IP packet: RFC 1812 §4.3.2.3, RFC 4443 §2.4.
const LONGEST4: u32 = 576;
const LONGEST6: u32 = 1280;

/// Reads the packet that an error quotes. Returns `None` if it quotes none, or if the error does not go to the sender of the
/// quoted packet.
#[inline(always)]
fn quote(packet: Packet, parsed: &Parsed, quoted: &mut Parsed) -> Option<()> {
    let longest = if parsed.v4 { LONGEST4 } else { LONGEST6 };
    if packet.len() > parsed.l3 as u32 + longest {
        return None;
    }
    parse::quoted(packet, parsed, parsed.l4 + ICMP, quoted)?;
    (parsed.flow.dst == quoted.flow.src).then_some(())
}

/// Whether an error may come from its source: from where the quoted packet went, before or after translation, or from a
/// router. Pods are none, but for those that an annotation lets send from more addresses.
#[inline(always)]
fn is_plausible(scratch: &mut Scratch, direction: Direction, translated: Addr) -> bool {
    let Scratch { parsed, quoted, claimed, .. } = scratch;
    let (src, dst) = (parsed.flow.src, quoted.flow.dst);
    if direction == Direction::Egress {
        scratch::hand_over(claimed, dst);
        return dst != Addr::NONE && !origin::is_foreign();
    }
    src == dst
        || src == translated
        || maps::ident(&src).map_or_else(
            || !maps::is_pods_elsewhere(&src),
            |known| !known.flags.contains(IdentFlags::POD) && known.ifindex == 0,
        )
}

/// Translates an error at a Pod's veth if the flow it is about is translated.
#[inline(never)]
pub(crate) fn translate(packet: Packet, scratch: &mut Scratch, direction: Direction) -> Onward {
    let Scratch { parsed, quoted, key, epoch, .. } = scratch;
    if quote(packet, parsed, quoted).is_none() {
        // No stack sends such an error, but receivers may accept it.
        quoted.flow = parse::NOTHING;
        return unknown(scratch, direction);
    }
    // An error about a packet that left the Pod comes in, and the other way round.
    let want = match direction {
        Direction::Ingress => {
            *key = conntrack::key_out(&quoted.flow, packet.ifindex());
            CtFlags::REPLY
        }
        Direction::Egress => {
            *key = conntrack::key_in(&quoted.flow, packet.ifindex());
            CtFlags::FORWARD
        }
    };
    // One that the policies have not been asked about since they changed may be one that they deny.
    let known = tracked::get(key).filter(|entry| entry.epoch() == *epoch);
    let Some(entry) = known else { return unknown(scratch, direction) };
    if direction == Direction::Ingress && !is_plausible(scratch, direction, entry.nat_addr()) {
        return Onward::FORGED;
    }
    let Scratch { parsed, quoted, .. } = scratch;
    if entry.flags().contains(CtFlags::EXTERNAL) {
        return match direction {
            Direction::Egress => to_outside(packet, scratch, entry),
            Direction::Ingress => Onward::STACK,
        };
    }
    if entry.flags().only(want | CtFlags::HAIRPIN) != want {
        return Onward::STACK;
    }
    Onward::STACK.when(at_pod(packet, parsed, quoted, direction, entry))
}

/// About no flow that this Pod has: like any other packet, if it may be what it says.
#[inline(always)]
fn unknown(scratch: &mut Scratch, direction: Direction) -> Onward {
    if is_plausible(scratch, direction, Addr::NONE) { Onward::UNKNOWN } else { Onward::FORGED }
}

/// Translates the quoted packet, and the error's far end. A router's own address stays.
#[inline(always)]
fn at_pod(
    packet: Packet,
    parsed: &Parsed,
    quoted: &Parsed,
    direction: Direction,
    entry: Tracked,
) -> Result<(), HelperError> {
    let nat = (entry.nat_addr(), entry.nat_port());
    let mapped = entry.flags().contains(CtFlags::PORT_MAPPED);
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
    Ok(())
}

/// The Pod answers a client outside with an error: it comes from the frontend, about a packet to the frontend.
#[inline(always)]
fn to_outside(packet: Packet, scratch: &mut Scratch, entry: Tracked) -> Onward {
    let (src, dst) = (scratch.parsed.flow.src, scratch.parsed.flow.dst);
    let Way::Via(ifindex) = route::way(packet, scratch, &src, &dst) else { return Onward::STACK };
    let Scratch { parsed, quoted, .. } = scratch;
    Onward::via(ifindex).when(from_backend(packet, parsed, quoted, entry))
}

/// Translates an error that leaves the host about a packet to one of its processes.
#[inline(never)]
pub(crate) fn leaving(packet: Packet, scratch: &mut Scratch) -> Result<(), HelperError> {
    let Scratch { parsed, quoted, key, .. } = scratch;
    if parse::quoted(packet, parsed, parsed.l4 + ICMP, quoted).is_none() {
        return Ok(());
    }
    *key = CtKey { scope: scope::EXTERNAL_REPLY, ..conntrack::key_in(&quoted.flow, 0) };
    match tracked::get(key) {
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
    if reply.flags().contains(CtFlags::PORT_MAPPED) {
        end(packet, parsed, quoted, End::Source, (quoted.flow.src, reply.aux_port()))?;
    }
    if parsed.flow.src == quoted.flow.dst {
        rewrite::source(packet, parsed, &frontend.0, parsed.flow.sport)?;
    }
    Ok(())
}

/// Where an error goes on: one number, since of an enum with a field the compiler stores the unused bits of whatever is
/// at hand, and the verifier does not let go of half a pointer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Onward(i64);

impl Onward {
    /// Not about a flow of ours, or for a process of this host: to the IP stack.
    pub(crate) const STACK: Self = Self(0);
    /// About no flow that this Pod has.
    pub(crate) const UNKNOWN: Self = Self(-3);
    /// The routing table has no way.
    pub(crate) const NOWHERE: Self = Self(-1);
    /// Forged: a Pod reports an error about packets that were not sent to it.
    pub(crate) const FORGED: Self = Self(-4);
    /// A helper refused halfway.
    pub(crate) const FAILED: Self = Self(-2);

    /// Past the IP stack by this device.
    #[inline(always)]
    const fn via(ifindex: u32) -> Self {
        Self(ifindex as i64)
    }

    /// The device, if there is one.
    #[inline(always)]
    pub(crate) const fn device(self) -> Option<u32> {
        if self.0 > 0 { Some(self.0 as u32) } else { None }
    }

    /// This, unless a helper refused.
    #[inline(always)]
    fn when(self, done: Result<(), HelperError>) -> Self {
        if done.is_ok() { self } else { Self::FAILED }
    }
}

/// Translates an error that enters the node about a flow from outside.
#[inline(never)]
pub(crate) fn arriving(packet: Packet, scratch: &mut Scratch) -> Onward {
    let Scratch { parsed, quoted, key, .. } = scratch;
    if quote(packet, parsed, quoted).is_none() {
        quoted.flow = parse::NOTHING;
        return Onward::STACK;
    }
    *key = CtKey { scope: scope::EXTERNAL, ..conntrack::key_out(&quoted.flow, 0) };
    if let Some(forward) = tracked::get(key) {
        return about_reply(packet, scratch, forward);
    }
    *key = CtKey { scope: scope::EXTERNAL_REPLY, ..conntrack::key_in(&quoted.flow, 0) };
    match tracked::get(key) {
        Some(reply) if reply.flags().contains(CtFlags::MASQUERADED) => {
            about_request(packet, scratch, reply)
        }
        _ => Onward::STACK,
    }
}

/// About an answer on its way to the client: goes to the backend.
#[inline(always)]
fn about_reply(packet: Packet, scratch: &mut Scratch, forward: Tracked) -> Onward {
    let backend = (forward.nat_addr(), forward.nat_port());
    let client = (forward.aux_addr(), forward.aux_port());
    let onward = if forward.flags().contains(CtFlags::TO_HOST) {
        Onward::STACK
    } else {
        onward(packet, scratch, &backend.0)
    };
    let Scratch { parsed, quoted, .. } = scratch;
    // The client itself, not a router before it: the backend knows it by its masquerade.
    let sender = if parsed.flow.src == quoted.flow.dst { client.0 } else { parsed.flow.src };
    onward.when(retell(packet, parsed, quoted, [backend, client], [sender, backend.0]))
}

/// About a masqueraded packet on its way to the backend: goes to the client.
#[inline(always)]
fn about_request(packet: Packet, scratch: &mut Scratch, reply: Tracked) -> Onward {
    let client = (reply.aux_addr(), reply.aux_port());
    let frontend = (reply.nat_addr(), reply.nat_port());
    let onward = onward(packet, scratch, &client.0);
    let Scratch { parsed, quoted, .. } = scratch;
    // The backend itself, not a router before it: the client knows it by the frontend.
    let sender = if parsed.flow.src == quoted.flow.dst { frontend.0 } else { parsed.flow.src };
    onward.when(retell(packet, parsed, quoted, [client, frontend], [sender, client.0]))
}

#[inline(always)]
fn onward(packet: Packet, scratch: &mut Scratch, to: &Addr) -> Onward {
    let from = scratch.parsed.flow.src;
    match route::way(packet, scratch, &from, to) {
        Way::Via(ifindex) => Onward::via(ifindex),
        Way::TooBig(_) | Way::Expired | Way::None => Onward::NOWHERE,
    }
}

/// Replaces both ends of the quoted packet and of the error itself.
#[inline(always)]
fn retell(
    packet: Packet,
    parsed: &Parsed,
    quoted: &Parsed,
    [inner_src, inner_dst]: [(Addr, Be16); 2],
    [src, dst]: [Addr; 2],
) -> Result<(), HelperError> {
    end(packet, parsed, quoted, End::Source, inner_src)?;
    end(packet, parsed, quoted, End::Destination, inner_dst)?;
    rewrite::destination(packet, parsed, &dst, parsed.flow.dport)?;
    if src == parsed.flow.src {
        return Ok(());
    }
    rewrite::source(packet, parsed, &src, parsed.flow.sport)
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
