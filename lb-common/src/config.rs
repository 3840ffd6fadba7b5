//! What the agent tells the programs when it loads them.

use crate::addr::Addr;
use crate::pod;

pod! {
    /// The read-only global `CFG` of the kernel object, set at load time.
    pub struct Config: 56 {
        /// Cookie of the host network namespace (`SO_NETNS_COOKIE`): sockets of other namespaces are left alone.
        pub netns_cookie: u64,
        /// Kernel ticks a second (`CONFIG_HZ`).
        pub hz: u32,
        /// `features::*`.
        pub features: u32,
        /// Stands for the client when a Pod reaches itself through a Service, IPv4.
        pub hairpin4: Addr,
        /// The same for IPv6.
        pub hairpin6: Addr,
        /// Zero.
        pub reserved: u64,
    }
}

/// Bits of [`Config::features`].
pub mod features {
    /// The kernel knows `BPF_F_IPV6` in `bpf_l4_csum_replace` (6.16): without it, IPv6 translation of packets with
    /// `CHECKSUM_COMPLETE` breaks their sum.
    pub const CSUM_IPV6: u32 = 1 << 0;
}

/// Default of [`Config::hairpin4`]: link-local (RFC 3927), so it is never routed and never a Pod's.
pub const HAIRPIN4: core::net::Ipv4Addr = core::net::Ipv4Addr::new(169, 254, 42, 1);
/// Default of [`Config::hairpin6`]: from the unique local range (RFC 4193), since link-local IPv6 needs a zone.
pub const HAIRPIN6: core::net::Ipv6Addr =
    core::net::Ipv6Addr::new(0xfd6c, 0x6261, 0x6c62, 0, 0, 0, 0, 0x42);
