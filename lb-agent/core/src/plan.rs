//! The writes that bring the maps from what they say to what they should say.
//!
//! Pure: time and the liveness of addresses are passed in, the maps are behind [`MapStore`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::config::Settings;
use lb_common::flow::proto;
use lb_common::limits;
use lb_common::service::{Backend, Frontend, FrontendKey, frontend_flags};
use thiserror::Error as ThisError;

use self::admission::{Admission, Demand, Refused};
use self::service::Context;
use self::state::{PortState, ServiceState};
use self::tables::Tables;
use self::timers::RECHECK;
use crate::cluster::{Family, Name};
use crate::issue::Issue;
use crate::model::{Changed, Desired, DesiredPort};

mod admission;
mod bitmaps;
mod delta;
mod flows;
mod ids;
mod maglev;
mod node;
pub mod policy;
mod ports;
mod restore;
mod service;
mod share;
mod slots;
mod sources;
mod state;
mod tables;
mod timers;
mod values;

pub use self::flows::Flows;
pub use self::node::Given;
pub use self::sources::RangeKey;

/// What the maps say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// The map `frontends`.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// The array `slots`: backend ids. What is beyond its end is 0.
    pub slots: Vec<u32>,
    /// The array `backends`, by id. What is beyond its end is unused.
    pub backends: Vec<Backend>,
    /// The map `source_ranges`.
    pub source_ranges: BTreeSet<RangeKey>,
    /// The array `frontend_ports`. What is beyond its end is 0.
    pub frontend_ports: Vec<u64>,
    /// The array `host_ports`. What is beyond its end is 0.
    pub host_ports: Vec<u64>,
    /// The array `former_ports`. What is beyond its end is 0.
    pub former_ports: Vec<u64>,
    /// The only element of the array `settings`; `None` = all of it is zero.
    pub settings: Option<Box<Settings>>,
}

impl Actual {
    /// Whether [`Planner::watches_departures`] may have been so when this was written: too often rather than too seldom,
    /// since the addresses of the host are not in it.
    pub fn may_watch_departures(&self) -> bool {
        let from_outside = |(key, value): (&FrontendKey, &Frontend)| {
            key.proto != proto::TCP && value.flags & frontend_flags::EXTERNAL != 0
        };
        self.host_ports.iter().any(|ports| *ports != 0) || self.frontends.iter().any(from_outside)
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes an element of `backends`.
    PutBackend {
        /// Backend id.
        id: u32,
        /// The element.
        backend: Backend,
    },
    /// Writes an element of `slots`.
    PutSlot {
        /// Index.
        slot: u32,
        /// The element.
        backend_id: u32,
    },
    /// Adds or replaces an element of `frontends`.
    PutFrontend {
        /// Key.
        key: FrontendKey,
        /// Value.
        frontend: Frontend,
    },
    /// Removes an element of `frontends`; that it is not there is no error.
    DeleteFrontend {
        /// Key.
        key: FrontendKey,
    },
    /// Adds an element of `source_ranges`.
    PutSourceRange {
        /// Key.
        key: RangeKey,
    },
    /// Removes an element of `source_ranges`; that it is not there is no error.
    DeleteSourceRange {
        /// Key.
        key: RangeKey,
    },
    /// Removes all elements of `affinity` of a service port: they must not come to life again with its affinity.
    ClearAffinity {
        /// Service port.
        service_id: u32,
    },
    /// Writes a word of `frontend_ports`.
    PutFrontendPorts {
        /// Index.
        word: u32,
        /// The element.
        bits: u64,
    },
    /// Writes a word of `host_ports`.
    PutHostPorts {
        /// Index.
        word: u32,
        /// The element.
        bits: u64,
    },
    /// Writes a word of `former_ports`.
    PutFormerPorts {
        /// Index.
        word: u32,
        /// The element.
        bits: u64,
    },
    /// Writes the element of `settings`. Boxed: it is rare, and many times as large as the others.
    PutSettings(Box<Settings>),
}

/// The load balancing maps: the kernel's, or a table in a test.
pub trait MapStore {
    /// Reads everything.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn load(&self) -> Result<Actual, MapError>;

    /// Does one write.
    ///
    /// # Errors
    /// When the write did not happen; the map is as it was.
    fn apply(&mut self, op: &Op) -> Result<(), MapError>;
}

/// A failed access to a map.
#[derive(Debug, ThisError)]
#[error("map {map}: {}{source}", if *.full { "full: " } else { "" })]
pub struct MapError {
    /// Name of the map.
    pub map: &'static str,
    /// Whether it has no room for another element.
    pub full: bool,
    /// What the kernel said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl MapError {
    /// A write that another depends on has not happened.
    fn lacking(map: &'static str) -> Self {
        Self { map, full: false, source: "an earlier write that this one depends on failed".into() }
    }
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Elements of `frontends`.
    pub frontends: u32,
    /// Elements of `slots`.
    pub slots: u32,
    /// Elements of `backends`; id 0 is never used.
    pub backends: u32,
    /// Elements of `source_ranges`.
    pub source_ranges: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: limits::FRONTENDS,
            slots: limits::SLOTS,
            backends: limits::BACKENDS,
            source_ranges: limits::SOURCE_RANGES,
        }
    }
}

/// Writes in the order in which they have to be done.
///
/// They come in groups, one for each Service. After a failed write the rest of its group must not be done;
/// [`Planner::apply`] sees to that. The other groups do not depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "each plan has to be applied before the next is made"]
pub struct Plan {
    /// All writes.
    pub ops: Vec<Op>,
    groups: Vec<Group>,
}

/// Writes that depend on each other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    /// Whose they are; `None` for a timer's.
    service: Option<Name>,
    /// Index in [`Plan::ops`] after the last.
    end: usize,
}

impl Plan {
    fn end_group(&mut self, service: Option<Name>) {
        self.groups.push(Group { service, end: self.ops.len() });
    }
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Writes done.
    pub writes: usize,
    /// Writes that failed, with the reason; they come again in a later plan.
    pub failed: Vec<(Op, MapError)>,
}

/// One service port as the maps know it, for the name table.
#[derive(Clone, Copy, Debug)]
pub struct PortIds<'a> {
    /// Service id in `frontends`.
    pub service_id: u32,
    /// Name of the service port, may be empty.
    pub port_name: &'a Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port clients dial.
    pub port: u16,
    /// Family of its frontends and backends.
    pub family: Family,
    /// Ids of the backends in the slots, in the order of the desired port's backends.
    pub backend_ids: &'a [u32],
    /// Ids of those that have left and are still draining.
    pub former_ids: &'a [u32],
}

/// Keeps ids, slot ranges and timers, and makes plans.
#[derive(Debug)]
pub struct Planner {
    tables: Tables,
    services: BTreeMap<Name, Box<ServiceState>>,
    /// Services that have something left to do.
    pending: BTreeSet<Name>,
    /// Which Service has the wildcard of an address, by its serial.
    wildcards: HashMap<Addr, u32>,
    /// Numbers of namespaces, 0 of none.
    tenants: HashMap<Arc<str>, u32>,
    /// What there is no room for.
    admission: Admission,
    /// Service ports found in the maps and not claimed yet, by service id; empty after the first plan.
    restored: HashMap<u32, PortState>,
    /// Whether a plan has been made.
    begun: bool,
    next_service_id: u32,
    next_serial: u32,
    /// What the programs should know of this node.
    settings: Box<Settings>,
    given: Given,
}

impl Planner {
    /// Takes over what the maps say. The first plan is an ordinary difference to it.
    pub fn restore(actual: Actual, capacity: Capacity) -> Self {
        restore::planner(actual, capacity)
    }

    /// From now on the settings have this in them.
    pub fn give(&mut self, given: Given) {
        self.given = given;
    }

    /// The writes for the changed services, for earlier ones that failed, and for timers that are due.
    ///
    /// Must not be called before [`crate::cluster::Cluster::synced`]: it removes what is not desired.
    /// The first call looks at all services, whatever `changed` says. `alive` tells whether an endpoint or a Pod
    /// has the address ([`crate::cluster::Cluster::is_alive`]); `now` is any clock that never goes back.
    pub fn plan(
        &mut self,
        desired: &Desired,
        changed: &Changed,
        alive: &dyn Fn(&Addr) -> bool,
        now: Duration,
    ) -> Plan {
        self.tables.stamp(now);
        let mut plan = Plan::default();
        // Before any frontend: from then on flows in mid-flow would be refused.
        self.settings = node::settings(&desired.node, self.given);
        let flags = self.settings.flags;
        let now_told = self.tables.actual.settings.as_deref().copied().unwrap_or(Settings::ZERO);
        if flags != now_told.flags {
            plan.ops.push(Op::PutSettings(Box::new(Settings { flags, ..now_told })));
            plan.end_group(None);
        }
        // A Service that is tried again needs the ports it has asked for, although nothing has them yet.
        let due = self.tables.timers.due_sweep(now) && self.pending.is_empty();
        for op in self.tables.begin(&desired.node.addrs, !self.begun, due) {
            plan.ops.push(op);
            plan.end_group(None);
        }
        while let Some((range, tenant)) = self.tables.timers.due_range(now) {
            self.tables.give_range(tenant, range);
            self.tables.freed = true;
        }
        let mut names = self.due_services(desired, changed, now);
        names.extend(self.admit(desired, &names));
        let moving = self.match_services(desired, &names);
        if !self.begun {
            self.begun = true;
            names.extend(restore::orphans(self));
        }
        let (kept, gone): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| desired.services.contains_key(name));
        for name in kept.into_iter().chain(gone) {
            let start = plan.ops.len();
            let Some(service) = self.services.get_mut(&name) else { continue };
            let want = desired.services.get(&name);
            let refused = self.admission.refused(&name);
            let context = Context { moving: &moving, wildcards: &self.wildcards, refused, now };
            service::plan(&mut self.tables, &name, service, want, &context, &mut plan.ops);
            if plan.ops.len() > start {
                plan.end_group(Some(name));
            } else {
                self.settle(&name);
            }
        }
        for op in self.tables.due_backends(alive, now) {
            plan.ops.push(op);
            plan.end_group(None);
        }
        // At the end: the ClusterIPs of a new range are there before what is not there is dropped.
        if self.settings_differ() {
            plan.ops.push(Op::PutSettings(self.settings.clone()));
            plan.end_group(None);
        }
        self.tables.stamp(now);
        plan
    }

    /// A pass over the connection table has ended that began at `begun`, on the clock of the `now` of [`Planner::plan`].
    pub fn passed(&mut self, begun: Duration, flows: Flows) {
        self.tables.passed(begun, flows);
    }

    /// Does the writes, and notes which of them happened. `clock` is that of the `now` of [`Planner::plan`].
    pub fn apply(
        &mut self,
        plan: Plan,
        maps: &mut impl MapStore,
        clock: &mut dyn FnMut() -> Duration,
    ) -> Applied {
        let mut applied = Applied::default();
        let mut ops = plan.ops.into_iter();
        let mut start = 0;
        for group in plan.groups {
            let mut failed = None;
            for op in ops.by_ref().take(group.end - start) {
                if failed.is_some() {
                    continue;
                }
                let written = match self.tables.bitmaps.lacks(&self.tables.actual, &op) {
                    Some(map) => Err(MapError::lacking(map)),
                    None => maps.apply(&op),
                };
                match written {
                    Ok(()) => self.tables.done(&op),
                    Err(err) => failed = Some((op, err)),
                }
                applied.writes += usize::from(failed.is_none());
            }
            start = group.end;
            match (failed, &group.service) {
                (None, Some(name)) => self.settle(name),
                (None, None) => {}
                (Some((op, err)), service) => {
                    self.tables.doubt_ports();
                    self.failed(service.as_ref(), &op, &err, clock());
                    applied.failed.push((op, err));
                }
            }
        }
        self.tables.stamp(clock());
        applied
    }

    /// When [`Planner::plan`] has to be called again although nothing changed, on the clock of its `now`.
    pub fn next_wakeup(&self) -> Option<Duration> {
        let retries =
            self.pending.iter().filter_map(|name| self.services.get(name)?.trouble.as_ref());
        // What is free now may be what was lacking.
        let retries = retries.map(|trouble| {
            let at_once = self.tables.freed && trouble.incomplete;
            if at_once { Duration::ZERO } else { trouble.retry.at }
        });
        retries.chain(self.tables.timers.first()).min()
    }

    /// Services that are not programmed completely, and why.
    pub fn issues(&self) -> impl Iterator<Item = &Issue> {
        let troubles =
            self.pending.iter().filter_map(|name| self.services.get(name)?.trouble.as_ref());
        troubles.flat_map(|trouble| &trouble.issues).chain(self.admission.issues())
    }

    /// Services that have something left to do; one more when the settings are not written.
    pub fn n_pending(&self) -> usize {
        self.pending.len() + usize::from(self.settings_differ())
    }

    /// Whether packets that leave the node must be seen: answers of backends that are processes of this host, and what this
    /// host sends from the port of a frontend.
    pub fn watches_departures(&self) -> bool {
        self.tables.bitmaps.watches_departures()
    }

    /// Whether packets that leave the node must be seen once this plan is applied; to be arranged before it is, since the
    /// answers to the first packets of a flow leave at once.
    pub fn will_watch_departures(&self, plan: &Plan) -> bool {
        let bitmaps = &self.tables.bitmaps;
        bitmaps.watches_departures() || plan.ops.iter().any(|op| bitmaps.needs_departures(op))
    }

    /// What the maps say, as far as it was written or restored.
    pub fn actual(&self) -> &Actual {
        &self.tables.actual
    }

    /// The ids of a Service's ports, those that are still being removed included.
    pub fn port_ids(&self, service: &Name) -> impl Iterator<Item = PortIds<'_>> {
        let ports = self.services.get(service).into_iter().flat_map(|service| &service.ports);
        ports.map(|port| PortIds {
            service_id: port.service_id,
            port_name: &port.port_name,
            protocol: port.protocol,
            port: port.port,
            family: port.family,
            backend_ids: &port.backend_ids,
            former_ids: port.former(),
        })
    }

    /// The services to look at, in the order of their names.
    fn due_services(
        &mut self,
        desired: &Desired,
        changed: &Changed,
        now: Duration,
    ) -> BTreeSet<Name> {
        let mut names: BTreeSet<Name> = changed.services.iter().cloned().collect();
        let freed = std::mem::take(&mut self.tables.freed);
        if self.pending.is_empty() {
            self.tables.lacking.clear();
        }
        let due = |name: &&Name| {
            let trouble = self.services.get(*name).and_then(|service| service.trouble.as_ref());
            trouble.is_none_or(|trouble| trouble.retry.at <= now || (freed && trouble.incomplete))
        };
        names.extend(self.pending.iter().filter(due).cloned());
        if !self.begun {
            names.extend(desired.services.keys().cloned());
        }
        names
    }

    /// Decides what there is room for, now that these Services may want something else, and tells which others that
    /// concerns.
    fn admit(&mut self, desired: &Desired, names: &BTreeSet<Name>) -> BTreeSet<Name> {
        self.add_services(names.iter().filter(|name| desired.services.contains_key(*name)));
        for name in names {
            let Some(service) = self.services.get_mut(name) else { continue };
            let now = desired.services.get(name).map(admission::demand).unwrap_or_default();
            self.admission.replace(name, service.demand, now);
            service.demand = now;
        }
        self.admission.decide(desired)
    }

    /// Gives each desired port its state, and returns the frontends that go from one service port to another.
    fn match_services(
        &mut self,
        desired: &Desired,
        names: &BTreeSet<Name>,
    ) -> HashSet<FrontendKey> {
        let mut moving = HashSet::new();
        for name in names {
            let Some(want) = desired.services.get(name) else { continue };
            let Some(service) = self.services.get_mut(name) else { continue };
            let refused = self.admission.refused(name);
            if !refused.is_some_and(|refused| refused.wildcards) {
                for wildcard in &want.wildcards {
                    self.wildcards.insert(wildcard.addr, service.serial);
                }
            }
            let fresh = u32::try_from(self.tenants.len()).unwrap_or(0);
            let tenant = *self.tenants.entry(Arc::clone(&name.namespace)).or_insert(fresh);
            let mut adopt = |want: &DesiredPort| {
                let found = restore::adopt(&mut self.restored, &mut self.tables, want, tenant);
                found.unwrap_or_else(|| {
                    self.next_service_id += 1;
                    PortState::new(want, self.next_service_id, tenant)
                })
            };
            service.match_ports(want, &mut adopt);
            for (i, (port, want)) in service.ports.iter().zip(&want.ports).enumerate() {
                if refused.is_some_and(|refused: &Refused| refused.ports.contains(&i)) {
                    continue;
                }
                moving.extend(values::keys(want).filter(|key| {
                    let owner = self.tables.frontend(key).map(|frontend| frontend.service_id);
                    owner.is_some_and(|owner| owner != port.service_id)
                }));
            }
        }
        moving
    }

    /// Gives those that have none a state of their own.
    fn add_services<'a>(&mut self, names: impl Iterator<Item = &'a Name>) {
        let mut new = Vec::new();
        for name in names.filter(|name| !self.services.contains_key(*name)) {
            self.next_serial += 1;
            let service = ServiceState { serial: self.next_serial, ..ServiceState::default() };
            new.push((name.clone(), Box::new(service)));
        }
        if self.services.is_empty() {
            // At once, since a tree that grows in order is little more than half full.
            self.services = new.into_iter().collect();
        } else {
            self.services.extend(new);
        }
    }

    /// All writes of the Service's group happened.
    fn settle(&mut self, name: &Name) {
        let Some(service) = self.services.get_mut(name) else { return };
        let tables = &mut self.tables;
        let ports = std::mem::take(&mut service.ports).into_iter();
        service.ports = ports.filter_map(|mut port| port.settle(tables).then_some(port)).collect();
        let serial = service.serial;
        let wildcards = std::mem::take(&mut service.wildcards).into_iter();
        let wildcards = wildcards.filter(|addr| {
            let held = tables.frontend(&FrontendKey::wildcard(*addr)).is_some();
            let own = self.wildcards.get(addr) == Some(&serial);
            if own && !held {
                self.wildcards.remove(addr);
            }
            own && held
        });
        service.wildcards = wildcards.collect();
        if service.trouble.as_ref().is_some_and(|trouble| trouble.incomplete) {
            self.pending.insert(name.clone());
            return;
        }
        service.trouble = None;
        self.pending.remove(name);
        let wants_nothing = service.demand == Demand::default();
        if wants_nothing && service.ports.is_empty() && service.wildcards.is_empty() {
            self.services.remove(name);
        }
    }

    /// A write of the group did not happen.
    fn failed(&mut self, service: Option<&Name>, op: &Op, err: &MapError, now: Duration) {
        if let Some(name) = service
            && let Some(service) = self.services.get_mut(name)
        {
            service::failed(name, service, err, now);
            self.pending.insert(name.clone());
            return;
        }
        if let Op::PutBackend { id, .. } = op {
            self.tables.timers.arm(*id, RECHECK);
        } else {
            self.tables.timers.sweep();
        }
    }

    fn settings_differ(&self) -> bool {
        *self.settings != *self.tables.actual.settings.as_deref().unwrap_or(&Settings::ZERO)
    }
}
