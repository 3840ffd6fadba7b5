//! The local admin protocol between lbctl and the agent, on the socket `<state-dir>/agent.sock`.
//!
//! A connection carries one request, a JSON line. The responses are JSON lines, too, and the end of the stream follows
//! the last of them. Requests change nothing. Unlike the name table, this requires a running agent. [`query`] finds what
//! the records say; the server and the client are in the crates of the agent and of lbctl.

pub mod context;
pub mod policy;
pub mod query;
pub mod workload;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::cluster::Name;

/// Name of the socket in the state directory.
pub const SOCKET: &str = "agent.sock";
/// Largest request in bytes, its end of line included.
pub const REQUEST_BYTES: u64 = 16 * 1024;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The last flows: [`Response::Covers`], a [`Response::Flow`] for each, [`Response::Now`]; then those to come, if wanted.
    Flows(FlowsWanted),
    /// Who has these addresses: [`Response::Who`].
    Who(Vec<IpAddr>),
    /// What is known of a flow: [`Response::Explain`].
    Explain(context::FlowQuery),
    /// What of the cluster does something else here than under kube-proxy: [`Response::Differences`].
    Differences,
    /// The policy with this name, without a namespace for a ClusterNetworkPolicy: [`Response::Policy`].
    Policy(Name),
    /// Which Pods of this node are kube-proxy: [`Response::KubeProxy`].
    KubeProxy,
}

/// Which flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowsWanted {
    /// Also those to come.
    pub follow: bool,
    /// Also those that were allowed. The programs report them only while a client follows them.
    pub allowed: bool,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// What the list of flows covers.
    Covers(Covers),
    /// A flow.
    Flow(FlowRecord),
    /// Number of flows that are missing here, because the client was too slow.
    Lost(u64),
    /// The flows so far are complete.
    Now,
    /// Which object has each of the addresses. Addresses without an owner are left out.
    Who(Vec<AddressOwner>),
    /// What is known of a flow.
    Explain(Box<context::FlowContext>),
    /// What does something else here than under kube-proxy.
    Differences(Vec<Remark>),
    /// The policy, if there is one.
    Policy(Option<Box<policy::PolicyView>>),
    /// Pods that are kube-proxy, `namespace/name`.
    KubeProxy(Vec<String>),
    /// Why there is no other response, one sentence.
    Error(String),
}

/// What the list of flows covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covers {
    /// When the oldest one was, in milliseconds since 1970; when the agent was asked, if there is none.
    pub since_ms: u64,
    /// When the agent was asked.
    pub now_ms: u64,
    /// Flows that are kept.
    pub flows: u64,
    /// Flows that were kept once and had to make room.
    pub forgotten: u64,
    /// Packets since then that the sampling left out.
    pub suppressed: u64,
}

/// A flow as the programs report it, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Source of the packet.
    pub src: SocketAddr,
    /// Destination of the packet; behind a Service the backend, when a policy judged it.
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
    /// Id of the service port, 0 when none is involved.
    pub service_id: u32,
    /// Packets of this reason that the sampling left out before it.
    pub suppressed: u32,
    /// Group of the policies that judged it, 0 when none did.
    pub group: u32,
    /// Number of the [`lb_common::policy::Judgement`].
    pub judgement: u32,
    /// Identity of the peer, when policies judged it.
    pub ident: u32,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressOwner {
    /// The address.
    pub addr: IpAddr,
    /// `namespace/name` of a Pod, or `node/name`.
    pub name: String,
}

/// What is to be known of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// Kind and name: `Service shop/web`.
    pub object: String,
    /// The field, or the agent's flag.
    pub field: String,
    /// One sentence.
    pub message: String,
}
