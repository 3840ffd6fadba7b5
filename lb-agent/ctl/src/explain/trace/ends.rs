//! What was found at the ends of a flow: its source, the sockets of its destination, and what this node knows of both.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::past::StackReason;
use lb_common::verdict::DropReason;
use serde::{Deserialize, Serialize};

use super::names;
use lb_core::admin::context::{EndKind, FlowEnd};
use lb_core::cluster::Name;

/// What is missing in the records of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Records {
    /// The agent has not read the whole cluster state yet.
    Incomplete,
    /// No agent responds.
    Unavailable,
}

/// A Pod or node by its name, or whatever has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    Object(Name),
    Address(IpAddr),
}

impl Who {
    /// The object with this name, or what has this address.
    pub fn of(name: Option<&Name>, ip: IpAddr) -> Self {
        name.map_or(Self::Address(ip), |name| Self::Object(name.clone()))
    }

    /// The namespace of an object that has one.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Object(name) => &name.namespace,
            Self::Address(_) => "",
        }
    }

    /// Whether it is this object.
    pub fn is(&self, name: &Name) -> bool {
        matches!(self, Self::Object(own) if own == name)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(name) => name.fmt(f),
            Self::Address(ip) => ip.fmt(f),
        }
    }
}

/// Where the packets of a flow between two Pods go on this node, in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathHop {
    pub to: Who,
    pub route: PodRoute,
}

/// How the packets of a flow get from a Pod of this node to another Pod, or from that to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodRoute {
    /// Past the IP stack and netfilter.
    Past,
    /// Past them to the next hop of another node, whose name may not be known, or from there.
    Hop { node: Option<Arc<str>> },
    /// Through the IP stack to another node or from there, and why.
    StackBetween { why: Cow<'static, str> },
    /// By the bridge of both, which passes netfilter by.
    Bridge,
    /// Through the IP stack, and why. A firewall rule that is the reason is named, if its name is known.
    Stack {
        #[serde(with = "names::stack_reason")]
        reason: StackReason,
        rule: String,
    },
}

/// The source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEnd {
    pub end: FlowEnd,
    /// Whether it is a Pod whose device is on this node.
    pub here: bool,
}

impl SourceEnd {
    /// Whether it is a node or one of its processes.
    pub const fn is_host(&self) -> bool {
        matches!(self.end.kind, EndKind::HostPod | EndKind::Node)
    }
}

/// A flow that had no room in a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFull {
    /// Which table, as the reason of the drop.
    #[serde(with = "names::drop_reason")]
    pub reason: DropReason,
    /// Seconds since then.
    pub ago: u64,
    /// Source of the packet.
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

/// An open flow of the source whose backend was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleFlow {
    /// The Service, as it is called.
    pub service: String,
    pub dialed: SocketAddr,
    pub backend: SocketAddr,
}

/// The sockets of a Pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    pub pod: Who,
    /// The flow's destination there.
    pub at: SocketAddr,
    pub found: Listener,
}

/// How the destination answered the source's last TCP connection to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    pub who: Who,
    /// The flow's destination there.
    pub at: SocketAddr,
    /// Whether it accepted the connection; else it refused it.
    pub accepted: bool,
    /// Seconds since then.
    pub ago: u64,
    /// The node where it runs, if known.
    pub node: Option<Arc<str>>,
}

/// Which of the sockets accepts the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listener {
    /// This one.
    Open(SocketAddr),
    /// None: this one has the port, at a loopback address.
    OnLoopback(SocketAddr),
    /// None: these have the port, at other addresses.
    OnOthers(Vec<SocketAddr>),
    /// None: there are only these ports.
    OnPorts(Vec<u16>),
    /// The sockets cannot be listed.
    Unknown(Unseen),
}

/// Why the sockets of a Pod cannot be listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unseen {
    /// Its network namespace is not visible from here.
    Namespace,
    /// The kernel reports an error.
    Error(String),
}

/// What cannot be checked on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unchecked {
    /// Whether a process of this Pod listens on the port.
    Pod(Who, u16),
    /// Whether a process of this node listens on the port.
    Node(Option<Arc<str>>, u16),
    /// Whether the network routes packets to this address and back.
    Network(IpAddr),
}
