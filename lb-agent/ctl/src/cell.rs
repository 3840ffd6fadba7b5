//! One value in a table, and how it is written: as kubectl does.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::natural;

/// What stands for a value that does not exist or is not known.
pub const NONE: &str = "<none>";

/// One value in a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cell {
    /// Text; sorts with its numbers by value. Empty text is shown as `<none>`.
    Text(String),
    /// Free text at the end of a row; shown as it is, even empty.
    Note(String),
    /// A count.
    Number(u64),
    /// A number of bytes.
    Bytes(u64),
    /// A share, in thousandths.
    Permille(u64),
    /// Seconds, shown like kubectl's AGE.
    Age(u64),
    /// Not known.
    None,
}

impl Cell {
    /// A number, if it is known.
    pub fn number(value: Option<u64>) -> Self {
        value.map_or(Self::None, Self::Number)
    }

    /// An age in seconds, if it is known.
    pub fn age(seconds: Option<u64>) -> Self {
        seconds.map_or(Self::None, Self::Age)
    }

    /// Items separated by commas, without spaces, so that a column stays one word.
    pub fn list<T: fmt::Display>(items: &[T]) -> Self {
        Self::Text(items.iter().map(T::to_string).collect::<Vec<_>>().join(","))
    }

    /// Order of `--sort-by`: numbers by value, unknown values last.
    pub fn compare(&self, other: &Self) -> Ordering {
        match (self.value(), other.value()) {
            (Some(a), Some(b)) => a.cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => natural::compare(&self.to_string(), &other.to_string()),
        }
    }

    /// The number, if it is one.
    pub fn value(&self) -> Option<u64> {
        match self {
            Self::Number(n) | Self::Bytes(n) | Self::Permille(n) | Self::Age(n) => Some(*n),
            Self::Text(_) | Self::Note(_) | Self::None => None,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) if text.is_empty() => f.write_str(NONE),
            Self::Text(text) | Self::Note(text) => f.write_str(text),
            Self::Number(n) => n.fmt(f),
            Self::Bytes(n) => f.write_str(&bytes(*n)),
            Self::Permille(n) => write!(f, "{}.{}", n / 10, n % 10),
            Self::Age(seconds) => f.write_str(&age(*seconds)),
            Self::None => f.write_str(NONE),
        }
    }
}

/// Seconds as kubectl writes them (k8s.io/apimachinery `duration.HumanDuration`): `119s`, `4m30s`, `3h20m`, `4d3h`.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => pair(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// Bytes with a binary unit, as Kubernetes writes quantities: `512`, `4.0Ki`, `12.5Mi`.
pub fn bytes(n: u64) -> String {
    let scaled = |unit: u64, name: &str| {
        let tenths = n.saturating_mul(10) / unit;
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    };
    match n {
        0..1024 => n.to_string(),
        1024..1_048_576 => scaled(1024, "Ki"),
        1_048_576..1_073_741_824 => scaled(1_048_576, "Mi"),
        _ => scaled(1_073_741_824, "Gi"),
    }
}

#[cfg(test)]
mod tests {
    use super::{age, bytes};

    #[test]
    fn ages_are_kubectls() {
        let minute = 60;
        let hour = 3600;
        let day = 24 * hour;
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (2 * minute, "2m"),
            (4 * minute + 30, "4m30s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (3 * hour + 20 * minute, "3h20m"),
            (47 * hour, "47h"),
            (4 * day + 3 * hour, "4d3h"),
            (8 * day, "8d"),
            (729 * day, "729d"),
            (1000 * day, "2y270d"),
            (9 * 365 * day, "9y"),
        ] {
            assert_eq!(age(seconds), want, "{seconds} s");
        }
    }

    #[test]
    fn bytes_have_binary_units() {
        for (n, want) in [(0, "0"), (1023, "1023"), (1536, "1.5Ki"), (12_345_678, "11.7Mi")] {
            assert_eq!(bytes(n), want);
        }
    }
}
