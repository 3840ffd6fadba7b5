//! What the agent tells the programs when it loads them.

use crate::addr::Addr;
use crate::be::Be16;
use crate::{flags, pod};

pod! {
    /// The read-only global `CFG` of the kernel object, set at load time.
    pub struct Config: 64 {
        /// Cookie of the host network namespace (`SO_NETNS_COOKIE`): sockets of other namespaces are left alone.
        pub netns_cookie: u64,
        /// Kernel ticks a second (`CONFIG_HZ`).
        pub hz: u32,
        /// What the kernel can do, and what is turned on.
        pub features: Features,
        /// Stands for the client when a Pod reaches itself through a Service, IPv4.
        pub hairpin4: Addr,
        /// The same for IPv6.
        pub hairpin6: Addr,
        /// First source port of masqueraded flows.
        pub masquerade_base: u32,
        /// Number of them; 0 turns masquerading off.
        pub masquerade_n: u32,
        /// New flows a second that a Pod may have in each direction; 0 = any number.
        pub pod_new_flows: u32,
        /// First port of those that answers to masqueraded flows may come to: `masquerade_base`, or less while flows live
        /// that got their ports from another range.
        pub answer_base: u16,
        /// Number of them.
        pub answer_n: u16,
    }
}

pod! {
    /// The only element of the array `settings`: what may change while the programs run.
    pub struct Settings: 576 {
        /// The node's first IPv4 address: stands for host processes as clients; `::` = none.
        pub node4: Addr,
        /// The same for IPv6.
        pub node6: Addr,
        /// Number of [`Settings::service_cidrs`].
        pub n_service_cidrs: u32,
        /// What is turned on.
        pub flags: SettingFlags,
        /// Until this stamp ([`crate::conntrack::stamp`]) connections may be met in mid-flow: they may be older than the
        /// table `ct`.
        pub pickup_until: u32,
        /// Number of [`Settings::tunnel_ports`].
        pub n_tunnel_ports: u32,
        /// The address ranges of Services.
        pub service_cidrs: [Cidr; 16],
        /// UDP ports at which this node takes packets out of tunnels (VXLAN, Geneve, FOU): what Pods send there is
        /// dropped.
        pub tunnel_ports: [Be16; 8],
    }
}

pod! {
    /// A range of addresses.
    pub struct Cidr: 32 {
        /// Its first address.
        pub addr: Addr,
        /// Ones where an address in the range is equal to `addr`.
        pub mask: Addr,
    }
}

impl Cidr {
    /// The range of `bits` bits of an address' own family at `addr`; `None` when there are more bits than it has.
    pub fn new(addr: Addr, bits: u8) -> Option<Self> {
        let (skip, len) = if addr.is_v4() { (96, 32) } else { (0, 128) };
        if bits > len {
            return None;
        }
        let ones = u32::from(skip + bits);
        let mask = if ones == 0 { 0 } else { u128::MAX << (128 - ones) };
        let words = |value: u128| {
            [96, 64, 32, 0].map(|shift| crate::be::Be32::new((value >> shift) as u32))
        };
        let mask = Addr::v6(words(mask));
        Some(Self { addr: addr.masked(&mask), mask })
    }

    /// Whether an address is in the range.
    pub fn contains(&self, addr: &Addr) -> bool {
        addr.masked(&self.mask) == self.addr
    }
}

/// Default range of source ports of masqueraded flows. Outside the default range of NodePorts (30000-32767) and that
/// of the host's own sockets (`net.ipv4.ip_local_port_range`, 32768-60999), so that none takes another's replies.
pub const MASQUERADE_PORTS: core::ops::RangeInclusive<u16> = 10_000..=29_999;

flags! {
    /// Flags of [`Settings`].
    pub struct SettingFlags: u32 {
        /// Another proxy translates flows that are older than these programs. Mid-flow packets of flows without an entry are
        /// left to it. Without this bit they are refused, since their backend cannot be found again.
        OTHER_PROXY = 1 << 0;
        /// While there is any policy, a Pod may send only from its own addresses. Without this bit it may send from any
        /// address that does not belong to another Pod, node or Service.
        STRICT_SOURCE = 1 << 1;
        /// Flows between Pods of this node may go past the IP stack ([`crate::past`]). The bits from
        /// [`crate::past::StackReason::FIRST_BIT`] on say why not.
        LOCAL_PAST = 1 << 2;
        /// The same for flows to and from Pods of other nodes ([`crate::hop`]). The bits from
        /// [`crate::hop::HopReason::FIRST_BIT`] on say why not.
        HOP_PAST = 1 << 3;
        /// New flows between Pods of this node go through the IP stack; those that have a way past it keep it.
        KNOWN_PAST_ONLY = 1 << 4;
        /// The same for flows to and from Pods of other nodes.
        KNOWN_HOP_ONLY = 1 << 5;
    }
}

flags! {
    /// Bits of [`Config::features`]: what the kernel can do, and what is turned on when the programs are loaded.
    pub struct Features: u32 {
        /// The kernel knows `BPF_F_IPV6` in `bpf_l4_csum_replace` (6.16): without it, IPv6 translation of packets with
        /// `CHECKSUM_COMPLETE` breaks their sum.
        CSUM_IPV6 = 1 << 0;
        /// The packets of flows are counted ([`crate::account`]): a conntrack entry that is removed takes the counts with it.
        ACCOUNTS = 1 << 1;
    }
}

/// Default of [`Config::hairpin4`]: link-local (RFC 3927), so it is never routed and never a Pod's.
pub const HAIRPIN4: core::net::Ipv4Addr = core::net::Ipv4Addr::new(169, 254, 42, 1);
/// Default of [`Config::hairpin6`]: from the unique local range (RFC 4193), since link-local IPv6 needs a zone.
pub const HAIRPIN6: core::net::Ipv6Addr =
    core::net::Ipv6Addr::new(0xfd6c, 0x6261, 0x6c62, 0, 0, 0, 0, 0x42);

#[cfg(test)]
mod tests {
    use super::{Addr, Cidr};

    #[test]
    fn cidrs_of_both_families() {
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let inside =
            |cidr: &str, bits, text| Cidr::new(addr(cidr), bits).unwrap().contains(&addr(text));
        for (cidr, bits, text, want) in [
            ("10.96.0.0", 12, "10.111.255.255", true),
            ("10.96.3.4", 12, "10.112.0.0", false),
            ("10.96.0.1", 32, "10.96.0.1", true),
            ("0.0.0.0", 0, "192.0.2.1", true),
            ("0.0.0.0", 0, "2001:db8::1", false),
            ("2001:db8:0:80::", 57, "2001:db8:0:ff::", true),
            ("2001:db8:0:80::", 57, "2001:db8:0:7f::", false),
            ("::", 0, "10.0.0.1", true),
        ] {
            assert_eq!(inside(cidr, bits, text), want, "{text} in {cidr}/{bits}");
        }
        assert_eq!(Cidr::new(addr("10.0.0.0"), 33), None);
        assert!(Cidr::new(addr("::1"), 128).is_some());
    }
}
