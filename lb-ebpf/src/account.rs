//! Counts packets and bytes of flows, while the setting `flow-accounting` is on: programs of their own, which come before the
//! others and decide nothing.
//!
//! They see packets as they are on the wire, before translation and verdict. Packets without a flow (ARP, neighbor discovery,
//! multicast, ICMP errors), and frames of a VLAN, which its device sees again, are not counted.

use lb_common::account::{AccountKey, place};
use lb_common::fragment::hook;

use crate::packet::{Packet, Tag, reread};
use crate::parsed::{Kind, L3};
use crate::scratch::Scratch;
use crate::{fragment, maps, parse};

/// A packet comes in by a device; its network header is at `l3`.
#[inline(always)]
pub(crate) fn comes_in(packet: Packet, l3: usize) {
    let Some(scratch) = packet.scratch() else { return };
    if let Some(bytes) = examine(packet, scratch, l3, hook::ACCOUNT_IN) {
        maps::account(&scratch.account, bytes, place::INGRESS);
    }
}

/// A packet enters a Pod.
#[inline(always)]
pub(crate) fn enters_pod(packet: Packet) {
    let Some(scratch) = packet.scratch() else { return };
    if let Some(bytes) = examine(packet, scratch, L3, hook::ACCOUNT_OUT) {
        maps::account(&scratch.account, bytes, place::EGRESS);
    }
}

/// Writes the key of the packet to the scratch memory. Returns its bytes from the IP header on; `None` if it has no flow.
#[inline(always)]
fn examine(packet: Packet, scratch: &mut Scratch, l3: usize, hook: u8) -> Option<u64> {
    if packet.tag() == Tag::Vlan {
        return None;
    }
    match parse::parse(packet, &mut scratch.parsed, l3) {
        Kind::FLOW => {}
        // Under a hook of their own, so that the other programs do not find ports that they did not note.
        Kind::FIRST_FRAGMENT => fragment::remember(packet, scratch, hook),
        Kind::LATER_FRAGMENT => {
            if !fragment::recall(packet, scratch, hook) {
                return None;
            }
        }
        _ => return None,
    }
    scratch.account = AccountKey::of(&scratch.parsed.flow);
    Some(u64::from(length(packet, l3, reread(&scratch.parsed.v4))))
}

/// Bytes of the IP packet as its header states them, without a trailer of the frame. The header states none where there are too
/// many (jumbograms, RFC 2675; packets that offload has joined).
#[inline(always)]
fn length(packet: Packet, l3: usize, v4: bool) -> u32 {
    const IPV6_HEADER: u32 = 40;
    let whole = packet.len() - l3 as u32;
    let (at, before) = if v4 { (l3 + 2, 0) } else { (l3 + 4, IPV6_HEADER) };
    let stated = packet.load::<[u8; 2]>(at).map_or(0, |word| u32::from(u16::from_be_bytes(word)));
    if stated == 0 || stated + before > whole { whole } else { stated + before }
}
