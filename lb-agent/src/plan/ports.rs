//! The bitmaps of ports: which ports frontends have, and which backends that are processes of this host.
//!
//! A bit is set before the first element that needs it is written; a bit that nobody needs any more is cleared a
//! while after the last one is gone, when it is certain that it is.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};

use lb_common::limits;

/// One of the bitmaps as it should be.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Number of elements in the maps that need the port.
    counts: HashMap<u16, u32>,
    /// Words that the plan in the making writes.
    planned: HashMap<u32, u64>,
    /// Words to be looked at: they may have bits that nobody needs, or lack some.
    doubtful: BTreeSet<u32>,
}

impl Ports {
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

    /// Counts anew, from these.
    pub(super) fn recount(&mut self, ports: impl Iterator<Item = u16>, actual: &[u64]) {
        self.counts.clear();
        ports.for_each(|port| self.count(port));
        let used = (0u32..).zip(actual).filter(|(_, bits)| **bits != 0).map(|(word, _)| word);
        let needed = self.counts.keys().map(|port| limits::port_bit(*port).0);
        self.doubtful = used.chain(needed).collect();
    }

    /// Whether nobody needs any port.
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

    /// The writes that add what is needed in the doubtful words; those with bits that nobody needs stay doubtful.
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

fn at(words: &[u64], word: u32) -> u64 {
    words.get(word as usize).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Ports;

    #[test]
    fn bits_come_with_the_first_and_go_after_the_last() {
        let mut ports = Ports::default();
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
    fn what_is_found_is_mended_at_once_and_cleared_later() {
        let mut ports = Ports::default();
        ports.recount([65535, 1].into_iter(), &[0, 1]);
        assert_eq!(ports.add(&[0, 1]), [(0, 2), (1023, 1 << 63)]);
        assert!(ports.is_doubtful());
        assert_eq!(ports.sweep(&[2, 1]), [(1, 0)]);
    }
}
