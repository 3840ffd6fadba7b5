//! When a failed write is tried again, and what is reported until then.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::write::MapError;
use crate::cluster::Name;
use crate::issue::{Issue, ObjectRef};

/// The delay after a write's first failure, and the longest one.
pub(super) type Delays = (Duration, Duration);

/// The next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retry {
    pub(super) at: Duration,
    pub(super) delay: Duration,
}

impl Retry {
    /// The try after `last`: each waits twice as long as the one before.
    pub(super) fn after(last: Option<Self>, (first, most): Delays, now: Duration) -> Self {
        let delay = last.map_or(first, |last| (last.delay * 2).min(most));
        Self { at: now + delay, delay }
    }

    /// The same for a failure now: a try that is still to come is for it, too.
    pub(super) fn after_failure(last: Option<Self>, delays: Delays, now: Duration) -> Self {
        let pending = last.filter(|last| last.at > now);
        pending.unwrap_or_else(|| Self::after(last, delays, now))
    }
}

/// An issue of the node: this write failed, with this effect until it is repeated.
pub(super) fn issue_on(node: &str, err: &MapError, effect: &str) -> Issue {
    let what = if err.full { "no room left" } else { "write refused" };
    let node = ObjectRef::new("Node", &Name::new("", node));
    Issue::new(node, format!("map {}", err.map), format!("{what} ({err}): {effect}"))
}

/// The first and the longest delay before the writes of a [`Backlog`] are repeated.
const DELAYS: Delays = (Duration::from_secs(1), Duration::from_secs(30));

/// What failed of the last plan for a few maps; the next plan has it again.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    issues: Vec<Issue>,
    retry: Option<Retry>,
}

impl Backlog {
    /// Forgets the issues of the last plan: another is made.
    pub(super) fn begin(&mut self) {
        self.issues.clear();
    }

    /// Takes note of a write that did not happen, and of what is reported therefore.
    pub(super) fn failed(&mut self, issue: Option<Issue>, now: Duration) {
        self.retry = Some(Retry::after_failure(self.retry, DELAYS, now));
        self.issues.extend(issue);
    }

    /// The same for a write that concerns the node as a whole: only the first is reported.
    pub(super) fn failed_on(&mut self, node: &str, err: &MapError, effect: &str, now: Duration) {
        let issue = self.issues.is_empty().then(|| issue_on(node, err, effect));
        self.failed(issue, now);
    }

    /// All writes of the plan happened.
    pub(super) fn settle(&mut self) {
        self.retry = None;
    }

    /// What is reported until the writes have happened.
    pub(super) fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// When the plan must be made again.
    pub(super) fn next_wakeup(&self) -> Option<Duration> {
        self.retry.map(|retry| retry.at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backlog, Retry};

    #[test]
    fn a_backlog_waits_longer_until_all_writes_happen() {
        let mut backlog = Backlog::default();
        let mut now = Duration::ZERO;
        let mut waited = Vec::new();
        for _ in 0..7 {
            backlog.begin();
            backlog.failed(None, now);
            backlog.failed(None, now);
            let next = backlog.next_wakeup().unwrap();
            waited.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waited, [1, 2, 4, 8, 16, 30, 30]);
        backlog.settle();
        assert_eq!(backlog.next_wakeup(), None);
        backlog.failed(None, now);
        assert_eq!(backlog.next_wakeup(), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn each_try_waits_twice_as_long_up_to_a_limit() {
        let s = Duration::from_secs;
        let delays = (s(1), s(5));
        let first = Retry::after_failure(None, delays, s(10));
        assert_eq!(first, Retry { at: s(11), delay: s(1) });
        assert_eq!(Retry::after_failure(Some(first), delays, s(10)), first, "still to come");
        let mut last = first;
        let mut waited = Vec::new();
        for _ in 0..4 {
            let now = last.at;
            last = Retry::after_failure(Some(last), delays, now);
            waited.push((last.at - now).as_secs());
        }
        assert_eq!(waited, [2, 4, 5, 5]);
    }
}
