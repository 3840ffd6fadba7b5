//! The writes to the map `devs`: the devices by which packets leave for other machines.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::endpoint::Dev;

use super::actual::Actual;
use super::retry::{Delays, Retry};
use super::write::{MapError, Write};
use crate::cluster::Name;
use crate::issue::{Issue, ObjectRef};

/// How soon a failed write is tried again: what is wanted is computed from the devices each time.
const DELAYS: Delays = (Duration::from_secs(1), Duration::from_secs(1));

/// What is left to do.
#[derive(Debug)]
pub(super) struct Devs {
    node: Name,
    issue: Option<Issue>,
    retry: Option<Retry>,
}

impl Default for Devs {
    fn default() -> Self {
        Self { node: Name::new("", ""), issue: None, retry: None }
    }
}

impl Devs {
    /// The writes for what differs on this node; removals first, since they make room.
    pub(super) fn plan(
        &mut self,
        actual: &Actual,
        node: &str,
        wanted: &BTreeMap<u32, Dev>,
    ) -> Vec<Write> {
        if &*self.node.name != node {
            self.node = Name::new("", node);
        }
        (self.issue, self.retry) = (None, None);
        let gone = actual.devs.keys().filter(|ifindex| !wanted.contains_key(ifindex));
        let gone = gone.map(|ifindex| Write::DeleteDev { ifindex: *ifindex });
        let differs = |(ifindex, dev): &(&u32, &Dev)| actual.devs.get(ifindex) != Some(dev);
        let put = wanted.iter().filter(differs);
        gone.chain(put.map(|(ifindex, dev)| Write::PutDev { ifindex: *ifindex, dev: *dev }))
            .collect()
    }

    /// A write did not happen.
    pub(super) fn failed(&mut self, err: &MapError, now: Duration) {
        self.retry = Some(Retry::after_failure(self.retry, DELAYS, now));
        let what = if err.full { "no room left" } else { "write refused" };
        self.issue.get_or_insert_with(|| {
            let node = ObjectRef::new("Node", &self.node);
            let message =
                format!("{what} ({err}): external traffic to some addresses of this node fails");
            Issue::new(node, format!("map {}", err.map), message)
        });
    }

    /// What could not be written.
    pub(super) fn issue(&self) -> Option<&Issue> {
        self.issue.as_ref()
    }

    /// When failed writes are to be tried again.
    pub(super) fn next_wakeup(&self) -> Option<Duration> {
        self.retry.map(|retry| retry.at)
    }
}
