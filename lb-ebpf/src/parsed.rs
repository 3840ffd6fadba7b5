//! What is known of a packet: plain data, in the scratch memory.

use lb_common::flow::Flow;

/// Offset of the network header behind an Ethernet header.
pub(crate) const L3: usize = 14;

/// A packet we know how to track. Lives in the scratch memory.
#[repr(C)]
pub(crate) struct Parsed {
    /// The 5-tuple.
    pub(crate) flow: Flow,
    /// Offset of the network header.
    pub(crate) l3: usize,
    /// Offset of the layer 4 header.
    pub(crate) l4: usize,
    /// Whether the network header is IPv4.
    pub(crate) v4: bool,
    /// TCP flags; 0 for other protocols.
    pub(crate) tcp_flags: u8,
    /// Identification of the datagram, if this is a piece of one.
    pub(crate) fragment_id: u32,
    /// A fragment but the first: `l4` is payload, and nothing is to be changed there.
    pub(crate) later: bool,
    /// A fragment whose first one was not seen: the ports of its protocol are not known.
    pub(crate) port_unknown: bool,
    /// What it is.
    pub(crate) kind: Kind,
}

/// What a packet turned out to be: a number, so that it can be kept in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind(u32);

impl Kind {
    /// As a number, and back: for what can hand over nothing else.
    #[cfg(feature = "trace")]
    pub(crate) const fn number(self) -> u32 {
        self.0
    }

    /// The kind of this number.
    #[cfg(feature = "trace")]
    pub(crate) const fn of(number: u32) -> Self {
        Self(number)
    }

    /// One to track: all of [`Parsed`] holds.
    pub(crate) const FLOW: Self = Self(0);
    /// The same, and the first piece of a datagram: it tells the others their ports.
    pub(crate) const FIRST_FRAGMENT: Self = Self(1);
    /// A later piece: it has addresses and no ports.
    pub(crate) const LATER_FRAGMENT: Self = Self(2);
    /// An ICMP error: it quotes a packet, whose flow it belongs to.
    pub(crate) const ICMP_ERROR: Self = Self(3);
    /// An IP packet of no flow: multicast, broadcast, other ICMP. What of [`Parsed`] is not known is 0; layer 4 is not
    /// to be touched.
    pub(crate) const UNTRACKED: Self = Self(4);
    /// What IPv6 needs to find neighbors and their groups, as its RFCs have it.
    pub(crate) const NEIGHBOR: Self = Self(5);
    /// IPv4's way to find neighbors; nothing of [`Parsed`] holds.
    pub(crate) const ARP: Self = Self(6);
    /// It cannot be told what it is for: cut short, a fragment without its transport header or overlapping it, a chain
    /// of extension headers that cannot be walked. Of [`Parsed`] the addresses hold, or are `::`.
    pub(crate) const UNREADABLE: Self = Self(7);
    /// Its source or destination is one that no packet on a wire has.
    pub(crate) const BAD_ADDRESS: Self = Self(8);
    /// Neither IP nor ARP, frames with a VLAN tag included; nothing of [`Parsed`] holds.
    pub(crate) const NOT_IP: Self = Self(9);
    /// AH or ESP, which hide or sign what they carry; the addresses of [`Parsed`] hold. A receiver takes it for something
    /// else only where it shares a key with the sender.
    pub(crate) const OPAQUE: Self = Self(10);
}
