//! What the agent's records say of the two ends of a flow and of the policies about them: names, reasons and what is
//! missing, all of it as records. No verdict, which is up to the maps, and no words, which are up to lbctl.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::admin::workload::WorkloadKind;
use crate::cluster::{self, Action, Labels, Name, Prefix, Requirement, ServiceType, Tier};
use crate::model::policy::PolicyDirection;
use crate::names::EndpointConditions;

/// An end of a flow, as the request names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    Pod(Name),
    /// A node and its processes.
    Node(Arc<str>),
    Service(Name),
    /// The first Pod of it, by name.
    Workload(WorkloadKind, Name),
    /// An address, no matter what has it.
    Ip(IpAddr),
    /// A client or server outside the cluster.
    World,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Service(name) => write!(f, "svc:{name}"),
            Self::Workload(kind, name) => write!(f, "{}/{name}", kind.name()),
            Self::Ip(ip) => ip.fmt(f),
            Self::World => f.write_str("world"),
        }
    }
}

/// A flow to be explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowQuery {
    pub src: Party,
    pub dst: Party,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; `None` = the only one that the Service has.
    pub port: Option<u16>,
    /// The name of the port, where it has to be looked up in the destination.
    pub port_name: Option<Arc<str>>,
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowContext {
    /// This node.
    pub node: Arc<str>,
    /// Whether it comes from an agent.
    pub agent: bool,
    /// Whether the agent's records are complete.
    pub complete: bool,
    pub src: FlowEnd,
    /// The destination; for a Service, that Service.
    pub dst: FlowEnd,
    /// The Service, if the destination is one or has the address of one.
    pub service: Option<ServiceContext>,
    /// What policies say of it, for each Pod that it leaves or enters.
    pub legs: Vec<Leg>,
}

/// What an end is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndKind {
    /// A Pod with addresses of its own.
    Pod,
    /// A Pod of the host network: its traffic is the node's.
    HostPod,
    Node,
    Service,
    /// No object of the cluster, as far as is known.
    #[default]
    Outside,
    /// There is no such object.
    Missing,
}

/// An end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEnd {
    pub kind: EndKind,
    /// The Pod or the node; `None` for a Service, for addresses outside, and where the name is not known.
    pub name: Option<Name>,
    /// The node where it runs, if known.
    pub node: Option<Arc<str>>,
    pub ips: Vec<IpAddr>,
    /// Of a Pod: the ports of its containers that have names.
    pub ports: Vec<cluster::NamedPort>,
    /// For a missing object: similar names.
    pub similar: Vec<Name>,
}

/// Key and value of a label.
pub type Label = (Arc<str>, Arc<str>);

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceContext {
    pub name: Name,
    /// `spec.type`.
    pub service_type: ServiceType,
    /// Its ClusterIPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses of its load balancer.
    pub lb_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePortContext>,
    /// `spec.selector`; empty when it has none, or it is not known.
    pub selector: Labels,
    /// Whether `spec.internalTrafficPolicy` is Local: a client in the cluster gets an endpoint of its own node.
    #[serde(default)]
    pub internal_local: bool,
    /// Pods of its namespace that the selector selects.
    pub selected: u32,
    /// Those of them that have no address yet.
    #[serde(default)]
    pub addressless: u32,
    /// The first of those by name.
    #[serde(default)]
    pub without_address: Vec<Name>,
    /// Labels that are similar to those of the selector, and how many Pods have each.
    pub similar: Vec<(Label, u32)>,
    /// Its endpoints, the first of them.
    pub endpoints: Vec<EndpointContext>,
    /// How many there are.
    pub n_endpoints: u32,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortContext {
    /// Its name, may be empty.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port that clients dial.
    pub port: u16,
    /// Its NodePort, 0 = none.
    pub node_port: u16,
}

/// One endpoint of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointContext {
    /// Address and target port.
    pub at: SocketAddr,
    /// Name of the Service port.
    pub port_name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The Pod, if it names one.
    pub pod: Option<Name>,
    /// The node where it runs, if known.
    pub node: Option<Arc<str>>,
    pub conditions: EndpointConditions,
}

/// The policies about a Pod in the direction of the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// Whether the flow enters the Pod or leaves it.
    pub direction: PolicyDirection,
    /// The Pod.
    pub subject: Name,
    /// The other end's address.
    pub peer: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Those that select the Pod, in the order of evaluation.
    pub policies: Vec<PolicyContext>,
    /// What they say, if another node evaluates them and the records are complete.
    pub by_record: Option<RecordVerdict>,
}

/// What the policies of a Pod of another node say of a flow: the evaluator of the programs on tables that the compiler makes of
/// this agent's records, as the other agent makes its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordVerdict {
    /// No policy selects the Pod in this direction.
    NotSelected,
    /// The other end is the Pod's own node.
    FromOwnNode,
    /// The policies in force, and those that are tried with them, if any are.
    Judged(RecordJudgement, Option<RecordJudgement>),
}

/// One judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordJudgement {
    /// [`lb_common::policy::Judgement::number`].
    pub number: u32,
    /// Whether there are policies to be asked.
    pub selected: bool,
    /// Whether the policies do not fit, so that all is denied.
    pub no_room: bool,
    /// The policy whose rule decided; where none did, those that isolate the Pod.
    pub policies: Vec<Name>,
    /// In which list the rule is written, at which index, and how many identical ones share its number.
    pub rule: Option<(PolicyDirection, u32, u32)>,
}

/// A policy, compared with a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyContext {
    /// Its name; without a namespace for a ClusterNetworkPolicy.
    pub name: Name,
    pub tier: Tier,
    /// Whether it is evaluated without being enforced.
    pub shadow: bool,
    /// All its rules of this direction.
    pub rules: Vec<RuleContext>,
}

impl PolicyContext {
    /// Whether it isolates the Pod: an enforced `NetworkPolicy`.
    pub fn isolates(&self) -> bool {
        self.tier == Tier::NetworkPolicy && !self.shadow
    }
}

/// A rule, compared with a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleContext {
    pub action: Action,
    /// Its peers; `None` = all.
    pub peers: Option<Vec<PeerContext>>,
    /// Its ports; `None` = all.
    pub ports: Option<Vec<PortContext>>,
}

impl RuleContext {
    /// Whether one of its peers is the other end.
    pub fn takes_peer(&self) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| peer.misses.is_empty()))
    }

    /// Whether one of its ports is the flow's.
    pub fn takes_port(&self) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.iter().any(|port| port.matches))
    }
}

/// A peer of a rule, compared with the other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerContext {
    /// The peer as it is written.
    pub wants: cluster::Peer,
    /// Why the other end does not match; empty = it does.
    pub misses: Vec<Miss>,
}

/// Why an address does not match a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Miss {
    /// A label of the Pod (or node) differs.
    Label(Lacking),
    /// A label of its namespace differs.
    NamespaceLabel(Lacking),
    /// It is in another namespace than the policy.
    Namespace,
    /// It is not a Pod, or not one with an address of its own.
    NotPod,
    /// It is not a node.
    NotNode,
    /// It is not in the range.
    Block,
    /// It is in an excluded range.
    Except(Prefix),
}

/// A requirement that labels do not satisfy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    pub wants: Requirement,
    /// The value of its label; `None` = there is no such label.
    pub has: Option<Arc<str>>,
}

/// A port of a rule, compared with the flow's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortContext {
    /// The port as it is written.
    pub wants: cluster::PortMatch,
    /// Whether it is the flow's.
    pub matches: bool,
    /// What its name means in the destination, if it has a name; `None` = nothing.
    pub means: Option<u16>,
}
