//! UIDs of objects as numbers: a Pod's is kept for records of evidence, and 150,000 texts would take six times the memory.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number that a UID of the API server stands for (RFC 9562).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub u128);

impl Uid {
    /// Reads `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`; anything else is 0.
    pub fn parse(text: &str) -> Self {
        let mut digits = String::with_capacity(32);
        let is_form = text.len() == 36
            && text.char_indices().all(|(at, c)| match at {
                8 | 13 | 18 | 23 => c == '-',
                _ => {
                    digits.push(c);
                    c.is_ascii_hexdigit()
                }
            });
        Self(u128::from_str_radix(&digits, 16).ok().filter(|_| is_form).unwrap_or_default())
    }
}

impl fmt::Display for Uid {
    /// Writes it as the API server does; nothing for 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number) = *self;
        if number == 0 {
            return Ok(());
        }
        let part = |shift: u32, bits: u32| number >> shift & ((1 << bits) - 1);
        let [a, b, c] = [part(96, 32), part(80, 16), part(64, 16)];
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", part(48, 16), part(0, 48))
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Ok(Self::parse(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::Uid;

    #[test]
    fn uids_are_written_as_they_are_read() {
        for text in
            ["", "0f0e1d2c-3b4a-4958-8677-a0b1c2d3e4f5", "00000000-0000-4000-8000-000000000001"]
        {
            assert_eq!(Uid::parse(text).to_string(), text);
        }
        for odd in
            ["u-1", "0f0e1d2c3b4a49588677a0b1c2d3e4f5", "0f0e1d2c-3b4a-4958-8677-a0b1c2d3e4fg"]
        {
            assert_eq!(Uid::parse(odd), Uid(0), "{odd}");
        }
    }
}
