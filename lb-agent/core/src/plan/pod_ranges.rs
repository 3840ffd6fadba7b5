//! The writes to the map `pod_ranges`: whose addresses of other nodes' Pods are, while those Pods are not known one by one.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use super::actual::Actual;
use super::retry::Backlog;
use super::write::{MapError, Write};
use crate::cluster::Prefix;

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct OtherRanges {
    pub(super) backlog: Backlog,
}

impl OtherRanges {
    /// Returns the writes for what is missing.
    pub(super) fn add(&mut self, actual: &Actual, wanted: &BTreeSet<Prefix>) -> Vec<Write> {
        self.backlog.begin();
        wanted
            .difference(&actual.pod_ranges)
            .map(|range| Write::PutPodRange { range: *range })
            .collect()
    }

    /// Returns the writes for what is not wanted any longer.
    pub(super) fn remove(actual: &Actual, wanted: &BTreeSet<Prefix>) -> Vec<Write> {
        let gone = actual.pod_ranges.difference(wanted);
        gone.map(|range| Write::DeletePodRange { range: *range }).collect()
    }

    /// A write did not happen.
    pub(super) fn failed(&mut self, node: &str, err: &MapError, now: Duration) {
        let effect = "without policies, Pods can send from addresses of some Pods of other nodes";
        self.backlog.failed_on(node, err, effect, now);
    }
}
