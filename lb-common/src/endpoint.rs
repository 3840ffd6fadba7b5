//! The Pods, the devices and the addresses of this node as the programs see them.

use crate::addr::Addr;
use crate::limits;
use crate::{flags, pod};

pod! {
    /// Value of the map `pods`, keyed by the ifindex of the Pod's veth in the host namespace (`u32`, host order).
    pub struct PodEntry: 80 {
        /// The Pod's IPv4 address, or `::`.
        pub ip4: Addr,
        /// The Pod's IPv6 address, or `::`.
        pub ip6: Addr,
        /// What is special about it.
        pub flags: PodFlags,
        /// MAC address of the Pod's end.
        pub mac: [u8; 6],
        /// Zero.
        pub pad: u16,
        /// Network namespace id (`IFLA_LINK_NETNSID`) of the Pod's end as the host namespace numbers it.
        pub nsid: u32,
        /// ifindex of the bridge whose port the veth is, if that bridge hands IPv4 frames between its ports past
        /// netfilter (`net.bridge.bridge-nf-call-iptables` = 0); else 0.
        pub bridge4: u32,
        /// The same for IPv6 (`bridge-nf-call-ip6tables`).
        pub bridge6: u32,
        /// Group of [`crate::policy`] for what enters the Pod; 0 = everything is allowed.
        pub ingress: u32,
        /// Group for what leaves it.
        pub egress: u32,
        /// Group for what enters it if all policies in shadow mode were enforced, too; 0 = none selects it.
        pub shadow_ingress: u32,
        /// The same for what leaves it.
        pub shadow_egress: u32,
        /// Dense number of the Pod on this node, from 1, below [`crate::limits::PODS`]: index of what is counted for each
        /// Pod; 0 = none.
        pub id: u32,
        /// Until this stamp ([`crate::conntrack::stamp`]) connections of the Pod may be met in mid-flow: they may be older
        /// than its first policy. 0 = never.
        pub pickup_until: u32,
    }
}

flags! {
    /// Bits of [`PodEntry::flags`].
    pub struct PodFlags: u32 {
        /// The veth is a port of a bridge.
        BRIDGED = 1 << 0;
        /// The map `pod_sources` has prefixes that the Pod may send from beside its own addresses.
        MORE_SOURCES = 1 << 1;
    }
}

/// A link-layer address as a number: key of the map `macs`. Its first byte is the lowest, and the two highest are 0.
pub const fn mac_number(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The element of the array `links`, and its index, of a Pod's device behind which this link-layer address is at home. It
/// names the device, too: several may have the same index.
pub const fn link(ifindex: u32, mac: u64) -> (u32, u64) {
    (ifindex % limits::LINKS, mac | ((ifindex / limits::LINKS) as u64) << 48)
}

pod! {
    /// What the LPM map `pod_sources` matches behind the prefix length: a Pod's device, then a source address that an
    /// annotation of the Pod admits. A range of n bits has prefix length 32 + n, for IPv4 32 + 96 + n.
    pub struct PodSource: 20 {
        /// ifindex of the Pod's veth.
        pub ifindex: u32,
        /// The source address.
        pub addr: Addr,
    }
}

pod! {
    /// Value of the map `ident`, keyed by address ([`Addr`]): what is known of who has it.
    pub struct Ident: 16 {
        /// Identity for policies; 0 = no rule has it as a peer.
        pub ident: u32,
        /// Who has it.
        pub flags: IdentFlags,
        /// ifindex of the veth of the Pod of this node that has the address; else 0.
        pub ifindex: u32,
        /// Zero.
        pub reserved: u32,
    }
}

flags! {
    /// Bits of [`Ident::flags`].
    pub struct IdentFlags: u32 {
        /// An address of this node: the IP stack delivers packets to it here.
        LOCAL_NODE = 1 << 0;
        /// An address of a Pod, on whatever node.
        POD = 1 << 1;
        /// An address of another node.
        NODE = 1 << 2;
        /// With `POD`: the Pod is on this node. Until its device is known, any device may be its.
        HERE = 1 << 3;
    }
}

pod! {
    /// Value of the map `devs`, keyed by ifindex (`u32`): a device by which packets leave for other machines.
    pub struct Dev: 40 {
        /// Source of flows that are masqueraded out of this device, IPv4; `::` = none.
        pub masquerade4: Addr,
        /// The same for IPv6.
        pub masquerade6: Addr,
        /// Largest IP packet in bytes.
        pub mtu: u32,
        /// What is special about it.
        pub flags: DevFlags,
    }
}

flags! {
    /// Bits of [`Dev::flags`].
    pub struct DevFlags: u32 {
        /// Pods of this node are behind the device, too: a bridge whose ports are Pods' veths. Elsewhere a packet that
        /// comes in with an address of such a Pod is a forgery, unless the route to the Pod leads to that device.
        PODS = 1 << 0;
        /// Flows between Pods of this node and of others may leave and come in by it past the IP stack ([`crate::hop`]).
        HOP_OK = 1 << 1;
        /// IPv4 packets come in only by the device that the route back to their source leads to (`rp_filter` = 1).
        STRICT = 1 << 2;
    }
}
