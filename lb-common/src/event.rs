//! Records of the ring buffer `events`.

use crate::addr::Addr;
use crate::be::Be16;
use crate::pod;

pod! {
    /// One sampled packet: it was not delivered, or opened a flow that somebody asked about.
    pub struct FlowEvent: 72 {
        /// Source address of the packet.
        pub src: Addr,
        /// Destination address of the packet; where it is translated and a policy judged it, the backend's.
        pub dst: Addr,
        /// Source port.
        pub sport: Be16,
        /// Destination port, as `dst`.
        pub dport: Be16,
        /// IP protocol number.
        pub proto: u8,
        /// Number of the [`crate::verdict::DropReason`]; 0 when the packet went on.
        pub reason: u8,
        /// 1 when the packet was entering the Pod, 0 when it was leaving it.
        pub ingress: u8,
        /// `outcome::*`.
        pub outcome: u8,
        /// ifindex of the Pod's veth.
        pub ifindex: u32,
        /// Id of the service port, 0 when none is involved.
        pub service_id: u32,
        /// Events of this reason left out on this CPU since the last one that was sent.
        pub suppressed: u32,
        /// Group of the policies that judged it; 0 when none did.
        pub group: u32,
        /// Number of the [`crate::policy::Judgement`].
        pub judgement: u32,
        /// Identity of the peer, when policies judged it.
        pub ident: u32,
        /// `CLOCK_MONOTONIC` in nanoseconds.
        pub time_ns: u64,
    }
}

/// Values of [`FlowEvent::outcome`].
pub mod outcome {
    /// Not delivered.
    pub const DROPPED: u8 = 0;
    /// A new flow, allowed.
    pub const ALLOWED: u8 = 1;
    /// A new flow, allowed, which policies in shadow mode would deny.
    pub const WOULD_DENY: u8 = 2;
    /// A new flow, denied, which it would not be if the policies in shadow mode were enforced.
    pub const WOULD_ALLOW: u8 = 3;
}

pod! {
    /// Value of the per-CPU array `samples`, one per drop reason (0 = none): limits events to a few a second.
    pub struct Sample: 8 {
        /// Last event, as of [`crate::conntrack::stamp`] in its upper 28 bits; events sent in that stamp in the
        /// lower 4.
        pub window: u32,
        /// Events left out since the last one that was sent.
        pub suppressed: u32,
    }
}
