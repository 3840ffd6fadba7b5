//! The local admin protocol between lbctl and the agent, on the socket `<state-dir>/agent.sock`.
//!
//! A connection carries one request, a JSON line. The responses are JSON lines, too, and the end of the stream follows
//! the last of them. [`Request::Audit`] with `repair` is the only request that changes something. Unlike the name table, this requires a running agent. [`query`] finds what
//! the records say; the server and the client are in the crates of the agent and of lbctl.

pub mod audit;
pub mod context;
mod flow;
pub mod peers;
pub mod policy;
pub mod progress;
pub mod query;
pub mod what_if;
pub mod workload;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::Name;
use crate::issue::Issue;

pub use self::flow::{FlowDecision, FlowOwner, FlowRecord};

/// Name of the socket in the state directory.
pub const SOCKET: &str = "agent.sock";
/// Largest request in bytes, its end of line included: a question about [`what_if::FLOWS`] flows and a policy of 1.5 MB.
pub const REQUEST_BYTES: u64 = 4 << 20;

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
    /// What a change of policies would do to flows: [`Response::WhatIf`].
    WhatIf(what_if::WhatIf),
    /// The Pods at the ends of flows, with their labels: [`Response::Peers`].
    Peers(peers::PeersWanted),
    /// Whether the maps say what was written there: [`Response::Audit`].
    Audit {
        /// Whether to write what differs again. The only request that changes something.
        repair: bool,
    },
    /// Whether the maps say what an object says: [`Response::Progress`].
    Progress(progress::AwaitedObject),
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
    Flow(Box<FlowRecord>),
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
    /// What a change of policies would do.
    WhatIf(what_if::WhatIfAnswer),
    /// The Pods at the ends of flows.
    Peers(peers::KnownPeers),
    /// What an audit of the maps found.
    Audit(audit::AuditReport),
    /// How far the agent is with the object.
    Progress(progress::ObjectProgress),
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

impl From<&Issue> for Remark {
    fn from(issue: &Issue) -> Self {
        Self {
            object: issue.object.to_string(),
            field: issue.field.clone(),
            message: issue.message.clone(),
        }
    }
}
