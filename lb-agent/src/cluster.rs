//! What the API server or the manifests say: events in, plain records out, and which services they touch.
//!
//! Knows nothing of Kubernetes' types (`watch` has parsed them away) nor of frontends and backends (`model`).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use lb_common::addr::Addr;

use self::strings::Strings;
use self::table::Table;
use crate::issue::{Issue, ObjectRef};

pub use self::record::{
    Conditions, Endpoint, EndpointSlice, Family, Namespace, Node, Pod, Service, ServicePort,
    ServiceType, SlicePort, TrafficPolicy,
};

mod record;
mod strings;
mod table;
#[cfg(test)]
mod tests;

/// Kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Services.
    Service,
    /// EndpointSlices.
    EndpointSlice,
    /// Pods of this node.
    Pod,
    /// Namespaces.
    Namespace,
    /// Nodes.
    Node,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Service, Self::EndpointSlice, Self::Pod, Self::Namespace, Self::Node];

    /// The kind as in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
        }
    }
}

/// Name of an object; the namespace is empty for those without one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name within it.
    pub name: Arc<str>,
}

impl Name {
    /// The object `name` in `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What a source tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A Service.
    Service(Change<Service>),
    /// An EndpointSlice.
    Slice(Change<EndpointSlice>),
    /// A Pod of this node.
    Pod(Change<Pod>),
    /// A namespace.
    Namespace(Change<Namespace>),
    /// A node.
    Node(Change<Node>),
    /// A list of this kind begins: what it does not repeat until `Synced` is gone.
    Restarted(Kind),
    /// The list of this kind is complete.
    Synced(Kind),
    /// Replaces the issues found while reading this object; none clears them.
    Issues(ObjectRef, Vec<Issue>),
}

/// What happened to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// Added or changed.
    Applied(Name, T),
    /// Removed, or no longer of our concern.
    Deleted(Name),
}

/// Services that must be modelled again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Their names; some may be gone.
    pub services: BTreeSet<Name>,
}

impl Dirty {
    /// Whether nothing has to be done.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Adds another event's.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
    }
}

/// Everything we were told.
#[derive(Debug)]
pub struct Cluster {
    node: Arc<str>,
    services: Table<Service>,
    slices: Table<EndpointSlice>,
    pods: Table<Pod>,
    namespaces: Table<Namespace>,
    nodes: Table<Node>,
    /// (service, name of its slice).
    slices_of: BTreeSet<(Name, Arc<str>)>,
    /// (ClusterIP, service that claims it).
    claims: BTreeSet<(Addr, Name)>,
    /// Number of endpoints and Pods with this address.
    uses: HashMap<Addr, u32>,
    /// Pods of this node with addresses of their own.
    pod_at: HashMap<Addr, Name>,
    issues: BTreeMap<ObjectRef, Vec<Issue>>,
    stale_issues: BTreeSet<ObjectRef>,
    strings: Strings,
    /// The least string, for the lower bound of a range.
    empty: Arc<str>,
}

impl Cluster {
    /// Nothing is known yet; `node` is the name of this node.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            services: Table::default(),
            slices: Table::default(),
            pods: Table::default(),
            namespaces: Table::default(),
            nodes: Table::default(),
            slices_of: BTreeSet::new(),
            claims: BTreeSet::new(),
            uses: HashMap::new(),
            pod_at: HashMap::new(),
            issues: BTreeMap::new(),
            stale_issues: BTreeSet::new(),
            strings: Strings::default(),
            empty: "".into(),
        }
    }

    /// Takes an event in and says which services it touches.
    pub fn apply(&mut self, event: Event) -> Dirty {
        let mut dirty = Dirty::default();
        match event {
            Event::Service(Change::Applied(name, service)) => {
                self.put_service(name, service, &mut dirty);
            }
            Event::Service(Change::Deleted(name)) => self.remove_service(&name, &mut dirty),
            Event::Slice(Change::Applied(name, slice)) => self.put_slice(name, slice, &mut dirty),
            Event::Slice(Change::Deleted(name)) => self.remove_slice(&name, &mut dirty),
            Event::Pod(Change::Applied(name, pod)) => self.put_pod(name, pod),
            Event::Pod(Change::Deleted(name)) => self.remove_pod(&name),
            Event::Namespace(Change::Applied(name, namespace)) => {
                self.namespaces.insert(name, namespace);
            }
            Event::Namespace(Change::Deleted(name)) => {
                self.namespaces.remove(&name);
            }
            Event::Node(Change::Applied(name, mut node)) => {
                self.strings.share_some(&mut node.zone);
                self.nodes.insert(name, node);
            }
            Event::Node(Change::Deleted(name)) => {
                self.nodes.remove(&name);
            }
            Event::Restarted(kind) => self.restarted(kind),
            Event::Synced(kind) => self.synced_kind(kind, &mut dirty),
            Event::Issues(object, issues) => {
                self.stale_issues.remove(&object);
                if issues.is_empty() {
                    self.issues.remove(&object);
                } else {
                    self.issues.insert(object, issues);
                }
            }
        }
        dirty
    }

    /// Whether every kind has been listed completely once.
    pub fn synced(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.is_synced(kind))
    }

    /// Whether this kind has been listed completely once.
    pub fn is_synced(&self, kind: Kind) -> bool {
        match kind {
            Kind::Service => self.services.is_synced(),
            Kind::EndpointSlice => self.slices.is_synced(),
            Kind::Pod => self.pods.is_synced(),
            Kind::Namespace => self.namespaces.is_synced(),
            Kind::Node => self.nodes.is_synced(),
        }
    }

    /// Name of this node.
    pub fn node_name(&self) -> &str {
        &self.node
    }

    /// The Service with this name and the shared form of the name.
    pub fn service(&self, name: &Name) -> Option<(&Name, &Service)> {
        self.services.key(name).zip(self.services.get(name))
    }

    /// All Services.
    pub fn services(&self) -> impl Iterator<Item = (&Name, &Service)> {
        self.services.iter()
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices_of<'a>(
        &'a self,
        service: &'a Name,
    ) -> impl Iterator<Item = (Name, &'a EndpointSlice)> {
        let start = (service.clone(), Arc::clone(&self.empty));
        self.slices_of.range(start..).take_while(move |(owner, _)| owner == service).filter_map(
            |(owner, slice)| {
                let name =
                    Name { namespace: Arc::clone(&owner.namespace), name: Arc::clone(slice) };
                let slice = self.slices.get(&name)?;
                Some((name, slice))
            },
        )
    }

    /// The Services that have this ClusterIP: more than one is a mistake of the user.
    pub fn claimants<'a>(&'a self, addr: &'a Addr) -> impl Iterator<Item = &'a Name> {
        let start = (*addr, Name::new(Arc::clone(&self.empty), Arc::clone(&self.empty)));
        self.claims.range(start..).take_while(move |(a, _)| a == addr).map(|(_, name)| name)
    }

    /// All Pods of this node.
    pub fn pods(&self) -> impl Iterator<Item = (&Name, &Pod)> {
        self.pods.iter()
    }

    /// The Pod of this node with this address, Pods of the host network excepted.
    pub fn pod_at(&self, addr: &Addr) -> Option<&Name> {
        self.pod_at.get(addr)
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (&Name, &Node)> {
        self.nodes.iter()
    }

    /// This node, once it is known.
    pub fn this_node(&self) -> Option<&Node> {
        self.nodes.get(&Name::new(Arc::clone(&self.empty), Arc::clone(&self.node)))
    }

    /// The namespace with this name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(&Name::new(Arc::clone(&self.empty), name))
    }

    /// Whether an endpoint (ready or not) or a Pod of this node has this address.
    pub fn is_alive(&self, addr: &Addr) -> bool {
        self.uses.contains_key(addr)
    }

    /// The issues found while reading objects.
    pub fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.values().flatten()
    }

    fn put_service(&mut self, mut name: Name, mut service: Service, dirty: &mut Dirty) {
        self.strings.share(&mut name.namespace);
        name = self.known(name);
        for port in &mut service.ports {
            self.strings.share(&mut port.name);
        }
        if self.services.get(&name).is_some_and(|old| *old == service) {
            // A change of something we do not look at: only the list's progress matters.
            self.services.insert(name, service);
            return;
        }
        self.unclaim(&name, dirty);
        for addr in &service.cluster_ips {
            self.claims.insert((*addr, name.clone()));
            dirty.services.extend(self.claimants(addr).cloned());
        }
        dirty.services.insert(name.clone());
        self.services.insert(name, service);
    }

    fn remove_service(&mut self, name: &Name, dirty: &mut Dirty) {
        self.unclaim(name, dirty);
        if self.services.remove(name).is_some() {
            dirty.services.insert(name.clone());
        }
    }

    /// Takes back the claims of a Service; the other claimants of its addresses become dirty.
    fn unclaim(&mut self, name: &Name, dirty: &mut Dirty) {
        let Some(old) = self.services.get(name) else { return };
        for addr in &old.cluster_ips {
            self.claims.remove(&(*addr, name.clone()));
            dirty.services.extend(self.claimants(addr).cloned());
        }
    }

    fn put_slice(&mut self, mut name: Name, mut slice: EndpointSlice, dirty: &mut Dirty) {
        self.share_slice(&mut name, &mut slice);
        let service = Name::new(Arc::clone(&name.namespace), Arc::clone(&slice.service));
        let service = self.known(service);
        slice.service = Arc::clone(&service.name);
        for endpoint in &slice.endpoints {
            *self.uses.entry(endpoint.addr).or_default() += 1;
        }
        if self.slices.get(&name).is_some_and(|old| old.service != slice.service) {
            self.remove_slice(&name, dirty);
        }
        self.slices_of.insert((service.clone(), Arc::clone(&name.name)));
        if let Some(old) = self.slices.insert(name, slice) {
            self.release(old.endpoints.iter().map(|endpoint| endpoint.addr));
        }
        dirty.services.insert(service);
    }

    /// The name of a Service with the strings that other records have already.
    fn known(&self, name: Name) -> Name {
        if let Some(known) = self.services.key(&name) {
            return known.clone();
        }
        let start = (name, Arc::clone(&self.empty));
        match self.slices_of.range(&start..).next() {
            Some((known, _)) if *known == start.0 => known.clone(),
            Some(_) | None => start.0,
        }
    }

    fn share_slice(&mut self, name: &mut Name, slice: &mut EndpointSlice) {
        self.strings.share(&mut name.namespace);
        for port in &mut slice.ports {
            self.strings.share(&mut port.name);
        }
        for endpoint in &mut slice.endpoints {
            self.strings.share_some(&mut endpoint.node);
            self.strings.share_some(&mut endpoint.zone);
        }
    }

    fn remove_slice(&mut self, name: &Name, dirty: &mut Dirty) {
        let Some(old) = self.slices.remove(name) else { return };
        self.release(old.endpoints.iter().map(|endpoint| endpoint.addr));
        let service = Name::new(Arc::clone(&name.namespace), old.service);
        self.slices_of.remove(&(service.clone(), Arc::clone(&name.name)));
        dirty.services.insert(service);
    }

    fn put_pod(&mut self, name: Name, pod: Pod) {
        for addr in &pod.ips {
            *self.uses.entry(*addr).or_default() += 1;
        }
        let (ips, host_network) = (pod.ips.clone(), pod.host_network);
        if let Some(old) = self.pods.insert(name.clone(), pod) {
            self.forget_pod(&name, &old);
        }
        if !host_network {
            // An address that moved from a finished Pod belongs to the one that was heard of last.
            self.pod_at.extend(ips.into_iter().map(|addr| (addr, name.clone())));
        }
    }

    fn remove_pod(&mut self, name: &Name) {
        if let Some(old) = self.pods.remove(name) {
            self.forget_pod(name, &old);
        }
    }

    fn forget_pod(&mut self, name: &Name, old: &Pod) {
        self.release(old.ips.iter().copied());
        for addr in &old.ips {
            if self.pod_at.get(addr) == Some(name) {
                self.pod_at.remove(addr);
            }
        }
    }

    fn release(&mut self, addrs: impl Iterator<Item = Addr>) {
        for addr in addrs {
            if let Some(uses) = self.uses.get_mut(&addr) {
                *uses -= 1;
                if *uses == 0 {
                    self.uses.remove(&addr);
                }
            }
        }
    }

    fn restarted(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.services.restarted(),
            Kind::EndpointSlice => self.slices.restarted(),
            Kind::Pod => self.pods.restarted(),
            Kind::Namespace => self.namespaces.restarted(),
            Kind::Node => self.nodes.restarted(),
        }
        let objects = self.issues.keys().filter(|object| object.kind == kind.name());
        self.stale_issues.extend(objects.cloned());
    }

    fn synced_kind(&mut self, kind: Kind, dirty: &mut Dirty) {
        match kind {
            Kind::Service => {
                for name in self.services.synced() {
                    self.remove_service(&name, dirty);
                }
                self.services.pack();
                self.claims = std::mem::take(&mut self.claims).into_iter().collect();
            }
            Kind::EndpointSlice => {
                for name in self.slices.synced() {
                    self.remove_slice(&name, dirty);
                }
                self.slices.pack();
                self.slices_of = std::mem::take(&mut self.slices_of).into_iter().collect();
            }
            Kind::Pod => {
                for name in self.pods.synced() {
                    self.remove_pod(&name);
                }
            }
            Kind::Namespace => {
                for name in self.namespaces.synced() {
                    self.namespaces.remove(&name);
                }
            }
            Kind::Node => {
                for name in self.nodes.synced() {
                    self.nodes.remove(&name);
                }
            }
        }
        let stale = std::mem::take(&mut self.stale_issues);
        for object in stale {
            if object.kind == kind.name() {
                self.issues.remove(&object);
            } else {
                self.stale_issues.insert(object);
            }
        }
    }
}
