//! Ranges of addresses as users write them: `10.0.0.0/8`, `2001:db8::/64`.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use lb_common::addr::Addr;
use lb_common::config::Cidr;
use serde::{Deserialize, Serialize};

use super::Family;

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    /// Its first address.
    addr: Addr,
    /// Bits that all its addresses have in common, of 32 or of 128.
    bits: u8,
}

impl Prefix {
    /// The range of `bits` bits at `addr`, whose other bits are dropped; `None` when there are more bits than the
    /// family has.
    pub fn new(addr: Addr, bits: u8) -> Option<Self> {
        let cidr = Cidr::new(addr, bits)?;
        Some(Self { addr: cidr.addr, bits })
    }

    /// This address alone.
    pub const fn host(addr: Addr) -> Self {
        Self { addr, bits: if addr.is_v4() { 32 } else { 128 } }
    }

    /// Bits that all its addresses have in common, of 32 or of 128.
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// Whether it is all of its family.
    pub const fn is_all(&self) -> bool {
        self.bits == 0
    }

    /// Its first address.
    pub const fn addr(&self) -> Addr {
        self.addr
    }

    /// IPv4 or IPv6; an IPv4-mapped address is IPv4.
    pub const fn family(&self) -> Family {
        Family::of(&self.addr)
    }

    /// Bits in common in the 128-bit form of an address, in which IPv4 is mapped.
    pub const fn wide_bits(&self) -> u8 {
        if self.addr.is_v4() { 96 + self.bits } else { self.bits }
    }

    /// The range with this number of bits in the 128-bit form, the inverse of [`Prefix::wide_bits`]; `None` when they end
    /// before the address begins, as an IPv4 address does after 96 bits, or after its end.
    pub fn from_wide(addr: Addr, bits: u32) -> Option<Self> {
        let bits = if addr.is_v4() { bits.checked_sub(96)? } else { bits };
        Self::new(addr, u8::try_from(bits).ok()?)
    }

    /// As the maps have it.
    pub fn cidr(&self) -> Cidr {
        // The constructors have proved that the bits fit.
        Cidr::new(self.addr, self.bits).unwrap_or(Cidr::ZERO)
    }

    /// Whether all addresses of another range are in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.bits <= other.bits && self.contains(&other.addr)
    }

    /// Whether an address is in it. `::/0` is all of IPv6 and nothing of IPv4, although that is mapped into it.
    pub fn contains(&self, addr: &Addr) -> bool {
        Family::of(addr) == self.family() && self.cidr().contains(addr)
    }
}

impl FromStr for Prefix {
    type Err = NotPrefix;

    /// Reads `address/bits`; the bits after the prefix may be set, as the API server lets them.
    fn from_str(text: &str) -> Result<Self, NotPrefix> {
        Self::read(text, |addr| addr.parse().ok())
    }
}

impl Prefix {
    /// The same with another notation of the address.
    ///
    /// # Errors
    /// When it is not a range.
    pub fn read(text: &str, addr_of: impl Fn(&str) -> Option<IpAddr>) -> Result<Self, NotPrefix> {
        let (addr, bits) = text.trim().split_once('/').ok_or(NotPrefix)?;
        let addr = addr_of(addr).ok_or(NotPrefix)?;
        let plain = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = bits.parse().ok().filter(|_| plain).ok_or(NotPrefix)?;
        Self::new(Addr::from_ip(addr), bits).ok_or(NotPrefix)
    }
}

impl TryFrom<String> for Prefix {
    type Error = NotPrefix;

    fn try_from(text: String) -> Result<Self, NotPrefix> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

/// The text is not a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a CIDR like 10.0.0.0/8")]
pub struct NotPrefix;

#[cfg(test)]
mod tests {
    use super::Prefix;
    use lb_common::addr::Addr;

    #[test]
    fn prefixes_are_read_and_contain() {
        for (text, shown, addr, inside) in [
            ("10.1.2.3/8", "10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "0.0.0.0/0", "192.0.2.1", true),
            ("::/0", "::/0", "192.0.2.1", false),
            (" 2001:db8::/32 ", "2001:db8::/32", "2001:db8:1::1", true),
            ("192.0.2.7/32", "192.0.2.7/32", "192.0.2.7", true),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.to_string(), shown);
            let addr = Addr::from_ip(addr.parse().unwrap());
            assert_eq!(prefix.contains(&addr), inside, "{addr} in {text}");
        }
        for (a, b, covers) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("10.1.0.0/16", "10.2.0.0/16", false),
            ("::/0", "10.1.0.0/16", false),
            ("0.0.0.0/0", "0.0.0.0/0", true),
        ] {
            let [a, b]: [Prefix; 2] = [a, b].map(|text| text.parse().unwrap());
            assert_eq!(a.covers(&b), covers, "{a} {b}");
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/", "10.0.0.0/+8", ""] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }
}
