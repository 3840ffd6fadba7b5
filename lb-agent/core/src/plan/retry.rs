//! When a failed write is tried again.
#![forbid(unsafe_code)]

use std::time::Duration;

/// How soon a write is tried again after its first failure, and how long the delay becomes at most.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Retry;

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
