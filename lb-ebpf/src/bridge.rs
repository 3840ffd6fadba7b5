//! Pods behind one bridge. Where the bridge hands frames between its ports past netfilter, the replies of a backend
//! on it never meet netfilter; the packets towards it must not either, or netfilter sees half a connection, calls it
//! invalid, and the first rule that drops invalid packets stalls it.

use aya_ebpf::bindings::bpf_fib_lookup;
use lb_common::addr::Addr;

use crate::maps::{self, Scratch};
use crate::packet::Packet;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// ifindex of the bridge past whose netfilter this Pod's frames go, or 0.
#[inline(always)]
pub(crate) fn of(packet: Packet, v4: bool) -> u32 {
    match maps::pod(packet.ifindex()) {
        Some(pod) => {
            if v4 {
                pod.bridge4
            } else {
                pod.bridge6
            }
        }
        None => 0,
    }
}

/// Whether the way to the new flow's target leads back to the bridge that the Pod is on.
#[inline(never)]
pub(crate) fn leads_to_target(packet: Packet, scratch: &mut Scratch) -> bool {
    let Scratch { parsed, fib, nat, .. } = scratch;
    let bridge = of(packet, parsed.v4);
    if bridge == 0 {
        return false;
    }
    ask(fib, bridge, parsed.v4, &parsed.flow.src, &nat.target.addr);
    packet.route(fib) == Some(bridge)
}

/// The question where a packet that came in over the bridge goes.
#[inline(always)]
fn ask(fib: &mut bpf_fib_lookup, bridge: u32, v4: bool, src: &Addr, dst: &Addr) {
    fib.l4_protocol = 0;
    fib.sport = 0;
    fib.dport = 0;
    fib.ifindex = bridge;
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
