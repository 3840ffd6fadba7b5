//! The time by which devices and Pods are compared. The node's wall clock may be set at any time, by a day in either direction.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A moment, for two purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct BindingTime {
    /// For comparisons with times of the API, in seconds since 1970 by the wall clock. Never earlier than before: a device that appears
    /// after its Pod was read would else seem older than the Pod.
    pub(in crate::agent) date: i64,
    /// For durations: the wall clock when the agent started, and the seconds since then. Setting the clock does not change it.
    pub(in crate::agent) steady: i64,
}

/// Both clocks.
#[derive(Debug)]
pub(in crate::agent) struct BindingClock {
    begun: (Instant, i64),
    latest: AtomicI64,
}

impl BindingClock {
    /// Starts now.
    pub(in crate::agent) fn start() -> Self {
        let unix = unix_seconds();
        Self { begun: (Instant::now(), unix), latest: AtomicI64::new(unix) }
    }

    /// The time now.
    pub(in crate::agent) fn now(&self) -> BindingTime {
        let (begun, unix) = self.begun;
        let elapsed = i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
        BindingTime { date: self.not_before(unix_seconds()), steady: unix.saturating_add(elapsed) }
    }

    fn not_before(&self, unix: i64) -> i64 {
        self.latest.fetch_max(unix, Ordering::Relaxed).max(unix)
    }
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::BindingClock;

    #[test]
    fn the_date_never_goes_back() {
        let clock = BindingClock::start();
        let (first, day) = (clock.now(), 86_400);
        assert_eq!(first.date, first.steady);
        assert_eq!(clock.not_before(first.date - day), first.date);
        assert_eq!(clock.not_before(first.date + day), first.date + day);
        assert_eq!(clock.now().date, first.date + day);
        assert!(clock.now().steady < first.steady + day);
    }
}
