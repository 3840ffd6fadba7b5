//! Prefixes of addresses as numbers of 128 bits, in which IPv4 has a part.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;

use crate::cluster::Prefix;

/// A prefix of addresses in the 128-bit form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrRange {
    /// The first address, as a number.
    pub first: u128,
    /// Length of the prefix.
    pub len: u8,
}

impl CidrRange {
    /// Where IPv4 addresses are.
    pub(super) const IPV4: Self = Self { first: 0xffff_0000_0000, len: 96 };

    /// Of a prefix as users write it.
    pub fn of(prefix: &Prefix) -> Self {
        Self { first: number(&prefix.addr()), len: prefix.wide_bits() }
    }

    /// The prefix of this length that an address is in.
    pub fn around(addr: u128, len: u8) -> Self {
        Self { first: addr & mask(len), len }
    }

    /// The first address.
    pub fn addr(&self) -> Addr {
        let words = [96, 64, 32, 0].map(|shift| (self.first >> shift) as u32);
        Addr::v6(words.map(lb_common::be::Be32::new))
    }

    /// Whether an address is in it.
    pub fn has(&self, addr: u128) -> bool {
        addr & mask(self.len) == self.first
    }

    /// Whether all of another is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.has(other.first)
    }
}

/// An address as a number.
pub fn number(addr: &Addr) -> u128 {
    addr.words().iter().fold(0, |sum, word| sum << 32 | u128::from(word.get()))
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}
