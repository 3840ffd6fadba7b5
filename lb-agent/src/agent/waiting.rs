//! Changes that were told and are not in the maps yet: how many, since when, and how long each took in the end.
#![forbid(unsafe_code)]

use std::time::Instant;

use crate::observe::metrics::ChangeKind;
use lb_core::cluster::{Change, Event, Family};
use lb_kube::Received;

/// Changes remembered one by one; beyond that only the oldest counts.
const REMEMBERED: usize = 4096;

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// What it is about.
    pub subject: ChangeKind,
    /// When it arrived.
    pub at: Instant,
    /// For endpoints: the family, and when the change happened in the API, in milliseconds since 1970.
    pub trigger: Option<(Family, u64)>,
    /// Whether a write failed meanwhile: then its time says nothing about this agent.
    pub stalled: bool,
}

/// What is being waited for.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Vec<Waiting>,
    oldest: Option<Instant>,
}

impl Queue {
    /// Notes an event, if it is a change that ends up in the maps.
    pub(super) fn push(&mut self, received: &Received) -> Option<ChangeKind> {
        let (subject, trigger) = match &received.event {
            Event::Service(_) => (ChangeKind::Service, None),
            Event::Slice(Change::Applied(_, slice)) => {
                (ChangeKind::Endpoints, slice.trigger_ms.map(|ms| (slice.family, ms)))
            }
            Event::Slice(Change::Deleted(_)) => (ChangeKind::Endpoints, None),
            Event::Pod(_)
            | Event::Namespace(_)
            | Event::Node(_)
            | Event::ServiceCidr(_)
            | Event::NetworkPolicy(_)
            | Event::ClusterNetworkPolicy(_)
            | Event::Host(_)
            | Event::Tunnels(_)
            | Event::OtherProxy
            | Event::Server(_)
            | Event::Pods(_)
            | Event::Restarted(_)
            | Event::Synced(_)
            | Event::Issues(..) => return None,
        };
        self.oldest = Some(self.oldest.map_or(received.at, |oldest| oldest.min(received.at)));
        if self.waiting.len() < REMEMBERED {
            self.waiting.push(Waiting { subject, at: received.at, trigger, stalled: false });
        }
        Some(subject)
    }

    /// Changes of this kind that wait.
    pub(super) fn count(&self, subject: ChangeKind) -> usize {
        self.waiting.iter().filter(|waiting| waiting.subject == subject).count()
    }

    /// Since when the oldest waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.oldest
    }

    /// Everything is in the maps. Returns the changes during which no write failed.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Waiting> {
        self.oldest = None;
        self.waiting.drain(..).filter(|waiting| !waiting.stalled)
    }

    /// A write failed, and all changes keep waiting.
    pub(super) fn stall(&mut self) {
        self.waiting.iter_mut().for_each(|waiting| waiting.stalled = true);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Queue;
    use crate::observe::metrics::ChangeKind;
    use lb_core::cluster::{Change, Event, Kind, Name};
    use lb_kube::Received;

    #[test]
    fn changes_wait_until_all_is_written() {
        let at = Instant::now();
        let gone = || Change::Deleted(Name::new("default", "web"));
        let mut queue = Queue::default();
        let mut push = |event: Event, after: u64| {
            queue.push(&Received { event, at: at + Duration::from_secs(after) })
        };
        assert_eq!(
            push(Event::Slice(Change::Deleted(Name::new("a", "b"))), 2),
            Some(ChangeKind::Endpoints)
        );
        assert_eq!(push(Event::Service(gone()), 1), Some(ChangeKind::Service));
        assert_eq!(push(Event::Synced(Kind::Service), 0), None);
        assert_eq!((queue.count(ChangeKind::Service), queue.count(ChangeKind::Endpoints)), (1, 1));
        assert_eq!(queue.oldest(), Some(at + Duration::from_secs(1)));
        queue.stall();
        assert_eq!(queue.oldest(), Some(at + Duration::from_secs(1)), "still pending");
        assert_eq!((queue.count(ChangeKind::Service), queue.count(ChangeKind::Endpoints)), (1, 1));
        queue.push(&Received { event: Event::Service(gone()), at });
        assert_eq!(queue.drain().count(), 1, "the time of what waited for a retry is not measured");
        assert_eq!(queue.oldest(), None);
    }
}
