//! Why a packet did not go on, and the counters of the slow path.
//!
//! Numbers are stable: they are in the maps, in metrics and in tickets. New ones are appended, none is reused.

/// Why a packet was not delivered. One counter per direction each, and an event for a sample of the packets.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// The Service has no usable endpoint: refused with a TCP reset or an ICMP port unreachable.
    NoEndpoints = 1,
    /// The address is a ClusterIP, but no Service port has this port: refused likewise.
    UndefinedPort = 2,
    /// A TCP flow whose backend is gone: reset.
    BackendGone = 3,
    /// A mid-flow TCP packet to a Service whose flow has no entry: its backend cannot be found again; reset.
    UnknownFlow = 4,
    /// No free tuple towards any backend: every try met another live flow.
    TupleExhausted = 5,
    /// The flow needs translation, but its conntrack entry could not be written.
    ConntrackFull = 6,
    /// A helper failed while the packet was being rewritten.
    RewriteFailed = 7,
    /// A later fragment to an address that needs translation, of a datagram whose first one was not seen.
    FragmentUnknown = 8,
    /// The traffic policy wants a backend on this node; there is none, but other nodes have some: dropped, so that
    /// whoever balances over the nodes tries another.
    NoLocalEndpoints = 9,
    /// The client is not in `spec.loadBalancerSourceRanges`.
    SourceRange = 10,
    /// The address is in the range of ClusterIPs, and no Service has it: dropped, since it would leave by the default
    /// route and come back.
    UnallocatedIp = 11,
    /// No free source port towards the backend: every try met another live flow.
    MasqueradeExhausted = 12,
    /// The routing table has no way to the backend, or back to the client.
    NoRoute = 13,
    /// Too big for the way to the backend: answered with the size that fits (RFC 1191, RFC 8201).
    TooBig = 14,
    /// Its hops are used up: answered (RFC 792, RFC 4443).
    TtlExceeded = 15,
    /// Some NetworkPolicy isolates the Pod in this direction, and no rule of any allows the flow.
    PolicyIsolated = 16,
    /// A rule of a ClusterNetworkPolicy denies the flow.
    PolicyDenied = 17,
    /// The Pod behind the device is not known yet, and policies may isolate it.
    PolicyPending = 18,
    /// The policies of the Pod did not fit the tables: nothing is allowed.
    PolicyOverflow = 19,
    /// The source address is not one of the Pod's own; at the node's devices: it is this node's, or that of one of its
    /// Pods.
    SpoofedSource = 20,
    /// Neither IPv4, IPv6 nor ARP, or with a VLAN tag: no rule is about it.
    NotIp = 21,
    /// An address that no packet has: IPv4-mapped, loopback, unspecified or multicast source, mapped destination.
    BadAddress = 22,
    /// It cannot be told what the packet is for: a fragment without its transport header or that overlaps it, extension
    /// headers that cannot be walked; where policies concern the Pod, also AH and ESP.
    Unreadable = 23,
    /// A TCP packet of a connection whose beginning was not seen, and policies do not allow both directions.
    NotOpened = 24,
    /// For the address of another Pod than the one behind the device.
    NotForPod = 25,
    /// Encapsulated for this node, which would send on what is in it as its own.
    Encapsulated = 26,
    /// A router advertisement or redirect of a Pod, or neighbour discovery in another's name.
    ForgedNeighbor = 27,
    /// The Pod has used up its budget of new flows.
    PodBudget = 28,
    /// The link-layer source is that of another Pod on a bridge of this node, or of this node.
    SpoofedMac = 29,
    /// An ICMP error of a Pod about a packet that was not for it.
    ForgedError = 30,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 30] = [
        Self::NoEndpoints,
        Self::UndefinedPort,
        Self::BackendGone,
        Self::UnknownFlow,
        Self::TupleExhausted,
        Self::ConntrackFull,
        Self::RewriteFailed,
        Self::FragmentUnknown,
        Self::NoLocalEndpoints,
        Self::SourceRange,
        Self::UnallocatedIp,
        Self::MasqueradeExhausted,
        Self::NoRoute,
        Self::TooBig,
        Self::TtlExceeded,
        Self::PolicyIsolated,
        Self::PolicyDenied,
        Self::PolicyPending,
        Self::PolicyOverflow,
        Self::SpoofedSource,
        Self::NotIp,
        Self::BadAddress,
        Self::Unreadable,
        Self::NotOpened,
        Self::NotForPod,
        Self::Encapsulated,
        Self::ForgedNeighbor,
        Self::PodBudget,
        Self::SpoofedMac,
        Self::ForgedError,
    ];

    /// The reason with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }

    /// The name in metrics and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "NO_ENDPOINTS",
            Self::UndefinedPort => "UNDEFINED_PORT",
            Self::BackendGone => "BACKEND_GONE",
            Self::UnknownFlow => "UNKNOWN_FLOW",
            Self::TupleExhausted => "TUPLE_EXHAUSTED",
            Self::ConntrackFull => "CONNTRACK_FULL",
            Self::RewriteFailed => "REWRITE_FAILED",
            Self::FragmentUnknown => "FRAGMENT_UNKNOWN",
            Self::NoLocalEndpoints => "NO_LOCAL_ENDPOINTS",
            Self::SourceRange => "SOURCE_RANGE",
            Self::UnallocatedIp => "UNALLOCATED_IP",
            Self::MasqueradeExhausted => "MASQUERADE_EXHAUSTED",
            Self::NoRoute => "NO_ROUTE",
            Self::TooBig => "TOO_BIG",
            Self::TtlExceeded => "TTL_EXCEEDED",
            Self::PolicyIsolated => "POLICY_ISOLATED",
            Self::PolicyDenied => "POLICY_DENIED",
            Self::PolicyPending => "POLICY_PENDING",
            Self::PolicyOverflow => "POLICY_OVERFLOW",
            Self::SpoofedSource => "SPOOFED_SOURCE",
            Self::NotIp => "NOT_IP",
            Self::BadAddress => "BAD_ADDRESS",
            Self::Unreadable => "UNREADABLE",
            Self::NotOpened => "NOT_OPENED",
            Self::NotForPod => "NOT_FOR_POD",
            Self::Encapsulated => "ENCAPSULATED",
            Self::ForgedNeighbor => "FORGED_NEIGHBOR",
            Self::PodBudget => "POD_BUDGET",
            Self::SpoofedMac => "SPOOFED_MAC",
            Self::ForgedError => "FORGED_ERROR",
        }
    }

    /// What the operator can do about it, one sentence.
    pub const fn what_to_do(self) -> &'static str {
        match self {
            Self::NoEndpoints => "check the Service's selector and the readiness of its Pods",
            Self::UndefinedPort => "use a port that the Service declares in spec.ports",
            Self::BackendGone => {
                "none: the endpoint was removed and its open connections were reset"
            }
            Self::UnknownFlow => {
                "none if it follows a first start or a restart with new maps: clients reconnect"
            }
            Self::TupleExhausted => {
                "spread the client's connections: one of its source ports is in use with every backend"
            }
            Self::ConntrackFull => "check `lbctl maps`; raise --ct-entries",
            Self::RewriteFailed => "report a bug and describe the packet",
            Self::FragmentUnknown => "lower the sender's packet size below the path MTU",
            Self::NoLocalEndpoints => {
                "send to a node that has an endpoint, or set the Service's traffic policy to Cluster"
            }
            Self::SourceRange => "add the client to spec.loadBalancerSourceRanges",
            Self::UnallocatedIp => {
                "use the address of an existing Service: this one was deleted or mistyped"
            }
            Self::MasqueradeExhausted => {
                "widen --masquerade-ports, or spread the clients over more nodes"
            }
            Self::NoRoute => "run `ip route get ADDRESS` on the node",
            Self::TooBig => "none: the sender was sent an ICMP error with the size that fits",
            Self::TtlExceeded => "look for a routing loop, unless a traceroute is running",
            Self::PolicyIsolated => {
                "run `lbctl policy explain` to see which NetworkPolicy isolates the Pod and why its rules do not match"
            }
            Self::PolicyDenied => {
                "run `lbctl policy explain` to see which ClusterNetworkPolicy denies it"
            }
            Self::PolicyPending => {
                "none: the Pod can send as soon as it is identified; `lbctl pods` shows it"
            }
            Self::PolicyOverflow => {
                "check `lbctl status`: the policies of the Pod need too many rules"
            }
            Self::SpoofedSource => {
                "if the Pod is a router, VPN or virtual machine, annotate it with the CIDRs it may send from"
            }
            Self::NotIp => "none: Pods may only send IPv4, IPv6 and ARP without VLAN tags",
            Self::BadAddress => "none: a sender uses an address that cannot be answered",
            Self::Unreadable => {
                "lower the sender's packet size below the path MTU; IPsec needs UDP encapsulation (port 4500)"
            }
            Self::NotOpened => {
                "none if it is rare or follows a restart with new maps: clients reconnect"
            }
            Self::NotForPod => {
                "none if it is rare: a bridge floods frames for unknown MAC addresses"
            }
            Self::Encapsulated => "none: only nodes may send tunnel packets to a node",
            Self::ForgedNeighbor => "inspect the Pod: it claims to be a router or another host",
            Self::PodBudget => {
                "inspect the Pod: it opens flows faster than --pod-new-flows allows; raise the limit if that is intended"
            }
            Self::SpoofedMac => {
                "inspect the Pod: it sends frames from the MAC address of another Pod or of the node"
            }
            Self::ForgedError => {
                "inspect the Pod: it sends ICMP errors about packets that it did not receive; annotate it if it is a router"
            }
        }
    }
}

/// Counters beside the drops: how often the slow path ran.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counter {
    /// New flows without translation, tracked at a Pod's veth.
    FlowPlain = 0,
    /// New flows from a Pod to a Service.
    FlowService = 1,
    /// New flows of a Pod to itself through a Service.
    FlowHairpin = 2,
    /// Flows taken over in mid-flow.
    FlowPickedUp = 3,
    /// Flows that chose another backend because theirs had left.
    FlowMoved = 4,
    /// Entries that could not be written for flows that need no translation: passed untracked.
    Untracked = 5,
    /// Flows that got another source port towards the backend, since theirs was taken.
    PortMapped = 6,
    /// Connections and datagrams of host sockets sent to a backend.
    SocketTranslated = 7,
    /// Connections and datagrams of host sockets refused.
    SocketRefused = 8,
    /// Events that did not fit the ring buffer.
    EventLost = 9,
    /// Events left out by the sampling.
    EventSuppressed = 10,
    /// First fragments whose ports could not be remembered.
    FragmentForgotten = 11,
    /// New flows from outside to a Pod of this node, the client's address kept.
    FlowExternal = 12,
    /// New flows from outside to another node, from an address and port of this one.
    FlowMasqueraded = 13,
    /// New flows from outside to a process of this host.
    FlowToHost = 14,
    /// New flows sent to the backend that their client had before.
    AffinityHit = 15,
    /// Affinities that could not be written.
    AffinityForgotten = 16,
    /// Entries of living translated flows that others had evicted, and that were put back.
    EntryRestored = 17,
    /// Connections without translation whose entry went with their last packet.
    PlainClosed = 18,
    /// New flows of Pods whose budget was used up: passed without an entry where nothing depends on it, else dropped.
    OverBudget = 19,
    /// Masqueraded flows that got the port of an earlier one, which was done or unanswered, since none that was tried
    /// was free.
    PortTakenOver = 20,
    /// IPv4 packets from outside, and answers to them, cut into smaller ones: bigger than the MTU on the way, and their
    /// sender allows it. A packet of four pieces is cut three times.
    PacketCut = 21,
}

impl Counter {
    /// All counters, in the order of their numbers.
    pub const ALL: [Self; 22] = [
        Self::FlowPlain,
        Self::FlowService,
        Self::FlowHairpin,
        Self::FlowPickedUp,
        Self::FlowMoved,
        Self::Untracked,
        Self::PortMapped,
        Self::SocketTranslated,
        Self::SocketRefused,
        Self::EventLost,
        Self::EventSuppressed,
        Self::FragmentForgotten,
        Self::FlowExternal,
        Self::FlowMasqueraded,
        Self::FlowToHost,
        Self::AffinityHit,
        Self::AffinityForgotten,
        Self::EntryRestored,
        Self::PlainClosed,
        Self::OverBudget,
        Self::PortTakenOver,
        Self::PacketCut,
    ];

    /// The name in metrics and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowPlain => "flow_plain",
            Self::FlowService => "flow_service",
            Self::FlowHairpin => "flow_hairpin",
            Self::FlowPickedUp => "flow_picked_up",
            Self::FlowMoved => "flow_moved",
            Self::Untracked => "untracked",
            Self::PortMapped => "port_mapped",
            Self::SocketTranslated => "socket_translated",
            Self::SocketRefused => "socket_refused",
            Self::EventLost => "event_lost",
            Self::EventSuppressed => "event_suppressed",
            Self::FragmentForgotten => "fragment_forgotten",
            Self::FlowExternal => "flow_external",
            Self::FlowMasqueraded => "flow_masqueraded",
            Self::FlowToHost => "flow_to_host",
            Self::AffinityHit => "affinity_hit",
            Self::AffinityForgotten => "affinity_forgotten",
            Self::EntryRestored => "entry_restored",
            Self::PlainClosed => "plain_closed",
            Self::OverBudget => "over_budget",
            Self::PortTakenOver => "port_taken_over",
            Self::PacketCut => "packet_cut",
        }
    }

    /// Index into the map `counters`.
    pub const fn index(self) -> u32 {
        128 + self as u32
    }
}

/// The verdict of the policies on a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Allowed.
    Allow = 0,
    /// Denied.
    Deny = 1,
    /// Allowed, but policies in shadow mode would deny it.
    WouldDeny = 2,
    /// Denied, but would not be with the policies in shadow mode.
    WouldAllow = 3,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Allow, Self::Deny, Self::WouldDeny, Self::WouldAllow];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::WouldDeny => "would_deny",
            Self::WouldAllow => "would_allow",
        }
    }
}

/// Returns the index into the map `counters` of new flows with this verdict. `tier` is the tier of the verdict
/// ([`crate::policy::tier`]), for `WouldDeny` and `WouldAllow` that of the shadow verdict. `ingress` is the direction that the
/// Pod sees.
pub const fn judged_index(outcome: Outcome, tier: u8, ingress: bool) -> u32 {
    192 + (outcome as u32 * 4 + (tier & 3) as u32) * 2 + ingress as u32
}

/// Returns the index into the map `counters` of packets dropped for `reason`. `ingress` is the direction that the Pod sees.
pub const fn drop_index(reason: DropReason, ingress: bool) -> u32 {
    reason as u32 * 2 + ingress as u32
}

#[cfg(test)]
mod tests {
    use super::{Counter, DropReason, Outcome, drop_index, judged_index};
    use crate::limits;

    #[test]
    fn numbers_are_dense_and_stable() {
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i + 1);
            assert_eq!(DropReason::from_number(reason as u8), Some(reason));
            assert!(drop_index(reason, true) < 128, "drops and counters must not meet");
        }
        assert_eq!(DropReason::from_number(0), None);
        for (i, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, i);
            assert!(counter.index() < judged_index(Outcome::Allow, 0, false));
        }
        assert!(judged_index(Outcome::WouldAllow, 3, true) < limits::COUNTERS);
    }
}
