//! Who may use the gated frontends of a service port: elements of the map `source_ranges`.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use lb_common::addr::Addr;
use lb_common::service::SourceRange;

use super::Op;
use super::delta::{Full, Stages};
use super::tables::Tables;
use crate::cluster::Prefix;
use crate::model::DesiredPort;

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
        let wide = u8::try_from(bits.checked_sub(ID_BITS)?).ok()?;
        let bits = if range.client.is_v4() { wide.checked_sub(96)? } else { wide };
        let clients = Prefix::new(range.client, bits)?;
        Some(Self { service_id: range.service_id, clients })
    }

    /// A key that is before all of a service port's.
    fn before(service_id: u32) -> Option<Self> {
        Some(Self { service_id, clients: Prefix::new(Addr::NONE, 0)? })
    }
}

/// Whether the map has a range of this service port.
pub(super) fn any(tables: &Tables, service_id: u32) -> bool {
    of(tables, service_id).next().is_some()
}

/// Adds the writes: what is new comes before the frontends, what is old goes after them. So a client that may pass
/// before and after may pass in between; and nobody else may.
///
/// While another service port has yet to take a frontend over, the ranges stay: without any, it would admit nobody.
pub(super) fn plan(
    tables: &mut Tables,
    service_id: u32,
    want: Option<&DesiredPort>,
    postponed: bool,
    stages: &mut Stages,
) {
    let wanted = wanted(service_id, want);
    let new = wanted.iter().filter(|key| !tables.actual.source_ranges.contains(key));
    let before = stages.ranges.len();
    stages.ranges.extend(new.map(|key| Op::PutSourceRange { key: *key }));
    tables.new_ranges += stages.ranges.len() - before;
    if !postponed {
        let old = of(tables, service_id).filter(|key| !wanted.contains(key));
        stages.range_deletes.extend(old.map(|key| Op::DeleteSourceRange { key: *key }));
    }
}

/// Whether the ranges of this port fit.
pub(super) fn check(
    tables: &Tables,
    service_id: u32,
    want: Option<&DesiredPort>,
) -> Result<(), Full> {
    let wanted = wanted(service_id, want);
    let new = wanted.iter().filter(|key| !tables.actual.source_ranges.contains(key)).count();
    let used = tables.actual.source_ranges.len() + tables.new_ranges;
    if new > 0 && used + new > tables.capacity.source_ranges as usize {
        return Err(Full("source_ranges"));
    }
    Ok(())
}

fn wanted(service_id: u32, want: Option<&DesiredPort>) -> BTreeSet<RangeKey> {
    let extra = want.and_then(|want| want.extra.as_ref());
    let ranges = extra.and_then(|extra| extra.source_ranges.as_deref()).unwrap_or_default();
    ranges.iter().map(|clients| RangeKey { service_id, clients: *clients }).collect()
}

fn of(tables: &Tables, service_id: u32) -> impl Iterator<Item = &RangeKey> {
    let keys = RangeKey::before(service_id).into_iter();
    let keys = keys.flat_map(|from| tables.actual.source_ranges.range(from..));
    keys.take_while(move |key| key.service_id == service_id)
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
