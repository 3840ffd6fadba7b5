//! What the planner makes of maps that it finds: service ports with their ids and ranges, waiting to be claimed.
//!
//! A desired port claims the service port of its first frontend that is in the map. What no port claims by the
//! first plan is removed like a deleted Service.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::config::Settings;
use lb_common::service::{Backend, Frontend, FrontendKey, state};

use super::actual::Actual;
use super::admission::Admission;
use super::capacity::Capacity;
use super::devs::Devs;
use super::links::Links;
use super::locals::Locals;
use super::pod_ranges::OtherRanges;
use super::pods::Pods;
use super::slots::SlotRange;
use super::state::{Left, PortState, ServiceState};
use super::tables::{ORPHAN, ServiceTables};
use super::timers::{DRAIN, REST};
use super::{Given, Planner, policy, values};
use crate::cluster::{Family, Name};
use crate::model::DesiredPort;

/// A planner for these maps.
pub(super) fn planner(actual: Actual, capacity: Capacity) -> Planner {
    let mut groups: BTreeMap<u32, Vec<(FrontendKey, Frontend)>> = BTreeMap::new();
    for (key, frontend) in &actual.frontends {
        if !key.is_wildcard() {
            groups.entry(frontend.service_id).or_default().push((*key, *frontend));
        }
    }
    // Ranges whose frontends are gone, as after a crash between two writes: their owner has nothing else.
    for key in &actual.source_ranges {
        groups.entry(key.service_id).or_default();
    }
    let next_service_id = groups.last_key_value().map_or(0, |(id, _)| *id);
    let (policies, pods) = (policy::PolicyPlanner::restore(&actual), Pods::restore(&actual.pods));
    let mut tables = ServiceTables::new(capacity, actual);
    let mut reserved = BTreeSet::new();
    let ports = groups.into_iter().map(|(service_id, mut frontends)| {
        frontends.sort_unstable_by_key(|(key, _)| (key.addr, key.port, key.proto));
        (service_id, port(&mut tables, service_id, &frontends, &mut reserved))
    });
    let restored: HashMap<u32, PortState> = ports.collect();
    rest_of_backends(&mut tables);
    Planner {
        tables,
        services: BTreeMap::new(),
        pending: BTreeSet::new(),
        departing: BTreeSet::new(),
        wildcards: HashMap::new(),
        // What no port claims belongs to no namespace.
        tenants: HashMap::from([(Arc::from(""), 0)]),
        admission: Admission::new(capacity),
        restored,
        begun: false,
        next_service_id,
        next_serial: 0,
        settings: Box::new(Settings::ZERO),
        given: Given::default(),
        policies,
        pods,
        devs: Devs::default(),
        links: Links::default(),
        locals: Locals::default(),
        pod_ranges: OtherRanges::default(),
        node: String::new(),
    }
}

/// The service port that a desired one finds under one of its frontends.
pub(super) fn adopt(
    restored: &mut HashMap<u32, PortState>,
    tables: &mut ServiceTables,
    want: &DesiredPort,
    tenant: u32,
) -> Option<PortState> {
    if restored.is_empty() {
        return None;
    }
    let ids = values::keys(want).filter_map(|key| tables.frontend(&key));
    let mut port = ids
        .filter(|frontend| frontend.service_id != 0)
        .find_map(|frontend| restored.remove(&frontend.service_id))?;
    port.rename(want);
    port.assign(tables, tenant);
    Some(port)
}

/// Collects what no port claimed under a Service that is not desired, so that it is removed like a deleted Service.
pub(super) fn orphans(planner: &mut Planner) -> Option<Name> {
    let mut ports: Vec<_> = planner.restored.drain().map(|(_, port)| port).collect();
    ports.sort_unstable_by_key(|port| port.service_id);
    let keys = planner.tables.actual.frontends.keys().filter(|key| key.is_wildcard());
    let unclaimed = keys.map(|key| key.addr).filter(|addr| !planner.wildcards.contains_key(addr));
    let mut wildcards: Vec<Addr> = unclaimed.collect();
    wildcards.sort_unstable();
    if ports.is_empty() && wildcards.is_empty() {
        return None;
    }
    planner.next_serial += 1;
    let serial = planner.next_serial;
    planner.wildcards.extend(wildcards.iter().map(|addr| (*addr, serial)));
    let name = Name::new("", "");
    let (wildcards, ports) = (wildcards.into(), ports.into());
    let service = ServiceState { serial, wildcards, ports, ..ServiceState::default() };
    planner.services.insert(name.clone(), Box::new(service));
    Some(name)
}

/// The state of a service port as its frontends in the map tell it. After a crash between two of their writes they
/// may refer to different ranges: then the first counts and the others are old.
fn port(
    tables: &mut ServiceTables,
    service_id: u32,
    frontends: &[(FrontendKey, Frontend)],
    reserved: &mut BTreeSet<SlotRange>,
) -> PortState {
    let first = frontends.first().map(|(key, _)| *key);
    let mut port = PortState {
        port_name: "".into(),
        protocol: first.map_or(0, |key| key.proto),
        port: first.map_or(0, |key| key.port.get()),
        family: first.map_or(Family::V4, |key| Family::of(&key.addr)),
        service_id,
        tenant: 0,
        frontends: frontends.iter().map(|(key, _)| *key).collect(),
        range: SlotRange::default(),
        range_used: true,
        backend_ids: Box::default(),
        left: None,
    };
    let mut left = Left::default();
    let mut backend_ids = Vec::new();
    let mut ranges = Vec::new();
    for range in joined(frontends.iter().map(|(_, frontend)| SlotRange::of(frontend))) {
        // A range that overlaps that of another Service port belongs to neither: it is not used again and not freed.
        if tables.ranges.reserve(range) && reserved.insert(range) {
            tables.slots_held.add(0, range.len);
            ranges.push(range);
        }
    }
    for (i, range) in ranges.into_iter().enumerate() {
        let slots: Vec<u32> = range.slots().map(|slot| tables.slot(slot)).collect();
        for id in slots {
            let alive = matches!(tables.backend(id).state, state::ACTIVE | state::DRAINING);
            if alive && tables.ids.adopt(id, service_id) {
                let place = if i == 0 { &mut backend_ids } else { &mut left.backend_ids };
                place.push(id);
            }
        }
        if i == 0 {
            port.range = range;
        } else {
            left.ranges.push(range);
        }
    }
    port.backend_ids = backend_ids.into();
    if !left.ranges.is_empty() {
        port.left = Some(Box::new(left));
    }
    port
}

/// The ranges with those joined that overlap or touch: the frontends of a service port refer to parts of one.
fn joined(ranges: impl Iterator<Item = SlotRange>) -> Vec<SlotRange> {
    let ranges: BTreeSet<SlotRange> = ranges.filter(|range| range.len > 0).collect();
    let mut joined: Vec<SlotRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.base <= last.end() => *last = last.with(range),
            Some(_) | None => joined.push(range),
        }
    }
    joined
}

/// Backends in no slot: those that were written just before a crash drain now, the others go on as they were.
fn rest_of_backends(tables: &mut ServiceTables) {
    let backends: Vec<(u32, Backend)> =
        (0u32..).zip(tables.actual.backends.iter().copied()).collect();
    for (id, backend) in backends {
        if backend.state == state::UNUSED || !tables.ids.adopt(id, ORPHAN) {
            continue;
        }
        let delay = match backend.state {
            state::ACTIVE => Duration::ZERO,
            state::DEAD => REST,
            _ => DRAIN,
        };
        tables.timers.arm(id, delay);
    }
    tables.ids.free_gaps();
}
