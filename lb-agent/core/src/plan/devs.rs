//! The writes to the map `devs`: the devices by which packets leave for other machines.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::endpoint::Dev;

use super::actual::Actual;
use super::retry::Backlog;
use super::write::{MapError, Write};

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Devs {
    pub(super) backlog: Backlog,
}

impl Devs {
    /// Returns the writes for what differs; removals first, since they make room.
    pub(super) fn plan(&mut self, actual: &Actual, wanted: &BTreeMap<u32, Dev>) -> Vec<Write> {
        self.backlog.begin();
        let gone = actual.devs.keys().filter(|ifindex| !wanted.contains_key(ifindex));
        let gone = gone.map(|ifindex| Write::DeleteDev { ifindex: *ifindex });
        let differs = |(ifindex, dev): &(&u32, &Dev)| actual.devs.get(ifindex) != Some(dev);
        let put = wanted.iter().filter(differs);
        gone.chain(put.map(|(ifindex, dev)| Write::PutDev { ifindex: *ifindex, dev: *dev }))
            .collect()
    }

    /// A write did not happen.
    pub(super) fn failed(&mut self, node: &str, err: &MapError, now: Duration) {
        let effect = "external traffic to some addresses of this node fails";
        self.backlog.failed_on(node, err, effect, now);
    }
}
