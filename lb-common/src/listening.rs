//! Questions about the sockets of a Pod.

use crate::addr::Addr;
use crate::be::Be16;
use crate::pod;

pod! {
    /// Whether a socket of a network namespace takes what is sent to an address. It is the packet that the program `listening` is
    /// run with, behind an Ethernet header.
    pub struct ListenQuery: 24 {
        /// Destination address.
        pub addr: Addr,
        /// The network namespace, by its number in the caller's (`RTM_GETNSID`, [`crate::endpoint::PodEntry::nsid`]).
        pub netns: u32,
        /// Destination port.
        pub port: Be16,
        /// IP protocol number: TCP or UDP.
        pub proto: u8,
        /// Zero.
        pub pad: u8,
    }
}

/// What the program returns if a socket takes it. If none does, it is 0.
pub const LISTENS: u32 = 1;
/// What it returns for a question that it does not understand.
pub const NOT_ASKED: u32 = 2;
