//! What the planner remembers of each Service beside the maps themselves.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::service::{FrontendKey, state};

use super::admission::TableDemand;
use super::retry::Retry;
use super::slots::SlotRange;
use super::sources;
use super::tables::ServiceTables;
use crate::cluster::Family;
use crate::issue::Issue;
use crate::model::{DesiredPort, DesiredService};

#[derive(Debug, Default)]
pub(super) struct ServiceState {
    /// Tells Services apart that claim the same wildcard one after the other.
    pub(super) serial: u32,
    /// What it wants of the tables that all share.
    pub(super) demand: TableDemand,
    /// The wildcards it may have in the map.
    pub(super) wildcards: Box<[Addr]>,
    /// Its ports: first the desired ones in their order, then those that are being removed.
    pub(super) ports: Box<[PortState]>,
    /// While something is left to do. Apart, since there are many Services and few of them have any.
    pub(super) trouble: Option<Box<Trouble>>,
}

/// Why a Service is not programmed completely.
#[derive(Debug)]
pub(super) struct Trouble {
    /// For the user.
    pub(super) issues: Vec<Issue>,
    /// Whether the last plan left something out, as opposed to a write that failed.
    pub(super) incomplete: bool,
    /// Whether a write failed although its map has room.
    pub(super) refused: bool,
    /// When it is tried again.
    pub(super) retry: Retry,
}

impl ServiceState {
    /// Puts the ports in the order of the desired ones: each takes over the port of its name, else that of its
    /// number, else what `make` gives. Ports that are no longer desired come last.
    pub(super) fn match_ports(
        &mut self,
        want: &DesiredService,
        make: &mut dyn FnMut(&DesiredPort) -> PortState,
    ) {
        let before = std::mem::take(&mut self.ports);
        let mut before: Vec<Option<PortState>> = before.into_iter().map(Some).collect();
        let mut take = |is: &dyn Fn(&PortState) -> bool| {
            before.iter_mut().find(|port| port.as_ref().is_some_and(is)).and_then(Option::take)
        };
        let ports = want.ports.iter();
        let named: Vec<_> = ports.map(|want| take(&|port| port.has_name_of(want))).collect();
        let ports = want.ports.iter().zip(named).map(|(want, named)| {
            let mut port = named
                .or_else(|| take(&|port| port.has_number_of(want)))
                .unwrap_or_else(|| make(want));
            port.rename(want);
            port
        });
        let ports: Vec<_> = ports.collect();
        self.ports = ports.into_iter().chain(before.into_iter().flatten()).collect();
    }
}

/// One service port in one family.
#[derive(Debug)]
pub(super) struct PortState {
    pub(super) port_name: Arc<str>,
    pub(super) protocol: u8,
    pub(super) port: u16,
    pub(super) family: Family,
    pub(super) service_id: u32,
    /// Its namespace.
    pub(super) tenant: u32,
    /// The frontends it may have in the map.
    pub(super) frontends: Box<[FrontendKey]>,
    /// The slots its frontends refer to, or will.
    pub(super) range: SlotRange,
    /// Whether a frontend has ever referred to `range`: it must not be written again then.
    pub(super) range_used: bool,
    /// The backends in `range`, in this order.
    pub(super) backend_ids: Box<[u32]>,
    /// What it has left and not let go of; apart, since few ports have any.
    pub(super) left: Option<Box<Left>>,
}

/// What a service port has left behind.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Slots that a frontend may still refer to.
    pub(super) ranges: Vec<SlotRange>,
    /// Backends that are its own and not dead.
    pub(super) backend_ids: Vec<u32>,
}

impl PortState {
    pub(super) fn new(want: &DesiredPort, service_id: u32, tenant: u32) -> Self {
        Self {
            port_name: Arc::clone(&want.port_name),
            protocol: want.protocol,
            port: want.port,
            family: want.family,
            service_id,
            tenant,
            frontends: Box::default(),
            range: SlotRange::default(),
            range_used: false,
            backend_ids: Box::default(),
            left: None,
        }
    }

    /// Takes over what a desired port calls itself.
    pub(super) fn rename(&mut self, want: &DesiredPort) {
        self.port_name = Arc::clone(&want.port_name);
        self.port = want.port;
    }

    /// Whether it is the desired port under the same name.
    pub(super) fn has_name_of(&self, want: &DesiredPort) -> bool {
        self.port_name == want.port_name
            && self.protocol == want.protocol
            && self.family == want.family
    }

    /// Whether it is the desired port under another name.
    pub(super) fn has_number_of(&self, want: &DesiredPort) -> bool {
        self.port == want.port && self.protocol == want.protocol && self.family == want.family
    }

    /// The backends it has left behind.
    pub(super) fn former(&self) -> &[u32] {
        self.left.as_ref().map_or(&[], |left| &left.backend_ids)
    }

    /// It was found in the maps, and now its namespace is known.
    pub(super) fn assign(&mut self, tables: &mut ServiceTables, tenant: u32) {
        let left = self.left.as_ref();
        let ranges = left.into_iter().flat_map(|left| &left.ranges).chain([&self.range]);
        let n = ranges.map(|range| range.len).sum();
        tables.slots_held.pass(self.tenant, tenant, n);
        let ids = self.backend_ids.iter().chain(self.former()).copied();
        tables.ids.assign(ids, tenant);
        self.tenant = tenant;
    }

    /// Whether a frontend in the map refers to a slot of the range.
    pub(super) fn refers_to(&self, tables: &ServiceTables, range: SlotRange) -> bool {
        self.frontends.iter().any(|key| {
            tables.frontend(key).is_some_and(|frontend| {
                frontend.service_id == self.service_id && SlotRange::of(frontend).overlaps(range)
            })
        })
    }

    /// After all writes of its Service happened: lets go of what is no longer in use. False when nothing is left.
    pub(super) fn settle(&mut self, tables: &mut ServiceTables) -> bool {
        let (service_id, tenant) = (self.service_id, self.tenant);
        if !self.frontends.iter().all(|key| tables.is_of(key, service_id)) {
            let keys = std::mem::take(&mut self.frontends).into_iter();
            self.frontends = keys.filter(|key| tables.is_of(key, service_id)).collect();
        }
        self.range_used |= self.refers_to(tables, self.range);
        let referred = !self.frontends.is_empty() || sources::any(tables, service_id);
        let Some(mut left) = self.left.take() else { return referred };
        left.ranges.retain(|range| {
            let kept = self.refers_to(tables, *range);
            if !kept {
                tables.timers.release(*range, tenant);
            }
            kept
        });
        left.backend_ids.retain(|id| tables.ids.owner(*id) == service_id);
        let draining = |id: &u32| tables.backend(*id).state == state::DRAINING;
        let settled = left.ranges.is_empty() && left.backend_ids.iter().all(draining);
        if !left.ranges.is_empty() || !left.backend_ids.is_empty() {
            self.left = Some(left);
        }
        !settled || referred
    }
}
