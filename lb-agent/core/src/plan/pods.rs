//! The Pods' devices: which element of the map `pods` each gets.
//!
//! The device says the addresses and the bridge, policies say the groups, and here is what joins them: the Pod's number,
//! whether it has more sources, and until when connections may be older than its first policy.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lb_common::endpoint::{PodEntry, PodFlags};
use lb_common::limits;

use super::actual::Actual;
use super::pod_sources::PodSources;

/// The groups of a Pod: ingress, egress, and the same with shadow policies; 0 = none.
pub type GroupIds = [u32; 4];

/// The groups in an element of `pods`.
pub fn groups(pod: &PodEntry) -> GroupIds {
    [pod.ingress, pod.egress, pod.shadow_ingress, pod.shadow_egress]
}

/// What is remembered of the Pods' devices beside the map itself.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// Those of which it is known which Pod is behind them.
    known: BTreeSet<u32>,
    /// What Pods can send from in addition to their own addresses.
    pub(super) sources: PodSources,
    ids: Ids,
}

impl Pods {
    /// Takes over what the map says.
    pub(super) fn restore(pods: &BTreeMap<u32, PodEntry>) -> Self {
        let ids = Ids::restore(pods.iter().map(|(ifindex, pod)| (*ifindex, pod.id)));
        Self { ids, ..Self::default() }
    }

    /// A device appeared.
    pub(super) fn appeared(&mut self, ifindex: u32) {
        self.ids.take(ifindex);
    }

    /// It is known which Pod is behind a device.
    pub(super) fn is_known(&mut self, ifindex: u32) {
        self.known.insert(ifindex);
    }

    /// A device is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.known.remove(&ifindex);
        self.sources.gone(ifindex);
        self.ids.release(ifindex);
    }

    /// The dense number of a device; 0 = none.
    pub(super) fn id(&self, ifindex: u32) -> u32 {
        self.ids.of(ifindex)
    }

    /// The element of a device. `device_part` is what the device itself says. `until` is the stamp until which connections may be
    /// met in mid-flow that are older than the first policy of their Pod, should this be it.
    pub(super) fn element(
        &self,
        (ifindex, device_part): (u32, &PodEntry),
        actual: &Actual,
        groups: GroupIds,
        until: u32,
    ) -> PodEntry {
        let more = self.sources.is_marked(actual, ifindex);
        let flags = device_part.flags | PodFlags::MORE_SOURCES.when(more);
        let [ingress, egress, shadow_ingress, shadow_egress] = groups;
        let before = actual.pods.get(&ifindex).unwrap_or(&PodEntry::ZERO);
        let first = (before.ingress, before.egress) == (0, 0) && (ingress, egress) != (0, 0);
        // A Pod that is known only now has been under its policies from its first moment.
        let until = if self.known.contains(&ifindex) { until } else { 0 };
        let pickup_until = if first { until } else { before.pickup_until };
        let id = self.ids.of(ifindex);
        PodEntry {
            id,
            flags,
            ingress,
            egress,
            shadow_ingress,
            shadow_egress,
            pickup_until,
            ..*device_part
        }
    }
}

/// The dense numbers of Pods: small, and given away again as late as possible.
#[derive(Debug, Default)]
struct Ids {
    by_device: BTreeMap<u32, u32>,
    /// The greatest number that was ever given away.
    last: u32,
    /// Those given back, the one that has been free for longest first.
    free: VecDeque<u32>,
}

impl Ids {
    fn restore(pods: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut ids = Self::default();
        let mut taken = BTreeSet::new();
        for (ifindex, id) in pods {
            if (1..limits::PODS).contains(&id) && taken.insert(id) {
                ids.by_device.insert(ifindex, id);
            }
        }
        ids.last = taken.last().copied().unwrap_or(0);
        ids.free = (1..ids.last).filter(|id| !taken.contains(id)).collect();
        ids
    }

    /// The device has a number from now on, if there is one left.
    fn take(&mut self, ifindex: u32) {
        if self.by_device.contains_key(&ifindex) {
            return;
        }
        let id = if self.last + 1 < limits::PODS {
            self.last += 1;
            Some(self.last)
        } else {
            self.free.pop_front()
        };
        self.by_device.extend(id.map(|id| (ifindex, id)));
    }

    fn release(&mut self, ifindex: u32) {
        self.free.extend(self.by_device.remove(&ifindex));
    }

    /// The number of a device; 0 = none.
    fn of(&self, ifindex: u32) -> u32 {
        self.by_device.get(&ifindex).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::endpoint::{PodEntry, PodFlags};

    use super::{Actual, Ids, Pods, groups};
    use crate::cluster::Name;
    use crate::plan::source_key::SourceKey;

    const FACE: PodEntry =
        PodEntry { bridge6: 9, nsid: 3, flags: PodFlags::BRIDGED, ..PodEntry::ZERO };

    #[test]
    fn an_element_is_what_the_device_and_the_policies_say() {
        let mut pods = Pods::default();
        let mut actual = Actual::default();
        let of = |pods: &Pods, groups| pods.element((5, &FACE), &Actual::default(), groups, 7);
        assert_eq!(of(&pods, [0; 4]), FACE, "no number before it has appeared");
        pods.appeared(5);
        assert_eq!(of(&pods, [0; 4]), PodEntry { id: 1, ..FACE });
        let full = of(&pods, [1, 2, 3, 4]);
        assert_eq!((groups(&full), full.id, full.bridge6), ([1, 2, 3, 4], 1, 9));
        let key = SourceKey { ifindex: 5, range: "10.0.0.0/8".parse().unwrap() };
        for write in pods.sources.plan(&actual, [(key, Name::new("default", "web"))].into()) {
            actual.record(&write);
        }
        let flags = PodFlags::BRIDGED | PodFlags::MORE_SOURCES;
        let marked = pods.element((5, &FACE), &actual, [1, 2, 3, 4], 7);
        assert_eq!(marked, PodEntry { flags, ..full });
    }

    #[test]
    fn connections_may_be_older_than_the_first_policy_of_a_pod_that_was_known_without_one() {
        // Whether the Pod was known, its groups in the map and until when, the new groups, the new time.
        let cases = [
            ("the first policy", true, ([0, 0, 0, 0], 0), [3, 0, 0, 0], 7),
            ("the other direction", true, ([0, 0, 0, 0], 0), [0, 3, 0, 0], 7),
            ("under policies from the first moment", false, ([0, 0, 0, 0], 0), [3, 3, 0, 0], 0),
            ("was awaited, is known", true, ([2, 2, 0, 0], 0), [3, 3, 0, 0], 0),
            ("another policy", true, ([3, 0, 0, 0], 5), [4, 4, 0, 0], 5),
            ("one that is only tried", true, ([0, 0, 0, 0], 0), [0, 0, 3, 0], 0),
            ("none any more", true, ([3, 0, 0, 0], 5), [0, 0, 0, 0], 5),
            ("and one again", true, ([0, 0, 0, 0], 5), [3, 0, 0, 0], 7),
        ];
        for (name, known, ([ingress, egress, ..], before), groups, want) in cases {
            let pod = PodEntry { ingress, egress, pickup_until: before, id: 1, ..PodEntry::ZERO };
            let actual = Actual { pods: [(5, pod)].into(), ..Actual::default() };
            let mut pods = Pods::restore(&actual.pods);
            if known {
                pods.is_known(5);
            }
            let got = pods.element((5, &FACE), &actual, groups, 7);
            assert_eq!((got.pickup_until, got.id), (want, 1), "{name}");
        }
    }

    #[test]
    fn numbers_are_dense_and_given_away_again_as_late_as_possible() {
        let mut ids = Ids::default();
        (10..13).for_each(|ifindex| ids.take(ifindex));
        ids.release(11);
        ids.take(13);
        ids.take(10);
        assert_eq!([10, 11, 12, 13].map(|ifindex| ids.of(ifindex)), [1, 0, 3, 4]);

        // A restart: what the map has; one number twice, or out of range, is given away once.
        let mut ids = Ids::restore([(10, 1), (12, 3), (13, 4), (14, 4), (15, 4096)].into_iter());
        assert_eq!([10, 12, 13, 14, 15].map(|ifindex| ids.of(ifindex)), [1, 3, 4, 0, 0]);
        (100..100 + 4095).for_each(|ifindex| ids.take(ifindex));
        assert_eq!((ids.of(100), ids.of(100 + 4090), ids.of(100 + 4091)), (5, 4095, 2));
        assert_eq!(ids.of(100 + 4092), 0, "all are in use");
        ids.release(12);
        ids.take(14);
        assert_eq!(ids.of(14), 3);
    }
}
