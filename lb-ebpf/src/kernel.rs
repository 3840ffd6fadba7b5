//! The configuration of these programs, and the kernel's clock, random numbers and sockets.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};
use lb_common::addr::Addr;
use lb_common::config::{Config, Features};
use lb_common::conntrack;
use lb_common::flow::proto;

/// Written by the loader before the programs are loaded; constant for the verifier.
#[unsafe(no_mangle)]
static CFG: Config = Config::ZERO;

macro_rules! config_field {
    ($field:ident) => {
        // SAFETY: a static. Volatile, since the compiler sees zeroes where the loader puts values.
        unsafe { (&raw const CFG.$field).read_volatile() }
    };
}

#[inline(always)]
pub(crate) fn features() -> Features {
    config_field!(features)
}

/// Whether the packets of flows are counted. Constant for the verifier, which leaves out what depends on it.
#[inline(always)]
pub(crate) fn counts_flows() -> bool {
    features().contains(Features::ACCOUNTS)
}

#[inline(always)]
pub(crate) fn hz() -> u32 {
    config_field!(hz)
}

/// The address that stands for a Pod which reaches itself through a Service.
#[inline(always)]
pub(crate) fn hairpin_addr(v4: bool) -> Addr {
    if v4 { config_field!(hairpin4) } else { config_field!(hairpin6) }
}

/// New flows that a Pod may open a second; 0 = any number.
#[inline(always)]
pub(crate) fn pod_new_flows() -> u32 {
    config_field!(pod_new_flows)
}

/// Cookie of the host's network namespace.
#[inline(always)]
pub(crate) fn netns_cookie() -> u64 {
    config_field!(netns_cookie)
}

/// Source ports of masqueraded flows: the first and their number.
#[inline(always)]
pub(crate) fn masquerade_ports() -> (u32, u32) {
    (config_field!(masquerade_base), config_field!(masquerade_n))
}

/// Whether answers to masqueraded flows come to the port.
#[inline(always)]
pub(crate) fn is_answer_port(port: u16) -> bool {
    port.wrapping_sub(config_field!(answer_base)) < config_field!(answer_n)
}

/// Now in ticks, as in `Affinity::tick`.
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }
}

/// Returns the current time as a [`conntrack::stamp`].
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: a helper without arguments.
    conntrack::stamp(unsafe { bpf_jiffies64() })
}

#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Now in nanoseconds since the node's start, without the time that it was suspended.
#[inline(always)]
pub(crate) fn time_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether a network namespace, by its number in that of the packet's device, has a socket for this protocol and these ends; the
/// length of the ends says of which family they are. `None` for a protocol that cannot be asked for.
#[inline(always)]
pub(crate) fn has_socket(
    skb: *mut __sk_buff,
    protocol: u8,
    (ends, len): (&mut bpf_sock_tuple, u32),
    netns: u32,
) -> Option<bool> {
    let (skb, ends, netns) = (skb.cast(), ptr::from_mut(ends), u64::from(netns));
    let socket = match protocol {
        // SAFETY: the context of this program; the kernel checks the length.
        proto::TCP => unsafe { bpf_sk_lookup_tcp(skb, ends, len, netns, 0) },
        // SAFETY: as above.
        proto::UDP => unsafe { bpf_sk_lookup_udp(skb, ends, len, netns, 0) },
        _ => return None,
    };
    if socket.is_null() {
        return Some(false);
    }
    // SAFETY: the socket was found just now. It is not used afterwards.
    unsafe { bpf_sk_release(socket.cast()) };
    Some(true)
}
