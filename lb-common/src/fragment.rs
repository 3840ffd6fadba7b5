//! What the first fragment of a datagram tells the later ones: their ports (RFC 791 §3.2, RFC 8200 §4.5). And how an IPv4
//! packet is cut into pieces that fit.

use crate::addr::Addr;
use crate::be::Be16;
use crate::{csum, pod};

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
        /// When the first fragment passed: a [`crate::conntrack::stamp`].
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
    /// Coming in, as the programs see it that count packets.
    pub const ACCOUNT_IN: u8 = 4;
    /// Entering a Pod, as they see it.
    pub const ACCOUNT_OUT: u8 = 5;
}

/// Seconds after which the pieces of a datagram do not belong together any more: the identification comes round.
/// Linux keeps incomplete datagrams for as long (`net.ipv4.ipfrag_time`).
pub const LIFETIME_SECS: u32 = 30;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: u16 = 20;
/// Bytes of payload that a piece has at most: as many as a helper takes off a packet at once.
pub const PIECE_MOST: u16 = 4088;
/// Bytes of payload that a piece has at least: as many as fit into the smallest packet that every link takes (RFC 791).
const PIECE_LEAST: u16 = 48;

/// What differs in the IPv4 headers of a datagram's pieces, in wire order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the packet.
    pub total: u16,
    /// Flags and offset.
    pub fragment: u16,
    /// Checksum of the header.
    pub checksum: u16,
}

/// How a packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of payload that the first piece has.
    pub first_len: u16,
    /// The first piece.
    pub first: Extent,
    /// All the others, as one: they are cut in the same way.
    pub rest: Extent,
}

impl Extent {
    const DONT_FRAGMENT: u16 = 0x4000;
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;

    /// Whether the packet is a datagram as a whole.
    #[inline(always)]
    pub const fn is_whole(self) -> bool {
        u16::from_be(self.fragment) & (Self::MORE | Self::OFFSET) == 0
    }

    /// Cuts a packet with a header without options so that its first piece has no more than `mtu` bytes; `None` where its
    /// sender forbids that, or it fits.
    #[inline(always)]
    pub fn cut(self, mtu: u16) -> Option<Cut> {
        let (total, fragment) = (u16::from_be(self.total), u16::from_be(self.fragment));
        if fragment & Self::DONT_FRAGMENT != 0 || total < IPV4_HEADER || mtu < IPV4_HEADER {
            return None;
        }
        let (payload, room) = (total - IPV4_HEADER, mtu - IPV4_HEADER);
        // Offsets count eights.
        let first_len = if room < PIECE_MOST { room & !7 } else { PIECE_MOST };
        let offset = fragment & Self::OFFSET;
        // No datagram ends behind byte 65,535.
        let end = u32::from(offset) * 8 + u32::from(payload);
        let fits = payload <= room;
        if fits || first_len < PIECE_LEAST || end > u32::from(u16::MAX - IPV4_HEADER) {
            return None;
        }
        let rest = (fragment & Self::MORE) | (offset + first_len / 8);
        Some(Cut {
            first_len,
            first: self.changed(first_len, Self::MORE | offset),
            rest: self.changed(payload - first_len, rest),
        })
    }

    /// The same with another payload and offset. A checksum that did not hold does not after it.
    #[inline(always)]
    fn changed(self, payload: u16, fragment: u16) -> Self {
        let (total, fragment) = ((payload + IPV4_HEADER).to_be(), fragment.to_be());
        let sum = [!self.checksum, !self.total, total, !self.fragment, fragment]
            .iter()
            .fold(0, |sum, word| csum::add(sum, u32::from(*word)));
        Self { total, fragment, checksum: !csum::fold(sum) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Extent, IPV4_HEADER, PIECE_MOST};
    use crate::csum;

    /// Sum of all words of a header in which only these differ from 0.
    fn holds(extent: Extent) -> bool {
        let words = [0x4500u16.to_be(), extent.total, extent.fragment, extent.checksum];
        csum::fold(words.iter().fold(0, |sum, word| csum::add(sum, u32::from(*word)))) == 0xffff
    }

    fn datagram(payload: u16, fragment: u16) -> Extent {
        let zero = Extent { total: 0, fragment: 0, checksum: !0x4500u16.to_be() };
        zero.changed(payload, fragment)
    }

    #[test]
    fn pieces_fit_and_give_the_datagram() {
        for (payload, fragment, mtu) in [
            (1_480, 0, 1_450),
            (4_008, 0, 1_450),
            (1_480, 0x2000, 1_450),
            (1_480, 0x2000 | 185, 1_431),
            (1_480, 370, 1_280),
            (65_515, 0, 9_000),
            (9_000, 0, 68),
            (1_431, 0, 1_450),
            (1_430, 0, 1_450),
        ] {
            let all = datagram(payload, fragment);
            assert!(holds(all));
            let mut rest = all;
            let (mut at, mut pieces) = (fragment & 0x1fff, 0);
            while let Some(cut) = rest.cut(mtu) {
                let first = cut.first;
                assert!(holds(first) && holds(cut.rest));
                assert!(u16::from_be(first.total) <= mtu && cut.first_len <= PIECE_MOST);
                assert_eq!(u16::from_be(first.total), cut.first_len + IPV4_HEADER);
                assert_eq!(u16::from_be(first.fragment), 0x2000 | at, "more follow");
                assert!(!first.is_whole() && !cut.rest.is_whole());
                at += cut.first_len / 8;
                rest = cut.rest;
                pieces += 1;
            }
            assert!(u16::from_be(rest.total) <= mtu, "{payload} at {mtu}");
            assert_eq!(u16::from_be(rest.fragment), fragment & 0x2000 | at, "as the packet was");
            let before = (at - (fragment & 0x1fff)) * 8;
            assert_eq!(before + u16::from_be(rest.total) - IPV4_HEADER, payload);
            assert_eq!(pieces > 0, payload + IPV4_HEADER > mtu);
        }
    }

    #[test]
    fn what_may_not_be_cut_is_not() {
        for (why, payload, fragment, mtu) in [
            ("its sender forbids it", 1_480, 0x4000, 1_450),
            ("a piece likewise", 1_480, 0x6000, 1_450),
            ("it fits", 1_430, 0, 1_450),
            ("no link takes less than 68 bytes", 1_480, 0, 67),
            ("it would end behind every datagram", 1_480, 0x1fff, 1_450),
        ] {
            assert_eq!(datagram(payload, fragment).cut(mtu), None, "{why}");
        }
        let short = Extent { total: 19u16.to_be(), fragment: 0, checksum: 0 };
        assert_eq!(short.cut(1_450), None);
        let mut broken = datagram(1_480, 0);
        broken.checksum ^= 1;
        let cut = broken.cut(1_450).unwrap();
        assert!(!holds(cut.first) && !holds(cut.rest), "a broken header is not mended");
    }
}
