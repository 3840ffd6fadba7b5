//! The rule that comes closest to a flow that no rule allows, and what it lacks.

use std::net::SocketAddr;
use std::sync::Arc;

use lb_common::addr::Addr;

use crate::explain::trace::{Closest, Lacks, PeerLack, PortLack};
use lb_core::admin::context::{
    Lacking, Miss, PeerContext, PolicyContext, PortContext, RuleContext,
};
use lb_core::cluster::{self, PortSpec};
use lb_core::model::policy::PolicyDirection;

/// A rule without a valid peer is farther from a flow than most others.
const NO_PEER: usize = 4;

/// A flow, as the rules see it.
pub(super) struct CandidateFlow {
    /// Whether it enters the Pod or leaves it.
    pub(super) direction: PolicyDirection,
    /// Where it goes.
    pub(super) at: SocketAddr,
    /// The frontend by which it comes, if it does.
    pub(super) through: Option<SocketAddr>,
}

/// Returns the rule that lacks least; `None` if there is no rule.
pub(super) fn closest<'a>(
    flow: &CandidateFlow,
    rules: impl Iterator<Item = (&'a PolicyContext, u32, &'a RuleContext)>,
) -> Option<Closest> {
    let lacking = rules.filter_map(|(policy, index, rule)| {
        let (misses, lacks) = flow.lacks(rule)?;
        Some((misses, Closest { policy: policy.name.clone(), rule: index, lacks }))
    });
    lacking.min_by_key(|(misses, _)| *misses).map(|(_, closest)| closest)
}

impl CandidateFlow {
    /// Returns what a rule lacks, and how much that is.
    fn lacks(&self, rule: &RuleContext) -> Option<(usize, Lacks)> {
        let wrong_port = usize::from(!rule.takes_port());
        if rule.takes_peer() {
            let ports = rule.ports.as_deref()?;
            return Some((wrong_port, Lacks::Port(self.port_lack(ports))));
        }
        let peers = rule.peers.as_deref()?;
        let Some((at, peer)) = (0..).zip(peers).min_by_key(|(_, peer)| peer.misses.len()) else {
            return Some((NO_PEER, Lacks::ValidPeer));
        };
        let why = self.peer_lack(peer)?;
        Some((peer.misses.len() + wrong_port, Lacks::Peer { at, wants: peer.wants.clone(), why }))
    }

    fn port_lack(&self, ports: &[PortContext]) -> PortLack {
        let all = || (0..).zip(ports);
        if let Some((at, name)) = all().find_map(|(at, port)| Some((at, unnamed(port)?))) {
            return PortLack::Unnamed { at, name: Arc::clone(name) };
        }
        if let Some(through) = self.through.filter(|through| through.port() != self.at.port())
            && let Some((at, port)) = all().find(|(_, port)| has(port, through.port()))
        {
            return PortLack::OfService { at, wants: port.wants.clone(), through };
        }
        PortLack::Other(ports.iter().map(|port| port.wants.clone()).collect())
    }

    fn peer_lack(&self, peer: &PeerContext) -> Option<PeerLack> {
        if let cluster::Peer::Block { prefix, .. } = &peer.wants
            && let Some(through) = self.through
            && self.direction == PolicyDirection::Egress
            && prefix.contains(&Addr::from_ip(through.ip()))
        {
            return Some(PeerLack::OfService(through.ip()));
        }
        let of_namespace = |miss: &Miss| match miss {
            Miss::NamespaceLabel(lacking) => Some(lacking.clone()),
            _ => None,
        };
        if let Some(lacking) = peer.misses.iter().find_map(of_namespace) {
            return Some(PeerLack::NamespaceLabel(lacking));
        }
        Some(match peer.misses.first()? {
            Miss::Label(_) => PeerLack::Labels(labels(&peer.misses)),
            Miss::NamespaceLabel(lacking) => PeerLack::NamespaceLabel(lacking.clone()),
            Miss::Namespace => PeerLack::Namespace,
            Miss::NotPod => PeerLack::NotPod,
            Miss::NotNode => PeerLack::NotNode,
            Miss::Block => PeerLack::Block,
            Miss::Except(range) => PeerLack::Except(*range),
        })
    }
}

fn labels(misses: &[Miss]) -> Vec<Lacking> {
    let label = |miss: &Miss| match miss {
        Miss::Label(lacking) => Some(lacking.clone()),
        _ => None,
    };
    misses.iter().filter_map(label).collect()
}

/// Returns the name of a port that means nothing in the destination.
fn unnamed(port: &PortContext) -> Option<&Arc<str>> {
    match &port.wants.ports {
        PortSpec::Named(name) if port.means.is_none() => Some(name),
        PortSpec::Named(_) | PortSpec::All | PortSpec::Range(..) => None,
    }
}

fn has(port: &PortContext, number: u16) -> bool {
    matches!(port.wants.ports, PortSpec::Range(first, last) if (first..=last).contains(&number))
}
