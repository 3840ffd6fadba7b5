//! The key of an element of `pod_sources`, in plain terms and as the map has it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use lb_common::addr::Addr;
use lb_common::endpoint::PodSource;

use crate::cluster::Prefix;

/// Bits of the device, which come before those of the address.
const DEVICE_BITS: u32 = u32::BITS;

/// A key of the map `pod_sources`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// The Pod's device.
    pub ifindex: u32,
    /// Addresses that the Pod may send from in addition to its own.
    pub range: Prefix,
}

impl SourceKey {
    /// The length of the prefix in bits, and its data.
    pub fn to_map(&self) -> (u32, PodSource) {
        let bits = DEVICE_BITS + u32::from(self.range.wide_bits());
        (bits, PodSource { ifindex: self.ifindex, addr: self.range.addr() })
    }

    /// Reads a key of the map; `None` for one that the agent has not written.
    pub fn from_map(bits: u32, source: PodSource) -> Option<Self> {
        let PodSource { ifindex, addr } = source;
        let range = Prefix::from_wide(addr, bits.checked_sub(DEVICE_BITS)?)?;
        Some(Self { ifindex, range })
    }

    /// Those of one device.
    pub(super) fn of_device(ifindex: u32, keys: &BTreeSet<Self>) -> impl Iterator<Item = &Self> {
        let first = Prefix::new(Addr::NONE, 0).map(|range| Self { ifindex, range });
        let keys = first.into_iter().flat_map(|first| keys.range(first..));
        keys.take_while(move |key| key.ifindex == ifindex)
    }
}

#[cfg(test)]
mod tests {
    use super::SourceKey;

    #[test]
    fn keys_survive_the_map() {
        for (text, bits) in [
            ("10.0.0.0/8", 32 + 96 + 8),
            ("0.0.0.0/0", 32 + 96),
            ("192.0.2.1/32", 32 + 128),
            ("::/0", 32),
            ("2001:db8::/64", 32 + 64),
        ] {
            let key = SourceKey { ifindex: 7, range: text.parse().unwrap() };
            let (found, source) = key.to_map();
            assert_eq!(found, bits, "{text}");
            assert_eq!(SourceKey::from_map(found, source), Some(key), "{text}");
        }
        let (_, source) = SourceKey { ifindex: 7, range: "10.0.0.0/8".parse().unwrap() }.to_map();
        assert_eq!(
            SourceKey::from_map(32 + 8, source),
            None,
            "shorter than the IPv4-mapped prefix"
        );
        assert_eq!(SourceKey::from_map(8, source), None, "not even the whole device");
    }
}
