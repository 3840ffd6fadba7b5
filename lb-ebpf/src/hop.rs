//! Flows between Pods of this node and of others that go past this host's IP stack and netfilter, in both directions: their way
//! out. Which ones may, and until when, is `lb_common::hop`; the way in is `arrive`.
//!
//! The way is chosen at the first packet: of a flow that the Pod opens by its own hook, of one that comes in by the device's. The
//! routing table is asked then, and about once a second again. A packet that cannot go on that way goes to the stack, which
//! tells its sender why.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup};
use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::config::SettingFlags;
use lb_common::conntrack::{CtFlags, partner};
use lb_common::hop::{self, HopWay};
use lb_common::verdict::Counter;

use crate::packet::Packet;
use crate::parsed::{Kind, Parsed};
use crate::scratch::{self, Scratch};
use crate::tracked::{self, Tracked};
use crate::verdict::Verdict;
use crate::{kernel, maps, rewrite, route};

/// Results of [`hop_send`] that are not the return code of a program: the flow has lost its way.
const LOST: u32 = 0;
/// This packet does not go that way.
const NOT_THIS: u32 = 1;

/// Whether the setting allows it.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    maps::settings().is_some_and(|settings| settings.flags.contains(SettingFlags::HOP_PAST))
}

/// Whether the new flow that leaves the Pod for no Service goes past the stack. Then `scratch.way` has its way.
#[inline(always)]
pub(crate) fn opens(packet: Packet) -> bool {
    is_on() && hop_open(packet.as_ptr(), 0) != 0
}

/// The same for one that goes to the target in `scratch.nat`, unless its Service wants it to go through the stack. Then
/// `scratch.nat.way` has it.
#[inline(always)]
pub(crate) fn opens_to_target(packet: Packet) -> bool {
    is_on() && hop_open(packet.as_ptr(), 1) != 0
}

/// Exported, so that the verifier checks it once by itself, and by itself on the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hop_open(skb: *mut __sk_buff, to_target: u32) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(scratch) = scratch::get() else { return 0 };
    let Scratch { parsed, nat, hand, ifindex, fib, way, by_stack, .. } = scratch;
    if to_target != 0 && *by_stack != 0 {
        return 0;
    }
    let (dst, place) = match to_target {
        0 => (&parsed.flow.dst, way),
        _ => (&nat.target.addr, &mut nat.way),
    };
    if !is_elsewhere(dst) {
        return 0;
    }
    let Some(sender) = hand.get(*ifindex) else { return 0 };
    let src = &parsed.flow.src;
    if *src != sender.ip4 && *src != sender.ip6 {
        return 0;
    }
    let ends = (parsed.v4, src, dst);
    let Some(found) = find(packet, fib, (*ifindex, sender.id), ends) else { return 0 };
    if !goes_on(packet, parsed, &found) {
        return 0;
    }
    *place = found.to_addr();
    maps::count(Counter::FlowHop);
    1
}

/// Whether an address is that of a Pod of another node, or of the range that it takes its Pods' addresses from.
#[inline(always)]
pub(crate) fn is_elsewhere(addr: &Addr) -> bool {
    maps::ident(addr).map_or_else(|| maps::is_pods_elsewhere(addr), hop::is_elsewhere)
}

/// Who is elsewhere and opens flows to Pods of this node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A Pod of another node.
    Pod,
    /// Another node, or a client that it masquerades.
    Node,
}

/// Who opens a flow from an address, if it may go past the stack.
#[inline(always)]
pub(crate) fn caller(addr: &Addr) -> Option<Caller> {
    match maps::ident(addr) {
        Some(known) if hop::is_other_node(known) => Some(Caller::Node),
        Some(known) => hop::is_elsewhere(known).then_some(Caller::Pod),
        None => maps::is_pods_elsewhere(addr).then_some(Caller::Pod),
    }
}

/// Whether an address is that of another node. To netfilter, an answer to it without a question before it is a new flow of the Pod,
/// which it may masquerade. So such a flow loses its way at a packet that comes in through the stack, and not before: the answers
/// go there after it.
#[inline(always)]
pub(crate) fn is_other_node(addr: &Addr) -> bool {
    maps::ident(addr).is_some_and(hop::is_other_node)
}

/// The way that new flows of the Pod with this device and number have to another node, if they may have one.
#[inline(always)]
pub(crate) fn find(
    packet: Packet,
    fib: &mut bpf_fib_lookup,
    (ifindex, id): (u32, u32),
    ends: (bool, &Addr, &Addr),
) -> Option<HopWay> {
    let (settings, pod) = (maps::settings()?, maps::local(id)?);
    let way = ask(packet, fib, (ifindex, (id as u16, pod.generation as u16)), ends)?;
    hop::may_open(settings.flags, pod, maps::dev(way.device)?).then_some(way)
}

/// The way that the routing table has for a Pod now, from its device, between two addresses.
#[inline(always)]
fn ask(
    packet: Packet,
    fib: &mut bpf_fib_lookup,
    (ifindex, pod): (u32, (u16, u16)),
    (v4, src, dst): (bool, &Addr, &Addr),
) -> Option<HopWay> {
    route::ask(fib, ifindex, v4, src, dst);
    let (device, next4, mtu) = route::hop(packet, fib)?;
    let now = kernel::now() as u16;
    let (mtu, asked) = match mtu {
        // The neighbor is not known yet, and the kernel does not tell the MTU: it is asked at the next packet, too.
        0 => (maps::dev(device)?.mtu.min(0xffff) as u16, now.wrapping_sub(1)),
        mtu => (mtu, now),
    };
    Some(HopWay { device, next4: Be32::from_wire(next4), pod, mtu, asked })
}

/// Whether the packet is small enough for its way and has a hop left.
#[inline(always)]
fn goes_on(packet: Packet, parsed: &Parsed, way: &HopWay) -> bool {
    route::length(packet, parsed) <= way.mtu && matches!(route::ttl(packet, parsed), Some(2..))
}

/// Sends a packet on by the way in the scratch memory, which is that of its entry, whose key is there, too. `now` is when the
/// entry was seen last.
#[inline(always)]
pub(crate) fn send(packet: Packet, way: &HopWay, now: u32) -> Verdict {
    if !way.is_fresh(now) && hop_ask(packet.as_ptr()) == 0 {
        return Verdict::Pass;
    }
    match hop_send(packet.as_ptr()) {
        LOST => {
            end();
            Verdict::Pass
        }
        NOT_THIS => Verdict::Pass,
        code => Verdict::NextHop(code as i32),
    }
}

/// As [`hop_open`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hop_send(skb: *mut __sk_buff) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(scratch) = scratch::get() else { return LOST };
    let Scratch { parsed, way, .. } = scratch;
    let Some(way) = HopWay::of_addr(way) else { return LOST };
    let Some(settings) = maps::settings() else { return LOST };
    let Some(pod) = maps::local(u32::from(way.pod.0)) else { return LOST };
    let Some(device) = maps::dev(way.device) else { return LOST };
    if !hop::is_open(settings.flags, &way, pod, device)
        && !(pod.generation as u16 == way.pod.1 && is_other_node(&parsed.flow.dst))
    {
        return LOST;
    }
    // A datagram in pieces goes one way as a whole: netfilter puts it together.
    let in_pieces = parsed.kind == Kind::FIRST_FRAGMENT || parsed.kind == Kind::LATER_FRAGMENT;
    if in_pieces && pod.mtu > u32::from(way.mtu) || !goes_on(packet, parsed, &way) {
        return NOT_THIS;
    }
    match rewrite::one_hop_less(packet, parsed.v4) {
        Ok(()) => packet.redirect_next(way.device, way.next4.to_wire()) as u32,
        Err(_) => NOT_THIS,
    }
}

/// Asks the routing table again where the flow goes whose key is in the scratch memory, and notes the answer there and on its
/// entries. 0 if it has no answer: the stack tells the sender. As [`hop_open`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hop_ask(skb: *mut __sk_buff) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(scratch) = scratch::get() else { return 0 };
    let Scratch { parsed, key, partner: across, other, fib, ifindex, to, way: asked, .. } = scratch;
    let Some(way) = HopWay::of_addr(asked) else { return 0 };
    // The last packet of a connection has taken the entry with it.
    let Some(entry) = tracked::get(key) else { return 1 };
    let forward = entry.flags().contains(CtFlags::FORWARD);
    to.dst = if forward { entry.nat_addr() } else { key.remote };
    let ends = (parsed.v4, &key.local, &to.dst);
    let Some(found) = ask(packet, fib, (*ifindex, way.pod), ends) else { return 0 };
    *asked = found.to_addr();
    entry.set_way(*asked);
    if !found.leads_as(&way) {
        *other = entry.entry();
        if let Some(twin) = partner(key, other) {
            *across = twin;
            if let Some(twin) = tracked::get(across).filter(|twin| way_of(*twin).is_some()) {
                twin.set_way(*asked);
            }
        }
    }
    1
}

/// The way in an entry, if it leads to another node.
#[inline(always)]
pub(crate) fn way_of(entry: Tracked) -> Option<HopWay> {
    if entry.flags().contains(CtFlags::PAST) { HopWay::of_addr(&entry.way()) } else { None }
}

/// A packet of the flow whose key is in the scratch memory has come to its Pod, through the stack if the setting does not allow
/// another way: the flow has none then.
#[inline(always)]
pub(crate) fn arrived(entry: Tracked) {
    if !is_on() && way_of(entry).is_some() {
        end();
    }
}

/// Sends the flow whose key is in the scratch memory through the stack from now on, in both directions.
#[inline(always)]
pub(crate) fn end() {
    hop_withdraw();
}

/// As [`hop_open`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hop_withdraw() -> u32 {
    let Some(scratch) = scratch::get() else { return 0 };
    let Scratch { key, partner: across, other, .. } = scratch;
    let Some(entry) = tracked::get(key) else { return 0 };
    *other = entry.entry();
    withdraw(Some(entry));
    withdraw(tracked::kept(key));
    if let Some(twin) = partner(key, other) {
        *across = twin;
        withdraw(tracked::get(across));
        withdraw(tracked::kept(across));
    }
    0
}

#[inline(always)]
fn withdraw(entry: Option<Tracked>) {
    if let Some(entry) = entry {
        entry.set_flags(entry.flags().without(CtFlags::PAST));
    }
}
