//! Endpoint choice: which endpoints of a service port serve, given their conditions and where they are.
//!
//! The results are those of kube-proxy's `CategorizeEndpoints` (`pkg/proxy/topology.go`). Two lists can come out,
//! since one Service can need both at once (an internal policy of Local beside an external one of Cluster); a list
//! that no frontend uses is not made.
//!
//! - An endpoint is *usable* if it is ready, or serving and terminating (KEP-1669). The
//!   conditions in the slice decide, never the state of a Pod.
//! - **Local list**: the ready endpoints of this node; if it has none, those of this node that are serving and
//!   terminating. So a node whose only endpoints are terminating goes on serving with them although other nodes have
//!   ready ones. Hints have no say in it.
//! - **Cluster list**: all ready endpoints that the *topology* admits; if no endpoint at all is ready, all that are
//!   serving and terminating, whatever their hints.
//! - **Topology**, judged over the ready endpoints of this very service port and family: if each of them has a hint
//!   for nodes and one is meant for this node, those that are meant for it; else if each has a hint for zones and one
//!   is meant for this node's zone, those that are meant for it; else all. So hints never leave a list empty, whatever
//!   annotation or field asked for them: the controller that wrote them has decided (KEP-2433, KEP-4444).
#![forbid(unsafe_code)]

use crate::cluster::Conditions;

use super::{Class, EndpointState};

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its conditions.
    pub conditions: Conditions,
    /// Whether it is on this node.
    pub local: bool,
    /// For which zones it is meant.
    pub zones: Hint,
    /// For which nodes it is meant.
    pub nodes: Hint,
}

/// What a hint means for this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hint {
    /// There is none.
    #[default]
    Absent,
    /// This node or its zone is among those named.
    Here,
    /// It is not, or the zone of this node is not known.
    Elsewhere,
}

/// The lists that some frontend of a service port uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// A frontend with traffic policy Cluster; also an external one with Local, for clients in the cluster.
    pub cluster: bool,
    /// A frontend with traffic policy Local.
    pub local: bool,
}

/// Which endpoints serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// For each candidate whether it was chosen, for which traffic, and as what.
    pub chosen: Vec<Option<(Class, EndpointState)>>,
    /// Whether any endpoint is usable, on whichever node: if so, a list that is empty is so by the traffic policy.
    pub anywhere: bool,
}

/// Why an endpoint serves no client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// It is not ready.
    NotReady,
    /// It terminates and no longer serves.
    NotServing,
    /// It terminates, and others are ready.
    TerminatingWhileOthersReady,
    /// It is meant for other nodes, and others for this one.
    OtherNode,
    /// It is meant for other zones, and others for this one.
    OtherZone,
    /// It is on another node, and all traffic is for those of this one.
    NotLocal,
}

impl Rejection {
    /// For tables: a few words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotReady => "not ready",
            Self::NotServing => "terminating, not serving",
            Self::TerminatingWhileOthersReady => "terminating, others are ready",
            Self::OtherNode => "hinted for other nodes",
            Self::OtherZone => "hinted for other zones",
            Self::NotLocal => "on another node",
        }
    }
}

/// Chooses among the endpoints of one service port in one family.
pub fn choose(candidates: &[Candidate], lists: Lists) -> Choice {
    let topology = Topology::of(candidates);
    let cluster_state = state_of_list(candidates.iter().filter(|_| lists.cluster));
    let local_state =
        state_of_list(candidates.iter().filter(|candidate| lists.local && candidate.local));
    let choice = |candidate: &Candidate| {
        let state = state_of(candidate.conditions)?;
        let admitted = state == EndpointState::Terminating || topology.admits(candidate);
        let for_cluster = cluster_state == Some(state) && admitted;
        let for_local = candidate.local && local_state == Some(state);
        let class = match (for_cluster, for_local) {
            (true, false) => Class::Cluster,
            (true, true) => Class::Both,
            (false, true) => Class::Local,
            (false, false) => return None,
        };
        Some((class, state))
    };
    Choice {
        chosen: candidates.iter().map(choice).collect(),
        anywhere: candidates.iter().any(|candidate| state_of(candidate.conditions).is_some()),
    }
}

/// Why each candidate was not chosen; `None` for those that were.
pub fn rejections(candidates: &[Candidate], lists: Lists) -> Vec<Option<Rejection>> {
    let topology = Topology::of(candidates);
    let choice = choose(candidates, lists);
    let reason = |candidate: &Candidate| match state_of(candidate.conditions) {
        None if candidate.conditions.terminating => Rejection::NotServing,
        None => Rejection::NotReady,
        Some(_) if !lists.cluster && !candidate.local => Rejection::NotLocal,
        Some(EndpointState::Terminating) => Rejection::TerminatingWhileOthersReady,
        Some(EndpointState::Ready) => match topology {
            Topology::Node => Rejection::OtherNode,
            Topology::Zone => Rejection::OtherZone,
            // Ready endpoints are only kept out by topology and policy.
            Topology::All => Rejection::NotLocal,
        },
    };
    let reasons = candidates.iter().zip(choice.chosen);
    reasons.map(|(candidate, chosen)| chosen.is_none().then(|| reason(candidate))).collect()
}

/// Which hints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Node,
    Zone,
    All,
}

impl Topology {
    fn of(candidates: &[Candidate]) -> Self {
        let ready = || candidates.iter().filter(|candidate| candidate.conditions.ready);
        let counts = |hint: fn(&Candidate) -> Hint| {
            ready().all(|candidate| hint(candidate) != Hint::Absent)
                && ready().any(|candidate| hint(candidate) == Hint::Here)
        };
        if counts(|candidate| candidate.nodes) {
            Self::Node
        } else if counts(|candidate| candidate.zones) {
            Self::Zone
        } else {
            Self::All
        }
    }

    fn admits(self, candidate: &Candidate) -> bool {
        match self {
            Self::Node => candidate.nodes == Hint::Here,
            Self::Zone => candidate.zones == Hint::Here,
            Self::All => true,
        }
    }
}

/// The state in which an endpoint may serve at all.
fn state_of(conditions: Conditions) -> Option<EndpointState> {
    match conditions {
        Conditions { ready: true, .. } => Some(EndpointState::Ready),
        Conditions { serving: true, terminating: true, .. } => Some(EndpointState::Terminating),
        Conditions { .. } => None,
    }
}

/// The state that an endpoint needs to be in a list of these candidates.
fn state_of_list<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Option<EndpointState> {
    candidates.filter_map(|candidate| state_of(candidate.conditions)).min()
}

#[cfg(test)]
mod tests;
