//! Numbers that are out of use: they rest, their elements are removed, and then they are free.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::PolicyPlanner;
use super::assigned::Assigned;
use crate::model::policy::AtomSet;
use crate::plan::actual::Actual;
use crate::plan::write::Write;

/// Numbers and their elements rest so long after nothing refers to them any more: a program that read one just before
/// is long done with it.
const REST: Duration = Duration::from_secs(1);
/// Numbers that nothing refers to any more.
#[derive(Debug, Default)]
pub(super) struct Resting {
    pub(super) groups: BTreeSet<u32>,
    pub(super) idents: BTreeSet<u32>,
}

impl PolicyPlanner {
    /// Removes what has rested, and gives the numbers free whose elements are gone.
    pub(super) fn sweep(&mut self, actual: &Actual, now: Duration, writes: &mut Vec<Write>) {
        let (due, resting) =
            std::mem::take(&mut self.resting).into_iter().partition(|(at, _)| *at <= now);
        self.resting = resting;
        let due: Vec<(Duration, Resting)> = due;
        if due.is_empty() {
            return;
        }
        let mut all = Resting::default();
        for (_, resting) in due {
            all.groups.extend(resting.groups);
            all.idents.extend(resting.idents);
        }
        let mut kept = BTreeSet::new();
        for key in actual.peer_bits.keys() {
            if all.groups.contains(&key.group) || all.idents.contains(&key.ident) {
                writes.push(Write::DeletePeerBits { key: *key });
                kept.insert(key.group);
            }
        }
        for (len, key) in actual.port_bits.keys() {
            if all.groups.contains(&key.group) {
                writes.push(Write::DeletePortBits { len: *len, key: *key });
                kept.insert(key.group);
            }
        }
        let (kept, free): (BTreeSet<u32>, BTreeSet<u32>) =
            all.groups.into_iter().partition(|id| kept.contains(id));
        self.free.extend(free);
        if !writes.is_empty() {
            // Once more, when they are gone.
            self.resting.push((now + REST, Resting { groups: kept, idents: all.idents }));
        }
    }

    /// Puts to rest what neither the maps nor the plan refer to. Numbers that the plan takes out of use are still
    /// referred to by the maps as they are now: they are found by the next plan.
    pub(super) fn rest(
        &mut self,
        actual: &Actual,
        assigned: &Assigned,
        in_use: &BTreeMap<u32, AtomSet>,
        now: Duration,
    ) {
        let mut resting = Resting::default();
        let referred = self.referred(actual);
        let wanted: BTreeSet<u32> = assigned.groups.iter().map(|group| self.id_of(group)).collect();
        let (by_content, incomplete) = (&mut self.by_content, &mut self.incomplete);
        // Groups that go keep identities as they are, also the one that denies everything, which is not among the live ones.
        let mut late = !referred.is_subset(&wanted);
        self.live.retain(|head, live| {
            let leaves = !wanted.contains(head);
            let stays = !leaves || referred.contains(head);
            if leaves
                && let Some(content) = &live.content
                && by_content.get(content) == Some(head)
            {
                // Should it be wanted again, it gets another number: this one's tables are not kept up to date.
                by_content.remove(content);
            }
            if !stays {
                incomplete.remove(head);
                resting.groups.extend(&live.ids);
            }
            stays
        });
        let mut held: BTreeSet<u32> = actual.ident.values().map(|known| known.ident).collect();
        held.extend(actual.cidrs.iter().map(|(_, ident)| ident));
        let by_atoms = &mut self.by_atoms;
        self.idents.retain(|id, atoms| {
            let leaves = !in_use.contains_key(id);
            let stays = !leaves || held.contains(id);
            late |= leaves && stays;
            if leaves && by_atoms.get(atoms) == Some(id) {
                by_atoms.remove(atoms);
            }
            if !stays {
                resting.idents.insert(*id);
            }
            stays
        });
        self.strangers.retain(|id| {
            let stays = held.contains(id);
            late |= stays;
            if !stays {
                resting.idents.insert(*id);
            }
            stays
        });
        if !resting.groups.is_empty() || !resting.idents.is_empty() {
            self.resting.push((now + REST, resting));
        }
        if late && self.resting.is_empty() {
            // They are looked at again.
            self.resting.push((now + REST, Resting::default()));
        }
    }
}
