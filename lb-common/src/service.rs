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
use crate::{flags, pod};

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
        /// Zero.
        pub pad: u8,
    }
}

impl FrontendKey {
    /// The frontend at `addr:port`.
    pub const fn new(addr: Addr, port: Be16, proto: u8) -> Self {
        Self { addr, port, proto, pad: 0 }
    }

    /// The wildcard of `addr`: answers for the ports no frontend has.
    pub const fn wildcard(addr: Addr) -> Self {
        Self { addr, port: Be16::new(0), proto: 0, pad: 0 }
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
        /// What its Service asks for.
        pub flags: FrontendFlags,
        /// First slot of the backends for clients in the cluster, and for all others unless `EXTERNAL_LOCAL` is set.
        pub base: u32,
        /// Number of those slots; 0 = refuse, or with `ELSEWHERE` drop.
        pub n: u32,
        /// First slot of the backends for clients outside the cluster with `EXTERNAL_LOCAL`.
        pub local_base: u32,
        /// Number of those slots; 0 = drop if there are endpoints elsewhere, else refuse.
        pub local_n: u32,
        /// First slot of the Maglev table, for clients outside the cluster.
        pub maglev_base: u32,
        /// Number of those slots; 0 when there is no table.
        pub maglev_n: u32,
        /// Session affinity timeout in seconds; 0 = no affinity.
        pub affinity_secs: u32,
        /// Zero.
        pub reserved: u32,
    }
}

flags! {
    /// Bits of [`Frontend::flags`].
    pub struct FrontendFlags: u32 {
        /// An address for clients outside the cluster: of a node, a load balancer, `spec.externalIPs`.
        EXTERNAL = 1 << 0;
        /// `externalTrafficPolicy: Local`: clients outside the cluster get the backends of this node only.
        EXTERNAL_LOCAL = 1 << 1;
        /// The traffic policy left no backend, but the Service has some on other nodes: drop instead of refusing, so that
        /// whoever balances over the nodes tries another one (as kube-proxy).
        ELSEWHERE = 1 << 2;
        /// `spec.loadBalancerSourceRanges`: only clients in the map `source_ranges` may pass.
        SOURCE_RANGES = 1 << 3;
        /// Of two random backends the one with fewer live flows is taken.
        LEAST_CONNECTIONS = 1 << 4;
        /// A loopback address: for sockets of the host only. A packet to it is never ours (CVE-2020-8558).
        SOCKET_ONLY = 1 << 5;
        /// A wildcard that only says that some Service has the address (of a load balancer, `spec.externalIPs`): no Pod may
        /// send from it. Packets to its other ports are not refused, unlike those to a ClusterIP.
        ADDRESS_ONLY = 1 << 6;
        /// Flows of Pods to it go through the IP stack ([`crate::past`]).
        BY_STACK = 1 << 7;
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
        /// Where it is listed, and what it is.
        pub flags: BackendFlags,
        /// Zero.
        pub reserved: u32,
    }
}

flags! {
    /// Bits of [`Backend::flags`]: in which lists of its Service the backend is, and what it is. Session affinity sends a client
    /// to a backend only if the list for this client contains the backend.
    pub struct BackendFlags: u32 {
        /// In the slots from [`super::Frontend::base`].
        CLUSTER = 1 << 0;
        /// In the slots from [`super::Frontend::local_base`].
        LOCAL = 1 << 1;
        /// Not a Pod's: nothing tells when it ends, so its connections last as long as they will. For the agent.
        NO_POD = 1 << 2;
    }
}

pod! {
    /// Key of the map `affinity`: a client of a service port (`sessionAffinity: ClientIP`).
    pub struct AffinityKey: 20 {
        /// The client's address; of a host process the node's.
        pub client: Addr,
        /// Service port; it has one family, so families have affinities of their own.
        pub service_id: u32,
    }
}

pod! {
    /// Value of the map `affinity`.
    pub struct Affinity: 16 {
        /// Index in the map `backends`.
        pub backend_id: u32,
        /// Generation of the backend when it was chosen.
        pub backend_gen: u32,
        /// The client's last new flow: the low 32 bits of the kernel's tick counter (jiffies).
        pub last: u32,
        /// Its high 32 bits: the low ones come again after seven weeks of 1,000 ticks a second.
        pub last_high: u32,
    }
}

impl Affinity {
    /// For a client whose last new flow was at this tick.
    pub const fn new(backend_id: u32, backend_gen: u32, tick: u64) -> Self {
        Self { backend_id, backend_gen, last: tick as u32, last_high: (tick >> 32) as u32 }
    }

    /// The tick of the client's last new flow.
    pub const fn tick(&self) -> u64 {
        (self.last_high as u64) << 32 | self.last as u64
    }
}

/// Whether a client that was last seen at `last` has lost its affinity at `now` (both ticks): the limit itself is still
/// inside, as in kube-proxy's `recent --seconds`.
pub const fn affinity_is_over(last: u64, now: u64, timeout_secs: u32, hz: u32) -> bool {
    // A tick from the future (another CPU's) is not old.
    now.saturating_sub(last) > timeout_secs as u64 * hz as u64
}

pod! {
    /// What the LPM map `source_ranges` matches behind the prefix length: a service port, then a client. A range of
    /// n bits has prefix length 32 + n, for IPv4 32 + 96 + n.
    pub struct SourceRange: 20 {
        /// Service port.
        pub service_id: u32,
        /// The client's address.
        pub client: Addr,
    }
}

/// Slots of a Maglev table, a prime (Eisenbud et al., NSDI 2016, section 3.4): when one of a hundred backends leaves,
/// less than 5 % of the flows change theirs.
pub const MAGLEV_SLOTS: u32 = 1021;

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

#[cfg(test)]
mod tests {
    use super::{Affinity, affinity_is_over};

    #[test]
    fn affinity_ends_after_its_limit_and_never_begins_again() {
        for now in [5_000_000_u64, (1 << 32) + 100, 1 << 32, u64::from(u32::MAX)] {
            let over = |last: u64| affinity_is_over(last, now, 10, 250);
            assert!(!over(now));
            assert!(!over(now - 2500), "the limit itself is inside");
            assert!(over(now - 2501));
            assert!(!over(now + 1), "a tick ahead is not old");
        }
        let weeks = 1 << 32;
        for age in [weeks / 2, weeks - 1, weeks, weeks + 1, 3 * weeks] {
            let (last, now) = (7 * weeks + 5, 7 * weeks + 5 + age);
            let affinity = Affinity::new(2, 3, last);
            assert_eq!((affinity.last, affinity.last_high, affinity.tick()), (5, 7, last));
            assert!(affinity_is_over(affinity.tick(), now, 86_400, 1000), "{age}");
        }
        assert!(
            !affinity_is_over(0, 86_400_000, 86_400, 1000),
            "the longest limit, the finest clock"
        );
        assert!(affinity_is_over(0, 86_400_001, 86_400, 1000));
    }
}
