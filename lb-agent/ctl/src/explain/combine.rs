//! The traces that several nodes made of one flow → one trace, in which each hop is from the node that has the fact. Pure.
//!
//! A node knows the Services, the egress policies and the devices of its own Pods as the packets meet them, and so the
//! ingress policies and the sockets. Of other nodes' Pods it only knows what its agent's records say. So:
//!
//! 1. The path is that of the source's node, whose tables translate the flow. Where no answer is from there, it is the first.
//! 2. In each branch (one for each backend), the ingress policies and the sockets are those of the backend's node.
//! 3. What no node that answers has as a fact stays what it was: by record, or unknown.
//!
//! From outside the cluster, the flow takes the node that is dialed, so each node's path is a possible one.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::explain::trace::{Hop, HopState, PolicyHop, PolicyVerdict, Trace, TraceOutcome};
use lb_core::admin::context::EndKind;
use lb_core::model::policy::PolicyDirection;

/// A trace made of those of several nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Combined {
    /// The flow's path.
    pub trace: Trace,
    /// Other nodes at which a client outside the cluster would be stopped.
    pub stopped_at: Vec<Arc<str>>,
}

/// Combines the traces of one flow; `None` if there is none.
pub fn combine(traces: &[Trace]) -> Option<Combined> {
    let outside = traces.first()?.is_from_outside();
    let base = if outside { entry(traces) } else { traces.iter().find(|one| one.has_source()) };
    let base = base.or(traces.first())?;
    let trace = complete(base, traces);
    let stops = |one: &&Trace| {
        outside && one.node != base.node && complete(one, traces).outcome() == TraceOutcome::Stopped
    };
    let mut stopped_at: Vec<Arc<str>> =
        traces.iter().filter(stops).map(|one| Arc::clone(&one.node)).collect();
    if trace.outcome() == TraceOutcome::Stopped {
        stopped_at.clear();
    }
    Some(Combined { trace, stopped_at })
}

/// The path of a client outside the cluster: at a node where it is delivered, if there is one. Load balancers prefer
/// those.
fn entry(traces: &[Trace]) -> Option<&Trace> {
    let rank = |one: &&Trace| match complete(one, traces).outcome() {
        TraceOutcome::Delivered => 0,
        TraceOutcome::CannotTell => 1,
        TraceOutcome::Stopped => 2,
    };
    traces.iter().min_by_key(rank)
}

/// The same path with the facts of the nodes where its branches end.
fn complete(base: &Trace, traces: &[Trace]) -> Trace {
    let mut hops = base.before_branches().to_vec();
    for branch in base.branches() {
        let owner = owner(base, branch, traces);
        hops.extend(match owner {
            Some(found) => replaced(branch, found),
            None => branch.to_vec(),
        });
    }
    // What follows a delivery holds only where there is one.
    let mut trace = Trace { hops, ..base.clone() };
    let tally = trace.tally();
    if tally.stopped == tally.all {
        trace.hops.retain(|hop| !matches!(hop, Hop::Reply(_)));
    }
    trace
}

/// The branch to the same destination as the node has it where that runs.
fn owner<'a>(base: &Trace, branch: &[Hop], traces: &'a [Trace]) -> Option<&'a [Hop]> {
    let at = address(branch);
    let others = traces.iter().filter(|one| one.node != base.node);
    let mut branches = others.flat_map(Trace::branches);
    branches.find(|other| address(other) == at && other.iter().any(is_fact_of_destination))
}

fn address(branch: &[Hop]) -> Option<SocketAddr> {
    branch.iter().find_map(|hop| match hop {
        Hop::Backend(backend) => Some(backend.at),
        _ => None,
    })
}

/// Whether a node says it of a Pod of its own.
fn is_fact_of_destination(hop: &Hop) -> bool {
    match hop {
        Hop::Socket(_) => true,
        Hop::Policy(policy) => is_ingress(policy) && is_fact(policy),
        _ => false,
    }
}

fn is_ingress(policy: &PolicyHop) -> bool {
    policy.direction == PolicyDirection::Ingress
}

fn is_fact(policy: &PolicyHop) -> bool {
    let is_known = match &policy.verdict {
        // Without policies, any node says so of any Pod.
        PolicyVerdict::NoPolicies | PolicyVerdict::OtherNode { .. } => false,
        // Of a process of the node: not of one of its Pods.
        PolicyVerdict::ToHost | PolicyVerdict::NoAddress => false,
        PolicyVerdict::NotSelected
        | PolicyVerdict::FromHost
        | PolicyVerdict::FromOwnNode
        | PolicyVerdict::FromItself
        | PolicyVerdict::NoDevice
        | PolicyVerdict::Allowed(_)
        | PolicyVerdict::Denied(_) => true,
    };
    is_known && policy.by_record.is_none()
}

/// The branch with the facts of the other one.
fn replaced(branch: &[Hop], owner: &[Hop]) -> Vec<Hop> {
    let is_owners = |hop: &&Hop| match hop {
        Hop::Policy(policy) => is_ingress(policy) && is_fact(policy),
        Hop::Socket(_) | Hop::Unforwarded { .. } => true,
        _ => false,
    };
    let is_asked_there = |hop: &Hop| match hop {
        Hop::Policy(policy) => is_ingress(policy) && !is_fact(policy),
        Hop::Unchecked(_) => true,
        _ => false,
    };
    let facts: Vec<&Hop> = owner.iter().filter(is_owners).collect();
    let has_verdict = facts.iter().any(|hop| matches!(hop, Hop::Policy(_)));
    let has_socket = facts.iter().any(|hop| matches!(hop, Hop::Socket(_)));
    let mut hops: Vec<Hop> = Vec::new();
    let mut reply = Vec::new();
    for hop in branch {
        match hop {
            Hop::Reply(_) => reply.push(hop.clone()),
            Hop::Policy(_) if is_asked_there(hop) && has_verdict => {
                hops.extend(facts.iter().filter(|f| matches!(f, Hop::Policy(_))).copied().cloned());
            }
            Hop::Unchecked(_) if has_socket => {}
            _ => hops.push(hop.clone()),
        }
    }
    let is_new = |hop: &&&Hop| match hop {
        Hop::Policy(_) => false,
        other => !branch.contains(other),
    };
    hops.extend(facts.iter().filter(is_new).copied().cloned());
    // A path is for packets that arrive.
    if hops.iter().any(|hop| hop.state() == Some(HopState::Stop)) {
        hops.retain(|hop| !matches!(hop, Hop::Path(_) | Hop::Unchecked(_)));
    }
    hops.extend(reply);
    hops
}

impl Trace {
    /// Whether this is the trace of the node where the source is.
    fn has_source(&self) -> bool {
        self.hops.iter().any(|hop| match hop {
            Hop::Source(source) => {
                source.here || source.is_host() && source.end.node.as_ref() == Some(&self.node)
            }
            _ => false,
        })
    }

    /// Whether the source is outside the cluster.
    fn is_from_outside(&self) -> bool {
        let is_outside =
            |hop: &Hop| matches!(hop, Hop::Source(source) if source.end.kind == EndKind::Outside);
        self.hops.iter().any(is_outside)
    }
}
