//! The path of a flow as data: one hop after the other, each with what was found there. Everything is decided on this;
//! text is made from it ([`super::render`]).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::explain::code::Code;
use lb_core::admin::context::{EndKind, FlowQuery};

mod ends;
mod lookup;
mod names;
mod policy;
mod service;

pub use self::ends::{
    Handshake, Listener, PathHop, PodRoute, Records, Socket, SourceEnd, StaleFlow, TableFull,
    Unchecked, Unseen, Who,
};
pub use self::lookup::Lookup;
pub use self::policy::{
    Allowed, Cause, Closest, Denial, Lacks, PeerLack, PeerOr, PolicyHop, PolicyVerdict, PortLack,
    Shadow,
};
pub use self::service::{BackendEvidence, Excluded, NoEndpoints, Reply, ServiceHop, Unserved, Why};

/// The path of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The flow.
    pub wanted: FlowQuery,
    /// This node.
    pub node: Arc<str>,
    /// Its hops, in order. Behind a Service, each [`Hop::Backend`] begins a branch.
    pub hops: Vec<Hop>,
    /// The lookup of the destination's name, if that is followed.
    pub lookup: Option<Lookup>,
}

/// One hop, or something that was found beside the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hop {
    /// The agent's records, where they are incomplete.
    Records(Records),
    /// The source.
    Source(SourceEnd),
    /// A table of this node recently had no room.
    TableFull(TableFull),
    /// The Service leads nowhere.
    Unserved(Unserved),
    /// A Service with backends.
    Service(ServiceHop),
    /// An open flow whose backend was removed.
    StaleFlow(StaleFlow),
    /// The destination has no address of a family that the source has.
    NoAddress,
    /// A Pod that dials its own address: the packets stay inside.
    Loopback(Who),
    /// A backend that the Service may select.
    Backend(BackendEvidence),
    /// The kernel does not forward between devices.
    Unforwarded {
        /// Whether it is IPv4.
        v4: bool,
    },
    /// The policies of one Pod.
    Policy(PolicyHop),
    /// Where packets go on this node, between two Pods.
    Path(PathHop),
    /// The other node sees this node instead of the external client.
    ClientHidden {
        /// The other node, if known.
        node: Option<Arc<str>>,
    },
    /// The sockets of a Pod of this node.
    Socket(Socket),
    /// How the destination, whose sockets cannot be asked here, answered before.
    Handshake(Handshake),
    /// What cannot be checked here.
    Unchecked(Unchecked),
    /// The way back through the Service.
    Reply(Reply),
}

/// Whether the flow passes a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopState {
    /// It does.
    Ok,
    /// It ends here.
    Stop,
    /// Not known here.
    Unknown,
}

/// What happens to the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceOutcome {
    /// It arrives, as far as this node decides.
    Delivered,
    /// It does not.
    Stopped,
    /// Another node decides.
    CannotTell,
}

/// How many branches end how: one for each backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// All of them.
    pub all: usize,
    /// Those in which the flow is stopped.
    pub stopped: usize,
    /// Those of the others in which it is unknown whether it is.
    pub unknown: usize,
}

impl Hop {
    /// Whether the flow passes; `None` for what is beside its path.
    pub fn state(&self) -> Option<HopState> {
        let state = match self {
            Self::Records(_)
            | Self::TableFull(_)
            | Self::StaleFlow(_)
            | Self::ClientHidden { .. }
            | Self::Unchecked(_) => return None,
            Self::Source(SourceEnd { end, .. })
                if end.kind == EndKind::Pod && end.ips.is_empty() =>
            {
                HopState::Unknown
            }
            Self::Source(_)
            | Self::Service(_)
            | Self::Loopback(_)
            | Self::Backend(_)
            | Self::Path(_)
            | Self::Reply(_) => HopState::Ok,
            Self::Unserved(_) => HopState::Stop,
            Self::Handshake(seen) if seen.accepted => HopState::Ok,
            Self::Handshake(_) => HopState::Stop,
            Self::NoAddress | Self::Unforwarded { .. } => HopState::Unknown,
            Self::Policy(policy) => policy.verdict.state(),
            Self::Socket(socket) => match socket.found {
                Listener::Open(_) => HopState::Ok,
                Listener::OnLoopback(_) | Listener::OnOthers(_) | Listener::OnPorts(_) => {
                    HopState::Stop
                }
                Listener::Unknown(_) => HopState::Unknown,
            },
        };
        Some(state)
    }

    /// The cause, or what is worth knowing.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Source(source) => source.is_host().then_some(Code::HostNotSelectable),
            Self::TableFull(_) => Some(Code::TableFull),
            Self::Unserved(unserved) => Some(unserved.why.code()),
            Self::StaleFlow(_) => Some(Code::StaleFlow),
            Self::Unforwarded { .. } => Some(Code::HostSetup),
            Self::Policy(policy) => policy.code(),
            Self::Socket(socket) => match socket.found {
                Listener::OnLoopback(_) => Some(Code::ListensOnLoopback),
                Listener::OnOthers(_) | Listener::OnPorts(_) => Some(Code::BackendRefuses),
                Listener::Open(_) | Listener::Unknown(_) => None,
            },
            Self::Handshake(seen) => (!seen.accepted).then_some(Code::BackendRefuses),
            Self::Records(_)
            | Self::Service(_)
            | Self::NoAddress
            | Self::Loopback(_)
            | Self::Backend(_)
            | Self::Path(_)
            | Self::ClientHidden { .. }
            | Self::Unchecked(_)
            | Self::Reply(_) => None,
        }
    }

    fn is_unknown(&self) -> bool {
        // A socket that cannot be seen is assumed to be there.
        self.state() == Some(HopState::Unknown) && !matches!(self, Self::Socket(_))
    }
}

impl Trace {
    /// The hops of each branch: one for each backend, or all of them where there is none.
    pub(super) fn branches(&self) -> impl Iterator<Item = &[Hop]> {
        let hops = self.hops.get(self.first_branch()..).unwrap_or_default();
        hops.chunk_by(move |_, next| !is_backend(next))
    }

    /// The hops that all branches have.
    pub fn before_branches(&self) -> &[Hop] {
        self.hops.get(..self.first_branch()).unwrap_or_default()
    }

    fn first_branch(&self) -> usize {
        self.hops.iter().position(is_backend).unwrap_or_default()
    }

    /// How many branches end how.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for hops in self.branches() {
            tally.all += 1;
            if hops.iter().any(|hop| hop.state() == Some(HopState::Stop)) {
                tally.stopped += 1;
            } else if hops.iter().any(Hop::is_unknown) {
                tally.unknown += 1;
            }
        }
        tally
    }

    /// What happens to the flow.
    pub fn outcome(&self) -> TraceOutcome {
        match self.tally() {
            _ if self.failed_lookup().is_some() => TraceOutcome::Stopped,
            Tally { stopped: 1.., .. } => TraceOutcome::Stopped,
            Tally { unknown: 1.., .. } => TraceOutcome::CannotTell,
            Tally { .. } => TraceOutcome::Delivered,
        }
    }

    /// The hops with a cause or something worth knowing, those that stop the flow first.
    pub fn findings(&self) -> impl Iterator<Item = &Hop> {
        let of = |stops: bool| {
            let hops = self.hops.iter().filter(|hop| hop.code().is_some());
            hops.filter(move |hop| (hop.state() == Some(HopState::Stop)) == stops)
        };
        of(true).chain(of(false))
    }

    /// The lookup, if it fails.
    pub fn failed_lookup(&self) -> Option<&Lookup> {
        self.lookup.as_ref().filter(|lookup| lookup.fails())
    }

    /// The cause, or the first thing worth knowing.
    pub fn code(&self) -> Option<Code> {
        if self.tally().stopped == 0
            && let Some(lookup) = self.failed_lookup()
        {
            return Some(lookup.code());
        }
        let unknown = (self.outcome() == TraceOutcome::CannotTell).then_some(Code::OtherNode);
        self.findings().next().and_then(Hop::code).or(unknown)
    }

    /// The other nodes that decide, each once; `None` is one whose name is not known.
    pub fn deciding(&self) -> Vec<Option<&Arc<str>>> {
        let mut nodes = Vec::new();
        for hop in &self.hops {
            if let Hop::Policy(PolicyHop { verdict: PolicyVerdict::OtherNode { node, .. }, .. }) =
                hop
                && !nodes.contains(&node.as_ref())
            {
                nodes.push(node.as_ref());
            }
        }
        nodes
    }
}

const fn is_backend(hop: &Hop) -> bool {
    matches!(hop, Hop::Backend(_))
}
