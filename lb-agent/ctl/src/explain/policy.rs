//! The policies of one Pod: judged by the programs' own evaluator on the maps, explained with the agent's records.

use std::net::IpAddr;
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::endpoint::PodEntry;
use lb_common::policy::{
    GroupFlags, Judgement, PolicyLookup, Question, identify, judge as evaluate,
};

use crate::attribution::{DecidedBy, PolicyId, RuleAt, RuleId};
use crate::explain::closest::{CandidateFlow, closest};
use crate::explain::facts::Facts;
use crate::explain::service::Target;
use crate::explain::trace::{
    Allowed, Cause, Denial, PeerOr, PolicyHop, PolicyVerdict, Shadow, Who,
};
use lb_core::admin::context::{Leg, PolicyContext};
use lb_core::cluster::{Namespaces, Peer, PodSelector};
use lb_core::model::policy::PolicyDirection;

/// One side of a flow, whose policies are evaluated.
pub(super) struct Side<'a> {
    /// Whether the flow enters the Pod or leaves it.
    pub(super) direction: PolicyDirection,
    /// The Pod.
    pub(super) subject: Who,
    /// Its entry in the maps.
    pub(super) pod: &'a PodEntry,
    /// The other end: its address, and what it is.
    pub(super) peer: (IpAddr, Who),
}

/// Returns what the maps say of a Pod of this node.
pub(super) fn judge<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    side: Side<'_>,
    target: &Target,
) -> PolicyHop {
    let Side { direction, pod, .. } = side;
    let (group, shadow) = match direction {
        PolicyDirection::Ingress => (pod.ingress, pod.shadow_ingress),
        PolicyDirection::Egress => (pod.egress, pod.shadow_egress),
    };
    if facts.epoch == 0 || (group, shadow) == (0, 0) {
        let verdict = PolicyVerdict::NotSelected;
        return PolicyHop { direction, subject: side.subject, verdict, shadow: None };
    }
    let Some(ident) = identify(facts.tables, &Addr::from_ip(side.peer.0)) else {
        let verdict = PolicyVerdict::FromOwnNode;
        return PolicyHop { direction, subject: side.subject, verdict, shadow: None };
    };
    let at = target.backend.at;
    let own = target.through.is_some() && facts.context.src.ips.contains(&at.ip());
    let ask = |group| {
        let question = Question {
            group,
            ident,
            proto: facts.wanted.protocol,
            port: Be16::new(at.port()),
            own,
            port_unknown: false,
        };
        if group == 0 { Judgement::ALLOWED } else { evaluate(facts.tables, &question) }
    };
    let (judgement, other) = (ask(group), ask(shadow));
    let found = ExplainedJudgement { facts, side: &side, target, group, own, judgement };
    let verdict = if judgement.denied() {
        PolicyVerdict::Denied(Box::new(found.denial()))
    } else {
        PolicyVerdict::Allowed(found.allowed())
    };
    let shadow = (shadow != 0 && other.denied() != judgement.denied())
        .then(|| Shadow { by: facts.policies.by(shadow, other), denies: other.denied() });
    PolicyHop { direction, subject: side.subject, verdict, shadow }
}

/// A judgement of the maps, to be explained.
struct ExplainedJudgement<'a, T> {
    facts: &'a Facts<'a, T>,
    side: &'a Side<'a>,
    target: &'a Target,
    group: u32,
    own: bool,
    judgement: Judgement,
}

impl<T: PolicyLookup> ExplainedJudgement<'_, T> {
    fn by(&self) -> DecidedBy {
        self.facts.policies.by(self.group, self.judgement)
    }

    /// What the records say of the policies of this side.
    fn leg(&self) -> Option<&Leg> {
        let Who::Object(subject) = &self.side.subject else { return None };
        let (peer, port) = (self.side.peer.0, self.target.backend.at.port());
        let mut legs = self.facts.context.legs.iter().filter(|leg| leg.subject == *subject);
        legs.find(|leg| (leg.direction, leg.peer, leg.port) == (self.side.direction, peer, port))
    }

    fn allowed(&self) -> Allowed {
        let by = self.by();
        if !by.policies.is_empty() {
            let mistake =
                self.leg().and_then(|leg| peer_or(leg, &by, &self.side.peer.1)).map(Box::new);
            return Allowed::Rule { by, mistake };
        }
        match (self.own, self.group) {
            (true, _) => Allowed::Itself,
            (false, 0) => Allowed::NotSelected,
            (false, _) => Allowed::NotIsolated,
        }
    }

    fn denial(&self) -> Denial {
        let rule = self.judgement.rule();
        let flags =
            self.facts.tables.group(self.group).map_or(GroupFlags::NONE, |group| group.flags);
        let cause = if rule.is_some() {
            Cause::ClusterPolicy
        } else if flags.contains(GroupFlags::OVERFLOW) {
            Cause::NoRoom
        } else if flags.contains(GroupFlags::PENDING) {
            Cause::Pending
        } else {
            self.isolated()
        };
        Denial {
            group: self.group,
            rule,
            by: self.by(),
            peer: self.side.peer.1.clone(),
            at: self.target.backend.at,
            cause,
        }
    }

    /// Why no rule of the policies that isolate the Pod allows the flow.
    fn isolated(&self) -> Cause {
        let Some(leg) = self.leg() else { return Cause::Unexplained };
        let rules = || leg.policies.iter().filter(|policy| policy.isolates()).flat_map(rules_of);
        if rules().any(|(_, _, rule)| rule.takes_peer() && rule.takes_port()) {
            return Cause::NotProgrammed;
        }
        let Target { backend, through, .. } = self.target;
        let flow =
            CandidateFlow { direction: self.side.direction, at: backend.at, through: *through };
        closest(&flow, rules()).map_or(Cause::NoRules, Cause::Closest)
    }
}

type LocatedRule<'a> = (&'a PolicyContext, u32, &'a lb_core::admin::context::RuleContext);

fn rules_of(policy: &PolicyContext) -> impl Iterator<Item = LocatedRule<'_>> {
    (0..).zip(&policy.rules).map(move |(index, rule)| (policy, index, rule))
}

/// Returns what is known of the policies of a Pod that another node evaluates.
pub(super) fn elsewhere<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    direction: PolicyDirection,
    subject: &Who,
    node: Option<&Arc<str>>,
) -> PolicyVerdict {
    if facts.epoch == 0 {
        return PolicyVerdict::NoPolicies;
    }
    if facts.is_here(node.map(|node| &**node)) {
        return PolicyVerdict::NoDevice;
    }
    let mut legs = facts.context.legs.iter();
    let leg = legs.find(|leg| leg.direction == direction && subject.is(&leg.subject));
    let enforced = leg.map(|leg| leg.policies.iter().filter(|policy| !policy.shadow).count());
    PolicyVerdict::OtherNode { node: node.cloned(), policies: enforced }
}

/// Returns the two peers of the rule that allows the flow of which the second was perhaps meant to limit the first.
fn peer_or(leg: &Leg, by: &DecidedBy, peer: &Who) -> Option<PeerOr> {
    let Some(RuleId::Written(RuleAt { index, .. })) = by.rule else { return None };
    let is_by =
        |policy: &&PolicyContext| by.policies.contains(&PolicyId::Named(policy.name.clone()));
    let policy = leg.policies.iter().find(is_by)?;
    let peers = policy.rules.get(usize::try_from(index).ok()?)?.peers.as_ref()?;
    let mut matching = (0..).zip(peers).filter(|(_, peer)| peer.misses.is_empty());
    let (at, matches) = matching.next().filter(|(_, peer)| is_namespaces(&peer.wants))?;
    if matching.next().is_some() {
        return None;
    }
    let other = peers.iter().find(|peer| is_pods(&peer.wants) && !peer.misses.is_empty())?;
    Some(PeerOr {
        policy: policy.name.clone(),
        rule: index,
        at,
        peer: peer.clone(),
        matches: matches.wants.clone(),
        other: other.wants.clone(),
    })
}

/// Whether it is all Pods of some namespaces.
fn is_namespaces(peer: &Peer) -> bool {
    match peer {
        Peer::Pods(PodSelector { namespaces: Namespaces::Selected(_), pods }) => pods.0.is_empty(),
        Peer::Pods(_) | Peer::Nodes(_) | Peer::Block { .. } => false,
    }
}

/// Whether it is Pods by their labels, in the policy's namespace.
fn is_pods(peer: &Peer) -> bool {
    matches!(peer, Peer::Pods(PodSelector { namespaces: Namespaces::Own, .. }))
}
