//! What a Pod may use up: a token bucket of new flows for each direction, so that one Pod's flood is its own.

use crate::endpoint::PodEntry;
use crate::limits;
use crate::pod;

pod! {
    /// Element of the array `budgets`, at [`place`].
    pub struct Budget: 16 {
        /// New flows that are left, times the kernel's ticks a second.
        pub level: u64,
        /// When that was, in ticks (jiffies), truncated to 32 bits.
        pub last: u32,
        /// New flows that the Pod had no budget for, modulo 2^32.
        pub refused: u32,
    }
}

/// Seconds for which a bucket that is full lasts at twice its rate, and in which an empty one fills.
pub const BURST_SECS: u64 = 5;

/// Index of a Pod's budget in a direction; `None` = it has none, since it has no number.
pub const fn place(pod: &PodEntry, ingress: bool) -> Option<u32> {
    if pod.id == 0 || pod.id >= limits::PODS { None } else { Some(pod.id * 2 + ingress as u32) }
}

/// The budget after a new flow at `now` (ticks), and whether there was one left; `rate` in flows a second, `hz` ticks a
/// second. What was never written is full.
pub const fn spend(budget: Budget, now: u32, rate: u32, hz: u32) -> (Budget, bool) {
    let (rate, one) = (rate as u64, hz as u64);
    let full = rate * one * BURST_SECS;
    // A tick from the future (another CPU's) has brought nothing yet.
    let age = now.wrapping_sub(budget.last);
    let age = if age < 0x8000_0000 { age as u64 } else { 0 };
    let level = budget.level + age * rate;
    let level = if level > full || budget.last == 0 { full } else { level };
    if level < one {
        let refused = budget.refused.wrapping_add(1);
        return (Budget { level, last: now, refused }, false);
    }
    (Budget { level: level - one, last: now, ..budget }, true)
}

#[cfg(test)]
mod tests {
    use super::{Budget, spend};

    #[test]
    fn a_burst_passes_then_the_rate() {
        let (rate, hz) = (100, 250);
        for start in [1_u32, 1_000_000, u32::MAX - 100] {
            let mut budget = Budget::ZERO;
            let mut at = |now: u32, tries: usize| {
                (0..tries)
                    .filter(|_| {
                        let (after, passes) = spend(budget, now, rate, hz);
                        budget = after;
                        passes
                    })
                    .count()
            };
            assert_eq!(at(start, 1_000), 500, "five seconds' worth");
            assert_eq!(at(start, 10), 0);
            assert_eq!(at(start.wrapping_add(250), 1_000), 100, "a second later");
            assert_eq!(at(start.wrapping_add(249), 10), 0, "an earlier tick");
            assert_eq!(at(start.wrapping_add(250 * 3_600), 1_000), 500, "never more");
            assert_eq!(budget.refused, 500 + 10 + 900 + 10 + 500);
        }
    }
}
