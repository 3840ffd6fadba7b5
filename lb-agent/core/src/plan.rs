//! The writes that bring the maps from what they say to what they should say.
//!
//! Pure: time and the liveness of addresses are passed in, the maps are behind [`MapStore`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::config::{SettingFlags, Settings};
use lb_common::endpoint::Dev;
use lb_common::service::FrontendKey;

use self::admission::{Admission, Refused, TableDemand};
use self::apply::WriteOwner;
use self::devs::Devs;
use self::links::Links;
use self::locals::Locals;
use self::pod_ranges::OtherRanges;
use self::pods::Pods;
use self::policy::{DesiredTables, PodDevice};
use self::retry::Backlog;
use self::service::ServiceInputs;
use self::state::{PortState, ServiceState, Trouble};
use self::tables::ServiceTables;
use self::timers::RECHECK;
use crate::cluster::{Family, Name, Prefix};
use crate::issue::Issue;
use crate::model::policy::DesiredPolicies;
use crate::model::{Changed, Desired, DesiredPort};

mod actual;
mod admission;
mod apply;
mod bitmaps;
mod capacity;
mod cidrs;
mod delta;
mod devs;
mod drift;
mod flows;
mod ids;
mod links;
mod locals;
mod maglev;
mod node;
mod pod_ranges;
mod pod_sources;
mod pods;
pub mod policy;
mod ports;
mod range_key;
mod restore;
mod retry;
mod service;
mod share;
mod slots;
mod source_key;
mod sources;
mod stages;
mod state;
mod tables;
mod timers;
mod values;
mod write;

pub use self::actual::Actual;
pub use self::apply::{Applied, Plan};
pub use self::capacity::Capacity;
pub use self::cidrs::Cidrs;
pub use self::drift::{Drift, DriftField, drift};
pub use self::flows::Flows;
pub use self::links::MacTables;
pub use self::locals::PodPath;
pub use self::node::{ABOUT_PAST, Given};
pub use self::pods::{GroupIds, groups};
pub use self::range_key::RangeKey;
pub use self::source_key::SourceKey;
pub use self::write::{MapError, MapStore, Write};

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
    tables: ServiceTables,
    services: BTreeMap<Name, Box<ServiceState>>,
    /// Services that have something left to do.
    pending: BTreeSet<Name>,
    /// Services whose last plan has a write that needs [`Planner::watches_departures`], until it has happened.
    departing: BTreeSet<Name>,
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
    policies: policy::PolicyPlanner,
    pods: Pods,
    devs: Devs,
    links: Links,
    locals: Locals,
    pod_ranges: OtherRanges,
    /// Name of this node, for issues.
    node: String,
}

impl Planner {
    /// Takes over what the maps say. The first plan is an ordinary difference to it.
    pub fn restore(actual: Actual, capacity: Capacity) -> Self {
        restore::planner(actual, capacity)
    }

    /// This node is called so.
    pub fn name_node(&mut self, node: &str) {
        node.clone_into(&mut self.node);
    }

    /// From now on the settings have this in them.
    pub fn give(&mut self, given: Given) {
        self.given = given;
    }

    /// The write after which these flows may go past the IP stack, and no others.
    pub fn plan_past(&mut self, past: SettingFlags) -> Plan {
        self.given.past = past;
        let actual = self.tables.actual.settings.as_deref().copied().unwrap_or(Settings::ZERO);
        let settings = self.given.within(actual);
        self.settings.flags = self.settings.flags.without(ABOUT_PAST) | past;
        let write = (settings != actual).then(|| Write::PutSettings(Box::new(settings)));
        Plan::of(WriteOwner::Timer, write)
    }

    /// The writes for the changed Services, for earlier ones that failed, and for timers that are due.
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
            plan.writes.push(Write::PutSettings(Box::new(Settings { flags, ..now_told })));
            plan.end_batch(WriteOwner::Timer);
        }
        // A Service that is tried again needs the ports it has asked for, although nothing has them yet.
        let due = self.tables.timers.due_sweep(now) && self.pending.is_empty();
        for write in self.tables.begin(&desired.node.addrs, !self.begun, due) {
            plan.writes.push(write);
            plan.end_batch(WriteOwner::Timer);
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
            let start = plan.writes.len();
            let Some(service) = self.services.get_mut(&name) else { continue };
            let want = desired.services.get(&name);
            let refused = self.admission.refused(&name);
            let context =
                ServiceInputs { moving: &moving, wildcards: &self.wildcards, refused, now };
            service::plan(&mut self.tables, &name, service, want, &context, &mut plan.writes);
            let batch = plan.writes.get(start..).unwrap_or_default();
            if batch.iter().any(|write| self.tables.bitmaps.needs_departures(write)) {
                self.departing.insert(name.clone());
            } else {
                self.departing.remove(&name);
            }
            if plan.writes.len() > start {
                plan.end_batch(WriteOwner::Service(name));
            } else {
                self.settle(&name);
            }
        }
        for write in self.tables.due_backends(alive, now) {
            plan.writes.push(write);
            plan.end_batch(WriteOwner::Timer);
        }
        // At the end: the ClusterIPs of a new range are there before what is not there is dropped.
        if self.settings_differ() {
            plan.writes.push(Write::PutSettings(self.settings.clone()));
            plan.end_batch(WriteOwner::Timer);
        }
        self.tables.stamp(now);
        plan
    }

    /// The writes that bring the policy maps, `ident` and `pods` to what is wanted; those for earlier ones that failed, and
    /// for numbers that have rested. `now` is on the clock of [`Planner::plan`].
    pub fn plan_policies(&mut self, wanted: &DesiredTables<'_>, now: Duration) -> Plan {
        let maps = (&self.tables.actual, &self.pods);
        Plan::of(WriteOwner::Policies, self.policies.plan(maps, wanted, now))
    }

    /// The write that gives a device its element of `pods`, if it is another than it has, without waiting for all policies:
    /// with the groups that it has, else those of the Pod behind it, else those of unknown Pods.
    pub fn plan_pod(
        &self,
        desired: Option<&DesiredPolicies>,
        veth: &PodDevice,
        pickup_until: u32,
    ) -> Plan {
        let maps = (&self.tables.actual, &self.pods);
        Plan::of(WriteOwner::Pod, self.policies.put_pod(maps, desired, veth, pickup_until))
    }

    /// A Pod's device appeared.
    pub fn appeared(&mut self, ifindex: u32) {
        self.pods.appeared(ifindex);
    }

    /// A Pod's device is gone: the write that removes its element of `pods`.
    pub fn plan_gone(&mut self, ifindex: u32) -> Plan {
        // From now on no packet goes to its device, whoever gets its number.
        let ended = locals::ended(&self.tables.actual, self.pods.id(ifindex));
        self.pods.gone(ifindex);
        Plan::of(WriteOwner::Pod, ended.into_iter().chain([Write::DeletePod { ifindex }]))
    }

    /// It is known which Pod is behind a device.
    pub fn is_known(&mut self, ifindex: u32) {
        self.pods.is_known(ifindex);
    }

    /// The writes that bring `devs` to what is wanted on this node.
    pub fn plan_devs(&mut self, wanted: &BTreeMap<u32, Dev>) -> Plan {
        Plan::of(WriteOwner::Devs, self.devs.plan(&self.tables.actual, wanted))
    }

    /// The writes that add what `pod_ranges` lacks. Those that remove from it come after the Pods are in `ident`.
    pub fn plan_pod_ranges(&mut self, wanted: &BTreeSet<Prefix>) -> Plan {
        Plan::of(WriteOwner::OtherRanges, self.pod_ranges.add(&self.tables.actual, wanted))
    }

    /// The writes that remove from `pod_ranges` what is not wanted.
    pub fn plan_former_ranges(&mut self, wanted: &BTreeSet<Prefix>) -> Plan {
        Plan::of(WriteOwner::OtherRanges, OtherRanges::remove(&self.tables.actual, wanted))
    }

    /// The writes that bring `locals` to what is wanted on this node, by ifindex.
    pub fn plan_locals(&mut self, wanted: &BTreeMap<u32, PodPath>) -> Plan {
        let maps = (&self.tables.actual, &self.pods);
        Plan::of(WriteOwner::Locals, self.locals.plan(maps, wanted))
    }

    /// The writes that bring `macs` and `links` to what is wanted on this node.
    pub fn plan_links(&mut self, wanted: &MacTables) -> Plan {
        Plan::of(WriteOwner::Links, self.links.plan(&self.tables.actual, wanted))
    }

    /// The writes that bring `pod_sources` to what these Pods want. The elements of their devices follow with the next plan
    /// of policies. Must not be called before all Pods are known: it removes what is not wanted.
    pub fn plan_pod_sources(&mut self, wanted: BTreeMap<SourceKey, Name>) -> Plan {
        Plan::of(WriteOwner::PodSources, self.pods.sources.plan(&self.tables.actual, wanted))
    }

    /// When [`Planner::plan_devs`], [`Planner::plan_links`] and [`Planner::plan_pod_sources`] have to be called again
    /// although nothing changed.
    pub fn next_devices(&self) -> Option<Duration> {
        self.backlogs().into_iter().filter_map(Backlog::next_wakeup).min()
    }

    /// Writes that failed and do not belong to one Service or policy: those to `devs`, `macs`, `links` and `pod_sources`, and
    /// those that enforce policies.
    pub fn node_issues(&self) -> impl Iterator<Item = &Issue> {
        self.backlogs().into_iter().flat_map(Backlog::issues).chain(self.policies.unwritten())
    }

    fn backlogs(&self) -> [&Backlog; 5] {
        [
            &self.devs.backlog,
            &self.links.backlog,
            &self.locals.backlog,
            &self.pod_ranges.backlog,
            &self.pods.sources.backlog,
        ]
    }

    /// The numbers of policies, and which of them are not programmed as they should be.
    pub fn policies(&self) -> &policy::PolicyPlanner {
        &self.policies
    }

    /// A pass over the connection table has ended that began at `begun`, on the clock of the `now` of [`Planner::plan`].
    pub fn passed(&mut self, begun: Duration, flows: Flows) {
        self.tables.passed(begun, flows);
    }

    /// When [`Planner::plan`] has to be called again although nothing changed, on the clock of its `now`.
    pub fn next_wakeup(&self) -> Option<Duration> {
        // What is free now may be what was lacking.
        let retries = self.troubles().map(|trouble| {
            let at_once = self.tables.freed && trouble.incomplete;
            if at_once { Duration::ZERO } else { trouble.retry.at }
        });
        retries.chain(self.tables.timers.first()).min()
    }

    /// Services that are not programmed completely, and why.
    pub fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.troubles().flat_map(|trouble| &trouble.issues).chain(self.admission.issues())
    }

    /// Whether writes for Services have failed and are still to be repeated. A full map is not waited for: the Service has an
    /// issue.
    pub fn is_stalled(&self) -> bool {
        self.troubles().any(|trouble| trouble.refused) || self.settings_differ()
    }

    fn troubles(&self) -> impl Iterator<Item = &Trouble> {
        self.pending.iter().filter_map(|name| self.services.get(name)?.trouble.as_deref())
    }

    /// Services that have something left to do; one more when the settings are not written.
    pub fn n_pending(&self) -> usize {
        self.pending.len() + usize::from(self.settings_differ())
    }

    /// Whether packets that leave the node must be seen: answers of backends that are processes of this host, and what this
    /// host sends from the port of a frontend. From the plan on that has the first of them, since the answers to the first
    /// packets of a flow leave at once; while its write fails, until it is no longer wanted.
    pub fn watches_departures(&self) -> bool {
        !self.departing.is_empty() || self.tables.bitmaps.watches_departures()
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

    /// All writes of the Service's batch happened.
    fn settle(&mut self, name: &Name) {
        self.departing.remove(name);
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
        let wants_nothing = service.demand == TableDemand::default();
        if wants_nothing && service.ports.is_empty() && service.wildcards.is_empty() {
            self.services.remove(name);
        }
    }

    /// A write of the Service's batch did not happen.
    fn service_failed(&mut self, name: &Name, err: &MapError, now: Duration) {
        let Some(service) = self.services.get_mut(name) else { return };
        service::failed(name, service, err, now);
        self.pending.insert(name.clone());
    }

    /// A write did not happen that a timer tries again.
    fn timer_failed(&mut self, write: &Write) {
        if let Write::PutBackend { id, .. } = write {
            self.tables.timers.arm(*id, RECHECK);
        } else {
            self.tables.timers.sweep();
        }
    }

    fn settings_differ(&self) -> bool {
        *self.settings != *self.tables.actual.settings.as_deref().unwrap_or(&Settings::ZERO)
    }
}
