//! The key of an element of `source_ranges`, in plain terms and as the map has it.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;
use lb_common::service::SourceRange;

use crate::cluster::Prefix;

/// Bits of the service id, which come before those of the client.
const ID_BITS: u32 = u32::BITS;

/// A key of the map `source_ranges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeKey {
    /// Service port.
    pub service_id: u32,
    /// Its clients.
    pub clients: Prefix,
}

impl RangeKey {
    /// The length of the prefix in bits, and what it is of.
    pub fn to_map(&self) -> (u32, SourceRange) {
        let bits = ID_BITS + u32::from(self.clients.wide_bits());
        (bits, SourceRange { service_id: self.service_id, client: self.clients.addr() })
    }

    /// From what the map has; `None` for what we have not written.
    pub fn from_map(bits: u32, range: SourceRange) -> Option<Self> {
        let clients = Prefix::from_wide(range.client, bits.checked_sub(ID_BITS)?)?;
        Some(Self { service_id: range.service_id, clients })
    }

    /// A key that is before all of a service port's.
    pub(super) fn before(service_id: u32) -> Option<Self> {
        Some(Self { service_id, clients: Prefix::new(Addr::NONE, 0)? })
    }
}

#[cfg(test)]
mod tests {
    use super::RangeKey;

    #[test]
    fn keys_survive_the_map() {
        for (text, bits) in [
            ("10.0.0.0/8", 32 + 96 + 8),
            ("0.0.0.0/0", 32 + 96),
            ("192.0.2.1/32", 32 + 128),
            ("::/0", 32),
            ("2001:db8::/64", 32 + 64),
        ] {
            let key = RangeKey { service_id: 7, clients: text.parse().unwrap() };
            let (found, range) = key.to_map();
            assert_eq!(found, bits, "{text}");
            assert_eq!(RangeKey::from_map(found, range), Some(key), "{text}");
        }
    }
}
