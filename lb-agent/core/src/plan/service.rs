//! The writes of one Service: those of its ports, its wildcards, and what is said when a map is full.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::service::{Frontend, FrontendFlags, FrontendKey};

use super::admission::Refused;
use super::delta;
use super::retry::{Delays, Retry};
use super::stages::{Full, Stages};
use super::state::{ServiceState, Trouble};
use super::tables::ServiceTables;
use super::write::{MapError, Write};
use crate::cluster::Name;
use crate::issue::{Issue, ObjectRef};
use crate::model::{DesiredService, Wildcard};

/// How soon a failed write is tried again, and how rarely at most.
const DELAYS: Delays = (Duration::from_millis(100), Duration::from_secs(10));

/// What a Service's writes depend on beside its own state.
pub(super) struct ServiceInputs<'a> {
    /// Frontends that go from one service port to another in this plan.
    pub(super) moving: &'a HashSet<FrontendKey>,
    /// Which Service has the wildcard of an address, by its serial.
    pub(super) wildcards: &'a HashMap<Addr, u32>,
    /// What of it has no room.
    pub(super) refused: Option<&'a Refused>,
    pub(super) now: Duration,
}

/// Adds the writes to `writes`. `want` is `None` when the Service is to be removed.
///
/// A port for which a map has no room stays as it is; the others do not suffer from it.
pub(super) fn plan(
    tables: &mut ServiceTables,
    name: &Name,
    service: &mut ServiceState,
    want: Option<&DesiredService>,
    context: &ServiceInputs<'_>,
    writes: &mut Vec<Write>,
) {
    let mut stages = Stages::default();
    let mut incomplete = false;
    let mut issues = Vec::new();
    for (i, port) in service.ports.iter_mut().enumerate() {
        let is_in = |of: fn(&Refused) -> &BTreeSet<usize>| {
            context.refused.is_some_and(|refused| of(refused).contains(&i))
        };
        let want = want.and_then(|want| want.ports.get(i));
        let want = want.filter(|_| !is_in(|refused| &refused.ports));
        let plain = is_in(|refused| &refused.tables);
        match delta::port(tables, port, want, plain, context.moving, &mut stages) {
            Ok(postponed) => incomplete |= postponed,
            Err(Full(map)) => {
                incomplete = true;
                issues.push(full(name, &format!("port {}", port.port), map));
            }
        }
    }
    let want = want.filter(|_| !context.refused.is_some_and(|refused| refused.wildcards));
    let wanted = want.map(|want| &*want.wildcards).unwrap_or_default();
    if let Err(Full(map)) = wildcards(tables, service, wanted, context.wildcards, &mut stages) {
        incomplete = true;
        issues.push(full(name, "the refusal of undefined ports", map));
    }
    // Trouble that is over stays until the writes have happened: they might fail again, and more slowly then.
    if incomplete || service.trouble.is_some() {
        let last = service.trouble.as_ref().map(|trouble| trouble.retry);
        let retry = Retry::after(last, DELAYS, context.now);
        service.trouble = Some(Box::new(Trouble { issues, incomplete, refused: false, retry }));
    }
    stages.append_to(writes);
}

/// Notes a failed write and when to try again.
pub(super) fn failed(name: &Name, service: &mut ServiceState, err: &MapError, now: Duration) {
    // The plan that tried again has put off the next try already.
    let planned = service.trouble.as_ref().map(|trouble| trouble.retry);
    let retry = Retry::after_failure(planned, DELAYS, now);
    let issue = if err.full {
        // Memory for a table that would grow is such a reason, and comes back.
        let message = format!(
            "map {} is full ({}): part of the Service is not programmed, retrying",
            err.map, err.source
        );
        Issue::new(ObjectRef::new("Service", name), "", message)
    } else {
        let message = format!("not completely programmed, retrying: {err}");
        Issue::new(ObjectRef::new("Service", name), "", message)
    };
    let none = || Trouble { issues: Vec::new(), incomplete: false, refused: false, retry };
    let trouble = service.trouble.get_or_insert_with(|| Box::new(none()));
    trouble.retry = retry;
    trouble.refused |= !err.full;
    if !trouble.issues.contains(&issue) {
        trouble.issues.push(issue);
    }
}

fn full(name: &Name, what: &str, map: &str) -> Issue {
    let message = format!("map {map} is full: {what} is not programmed");
    Issue::new(ObjectRef::new("Service", name), "", message)
}

/// Adds the writes for the wildcards. A wildcard that now belongs to another Service is left to that Service.
fn wildcards(
    tables: &mut ServiceTables,
    service: &mut ServiceState,
    wanted: &[Wildcard],
    owners: &HashMap<Addr, u32>,
    stages: &mut Stages,
) -> Result<(), Full> {
    let mut room = Ok(());
    let before = std::mem::take(&mut service.wildcards);
    let mut held: Vec<Addr> = wanted.iter().map(|wildcard| wildcard.addr).collect();
    for Wildcard { addr, external } in wanted {
        let key = FrontendKey::wildcard(*addr);
        let flags = FrontendFlags::ADDRESS_ONLY.when(*external);
        let frontend = Frontend { flags, ..Frontend::ZERO };
        match tables.frontend(&key) {
            Some(known) if *known == frontend => continue,
            Some(_) => {}
            None if tables.has_room_for(1) => tables.new_frontends += 1,
            None => {
                room = Err(Full("frontends"));
                continue;
            }
        }
        stages.wildcards.push(Write::PutFrontend { key, frontend });
    }
    let mut deletes = Vec::new();
    for addr in before {
        let key = FrontendKey::wildcard(addr);
        let own = owners.get(&addr) == Some(&service.serial);
        let is_wanted = wanted.iter().any(|wildcard| wildcard.addr == addr);
        if own && !is_wanted && tables.frontend(&key).is_some() {
            held.push(addr);
            deletes.push(Write::DeleteFrontend { key });
        }
    }
    service.wildcards = held.into();
    // Before the frontends: an address whose frontend is gone would refuse the port it still belongs to.
    stages.deletes.splice(0..0, deletes);
    room
}
