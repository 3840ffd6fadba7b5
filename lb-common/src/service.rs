//! Load balancing tables: frontend → a range of slots → backends.
//!
//! ```text
//! frontends[addr, port, proto] = { base, n, .. }      one atomic value per frontend
//! slots[base .. base + n]      = backend ids          a fresh range for each change
//! backends[id]                 = { addr, port, gen }  gen changes when the id changes its meaning
//! ```
//! The agent writes backends, then a new range of slots, then the frontend's value: a packet reads `base` and `n`
//! from one element, so it never sees a mixture of two generations of a Service.

use crate::addr::Addr;
use crate::be::Be16;
use crate::pod;

pod! {
    /// Key of the map `frontends`: what a client dials.
    ///
    /// `proto` 0 with `port` 0 is the wildcard of an address: it exists for every ClusterIP and marks all its other
    /// ports as refused (KEP-1880; the nftables proxy rejects them likewise).
    pub struct FrontendKey: 20 {
        /// Frontend address.
        pub addr: Addr,
        /// Frontend port; 0 in a wildcard.
        pub port: Be16,
        /// IP protocol number; 0 in a wildcard.
        pub proto: u8,
        /// Kind of key, `kind::*`.
        pub kind: u8,
    }
}

/// Values of [`FrontendKey::kind`].
pub mod kind {
    /// A frontend with an address of its own.
    pub const ADDRESS: u8 = 0;
}

impl FrontendKey {
    /// The frontend at `addr:port`.
    pub const fn new(addr: Addr, port: Be16, proto: u8) -> Self {
        Self { addr, port, proto, kind: kind::ADDRESS }
    }

    /// The wildcard of `addr`: answers for the ports no frontend has.
    pub const fn wildcard(addr: Addr) -> Self {
        Self { addr, port: Be16::new(0), proto: 0, kind: kind::ADDRESS }
    }

    /// Whether this is the wildcard of its address.
    pub const fn is_wildcard(&self) -> bool {
        self.proto == 0
    }
}

pod! {
    /// Value of the map `frontends`. Replaced as a whole, never edited in place.
    pub struct Frontend: 40 {
        /// Id of the service port, the agent's own numbering; 0 in a wildcard.
        pub service_id: u32,
        /// Reserved for traffic policy, affinity and algorithm bits; 0.
        pub flags: u32,
        /// First slot of the backends for traffic from anywhere.
        pub base: u32,
        /// Number of those slots; 0 = refuse.
        pub n: u32,
        /// First slot of the backends on this node.
        pub local_base: u32,
        /// Number of those slots.
        pub local_n: u32,
        /// First slot of the Maglev table; 0 when there is none.
        pub maglev_base: u32,
        /// Session affinity timeout in seconds; 0 = no affinity.
        pub affinity_secs: u32,
        /// Zero.
        pub reserved: [u32; 2],
    }
}

pod! {
    /// Value of the array `backends`, indexed by backend id. Id 0 is never used.
    pub struct Backend: 32 {
        /// Address of the endpoint.
        pub addr: Addr,
        /// Target port.
        pub port: Be16,
        /// IP protocol number.
        pub proto: u8,
        /// `state::*`.
        pub state: u8,
        /// Generation: bumped whenever the id gets another meaning or the backend dies, so that a flow that
        /// remembers `(id, gen)` notices.
        pub generation: u32,
        /// Zero.
        pub flags: u32,
        /// ifindex of the Pod's veth on this node, 0 when it is not here or not known.
        pub ifindex: u32,
    }
}

/// Values of [`Backend::state`].
pub mod state {
    /// The id is not in use.
    pub const UNUSED: u8 = 0;
    /// In the slots of its Service: takes new flows.
    pub const ACTIVE: u8 = 1;
    /// Out of the slots, endpoint still alive: established TCP flows go on, UDP flows choose again.
    pub const DRAINING: u8 = 2;
    /// Gone: TCP flows are reset, UDP flows choose again.
    pub const DEAD: u8 = 3;
}
