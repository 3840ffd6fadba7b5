//! Writes that did not happen: what depends on them denies everything until they do.
#![forbid(unsafe_code)]

use std::time::Duration;

use lb_common::policy::{Group, GroupFlags, PeerKey, PolicyState, PortKey};

use super::PolicyPlanner;
use crate::issue::Issue;
use crate::model::policy::{self as model, PolicyDirection, object};
use crate::plan::actual::Actual;
use crate::plan::pods;
use crate::plan::retry::{Delays, Retry, issue_on};
use crate::plan::write::{MapError, Write};

/// The first and the longest delay before failed writes are repeated.
const DELAYS: Delays = (Duration::from_secs(1), Duration::from_secs(60));

impl PolicyPlanner {
    /// Whether the write is of no use: the rest of what a group needs, once something of it could not be written.
    pub(in crate::plan) fn is_moot(&self, write: &Write) -> bool {
        match write {
            Write::PutPeerBits { key: PeerKey { group, .. }, .. }
            | Write::PutPortBits { key: PortKey { group, .. }, .. } => {
                !self.incomplete.is_empty() && self.incomplete.contains(&self.head_of(*group))
            }
            _ => false,
        }
    }

    /// An element of `groups` as it can be written now: it denies everything while the group's tables lack something.
    pub(in crate::plan) fn close_incomplete(&self, write: &mut Write) {
        if let Write::PutGroup { id, group } = write
            && self.incomplete.contains(&self.head_of(*id))
        {
            group.flags |= GroupFlags::OVERFLOW;
        }
    }

    /// Returns the groups that deny everything since this write did not happen, and when it is tried again: those that
    /// depend on it.
    pub(in crate::plan) fn failed(
        &mut self,
        actual: &Actual,
        (write, err): (&Write, &MapError),
        node: &str,
        now: Duration,
    ) -> Vec<Write> {
        self.retry = Some(Retry::after_failure(self.retry, DELAYS, now));
        self.unwritten.get_or_insert_with(|| {
            issue_on(
                node,
                err,
                "until it is repeated, policies may be enforced as they were before",
            )
        });
        match write {
            Write::PutPeerBits { key: PeerKey { group, .. }, .. }
            | Write::PutPortBits { key: PortKey { group, .. }, .. } => {
                self.overflow(actual, [self.head_of(*group)])
            }
            Write::PutIdent { addr, ident } => {
                self.distinguish(actual, actual.ident_of(addr), ident.ident)
            }
            Write::DeleteIdent { addr } => {
                self.distinguish(actual, actual.ident_of(addr), actual.cidrs.find(addr))
            }
            Write::PutCidr { range, ident } => {
                self.distinguish(actual, actual.cidrs.find(&range.addr()), *ident)
            }
            Write::PutGroup { id, .. } => {
                self.incomplete.insert(self.head_of(*id));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// All writes of a plan happened.
    pub(in crate::plan) fn settle(&mut self, now: Duration) {
        self.unwritten = None;
        // Groups without room wait for others to go; that makes a plan.
        let again = |retry: Retry| {
            if retry.at > now { retry } else { Retry { at: now + retry.delay, ..retry } }
        };
        self.retry = self.retry.map(again).filter(|_| !self.incomplete.is_empty());
    }

    /// Addresses have one identity instead of another: groups that distinguish them cannot do right.
    fn distinguish(&mut self, actual: &Actual, have: u32, want: u32) -> Vec<Write> {
        let bits = |group: u32, ident: u32| actual.peer_bits.get(&PeerKey { group, ident });
        let differs = |id: &u32| bits(*id, have) != bits(*id, want);
        let live = self.live.values().filter(|live| live.ids.iter().any(differs));
        let heads: Vec<u32> = live.filter_map(|live| live.ids.first().copied()).collect();
        self.overflow(actual, heads)
    }

    /// The groups deny everything. An element of an array is always there; should the kernel refuse the write, the retry
    /// comes here again.
    fn overflow(&mut self, actual: &Actual, heads: impl IntoIterator<Item = u32>) -> Vec<Write> {
        let mut writes = Vec::new();
        for id in heads {
            self.incomplete.insert(id);
            let Some(group) = actual.groups.get(&id) else { continue };
            if !group.flags.contains(GroupFlags::OVERFLOW) {
                let group = Group { flags: group.flags | GroupFlags::OVERFLOW, ..*group };
                writes.push(Write::PutGroup { id, group: Box::new(group) });
            }
        }
        writes
    }
}

/// The map that lacks something which must be there before this write: nothing refers to a group that is not written.
pub(in crate::plan) fn lacks(actual: &Actual, write: &Write) -> Option<&'static str> {
    let lacking = match write {
        Write::PutPod { pod, .. } => pods::groups(pod).iter().any(|id| !actual.has_group(*id)),
        Write::PutPolicyState(PolicyState { pending_ingress, pending_egress, .. }) => {
            ![pending_ingress, pending_egress].iter().all(|id| actual.has_group(**id))
        }
        _ => false,
    };
    lacking.then_some("groups")
}

/// That a group does not do what it should.
pub(super) fn group_issues(group: &model::RuleSet) -> Vec<Issue> {
    let message = "the maps lack a part of it: all traffic in this direction of the Pods it selects is denied";
    let direction = group.rules.first().map(|(_, rule)| rule.source.direction);
    let field = direction.map_or("spec", |direction| match direction {
        PolicyDirection::Ingress => "spec.ingress",
        PolicyDirection::Egress => "spec.egress",
    });
    let issue = |(name, tier)| Issue::new(object(name, tier), field, message);
    group.policies().into_iter().map(issue).collect()
}
