//! When to look behind a new veth for its addresses: soon, then ever more rarely, then never.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Before the first look: the device is attached first.
const FIRST: Duration = Duration::from_millis(1);
/// Longest time between looks.
const SLOWEST: Duration = Duration::from_secs(1);
/// After this time a device that still has no address is left to the periodic resync.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the address of the other family is awaited after the first one was seen.
const SECOND_FAMILY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct Poll {
    due: Instant,
    wait: Duration,
    until: Instant,
    found: bool,
}

/// The schedule of all devices.
#[derive(Debug, Default)]
pub struct Polls(BTreeMap<u32, Poll>);

impl Polls {
    /// A device appeared.
    pub fn start(&mut self, ifindex: u32, now: Instant) {
        let poll = Poll { due: now + FIRST, wait: FIRST, until: now + PATIENCE, found: false };
        self.0.insert(ifindex, poll);
    }

    /// A device is gone.
    pub fn stop(&mut self, ifindex: u32) {
        self.0.remove(&ifindex);
    }

    /// An address was seen.
    pub fn found(&mut self, ifindex: u32, now: Instant) {
        if let Some(poll) = self.0.get_mut(&ifindex)
            && !poll.found
        {
            poll.found = true;
            poll.until = poll.until.min(now + SECOND_FAMILY);
        }
    }

    /// When the next look is due.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|poll| poll.due).min()
    }

    /// The devices to look behind now; their next look is scheduled.
    pub fn take(&mut self, now: Instant) -> Vec<u32> {
        let due: Vec<u32> = self
            .0
            .iter()
            .filter(|(_, poll)| poll.due <= now)
            .map(|(ifindex, _)| *ifindex)
            .collect();
        for ifindex in &due {
            if let Some(poll) = self.0.get_mut(ifindex) {
                poll.wait = (poll.wait * 2).min(SLOWEST);
                poll.due = now + poll.wait;
            }
        }
        self.0.retain(|_, poll| poll.due <= poll.until);
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Polls;

    /// Runs the schedule to its end and gives the times of the looks in milliseconds.
    fn looks(found_at: Option<u64>) -> Vec<u64> {
        let start = Instant::now();
        let mut polls = Polls::default();
        polls.start(7, start);
        let mut looks = Vec::new();
        while let Some(due) = polls.next() {
            assert_eq!(polls.take(due), [7]);
            let after = (due - start).as_millis() as u64;
            looks.push(after);
            if found_at.is_some_and(|at| after >= at) {
                polls.found(7, due);
            }
        }
        looks
    }

    #[test]
    fn looks_become_rarer_and_end() {
        let never = looks(None);
        assert_eq!(never[..6], [1, 3, 7, 15, 31, 63]);
        assert!((60..75).contains(&never.len()), "{}", never.len());
        assert!(*never.last().unwrap() <= 60_000);
    }

    #[test]
    fn the_second_family_is_awaited_for_two_seconds() {
        let found = looks(Some(30));
        assert!(found.iter().any(|at| *at > 1_000), "{found:?}");
        assert!(*found.last().unwrap() <= 2_031, "{found:?}");
    }

    #[test]
    fn a_device_that_is_gone_is_not_looked_at() {
        let now = Instant::now();
        let mut polls = Polls::default();
        polls.start(7, now);
        polls.stop(7);
        assert_eq!(polls.next(), None);
        assert!(polls.take(now + Duration::from_secs(9)).is_empty());
    }
}
