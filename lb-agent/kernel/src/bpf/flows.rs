//! The last flows that the programs reported, for readers at their own speed.
//!
//! Writing never waits. A reader that is too slow loses records, and learns how many.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use lb_common::event::FlowEvent;

/// Records that are kept.
pub const CAPACITY: usize = 4096;

/// A flow that was denied, or an allowed one while a client follows allowed flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedFlow {
    /// What the program sent.
    pub event: FlowEvent,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The last of them, in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    flows: VecDeque<ObservedFlow>,
    /// Number of the next one; they count from 0.
    next: u64,
}

/// Some records from a place on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowBatch {
    /// The records.
    pub flows: Vec<ObservedFlow>,
    /// Records before them that are gone.
    pub lost: u64,
}

impl Recent {
    /// Adds a record, in place of the oldest one when there is no room.
    pub fn push(&mut self, flow: ObservedFlow) {
        if self.flows.len() >= CAPACITY {
            self.flows.pop_front();
        }
        self.flows.push_back(flow);
        self.next += 1;
    }

    /// Number of the oldest one that is kept.
    pub fn oldest(&self) -> u64 {
        self.next - self.flows.len() as u64
    }

    /// Number of the next one to come.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Those that are kept.
    pub fn iter(&self) -> impl Iterator<Item = &ObservedFlow> {
        self.flows.iter()
    }

    /// At most `most` records from number `from` on, which is moved behind them.
    pub fn take(&self, from: &mut u64, most: usize) -> FlowBatch {
        let start = self.oldest().max(*from);
        let lost = start - *from;
        let skip = usize::try_from(start - self.oldest()).unwrap_or(usize::MAX);
        let flows: Vec<ObservedFlow> = self.flows.iter().skip(skip).take(most).copied().collect();
        *from = start + flows.len() as u64;
        FlowBatch { flows, lost }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::event::FlowEvent;

    use super::{CAPACITY, ObservedFlow, Recent};

    fn push(recent: &mut Recent, n: u64) {
        for _ in 0..n {
            let at_ms = recent.next();
            recent.push(ObservedFlow { event: FlowEvent::ZERO, at_ms });
        }
    }

    #[test]
    fn a_reader_gets_all_once_or_knows_how_many_it_lost() {
        let mut recent = Recent::default();
        let mut from = 0;
        assert_eq!(recent.take(&mut from, 10).flows, []);
        push(&mut recent, 3);
        let times = |recent: &Recent, from: &mut u64, most| {
            let batch = recent.take(from, most);
            (batch.flows.iter().map(|flow| flow.at_ms).collect::<Vec<_>>(), batch.lost)
        };
        assert_eq!(times(&recent, &mut from, 2), (vec![0, 1], 0));
        assert_eq!(times(&recent, &mut from, 2), (vec![2], 0));
        assert_eq!(times(&recent, &mut from, 2), (vec![], 0));
        push(&mut recent, CAPACITY as u64 + 5);
        assert_eq!(recent.oldest(), 8);
        assert_eq!(times(&recent, &mut from, 2), (vec![8, 9], 5));
        assert_eq!(times(&recent, &mut from, CAPACITY).0.len(), CAPACITY - 2);
        assert_eq!(recent.iter().count(), CAPACITY);
    }
}
