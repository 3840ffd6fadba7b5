//! What the first fragment of a datagram tells the later ones: their ports (RFC 791 §3.2, RFC 8200 §4.5).

use crate::addr::Addr;
use crate::be::Be16;
use crate::pod;

pod! {
    /// Key of the map `fragments`: a datagram in pieces, as seen at one veth.
    pub struct FragmentKey: 40 {
        /// Source address of the packet.
        pub src: Addr,
        /// Destination address of the packet.
        pub dst: Addr,
        /// Identification: 16 bits in IPv4, 32 in IPv6, in memory order of the wire.
        pub id: u32,
        /// IP protocol number.
        pub proto: u8,
        /// Where the packets were seen, `hook::*`.
        pub hook: u8,
        /// Low 16 bits of the device's ifindex.
        pub device: u16,
    }
}

pod! {
    /// Value of the map `fragments`.
    pub struct FragmentPorts: 8 {
        /// Source port of the datagram.
        pub sport: Be16,
        /// Destination port.
        pub dport: Be16,
        /// When the first fragment passed, as of [`crate::conntrack::stamp`].
        pub seen: u32,
    }
}

/// Values of [`FragmentKey::hook`].
pub mod hook {
    /// Leaving a Pod.
    pub const POD_OUT: u8 = 0;
    /// Entering a Pod.
    pub const POD_IN: u8 = 1;
    /// Entering the node.
    pub const DEV_IN: u8 = 2;
    /// Leaving the node.
    pub const DEV_OUT: u8 = 3;
}

/// Seconds after which the pieces of a datagram do not belong together any more: the identification comes round.
/// Linux keeps incomplete datagrams for as long (`net.ipv4.ipfrag_time`).
pub const LIFETIME_SECS: u32 = 30;
