//! The writes that bring one service port from what the maps say to what is desired.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::service::{Backend, Frontend, FrontendKey, state};

use super::slots::SlotRange;
use super::sources;
use super::stages::{Full, Stages};
use super::state::PortState;
use super::tables::ServiceTables;
use super::timers::DRAIN;
use super::values::{self, Layout};
use super::write::Write;
use crate::model::DesiredPort;

/// Adds the writes for one service port. `want` is `None` when it is to be removed; with `plain` it gets no Maglev table.
///
/// `moving` are frontends that another Service takes over in the same plan: they are not deleted here, and the
/// backends are left alone until the take-over is seen to have happened. Returns whether that is the case.
pub(super) fn port(
    tables: &mut ServiceTables,
    port: &mut PortState,
    want: Option<&DesiredPort>,
    plain: bool,
    moving: &HashSet<FrontendKey>,
    stages: &mut Stages,
) -> Result<bool, Full> {
    let new = want
        .map_or(0, |want| values::keys(want).filter(|key| tables.frontend(key).is_none()).count());
    if !tables.has_room_for(new) {
        return Err(Full("frontends"));
    }
    sources::check(tables, port.service_id, want)?;
    let Some((ids, fresh)) = backend_ids(tables, port, want) else {
        let n = want.map_or(0, |want| want.backends.len() as u32);
        let lacking = tables.lacking.entry(port.tenant).or_default();
        *lacking = n.max(*lacking);
        return Err(Full("backends"));
    };
    let layout = want.map(|want| Layout::new(want, plain)).unwrap_or_default();
    let content = layout.content.iter().filter_map(|i| ids.get(*i).copied()).collect::<Vec<_>>();
    let Some(range) = slots(tables, port, &content) else {
        fresh.into_iter().for_each(|id| tables.ids.free(id));
        return Err(Full("slots"));
    };
    tables.new_frontends += new;
    put_backends(tables, want, &ids, stages);
    let slots = range.slots().zip(&content);
    let wrong = slots.filter(|(slot, id)| tables.slot(*slot) != **id);
    stages
        .slots
        .extend(wrong.map(|(slot, backend_id)| Write::PutSlot { slot, backend_id: *backend_id }));

    let frontends = want
        .map(|want| values::frontends(port.service_id, want, &layout, range))
        .unwrap_or_default();
    let postponed = put_frontends(tables, port, frontends, moving, stages);
    sources::plan(tables, port.service_id, want, postponed, stages);
    if *port.backend_ids != *ids {
        let current: HashSet<u32> = ids.iter().copied().collect();
        let before = std::mem::replace(&mut port.backend_ids, ids.into());
        let left = port.left.get_or_insert_default();
        left.backend_ids.extend(before);
        left.backend_ids.retain(|id| !current.contains(id));
    }
    drop_former(tables, port, postponed, stages);
    Ok(postponed)
}

/// The ids of the desired backends in their order, and which of them are new. `None` when there are not enough.
fn backend_ids(
    tables: &mut ServiceTables,
    port: &PortState,
    want: Option<&DesiredPort>,
) -> Option<(Vec<u32>, Vec<u32>)> {
    let Some(want) = want else { return Some((Vec::new(), Vec::new())) };
    let own = port.backend_ids.iter().chain(port.former());
    let own = own.filter(|id| tables.ids.owner(**id) == port.service_id);
    let known: HashMap<(Addr, Be16), u32> = own
        .filter(|id| tables.backend(**id).state != state::DEAD)
        .map(|id| (tables.backend(*id), *id))
        .map(|(backend, id)| ((backend.addr, backend.port), id))
        .collect();
    let mut ids = Vec::with_capacity(want.backends.len());
    let mut fresh = Vec::new();
    for backend in &want.backends {
        if let Some(id) = known.get(&(backend.addr, Be16::new(backend.port))) {
            ids.push(*id);
            continue;
        }
        let Some(id) = tables.ids.allocate(port.service_id, port.tenant) else {
            fresh.into_iter().for_each(|id| tables.ids.free(id));
            return None;
        };
        ids.push(id);
        fresh.push(id);
    }
    Some((ids, fresh))
}

/// The range for these ids: the present one if it says just that, else another. `None` when there is none.
fn slots(tables: &mut ServiceTables, port: &mut PortState, content: &[u32]) -> Option<SlotRange> {
    let same =
        |range: SlotRange| range.slots().zip(content).all(|(slot, id)| tables.slot(slot) == *id);
    let fits = port.range.len as usize == content.len();
    let referred = port.refers_to(tables, port.range);
    if fits && (same(port.range) || !(port.range_used || referred)) {
        return Some(port.range);
    }
    let range = tables.take_range(port.tenant, u32::try_from(content.len()).ok()?)?;
    let before = std::mem::replace(&mut port.range, range);
    if referred {
        port.left.get_or_insert_default().ranges.push(before);
    } else if port.range_used {
        tables.timers.release(before, port.tenant);
    } else {
        tables.give_range(port.tenant, before);
    }
    port.range_used = false;
    Some(range)
}

fn put_backends(
    tables: &mut ServiceTables,
    want: Option<&DesiredPort>,
    ids: &[u32],
    stages: &mut Stages,
) {
    let Some(want) = want else { return };
    for (id, desired) in ids.iter().zip(&want.backends) {
        let before = tables.backend(*id);
        let kept = matches!(before.state, state::ACTIVE | state::DRAINING);
        let generation = if kept { before.generation } else { before.generation.wrapping_add(1) };
        let backend = Backend {
            addr: desired.addr,
            port: Be16::new(desired.port),
            proto: want.protocol,
            state: state::ACTIVE,
            generation,
            flags: values::backend_flags(want, desired),
            reserved: 0,
        };
        if backend != before {
            // A timer that is due in this very plan must not declare it dead.
            tables.timers.disarm(*id);
            stages.port_bits.extend(tables.bitmaps.want_host(&tables.actual, &backend));
            stages.backends.push(Write::PutBackend { id: *id, backend });
        }
    }
}

/// Switches the frontends to their new values and removes those that are not desired; returns whether another
/// Service is about to take one of them over.
fn put_frontends(
    tables: &mut ServiceTables,
    port: &mut PortState,
    frontends: Vec<(FrontendKey, Frontend)>,
    moving: &HashSet<FrontendKey>,
    stages: &mut Stages,
) -> bool {
    let remembers =
        |frontend: &Frontend| frontend.service_id == port.service_id && frontend.affinity_secs > 0;
    let remembered = port.frontends.iter().filter_map(|key| tables.frontend(key)).any(remembers);
    if remembered && !frontends.iter().any(|(_, frontend)| remembers(frontend)) {
        stages.affinity.push(Write::ClearAffinity { service_id: port.service_id });
    }
    for (key, frontend) in &frontends {
        if tables.frontend(key) != Some(frontend) {
            stages.port_bits.extend(tables.bitmaps.want_frontend(&tables.actual, key, frontend));
            stages.frontends.push(Write::PutFrontend { key: *key, frontend: *frontend });
        }
    }
    let mut postponed = false;
    let mut keys: Vec<FrontendKey> = frontends.into_iter().map(|(key, _)| key).collect();
    for key in std::mem::take(&mut port.frontends) {
        if keys.contains(&key) || !tables.is_of(&key, port.service_id) {
            continue;
        }
        keys.push(key);
        if moving.contains(&key) {
            postponed = true;
        } else {
            stages.port_bits.extend(tables.bitmaps.want_former(&tables.actual, &key));
            stages.deletes.push(Write::DeleteFrontend { key });
        }
    }
    port.frontends = keys.into();
    postponed
}

/// Drains the backends that have left the slots; frees those that were never written.
fn drop_former(
    tables: &mut ServiceTables,
    port: &mut PortState,
    postponed: bool,
    stages: &mut Stages,
) {
    let service_id = port.service_id;
    let Some(left) = &mut port.left else { return };
    left.backend_ids.retain(|id| {
        if tables.ids.owner(*id) != service_id {
            return false;
        }
        let backend = tables.backend(*id);
        match backend.state {
            state::ACTIVE if !postponed => {
                let backend = Backend { state: state::DRAINING, ..backend };
                stages.drains.push(Write::PutBackend { id: *id, backend });
                true
            }
            state::ACTIVE => true,
            state::DRAINING => {
                if !tables.timers.is_armed(*id) {
                    tables.timers.arm(*id, DRAIN);
                }
                true
            }
            state::UNUSED => {
                tables.ids.free(*id);
                false
            }
            _ => false,
        }
    });
}
