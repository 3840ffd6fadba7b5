//! What a host socket remembers of its translations, so that it sees the address it dialled.

use crate::addr::Addr;
use crate::be::Be16;
use crate::pod;

/// Translations a socket remembers by itself. Those of an unconnected UDP socket (a resolver) that talks to more Services
/// move to a map that all sockets share.
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
        /// Index in the map `backends`.
        pub backend_id: u32,
        /// Generation of the backend when it was chosen.
        pub backend_gen: u32,
        /// IP protocol number, in the low byte.
        pub proto: u32,
    }
}

pod! {
    /// Key of the map `sk_more`: an end of a translation that its socket has no room for. Each has two elements, to be found
    /// by what the process dials and by who answers.
    pub struct SkMoreKey: 32 {
        /// Address of the frontend, or of the backend.
        pub addr: Addr,
        /// Low half of the socket's cookie, which no other socket ever gets.
        pub cookie: u32,
        /// Its high half.
        pub cookie_high: u32,
        /// Port that belongs to the address.
        pub port: Be16,
        /// [`END_FRONTEND`] or [`END_BACKEND`].
        pub end: u16,
        /// Zero.
        pub pad: u32,
    }
}

/// The key has the frontend's address.
pub const END_FRONTEND: u16 = 0;
/// The key has the backend's address.
pub const END_BACKEND: u16 = 1;

impl SkMoreKey {
    /// Of the socket with this cookie.
    pub const fn new(cookie: u64, addr: Addr, port: Be16, end: u16) -> Self {
        Self { addr, cookie: cookie as u32, cookie_high: (cookie >> 32) as u32, port, end, pad: 0 }
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
