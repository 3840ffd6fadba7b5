//! Medians and quartiles of rounds, and ratios of what was measured in the same round.

use std::fmt::{Display, Formatter};

use serde::{Deserialize, Serialize};
use testbed::measure::Rate;

/// How two ways compare: how many times the rate and how many times faster. More than 1 is better than the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ratio {
    /// Rate of this ÷ rate of the base: lower quartile, median, upper quartile of the rounds.
    pub(super) rate: [f64; 3],
    /// Median latency of the base ÷ median latency of this, likewise; without streams, which have none.
    pub(super) latency: Option<[f64; 3]>,
}

impl Ratio {
    /// Compares round by round.
    pub(super) fn of(these: &[Rate], base: &[Rate]) -> Self {
        let pairs = || these.iter().zip(base);
        let rates: Vec<f64> =
            pairs().map(|(this, base)| this.per_second / base.per_second).collect();
        let timed = pairs().filter(|(this, base)| this.p50_ns > 0 && base.p50_ns > 0);
        let latencies: Vec<f64> =
            timed.map(|(this, base)| base.p50_ns as f64 / this.p50_ns as f64).collect();
        let latency = (!latencies.is_empty()).then(|| quartiles(&latencies));
        Self { rate: quartiles(&rates), latency }
    }

    /// The median that says most: of latencies, of streams that of rates.
    pub(super) const fn main(&self) -> f64 {
        let [_, median, _] = match self.latency {
            Some(latency) => latency,
            None => self.rate,
        };
        median
    }
}

impl Display for Ratio {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let [_, rate, _] = self.rate;
        match self.latency {
            Some([_, latency, _]) => write!(f, "{latency:.3} / {rate:.3}"),
            None => write!(f, "{rate:.3}"),
        }
    }
}

/// Medians of the rounds of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Level {
    /// Transactions or bits a second.
    pub(super) per_second: f64,
    /// Median latency in microseconds, without streams.
    pub(super) p50_us: Option<f64>,
    /// 99th percentile likewise.
    pub(super) p99_us: Option<f64>,
    /// Datagrams without an answer, of all rounds.
    pub(super) lost: u64,
}

impl Level {
    /// Takes the median of each figure.
    pub(super) fn of(rounds: &[Rate]) -> Self {
        let median_of =
            |figure: fn(&Rate) -> f64| median(&rounds.iter().map(figure).collect::<Vec<_>>());
        let micros = |figure| Some(median_of(figure)).filter(|us| *us > 0.0);
        Self {
            per_second: median_of(|rate| rate.per_second),
            p50_us: micros(|rate| rate.p50_ns as f64 / 1e3),
            p99_us: micros(|rate| rate.p99_ns as f64 / 1e3),
            lost: rounds.iter().map(|rate| rate.lost).sum(),
        }
    }
}

impl Level {
    /// Compares the medians of two runs, which have no rounds in common.
    pub(super) fn against(&self, base: &Self) -> Ratio {
        let latency = match (self.p50_us, base.p50_us) {
            (Some(this), Some(base)) => Some([base / this; 3]),
            _ => None,
        };
        Ratio { rate: [self.per_second / base.per_second; 3], latency }
    }
}

impl Display for Level {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self.p50_us {
            Some(p50) => write!(f, "{p50:.1} µs, {:.0}/s", self.per_second),
            None => write!(f, "{:.2} Gbit/s", self.per_second / 1e9),
        }
    }
}

/// The middle value, the mean of both where there are two; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Lower quartile, median, upper quartile.
pub(super) fn quartiles(values: &[f64]) -> [f64; 3] {
    [0.25, 0.5, 0.75].map(|q| quantile(values, q))
}

/// Interpolates between the two nearest values.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = values.len().saturating_sub(1) as f64 * q;
    let [below, above] =
        [at.floor(), at.ceil()].map(|at| values.get(at as usize).copied().unwrap_or(0.0));
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use testbed::measure::Rate;

    use super::{Level, Ratio, median, quartiles};

    fn rate(per_second: f64, p50_ns: u64) -> Rate {
        Rate { per_second, p50_ns, p99_ns: 3 * p50_ns, lost: 1 }
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_ones() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quartiles(&[5.0, 1.0, 2.0, 3.0, 4.0]), [2.0, 3.0, 4.0]);
    }

    #[test]
    fn ratios_are_of_the_same_round_and_more_is_better() {
        // The machine is half as fast in the second round: that changes no ratio.
        let base = [rate(100.0, 10_000), rate(50.0, 20_000)];
        let faster = [rate(110.0, 8_000), rate(55.0, 16_000)];
        let ratio = Ratio::of(&faster, &base);
        assert!(ratio.rate.iter().all(|r| (r - 1.1).abs() < 1e-9), "{ratio:?}");
        assert_eq!(ratio.latency, Some([1.25; 3]));
    }

    #[test]
    fn streams_have_no_latency() {
        let stream = [rate(4e9, 0), rate(2e9, 0)];
        assert_eq!(Ratio::of(&stream, &stream), Ratio { rate: [1.0; 3], latency: None });
        let level = Level::of(&stream);
        assert_eq!((level.per_second, level.p50_us, level.lost), (3e9, None, 2));
        assert_eq!(Level::of(&[rate(1.0, 2_000)]).p99_us, Some(6.0));
    }
}
