//! The writes to the map `locals`: how a packet reaches each Pod of this node past the IP stack, and whether it may.
//!
//! Why a Pod's flows go through the stack is a list of reasons, made from what is known of its device. It is empty if nothing
//! speaks against the other way. The element has the reasons, too, for those who read the maps.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lb_common::past::{LocalEnd, LocalFlags, StackReason};

use super::actual::Actual;
use super::pods::Pods;
use super::retry::Backlog;
use super::write::{MapError, Write};

/// What is known of a Pod's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPath {
    /// MAC addresses of the Pod's end and of the host's end.
    pub link: [[u8; 6]; 2],
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Why its flows go through the stack; empty = they need not.
    pub reasons: BTreeSet<StackReason>,
    /// The reasons are only that something was not looked at yet: what an earlier run has found is good until then.
    pub undecided: bool,
}

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Locals {
    pub(super) backlog: Backlog,
}

impl Locals {
    /// Returns the writes for what differs. `wanted` is by ifindex.
    pub(super) fn plan(
        &mut self,
        (actual, pods): (&Actual, &Pods),
        wanted: &BTreeMap<u32, PodPath>,
    ) -> Vec<Write> {
        self.backlog.begin();
        let mut elements: BTreeMap<u32, LocalEnd> = BTreeMap::new();
        for (ifindex, path) in wanted {
            let id = pods.id(*ifindex);
            if id != 0 {
                elements.insert(id, element(actual, id, *ifindex, path));
            }
        }
        let gone = actual.locals.keys().filter(|id| !elements.contains_key(id));
        let mut writes: Vec<Write> = gone.filter_map(|id| ended(actual, *id)).collect();
        let put = elements.into_iter().filter(|(id, local)| actual.locals.get(id) != Some(local));
        writes.extend(put.map(|(id, local)| Write::PutLocal { id, local }));
        writes
    }

    /// A write did not happen.
    pub(super) fn failed(&mut self, node: &str, err: &MapError, now: Duration) {
        let effect = "flows between Pods of this node may be lost, or go through the IP stack";
        self.backlog.failed_on(node, err, effect, now);
    }
}

/// The write after which a number means no Pod.
pub(super) fn ended(actual: &Actual, id: u32) -> Option<Write> {
    let before = actual.locals.get(&id).filter(|before| before.ifindex != 0)?;
    let generation = before.generation.wrapping_add(1);
    Some(Write::PutLocal { id, local: LocalEnd { generation, ..LocalEnd::ZERO } })
}

/// The element of a Pod. Its generation is another one than that of an earlier owner of the number, and of the Pod itself
/// before its device was that of another namespace.
fn element(actual: &Actual, id: u32, ifindex: u32, path: &PodPath) -> LocalEnd {
    let before = actual.locals.get(&id).copied().unwrap_or(LocalEnd::ZERO);
    let same = (before.ifindex, before.link) == (ifindex, path.link);
    let reasons = path.reasons.iter().fold(0, |bits, reason| bits | reason.bit());
    let flags = LocalFlags::PAST_OK.when(reasons == 0) | LocalFlags::from_bits(reasons);
    LocalEnd {
        ifindex,
        generation: if same { before.generation } else { before.generation.wrapping_add(1) },
        link: path.link,
        mtu: path.mtu,
        flags: if same && path.undecided { before.flags } else { flags },
        ..LocalEnd::ZERO
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::past::{LocalEnd, LocalFlags, StackReason};

    use super::{Actual, Locals, PodPath, Pods, Write};

    fn path(mac: u8, reasons: &[StackReason]) -> PodPath {
        let reasons = reasons.iter().copied().collect();
        PodPath { link: [[mac; 6], [9; 6]], mtu: 1500, reasons, undecided: false }
    }

    /// Applies the plan and returns the elements that it wrote.
    fn apply(
        actual: &mut Actual,
        pods: &Pods,
        wanted: &[(u32, PodPath)],
    ) -> Vec<(u32, u32, u32, bool)> {
        let wanted: BTreeMap<u32, PodPath> = wanted.iter().cloned().collect();
        let writes = Locals::default().plan((actual, pods), &wanted);
        writes.iter().for_each(|write| actual.record(write));
        let told = |write: &Write| match write {
            Write::PutLocal { id, local: LocalEnd { ifindex, generation, flags, .. } } => {
                (*id, *ifindex, *generation, flags.contains(LocalFlags::PAST_OK))
            }
            other => panic!("{other:?}"),
        };
        writes.iter().map(told).collect()
    }

    #[test]
    fn a_number_that_gets_another_owner_has_another_generation() {
        let (mut actual, mut pods) = (Actual::default(), Pods::default());
        pods.appeared(5);
        pods.appeared(6);
        let (five, six) = (path(5, &[]), path(6, &[StackReason::UnknownMac]));
        let both = [(5, five.clone()), (6, six.clone())];
        assert_eq!(apply(&mut actual, &pods, &both), [(1, 5, 1, true), (2, 6, 1, false)]);
        assert_eq!(apply(&mut actual, &pods, &both), []);
        assert_eq!(
            apply(&mut actual, &pods, &[(5, five.clone()), (6, path(6, &[]))]),
            [(2, 6, 1, true)]
        );
        // Another namespace behind the same device.
        assert_eq!(
            apply(&mut actual, &pods, &[(5, path(7, &[])), (6, path(6, &[]))]),
            [(1, 5, 2, true)]
        );
        // The device goes, and another one gets its number.
        assert_eq!(apply(&mut actual, &pods, &[(6, path(6, &[]))]), [(1, 0, 3, false)]);
        assert_eq!(apply(&mut actual, &pods, &[(6, path(6, &[]))]), []);
        pods.gone(5);
        let mut restored = Pods::restore(&actual.pods);
        restored.appeared(8);
        assert_eq!(restored.id(8), 1, "in this test numbers are given away at once");
        let wanted = [(8, path(5, &[]))];
        assert_eq!(apply(&mut actual, &restored, &wanted), [(2, 0, 2, false), (1, 8, 4, true)]);
    }

    /// After a restart of the agent, flows keep their way.
    #[test]
    fn what_is_not_looked_at_again_yet_stays_as_it_was() {
        let (mut actual, mut pods) = (Actual::default(), Pods::default());
        pods.appeared(5);
        assert_eq!(apply(&mut actual, &pods, &[(5, path(5, &[]))]), [(1, 5, 1, true)]);
        let not_attached = path(5, &[StackReason::NotAttached]);
        let undecided = PodPath { undecided: true, ..not_attached.clone() };
        assert_eq!(apply(&mut actual, &pods, &[(5, undecided.clone())]), []);
        let moved = PodPath { link: [[7; 6], [9; 6]], ..undecided };
        assert_eq!(apply(&mut actual, &pods, &[(5, moved)]), [(1, 5, 2, false)]);
        assert_eq!(apply(&mut actual, &pods, &[(5, not_attached)]), [(1, 5, 3, false)]);
        let flags = actual.locals[&1].flags;
        assert_eq!(
            StackReason::among(flags.bits()).collect::<Vec<_>>(),
            [StackReason::NotAttached]
        );
    }

    #[test]
    fn a_device_without_a_number_has_no_element() {
        let wanted = [(5, path(5, &[]))];
        assert_eq!(apply(&mut Actual::default(), &Pods::default(), &wanted), []);
    }
}
