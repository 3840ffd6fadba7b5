//! The stable codes of causes. Each has a row in docs/src/explain.md; a code never changes its meaning.

use serde::{Serialize, Serializer};

/// A cause, or something worth knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The Service's selector selects no Pod.
    NoEndpointsSelector,
    /// The Service has endpoints, none of them ready.
    NoEndpointsNotReady,
    /// The Service has no endpoint, for a reason that is not known here.
    NoEndpoints,
    /// No container of the Pod declares the port's name.
    NamedPortUnresolved,
    /// Traffic policy Local, and no endpoint on this node.
    NoLocalEndpoint,
    /// A LoadBalancer without an address.
    LbNoAddress,
    /// The Service has no such port.
    UndefinedPort,
    /// The Service is not for clients outside the cluster.
    NoFrontend,
    /// The client is not in `loadBalancerSourceRanges`.
    SourceRange,
    /// The tables do not match the objects yet.
    NotProgrammed,
    /// No process listens on the port.
    BackendRefuses,
    /// A process listens, but only on a loopback address.
    ListensOnLoopback,
    /// Egress is isolated, and nothing allows name lookups.
    DenyEgressDns,
    /// No ingress rule has the client as a peer.
    DenyIngressPeer,
    /// No egress rule has the server as a peer.
    DenyEgressPeer,
    /// The peer's namespace lacks a label.
    DenyNsLabel,
    /// The rule is for another port.
    DenyPort,
    /// The rule is for the Service's port, not the Pod's.
    DenyPortPreNat,
    /// The rule is for the Service's address, not the Pod's.
    DenyIpblockNat,
    /// A rule of a `ClusterNetworkPolicy` denies it.
    DenyCnp,
    /// The Pod is isolated, and no rule covers the flow.
    DefaultDeny,
    /// The Pod is not identified yet.
    PolicyPending,
    /// The policies did not fit the tables.
    PolicyOverflow,
    /// Allowed, perhaps by mistake: two peers in a list are combined with OR.
    HintPeerOr,
    /// A flow is still pinned to a removed backend.
    StaleFlow,
    /// A table recently had no room for new flows.
    TableFull,
    /// A setting of the node prevents delivery.
    HostSetup,
    /// NetworkPolicy never applies to traffic of nodes.
    HostNotSelectable,
    /// Another node decides.
    OtherNode,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 29] = [
        Self::NoEndpointsSelector,
        Self::NoEndpointsNotReady,
        Self::NoEndpoints,
        Self::NamedPortUnresolved,
        Self::NoLocalEndpoint,
        Self::LbNoAddress,
        Self::UndefinedPort,
        Self::NoFrontend,
        Self::SourceRange,
        Self::NotProgrammed,
        Self::BackendRefuses,
        Self::ListensOnLoopback,
        Self::DenyEgressDns,
        Self::DenyIngressPeer,
        Self::DenyEgressPeer,
        Self::DenyNsLabel,
        Self::DenyPort,
        Self::DenyPortPreNat,
        Self::DenyIpblockNat,
        Self::DenyCnp,
        Self::DefaultDeny,
        Self::PolicyPending,
        Self::PolicyOverflow,
        Self::HintPeerOr,
        Self::StaleFlow,
        Self::TableFull,
        Self::HostSetup,
        Self::HostNotSelectable,
        Self::OtherNode,
    ];

    /// The code as it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpointsSelector => "NO_ENDPOINTS_SELECTOR",
            Self::NoEndpointsNotReady => "NO_ENDPOINTS_NOT_READY",
            Self::NoEndpoints => "NO_ENDPOINTS",
            Self::NamedPortUnresolved => "NAMED_PORT_UNRESOLVED",
            Self::NoLocalEndpoint => "NO_LOCAL_ENDPOINT",
            Self::LbNoAddress => "LB_NO_ADDRESS",
            Self::UndefinedPort => "UNDEFINED_PORT",
            Self::NoFrontend => "NO_FRONTEND",
            Self::SourceRange => "SOURCE_RANGE",
            Self::NotProgrammed => "NOT_PROGRAMMED",
            Self::BackendRefuses => "BACKEND_REFUSES",
            Self::ListensOnLoopback => "LISTENS_ON_LOOPBACK",
            Self::DenyEgressDns => "DENY_EGRESS_DNS",
            Self::DenyIngressPeer => "DENY_INGRESS_PEER",
            Self::DenyEgressPeer => "DENY_EGRESS_PEER",
            Self::DenyNsLabel => "DENY_NS_LABEL",
            Self::DenyPort => "DENY_PORT",
            Self::DenyPortPreNat => "DENY_PORT_PRE_NAT",
            Self::DenyIpblockNat => "DENY_IPBLOCK_NAT",
            Self::DenyCnp => "DENY_CNP",
            Self::DefaultDeny => "DEFAULT_DENY",
            Self::PolicyPending => "POLICY_PENDING",
            Self::PolicyOverflow => "POLICY_OVERFLOW",
            Self::HintPeerOr => "HINT_PEER_OR",
            Self::StaleFlow => "STALE_FLOW",
            Self::TableFull => "TABLE_FULL",
            Self::HostSetup => "HOST_SETUP",
            Self::HostNotSelectable => "HOST_NOT_SELECTABLE",
            Self::OtherNode => "OTHER_NODE",
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
