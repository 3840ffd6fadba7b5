//! The kernel's routing table, for packets that go past the IP stack.

use aya_ebpf::bindings::bpf_fib_lookup;
use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::conntrack::CtFlags;
use lb_common::flow::proto;
use lb_common::outside::OutsideWay;

use crate::packet::{self, Packet, Route};
use crate::parsed::{L3, Parsed};
use crate::scratch::Scratch;
use crate::tracked::Tracked;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Length of a packet that fits any way. The kernel tells the MTU only where it has a length to compare it with.
const LEAST: u16 = 1;

/// How a packet gets to its translated destination.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// By the device with this ifindex.
    Via(u32),
    /// It is bigger than this MTU in bytes.
    TooBig(u16),
    /// Its hops are used up.
    Expired,
    /// There is none.
    None,
}

/// The way from `src` to `dst` for the packet at hand, which comes in at this device.
#[inline(never)]
pub(crate) fn way(packet: Packet, scratch: &mut Scratch, src: &Addr, dst: &Addr) -> Way {
    let Scratch { parsed, fib, .. } = scratch;
    ask(fib, packet.ifindex(), parsed.v4, src, dst);
    answer(packet, scratch)
}

/// The answer to the question in `scratch` for the packet at hand.
#[inline(always)]
pub(crate) fn answer(packet: Packet, scratch: &mut Scratch) -> Way {
    let Scratch { parsed, fib, .. } = scratch;
    match ttl(packet, parsed) {
        Some(2..) => {}
        Some(_) => return Way::Expired,
        None => return Way::None,
    }
    fib.__bindgen_anon_1.tot_len = length(packet, parsed);
    match packet.route(fib) {
        Route::Via(ifindex, _) => Way::Via(ifindex),
        Route::TooBig(mtu) => Way::TooBig(mtu),
        Route::None => Way::None,
    }
}

/// Where a packet of a flow from outside goes, whose ends `scratch.to` has as they will be: as its entry remembers it from a packet
/// in the same stamp, or as the routing table says now. It is in `scratch.fib`, as [`Packet::redirect_hop`] wants it.
#[inline(always)]
pub(crate) fn remembered(packet: Packet, scratch: &mut Scratch, entry: Tracked, now: u32) -> Way {
    let Scratch { parsed, fib, ifindex, .. } = scratch;
    match ttl(packet, parsed) {
        Some(2..) => {}
        Some(_) => return Way::Expired,
        None => return Way::None,
    }
    if let Some(way) = OutsideWay::of_addr(&entry.way())
        && way.is_for(*ifindex, length(packet, parsed), now)
    {
        fib.family = AF_INET;
        fib.ifindex = way.device;
        fib.__bindgen_anon_4.ipv4_dst = way.next4.to_wire();
        return Way::Via(way.device);
    }
    told(packet, scratch, entry, now)
}

/// What the routing table says of such a packet. Its entry remembers it.
#[inline(never)]
fn told(packet: Packet, scratch: &mut Scratch, entry: Tracked, now: u32) -> Way {
    let Scratch { parsed, to, fib, ifindex, .. } = scratch;
    // An answer is not yet from the frontend: that address is this node's own.
    let src = if entry.flags().contains(CtFlags::REPLY) { &parsed.flow.src } else { &to.src };
    ask(fib, *ifindex, parsed.v4, src, &to.dst);
    fib.__bindgen_anon_1.tot_len = length(packet, parsed);
    match packet.route(fib) {
        Route::Via(device, mtu) => {
            let way = outside(fib, (*ifindex, device), mtu, now);
            if way != Addr::NONE {
                entry.set_way(way);
            }
            Way::Via(device)
        }
        Route::TooBig(mtu) => Way::TooBig(mtu),
        Route::None => Way::None,
    }
}

/// The answer in `fib` as an entry remembers it; `::` if it cannot: IPv6 addresses of next hops have no room there.
#[inline(always)]
fn outside(fib: &bpf_fib_lookup, (from, device): (u32, u32), mtu: u16, now: u32) -> Addr {
    if mtu == 0 || fib.family != AF_INET {
        return Addr::NONE;
    }
    let next4 = Be32::from_wire(packet::next4(fib));
    OutsideWay { device, next4, from, mtu, asked: now as u16 }.to_addr()
}

/// Notes in `scratch.nat` where the packets of a new flow from outside go, for its entry to remember.
#[inline(never)]
pub(crate) fn foresee(packet: Packet, scratch: &mut Scratch, now: u32) {
    let Scratch { parsed, fib, ifindex, nat, .. } = scratch;
    if !parsed.v4 {
        return;
    }
    ask(fib, *ifindex, true, &nat.stand_in, &nat.target.addr);
    fib.__bindgen_anon_1.tot_len = LEAST;
    if let Route::Via(device, mtu) = packet.route(fib) {
        nat.way = outside(fib, (*ifindex, device), mtu, now);
    }
}

/// The device on the way from `src` to `dst`, whatever the packet's size and hops.
#[inline(always)]
pub(crate) fn device(packet: Packet, scratch: &mut Scratch, src: &Addr, dst: &Addr) -> Option<u32> {
    let Scratch { parsed, fib, .. } = scratch;
    ask(fib, packet.ifindex(), parsed.v4, src, dst);
    match packet.route(fib) {
        // Without a length in the question the device is told in either case.
        Route::Via(..) | Route::TooBig(_) => Some(fib.ifindex),
        Route::None => None,
    }
}

/// The answer to the question in `fib`, whatever the packet's size and hops: the device, the next hop's IPv4 address (0 = it is
/// reached by IPv6), and the largest IP packet in bytes (0 = not known before the neighbor is).
#[inline(always)]
pub(crate) fn hop(packet: Packet, fib: &mut bpf_fib_lookup) -> Option<(u32, u32, u16)> {
    fib.__bindgen_anon_1.tot_len = LEAST;
    let Route::Via(device, mtu) = packet.route(fib) else { return None };
    let next4 = if fib.family == AF_INET { packet::next4(fib) } else { 0 };
    Some((device, next4, mtu))
}

/// Hops that the packet has left (TTL, hop limit).
#[inline(always)]
pub(crate) fn ttl(packet: Packet, parsed: &Parsed) -> Option<u8> {
    packet.load::<u8>(if parsed.v4 { L3 + 8 } else { L3 + 7 })
}

/// Bytes of the IP packet, or of each that it will be cut into.
#[inline(always)]
pub(crate) fn length(packet: Packet, parsed: &Parsed) -> u16 {
    let segment = packet.segment();
    let headers = (parsed.l4 - L3) as u32;
    let whole = match (segment, parsed.flow.proto) {
        (0, _) => packet.len() - L3 as u32,
        (_, proto::TCP) => {
            // Data offset: the header's length in words. Two bytes are read, since the verifier derives no bound from the
            // comparison that one byte at a variable offset makes.
            let [offset, _flags] = packet.load::<[u8; 2]>(parsed.l4 + 12).unwrap_or([0x50, 0]);
            segment + headers + u32::from(offset >> 4) * 4
        }
        _ => segment + headers + 8,
    };
    if whole > 0xffff { 0xffff } else { whole as u16 }
}

/// The question where a packet that came in at `ifindex` goes.
#[inline(always)]
pub(crate) fn ask(fib: &mut bpf_fib_lookup, ifindex: u32, v4: bool, src: &Addr, dst: &Addr) {
    fib.l4_protocol = 0;
    fib.sport = 0;
    fib.dport = 0;
    fib.ifindex = ifindex;
    fib.__bindgen_anon_1.tot_len = 0;
    fib.__bindgen_anon_2.rt_metric = 0;
    if v4 {
        fib.family = AF_INET;
        fib.__bindgen_anon_3.ipv4_src = src.word3().to_wire();
        fib.__bindgen_anon_4.ipv4_dst = dst.word3().to_wire();
    } else {
        fib.family = AF_INET6;
        fib.__bindgen_anon_3.ipv6_src = src.words().map(|word| word.to_wire());
        fib.__bindgen_anon_4.ipv6_dst = dst.words().map(|word| word.to_wire());
    }
}
