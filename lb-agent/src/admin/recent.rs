//! The last flows that the programs reported, with the names that were theirs, for readers at their own speed.
//!
//! Writing never waits. A reader that is too slow loses records, and learns how many.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use lb_core::admin::FlowRecord;

/// Records that are kept.
pub(crate) const CAPACITY: usize = 4096;

/// The last of them, in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    flows: VecDeque<Arc<FlowRecord>>,
    /// Number of the next one; they count from 0.
    next: u64,
}

/// Some records from a place on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowBatch {
    /// The records.
    pub(crate) flows: Vec<Arc<FlowRecord>>,
    /// Records before them that are gone.
    pub(crate) lost: u64,
}

impl Recent {
    /// Adds a record, in place of the oldest one when there is no room.
    pub(crate) fn push(&mut self, flow: Arc<FlowRecord>) {
        if self.flows.len() >= CAPACITY {
            self.flows.pop_front();
        }
        self.flows.push_back(flow);
        self.next += 1;
    }

    /// Number of the oldest one that is kept.
    pub(crate) fn oldest(&self) -> u64 {
        self.next - self.flows.len() as u64
    }

    /// Number of the next one to come.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Those that are kept.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<FlowRecord>> {
        self.flows.iter()
    }

    /// At most `most` records from number `from` on, which is moved behind them.
    pub(crate) fn take(&self, from: &mut u64, most: usize) -> FlowBatch {
        let start = self.oldest().max(*from);
        let lost = start - *from;
        let skip = usize::try_from(start - self.oldest()).unwrap_or(usize::MAX);
        let flows: Vec<Arc<FlowRecord>> =
            self.flows.iter().skip(skip).take(most).cloned().collect();
        *from = start + flows.len() as u64;
        FlowBatch { flows, lost }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Arc, CAPACITY, FlowRecord, Recent};
    use lb_core::admin::FlowOwner;

    /// A flow that only has a time and an outcome.
    pub(crate) fn flow(at_ms: u64, outcome: u8) -> Arc<FlowRecord> {
        let nowhere = "[::]:0".parse().unwrap();
        Arc::new(FlowRecord {
            at_ms,
            src: nowhere,
            dst: nowhere,
            protocol: 0,
            reason: 0,
            ingress: false,
            outcome,
            ifindex: 0,
            suppressed: 0,
            group: 0,
            judgement: 0,
            ident: 0,
            src_owner: FlowOwner::Unknown,
            dst_owner: FlowOwner::Unknown,
            via: "".into(),
            decision: None,
        })
    }

    fn push(recent: &mut Recent, n: u64) {
        for _ in 0..n {
            recent.push(flow(recent.next(), 0));
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
