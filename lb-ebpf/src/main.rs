//! Entry points: each builds its context, calls the pipeline and converts the verdict once.
//!
//! | program | hook | sees |
//! |---|---|---|
//! | `pod_out` | tc ingress of a Pod's host-side veth | packets that leave the Pod |
//! | `pod_in` | tc egress of a Pod's host-side veth | packets that enter the Pod |
//! | `dev_in`, `dev_in_l3` | tc ingress of every other device | packets that enter the node |
//! | `dev_out`, `dev_out_l3` | tc egress of those, while a backend is a process of the host or a frontend has datagrams at its addresses | packets that leave it |
//! | `account_in`, `account_in_l3` | tc ingress of all of these, before the others, while flows are counted | what the others see |
//! | `account_out` | tc egress of a Pod's host-side veth, before the other, while flows are counted | packets that enter the Pod |
//! | `listening` | none: run by `BPF_PROG_TEST_RUN` | questions of lbctl about the sockets of Pods |
//! | `connect*`, `sendmsg*`, `recvmsg*`, `getpeername*` | cgroup v2 root | sockets of the host namespace |
#![no_std]
#![no_main]
// For the one instruction that Rust has no operation for on this target: an atomic addition.
#![feature(asm_experimental_arch)]

use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};

mod account;
mod arrive;
mod bridge;
mod closing;
mod conntrack;
mod cut;
mod event;
mod external;
mod fragment;
mod hop;
mod icmp;
mod kernel;
mod listening;
mod maps;
mod masquerade;
mod open;
mod origin;
mod packet;
mod parse;
mod parsed;
mod past;
mod pipeline;
mod policy;
mod refuse;
mod rewrite;
mod route;
mod scratch;
mod sctp;
mod service;
mod sock_addr;
mod socket;
mod trace;
mod tracked;
mod verdict;

/// A packet leaves a Pod.
#[classifier]
#[inline(always)]
fn pod_out(ctx: TcContext) -> i32 {
    let packet = packet::Packet::new(&ctx);
    verdict::to_tc(packet, pipeline::pod_out(packet))
}

/// A packet enters a Pod.
#[classifier]
#[inline(always)]
fn pod_in(ctx: TcContext) -> i32 {
    let packet = packet::Packet::new(&ctx);
    verdict::to_tc(packet, pipeline::pod_in(packet))
}

/// A packet enters the node by a device that does not belong to a Pod.
#[classifier]
#[inline(always)]
fn dev_in(ctx: TcContext) -> i32 {
    let packet = packet::Packet::new(&ctx);
    verdict::to_tc(packet, pipeline::to_peer(packet, external::dev_in(packet)))
}

/// The same for a device without link layer: its packets get an Ethernet header, since they may go on by a device that
/// has one, and are the same as others then.
#[classifier]
#[inline(always)]
fn dev_in_l3(ctx: TcContext) -> i32 {
    let packet = packet::Packet::new(&ctx);
    if packet.push_ethernet().is_err() {
        return verdict::to_tc(packet, verdict::Verdict::Pass);
    }
    verdict::to_tc(packet, pipeline::to_peer(packet, external::dev_in(packet)))
}

/// A packet leaves the node by a device that does not belong to a Pod.
#[classifier]
#[inline(always)]
fn dev_out(ctx: TcContext) -> i32 {
    let packet = packet::Packet::new(&ctx);
    verdict::to_tc(packet, external::dev_out(packet, parsed::L3))
}

/// The same for a device without link layer.
#[classifier]
#[inline(always)]
fn dev_out_l3(ctx: TcContext) -> i32 {
    let packet = packet::Packet::new(&ctx);
    verdict::to_tc(packet, external::dev_out(packet, 0))
}

/// Counts a packet that comes in by a device with a link layer: what a Pod sends, or what enters the node.
#[classifier]
#[inline(always)]
fn account_in(ctx: TcContext) -> i32 {
    account::comes_in(packet::Packet::new(&ctx), parsed::L3);
    verdict::NEXT
}

/// The same for a device without link layer.
#[classifier]
#[inline(always)]
fn account_in_l3(ctx: TcContext) -> i32 {
    account::comes_in(packet::Packet::new(&ctx), 0);
    verdict::NEXT
}

/// Counts a packet that enters a Pod, unless it was counted as it came in.
#[classifier]
#[inline(always)]
fn account_out(ctx: TcContext) -> i32 {
    account::enters_pod(packet::Packet::new(&ctx));
    verdict::NEXT
}

/// Whether a process of a Pod listens.
#[classifier]
#[inline(always)]
fn listening(ctx: TcContext) -> i32 {
    listening::answer(packet::Packet::new(&ctx)) as i32
}

/// `connect(2)` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
#[inline(always)]
fn connect4(ctx: SockAddrContext) -> i32 {
    socket::dial(&ctx, socket::Family::V4, socket::Dial::Connect)
}

/// `connect(2)` of an IPv6 socket, which may name an IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
#[inline(always)]
fn connect6(ctx: SockAddrContext) -> i32 {
    socket::dial(&ctx, socket::Family::V6, socket::Dial::Connect)
}

/// `sendto(2)`, `sendmsg(2)` with an address on an IPv4 UDP socket.
#[cgroup_sock_addr(sendmsg4)]
#[inline(always)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::dial(&ctx, socket::Family::V4, socket::Dial::Send)
}

/// `sendto(2)`, `sendmsg(2)` with an address on an IPv6 UDP socket.
#[cgroup_sock_addr(sendmsg6)]
#[inline(always)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::dial(&ctx, socket::Family::V6, socket::Dial::Send)
}

/// `recvfrom(2)`, `recvmsg(2)` on an IPv4 UDP socket: shows the frontend as the sender.
#[cgroup_sock_addr(recvmsg4)]
#[inline(always)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::restore(&ctx, socket::Family::V4)
}

/// `recvfrom(2)`, `recvmsg(2)` on an IPv6 UDP socket.
#[cgroup_sock_addr(recvmsg6)]
#[inline(always)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::restore(&ctx, socket::Family::V6)
}

/// `getpeername(2)` on an IPv4 socket: shows the frontend as the peer.
#[cgroup_sock_addr(getpeername4)]
#[inline(always)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::restore(&ctx, socket::Family::V4)
}

/// `getpeername(2)` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
#[inline(always)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::restore(&ctx, socket::Family::V6)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked: the verifier refuses an object in which this is reachable.
    loop {}
}
