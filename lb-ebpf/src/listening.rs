//! Whether a process of a Pod listens: asked by lbctl, which has no access to the Pod's network namespace. The program is attached
//! nowhere. `BPF_PROG_TEST_RUN` runs it, with the question as the packet.
//!
//! `bpf_sk_lookup_tcp` and `bpf_sk_lookup_udp` find a socket as a packet would (net/core/filter.c, `__bpf_skc_lookup`). No
//! connection has the remote end that is asked for, address and port 0, so that only listening sockets are found, and
//! unconnected ones of UDP.

use aya_ebpf::bindings::{
    bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6,
};
use lb_common::be::Be32;
use lb_common::listening::{LISTENS, ListenQuery, NOT_ASKED};

use crate::kernel;
use crate::packet::Packet;
use crate::parsed::L3;

/// Answers the question in the packet.
#[inline(always)]
pub(crate) fn answer(packet: Packet) -> u32 {
    match packet.load::<ListenQuery>(L3) {
        Some(query) => listens(packet, &query),
        None => NOT_ASKED,
    }
}

#[inline(always)]
fn listens(packet: Packet, query: &ListenQuery) -> u32 {
    let [a, b, c, d] = query.addr.words().map(Be32::to_wire);
    let dport = query.port.to_wire();
    let (ends, len) = if query.addr.is_v4() {
        let ipv4 = TupleV4 { saddr: 0, daddr: d, sport: 0, dport };
        (bpf_sock_tuple__bindgen_ty_1 { ipv4 }, size_of::<TupleV4>())
    } else {
        let ipv6 = TupleV6 { saddr: [0; 4], daddr: [a, b, c, d], sport: 0, dport };
        (bpf_sock_tuple__bindgen_ty_1 { ipv6 }, size_of::<TupleV6>())
    };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: ends };
    match kernel::has_socket(packet.as_ptr(), query.proto, (&mut tuple, len as u32), query.netns) {
        Some(true) => LISTENS,
        Some(false) => 0,
        None => NOT_ASKED,
    }
}
