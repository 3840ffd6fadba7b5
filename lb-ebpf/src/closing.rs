//! The end of a translated connection: when both ends have acknowledged each other's FIN, nothing of it can come again, and its
//! two entries go at once. The table stays small, so that what a new connection asks of it is in the caches. A masqueraded one
//! leaves its source port free: the search for one costs a microsecond for each port that is taken.
//!
//! Exactly then, and only if the end that opened the connection was the first to leave it. An entry that went too early would
//! take with it what is still to be sent again: a packet to a Service without an entry is reset. And the other end, if it was
//! the first, remembers the tuple for a minute (`lb_common::conntrack::lingers`); so do we.
//!
//! The acknowledgements are compared with the sequence numbers behind the FINs. There is room for one in the reply entry, whose
//! backend nothing asks for: that of the opener's FIN until the other side's FIN acknowledges it, then that of the latter.

use aya_ebpf::bindings::__sk_buff;
use lb_common::conntrack::{self, CtFlags, Direction};
use lb_common::flow::tcp;
use lb_common::verdict::Counter;

use crate::maps;
use crate::packet::{Packet, reread};
use crate::parsed::Parsed;
use crate::scratch::{self, Scratch};
use crate::tracked::{self, Tracked};
use crate::verdict::Verdict;

/// A FIN in this direction, on the entry under the key in the scratch memory, which had the flags `before`. The key of its
/// partner is there, too.
#[inline(always)]
pub(crate) fn fin(packet: Packet, before: CtFlags, direction: Direction) {
    const NEVER: CtFlags = CtFlags::HAIRPIN.with(CtFlags::PORT_MAPPED);
    let leaves = conntrack::leaves_first(before, direction);
    if !before.intersects(NEVER) && (leaves || conntrack::answers_fin(before, direction)) {
        closing_fin(packet.as_ptr(), u32::from(leaves));
    }
}

/// Exported, so that the verifier checks it once by itself, and by itself on the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn closing_fin(skb: *mut __sk_buff, leaves_first: u32) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(Scratch { parsed, key, partner, .. }) = scratch::get() else { return 0 };
    let (Some(entry), Some(twin)) = (tracked::get(key), tracked::get(partner)) else { return 0 };
    let reply = if entry.flags().contains(CtFlags::REPLY) { entry } else { twin };
    let Some(numbers) = numbers(packet, parsed) else { return 0 };
    if leaves_first != 0 {
        reply.set_fin_end(numbers.end);
    } else if numbers.ack == reply.backend_gen() {
        reply.set_fin_end(numbers.end);
        entry.set_flags(conntrack::answered(entry.flags()));
        twin.set_flags(conntrack::answered(twin.flags()));
    }
    0
}

/// Sends a packet of a translated flow on, as `send` does it. Then the entry under the key in the scratch memory and its partner
/// go, if the packet acknowledges the other side's FIN: not before, since `send` reads the entry. If another hook of this node
/// looks the packet up next, they go there.
#[inline(always)]
pub(crate) fn after(
    packet: Packet,
    scratch: &mut Scratch,
    entry: Tracked,
    direction: Direction,
    send: impl FnOnce(Packet, &mut Scratch, Tracked) -> Verdict,
) -> Verdict {
    let may_be_last = may_be_last(scratch, entry, direction);
    let verdict = send(packet, scratch, entry);
    if may_be_last {
        closing_last(packet.as_ptr());
    }
    verdict
}

/// The same for a packet that goes no further.
#[inline(always)]
pub(crate) fn arrived(packet: Packet, scratch: &Scratch, entry: Tracked, direction: Direction) {
    if may_be_last(scratch, entry, direction) {
        closing_last(packet.as_ptr());
    }
}

#[inline(always)]
fn may_be_last(scratch: &Scratch, entry: Tracked, direction: Direction) -> bool {
    conntrack::may_be_last(entry.flags(), direction, scratch.parsed.tcp_flags)
}

/// Exported, so that the verifier checks it once by itself, and by itself on the stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn closing_last(skb: *mut __sk_buff) -> u32 {
    let packet = Packet::from_ptr(skb);
    let Some(scratch) = scratch::get() else { return 0 };
    let Scratch { parsed, key, partner, other, .. } = scratch;
    let Some(entry) = tracked::get(key) else { return 0 };
    *other = entry.entry();
    let Some(found) = conntrack::partner(key, other) else { return 0 };
    *partner = found;
    let Some(twin) = tracked::get(partner) else { return 0 };
    let reply = if other.flags.contains(CtFlags::REPLY) { entry } else { twin };
    let Some(numbers) = numbers(packet, parsed) else { return 0 };
    if numbers.ack == reply.backend_gen() && tracked::delete(key) && tracked::delete(partner) {
        maps::count(Counter::PairClosed);
    }
    0
}

/// Sequence numbers of a TCP packet.
struct Numbers {
    /// The one behind its payload and its FIN.
    end: u32,
    /// The one that it acknowledges.
    ack: u32,
}

/// `None` if the packet does not say how long it is.
#[inline(always)]
fn numbers(packet: Packet, parsed: &Parsed) -> Option<Numbers> {
    let [_, seq, ack, word3] = packet.load::<[u32; 4]>(reread(&parsed.l4))?;
    // The length without a trailer of the frame.
    let length = packet.load::<[u8; 2]>(parsed.l3 + if parsed.v4 { 2 } else { 4 })?;
    let length = u32::from(u16::from_be_bytes(length));
    if length == 0 {
        return None;
    }
    let network = (parsed.l4 - parsed.l3) as u32;
    let headers = if parsed.v4 { network } else { network - 40 } + (u32::from_be(word3) >> 28) * 4;
    let fin = u32::from(parsed.tcp_flags & tcp::FIN != 0);
    Some(Numbers {
        end: u32::from_be(seq).wrapping_add(length.wrapping_sub(headers)).wrapping_add(fin),
        ack: u32::from_be(ack),
    })
}
