//! A line of log for each stage of a packet, in builds with the feature `trace`. In others each of these functions is empty,
//! and the object has nothing of it.
//!
//! The lines go through aya-log's ring buffer; `lb-agent` built with the same feature prints them. Each is written by a
//! global function, which the verifier checks once by itself.

use crate::parsed::Kind;
use crate::tracked::Tracked;

/// The programs that see packets, in the order of their numbers in the log.
#[derive(Clone, Copy)]
pub(crate) enum Program {
    PodOut,
    PodIn,
    DevIn,
    DevOut,
}

/// The packet was parsed: the first line of each packet.
#[inline(always)]
#[cfg_attr(not(feature = "trace"), expect(unused_variables, reason = "nothing is logged"))]
pub(crate) fn parsed(program: Program, kind: Kind) {
    #[cfg(feature = "trace")]
    log::trace_parsed(program as u32, kind.number());
}

/// Conntrack was asked for the key in the scratch memory.
#[inline(always)]
#[cfg_attr(not(feature = "trace"), expect(unused_variables, reason = "nothing is logged"))]
pub(crate) fn found(entry: Option<&Tracked>) {
    #[cfg(feature = "trace")]
    log::trace_found(u32::from(entry.is_some()), entry.map_or(0, |entry| entry.flags().bits()));
}

/// A backend was chosen: the target in the scratch memory.
#[inline(always)]
pub(crate) fn chosen() {
    #[cfg(feature = "trace")]
    log::trace_chosen();
}

/// Policies judged the question in the scratch memory; `reason` 0 = allowed.
#[inline(always)]
#[cfg_attr(not(feature = "trace"), expect(unused_variables, reason = "nothing is logged"))]
pub(crate) fn judged(reason: u32) {
    #[cfg(feature = "trace")]
    log::trace_judged(reason);
}

/// The packet is dropped, with reason and direction as [`lb_common::verdict::drop_index`] joins them.
#[inline(always)]
#[cfg_attr(not(feature = "trace"), expect(unused_variables, reason = "nothing is logged"))]
pub(crate) fn dropped(index: u32) {
    #[cfg(feature = "trace")]
    log::trace_dropped(index);
}

/// What happens to the packet, as the number of its `Verdict`: its last line.
#[inline(always)]
#[cfg_attr(not(feature = "trace"), expect(unused_variables, reason = "nothing is logged"))]
pub(crate) fn decided(verdict: u32) {
    #[cfg(feature = "trace")]
    log::trace_decided(verdict);
}

#[cfg(feature = "trace")]
mod log {
    use super::Program;
    use crate::parsed::Kind;
    use crate::scratch;
    use aya_log_ebpf::info;
    use lb_common::addr::Addr;
    use lb_common::conntrack::CtFlags;
    use lb_common::verdict::DropReason;

    /// What aya-log asks for and does not use.
    const CTX: &() = &();

    #[inline(always)]
    fn bytes(addr: &Addr) -> [u8; 16] {
        let [a, b, c, d] = addr.words().map(|word| word.get().to_be_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    #[inline(never)]
    #[unsafe(no_mangle)]
    pub(super) extern "C" fn trace_parsed(program: u32, kind: u32) -> u32 {
        let Some(scratch) = scratch::get() else { return 0 };
        let (ifindex, flow) = (scratch.ifindex, &scratch.parsed.flow);
        const POD_OUT: u32 = Program::PodOut as u32;
        const POD_IN: u32 = Program::PodIn as u32;
        const DEV_IN: u32 = Program::DevIn as u32;
        match program {
            POD_OUT => info!(CTX, "pod_out at device {}", ifindex),
            POD_IN => info!(CTX, "pod_in at device {}", ifindex),
            DEV_IN => info!(CTX, "dev_in at device {}", ifindex),
            _ => info!(CTX, "dev_out at device {}", ifindex),
        }
        match Kind::of(kind) {
            Kind::FLOW => info!(CTX, "  parsed: a packet of a flow"),
            Kind::FIRST_FRAGMENT => info!(CTX, "  parsed: a first fragment"),
            Kind::LATER_FRAGMENT => info!(CTX, "  parsed: a later fragment"),
            Kind::ICMP_ERROR => {
                info!(CTX, "  parsed: an ICMP error; of the packet that it quotes:")
            }
            Kind::UNTRACKED => info!(CTX, "  parsed: IP, not tracked"),
            Kind::NEIGHBOR => info!(CTX, "  parsed: neighbor discovery"),
            Kind::ARP => info!(CTX, "  parsed: ARP"),
            Kind::UNREADABLE => info!(CTX, "  parsed: unreadable"),
            Kind::BAD_ADDRESS => info!(CTX, "  parsed: an address that no packet has"),
            Kind::OPAQUE => info!(CTX, "  parsed: AH or ESP"),
            _ => info!(CTX, "  parsed: neither IP nor ARP"),
        }
        info!(
            CTX,
            "  protocol {}, {:i} port {} -> {:i} port {}, TCP flags {:x}",
            flow.proto,
            bytes(&flow.src),
            flow.sport.get(),
            bytes(&flow.dst),
            flow.dport.get(),
            scratch.parsed.tcp_flags
        );
        0
    }

    #[inline(never)]
    #[unsafe(no_mangle)]
    pub(super) extern "C" fn trace_found(found: u32, flags: u32) -> u32 {
        let kind = CtFlags::from_bits(flags);
        if found == 0 {
            info!(CTX, "  conntrack: no entry");
        } else if kind.contains(CtFlags::FORWARD) {
            info!(CTX, "  conntrack: the entry of a translated flow, flags {:x}", flags);
        } else if kind.contains(CtFlags::REPLY) {
            info!(CTX, "  conntrack: the entry of a translated flow's answers, flags {:x}", flags);
        } else {
            info!(
                CTX,
                "  conntrack: the entry of a flow that is not translated, flags {:x}", flags
            );
        }
        0
    }

    #[inline(never)]
    #[unsafe(no_mangle)]
    pub(super) extern "C" fn trace_chosen() -> u32 {
        let Some(scratch) = scratch::get() else { return 0 };
        let target = &scratch.nat.target;
        info!(
            CTX,
            "  service: backend {}, {:i} port {}",
            target.id,
            bytes(&target.addr),
            target.port.get()
        );
        0
    }

    #[inline(never)]
    #[unsafe(no_mangle)]
    pub(super) extern "C" fn trace_judged(reason: u32) -> u32 {
        let Some(scratch) = scratch::get() else { return 0 };
        let asked = &scratch.asked;
        let (peer, port) = (bytes(&asked.peer), asked.port.get());
        if reason == 0 {
            info!(CTX, "  policy: allowed, group {}, peer {:i} port {}", asked.group, peer, port);
        } else {
            info!(CTX, "  policy: refused, group {}, peer {:i} port {}", asked.group, peer, port);
        }
        0
    }

    #[inline(never)]
    #[unsafe(no_mangle)]
    pub(super) extern "C" fn trace_dropped(index: u32) -> u32 {
        macro_rules! named {
            ($($number:literal)*) => {{
                const _: () = assert!(DropReason::ALL.len() == [$($number),*].len());
                match index / 2 {
                    $($number => info!(CTX, "  dropped: {}", const { DropReason::ALL[$number - 1].name() }),)*
                    other => info!(CTX, "  dropped: reason {}", other),
                }
            }};
        }
        named!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30);
        0
    }

    #[inline(never)]
    #[unsafe(no_mangle)]
    pub(super) extern "C" fn trace_decided(verdict: u32) -> u32 {
        match verdict {
            0 => info!(CTX, "  verdict: pass"),
            1 => info!(CTX, "  verdict: drop"),
            2 => info!(CTX, "  verdict: back to the Pod that sent it"),
            3 => info!(CTX, "  verdict: to a neighbor, past the stack"),
            4 => info!(CTX, "  verdict: to the next hop, past the stack"),
            5 => info!(CTX, "  verdict: pass; it does not fit the way past the stack"),
            7 => info!(CTX, "  verdict: to another Pod of this node, past the stack"),
            8 => info!(CTX, "  verdict: to the other end of that Pod's veth, past the stack"),
            _ => info!(CTX, "  verdict: refused, the answer goes back"),
        }
        0
    }
}
