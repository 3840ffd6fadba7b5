//! Flows as records of evidence: each has the names that its addresses and numbers had when its packet came. What is
//! deleted later stays named, and an address that another Pod has later does not get that Pod's name.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::Name;
use crate::model::policy::PolicyDirection;
use crate::uid::Uid;

/// A flow as the programs report it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Source of the flow.
    pub src: SocketAddr,
    /// Destination of the flow; behind a Service the backend, when a policy judged it.
    pub dst: SocketAddr,
    /// IP protocol number.
    #[serde(rename = "proto")]
    pub protocol: u8,
    /// Number of the [`lb_common::verdict::DropReason`], 0 when it went on.
    pub reason: u8,
    /// Whether the packet was entering the Pod.
    pub ingress: bool,
    /// `lb_common::event::outcome::*`.
    pub outcome: u8,
    /// ifindex of the Pod's veth.
    pub ifindex: u32,
    /// Packets of this reason that the sampling left out before it.
    pub suppressed: u32,
    /// Group of the policies that judged it, 0 when none did.
    pub group: u32,
    /// Number of the [`lb_common::policy::Judgement`].
    pub judgement: u32,
    /// Identity of the peer, when policies judged it.
    pub ident: u32,
    /// Who had the source address.
    pub src_owner: FlowOwner,
    /// Who had the destination address.
    pub dst_owner: FlowOwner,
    /// `namespace/name:port` of the Service that the client dialed, `#id` if it has no name; empty = none is known.
    pub via: Arc<str>,
    /// The policies that decided; `None` = none did, or their names are not known.
    pub decision: Option<FlowDecision>,
}

/// Who had an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowOwner {
    /// No Pod or node that the agent knows.
    #[default]
    Unknown,
    /// A Pod, and its `metadata.uid`; 0 = it has none (manifests), or not one of the usual form.
    Pod(Name, Uid),
    /// A node.
    Node(Arc<str>),
}

/// Who decided about a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowDecision {
    /// The policy whose rule decided; where none did, those that isolate the Pod.
    pub policies: Vec<Name>,
    /// In which list the rule is written, at which index, and how many identical ones share its number; `None` = no rule
    /// decided.
    pub rule: Option<(PolicyDirection, u32, u32)>,
}

impl FlowOwner {
    /// The Pod.
    pub fn pod(&self) -> Option<&Name> {
        match self {
            Self::Pod(name, _) => Some(name),
            Self::Unknown | Self::Node(_) => None,
        }
    }

    /// The UID of the Pod; empty where there is none.
    pub fn uid(&self) -> String {
        match self {
            Self::Pod(_, uid) => uid.to_string(),
            Self::Unknown | Self::Node(_) => String::new(),
        }
    }
}

impl fmt::Display for FlowOwner {
    /// Writes `namespace/name` of a Pod, `node/name`, or nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => Ok(()),
            Self::Pod(name, _) => name.fmt(f),
            Self::Node(name) => write!(f, "node/{name}"),
        }
    }
}
