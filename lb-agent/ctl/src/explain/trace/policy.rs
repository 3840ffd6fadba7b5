//! What the policies of one Pod say of a flow, in one direction.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{HopState, Who, names};
use crate::attribution::DecidedBy;
use crate::explain::code::Code;
use lb_core::admin::context::Lacking;
use lb_core::cluster::{Name, Peer, PortMatch, Prefix};
use lb_core::model::policy::PolicyDirection;

/// The policies of one Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyHop {
    /// Whether the flow enters the Pod or leaves it.
    pub direction: PolicyDirection,
    /// The Pod.
    pub subject: Who,
    pub verdict: PolicyVerdict,
    /// What the policies in shadow mode would say, if that is different.
    pub shadow: Option<Shadow>,
    /// The other node that evaluates them, if this is what the agent's records say of it.
    pub by_record: Option<Arc<str>>,
}

/// What the policies of a Pod say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyVerdict {
    /// There are no policies in the cluster.
    NoPolicies,
    /// None selects the Pod in this direction.
    NotSelected,
    /// The source is a node, to whose traffic they never apply.
    FromHost,
    /// The destination is a node, to which they never apply.
    ToHost,
    /// The source is the Pod's own node, which is always allowed.
    FromOwnNode,
    /// The source is the Pod itself, which is checked on egress only.
    FromItself,
    /// The source has no address of the family yet.
    NoAddress,
    /// The Pod runs on this node, and its device is not known yet.
    NoDevice,
    /// Another node evaluates them.
    OtherNode {
        /// That node, if known.
        node: Option<Arc<str>>,
        /// How many policies select the Pod, if known.
        policies: Option<usize>,
    },
    /// They allow the flow.
    Allowed(Allowed),
    /// They deny it.
    Denied(Box<Denial>),
}

/// Why policies allow a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allowed {
    /// A rule does.
    Rule {
        /// Which one.
        #[serde(with = "names::decided_by")]
        by: DecidedBy,
        /// How it may have been written by mistake.
        mistake: Option<Box<PeerOr>>,
    },
    /// A Pod may always reach itself.
    Itself,
    /// No enforced policy selects the Pod.
    NotSelected,
    /// No rule matches, and the Pod is not isolated.
    NotIsolated,
}

/// Two peers of one rule, of which the flow matches only the one that is all Pods of namespaces. The list means either;
/// a single peer with both selectors would mean both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerOr {
    pub policy: Name,
    /// Index of the rule.
    pub rule: u32,
    /// Index of the peer that matches.
    pub at: u32,
    pub peer: Who,
    /// The peer that matches.
    pub matches: Peer,
    /// The peer that does not.
    pub other: Peer,
}

/// What policies in shadow mode would say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// Which of them.
    #[serde(with = "names::decided_by")]
    pub by: DecidedBy,
    /// Whether they would deny the flow.
    pub denies: bool,
}

/// Why policies deny a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// The group that denies it; `None` = it is in the maps of another node.
    pub group: Option<u32>,
    /// The number of its rule that does; `None` = no rule applies.
    pub rule: Option<u32>,
    /// The policies that decided.
    #[serde(with = "names::decided_by")]
    pub by: DecidedBy,
    pub peer: Who,
    /// Where the flow goes, as policies see it.
    pub at: SocketAddr,
    /// Why.
    pub cause: Cause,
}

/// The cause of a denial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A rule of a ClusterNetworkPolicy.
    ClusterPolicy,
    /// The policies do not fit in the maps.
    NoRoom,
    /// The Pod is not identified yet.
    Pending,
    /// The records allow it; the maps do not reflect that yet.
    NotProgrammed,
    /// The Pod is isolated, and why no rule allows the flow is not known: no agent responds.
    Unexplained,
    /// The Pod is isolated by policies without a rule for this direction.
    NoRules,
    /// The Pod is isolated, and this rule comes closest to the flow.
    Closest(Closest),
}

/// The rule that comes closest to a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closest {
    /// Its policy, a NetworkPolicy.
    pub policy: Name,
    pub rule: u32,
    pub lacks: Lacks,
}

/// What a rule lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lacks {
    /// Another port.
    Port(PortLack),
    /// A valid peer: it has none.
    ValidPeer,
    /// Another peer.
    Peer {
        /// Index of the peer that comes closest.
        at: u32,
        /// That peer.
        wants: Peer,
        /// Why it does not match.
        why: PeerLack,
    },
}

/// Why the ports of a rule do not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortLack {
    /// The destination declares no port with this name.
    Unnamed {
        /// Index of the port.
        at: u32,
        name: Arc<str>,
    },
    /// The rule has the port of the Service.
    OfService {
        /// Index of the port.
        at: u32,
        wants: PortMatch,
        /// What is dialed.
        through: SocketAddr,
    },
    /// They are other ports.
    Other(Vec<PortMatch>),
}

/// Why a peer of a rule does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerLack {
    /// The range has the address of the Service.
    OfService(IpAddr),
    /// The namespace of the other end lacks a label.
    NamespaceLabel(Lacking),
    /// The other end lacks labels.
    Labels(Vec<Lacking>),
    /// The other end is in another namespace than the policy.
    Namespace,
    /// The other end is not a Pod.
    NotPod,
    /// The other end is not a node.
    NotNode,
    /// The other end is not in the range.
    Block,
    /// The other end is in an excluded range.
    Except(Prefix),
}

/// Port of name lookups.
const DNS: u16 = 53;

impl PolicyVerdict {
    pub(super) const fn state(&self) -> HopState {
        match self {
            Self::NoPolicies
            | Self::NotSelected
            | Self::FromHost
            | Self::ToHost
            | Self::FromOwnNode
            | Self::FromItself
            | Self::Allowed(_) => HopState::Ok,
            Self::NoAddress | Self::NoDevice | Self::OtherNode { .. } => HopState::Unknown,
            Self::Denied(_) => HopState::Stop,
        }
    }
}

impl PolicyHop {
    /// The cause, or what is worth knowing.
    pub fn code(&self) -> Option<Code> {
        match &self.verdict {
            PolicyVerdict::Allowed(Allowed::Rule { mistake: Some(_), .. }) => {
                Some(Code::HintPeerOr)
            }
            PolicyVerdict::Denied(denial) => Some(denial.code(self.direction)),
            PolicyVerdict::NoPolicies
            | PolicyVerdict::NotSelected
            | PolicyVerdict::FromHost
            | PolicyVerdict::ToHost
            | PolicyVerdict::FromOwnNode
            | PolicyVerdict::FromItself
            | PolicyVerdict::NoAddress
            | PolicyVerdict::NoDevice
            | PolicyVerdict::OtherNode { .. }
            | PolicyVerdict::Allowed(_) => None,
        }
    }
}

impl Denial {
    /// Whether the Pod is isolated and this keeps it from name lookups.
    pub fn stops_dns(&self, direction: PolicyDirection) -> bool {
        let isolated =
            matches!(self.cause, Cause::Unexplained | Cause::NoRules | Cause::Closest(_));
        isolated && direction == PolicyDirection::Egress && self.at.port() == DNS
    }

    /// The code.
    pub fn code(&self, direction: PolicyDirection) -> Code {
        if self.stops_dns(direction) {
            return Code::DenyEgressDns;
        }
        match &self.cause {
            Cause::ClusterPolicy => Code::DenyCnp,
            Cause::NoRoom => Code::PolicyOverflow,
            Cause::Pending => Code::PolicyPending,
            Cause::NotProgrammed => Code::NotProgrammed,
            Cause::Unexplained | Cause::NoRules => Code::DefaultDeny,
            Cause::Closest(closest) => closest.lacks.code(direction),
        }
    }
}

impl Lacks {
    const fn code(&self, direction: PolicyDirection) -> Code {
        let wrong_peer = match direction {
            PolicyDirection::Ingress => Code::DenyIngressPeer,
            PolicyDirection::Egress => Code::DenyEgressPeer,
        };
        match self {
            Self::Port(PortLack::Unnamed { .. }) => Code::NamedPortUnresolved,
            Self::Port(PortLack::OfService { .. }) => Code::DenyPortPreNat,
            Self::Port(PortLack::Other(_)) => Code::DenyPort,
            Self::Peer { why: PeerLack::OfService(_), .. } => Code::DenyIpblockNat,
            Self::Peer { why: PeerLack::NamespaceLabel(_), .. } => Code::DenyNsLabel,
            Self::ValidPeer | Self::Peer { .. } => wrong_peer,
        }
    }
}
