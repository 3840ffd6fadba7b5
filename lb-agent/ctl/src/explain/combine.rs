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

use std::sync::Arc;

use crate::explain::trace::{
    BackendEvidence, Hop, HopState, PolicyHop, PolicyVerdict, Trace, TraceOutcome,
};
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
    if let Some(lookup) = &mut trace.lookup {
        let others = traces.iter().filter_map(|one| one.lookup.as_ref());
        let others: Vec<Trace> = others.map(|other| (*other.trace).clone()).collect();
        *lookup.trace = complete(&lookup.trace, &others);
    }
    let tally = trace.tally();
    if tally.stopped == tally.all {
        trace.hops.retain(|hop| !matches!(hop, Hop::Reply(_)));
    }
    trace
}

/// The branch to the same destination as the node has it where that runs.
fn owner<'a>(base: &Trace, branch: &[Hop], traces: &'a [Trace]) -> Option<&'a [Hop]> {
    let backend = backend(branch);
    let others = traces.iter().filter(|one| one.node != base.node);
    let mut branches = others.flat_map(|one| one.branches().map(move |branch| (one, branch)));
    let is_owners = |(one, other): &(&Trace, &[Hop])| {
        let is_there = match backend.and_then(|backend| backend.node.as_ref()) {
            Some(node) => *node == one.node,
            None => other.iter().any(is_of_own_pod),
        };
        is_there && self::backend(other).map(|own| own.at) == backend.map(|own| own.at)
    };
    branches.find(is_owners).map(|(_, branch)| branch)
}

fn backend(branch: &[Hop]) -> Option<&BackendEvidence> {
    branch.iter().find_map(|hop| match hop {
        Hop::Backend(backend) => Some(backend),
        _ => None,
    })
}

/// Whether only the node says it that has the destination.
fn is_of_own_pod(hop: &Hop) -> bool {
    match hop {
        Hop::Socket(_) => true,
        Hop::Policy(policy) => is_of_destination(policy) && is_known_by_one(&policy.verdict),
        _ => false,
    }
}

/// Whether it is the destination's, as its node has it in its tables.
fn is_of_destination(policy: &PolicyHop) -> bool {
    policy.direction == PolicyDirection::Ingress && policy.by_record.is_none()
}

/// Whether it is said of one's own Pods only, if it is not by record.
fn is_known_by_one(verdict: &PolicyVerdict) -> bool {
    match verdict {
        PolicyVerdict::NoPolicies
        | PolicyVerdict::OtherNode { .. }
        | PolicyVerdict::ToHost
        | PolicyVerdict::NoAddress => false,
        PolicyVerdict::NotSelected
        | PolicyVerdict::FromHost
        | PolicyVerdict::FromOwnNode
        | PolicyVerdict::FromItself
        | PolicyVerdict::NoDevice
        | PolicyVerdict::Allowed(_)
        | PolicyVerdict::Denied(_) => true,
    }
}

/// The branch with what the destination's node has in its place.
fn replaced(branch: &[Hop], owner: &[Hop]) -> Vec<Hop> {
    let verdict =
        owner.iter().find(|hop| matches!(hop, Hop::Policy(one) if is_of_destination(one)));
    let sockets = || owner.iter().filter(|hop| matches!(hop, Hop::Socket(_)));
    let unforwarded = owner.iter().filter(|hop| matches!(hop, Hop::Unforwarded { .. }));
    let is_ingress =
        |hop: &Hop| matches!(hop, Hop::Policy(one) if one.direction == PolicyDirection::Ingress);
    let mut hops: Vec<Hop> = unforwarded.filter(|hop| !branch.contains(hop)).cloned().collect();
    let (replies, path): (Vec<&Hop>, Vec<&Hop>) =
        branch.iter().partition(|hop| matches!(hop, Hop::Reply(_)));
    for hop in path {
        match (hop, verdict) {
            (hop, Some(verdict)) if is_ingress(hop) => hops.push(verdict.clone()),
            // The sockets themselves say more than the last connection.
            (Hop::Unchecked(_) | Hop::Handshake(_), _) if sockets().next().is_some() => {}
            (hop, _) => hops.push(hop.clone()),
        }
    }
    hops.extend(sockets().filter(|hop| !branch.contains(hop)).cloned());
    // A path is for packets that policies let through, and a process for those that arrive.
    let stops = |hop: &Hop| hop.state() == Some(HopState::Stop);
    if hops.iter().any(|hop| stops(hop) && !matches!(hop, Hop::Socket(_) | Hop::Handshake(_))) {
        let is_beyond =
            |hop: &Hop| matches!(hop, Hop::Path(_) | Hop::Unchecked(_) | Hop::Handshake(_));
        hops.retain(|hop| !is_beyond(hop));
    }
    hops.extend(replies.into_iter().cloned());
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
