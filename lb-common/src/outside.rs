//! Flows from outside to Services, which go on past the host's IP stack: where, as the routing table said.

use crate::addr::Addr;
use crate::be::Be32;

/// Where the packets of an entry go on. The entry has it as four words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideWay {
    /// ifindex of the device that they leave by.
    pub device: u32,
    /// The next hop's IPv4 address.
    pub next4: Be32,
    /// ifindex of the device that they came in by as the routing table was asked. By another one they may go elsewhere.
    pub from: u32,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// When the routing table was asked: low half of the stamp ([`crate::conntrack::stamp`]).
    pub asked: u16,
}

impl OutsideWay {
    /// As an entry has it.
    pub const fn to_addr(self) -> Addr {
        let last = (self.mtu as u32) << 16 | self.asked as u32;
        Addr::v6([
            Be32::from_wire(self.device),
            self.next4,
            Be32::from_wire(self.from),
            Be32::from_wire(last),
        ])
    }

    /// The way in the entry of a flow from outside; `None` if it has none.
    pub const fn of_addr(addr: &Addr) -> Option<Self> {
        let [device, next4, from, last] = addr.words();
        if device.to_wire() == 0 {
            return None;
        }
        let last = last.to_wire();
        Some(Self {
            device: device.to_wire(),
            next4,
            from: from.to_wire(),
            mtu: (last >> 16) as u16,
            asked: last as u16,
        })
    }

    /// Whether a packet of `length` bytes that came in at the device `from` in the stamp `now` goes there.
    pub const fn is_for(&self, from: u32, length: u16, now: u32) -> bool {
        self.asked == now as u16 && self.from == from && length <= self.mtu
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, Be32, OutsideWay};

    const WAY: OutsideWay = OutsideWay {
        device: 0x0102_0304,
        next4: Be32::new(0xc000_0201),
        from: 7,
        mtu: 1450,
        asked: 0xfffe,
    };

    #[test]
    fn a_way_is_an_address_and_back() {
        assert_eq!(OutsideWay::of_addr(&WAY.to_addr()), Some(WAY));
        assert_eq!(OutsideWay::of_addr(&Addr::NONE), None);
    }

    #[test]
    fn a_way_is_for_packets_that_fit_from_one_device_in_one_stamp() {
        let cases = [
            ("the same", 7, 1450, 0x1_fffe, true),
            ("another device", 8, 1450, 0xfffe, false),
            ("too big", 7, 1451, 0xfffe, false),
            ("a stamp later", 7, 1450, 0xffff, false),
        ];
        for (name, from, length, now, want) in cases {
            assert_eq!(WAY.is_for(from, length, now), want, "{name}");
        }
    }
}
