//! Datagrams in pieces: the first one has the ports, the others are told.

use lb_common::fragment::{FragmentKey, FragmentPorts, LIFETIME_SECS};

use crate::packet::Packet;
use crate::scratch::Scratch;
use crate::{kernel, maps};

#[inline(always)]
fn fill_key(packet: Packet, scratch: &mut Scratch, hook: u8) {
    let Scratch { parsed, fragment, .. } = scratch;
    *fragment = FragmentKey {
        src: parsed.flow.src,
        dst: parsed.flow.dst,
        id: parsed.fragment_id,
        proto: parsed.flow.proto,
        hook,
        device: packet.ifindex() as u16,
    };
}

/// A first fragment passes: remembers its ports.
#[inline(never)]
pub(crate) fn remember(packet: Packet, scratch: &mut Scratch, hook: u8) {
    fill_key(packet, scratch, hook);
    let flow = &scratch.parsed.flow;
    let ports = FragmentPorts { sport: flow.sport, dport: flow.dport, seen: kernel::now() };
    maps::fragment_put(&scratch.fragment, &ports);
}

/// A later fragment passes: gives it its ports; `false` when its first one was not seen.
#[inline(never)]
pub(crate) fn recall(packet: Packet, scratch: &mut Scratch, hook: u8) -> bool {
    fill_key(packet, scratch, hook);
    let Some(ports) = maps::fragment_get(&scratch.fragment) else { return false };
    let age = kernel::now().wrapping_sub(ports.seen);
    if u64::from(age) << 8 > u64::from(LIFETIME_SECS) * u64::from(kernel::hz()) {
        return false;
    }
    scratch.parsed.flow.sport = ports.sport;
    scratch.parsed.flow.dport = ports.dport;
    scratch.parsed.port_unknown = false;
    true
}
