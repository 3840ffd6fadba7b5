//! Records of the ring buffer `events`.

use crate::addr::Addr;
use crate::be::Be16;
use crate::pod;

pod! {
    /// One sampled packet that was not delivered.
    pub struct DropEvent: 64 {
        /// Source address of the packet.
        pub src: Addr,
        /// Destination address of the packet.
        pub dst: Addr,
        /// Source port.
        pub sport: Be16,
        /// Destination port.
        pub dport: Be16,
        /// IP protocol number.
        pub proto: u8,
        /// Number of the [`crate::verdict::DropReason`].
        pub reason: u8,
        /// 1 when the packet was entering the Pod, 0 when it was leaving it.
        pub ingress: u8,
        /// Zero.
        pub pad: u8,
        /// ifindex of the Pod's veth.
        pub ifindex: u32,
        /// Id of the service port, 0 when none is involved.
        pub service_id: u32,
        /// Events of this reason left out on this CPU since the last one that was sent.
        pub suppressed: u32,
        /// Zero.
        pub reserved: u32,
        /// `CLOCK_MONOTONIC` in nanoseconds.
        pub time_ns: u64,
    }
}

pod! {
    /// Value of the per-CPU array `samples`, one per drop reason: limits events to a few a second.
    pub struct Sample: 8 {
        /// Last event, as of [`crate::conntrack::stamp`] in its upper 28 bits; events sent in that stamp in the
        /// lower 4.
        pub window: u32,
        /// Events left out since the last one that was sent.
        pub suppressed: u32,
    }
}
