//! The kernel's routing table, for packets that go past the IP stack.

use aya_ebpf::bindings::bpf_fib_lookup;
use lb_common::addr::Addr;
use lb_common::flow::proto;

use crate::packet::{self, Packet, Route};
use crate::parsed::{L3, Parsed};
use crate::scratch::Scratch;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

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
        Route::Via(ifindex) => Way::Via(ifindex),
        Route::TooBig(mtu) => Way::TooBig(mtu),
        Route::None => Way::None,
    }
}

/// The device on the way from `src` to `dst`, whatever the packet's size and hops.
#[inline(always)]
pub(crate) fn device(packet: Packet, scratch: &mut Scratch, src: &Addr, dst: &Addr) -> Option<u32> {
    let Scratch { parsed, fib, .. } = scratch;
    ask(fib, packet.ifindex(), parsed.v4, src, dst);
    match packet.route(fib) {
        // Without a length in the question the device is told in either case.
        Route::Via(_) | Route::TooBig(_) => Some(fib.ifindex),
        Route::None => None,
    }
}

/// The answer to the question in `fib`, whatever the packet's size and hops: the device, the next hop's IPv4 address (0 = it is
/// reached by IPv6), and the largest IP packet in bytes (0 = not known before the neighbor is).
#[inline(always)]
pub(crate) fn hop(packet: Packet, fib: &mut bpf_fib_lookup) -> Option<(u32, u32, u16)> {
    /// The kernel tells the MTU only where it has a length to compare it with, and leaves that length where it does not.
    const LEAST: u16 = 1;
    fib.__bindgen_anon_1.tot_len = LEAST;
    let Route::Via(device) = packet.route(fib) else { return None };
    let (mtu, next4) = packet::mtu_and_hop(fib);
    let next4 = if fib.family == AF_INET { next4 } else { 0 };
    Some((device, next4, if mtu == LEAST { 0 } else { mtu }))
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
