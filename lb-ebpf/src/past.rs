//! Flows between Pods of this node that go past the host's IP stack and netfilter, to the host's end of the receiver's veth:
//! its `pod_in` judges, translates and counts as ever. Or past that end, too: then `pod_out` does all that itself, as the
//! receiver's hook. Which flows may, and until when, is `lb_common::past`.
//!
//! The sender's hook writes the receiver's entry, with the way back, before the first packet gets there. It is not judged yet:
//! the receiver's hook asks the policies at that packet, as after a change. A packet of a connection whose beginning was not
//! seen never gets a way.

use lb_common::addr::Addr;
use lb_common::conntrack::{CtEntry, CtFlags, Direction, UNJUDGED, opened, partner};
use lb_common::endpoint::PodEntry;
use lb_common::flow::{Flow, proto};
use lb_common::hop::HopWay;
use lb_common::past::{self, LocalEnd, PastWay};
use lb_common::verdict::Counter;

use crate::packet::{self, Packet};
use crate::parsed::Kind;
use crate::scratch::{self, Scratch};
use crate::tracked::{self, Inserted, Tracked};
use crate::verdict::Verdict;
use crate::{conntrack, hop, maps};

/// Whether the new flow goes past the stack: then the receiver's entry stands, and `scratch.way` is what the sender's entry gets.
/// `to` has its ends as the receiver will see them; with `by_stack` its Service wants it to go through the stack.
#[inline(always)]
pub(crate) fn opens(scratch: &mut Scratch, to: Flow, by_stack: bool, now: u32) -> bool {
    scratch::hand_over(&mut scratch.to, to);
    scratch::hand_over(&mut scratch.by_stack, u32::from(by_stack));
    past_open(now) != 0
}

/// Exported, so that the verifier checks it once by itself, and by itself on the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn past_open(now: u32) -> u32 {
    let Some(scratch) = scratch::get() else { return 0 };
    let Scratch { parsed, to, hand, ifindex, epoch, partner, other, way, by_stack, .. } = scratch;
    let Some(ident) = maps::ident(&to.dst) else { return 0 };
    let receiver = ident.ifindex;
    if receiver == 0 {
        return 0;
    }
    let (Some(sender), Some(pod)) = (hand.get(*ifindex), maps::pod(receiver)) else { return 0 };
    let is_own = to.src == sender.ip4 || to.src == sender.ip6;
    let open = if is_own && *by_stack == 0 { way_between(pod, sender) } else { None };
    let Some((found, counter)) = open else {
        maps::count(if !is_on() {
            Counter::FlowStackNode
        } else if *by_stack != 0 {
            Counter::FlowStackService
        } else {
            Counter::FlowStackPod
        });
        return 0;
    };
    *way = found.to_addr();
    *partner = conntrack::key_in(to, receiver);
    *other = CtEntry {
        way: found.back().to_addr(),
        last_seen: now,
        epoch: if *epoch == 0 { 0 } else { UNJUDGED },
        flags: opened(CtFlags::INBOUND | CtFlags::PAST, Direction::Ingress, parsed.tcp_flags),
        ..CtEntry::ZERO
    };
    // What is over its budget is left to the receiver's hook, which passes or drops it.
    if !maps::is_within_budget(Some(pod), true) {
        return 0;
    }
    let written = match tracked::claim(partner, other) {
        Inserted::Done => true,
        Inserted::Failed => false,
        Inserted::Taken => match tracked::get(partner) {
            Some(old) if !conntrack::is_alive(parsed, old, now) => tracked::put(partner, other),
            // Of this very flow, whose entry here was evicted.
            Some(old) if old.flags().contains(CtFlags::PAST) && old.way() == other.way => {
                old.set_epoch(other.epoch);
                true
            }
            _ => false,
        },
    };
    if written {
        maps::count(counter);
    }
    u32::from(written)
}

/// Whether the node allows it.
#[inline(always)]
fn is_on() -> bool {
    maps::settings().is_some_and(|settings| past::node_may_open(settings.flags))
}

/// The way to `receiver` from `sender`, if flows between them may have one, and where it is counted.
#[inline(always)]
fn way_between(receiver: &PodEntry, sender: &PodEntry) -> Option<(PastWay, Counter)> {
    let settings = maps::settings()?;
    let (to, from) = (maps::local(receiver.id)?, maps::local(sender.id)?);
    if !past::may_open(settings.flags, to, from) {
        return None;
    }
    let way = PastWay { to: (receiver.id, to.generation), from: (sender.id, from.generation) };
    let counter = if past::goes_to_peer(to) { Counter::FlowPeer } else { Counter::FlowVeth };
    Some((way, counter))
}

/// Gives a new flow without translation its way, once its receiver's entry stands, and sends its first packet. Its own entry is
/// under the key in the scratch memory.
#[inline(always)]
pub(crate) fn first(packet: Packet, scratch: &mut Scratch) -> Verdict {
    let Some(entry) = tracked::get(&scratch.key) else { return Verdict::Pass };
    let way = packet::reread(&scratch.way);
    entry.set_way(way);
    entry.set_flags(entry.flags() | CtFlags::PAST);
    go(packet, entry, &way)
}

/// The way in an entry, if there is one that leads to a Pod.
#[inline(always)]
pub(crate) fn way_of(entry: Tracked) -> Option<Addr> {
    if !entry.flags().contains(CtFlags::PAST) {
        return None;
    }
    Some(entry.way()).filter(|way| *way != Addr::NONE)
}

/// Looks after an entry that has a way, now and then: at a packet that opens, and at the first one of a stamp. The flow loses its
/// way if the receiver's entry is gone, since another one would have none.
#[inline(always)]
pub(crate) fn review(scratch: &mut Scratch, entry: Tracked, now: u32) {
    if !entry.flags().contains(CtFlags::PAST) {
        return;
    }
    let parsed = &scratch.parsed;
    let opens = parsed.flow.proto == proto::TCP && !conntrack::is_mid_flow(parsed);
    if opens || entry.last_seen() != now {
        past_review(now);
    }
}

/// As [`past_open`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn past_review(now: u32) -> u32 {
    let Some(scratch) = scratch::get() else { return 0 };
    let Some(entry) = tracked::get(&scratch.key) else { return 0 };
    let Some(way) = PastWay::of_addr(&entry.way()) else { return 0 };
    if !has_way_back(scratch, entry, way, now) {
        past_withdraw();
    }
    0
}

/// Whether the entry of the receiver, or of the client whose Service it answers, has the way back.
#[inline(always)]
fn has_way_back(scratch: &mut Scratch, entry: Tracked, way: PastWay, now: u32) -> bool {
    let Scratch { parsed, key, partner: across, other, .. } = scratch;
    let Some(to) = maps::local(way.to.0) else { return false };
    *across = *key;
    (across.local, across.local_port) = (key.remote, key.remote_port);
    (across.remote, across.remote_port) = (key.local, key.local_port);
    if entry.flags().contains(CtFlags::FORWARD) {
        (across.local, across.local_port) = (entry.nat_addr(), entry.nat_port());
        across.remote_port = entry.aux_port();
    }
    across.scope = lb_common::conntrack::scope::POD;
    across.veth = to.ifindex as u16;
    let Some(mut found) = tracked::get(across) else { return false };
    if found.flags().contains(CtFlags::REPLY) {
        *other = found.entry();
        let Some(forward) = partner(across, other) else { return false };
        *across = forward;
        match tracked::get(across) {
            Some(forward) => found = forward,
            None => return false,
        }
    }
    found.flags().contains(CtFlags::PAST)
        && found.way() == way.back().to_addr()
        && !conntrack::is_expired(found, parsed, now)
}

/// The flow goes through the stack from now on. Its entry is looked up again, by the key in the scratch memory: the last packet of
/// a connection has taken it away, and its place in the map may be another flow's. Exported, as [`past_open`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn past_withdraw() -> u32 {
    let entry = scratch::get().and_then(|scratch| tracked::get(&scratch.key));
    if let Some(entry) = entry {
        entry.set_flags(entry.flags().without(CtFlags::PAST));
    }
    0
}

/// Sends a packet on as the way in its entry says; through the stack, if it has lost that.
#[inline(always)]
pub(crate) fn send(packet: Packet, scratch: &mut Scratch, entry: Tracked, way: Addr) -> Verdict {
    scratch::hand_over(&mut scratch.way, way);
    go(packet, entry, &way)
}

/// The same, with the way in the scratch memory.
#[inline(always)]
fn go(packet: Packet, entry: Tracked, way: &Addr) -> Verdict {
    if let Some(way) = HopWay::of_addr(way) {
        return hop::send(packet, &way, entry.last_seen());
    }
    let end = past_send(packet.as_ptr());
    if end != 0 {
        return to_end(end);
    }
    past_withdraw();
    Verdict::Pass
}

/// With the ifindex of the host's end of a veth: to the other end. An ifindex has no such bit.
const PEER: u32 = 1 << 31;

/// The end of the Pod's veth that the packet goes to: ifindex of the host's end, with [`PEER`] or without. Pieces of datagrams and
/// ICMP errors are for the receiver's own hook, which reads them in another way.
#[inline(always)]
pub(crate) fn end_of(pod: &LocalEnd, kind: Kind) -> u32 {
    let to_peer = past::goes_to_peer(pod) && kind == Kind::FLOW;
    if to_peer { pod.ifindex | PEER } else { pod.ifindex }
}

/// Sends the packet to that end.
#[inline(always)]
pub(crate) fn to_end(end: u32) -> Verdict {
    if end & PEER != 0 { Verdict::Peer(end & !PEER) } else { Verdict::Local(end) }
}

/// Addresses the frame to the Pod that the way in the scratch memory leads to. Returns the end that it goes to ([`end_of`]), or 0
/// if the way is not open any more. Exported, as [`past_open`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn past_send(skb: *mut aya_ebpf::bindings::__sk_buff) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(scratch) = scratch::get() else { return 0 };
    let Some(way) = PastWay::of_addr(&scratch.way) else { return 0 };
    let Some(settings) = maps::settings() else { return 0 };
    let (Some(to), Some(from)) = (maps::local(way.to.0), maps::local(way.from.0)) else { return 0 };
    if !past::is_open(settings.flags, &way, to, from) || packet.store(0, &to.link).is_err() {
        return 0;
    }
    end_of(to, scratch.parsed.kind)
}
