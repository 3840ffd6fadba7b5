//! Clusters in few words, and what the tables made of them say.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::endpoint::{Ident, ident_flags};
use lb_common::policy::{Judgement, Question, identify, judge};
use lb_core::cluster::{
    Action, Change, Cluster, Event, Kind, Labels, Name, NamedPort, Namespace, Namespaces, Node,
    Operator, Peer, Pod, PodSelector, Policy, PortMatch, Ports, Requirement, Rule, Selector, Tier,
};
use lb_core::model::policy::{Desired, Direction};
use lb_core::plan::policy::{Actual, Behind, Planner, Veth, Wanted};

pub(crate) const NODE: &str = "n1";

pub(crate) fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

/// `app=web tier=db`.
pub(crate) fn labels(text: &str) -> Labels {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        (key.into(), value.into())
    };
    Labels::new(text.split_whitespace().map(pair))
}

/// `app=web !tier tier!=db app`.
pub(crate) fn selector(text: &str) -> Selector {
    let requirement = |word: &str| {
        let (key, operator) = if let Some((key, value)) = word.split_once("!=") {
            (key, Operator::NotIn([value.into()].into()))
        } else if let Some((key, value)) = word.split_once('=') {
            (key, Operator::In(value.split('|').map(Into::into).collect()))
        } else if let Some(key) = word.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (word, Operator::Exists)
        };
        Requirement { key: key.into(), operator }
    };
    Selector(text.split_whitespace().map(requirement).collect())
}

pub(crate) fn own(pods: &str) -> PodSelector {
    PodSelector { namespaces: Namespaces::Own, pods: selector(pods) }
}

pub(crate) fn across(namespaces: &str, pods: &str) -> PodSelector {
    PodSelector { namespaces: Namespaces::Selected(selector(namespaces)), pods: selector(pods) }
}

pub(crate) fn block(prefix: &str, excepts: &[&str]) -> Peer {
    let mut excepts: Vec<_> = excepts.iter().map(|e| e.parse().unwrap()).collect();
    excepts.sort_unstable();
    Peer::Block { prefix: prefix.parse().unwrap(), excepts: excepts.into() }
}

/// `tcp/80`, `tcp/80-90`, `udp`, `tcp/web`, `*/web`.
pub(crate) fn port(text: &str) -> PortMatch {
    let (protocol, ports) = text.split_once('/').unwrap_or((text, ""));
    let protocol = match protocol {
        "*" => None,
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        "icmp" => Some(1),
        other => panic!("{other}"),
    };
    let number = |text: &str| text.parse::<u16>().ok();
    let ports = match (ports, number(ports), ports.split_once('-')) {
        ("", ..) => Ports::All,
        (_, Some(port), _) => Ports::Range(port, port),
        (_, None, Some((first, last))) => {
            Ports::Range(number(first).unwrap(), number(last).unwrap())
        }
        (name, None, None) => Ports::Named(name.into()),
    };
    PortMatch { protocol, ports }
}

pub(crate) fn rule(action: Action, peers: Option<Vec<Peer>>, ports: Option<&[&str]>) -> Rule {
    Rule {
        name: "".into(),
        action,
        peers: peers.map(Vec::into_boxed_slice),
        ports: ports.map(|ports| ports.iter().map(|text| port(text)).collect()),
    }
}

pub(crate) fn allow(peers: Vec<Peer>, ports: &[&str]) -> Rule {
    rule(Action::Accept, Some(peers), (!ports.is_empty()).then_some(ports))
}

pub(crate) fn network_policy(subject: &str) -> Policy {
    Policy {
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: own(subject),
        ingress: None,
        egress: None,
        shadow: false,
        generation: 1,
        created: 0,
    }
}

pub(crate) fn cluster_policy(tier: Tier, priority: u16, subject: PodSelector) -> Policy {
    Policy { tier, priority, subject, ..network_policy("") }
}

pub(crate) fn pod(node: &str, ips: &[&str], of: &str, ports: &[(&str, u8, u16)]) -> Pod {
    let port = |(name, protocol, port): &(&str, u8, u16)| NamedPort {
        name: (*name).into(),
        protocol: *protocol,
        port: *port,
    };
    Pod {
        ips: ips.iter().map(|ip| addr(ip)).collect(),
        host_network: false,
        node: node.into(),
        labels: labels(of),
        ports: ports.iter().map(port).collect(),
        ..Pod::default()
    }
}

/// Everything there is.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) pods: BTreeMap<(String, String), Pod>,
    pub(crate) namespaces: BTreeMap<String, Labels>,
    pub(crate) nodes: BTreeMap<String, (Vec<Addr>, Labels)>,
    pub(crate) policies: BTreeMap<(String, String), Policy>,
}

impl World {
    /// `name` is `namespace/name`, or a name alone.
    pub(crate) fn pod(mut self, name: &str, pod: Pod) -> Self {
        self.pods.insert(split(name), pod);
        self
    }

    pub(crate) fn policy(mut self, name: &str, policy: Policy) -> Self {
        self.policies.insert(split(name), policy);
        self
    }

    pub(crate) fn namespace(mut self, name: &str, of: &str) -> Self {
        self.namespaces.insert(name.to_owned(), labels(of));
        self
    }

    pub(crate) fn node(mut self, name: &str, addrs: &[&str], of: &str) -> Self {
        let addrs = addrs.iter().map(|ip| addr(ip)).collect();
        self.nodes.insert(name.to_owned(), (addrs, labels(of)));
        self
    }

    pub(crate) fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::new(NODE);
        let name = |(namespace, name): &(String, String)| Name::new(&**namespace, &**name);
        for (namespace, labels) in &self.namespaces {
            let namespace_of = Namespace { labels: labels.clone(), terminating: false };
            let event = Change::Applied(Name::new("", &**namespace), namespace_of);
            cluster.apply(Event::Namespace(event));
        }
        for (node, (addresses, labels)) in &self.nodes {
            let addresses = addresses.clone().into();
            let of = Node { addresses, labels: labels.clone(), ..Node::default() };
            cluster.apply(Event::Node(Change::Applied(Name::new("", &**node), of)));
        }
        for (at, pod) in &self.pods {
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
    pub(crate) fn devices(&self) -> BTreeMap<Addr, Ident> {
        let mut devices = BTreeMap::new();
        for (ifindex, pod) in self.local() {
            for ip in &pod.ips {
                devices.insert(*ip, Ident { ifindex, ..Ident::ZERO });
            }
        }
        for addr in self.nodes.get(NODE).into_iter().flat_map(|(addrs, _)| addrs) {
            let flags = ident_flags::LOCAL_NODE;
            devices.insert(*addr, Ident { flags, ..Ident::ZERO });
        }
        devices
    }

    /// The Pods of this node by the ifindex of their devices.
    pub(crate) fn local(&self) -> impl Iterator<Item = (u32, &Pod)> {
        let is_local = |pod: &Pod| &*pod.node == NODE && !pod.host_network;
        let pods = self.pods.iter().filter(move |(_, pod)| is_local(pod));
        pods.map(|(name, pod)| (ifindex(name), pod))
    }

    pub(crate) fn veths(&self) -> Vec<Veth> {
        let is_local = |pod: &Pod| &*pod.node == NODE && !pod.host_network;
        let pods = self.pods.iter().filter(|(_, pod)| is_local(pod) && !pod.ips.is_empty());
        let veth = |(at, pod): (&(String, String), &Pod)| {
            let name = Name::new(&*at.0, &*at.1);
            Veth { ifindex: ifindex(at), behind: Behind::Pod(name, pod.uid) }
        };
        pods.map(veth).collect()
    }

    /// The tables of an empty kernel, once all is written.
    pub(crate) fn tables(&self) -> Actual {
        let mut node = Running::default();
        node.follow(self, &lb_core::model::policy::compile(&self.cluster()));
        node.store
    }
}

/// The same for the same name in all worlds.
pub(crate) fn ifindex((namespace, name): &(String, String)) -> u32 {
    let bytes = namespace.bytes().chain(*b"/").chain(name.bytes());
    bytes.fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

pub(crate) fn split(name: &str) -> (String, String) {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    (namespace.to_owned(), name.to_owned())
}

/// A planner and the maps that it writes.
pub(crate) struct Running {
    pub(crate) planner: Planner,
    pub(crate) store: Actual,
    pub(crate) now: Duration,
}

impl Default for Running {
    fn default() -> Self {
        let planner = Planner::restore(Actual::default());
        Self { planner, store: Actual::default(), now: Duration::ZERO }
    }
}

impl Running {
    /// Devices come and go as the world says.
    pub(crate) fn devices(&mut self, world: &World, desired: Option<&Desired>) {
        let veths = world.veths();
        let gone: Vec<u32> = self.store.pods.keys().copied().collect();
        for ifindex in gone.into_iter().filter(|i| veths.iter().all(|veth| veth.ifindex != *i)) {
            self.planner.gone(ifindex);
            self.store.pods.remove(&ifindex);
        }
        for veth in &veths {
            let groups = self.planner.groups_of(desired, veth);
            self.store.pods.insert(veth.ifindex, groups);
        }
    }

    /// Brings the maps to what is desired; returns the number of writes.
    pub(crate) fn follow(&mut self, world: &World, desired: &Desired) -> usize {
        self.devices(world, Some(desired));
        let devices = world.devices();
        let veths = world.veths();
        let wanted =
            Wanted { desired: Some(desired), devices: &devices, veths: &veths, strict: false };
        self.now += Duration::from_millis(10);
        let plan = self.planner.plan(&wanted, self.now);
        let applied = self.planner.apply(plan, &mut self.store, self.now);
        assert!(applied.failed.is_empty());
        assert_eq!(self.planner.actual(), &self.store);
        applied.writes
    }
}

/// Whether a flow is allowed, at a Pod's device.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) ifindex: u32,
    pub(crate) direction: Direction,
    pub(crate) peer: Addr,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// Whether the groups with shadow policies are asked.
    pub(crate) shadow: bool,
}

impl Flow {
    pub(crate) fn judge(&self, tables: &Actual) -> Judgement {
        if tables.state.epoch == 0 {
            return Judgement::ALLOWED;
        }
        let pending = [tables.state.pending_ingress, tables.state.pending_egress, 0, 0];
        let groups = tables.pods.get(&self.ifindex).unwrap_or(&pending);
        let at = match (self.direction, self.shadow) {
            (Direction::Ingress, false) => 0,
            (Direction::Egress, false) => 1,
            (Direction::Ingress, true) => 2,
            (Direction::Egress, true) => 3,
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
