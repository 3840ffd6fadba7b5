//! Writes that did not happen: what depends on them denies everything until they do.
#![forbid(unsafe_code)]

use std::time::Duration;

use lb_common::policy::{Group, PeerKey, PortKey, group_flags};

use super::{Live, Op, Planner, Store};
use crate::issue::Issue;
use crate::model::policy::{self as model, Direction, object};

/// Failed writes are tried again after so long, then after twice as long, up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

impl Planner {
    /// A write did not happen: what depends on it denies everything, until it does.
    pub(super) fn fail(&mut self, op: &Op, store: &mut impl Store, now: Duration) {
        let delay =
            self.retry.map_or(
                RETRY,
                |(at, delay)| {
                    if at > now { delay } else { (delay * 2).min(RETRY_MOST) }
                },
            );
        self.retry = Some((now + delay, delay));
        match op {
            Op::PutPeerBits { key: PeerKey { group, .. }, .. }
            | Op::PutPortBits { key: PortKey { group, .. }, .. } => {
                self.overflow(self.head_of(*group), store);
            }
            Op::PutIdent { addr, ident } => {
                self.distinguish(self.actual.ident_of(addr), ident.ident, store);
            }
            Op::DeleteIdent { addr } => {
                self.distinguish(self.actual.ident_of(addr), self.actual.cidrs.find(addr), store);
            }
            Op::PutCidr { range, ident } => {
                self.distinguish(self.actual.cidrs.find(&range.addr()), *ident, store);
            }
            Op::PutGroup { id, .. } => {
                self.incomplete.insert(self.head_of(*id));
            }
            Op::DeletePeerBits { .. }
            | Op::DeletePortBits { .. }
            | Op::DeleteCidr { .. }
            | Op::SetGroups { .. }
            | Op::PutState(_) => {}
        }
    }

    /// Addresses have one identity instead of another: groups that tell them apart cannot do right.
    fn distinguish(&mut self, have: u32, want: u32, store: &mut impl Store) {
        let bits = |group: u32, ident: u32| self.actual.peer_bits.get(&PeerKey { group, ident });
        let differs = |live: &&Live| live.ids.iter().any(|id| bits(*id, have) != bits(*id, want));
        let heads = self.live.values().filter(differs).filter_map(|live| live.ids.first());
        for head in heads.copied().collect::<Vec<_>>() {
            self.overflow(head, store);
        }
    }

    fn overflow(&mut self, head: u32, store: &mut impl Store) {
        self.incomplete.insert(head);
        let Some(group) = self.actual.groups.get(&head) else { return };
        if group.flags & group_flags::OVERFLOW != 0 {
            return;
        }
        let group = Group { flags: group.flags | group_flags::OVERFLOW, ..*group };
        let op = Op::PutGroup { id: head, group: Box::new(group) };
        // An element of an array is always there; should the kernel refuse, the retry comes here again.
        if store.apply(&op).is_ok() {
            self.actual.done(&op);
        }
    }
}

/// That a group does not do what it should.
pub(super) fn group_issues(group: &model::Group) -> Vec<Issue> {
    let message = "it does not fit in the maps: all traffic in this direction of the Pods it selects is denied";
    let direction = group.rules.first().map(|(_, rule)| rule.source.direction);
    let field = direction.map_or("spec", |direction| match direction {
        Direction::Ingress => "spec.ingress",
        Direction::Egress => "spec.egress",
    });
    let issue = |(name, tier)| Issue::new(object(name, tier), field, message);
    group.policies().into_iter().map(issue).collect()
}
