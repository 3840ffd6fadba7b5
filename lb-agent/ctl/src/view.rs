//! Maps and names joined: what every command's rows are made from. Pure; the time is given.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;

use lb_common::service::{Backend, FrontendKey, state};
use serde::{Deserialize, Serialize};

use crate::directory::Directory;
use crate::fields::AffinityState;
use crate::frontend::FrontendSlots;
use crate::snapshot::{FlowCount, TableSnapshot};
use lb_core::names::{EndpointConditions, Names, RejectedName};

/// The joined tables.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// What the maps hold.
    pub snapshot: &'a TableSnapshot,
    /// The name table, empty when there is none.
    pub names: &'a Names<'static>,
    /// The name table by number.
    pub directory: Directory<'a>,
    /// Unix seconds.
    pub now: u64,
    services_of: HashMap<u32, u32>,
    backends_of: HashMap<u32, BTreeSet<u32>>,
    frontends_of: HashMap<u32, Vec<&'a FrontendSlots>>,
    services_at: HashMap<FrontendKey, u32>,
    rejected_of: HashMap<u32, Vec<&'a RejectedName<'static>>>,
    clients_of: HashMap<u32, u64>,
}

/// State of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendState {
    /// It takes no new flows.
    Draining,
    /// Its flows are not continued.
    Dead,
    /// It takes new flows, and its endpoint is not known.
    Active,
    /// It takes new flows, and its endpoint is in these conditions.
    Endpoint(EndpointConditions),
    /// One that only a later agent knows.
    Number(u8),
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Draining => f.write_str("draining"),
            Self::Dead => f.write_str("dead"),
            Self::Active => f.write_str("active"),
            Self::Endpoint(conditions) => f.write_str(conditions.name()),
            Self::Number(number) => write!(f, "state-{number}"),
        }
    }
}

impl<'a> View<'a> {
    /// Joins `snapshot` and `names`.
    pub fn new(snapshot: &'a TableSnapshot, names: &'a Names<'static>, now: u64) -> Self {
        let mut view = Self {
            snapshot,
            names,
            directory: Directory::new(names, snapshot),
            now,
            services_of: HashMap::new(),
            backends_of: HashMap::new(),
            frontends_of: HashMap::new(),
            services_at: HashMap::new(),
            rejected_of: HashMap::new(),
            clients_of: HashMap::new(),
        };
        // A backend that drains is in no slot: only the name table knows its service port.
        for name in names.backends.iter().filter(|name| snapshot.backends.contains_key(&name.id)) {
            view.join(name.service_id, name.id);
        }
        for frontend in &snapshot.frontends {
            for id in frontend.backend_ids.iter().chain(&frontend.local_ids) {
                view.join(frontend.frontend.service_id, *id);
            }
            if !frontend.key.is_wildcard() {
                let of = view.frontends_of.entry(frontend.frontend.service_id).or_default();
                of.push(frontend);
                view.services_at.insert(frontend.key, frontend.frontend.service_id);
            }
        }
        for frontends in view.frontends_of.values_mut() {
            frontends.sort_by_key(|frontend| frontend.socket());
        }
        for rejected in &names.rejected {
            view.rejected_of.entry(rejected.service_id).or_default().push(rejected);
        }
        for (key, value) in &snapshot.fields.clients {
            let state = snapshot.affinity_state(value, view.affinity_secs(key.service_id));
            if state == AffinityState::Valid {
                *view.clients_of.entry(key.service_id).or_default() += 1;
            }
        }
        view
    }

    fn join(&mut self, service_id: u32, backend_id: u32) {
        self.services_of.insert(backend_id, service_id);
        self.backends_of.entry(service_id).or_default().insert(backend_id);
    }

    /// Id of the service port of a backend.
    pub fn service_of(&self, backend_id: u32) -> Option<u32> {
        self.services_of.get(&backend_id).copied()
    }

    /// Id of the service port that has this frontend.
    pub fn service_at(&self, frontend: &FrontendKey) -> Option<u32> {
        self.services_at.get(frontend).copied()
    }

    /// Backends of a service port, draining ones included.
    pub fn backends_of(&self, service_id: u32) -> impl Iterator<Item = u32> + '_ {
        self.backends_of.get(&service_id).into_iter().flatten().copied()
    }

    /// Frontends of a service port that are in the maps, by address; no wildcards.
    pub fn frontends_of(&self, service_id: u32) -> &[&'a FrontendSlots] {
        self.frontends_of.get(&service_id).map_or(&[], Vec::as_slice)
    }

    /// The same as `address:port`.
    pub fn sockets_of(&self, service_id: u32) -> Vec<SocketAddr> {
        self.frontends_of(service_id).iter().map(|frontend| frontend.socket()).collect()
    }

    /// Ids of the service ports in the maps, in order.
    pub fn service_ids(&self) -> BTreeSet<u32> {
        self.frontends_of.keys().copied().collect()
    }

    /// Endpoints of a Service port that serve no client on this node.
    pub fn rejected_of(&self, service_id: u32) -> &[&'a RejectedName<'static>] {
        self.rejected_of.get(&service_id).map_or(&[], Vec::as_slice)
    }

    /// Timeout of a service port's session affinity in seconds, 0 = none.
    pub fn affinity_secs(&self, service_id: u32) -> u32 {
        let frontends = self.frontends_of(service_id).iter();
        frontends.map(|frontend| frontend.frontend.affinity_secs).max().unwrap_or_default()
    }

    /// Number of clients that a service port knows again.
    pub fn clients_of(&self, service_id: u32) -> u64 {
        self.clients_of.get(&service_id).copied().unwrap_or_default()
    }

    /// What the address of a frontend is; which of the external ones it is, only the name table knows.
    pub fn scope_of(&self, frontend: &FrontendSlots) -> &'static str {
        let at = frontend.socket();
        let service = self.directory.service(frontend.frontend.service_id);
        let mut named = service.iter().flat_map(|service| &service.externals);
        let is_known = frontend.is_external() || frontend.is_localhost();
        let found = named.find(|external| external.at == at && is_known);
        found.map_or(frontend.scope(), |external| external.scope.name())
    }

    /// Live flows of a backend.
    pub fn flows_of(&self, backend_id: u32) -> FlowCount {
        self.snapshot.flows.get(&backend_id).copied().unwrap_or_default()
    }

    /// State of a backend: the maps' when it takes no new flows, else its endpoint's.
    pub fn state_of(&self, backend_id: u32, backend: &Backend) -> BackendState {
        match backend.state {
            state::DRAINING => BackendState::Draining,
            state::DEAD => BackendState::Dead,
            state::ACTIVE => match self.directory.backend(backend_id) {
                Some(name) => BackendState::Endpoint(name.conditions),
                None => BackendState::Active,
            },
            number => BackendState::Number(number),
        }
    }

    /// `namespace/name` of a backend's Pod, empty when not known.
    pub fn pod_of(&self, backend_id: u32) -> String {
        self.directory.backend(backend_id).map(|name| name.pod.to_string()).unwrap_or_default()
    }

    /// Seconds since `time`, `None` when that is not known.
    pub fn since(&self, time: u64) -> Option<u64> {
        (time != 0).then(|| self.now.saturating_sub(time))
    }
}
