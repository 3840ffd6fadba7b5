//! Which service ports are programmed when the wishes of all exceed a table, and which tables of consistent hashing.
//!
//! The namespaces that want most give way, whoever came first: each may have what it wants up to a level at which all of
//! it fits. Above the level a namespace keeps its smallest ports, of those of one size its oldest; before it loses
//! a port it loses its Maglev tables. All of that is a function of what is desired, not of what was programmed before.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::service::MAGLEV_SLOTS;

use super::{Capacity, values};
use crate::annotation::Annotation;
use crate::cluster::Name;
use crate::issue::{Issue, ObjectRef};
use crate::model::{Desired, DesiredPort, DesiredService, share};

/// The tables that are shared, in the order in which they are looked at.
const TABLES: [&str; 3] = ["frontends", "slots", "backends"];
/// Ports that an issue names.
const NAMED: usize = 3;

/// Elements of each of [`TABLES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TableDemand([u32; TABLES.len()]);

/// What of a Service is not programmed for want of room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    /// Indices of ports.
    pub(super) ports: BTreeSet<usize>,
    /// Indices of ports that have no Maglev table.
    pub(super) tables: BTreeSet<usize>,
    /// Whether undefined ports of its addresses are not refused.
    pub(super) wildcards: bool,
}

/// Who has what.
#[derive(Debug)]
pub(super) struct Admission {
    limits: [u64; TABLES.len()],
    capacity: [u32; TABLES.len()],
    /// What each namespace wants.
    wanted: BTreeMap<Arc<str>, [u64; TABLES.len()]>,
    refused: BTreeMap<Name, Refused>,
    issues: Vec<Issue>,
}

impl Admission {
    pub(super) fn new(capacity: Capacity) -> Self {
        // Backend 0 is never used.
        let capacity = [capacity.frontends, capacity.slots, capacity.backends.saturating_sub(1)];
        Self {
            limits: capacity.map(|capacity| share::limit(capacity).into()),
            capacity,
            wanted: BTreeMap::new(),
            refused: BTreeMap::new(),
            issues: Vec::new(),
        }
    }

    /// A Service wants something else than before.
    pub(super) fn replace(&mut self, name: &Name, before: TableDemand, now: TableDemand) {
        if before == now {
            return;
        }
        let wanted = self.wanted.entry(Arc::clone(&name.namespace)).or_default();
        for ((sum, before), now) in wanted.iter_mut().zip(before.0).zip(now.0) {
            *sum = (*sum + u64::from(now)).saturating_sub(before.into());
        }
        if *wanted == [0; TABLES.len()] {
            self.wanted.remove(&name.namespace);
        }
    }

    /// Decides again, and returns the Services for which the decision has changed.
    pub(super) fn decide(&mut self, desired: &Desired) -> BTreeSet<Name> {
        let before = std::mem::take(&mut self.refused);
        self.issues.clear();
        let mut wanted = self.wanted.clone();
        let mut units: BTreeMap<Arc<str>, Vec<Unit<'_>>> = BTreeMap::new();
        for (table, limit) in self.limits.iter().enumerate() {
            let of = |wanted: &[u64; TABLES.len()]| wanted.get(table).copied().unwrap_or(0);
            let Some(level) = share::level(wanted.values().map(of), *limit) else { continue };
            let above: Vec<Arc<str>> = wanted
                .iter()
                .filter(|(_, wanted)| of(wanted) > level)
                .map(|(namespace, _)| Arc::clone(namespace))
                .collect();
            for namespace in above {
                let units = units
                    .entry(Arc::clone(&namespace))
                    .or_insert_with(|| units_of(desired, &namespace));
                let left = cut(units, table, share::steady(level));
                wanted.insert(namespace, left);
            }
        }
        for (namespace, units) in &units {
            self.note(namespace, units);
        }
        let now = &self.refused;
        let changed = before.iter().filter(|(name, refused)| now.get(*name) != Some(*refused));
        let new = now.keys().filter(|name| !before.contains_key(*name));
        changed.map(|(name, _)| name).chain(new).cloned().collect()
    }

    /// What of a Service is not to be programmed.
    pub(super) fn refused(&self, name: &Name) -> Option<&Refused> {
        self.refused.get(name)
    }

    /// What its namespace is told.
    pub(super) fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }

    /// Notes what a namespace has lost, and what its Services are told.
    fn note(&mut self, namespace: &str, units: &[Unit<'_>]) {
        let mut lost: BTreeMap<&Name, Vec<&Unit<'_>>> = BTreeMap::new();
        for unit in units.iter().filter(|unit| unit.lost.is_some()) {
            lost.entry(unit.name).or_default().push(unit);
        }
        for (name, mut units) in lost {
            units.sort_by_key(|unit| unit.part);
            let mut refused = Refused::default();
            let (mut ports, mut tables) = (Vec::new(), Vec::new());
            for unit in &units {
                match unit.part {
                    UnitPart::Wildcards => refused.wildcards = true,
                    UnitPart::Port(at) => {
                        refused.ports.insert(at);
                        ports.extend(unit.port.map(|port| port.port));
                    }
                    UnitPart::Table(at) => {
                        refused.tables.insert(at);
                        tables.extend(unit.port.map(|port| port.port));
                    }
                }
            }
            let table = units.iter().find_map(|unit| unit.lost).unwrap_or_default();
            let why = self.reason(namespace, table);
            let object = || ObjectRef::new("Service", name);
            if !ports.is_empty() {
                let message = format!("{why}: {} not programmed", list(&mut ports, ["is", "are"]));
                self.issues.push(Issue::new(object(), "", message));
            }
            if refused.wildcards {
                let message = format!("{why}: connections to undefined ports are not refused");
                self.issues.push(Issue::new(object(), "", message));
            }
            // A port that is not programmed has no table either.
            refused.tables.retain(|at| !refused.ports.contains(at));
            if !refused.tables.is_empty() {
                let message = format!(
                    "{why}: {} no Maglev table: clients are hashed to the current endpoints, and more of them change endpoints when the endpoints change",
                    list(&mut tables, ["has", "have"])
                );
                let field = Annotation::Algorithm.field();
                self.issues.push(Issue::new(object(), field, message));
            }
            self.refused.insert(name.clone(), refused);
        }
    }

    /// Figures that hardly change: each other text is another issue.
    fn reason(&self, namespace: &str, table: usize) -> String {
        let of = |list: &[u64; TABLES.len()]| list.get(table).copied().unwrap_or(0);
        let wanted = self.wanted.get(namespace).map_or(0, of);
        let capacity = self.capacity.get(table).copied().unwrap_or(0);
        let map = TABLES.get(table).copied().unwrap_or_default();
        let about = share::steady(wanted);
        let more = if about < wanted { "more than " } else { "" };
        format!(
            "namespace {namespace} needs {more}{about} of {capacity} {map}, and all namespaces together need more than there are"
        )
    }
}

/// What a Service wants.
pub(super) fn demand(want: &DesiredService) -> TableDemand {
    let mut sum = [want.wildcards.len() as u32, 0, 0];
    for port in &want.ports {
        let [frontends, slots, backends] = &mut sum;
        let (plain, table) = of_port(port);
        *frontends += plain.0[0];
        *slots += plain.0[1] + table.0[1];
        *backends += plain.0[2];
    }
    TableDemand(sum)
}

/// What a port wants, and what its Maglev table does.
fn of_port(port: &DesiredPort) -> (TableDemand, TableDemand) {
    let plain =
        [values::keys(port).count() as u32, values::n_slots(port), port.backends.len() as u32];
    let table = port.maglev().is_some_and(|members| {
        let n = members.count();
        n > 0 && n <= MAGLEV_SLOTS as usize
    });
    (TableDemand(plain), TableDemand([0, if table { MAGLEV_SLOTS } else { 0 }, 0]))
}

/// What may be programmed or not by itself.
struct Unit<'a> {
    name: &'a Name,
    part: UnitPart,
    port: Option<&'a DesiredPort>,
    demand: TableDemand,
    /// Index in [`TABLES`] of the one that has no room for it.
    lost: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum UnitPart {
    Wildcards,
    Port(usize),
    Table(usize),
}

/// All that a namespace wants, first what it loses last.
fn units_of<'a>(desired: &'a Desired, namespace: &Arc<str>) -> Vec<Unit<'a>> {
    let from = Name { namespace: Arc::clone(namespace), name: Arc::from("") };
    let services = desired.services.range(from..);
    let services = services.take_while(|(name, _)| name.namespace == *namespace);
    let mut units = Vec::new();
    for (name, service) in services {
        let mut push = |part, port, demand| {
            let is_table = matches!(part, UnitPart::Table(_));
            let TableDemand(amounts) = demand;
            // By powers of two: an endpoint more does not make a port another's junior.
            let size = amounts.iter().map(|n| u32::BITS - n.leading_zeros()).max();
            let created = service.created.map_or(i64::MAX, std::num::NonZeroI64::get);
            let unit = Unit { name, part, port, demand, lost: None };
            units.push(((is_table, size, created, name, part), unit));
        };
        if !service.wildcards.is_empty() {
            let n = service.wildcards.len() as u32;
            push(UnitPart::Wildcards, None, TableDemand([n, 0, 0]));
        }
        for (at, port) in service.ports.iter().enumerate() {
            let (plain, table) = of_port(port);
            push(UnitPart::Port(at), Some(port), plain);
            if table != TableDemand::default() {
                push(UnitPart::Table(at), Some(port), table);
            }
        }
    }
    units.sort_by_key(|(order, _)| *order);
    units.into_iter().map(|(_, unit)| unit).collect()
}

/// Takes away what does not fit below a level, and returns what is left in all tables.
fn cut(units: &mut [Unit<'_>], table: usize, level: u64) -> [u64; TABLES.len()] {
    let mut sum = [0u64; TABLES.len()];
    for unit in units.iter_mut().filter(|unit| unit.lost.is_none()) {
        let amount = unit.demand.0.get(table).copied().unwrap_or(0);
        let so_far = sum.get(table).copied().unwrap_or(0);
        if amount > 0 && so_far + u64::from(amount) > level {
            unit.lost = Some(table);
            continue;
        }
        for (sum, amount) in sum.iter_mut().zip(unit.demand.0) {
            *sum += u64::from(amount);
        }
    }
    sum
}

/// `port 80 is`, `ports 80, 81, 82 and 97 more are`.
fn list(ports: &mut Vec<u16>, verb: [&str; 2]) -> String {
    ports.sort_unstable();
    ports.dedup();
    let named: Vec<String> = ports.iter().take(NAMED).map(ToString::to_string).collect();
    let named = named.join(", ");
    let [one, many] = verb;
    match ports.len() {
        1 => format!("port {named} {one}"),
        n if n <= NAMED => format!("ports {named} {many}"),
        n => format!("ports {named} and {} more {many}", n - NAMED),
    }
}
