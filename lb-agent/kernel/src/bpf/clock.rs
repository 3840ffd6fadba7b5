//! The kernel's tick counter as user space can tell it.
//!
//! Conntrack entries carry `jiffies64 / 256` (lb-common `conntrack::stamp`). The counter starts at
//! `INITIAL_JIFFIES` = `(unsigned int)(-300 * HZ)` (include/linux/jiffies.h) and is driven by the monotonic clock.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use lb_common::conntrack;
use nix::time::{ClockId, clock_getres, clock_gettime};

/// Converts the monotonic clock to kernel ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Ticks a second (`CONFIG_HZ`).
    pub hz: u32,
}

impl Clock {
    /// Finds out `CONFIG_HZ`: the coarse clocks advance once a tick, and say so as their resolution.
    ///
    /// # Errors
    /// When the kernel does not have the clock.
    pub fn detect() -> io::Result<Self> {
        let tick = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?);
        Ok(Self { hz: hz_of(tick) })
    }

    /// The stamp that the programs would write now.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn stamp(&self) -> io::Result<u32> {
        self.ticks().map(conntrack::stamp)
    }

    /// The stamp that the programs will write after this time.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn stamp_in(&self, time: Duration) -> io::Result<u32> {
        let ticks = time.as_secs().saturating_mul(self.hz.into());
        Ok(conntrack::stamp(self.ticks()?.saturating_add(ticks)))
    }

    /// The tick counter, as in the map `affinity`.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn ticks(&self) -> io::Result<u64> {
        Ok(jiffies(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into(), self.hz))
    }
}

fn hz_of(tick: Duration) -> u32 {
    let nanos = tick.as_nanos().max(1);
    let hz = (1_000_000_000 + nanos / 2) / nanos;
    u32::try_from(hz).unwrap_or(1000).clamp(1, 10_000)
}

fn jiffies(monotonic: Duration, hz: u32) -> u64 {
    let initial = (1_u64 << 32) - 300 * u64::from(hz);
    let ticks = monotonic.as_nanos() * u128::from(hz) / 1_000_000_000;
    initial.wrapping_add(ticks as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{hz_of, jiffies};

    #[test]
    fn resolution_gives_the_tick_rate() {
        for (nanos, want) in
            [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000), (1, 10_000)]
        {
            assert_eq!(hz_of(Duration::from_nanos(nanos)), want, "{nanos} ns");
        }
    }

    #[test]
    fn ticks_count_from_five_minutes_before_the_wrap_of_32_bits() {
        assert_eq!(jiffies(Duration::ZERO, 250), (1 << 32) - 75_000);
        assert_eq!(jiffies(Duration::from_secs(300), 250), 1 << 32);
        assert_eq!(jiffies(Duration::from_millis(301_004), 1000), (1 << 32) + 1_004);
    }
}
