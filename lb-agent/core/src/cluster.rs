//! What the API server or the manifests say: events in, plain records out, and which services they touch.
//!
//! Knows nothing of Kubernetes' types (`lb-kube` has parsed them) nor of frontends and backends (`model`).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::flow::proto;
use lb_common::listed;

use self::claims::Claims;
use self::ended::Ended;
use self::retained::Retained;
use self::strings::Strings;
use self::table::ObjectTable;
use self::uses::AddrUses;
use crate::issue::{Issue, ObjectRef};

pub use self::endpoints::{Endpoint, EndpointView, Endpoints, EndpointsIter};
pub use self::owner::{Owner, Owners};
pub use self::prefix::{NotPrefix, Prefix};
pub use self::record::{
    Action, Algorithm, Conditions, EndpointSlice, Extra, Family, Hints, Labels, NamedPort,
    Namespace, Namespaces, Node, Operator, Peer, Pod, PodSelector, Policy, PortMatch, PortSpec,
    Requirement, Rule, Selector, Service, ServiceCidr, ServicePort, ServiceType, SlicePort, Tier,
    TrafficPolicy, Weighted,
};
pub use self::snapshot::{NamespaceRecords, Snapshot};
pub use crate::object::Name;

mod changes;
mod claims;
mod ended;
mod endpoints;
mod owner;
mod prefix;
mod record;
mod retained;
mod snapshot;
mod strings;
mod table;
#[cfg(test)]
mod tests;
mod uses;

listed! {
    /// Kinds of objects that are watched, with their names as in a manifest.
    pub enum Kind {
        Service: "Service", "Services.";
        EndpointSlice: "EndpointSlice", "EndpointSlices.";
        Pod: "Pod", "Pods.";
        Namespace: "Namespace", "Namespaces.";
        Node: "Node", "Nodes.";
        ServiceCidr: "ServiceCIDR", "ServiceCIDRs.";
        NetworkPolicy: "NetworkPolicy", "NetworkPolicies.";
        ClusterNetworkPolicy: "ClusterNetworkPolicy", "ClusterNetworkPolicies.";
    }
}

/// Which Pods a source tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodScope {
    /// Those of this node.
    Own,
    /// Those of all nodes.
    All,
}

/// What a source tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A Service.
    Service(Change<Service>),
    /// An EndpointSlice.
    Slice(Change<EndpointSlice>),
    /// A Pod, of whatever node.
    Pod(Change<Pod>),
    /// A namespace.
    Namespace(Change<Namespace>),
    /// A node.
    Node(Change<Node>),
    /// A ServiceCIDR.
    ServiceCidr(Change<ServiceCidr>),
    /// A NetworkPolicy.
    NetworkPolicy(Change<Policy>),
    /// A ClusterNetworkPolicy.
    ClusterNetworkPolicy(Change<Policy>),
    /// The addresses of this node's own network namespace, without loopback and link-local ones, those that others
    /// reach it by first. Replaces the ones before.
    Host(Box<[Addr]>),
    /// The UDP ports at which this node takes packets out of tunnels, sorted. Replaces the ones before.
    Tunnels(Box<[u16]>),
    /// Another proxy's rules are on this node: flows that began before the agent belong to the other proxy until the agent
    /// ends.
    OtherProxy,
    /// The API server's version: it decides what is on by default.
    Server(Version),
    /// The list of Pods that begins next, and what follows it, is of these.
    Pods(PodScope),
    /// A list of this kind begins: what it does not repeat until `Synced` is gone.
    Restarted(Kind),
    /// The list of this kind is complete.
    Synced(Kind),
    /// Replaces the issues found while reading this object; none clears them.
    Issues(ObjectRef, Vec<Issue>),
}

/// Major and minor number of a version of Kubernetes.
pub type Version = (u32, u32);

/// What happened to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// Added or changed.
    Applied(Name, T),
    /// Removed, or no longer of our concern.
    Deleted(Name),
}

/// What must be modelled again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Names of Services; some may be gone.
    pub services: BTreeSet<Name>,
    /// What is known of this node and of the address ranges.
    pub node: bool,
    /// Something that policies depend on: one of them; labels, addresses, named ports or the node of a Pod; labels of
    /// a namespace; labels or addresses of a node.
    pub policies: bool,
}

impl Dirty {
    /// Whether nothing has to be done.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node && !self.policies
    }

    /// Adds another event's.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.node |= other.node;
        self.policies |= other.policies;
    }
}

/// Everything that the sources have sent.
#[derive(Debug)]
pub struct Cluster {
    node: Arc<str>,
    services: ObjectTable<Service>,
    slices: ObjectTable<EndpointSlice>,
    pods: ObjectTable<Pod>,
    namespaces: ObjectTable<Namespace>,
    nodes: ObjectTable<Node>,
    service_cidrs: ObjectTable<ServiceCidr>,
    network_policies: ObjectTable<Policy>,
    cluster_network_policies: ObjectTable<Policy>,
    retained: Retained,
    /// Addresses of this node's network namespace.
    host: Box<[Addr]>,
    /// UDP ports of its tunnels.
    tunnels: Box<[u16]>,
    /// Whether another proxy has been here.
    other_proxy: bool,
    /// The API server's version.
    server: Option<Version>,
    /// (service, name of its slice).
    slices_of: BTreeSet<(Name, Arc<str>)>,
    claims: Claims,
    /// Number of endpoints and Pods, of any node, with this address.
    uses: AddrUses,
    /// Which Pods are told.
    scope: PodScope,
    /// Whether the list of all of them has been complete.
    lists_all: bool,
    ended: Ended,
    /// Whether a Pod behind an endpoint has an address outside of the ranges of its node.
    has_strays: bool,
    /// Pods of this node with addresses of their own, by those; several where one is going.
    pod_at: HashMap<Addr, Vec<Name>>,
    /// Pods of this node that are kube-proxy.
    kube_proxies: BTreeSet<Name>,
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
            services: ObjectTable::default(),
            slices: ObjectTable::default(),
            pods: ObjectTable::default(),
            namespaces: ObjectTable::default(),
            nodes: ObjectTable::default(),
            service_cidrs: ObjectTable::default(),
            network_policies: ObjectTable::default(),
            cluster_network_policies: ObjectTable::default(),
            retained: Retained::default(),
            host: Box::default(),
            tunnels: Box::default(),
            other_proxy: false,
            server: None,
            slices_of: BTreeSet::new(),
            claims: Claims::default(),
            uses: AddrUses::default(),
            // A source that tells fewer says so first.
            scope: PodScope::All,
            lists_all: true,
            ended: Ended::default(),
            has_strays: false,
            pod_at: HashMap::new(),
            kube_proxies: BTreeSet::new(),
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
            Event::Pod(Change::Applied(name, pod)) => self.put_pod(name, pod, &mut dirty),
            Event::Pod(Change::Deleted(name)) => self.remove_pod(&name, &mut dirty),
            Event::Namespace(Change::Applied(name, namespace)) => {
                self.put_namespace(name, namespace, &mut dirty);
            }
            Event::Namespace(Change::Deleted(name)) => self.remove_namespace(&name, &mut dirty),
            Event::Node(Change::Applied(name, node)) => self.put_node(name, node, &mut dirty),
            Event::Node(Change::Deleted(name)) => self.remove_node(&name, &mut dirty),
            Event::ServiceCidr(Change::Applied(name, cidr)) => {
                self.put_service_cidr(name, cidr, &mut dirty);
            }
            Event::ServiceCidr(Change::Deleted(name)) => {
                self.remove_service_cidr(&name, &mut dirty);
            }
            Event::NetworkPolicy(Change::Applied(name, policy)) => {
                self.put_network_policy(name, policy, &mut dirty);
            }
            Event::NetworkPolicy(Change::Deleted(name)) => {
                self.remove_network_policy(&name, &mut dirty);
            }
            Event::ClusterNetworkPolicy(Change::Applied(name, policy)) => {
                self.put_cluster_network_policy(name, policy, &mut dirty);
            }
            Event::ClusterNetworkPolicy(Change::Deleted(name)) => {
                self.remove_cluster_network_policy(&name, &mut dirty);
            }
            Event::Host(addrs) => {
                if self.host != addrs {
                    self.host = addrs;
                    self.node_changed(&mut dirty);
                }
            }
            Event::Tunnels(ports) => {
                dirty.node |= self.tunnels != ports;
                self.tunnels = ports;
            }
            Event::OtherProxy => {
                dirty.node |= !self.other_proxy;
                self.other_proxy = true;
            }
            Event::Server(version) => {
                if self.server != Some(version) {
                    self.server = Some(version);
                    self.touch_external(&mut dirty);
                }
            }
            Event::Pods(scope) => self.tell_pods(scope),
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
        self.table(kind).is_synced()
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

    /// Where API servers listen: the endpoints of the Service `default/kubernetes`, which the servers themselves write.
    pub fn api_servers(&self) -> BTreeSet<SocketAddr> {
        let service = Name { namespace: "default".into(), name: "kubernetes".into() };
        let mut servers = BTreeSet::new();
        for (_, slice) in self.slices_of(&service) {
            for port in slice.ports.iter().filter(|port| port.protocol == proto::TCP) {
                let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready);
                servers.extend(
                    ready.map(|endpoint| SocketAddr::new(endpoint.addr.to_ip(), port.port)),
                );
            }
        }
        servers
    }

    /// The Services that have this ClusterIP: more than one is a mistake of the user.
    pub fn claimants<'a>(&'a self, addr: &'a Addr) -> impl Iterator<Item = &'a Name> {
        self.claims.of_cluster_ip(addr)
    }

    /// The Services that want this port at this address of a load balancer, or in `spec.externalIPs`.
    pub fn external_claimants(
        &self,
        addr: Addr,
        (port, protocol): (u16, u8),
    ) -> impl Iterator<Item = (&Name, &Service)> {
        let names = self.claims.of_external(addr, (port, protocol));
        names.filter_map(|name| self.service(name))
    }

    /// The Services that want this address of a load balancer, or in `spec.externalIPs`, once for each of their ports.
    pub fn address_claimants(&self, addr: &Addr) -> impl Iterator<Item = (&Name, &Service)> {
        self.claims.of_addr(addr).filter_map(|name| self.service(name))
    }

    /// The Services that want this port of the nodes.
    pub fn node_port_claimants(
        &self,
        (port, protocol): (u16, u8),
    ) -> impl Iterator<Item = (&Name, &Service)> {
        self.claims.of_node_port((port, protocol)).filter_map(|name| self.service(name))
    }

    /// All Pods of this node.
    pub fn pods(&self) -> impl Iterator<Item = (&Name, &Pod)> {
        self.all_pods().filter(|(_, pod)| self.is_own(pod))
    }

    /// All Pods of all nodes, and those of none yet.
    pub fn all_pods(&self) -> impl Iterator<Item = (&Name, &Pod)> {
        self.pods.iter()
    }

    /// The Pods of this node that are kube-proxy.
    pub fn kube_proxies(&self) -> impl Iterator<Item = &Name> {
        self.kube_proxies.iter()
    }

    /// The Pod with this name.
    pub fn pod(&self, name: &Name) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// Whether a Service has this address, or may get it.
    pub fn is_of_service(&self, addr: &Addr) -> bool {
        self.service_cidrs().any(|(_, prefix)| prefix.contains(addr)) || self.claims.has(addr)
    }

    /// The ranges of the Pods of all nodes, as far as these tell.
    pub fn pod_ranges(&self) -> impl Iterator<Item = &Prefix> {
        self.nodes().flat_map(|(_, node)| &node.pod_cidrs)
    }

    /// Whether a Pod is one of this node.
    pub fn is_own(&self, pod: &Pod) -> bool {
        *pod.node == *self.node
    }

    /// All policies in force, in no order: NetworkPolicies by namespace and name, those included that are gone and
    /// hold until their namespace is, too (CVE-2024-7598); ClusterNetworkPolicies by their name alone.
    pub fn policies(&self) -> impl Iterator<Item = (&Name, &Policy)> {
        let policies = self.cluster_network_policies.iter().chain(self.network_policies.iter());
        policies.chain(self.retained.iter())
    }

    /// A while has passed, several seconds at least: policies that were gone before the last one are forgotten.
    pub fn pass(&mut self) {
        self.retained.pass();
        self.ended.pass();
    }

    /// The Pod of this node with this address, Pods of the host network excepted; of several the one that has it before
    /// the others.
    pub fn pod_at(&self, addr: &Addr) -> Option<&Name> {
        let names = self.pod_at.get(addr)?.iter();
        let pods = names.filter_map(|name| self.pods.key(name).zip(self.pods.get(name)));
        match Owners::among(pods, std::iter::empty(), |of| of == addr).get(addr)? {
            Owner::Pod(name, _) | Owner::Node(name, _) => Some(name),
        }
    }

    /// Who has this address in the cluster: a Pod of whatever node, or a node. Asks all of them.
    pub fn owner(&self, addr: &Addr) -> Option<Owner<'_>> {
        Owners::of_some(self, |of| of == addr).get(addr)
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (&Name, &Node)> {
        self.nodes.iter()
    }

    /// This node, once it is known.
    pub fn this_node(&self) -> Option<&Node> {
        self.nodes.get(&Name::new(Arc::clone(&self.empty), Arc::clone(&self.node)))
    }

    /// Whether this is the first of all nodes by name that are heard of: what concerns all nodes alike is written to the API
    /// server by this one.
    pub fn is_first_node(&self) -> bool {
        let alive = self.nodes().filter(|(_, node)| !node.lost);
        alive.map(|(name, _)| &*name.name).min() == Some(&*self.node)
    }

    /// The addresses of this node's network namespace, as far as they were told.
    pub fn host_addrs(&self) -> &[Addr] {
        &self.host
    }

    /// Whether flows that are older than ours may be another proxy's.
    pub fn is_beside_another_proxy(&self) -> bool {
        self.other_proxy
    }

    /// The API server's version, once it has said so.
    pub fn server_version(&self) -> Option<Version> {
        self.server
    }

    /// The UDP ports at which this node takes packets out of tunnels.
    pub fn tunnel_ports(&self) -> &[u16] {
        &self.tunnels
    }

    /// The ranges of all ServiceCIDRs, with the names of those.
    pub fn service_cidrs(&self) -> impl Iterator<Item = (&Name, &Prefix)> {
        let cidrs = self.service_cidrs.iter();
        cidrs.flat_map(|(name, cidr)| cidr.prefixes.iter().map(move |prefix| (name, prefix)))
    }

    /// All namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Name, &Namespace)> {
        self.namespaces.iter()
    }

    /// The namespace with this name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(&Name::new(Arc::clone(&self.empty), name))
    }

    /// Whether the API server has this address: it is an endpoint of the Service `default/kubernetes`.
    pub fn is_api_server(&self, addr: &Addr) -> bool {
        let kubernetes = Name::new("default", "kubernetes");
        let mut slices = self.slices_of(&kubernetes);
        slices.any(|(_, slice)| slice.endpoints.iter().any(|endpoint| endpoint.addr == *addr))
    }

    /// Whether an endpoint (ready or not) or a Pod of any node has this address. If the Pods of other nodes are not told: or
    /// whether one of them may have it, since it has left its Services without having ended.
    pub fn is_alive(&self, addr: &Addr) -> bool {
        self.uses.has(addr)
            || !self.knows_all_pods() && self.is_elsewhere(addr) && !self.ended.contains(addr)
    }

    /// Whether the Pods of all nodes are known.
    pub fn knows_all_pods(&self) -> bool {
        self.scope == PodScope::All && self.lists_all
    }

    /// Whether another node has the address in a range of its Pods.
    pub fn is_elsewhere(&self, addr: &Addr) -> bool {
        let others = self.nodes().filter(|(name, _)| *name.name != *self.node);
        others.flat_map(|(_, node)| &node.pod_cidrs).any(|range| range.contains(addr))
    }

    /// The issues found while reading objects.
    pub fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.values().flatten()
    }
}
