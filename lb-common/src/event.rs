//! Records of the ring buffer `events`.

use crate::addr::Addr;
use crate::be::Be16;
use crate::hash::scale;
use crate::pod;

pod! {
    /// One sampled packet: it was dropped, or it opened a flow while a client follows allowed flows.
    pub struct FlowEvent: 72 {
        /// Source address of the packet; where a policy judged it, of what opened the flow.
        pub src: Addr,
        /// Destination address of the packet; where a policy judged it, of the flow: behind a Service the backend's.
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
    /// Value of the per-CPU array `samples`: limits events to a few a second.
    pub struct Sample: 8 {
        /// Upper 24 bits: [`crate::conntrack::stamp`] of the last event. Lower 8 bits: number of events sent in that
        /// stamp.
        pub window: u32,
        /// Events of the device left out since the last one that was sent; 0 in the places of senders.
        pub suppressed: u32,
    }
}

/// Events of one device and kind of reason in a stamp.
pub const PER_DEVICE: u32 = 64;
/// Of those, of one sender.
pub const PER_SENDER: u32 = 8;
const DEVICES: u32 = 1024;
const KINDS: u32 = 4;
const SENDERS: u32 = 4096;
/// Elements of `samples`: those of devices, then those of senders.
pub const SAMPLES: u32 = DEVICES * KINDS + SENDERS;

/// Where `samples` counts an event of a device. Devices have consecutive numbers, so neighbours never share a place: a
/// noisy Pod does not hide what happens to another. What was let through has a place of its own.
pub const fn device_place(ifindex: u32, reason: u8) -> u32 {
    let kind = if reason == 0 { 0 } else { 1 + reason as u32 % (KINDS - 1) };
    ifindex % DEVICES * KINDS + kind
}

/// Where it counts those of one sender at a device: what one peer sends to a Pod does not hide another's.
pub fn sender_place(ifindex: u32, src: &Addr) -> u32 {
    let [a, b, c, d] = src.words().map(|word| word.get());
    let words = a ^ b.rotate_left(11) ^ c.rotate_left(22) ^ d ^ ifindex.rotate_left(16);
    DEVICES * KINDS + scale(words.wrapping_mul(0x9e37_79b9), SENDERS)
}

#[cfg(test)]
mod tests {
    use super::{SAMPLES, device_place, sender_place};
    use crate::addr::Addr;

    #[test]
    fn events_of_devices_are_counted_apart() {
        for ifindex in [1, 2, 1023, 1024, u32::MAX] {
            for reason in 0..=u8::MAX {
                let place = device_place(ifindex, reason);
                assert!(place < SAMPLES);
                for other in 1..1000_u32 {
                    let neighbour = ifindex.wrapping_add(other);
                    assert_ne!(place / 4, device_place(neighbour, reason) / 4);
                }
            }
            assert_ne!(device_place(ifindex, 0), device_place(ifindex, 16), "what was let through");
        }
        let place =
            |ifindex, src: &str| sender_place(ifindex, &Addr::from_ip(src.parse().unwrap()));
        assert_ne!(place(7, "10.1.0.2"), place(7, "10.1.0.3"));
        assert_ne!(place(7, "10.1.0.2"), place(8, "10.1.0.2"));
        assert_ne!(place(7, "fd00::2"), place(7, "fd00::3"));
        assert!(place(u32::MAX, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") < SAMPLES);
    }
}
