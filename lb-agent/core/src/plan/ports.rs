//! A bitmap of ports: which ports frontends have, say, or backends that are processes of this host.
//!
//! A bit is set before the first element that needs it is written; a bit that is not needed any longer is
//! cleared a while after the last one is gone, when this is certain.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use lb_common::limits;

use super::timers::RELEASE;

/// One of the bitmaps as it should be.
#[derive(Debug, Default)]
pub(super) struct PortBitmap {
    /// Number of elements in the maps that need the port.
    counts: HashMap<u16, u32>,
    /// Words that the plan in the making writes.
    planned: HashMap<u32, u64>,
    /// Words to check: they may have bits that are not needed, or lack some.
    doubtful: BTreeSet<u32>,
}

impl PortBitmap {
    /// An element that needs the port is in the map.
    pub(super) fn count(&mut self, port: u16) {
        *self.counts.entry(port).or_default() += 1;
    }

    /// It is there no longer. Returns whether it was the last.
    pub(super) fn uncount(&mut self, port: u16) -> bool {
        let Some(count) = self.counts.get_mut(&port) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.counts.remove(&port);
        self.doubtful.insert(limits::port_bit(port).0);
        true
    }

    /// Counts again, from these.
    pub(super) fn recount(&mut self, ports: impl Iterator<Item = u16>, actual: &[u64]) {
        self.counts.clear();
        ports.for_each(|port| self.count(port));
        let used = (0u32..).zip(actual).filter(|(_, bits)| **bits != 0).map(|(word, _)| word);
        let needed = self.counts.keys().map(|port| limits::port_bit(*port).0);
        self.doubtful = used.chain(needed).collect();
    }

    /// Returns whether no port is needed.
    pub(super) fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// A plan begins.
    pub(super) fn begin(&mut self) {
        self.planned.clear();
    }

    /// A write has failed: what was planned may not have happened.
    pub(super) fn doubt(&mut self) {
        self.doubtful.extend(self.planned.keys());
    }

    /// The write that is needed before an element with this port, if any: a word and its bits.
    pub(super) fn want(&mut self, port: u16, actual: &[u64]) -> Option<(u32, u64)> {
        let (word, bit) = limits::port_bit(port);
        let bits = self.planned.get(&word).copied().unwrap_or_else(|| at(actual, word));
        if bits & bit != 0 {
            return None;
        }
        self.planned.insert(word, bits | bit);
        Some((word, bits | bit))
    }

    /// Whether an element with this port may be written.
    pub(super) fn has(port: u16, actual: &[u64]) -> bool {
        let (word, bit) = limits::port_bit(port);
        at(actual, word) & bit != 0
    }

    /// Returns the writes that add what is missing in the doubtful words. Words with bits that are not needed stay doubtful.
    pub(super) fn add(&mut self, actual: &[u64]) -> Vec<(u32, u64)> {
        let mut writes = Vec::new();
        let words = std::mem::take(&mut self.doubtful);
        for word in words {
            let (needed, is) = (self.needed(word), at(actual, word));
            if is & !needed != 0 {
                self.doubtful.insert(word);
            }
            if needed & !is != 0 {
                self.planned.insert(word, is | needed);
                writes.push((word, is | needed));
            }
        }
        writes
    }

    /// The writes that make the doubtful words right.
    pub(super) fn sweep(&mut self, actual: &[u64]) -> Vec<(u32, u64)> {
        let mut writes = Vec::new();
        for word in std::mem::take(&mut self.doubtful) {
            let needed = self.needed(word);
            if needed != at(actual, word) {
                self.planned.insert(word, needed);
                writes.push((word, needed));
            }
        }
        writes
    }

    /// Whether some word has to be looked at.
    pub(super) fn is_doubtful(&self) -> bool {
        !self.doubtful.is_empty()
    }

    fn needed(&self, word: u32) -> u64 {
        let ports = (0u32..64).filter_map(|bit| u16::try_from(word * 64 + bit).ok());
        let needed = ports.filter(|port| self.counts.contains_key(port));
        needed.fold(0, |bits, port| bits | limits::port_bit(port).1)
    }
}

/// Ports of frontends that are gone, while flows to them may be left: rules are for first packets, and what is open goes on.
#[derive(Debug, Default)]
pub(super) struct Former {
    /// Since when the last one is gone, at the latest; `None` before that time is known.
    since: BTreeMap<u16, Option<Duration>>,
}

impl Former {
    /// As the bitmap has it that an agent before left.
    pub(super) fn restore(words: &[u64]) -> Self {
        let ports = (0..=u16::MAX).filter(|port| PortBitmap::has(*port, words));
        Self { since: ports.map(|port| (port, None)).collect() }
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.since.keys().copied()
    }

    /// A frontend with the port is gone. Returns whether it is the first.
    pub(super) fn gone(&mut self, port: u16) -> bool {
        self.since.insert(port, None).is_none()
    }

    /// It was gone at this time.
    pub(super) fn stamp(&mut self, now: Duration) {
        for since in self.since.values_mut().filter(|since| since.is_none()) {
            *since = Some(now);
        }
    }

    /// Forgets the ports that have no flows left, as a pass says that began at `begun` and found these `used`: a program
    /// that had read the frontend just before it went was done by then. Returns them.
    pub(super) fn over(&mut self, begun: Duration, used: &BTreeSet<u16>) -> Vec<u16> {
        let is_over = |port: &u16, since: &Option<Duration>| {
            since.is_some_and(|since| since + RELEASE <= begun) && !used.contains(port)
        };
        let over = self.since.iter().filter(|(port, since)| is_over(port, since));
        let over: Vec<u16> = over.map(|(port, _)| *port).collect();
        self.since.retain(|port, _| !over.contains(port));
        over
    }
}

fn at(words: &[u64], word: u32) -> u64 {
    words.get(word as usize).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Former, PortBitmap};

    #[test]
    fn bits_come_with_the_first_and_go_after_the_last() {
        let mut ports = PortBitmap::default();
        let mut actual = vec![0; 2];
        assert_eq!(ports.want(80, &actual), Some((1, 1 << 16)));
        assert_eq!(ports.want(81, &actual), Some((1, 3 << 16)), "with what is planned");
        assert_eq!(ports.want(80, &actual), None);
        actual[1] = 3 << 16;
        for port in [80, 80, 81] {
            ports.count(port);
        }
        assert!(!ports.uncount(80));
        assert!(ports.uncount(80));
        ports.begin();
        assert_eq!(ports.sweep(&actual), [(1, 2 << 16)]);
        assert_eq!(ports.want(80, &actual), Some((1, 3 << 16)), "although it is there still");
        assert!(!ports.is_doubtful());
    }

    #[test]
    fn a_former_port_stays_until_a_later_pass_finds_no_flow() {
        let at = Duration::from_secs;
        let mut former = Former::restore(&[0, 1 << 16]);
        assert!(former.gone(443) && !former.gone(80));
        assert!(former.over(at(9), &[].into()).is_empty(), "not known since when");
        former.stamp(at(10));
        assert!(former.over(at(10), &[].into()).is_empty(), "a program may read it still");
        assert_eq!(former.over(at(11), &[443].into()), [80]);
        assert!(!former.gone(443), "another one");
        assert!(former.over(at(12), &[].into()).is_empty());
        former.stamp(at(12));
        assert_eq!(former.over(at(40), &[].into()), [443]);
        assert_eq!(former.ports().count(), 0);
    }

    #[test]
    fn what_is_found_is_mended_at_once_and_cleared_later() {
        let mut ports = PortBitmap::default();
        ports.recount([65535, 1].into_iter(), &[0, 1]);
        assert_eq!(ports.add(&[0, 1]), [(0, 2), (1023, 1 << 63)]);
        assert!(ports.is_doubtful());
        assert_eq!(ports.sweep(&[2, 1]), [(1, 0)]);
    }
}
