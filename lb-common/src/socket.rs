//! What a host socket remembers of its translations, so that it sees the address it dialled.

use crate::addr::Addr;
use crate::be::Be16;
use crate::pod;

/// Translations a socket remembers. An unconnected UDP socket (a resolver) that talks to more Services at the same
/// time than this gets the backend's address for replies to the oldest.
pub const REMEMBERED: usize = 8;

pod! {
    /// One translation of a socket.
    pub struct SkNat: 48 {
        /// The frontend that the process dialled.
        pub frontend: Addr,
        /// The backend that it was sent to.
        pub backend: Addr,
        /// Port of the frontend; 0 = this place is empty.
        pub frontend_port: Be16,
        /// Port of the backend.
        pub backend_port: Be16,
        /// Backend id.
        pub backend_id: u32,
        /// Generation of the backend when it was chosen.
        pub backend_gen: u32,
        /// IP protocol number, in the low byte.
        pub proto: u32,
    }
}

pod! {
    /// Value of the socket storage `sk_nat`: a ring, freed by the kernel with its socket.
    pub struct SkNatRing: 400 {
        /// Place that the next new translation takes, modulo [`REMEMBERED`].
        pub next: u32,
        /// Zero.
        pub pad: [u32; 3],
        /// The translations.
        pub entries: [SkNat; 8],
    }
}
