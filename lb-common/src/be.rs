//! Integers in network byte order, as types of their own: a byte-order slip is a type error.

use crate::pod::Field;

/// A 16-bit integer as it stands on the wire (big endian): ports, ICMP identifiers.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Be16(u16);

impl Be16 {
    /// From a value in host byte order.
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From the raw memory of a packet or a kernel structure, already in network order.
    pub const fn from_wire(raw: u16) -> Self {
        Self(raw)
    }

    /// The value in host byte order.
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The memory representation, to be stored into a packet or a kernel structure unchanged.
    pub const fn to_wire(self) -> u16 {
        self.0
    }
}

impl Field for Be16 {
    const ZERO: Self = Self(0);
}

/// A 32-bit integer as it stands on the wire (big endian): one quarter of an [`crate::addr::Addr`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Be32(u32);

impl Be32 {
    /// From a value in host byte order.
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }

    /// From the raw memory of a packet or a kernel structure, already in network order.
    pub const fn from_wire(raw: u32) -> Self {
        Self(raw)
    }

    /// The value in host byte order.
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The memory representation, to be stored into a packet or a kernel structure unchanged.
    pub const fn to_wire(self) -> u32 {
        self.0
    }
}

impl Field for Be32 {
    const ZERO: Self = Self(0);
}

#[cfg(test)]
mod tests {
    use super::{Be16, Be32};

    #[test]
    fn wire_order_is_big_endian_in_memory() {
        assert_eq!(Be16::new(0x1234).to_wire().to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Be32::new(0x1234_5678).to_wire().to_ne_bytes(), [0x12, 0x34, 0x56, 0x78]);
        assert_eq!(Be16::from_wire(Be16::new(80).to_wire()).get(), 80);
        assert_eq!(Be32::from_wire(Be32::new(7).to_wire()).get(), 7);
    }
}
