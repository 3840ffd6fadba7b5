//! Who may use the gated frontends of a service port: elements of the map `source_ranges`.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::range_key::RangeKey;
use super::stages::{Full, Stages};
use super::tables::ServiceTables;
use super::write::Write;
use crate::model::DesiredPort;

/// Whether the map has a range of this service port.
pub(super) fn any(tables: &ServiceTables, service_id: u32) -> bool {
    of(tables, service_id).next().is_some()
}

/// Adds the writes: what is new comes before the frontends, what is old goes after them. So a client that may pass
/// before and after may pass in between, and no other client may.
///
/// While another service port has yet to take a frontend over, the ranges stay: without any, it would admit no client.
pub(super) fn plan(
    tables: &mut ServiceTables,
    service_id: u32,
    want: Option<&DesiredPort>,
    postponed: bool,
    stages: &mut Stages,
) {
    let wanted = wanted(service_id, want);
    let new = wanted.iter().filter(|key| !tables.actual.source_ranges.contains(key));
    let before = stages.ranges.len();
    stages.ranges.extend(new.map(|key| Write::PutSourceRange { key: *key }));
    tables.new_ranges += stages.ranges.len() - before;
    if !postponed {
        let old = of(tables, service_id).filter(|key| !wanted.contains(key));
        stages.range_deletes.extend(old.map(|key| Write::DeleteSourceRange { key: *key }));
    }
}

/// Whether the ranges of this port fit.
pub(super) fn check(
    tables: &ServiceTables,
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

fn of(tables: &ServiceTables, service_id: u32) -> impl Iterator<Item = &RangeKey> {
    let keys = RangeKey::before(service_id).into_iter();
    let keys = keys.flat_map(|from| tables.actual.source_ranges.range(from..));
    keys.take_while(move |key| key.service_id == service_id)
}
