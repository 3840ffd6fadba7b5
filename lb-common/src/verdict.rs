//! Why a packet did not go on, and the counters of the slow path.
//!
//! Numbers are stable: they are in the maps, in metrics and in tickets. New ones are appended, none is reused.

use crate::conntrack::CtFlags;
use crate::listed;

listed! {
    /// Why a packet was not delivered. One counter per direction each, and an event for a sample of the packets.
    #[repr(u8)]
    pub enum DropReason {
        NoEndpoints = 1: "NO_ENDPOINTS",
            "The Service has no usable endpoint. Refused: TCP reset or ICMP port unreachable.",
            "check the Service's selector and the readiness of its Pods";
        UndefinedPort = 2: "UNDEFINED_PORT",
            "The address is a ClusterIP, but no port of the Service has this number. Refused in the same way.",
            "use a port that the Service declares in spec.ports";
        BackendGone = 3: "BACKEND_GONE",
            "The backend of a TCP connection was removed. Reset.",
            "none: the endpoint was removed and its open connections were reset";
        UnknownFlow = 4: "UNKNOWN_FLOW",
            "A TCP packet to a Service belongs to no known connection, so its backend cannot be found. Reset.",
            "none if it follows a first start or a restart with new maps: clients reconnect";
        TupleExhausted = 5: "TUPLE_EXHAUSTED",
            "All tries for a new flow met an existing flow with the same addresses and ports.",
            "spread the client's connections: one of its source ports is in use with every backend";
        ConntrackFull = 6: "CONNTRACK_FULL",
            "The flow needs translation, but its conntrack entry could not be written.",
            "check `lbctl maps`; raise --ct-entries";
        RewriteFailed = 7: "REWRITE_FAILED",
            "A kernel function failed while the packet was rewritten.",
            "report a bug and describe the packet";
        FragmentUnknown = 8: "FRAGMENT_UNKNOWN",
            "A fragment to an address that needs translation, whose first fragment was not seen.",
            "lower the sender's packet size below the path MTU";
        NoLocalEndpoints = 9: "NO_LOCAL_ENDPOINTS",
            "The traffic policy requires a local backend; there are backends on other nodes only. Dropped, so that a load balancer tries another node.",
            "send to a node that has an endpoint, or set the Service's traffic policy to Cluster";
        SourceRange = 10: "SOURCE_RANGE",
            "The client is not in `spec.loadBalancerSourceRanges`.",
            "add the client to spec.loadBalancerSourceRanges";
        UnallocatedIp = 11: "UNALLOCATED_IP",
            "The address is in the ClusterIP range, but no Service has it. Otherwise the packet would leave by the default route and come back.",
            "use the address of an existing Service: this one was deleted or mistyped";
        MasqueradeExhausted = 12: "MASQUERADE_EXHAUSTED",
            "No masquerade port towards the backend is free.",
            "widen --masquerade-ports, or spread the clients over more nodes";
        NoRoute = 13: "NO_ROUTE",
            "The routing table has no route to the backend, or back to the client.",
            "run `ip route get ADDRESS` on the node";
        TooBig = 14: "TOO_BIG",
            "The packet is too large for the path to the backend. Answered with the size that fits (RFC 1191, RFC 8201).",
            "none: the sender was sent an ICMP error with the size that fits";
        TtlExceeded = 15: "TTL_EXCEEDED",
            "The hop limit was reached. Answered (RFC 792, RFC 4443).",
            "look for a routing loop, unless a traceroute is running";
        PolicyIsolated = 16: "POLICY_ISOLATED",
            "A NetworkPolicy isolates the Pod in this direction, and no rule allows the flow.",
            "run `lbctl explain SRC DST` (`kubectl lb explain`) with the ends of the example: it says which NetworkPolicy isolates the Pod, and why its rules do not match";
        PolicyDenied = 17: "POLICY_DENIED",
            "A rule of a ClusterNetworkPolicy denies the flow.",
            "run `lbctl explain SRC DST` (`kubectl lb explain`) with the ends of the example: it says which ClusterNetworkPolicy denies it";
        PolicyPending = 18: "POLICY_PENDING",
            "The Pod behind the device is not identified yet, and policies may isolate it.",
            "none: the Pod can send as soon as it is identified; `lbctl pods` shows it";
        PolicyOverflow = 19: "POLICY_OVERFLOW",
            "The policies of the Pod did not fit into the tables. Nothing is allowed.",
            "check `lbctl status`: the policies of the Pod need too many rules";
        SpoofedSource = 20: "SPOOFED_SOURCE",
            "At a Pod: the source address is not one of its own. At other devices: the source is this node or one of its Pods.",
            "if the Pod is a router, VPN or virtual machine, annotate it with the CIDRs it may send from";
        NotIp = 21: "NOT_IP",
            "Not IPv4, IPv6 or ARP, or with a VLAN tag.",
            "none: Pods may only send IPv4, IPv6 and ARP without VLAN tags";
        BadAddress = 22: "BAD_ADDRESS",
            "An address that no packet may have: an IPv4-mapped, loopback, unspecified or multicast source, or a mapped destination.",
            "none: a sender uses an address that cannot be answered";
        Unreadable = 23: "UNREADABLE",
            "A fragment without its transport header or overlapping it, or IPv6 extension headers that cannot be parsed. Where policies apply, also AH and ESP.",
            "lower the sender's packet size below the path MTU; IPsec needs UDP encapsulation (port 4500)";
        NotOpened = 24: "NOT_OPENED",
            "A TCP packet of a connection without a known beginning, and policies do not allow both directions.",
            "none if it is rare or follows a restart with new maps: clients reconnect";
        NotForPod = 25: "NOT_FOR_POD",
            "The destination is another Pod than the one behind the device.",
            "none if it is rare: a bridge floods frames for unknown MAC addresses";
        Encapsulated = 26: "ENCAPSULATED",
            "A tunnel packet for this node, which would forward its contents as its own.",
            "none: only nodes may send tunnel packets to a node";
        ForgedNeighbor = 27: "FORGED_NEIGHBOR",
            "A router advertisement or redirect from a Pod, or ARP or neighbor discovery for another address.",
            "inspect the Pod: it claims to be a router or another host";
        PodBudget = 28: "POD_BUDGET",
            "The Pod has used up its budget of new flows.",
            "inspect the Pod: it opens flows faster than --pod-new-flows allows; raise the limit if that is intended";
        SpoofedMac = 29: "SPOOFED_MAC",
            "The link-layer source belongs to another Pod on a bridge of this node, or to the node.",
            "inspect the Pod: it sends frames from the MAC address of another Pod or of the node";
        ForgedError = 30: "FORGED_ERROR",
            "An ICMP error from a Pod about a packet that it did not receive.",
            "inspect the Pod: it sends ICMP errors about packets that it did not receive; annotate it if it is a router";
    }
}

impl DropReason {
    /// The reason with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }
}

listed! {
    /// Counters beside the drops: how often the slow path ran.
    #[repr(u8)]
    pub enum Counter {
        FlowPlain = 0: "flow_plain",
            "New flows without translation, tracked at a Pod's veth.";
        FlowService = 1: "flow_service",
            "New flows from a Pod to a Service.";
        FlowHairpin = 2: "flow_hairpin",
            "New flows of a Pod to itself through a Service.";
        FlowPickedUp = 3: "flow_picked_up",
            "Flows taken over in mid-flow.";
        FlowMoved = 4: "flow_moved",
            "Flows that chose another backend because theirs had left.";
        Untracked = 5: "untracked",
            "Entries that could not be written for flows that need no translation: passed untracked.";
        PortMapped = 6: "port_mapped",
            "Flows that got another source port towards the backend, since theirs was taken.";
        SocketTranslated = 7: "socket_translated",
            "Connections and datagrams of host sockets sent to a backend.";
        SocketRefused = 8: "socket_refused",
            "Connections and datagrams of host sockets refused.";
        EventLost = 9: "event_lost",
            "Events that did not fit the ring buffer.";
        EventSuppressed = 10: "event_suppressed",
            "Events left out by the sampling.";
        FragmentForgotten = 11: "fragment_forgotten",
            "First fragments whose ports could not be remembered.";
        FlowExternal = 12: "flow_external",
            "New flows from outside to a Pod of this node, the client's address kept.";
        FlowMasqueraded = 13: "flow_masqueraded",
            "New flows from outside to another node, from an address and port of this one.";
        FlowToHost = 14: "flow_to_host",
            "New flows from outside to a process of this host.";
        AffinityHit = 15: "affinity_hit",
            "New flows sent to the backend that their client had before.";
        AffinityForgotten = 16: "affinity_forgotten",
            "Affinities that could not be written.";
        EntryRestored = 17: "entry_restored",
            "Entries of living translated flows that others had evicted, and that were put back.";
        PlainClosed = 18: "plain_closed",
            "Connections without translation whose entry went with their last packet.";
        OverBudget = 19: "over_budget",
            "New flows of Pods whose budget was used up: passed without an entry where nothing depends on it, else dropped.";
        PortTakenOver = 20: "port_taken_over",
            "Masqueraded flows that took over the port of a finished or unanswered flow because all tried ports were in use.";
        PacketCut = 21: "packet_cut",
            "IPv4 packets from outside, and answers to them, cut into smaller ones: bigger than the MTU on the way, and their sender allows it. A packet of four pieces is cut three times.";
        FlowVeth = 22: "flow_veth",
            "New flows between Pods of this node that go past the host's IP stack, to the host's end of the receiver's veth.";
        PairClosed = 23: "pair_closed",
            "Translated connections whose two entries went with their last packet.";
        FlowStackNode = 24: "flow_stack_node",
            "New flows between Pods of this node that are left to the host's IP stack for a reason of the node: see `lbctl status`.";
        FlowStackPod = 25: "flow_stack_pod",
            "The same for a reason of one of the Pods: see `lbctl pods -o wide`.";
        FlowStackService = 26: "flow_stack_service",
            "The same for the annotation `lb-agent.io/path` of the Service.";
        FlowPeer = 27: "flow_peer",
            "New flows between Pods of this node that go past the host's IP stack and the host's end of the receiver's veth.";
        FlowHop = 28: "flow_hop",
            "New flows between Pods of this node and Pods of other nodes that go past this host's IP stack and netfilter.";
    }
}

impl Counter {
    /// Where a new translated flow is counted.
    pub const fn of_opened(flags: CtFlags) -> Self {
        if flags.contains(CtFlags::MASQUERADED) {
            Self::FlowMasqueraded
        } else if flags.contains(CtFlags::TO_HOST) {
            Self::FlowToHost
        } else if flags.contains(CtFlags::EXTERNAL) {
            Self::FlowExternal
        } else if flags.contains(CtFlags::HAIRPIN) {
            Self::FlowHairpin
        } else {
            Self::FlowService
        }
    }

    /// Index into the map `counters`.
    pub const fn index(self) -> u32 {
        128 + self as u32
    }
}

listed! {
    /// The verdict of the policies on a new flow.
    pub enum Outcome {
        Allow = 0: "allow", "Allowed.";
        Deny = 1: "deny", "Denied.";
        WouldDeny = 2: "would_deny", "Allowed, but policies in shadow mode would deny it.";
        WouldAllow = 3: "would_allow", "Denied, but would not be with the policies in shadow mode.";
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
