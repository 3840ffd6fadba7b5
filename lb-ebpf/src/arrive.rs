//! Packets of Pods of other nodes, and of those nodes, for Pods of this node that go past the host's IP stack, as the answers to
//! them do (`hop`): from the device that they come in by to the host's end of the Pod's veth, where `pod_in` judges and translates
//! as ever; or past that end, too: then `dev_in` does all that itself, as the Pod's hook (`past`).
//!
//! The first packet of a flow writes the Pod's entry, with the way back, before it gets there. As in `past`, it is not judged
//! yet. A packet of a connection whose beginning was not seen never gets a way.

use aya_ebpf::bindings::__sk_buff;
use lb_common::conntrack::{
    CtEntry, CtFlags, Direction, UNJUDGED, is_established, opened, survives,
};
use lb_common::endpoint::DevFlags;
use lb_common::flow::{proto, tcp};
use lb_common::hop::{self as ways, HopWay};
use lb_common::verdict::Counter;

use crate::hop::Caller;
use crate::packet::Packet;
use crate::parsed::Parsed;
use crate::scratch::{self, Scratch};
use crate::tracked::{self, Inserted};
use crate::{conntrack, hop, kernel, maps, past, route};

/// Addresses a packet to the Pod that it is for, if its flow goes past the stack. Returns the end of the Pod's veth that it goes
/// to ([`past::end_of`]), or 0.
#[inline(always)]
pub(crate) fn past_stack(packet: Packet) -> u32 {
    if hop::is_on() { arrive_flow(packet.as_ptr()) } else { 0 }
}

/// The same for an ICMP error; what it quotes is in the scratch memory.
#[inline(always)]
pub(crate) fn error_past_stack(packet: Packet) -> u32 {
    if hop::is_on() { arrive_error(packet.as_ptr()) } else { 0 }
}

/// Exported, so that the verifier checks it once by itself, and by itself on the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn arrive_flow(skb: *mut __sk_buff) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(scratch) = scratch::get() else { return 0 };
    let veth = veth_of_addressee(packet, scratch);
    if veth == 0 {
        return 0;
    }
    let now = kernel::now();
    let Scratch { parsed, key, .. } = scratch;
    *key = conntrack::key_in(&parsed.flow, veth);
    let Some(entry) = conntrack::find(scratch) else { return open(packet, scratch, veth, now) };
    let Scratch { parsed, .. } = scratch;
    let flags = entry.flags();
    // What pod_in makes of the entry decides here, too.
    if !flags.intersects(CtFlags::FORWARD | CtFlags::REPLY)
        && conntrack::starts_over(entry, parsed, Direction::Ingress, now)
    {
        if !conntrack::is_alive(parsed, entry, now) {
            return open(packet, scratch, veth, now);
        }
        if !survives(flags, Direction::Ingress) {
            return 0;
        }
    }
    let answered = is_answered(parsed.flow.proto, flags);
    match hop::way_of(entry) {
        Some(way) if !flags.contains(CtFlags::FORWARD) => {
            deliver(packet, scratch, (veth, way), answered)
        }
        _ => 0,
    }
}

/// As [`arrive_flow`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn arrive_error(skb: *mut __sk_buff) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(scratch) = scratch::get() else { return 0 };
    let veth = veth_of_addressee(packet, scratch);
    let Scratch { quoted, key, .. } = scratch;
    if veth == 0 {
        return 0;
    }
    *key = conntrack::key_out(&quoted.flow, veth);
    match tracked::get(key).and_then(hop::way_of) {
        Some(way) => deliver(packet, scratch, (veth, way), true),
        None => 0,
    }
}

/// ifindex of the host's end of the veth of the Pod that the packet is for; 0 = it is for none here.
#[inline(always)]
fn veth_of_addressee(packet: Packet, scratch: &Scratch) -> u32 {
    match maps::ident(&scratch.parsed.flow.dst) {
        Some(known) if packet.is_for_this_host() => known.ifindex,
        _ => 0,
    }
}

/// Whether packets of the flow went both ways.
#[inline(always)]
fn is_answered(protocol: u8, flags: CtFlags) -> bool {
    match protocol {
        proto::TCP => is_established(flags),
        _ => flags.contains(CtFlags::SEEN_OUT | CtFlags::SEEN_IN),
    }
}

/// The first packet of a flow: writes the Pod's entry, where nothing is or only a flow that is over, and sends the packet on.
#[inline(always)]
fn open(packet: Packet, scratch: &mut Scratch, veth: u32, now: u32) -> u32 {
    let Scratch { parsed, key, other, fib, .. } = scratch;
    let ends = (parsed.v4, &parsed.flow.dst, &parsed.flow.src);
    if conntrack::is_mid_flow(parsed) || parsed.later || parsed.tcp_flags & tcp::RST != 0 {
        return 0;
    }
    let Some(caller) = hop::caller(ends.2) else { return 0 };
    let Some(pod) = maps::pod(veth) else { return 0 };
    let Some(way) = hop::find(packet, fib, (veth, pod.id), ends) else { return 0 };
    // From a device that does not lead back: the stack knows whether that may be.
    if way.device != scratch.ifindex || !fits(packet, parsed, pod.id, (caller, &way)) {
        return 0;
    }
    // What is over its budget is left to pod_in, which passes or drops it.
    if !maps::is_within_budget(Some(pod), true) {
        return 0;
    }
    *other = CtEntry {
        way: way.to_addr(),
        last_seen: now,
        epoch: if maps::epoch() == 0 { 0 } else { UNJUDGED },
        flags: opened(CtFlags::INBOUND | CtFlags::PAST, Direction::Ingress, parsed.tcp_flags),
        ..CtEntry::ZERO
    };
    let written = match tracked::claim(key, other) {
        Inserted::Done => true,
        Inserted::Failed => false,
        Inserted::Taken => tracked::put(key, other),
    };
    if !written {
        return 0;
    }
    maps::count(Counter::FlowHop);
    deliver(packet, scratch, (veth, way), false)
}

/// Whether the packet is small enough for the Pod with this number, and answers for their way: what is too big goes to the stack,
/// where netfilter may masquerade it if it goes to a node.
#[inline(always)]
fn fits(packet: Packet, parsed: &Parsed, id: u32, (caller, way): (Caller, &HopWay)) -> bool {
    let Some(pod) = maps::local(id) else { return false };
    u32::from(route::length(packet, parsed)) <= pod.mtu
        && (caller == Caller::Pod || pod.mtu <= u32::from(way.mtu))
}

/// Addresses the packet to the Pod, if its flow still has the way. `answered`: its packets went both ways.
#[inline(always)]
fn deliver(
    packet: Packet,
    scratch: &mut Scratch,
    (veth, way): (u32, HopWay),
    answered: bool,
) -> u32 {
    let Some(settings) = maps::settings() else { return 0 };
    let Some(pod) = maps::local(u32::from(way.pod.0)) else { return 0 };
    let Some(device) = maps::dev(scratch.ifindex) else { return 0 };
    if !ways::is_open(settings.flags, &way, pod, device) || pod.ifindex != veth {
        // The stack has seen none of it. Once there are answers, one packet that comes in elsewhere must not change that.
        if !answered || hop::is_other_node(&scratch.key.remote) {
            hop::end();
        }
        return 0;
    }
    let strict = scratch.parsed.v4 && device.flags.contains(DevFlags::STRICT);
    if scratch.ifindex != way.device && strict && !leads_back(packet, scratch, veth) {
        return 0;
    }
    let Scratch { parsed, epoch, .. } = scratch;
    if u32::from(route::length(packet, parsed)) > pod.mtu || packet.store(0, &pod.link).is_err() {
        return 0;
    }
    // The Pod may be asked next, at this hook.
    scratch::hand_over(epoch, maps::epoch());
    past::end_of(pod, parsed.kind)
}

/// Whether the route to the packet's source leads to the device that it came in by.
#[inline(always)]
fn leads_back(packet: Packet, scratch: &mut Scratch, veth: u32) -> bool {
    let Scratch { parsed, fib, ifindex, .. } = scratch;
    route::ask(fib, veth, parsed.v4, &parsed.flow.dst, &parsed.flow.src);
    route::hop(packet, fib).is_some_and(|(device, ..)| device == *ifindex)
}
