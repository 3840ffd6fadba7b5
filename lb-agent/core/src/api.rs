//! The agent's socket `<state-dir>/agent.sock`: what may be asked, and what is answered.
//!
//! One connection is one question: a JSON line; the answers are JSON lines, too, the last of them followed by the end
//! of the stream. Questions change nothing. Unlike the name table this needs an agent that is alive.

pub mod context;
pub mod policy;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Name of the socket in the state directory.
pub const SOCKET: &str = "agent.sock";
/// Bytes of a question, its end of line included.
pub const QUESTION_BYTES: u64 = 16 * 1024;

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// The last flows: [`Answer::Covers`], a [`Answer::Flow`] for each, [`Answer::Now`]; then those to come, if wanted.
    Flows(FlowsWanted),
    /// Who has these addresses: [`Answer::Who`].
    Who(Vec<IpAddr>),
    /// What is known of a flow: [`Answer::Explain`].
    Explain(context::Wanted),
    /// What of the cluster does something else here than under kube-proxy: [`Answer::Differences`].
    Differences,
    /// The policy with this name (`namespace/name`, or that of one of the cluster): [`Answer::Policy`].
    Policy(String),
    /// Which Pods of this node are kube-proxy: [`Answer::KubeProxy`].
    KubeProxy,
}

/// Which flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowsWanted {
    /// Also those to come.
    pub follow: bool,
    /// Also those that were allowed. The programs report them only while somebody follows them.
    pub allowed: bool,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// What the list of flows covers.
    Covers(Covers),
    /// A flow.
    Flow(FlowRecord),
    /// So many flows are missing at this place: the client was too slow.
    Lost(u64),
    /// The flows so far are complete.
    Now,
    /// Who has each of the addresses; those that nobody has are left out.
    Who(Vec<Owner>),
    /// What is known of a flow.
    Explain(Box<context::Context>),
    /// What does something else here than under kube-proxy.
    Differences(Vec<Remark>),
    /// The policy, if there is one.
    Policy(Option<Box<policy::View>>),
    /// Pods that are kube-proxy, `namespace/name`.
    KubeProxy(Vec<String>),
    /// Why there is no answer, one sentence.
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
pub struct Owner {
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
