//! What the agent's records say of the two ends of a flow and of the policies about them: names, reasons and what is
//! missing. No verdict: that is the maps'.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// An end of a flow, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    /// A Pod, `namespace/name`.
    Pod(String),
    /// A node and its processes.
    Node(String),
    /// A Service, `namespace/name`.
    Service(String),
    /// An address, whoever has it.
    Ip(IpAddr),
    /// Somebody outside the cluster.
    World,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => f.write_str(name),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Service(name) => write!(f, "svc:{name}"),
            Self::Ip(ip) => ip.fmt(f),
            Self::World => f.write_str("world"),
        }
    }
}

/// A flow to be explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Who opens it.
    pub src: Party,
    /// Whom it is for.
    pub dst: Party,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; `None` = the only one that the Service has.
    pub port: Option<u16>,
}

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// This node.
    pub node: String,
    /// Whether an agent said this.
    pub agent: bool,
    /// Whether its records are complete.
    pub complete: bool,
    /// Who opens it.
    pub src: End,
    /// Whom it is for; for a Service, that Service.
    pub dst: End,
    /// The Service, if it is one or its address is one's.
    pub service: Option<Service>,
    /// What policies say of it, for each Pod that it leaves or enters.
    pub legs: Vec<Leg>,
}

/// What an end is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A Pod with addresses of its own.
    Pod,
    /// A Pod of the host network: its traffic is the node's.
    HostPod,
    /// A node.
    Node,
    /// A Service.
    Service,
    /// Nobody in the cluster, as far as is known.
    #[default]
    Outside,
    /// There is no such object.
    Missing,
}

/// An end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// What it is.
    pub kind: Kind,
    /// `namespace/name`, or the name of a node; empty of addresses outside.
    pub name: String,
    /// Where it runs.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Of one that is missing: names that are like it.
    pub similar: Vec<String>,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// `namespace/name`.
    pub name: String,
    /// `spec.type`.
    pub service_type: String,
    /// Its ClusterIPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses of its load balancer.
    pub lb_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// `internalTrafficPolicy` is Local.
    pub internal_local: bool,
    /// `externalTrafficPolicy` is Local.
    pub external_local: bool,
    /// `spec.selector` as `key=value`; empty when it has none, or it is not known.
    pub selector: Vec<String>,
    /// Pods of its namespace that the selector selects.
    pub selected: u32,
    /// Labels that are nearly what the selector wants, and how many Pods have each.
    pub nearest: Vec<(String, u32)>,
    /// Its endpoints, the first of them.
    pub endpoints: Vec<Endpoint>,
    /// How many there are.
    pub n_endpoints: u32,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name, may be empty.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The port that clients dial.
    pub port: u16,
    /// Its NodePort, 0 = none.
    pub node_port: u16,
}

/// One endpoint of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address and target port.
    pub at: SocketAddr,
    /// Name of the Service port.
    pub port_name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// `namespace/name` of the Pod, may be empty.
    pub pod: String,
    /// Where it runs, may be empty.
    pub node: String,
    /// `ready`, `serving`, `terminating` or `not-ready`.
    pub state: String,
}

/// The policies about a Pod in the direction of the flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Leg {
    /// Whether the flow enters the Pod.
    pub ingress: bool,
    /// `namespace/name` of the Pod.
    pub subject: String,
    /// Where it runs.
    pub node: String,
    /// The other end's address.
    pub peer: Option<IpAddr>,
    /// Who has that, in words.
    pub peer_name: String,
    /// Destination port.
    pub port: u16,
    /// Those that select the Pod, in the order of evaluation.
    pub policies: Vec<Policy>,
}

/// A policy, held against a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// `namespace/name`, or the name of one of the cluster.
    pub name: String,
    /// Its tier.
    pub tier: String,
    /// Whether it is only tried.
    pub shadow: bool,
    /// Its rules of this direction.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// Whether it is a `NetworkPolicy`.
    pub fn isolates(&self) -> bool {
        self.tier == crate::cluster::Tier::NetworkPolicy.name()
    }
}

/// A rule, held against a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Its path in `spec`: `ingress[1]`.
    pub path: String,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// Its peers; `None` = everybody.
    pub peers: Option<Vec<Peer>>,
    /// Its ports; `None` = all.
    pub ports: Option<Vec<PortMatch>>,
}

impl Rule {
    /// Whether one of its peers is the other end.
    pub fn takes_peer(&self) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| peer.misses.is_empty()))
    }

    /// Whether one of its ports is the flow's.
    pub fn takes_port(&self) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.iter().any(|port| port.matches))
    }
}

/// What a peer of a rule says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Pods by their labels, in the policy's namespace.
    #[default]
    Pods,
    /// All Pods of some namespaces.
    Namespaces,
    /// Pods by their labels in some namespaces.
    Both,
    /// A range of addresses.
    Block,
    /// Nodes.
    Nodes,
}

/// A peer of a rule, held against the other end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// Its path: `ingress[1].from[0]`.
    pub path: String,
    /// What it says.
    pub form: Form,
    /// The same in words: `app=api`.
    pub wants: String,
    /// What keeps the other end from being it; nothing = it is.
    pub misses: Vec<Miss>,
}

/// What keeps an address from being a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Miss {
    /// A label of the Pod (or node) is another one.
    Label {
        /// What is wanted: `app=api`.
        wants: String,
        /// What it has: `app=API`, or `no label app`.
        has: String,
    },
    /// A label of its namespace.
    NamespaceLabel {
        /// What is wanted.
        wants: String,
        /// What the namespace has.
        has: String,
    },
    /// It is in another namespace than the policy's.
    Namespace {
        /// The policy's.
        wants: String,
        /// Its own.
        has: String,
    },
    /// It is no Pod, or none with an address of its own.
    NotPod,
    /// It is no node.
    NotNode,
    /// It is not in the range.
    Block,
    /// It is in a range that is left out.
    Except(String),
}

/// A port of a rule, held against the flow's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortMatch {
    /// Its path: `ingress[1].ports[0]`.
    pub path: String,
    /// What it says: `5432/TCP`, `http/TCP`.
    pub wants: String,
    /// Whether it is the flow's.
    pub matches: bool,
    /// The ports, when they are numbers.
    pub range: Option<(u16, u16)>,
    /// Its name, when it has one.
    pub name: Option<String>,
    /// What that means in the destination; `None` = nothing.
    pub means: Option<u16>,
}
