//! The stages around the map `ct`: keys, new entries, and finding a free tuple for a translated flow.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::conntrack::{self, CtEntry, CtKey, Direction, bits, scope};
use lb_common::flow::{Flow, proto, tcp};
use lb_common::hash;
use lb_common::verdict::Counter;

use crate::maps::{self, Inserted, Scratch, Tracked};
use crate::parse::Parsed;
use crate::service::Target;

/// The key of a packet that leaves the Pod.
#[inline(always)]
pub(crate) fn key_out(flow: &Flow, ifindex: u32) -> CtKey {
    CtKey {
        local: flow.src,
        remote: flow.dst,
        local_port: flow.sport,
        remote_port: flow.dport,
        proto: flow.proto,
        scope: scope::POD,
        veth: ifindex as u16,
    }
}

/// The key of a packet that enters the Pod.
#[inline(always)]
pub(crate) fn key_in(flow: &Flow, ifindex: u32) -> CtKey {
    CtKey {
        local: flow.dst,
        remote: flow.src,
        local_port: flow.dport,
        remote_port: flow.sport,
        proto: flow.proto,
        scope: scope::POD,
        veth: ifindex as u16,
    }
}

/// Whether this packet must start over although there is an entry.
#[inline(always)]
pub(crate) fn starts_over(entry: Tracked, parsed: &Parsed, now: u32) -> bool {
    let flags = entry.flags();
    if parsed.flow.proto == proto::TCP && parsed.tcp_flags & tcp::SYN == 0 {
        return false;
    }
    conntrack::reopens(flags, parsed.tcp_flags)
        || conntrack::is_expired(
            parsed.flow.proto,
            flags,
            entry.last_seen(),
            now,
            maps::config_hz(),
        )
}

/// Notes the packet on its entry.
#[inline(always)]
pub(crate) fn note(entry: Tracked, direction: Direction, parsed: &Parsed, now: u32) {
    entry.touch(conntrack::seen(entry.flags(), direction, parsed.tcp_flags), now);
}

/// An entry for a flow without translation whose first packet is this one.
#[inline(always)]
fn plain(direction: Direction, parsed: &Parsed, now: u32) -> CtEntry {
    let inbound = match direction {
        Direction::Ingress => bits::INBOUND,
        Direction::Egress => 0,
    };
    let mid_flow = parsed.flow.proto == proto::TCP && parsed.tcp_flags & tcp::SYN == 0;
    let picked_up = if mid_flow { bits::PICKED_UP } else { 0 };
    CtEntry {
        last_seen: now,
        flags: conntrack::seen(inbound | picked_up, direction, parsed.tcp_flags),
        ..CtEntry::ZERO
    }
}

/// Commits a flow without translation under the key in the scratch room. Nothing depends on its entry, so a full map only costs a counter. A reset
/// opens nothing.
#[inline(always)]
pub(crate) fn commit_plain(scratch: &mut Scratch, direction: Direction, now: u32) {
    let Scratch { parsed, key, entry, .. } = scratch;
    if parsed.tcp_flags & tcp::RST != 0 {
        return;
    }
    *entry = plain(direction, parsed, now);
    if !maps::ct_put(key, entry) {
        maps::count(Counter::Untracked);
    } else if entry.flags & bits::PICKED_UP != 0 {
        maps::count(Counter::FlowPickedUp);
    } else {
        maps::count(Counter::FlowPlain);
    }
}

/// Outcome of [`claim`].
pub(crate) enum Claim {
    /// The reply entry stands; the source port towards the backend.
    Port(Be16),
    /// Every tuple tried belongs to another live flow.
    Exhausted,
    /// The map could not take the entry.
    Full,
}

/// Writes the reply entry of a flow towards `target`, with the client's own port or, when `remap`, another one.
///
/// Two frontends may share a backend, and a Pod may use one port towards both, or towards the backend itself: the
/// tuples behind the translation would be equal, so the second flow must differ in its port.
#[inline(always)]
pub(crate) fn claim(
    ifindex: u32,
    scratch: &mut Scratch,
    target: Target,
    hairpin: Option<Addr>,
    now: u32,
    remap: bool,
) -> Claim {
    let Scratch { parsed, key, entry, .. } = scratch;
    let flow = &parsed.flow;
    let mut port = flow.sport;
    if remap {
        // Unprivileged ports: 1024..65535.
        port = Be16::new((1024 + hash::scale(maps::random(), 64512)) as u16);
    }
    let (remote, local_port, remote_port) = match hairpin {
        None => (target.addr, port, target.port),
        // The Pod answers as backend: its local port is the backend's.
        Some(stand_in) => (stand_in, target.port, port),
    };
    *key = CtKey {
        local: flow.src,
        remote,
        local_port,
        remote_port,
        proto: flow.proto,
        scope: scope::POD,
        veth: ifindex as u16,
    };
    *entry = CtEntry {
        nat_addr: flow.dst,
        aux_addr: flow.src,
        nat_port: flow.dport,
        aux_port: flow.sport,
        backend_id: target.id,
        backend_gen: target.generation,
        last_seen: now,
        epoch: 0,
        flags: bits::REPLY
            | if hairpin.is_some() { bits::HAIRPIN } else { 0 }
            | if remap { bits::PORT_MAPPED } else { 0 },
    };
    match maps::ct_claim(key, entry) {
        Inserted::Done => Claim::Port(port),
        Inserted::Failed => Claim::Full,
        Inserted::Taken => {
            let Some(old) = maps::ct(key) else { return Claim::Exhausted };
            if !is_ours_or_dead(old, flow, now) {
                return Claim::Exhausted;
            }
            if maps::ct_put(key, entry) { Claim::Port(port) } else { Claim::Full }
        }
    }
}

/// Whether an entry in our way is a remnant: of this very flow, or of one that is over.
#[inline(always)]
fn is_ours_or_dead(old: Tracked, flow: &Flow, now: u32) -> bool {
    let flags = old.flags();
    let same = flags & bits::REPLY != 0
        && old.nat_addr() == flow.dst
        && old.nat_port() == flow.dport
        && old.aux_port() == flow.sport;
    same || (flow.proto == proto::TCP && conntrack::is_closing(flags))
        || conntrack::is_expired(flow.proto, flags, old.last_seen(), now, maps::config_hz())
}

/// Tells the forward entry of a UDP flow that an answer came, so that it lives as long as a two-way flow does. Done
/// once a flow: the mark on the reply entry says that it was.
#[inline(never)]
pub(crate) fn answered(reply: Tracked, key: &CtKey, now: u32) {
    let forward = conntrack::partner(key, &reply.entry()).and_then(|forward| maps::ct(&forward));
    if let Some(forward) = forward {
        forward.touch(forward.flags() | bits::SEEN_IN, now);
    }
    reply.touch(reply.flags() | bits::SEEN_OUT | bits::SEEN_IN, now);
}
