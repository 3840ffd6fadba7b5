//! A cluster of policies in few words, the tables that the planner writes for it, and whether a flow is allowed there.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::endpoint::{Ident, IdentFlags, PodEntry as Element};
use lb_common::policy::{Judgement, Question, identify, judge};
use lb_core::cluster::{
    Change, Cluster, Event, Kind, Labels, Name, Namespace, Node, Pod, PodScope, Policy, Prefix,
    Tier,
};
use lb_core::model::policy::{DesiredPolicies, PolicyDirection};
use lb_core::plan::policy::{Behind, DesiredTables, PodDevice};
use lb_core::plan::{Actual, Capacity, Plan, Planner, groups};

use crate::objects::{addr, labels};

/// The node whose tables are meant.
pub const NODE: &str = "n1";

/// Everything there is.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Pods by namespace and name.
    pub pods: BTreeMap<(String, String), Pod>,
    /// Labels of the namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// Addresses and labels of the nodes.
    pub nodes: BTreeMap<String, (Vec<Addr>, Labels)>,
    /// The nodes' ranges of addresses for Pods.
    pub pod_cidrs: BTreeMap<String, Vec<Prefix>>,
    /// Policies by namespace and name; those of the cluster have no namespace.
    pub policies: BTreeMap<(String, String), Policy>,
}

impl World {
    /// `name` is `namespace/name`, or a name alone.
    pub fn pod(mut self, name: &str, pod: Pod) -> Self {
        self.pods.insert(split(name), pod);
        self
    }

    /// Adds a policy; `name` as for a Pod.
    pub fn policy(mut self, name: &str, policy: Policy) -> Self {
        self.policies.insert(split(name), policy);
        self
    }

    /// Adds a namespace with these labels.
    pub fn namespace(mut self, name: &str, of: &str) -> Self {
        self.namespaces.insert(name.to_owned(), labels(of));
        self
    }

    /// Adds a node with these addresses and labels.
    pub fn node(mut self, name: &str, addrs: &[&str], of: &str) -> Self {
        let addrs = addrs.iter().map(|ip| addr(ip)).collect();
        self.nodes.insert(name.to_owned(), (addrs, labels(of)));
        self
    }

    /// The cluster, with everything listed.
    pub fn cluster(&self) -> Cluster {
        self.listed(PodScope::All)
    }

    /// The cluster, with the Pods of all nodes listed or with those of this node.
    pub fn listed(&self, scope: PodScope) -> Cluster {
        self.known(NODE, scope)
    }

    /// The cluster with all Pods, as the agent of the node with this name has it.
    pub fn cluster_at(&self, node: &str) -> Cluster {
        self.known(node, PodScope::All)
    }

    fn known(&self, node: &str, scope: PodScope) -> Cluster {
        let mut cluster = Cluster::new(node);
        cluster.apply(Event::Pods(scope));
        let is_listed = |pod: &Pod| scope == PodScope::All || &*pod.node == NODE;
        let name = |(namespace, name): &(String, String)| Name::new(&**namespace, &**name);
        for (namespace, labels) in &self.namespaces {
            let namespace_of = Namespace { labels: labels.clone(), terminating: false };
            let event = Change::Applied(Name::new("", &**namespace), namespace_of);
            cluster.apply(Event::Namespace(event));
        }
        for (node, (addresses, labels)) in &self.nodes {
            let addresses = addresses.clone().into();
            let pod_cidrs = self.pod_cidrs.get(node).cloned().unwrap_or_default().into();
            let of = Node { addresses, labels: labels.clone(), pod_cidrs, ..Node::default() };
            cluster.apply(Event::Node(Change::Applied(Name::new("", &**node), of)));
        }
        for (at, pod) in self.pods.iter().filter(|(_, pod)| is_listed(pod)) {
            cluster.apply(Event::Pod(Change::Applied(name(at), pod.clone())));
        }
        for (at, policy) in &self.policies {
            let change = Change::Applied(name(at), policy.clone());
            cluster.apply(match policy.tier {
                Tier::NetworkPolicy => Event::NetworkPolicy(change),
                Tier::Admin | Tier::Baseline => Event::ClusterNetworkPolicy(change),
            });
        }
        for kind in Kind::ALL {
            cluster.apply(Event::Synced(kind));
        }
        cluster
    }

    /// What this node's devices say.
    pub fn devices(&self) -> BTreeMap<Addr, Ident> {
        let mut devices = BTreeMap::new();
        for (ifindex, pod) in self.local() {
            for ip in &pod.ips {
                devices.insert(*ip, Ident { ifindex, ..Ident::ZERO });
            }
        }
        for addr in self.nodes.get(NODE).into_iter().flat_map(|(addrs, _)| addrs) {
            let flags = IdentFlags::LOCAL_NODE;
            devices.insert(*addr, Ident { flags, ..Ident::ZERO });
        }
        devices
    }

    /// The Pods of this node by the ifindex of their devices.
    pub fn local(&self) -> impl Iterator<Item = (u32, &Pod)> {
        let is_local = |pod: &Pod| &*pod.node == NODE && !pod.host_network;
        let pods = self.pods.iter().filter(move |(_, pod)| is_local(pod));
        pods.map(|(name, pod)| (ifindex(name), pod))
    }

    /// The devices of this node's Pods.
    pub fn veths(&self) -> Vec<PodDevice> {
        let is_local = |pod: &Pod| &*pod.node == NODE && !pod.host_network;
        let pods = self.pods.iter().filter(|(_, pod)| is_local(pod) && !pod.ips.is_empty());
        let veth = |(at, pod): (&(String, String), &Pod)| {
            let name = Name::new(&*at.0, &*at.1);
            PodDevice {
                ifindex: ifindex(at),
                behind: Behind::Pod(name, pod.uid),
                device_part: Element::ZERO,
            }
        };
        pods.map(veth).collect()
    }

    /// The tables of an empty kernel, once all is written.
    pub fn tables(&self) -> Actual {
        self.tables_with(PodScope::All)
    }

    /// The same with these Pods listed.
    pub fn tables_with(&self, scope: PodScope) -> Actual {
        let mut node = Running::default();
        node.follow(self, &lb_core::model::policy::compile(&self.listed(scope)));
        node.store
    }
}

/// The same for the same name in all worlds.
pub fn ifindex((namespace, name): &(String, String)) -> u32 {
    let bytes = namespace.bytes().chain(*b"/").chain(name.bytes());
    bytes.fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

/// Splits `namespace/name`.
pub fn split(name: &str) -> (String, String) {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    (namespace.to_owned(), name.to_owned())
}

/// A planner and the maps that it writes.
pub struct Running {
    /// What writes.
    pub planner: Planner,
    /// What is written.
    pub store: Actual,
    /// The time of the last plan.
    pub now: Duration,
}

impl Default for Running {
    fn default() -> Self {
        let planner = Planner::restore(Actual::default(), Capacity::default());
        Self { planner, store: Actual::default(), now: Duration::ZERO }
    }
}

impl Running {
    /// Devices come and go as the world says.
    pub fn devices(&mut self, world: &World, desired: Option<&DesiredPolicies>) {
        let veths = world.veths();
        let gone: Vec<u32> = self.store.pods.keys().copied().collect();
        for ifindex in gone.into_iter().filter(|i| veths.iter().all(|veth| veth.ifindex != *i)) {
            let plan = self.planner.plan_gone(ifindex);
            self.write(plan);
        }
        for veth in &veths {
            self.planner.appeared(veth.ifindex);
            let plan = self.planner.plan_pod(desired, veth, 0);
            self.write(plan);
        }
    }

    /// Brings the maps to what is desired; returns the number of writes.
    pub fn follow(&mut self, world: &World, desired: &DesiredPolicies) -> usize {
        self.devices(world, Some(desired));
        let devices = world.devices();
        let veths = world.veths();
        let wanted = DesiredTables {
            desired: Some(desired),
            devices: &devices,
            veths: &veths,
            strict: false,
            pickup_until: 0,
        };
        self.now += Duration::from_millis(10);
        let plan = self.planner.plan_policies(&wanted, self.now);
        self.write(plan)
    }

    /// Does a plan's writes; returns their number.
    pub fn write(&mut self, plan: Plan) -> usize {
        let now = self.now;
        let applied = self.planner.apply(plan, &mut self.store, &mut || now);
        assert!(applied.failed.is_empty());
        assert_eq!(self.planner.actual(), &self.store);
        applied.writes
    }
}

/// Whether a flow is allowed, at a Pod's device.
#[derive(Clone, Debug)]
pub struct WorldFlow {
    /// The Pod's device.
    pub ifindex: u32,
    /// As seen by the Pod.
    pub direction: PolicyDirection,
    /// The address at the other end.
    pub peer: Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 if there is none.
    pub port: u16,
    /// Whether the groups with shadow policies are asked.
    pub shadow: bool,
}

impl WorldFlow {
    /// Asks the evaluator that the kernel runs.
    pub fn judge(&self, tables: &Actual) -> Judgement {
        if tables.policy.epoch == 0 {
            return Judgement::ALLOWED;
        }
        let pending = [tables.policy.pending_ingress, tables.policy.pending_egress, 0, 0];
        let groups = tables.pods.get(&self.ifindex).map_or(pending, groups);
        let at = match (self.direction, self.shadow) {
            (PolicyDirection::Ingress, false) => 0,
            (PolicyDirection::Egress, false) => 1,
            (PolicyDirection::Ingress, true) => 2,
            (PolicyDirection::Egress, true) => 3,
        };
        let Some(ident) = identify(tables, &self.peer) else { return Judgement::ALLOWED };
        if groups[at] == 0 {
            return Judgement::ALLOWED;
        }
        let port = Be16::new(self.port);
        let proto = self.protocol;
        judge(
            tables,
            &Question { group: groups[at], ident, proto, port, own: false, port_unknown: false },
        )
    }
}
