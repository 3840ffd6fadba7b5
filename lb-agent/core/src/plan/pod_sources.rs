//! The writes to the map `pod_sources`: what Pods can send from in addition to their own addresses.
//!
//! New ranges come before old ones go, so what two annotations of a Pod admit passes in between. Only what an earlier
//! device with the same number has left goes first. A mark in the element of `pods` says that there are such ranges; it is
//! written after the first, and ranges without a mark have no effect.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::endpoint::{PodEntry, PodFlags};

use super::actual::Actual;
use super::retry::Backlog;
use super::source_key::SourceKey;
use super::write::{MapError, Write};
use crate::annotation::Annotation;
use crate::cluster::Name;
use crate::issue::{Issue, ObjectRef};

/// What is wanted, and what is left to do.
#[derive(Debug, Default)]
pub(super) struct PodSources {
    /// The ranges and the Pods that want them; `None` before all Pods are known.
    wanted: Option<BTreeMap<SourceKey, Name>>,
    pub(super) backlog: Backlog,
}

impl PodSources {
    /// Returns the writes for what differs from now on.
    pub(super) fn plan(
        &mut self,
        actual: &Actual,
        wanted: BTreeMap<SourceKey, Name>,
    ) -> Vec<Write> {
        self.backlog.begin();
        let unwanted = actual.pod_sources.iter().filter(|key| !wanted.contains_key(key));
        let is_marked = |key: &&SourceKey| actual.pods.get(&key.ifindex).is_some_and(has_mark);
        let (current, former): (Vec<_>, Vec<_>) = unwanted.partition(is_marked);
        let delete = |key: &SourceKey| Write::DeletePodSource { key: *key };
        let mut writes: Vec<Write> = former.into_iter().map(delete).collect();
        let new = wanted.keys().filter(|key| !actual.pod_sources.contains(key));
        writes.extend(new.map(|key| Write::PutPodSource { key: *key }));
        writes.extend(current.into_iter().map(delete));
        self.wanted = Some(wanted);
        writes
    }

    /// A write did not happen.
    pub(super) fn failed(&mut self, write: &Write, err: &MapError, now: Duration) {
        let pod = match (write, &self.wanted) {
            (Write::PutPodSource { key }, Some(wanted)) => wanted.get(key).map(|pod| (key, pod)),
            _ => None,
        };
        let what = if err.full { "does not fit" } else { "could not be written" };
        let issue = pod.map(|(SourceKey { range, .. }, pod)| {
            let message = format!("{range} {what} in the map pod_sources ({err}): ignored");
            let field = Annotation::AllowedSources.field();
            Issue::new(ObjectRef::new("Pod", pod), field, message)
        });
        self.backlog.failed(issue, now);
    }

    /// A device is gone: what its Pod wanted is not for the next device with this number.
    pub(super) fn gone(&mut self, ifindex: u32) {
        if let Some(wanted) = &mut self.wanted {
            wanted.retain(|key, _| key.ifindex != ifindex);
        }
    }

    /// Whether the element of a device is to be marked: the map has a range that its Pod wants, and none that an earlier
    /// device with this number has left.
    pub(super) fn is_marked(&self, actual: &Actual, ifindex: u32) -> bool {
        let before = actual.pods.get(&ifindex).is_some_and(has_mark);
        // As an earlier run has left it.
        let Some(wanted) = &self.wanted else { return before };
        let (mut some, mut all) = (false, true);
        for key in SourceKey::of_device(ifindex, &actual.pod_sources) {
            let is_wanted = wanted.contains_key(key);
            some |= is_wanted;
            all &= is_wanted;
        }
        some && (before || all)
    }
}

fn has_mark(pod: &PodEntry) -> bool {
    pod.flags.contains(PodFlags::MORE_SOURCES)
}

#[cfg(test)]
mod tests {
    use super::{Actual, Name, PodEntry, PodFlags, PodSources, SourceKey, Write};

    fn key(ifindex: u32, range: &str) -> SourceKey {
        SourceKey { ifindex, range: range.parse().unwrap() }
    }

    #[test]
    fn new_ranges_come_before_old_ones_go_and_what_another_device_left_goes_first() {
        let marked = PodEntry { flags: PodFlags::MORE_SOURCES, ..PodEntry::ZERO };
        let [wide, narrow, left, stays] = [
            key(5, "10.0.0.0/8"),
            key(5, "10.0.0.0/16"),
            key(6, "192.0.2.0/24"),
            key(5, "2001:db8::/64"),
        ];
        let mut actual = Actual {
            pods: [(5, marked), (6, PodEntry::ZERO)].into(),
            pod_sources: [wide, left, stays].into(),
            ..Actual::default()
        };
        let mut sources = PodSources::default();
        assert_eq!(
            [5, 6].map(|ifindex| sources.is_marked(&actual, ifindex)),
            [true, false],
            "as it was until all Pods are known"
        );
        let pod = |name| Name::new("default", name);
        let wanted = [(narrow, pod("web")), (stays, pod("web")), (key(6, "::/0"), pod("db"))];
        let writes = sources.plan(&actual, wanted.into());
        assert_eq!(
            writes,
            [
                Write::DeletePodSource { key: left },
                Write::PutPodSource { key: narrow },
                Write::PutPodSource { key: key(6, "::/0") },
                Write::DeletePodSource { key: wide },
            ]
        );
        assert!(!sources.is_marked(&actual, 6), "what it wants is not written yet");
        actual.record(&writes[2]);
        assert!(!sources.is_marked(&actual, 6), "another device's range is still there");
        writes.iter().for_each(|write| actual.record(write));
        let marked = |sources: &PodSources| [5, 6, 7].map(|i| sources.is_marked(&actual, i));
        assert_eq!(marked(&sources), [true, true, false]);
        sources.gone(6);
        assert_eq!(marked(&sources), [true, false, false], "the next device with this number");
    }
}
