//! Pods behind one bridge. Where the bridge hands frames between its ports past netfilter, the replies of a backend
//! on it never meet netfilter; the packets towards it must not either, or netfilter sees half a connection, calls it
//! invalid, and the first rule that drops invalid packets stalls it.

use lb_common::endpoint::PodEntry;

use crate::packet::{Packet, Route};
use crate::scratch::Scratch;
use crate::{maps, route};

/// ifindex of the bridge past whose netfilter this Pod's frames go, or 0.
#[inline(always)]
pub(crate) fn of(packet: Packet, v4: bool) -> u32 {
    past_netfilter(maps::pod(packet.ifindex()), v4)
}

#[inline(always)]
fn past_netfilter(pod: Option<&PodEntry>, v4: bool) -> u32 {
    pod.map_or(0, |pod| if v4 { pod.bridge4 } else { pod.bridge6 })
}

/// Whether the way to the new flow's target leads back to the bridge that the Pod is on.
#[inline(never)]
pub(crate) fn leads_to_target(packet: Packet, scratch: &mut Scratch) -> bool {
    let Scratch { parsed, fib, nat, hand, ifindex, .. } = scratch;
    let bridge = past_netfilter(hand.get(*ifindex), parsed.v4);
    if bridge == 0 {
        return false;
    }
    route::ask(fib, bridge, parsed.v4, &parsed.flow.src, &nat.target.addr);
    matches!(packet.route(fib), Route::Via(ifindex, _) if ifindex == bridge)
}
