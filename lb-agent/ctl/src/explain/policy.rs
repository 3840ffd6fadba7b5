//! The policies of one Pod: judged by the programs' own evaluator on the maps, or on those that the agent's records make of
//! another node's; explained with the records.

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
use lb_core::admin::context::{FlowContext, Leg, PolicyContext, RecordJudgement, RecordVerdict};
use lb_core::cluster::{Namespaces, Peer, PodSelector};
use lb_core::model::policy::PolicyDirection;

/// One side of a flow, whose policies are evaluated.
pub(super) struct Side {
    /// Whether the flow enters the Pod or leaves it.
    pub(super) direction: PolicyDirection,
    /// The Pod.
    pub(super) subject: Who,
    /// The other end: its address, and what it is.
    pub(super) peer: (IpAddr, Who),
}

/// Returns what the maps say of a Pod of this node, which has this entry there.
pub(super) fn judge<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    side: Side,
    pod: &PodEntry,
    target: &Target,
) -> PolicyHop {
    let (group, shadow) = match side.direction {
        PolicyDirection::Ingress => (pod.ingress, pod.shadow_ingress),
        PolicyDirection::Egress => (pod.egress, pod.shadow_egress),
    };
    if facts.epoch == 0 || (group, shadow) == (0, 0) {
        return side.hop(PolicyVerdict::NotSelected);
    }
    let Some(ident) = identify(facts.tables, &Addr::from_ip(side.peer.0)) else {
        return side.hop(PolicyVerdict::FromOwnNode);
    };
    let at = target.backend.at;
    let own = target.is_through_itself(facts);
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
    let flags = facts.tables.group(group).map_or(GroupFlags::NONE, |group| group.flags);
    let found = ExplainedJudgement {
        context: facts.context,
        side: &side,
        target,
        own,
        judgement,
        selected: group != 0,
        group: (group != 0).then_some(group),
        by: facts.policies.by(group, judgement),
        no_room: flags.contains(GroupFlags::OVERFLOW),
        pending: flags.contains(GroupFlags::PENDING),
    };
    let shadow = (shadow != 0 && other.denied() != judgement.denied())
        .then(|| Shadow { by: facts.policies.by(shadow, other), denies: other.denied() });
    PolicyHop { shadow, ..side.hop(found.verdict()) }
}

/// Returns what is known of the policies of a Pod that another node evaluates: what they say by the agent's records, if those are
/// complete.
pub(super) fn elsewhere<T: PolicyLookup>(
    facts: &Facts<'_, T>,
    side: Side,
    node: Option<&Arc<str>>,
    target: &Target,
) -> PolicyHop {
    if facts.epoch == 0 {
        return side.hop(PolicyVerdict::NoPolicies);
    }
    if facts.is_here(node.map(|node| &**node)) {
        return side.hop(PolicyVerdict::NoDevice);
    }
    let leg = side.leg(facts.context, target);
    let by_record = node.cloned();
    let (enforced, tried) = match leg.and_then(|leg| leg.by_record.as_ref()) {
        None => {
            let policies = leg.map(|leg| leg.policies.iter().filter(|one| !one.shadow).count());
            return side.hop(PolicyVerdict::OtherNode { node: by_record, policies });
        }
        Some(RecordVerdict::NotSelected) => {
            return PolicyHop { by_record, ..side.hop(PolicyVerdict::NotSelected) };
        }
        Some(RecordVerdict::FromOwnNode) => {
            return PolicyHop { by_record, ..side.hop(PolicyVerdict::FromOwnNode) };
        }
        Some(RecordVerdict::Judged(enforced, tried)) => (enforced, tried),
    };
    let judgement = Judgement::from_number(enforced.number);
    let found = ExplainedJudgement {
        context: facts.context,
        side: &side,
        target,
        own: target.is_through_itself(facts),
        judgement,
        selected: enforced.selected,
        group: None,
        by: by(enforced),
        no_room: enforced.no_room,
        pending: false,
    };
    let shadow = tried.as_ref().and_then(|tried| {
        let denies = Judgement::from_number(tried.number).denied();
        (denies != judgement.denied()).then(|| Shadow { by: by(tried), denies })
    });
    PolicyHop { shadow, by_record, ..side.hop(found.verdict()) }
}

/// Who decided, as the agent's records have it.
fn by(judgement: &RecordJudgement) -> DecidedBy {
    let written = |(direction, index, others)| RuleId::Written(RuleAt { direction, index, others });
    DecidedBy {
        policies: judgement.policies.iter().cloned().map(PolicyId::Named).collect(),
        rule: judgement.rule.map(written),
    }
}

impl Side {
    fn hop(&self, verdict: PolicyVerdict) -> PolicyHop {
        let (direction, subject) = (self.direction, self.subject.clone());
        PolicyHop { direction, subject, verdict, shadow: None, by_record: None }
    }

    /// What the records say of the policies of this side.
    fn leg<'a>(&self, context: &'a FlowContext, target: &Target) -> Option<&'a Leg> {
        let Who::Object(subject) = &self.subject else { return None };
        let (peer, port) = (self.peer.0, target.backend.at.port());
        let mut legs = context.legs.iter().filter(|leg| leg.subject == *subject);
        legs.find(|leg| (leg.direction, leg.peer, leg.port) == (self.direction, peer, port))
    }
}

/// A judgement of tables, to be explained.
struct ExplainedJudgement<'a> {
    context: &'a FlowContext,
    side: &'a Side,
    target: &'a Target,
    /// Whether the Pod dials itself, through a Service.
    own: bool,
    judgement: Judgement,
    /// Whether policies were asked.
    selected: bool,
    /// Where the rules are in the maps, if they are there.
    group: Option<u32>,
    by: DecidedBy,
    /// Whether the policies did not fit.
    no_room: bool,
    /// Whether the Pod is not identified yet.
    pending: bool,
}

impl ExplainedJudgement<'_> {
    fn verdict(&self) -> PolicyVerdict {
        if self.judgement.denied() {
            PolicyVerdict::Denied(Box::new(self.denial()))
        } else {
            PolicyVerdict::Allowed(self.allowed())
        }
    }

    fn leg(&self) -> Option<&Leg> {
        self.side.leg(self.context, self.target)
    }

    fn allowed(&self) -> Allowed {
        if !self.by.policies.is_empty() {
            let mistake =
                self.leg().and_then(|leg| peer_or(leg, &self.by, &self.side.peer.1)).map(Box::new);
            return Allowed::Rule { by: self.by.clone(), mistake };
        }
        match (self.own, self.selected) {
            (true, _) => Allowed::Itself,
            (false, false) => Allowed::NotSelected,
            (false, true) => Allowed::NotIsolated,
        }
    }

    fn denial(&self) -> Denial {
        let rule = self.judgement.rule();
        let cause = if rule.is_some() {
            Cause::ClusterPolicy
        } else if self.no_room {
            Cause::NoRoom
        } else if self.pending {
            Cause::Pending
        } else {
            self.isolated()
        };
        Denial {
            group: self.group,
            rule,
            by: self.by.clone(),
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
