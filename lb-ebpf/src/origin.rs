//! Which Pod or node sent a packet, and which one it is for. Decided by the device it came from and by what the agent knows,
//! never by what the packet says.
//!
//! A Pod speaks for itself only: not from another's address, and no word as a router or in another's name between
//! neighbors (RFC 2827, RFC 6105). What comes in at the node's other devices is neither the node nor one of its Pods.
//! Asked for first packets and for those of no flow: an entry of the connection table stands for an answer given before.
//! But of each frame that a Pod sends the link-layer source is looked at: a bridge learns from each.

use lb_common::addr::Addr;
use lb_common::config::SettingFlags;
use lb_common::conntrack::Direction;
use lb_common::endpoint::{DevFlags, IdentFlags, PodEntry, PodFlags};
use lb_common::flow::{Flow, proto, tcp};
use lb_common::service::FrontendKey;
use lb_common::verdict::DropReason;

use crate::packet::{Packet, Route, Socket};
use crate::parse::{self, neighbor};
use crate::scratch::{self, Scratch};
use crate::verdict::{self, Reported};
use crate::{kernel, maps, parsed, route, service};

/// Not a number of a [`DropReason`].
const NO_FAULT: u32 = 0;

/// Checks that the link-layer source of a frame does not belong to another Pod or to the node: the bridge would learn it and
/// send their frames to this Pod. An unknown source passes: there may be a bridge or a virtual machine in the Pod.
#[inline(always)]
pub(crate) fn check_link(packet: Packet, ifindex: u32) -> Result<(), Reported> {
    match packet.source_mac() {
        Some(mac) if !is_mac_of_another(ifindex, mac) => Ok(()),
        _ => Err(verdict::report(DropReason::SpoofedMac, false, 0)),
    }
}

/// Whether another Pod on a bridge, or this node, has the link-layer address.
#[inline(always)]
fn is_mac_of_another(ifindex: u32, mac: u64) -> bool {
    !maps::is_own_link(ifindex, mac) && origin_mac_is_anothers(ifindex, mac) != 0
}

/// The same for an address that is not known to be the Pod's. As a function that the verifier checks once by itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn origin_mac_is_anothers(ifindex: u32, mac: u64) -> u32 {
    let Some(holder) = maps::mac(mac) else { return 0 };
    let bridged = maps::pod(ifindex).is_none_or(|pod| pod.flags.contains(PodFlags::BRIDGED));
    (bridged && holder != ifindex) as u32
}

/// Whether the Pod may send this, as far as it is about who it is.
#[inline(always)]
pub(crate) fn check() -> Result<(), Reported> {
    match origin_fault() {
        NO_FAULT => Ok(()),
        reason => Err(verdict::report_index(reason * 2, 0)),
    }
}

/// Returns what is wrong with the source of the packet in the scratch memory, or with what it carries. A function that the
/// verifier checks once on its own. Therefore it looks up the scratch memory itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn origin_fault() -> u32 {
    let Some(scratch) = scratch::get() else { return NO_FAULT };
    let Scratch { parsed, hand, ifindex, epoch, .. } = scratch;
    let pod = hand.get(*ifindex);
    if is_another_s((*ifindex, pod), &parsed.flow.src, *epoch != 0)
        || is_beyond_link(&parsed.flow, pod)
    {
        return DropReason::SpoofedSource as u32;
    }
    if is_encapsulated(&scratch.parsed.flow) {
        return DropReason::Encapsulated as u32;
    }
    NO_FAULT
}

/// Returns whether the Pod must not send from the address `scratch.claimed`. Strict, while there is any policy: unless the
/// address is known to be the Pod's. Else: if it is known to belong to another Pod, node or Service. A function that the
/// verifier checks once on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn origin_is_foreign() -> u32 {
    let Some(scratch) = scratch::get() else { return 0 };
    let Scratch { claimed, hand, ifindex, epoch, .. } = scratch;
    is_another_s((*ifindex, hand.get(*ifindex)), claimed, *epoch != 0) as u32
}

/// The same as a boolean.
#[inline(always)]
pub(crate) fn is_foreign() -> bool {
    origin_is_foreign() != 0
}

#[inline(always)]
fn is_another_s((ifindex, pod): (u32, Option<&PodEntry>), src: &Addr, strict: bool) -> bool {
    // Whoever asks for an address has none; the parser lets it through to groups only.
    if *src == Addr::NONE || *src == UNSPECIFIED4 {
        return false;
    }
    match ownership(src, ifindex, pod) {
        Ownership::Own => return false,
        Ownership::Other => return true,
        Ownership::Unowned => {}
    }
    if service::is_cluster_ip(src)
        || maps::frontend(&FrontendKey::wildcard(*src)).is_some()
        || *src == kernel::hairpin_addr(src.is_v4())
    {
        return true;
    }
    let Some(pod) = pod else { return false };
    if is_admitted(pod, ifindex, src) {
        return false;
    }
    strict
        && maps::settings()
            .is_some_and(|settings| settings.flags.contains(SettingFlags::STRICT_SOURCE))
}

/// Marks of an address that a Pod or a node has.
const POD_OR_NODE: IdentFlags = IdentFlags::LOCAL_NODE.with(IdentFlags::POD).with(IdentFlags::NODE);

const UNSPECIFIED4: Addr = Addr::v4(lb_common::be::Be32::new(0));

/// Whose an address is, as seen from a Pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ownership {
    Own,
    Other,
    Unowned,
}

#[inline(always)]
fn ownership(addr: &Addr, ifindex: u32, pod: Option<&PodEntry>) -> Ownership {
    if pod.is_some_and(|pod| pod.ip4 == *addr || pod.ip6 == *addr) {
        return Ownership::Own;
    }
    let Some(known) = maps::ident(addr) else {
        return if maps::is_pods_elsewhere(addr) { Ownership::Other } else { Ownership::Unowned };
    };
    if known.ifindex == ifindex {
        return Ownership::Own;
    }
    if known.ifindex != 0 {
        return Ownership::Other;
    }
    // A Pod of this node whose device is not known yet may be behind any that is not known either.
    if known.flags.contains(IdentFlags::HERE) && pod.is_none() {
        return Ownership::Unowned;
    }
    if known.flags.intersects(POD_OR_NODE) { Ownership::Other } else { Ownership::Unowned }
}

/// Returns whether the Pod may use an address that no known Pod, node or Service has: one that it configured itself, or one
/// that an annotation admits.
#[inline(always)]
fn is_admitted(pod: &PodEntry, ifindex: u32, addr: &Addr) -> bool {
    is_link_local(addr)
        || pod.flags.contains(PodFlags::MORE_SOURCES) && maps::is_admitted_source(ifindex, addr)
}

/// Link-local (RFC 3927, RFC 4291 §2.5.6): each host configures its own, and no router forwards them.
#[inline(always)]
fn is_link_local(addr: &Addr) -> bool {
    if addr.is_v4() {
        return addr.word3().get() >> 16 == 0xa9fe;
    }
    let [first, ..] = addr.words();
    first.get() >> 22 == 0xfe80 >> 6
}

/// Whether a packet with a link-local IPv4 source, which is unique on its link only, is for a Pod or a node. Routers pass
/// such packets on although RFC 3927 §7 forbids it, so an answer of 169.254.169.254 would be believed anywhere. Some CNI
/// plugins give Pods such an address for what leaves the cluster.
#[inline(always)]
fn is_beyond_link(flow: &Flow, pod: Option<&PodEntry>) -> bool {
    let Flow { src, dst, .. } = flow;
    src.is_v4()
        && is_link_local(src)
        && !is_link_local(dst)
        && !pod.is_some_and(|pod| pod.ip4 == *src)
        && maps::ident(dst).map_or_else(
            || maps::is_pods_elsewhere(dst),
            |known| known.ifindex != 0 || known.flags.intersects(POD_OR_NODE),
        )
}

/// Whether a node would take another packet out of this one and treat it as its own.
#[inline(always)]
fn is_encapsulated(flow: &Flow) -> bool {
    // IPv4, IPv6, GRE, Ethernet and MPLS in IP.
    const IN_IP: [u8; 5] = [4, 41, 47, 97, 137];
    let tunnel = match flow.proto {
        proto::UDP => maps::is_tunnel_port(flow.dport),
        protocol => IN_IP.contains(&protocol),
    };
    tunnel
        && maps::ident(&flow.dst)
            .is_some_and(|known| known.flags.intersects(IdentFlags::LOCAL_NODE | IdentFlags::NODE))
}

/// Whether the Pod may say this to its neighbors: an ARP packet.
#[inline(never)]
pub(crate) fn check_arp(packet: Packet, scratch: &mut Scratch) -> Result<(), Reported> {
    const REQUEST_FOR_IPV4: [u16; 3] =
        [1u16.to_be(), 0x0800u16.to_be(), u16::from_be_bytes([6, 4]).to_be()];
    packet.pull(parsed::L3 + 28);
    let honest = match packet.load::<[u16; 14]>(parsed::L3) {
        Some([hardware, protocol, lengths, _, mac0, mac1, mac2, high, low, ..]) => {
            let [mac0, mac1, mac2] = [mac0, mac1, mac2].map(|half| u64::from(u16::from_le(half)));
            let mac = mac0 | mac1 << 16 | mac2 << 32;
            let sender = u32::from(u16::from_be(high)) << 16 | u32::from(u16::from_be(low));
            scratch::hand_over(&mut scratch.claimed, Addr::v4(lb_common::be::Be32::new(sender)));
            [hardware, protocol, lengths] == REQUEST_FOR_IPV4
                && !is_mac_of_another(scratch.ifindex, mac)
                && !is_foreign()
        }
        None => false,
    };
    if honest { Ok(()) } else { Err(forged()) }
}

/// Whether the Pod may say this to its neighbors: neighbor discovery or multicast listening. `Ok(false)`: it is not for
/// a neighbor, and hence like any other packet.
#[inline(never)]
pub(crate) fn check_neighbor(packet: Packet, scratch: &mut Scratch) -> Result<bool, Reported> {
    let Scratch { parsed, claimed, ifindex, .. } = scratch;
    // Two bytes, as in `route::length`.
    let [icmp_type, _] = packet.load::<[u8; 2]>(parsed.l4).unwrap_or([neighbor::REDIRECT, 0]);
    let speaks_for_others = match icmp_type {
        neighbor::ROUTER_ADVERTISEMENT | neighbor::REDIRECT => true,
        neighbor::ADVERTISEMENT => {
            packet.pull(parsed.l4 + 24);
            match packet.load::<[u32; 4]>(parsed.l4 + 8) {
                Some(target) => {
                    let target = Addr::v6(target.map(lb_common::be::Be32::from_wire));
                    scratch::hand_over(claimed, target);
                    is_foreign()
                }
                None => true,
            }
        }
        _ => false,
    } || match icmp_type {
        neighbor::ROUTER_SOLICITATION => gives_mac_of_another(packet, parsed.l4 + 8, *ifindex),
        neighbor::SOLICITATION | neighbor::ADVERTISEMENT => {
            gives_mac_of_another(packet, parsed.l4 + 24, *ifindex)
        }
        _ => false,
    };
    scratch::hand_over(claimed, parsed.flow.src);
    if speaks_for_others || is_foreign() {
        return Err(forged());
    }
    Ok(is_on_link(&parsed.flow.dst, scratch.ifindex))
}

/// Whether the options of a message, which begin at `offset`, give another's link-layer address as the Pod's, or are none
/// that a receiver takes (RFC 4861 §4.6). No message has more of them (RFC 3971 has the most).
#[inline(always)]
fn gives_mac_of_another(packet: Packet, offset: usize, ifindex: u32) -> bool {
    const MOST: u32 = 6;
    /// Source and target link-layer address.
    const LINK_LAYER: [u8; 2] = [1, 2];
    let len = packet.len() as usize;
    let mut offset = offset;
    let mut i = 0;
    while i < MOST {
        if offset >= len {
            return false;
        }
        packet.pull(offset + 8);
        // Type, length in units of 8 bytes, and the address, if it is one.
        let Some(option) = packet.load::<u64>(offset).map(u64::from_le) else { return true };
        let [kind, units, ..] = option.to_le_bytes();
        if units == 0 || LINK_LAYER.contains(&kind) && is_mac_of_another(ifindex, option >> 16) {
            return true;
        }
        offset += usize::from(units) * 8;
        i += 1;
    }
    offset < len
}

#[inline(always)]
fn forged() -> Reported {
    verdict::report(DropReason::ForgedNeighbor, false, 0)
}

/// Whether an address is one hop away from the Pod: a group, link-local, this node; on a bridge also a Pod of this node.
#[inline(always)]
fn is_on_link(addr: &Addr, ifindex: u32) -> bool {
    if parse::is_group(addr) || is_link_local(addr) {
        return true;
    }
    let Some(known) = maps::ident(addr) else { return false };
    known.flags.contains(IdentFlags::LOCAL_NODE)
        || known.ifindex != 0
            && maps::pod(ifindex).is_some_and(|pod| pod.flags.contains(PodFlags::BRIDGED))
}

/// Whether an address is this node's.
#[inline(always)]
pub(crate) fn is_this_node(addr: &Addr) -> bool {
    maps::ident(addr).is_some_and(|known| known.flags.contains(IdentFlags::LOCAL_NODE))
}

/// The destination of a packet that enters a Pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addressee(u32);

impl Addressee {
    /// The Pod.
    pub(crate) const POD: Self = Self(0);
    /// An unknown host: the Pod may be a router.
    pub(crate) const UNOWNED: Self = Self(1);
    /// Another Pod, or a node.
    pub(crate) const OTHER: Self = Self(2);
}

/// Returns the destination of the packet.
#[inline(always)]
pub(crate) fn addressee() -> Addressee {
    Addressee(origin_addressee())
}

/// The same, as a function that the verifier checks once by itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn origin_addressee() -> u32 {
    let Some(scratch) = scratch::get() else { return Addressee::OTHER.0 };
    let Scratch { parsed, hand, ifindex, .. } = scratch;
    let (ifindex, dst) = (*ifindex, &parsed.flow.dst);
    let Some(pod) = hand.get(ifindex) else { return Addressee::POD.0 };
    if is_group_or_broadcast(dst) {
        return Addressee::POD.0;
    }
    let addressee = match ownership(dst, ifindex, Some(pod)) {
        Ownership::Own => Addressee::POD,
        Ownership::Other => Addressee::OTHER,
        Ownership::Unowned if is_admitted(pod, ifindex, dst) => Addressee::POD,
        Ownership::Unowned => Addressee::UNOWNED,
    };
    addressee.0
}

#[inline(always)]
fn is_group_or_broadcast(addr: &Addr) -> bool {
    if addr.is_v4() { addr.word3().get() >> 28 >= 0xe } else { parse::is_group(addr) }
}

/// Who opened a connection that was met in mid-flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opener {
    /// The Pod.
    Pod,
    /// The other end.
    Peer,
    /// The Pod's kernel has no such connection, or the packet is none of an open one.
    Unknown,
}

/// Asks the Pod's kernel: it has a socket for the connection, and a listener where it was not the one who opened it.
#[inline(never)]
pub(crate) fn opener(packet: Packet, scratch: &mut Scratch, direction: Direction) -> Opener {
    let Scratch { parsed, tuple, ifindex, .. } = scratch;
    if parsed.tcp_flags & (tcp::SYN | tcp::RST) != 0 || parsed.tcp_flags & tcp::ACK == 0 {
        return Opener::Unknown;
    }
    let Some(pod) = maps::pod(*ifindex) else { return Opener::Unknown };
    let flow = match direction {
        Direction::Ingress => parsed.flow,
        Direction::Egress => parsed.flow.reversed(),
    };
    tuple.fill(&flow, parsed.v4);
    if packet.socket(tuple, parsed.v4, pod.nsid) != Socket::Connected {
        return Opener::Unknown;
    }
    tuple.forget_source(parsed.v4);
    match packet.socket(tuple, parsed.v4, pod.nsid) {
        Socket::Listening => Opener::Peer,
        Socket::Connected | Socket::None => Opener::Pod,
    }
}

/// Whether a packet comes in by another device than its source could: with an address of this node, of one of its Pods,
/// or that only stands for one. Link-local IPv6 addresses, which no router passes on, may be the same on several links.
#[inline(never)]
pub(crate) fn is_forged_here(packet: Packet, scratch: &mut Scratch) -> bool {
    let src = &scratch.parsed.flow.src;
    if !src.is_v4() && is_link_local(src) {
        return false;
    }
    match maps::ident(src) {
        Some(known) if known.flags.contains(IdentFlags::LOCAL_NODE) => true,
        Some(known) if known.ifindex != 0 => is_astray(packet, scratch),
        _ => *src == kernel::hairpin_addr(src.is_v4()),
    }
}

/// Returns whether a packet with the address of a Pod of this node came in by a device that does not lead to that Pod: it is
/// neither a bridge of Pods nor the device of the route to the Pod (RFC 3704 §2.2).
#[inline(never)]
fn is_astray(packet: Packet, scratch: &mut Scratch) -> bool {
    let ifindex = scratch.ifindex;
    if maps::dev(ifindex).is_some_and(|dev| dev.flags.contains(DevFlags::PODS)) {
        return false;
    }
    let Scratch { parsed, fib, .. } = scratch;
    route::ask(fib, ifindex, parsed.v4, &parsed.flow.dst, &parsed.flow.src);
    matches!(packet.route(fib), Route::Via(way, _) if way != ifindex)
}
