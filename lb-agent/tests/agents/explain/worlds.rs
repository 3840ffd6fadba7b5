//! Random worlds: a few Services, policies and Pods as manifests, and flows in them. The same world for the same seed.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use lb_testkit::random::Random;
use serde_json::{Value, json};
use testbed::{Node, Pod, client::Transport, manifest::node_of};

/// What a process of every Pod listens on, at all addresses.
pub(super) const OPEN: u16 = 8080;
/// What a process of every Pod listens on, at 127.0.0.1 only.
pub(super) const ON_LOOPBACK: u16 = 8081;
/// What no process listens on.
pub(super) const CLOSED: u16 = 9090;
/// A process of every node listens on it.
pub(super) const OF_NODE: u16 = 7070;

/// Namespaces, each with a label `team` of the same name.
const NAMESPACES: [&str; 2] = ["red", "blue"];
const SERVICES: usize = 3;
const FLOWS: usize = 4;
/// In the range of ClusterIPs, and no Service's.
const FREE: &str = "10.96.0.200";

/// The nodes and Pods of all worlds.
pub(super) struct Cast<'a> {
    pub(super) nodes: [&'a Node; 2],
    pub(super) pods: &'a [Pod],
}

/// Who opens a flow: a Pod by its index, or a process of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opener {
    Pod(usize),
    Node(usize),
}

/// A flow, in lbctl's words and as a socket dials it.
#[derive(Clone, Debug)]
pub(super) struct FlowCase {
    pub(super) opener: Opener,
    pub(super) src: String,
    pub(super) dst: String,
    pub(super) dial: SocketAddr,
    pub(super) transport: Transport,
}

/// A world: what the agents read, and the flows in it.
pub(super) struct RandomWorld {
    pub(super) manifests: String,
    pub(super) flows: Vec<FlowCase>,
}

impl RandomWorld {
    /// The world of this seed. `mark` is the name of a Service and of a policy in it that no other world has.
    pub(super) fn new(seed: u64, cast: &Cast<'_>, mark: &str) -> Self {
        let mut dice = Dice(Random::new(seed));
        let mut objects: Vec<Value> = NAMESPACES.iter().map(|name| namespace(name)).collect();
        objects.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "all"}, "spec": {"cidrs": ["10.96.0.0/24", "fd96::/112"]},
        }));
        objects.extend(cast.pods.iter().enumerate().map(|(n, it)| dice.pod(n, it)));
        objects.extend((0..SERVICES).map(|n| dice.service(n, cast)));
        let n_policies = dice.0.below(4);
        objects.extend((0..n_policies).map(|n| dice.policy(n, cast)));
        if dice.chance(15) {
            objects.push(dice.cluster_policy());
        }
        objects.extend(marks(mark));
        let flows = (0..FLOWS).map(|_| dice.flow(cast)).collect();
        let mut manifests = String::new();
        for node in cast.nodes {
            write!(manifests, "---\n{}", node_of(node).to_yaml()).unwrap();
        }
        for object in objects {
            writeln!(manifests, "---\n{object}").unwrap();
        }
        Self { manifests, flows }
    }
}

/// The namespace of a Pod by its index.
pub(super) fn namespace_of(pod: usize) -> &'static str {
    NAMESPACES[pod % NAMESPACES.len()]
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}})
}

/// A Service and a policy about no Pod: when an agent has done these, it has done all of the file.
pub(super) fn marks(name: &str) -> [Value; 2] {
    let metadata = json!({"name": name, "namespace": "marks"});
    let ip = if name.starts_with('w') { "10.96.0.250" } else { "10.96.0.251" };
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 1}]},
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        }),
    ]
}

struct Dice(Random);

impl Dice {
    /// True in this percentage of cases.
    fn chance(&mut self, percent: usize) -> bool {
        self.0.below(100) < percent
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        self.0.choose(of).clone()
    }

    fn pod(&mut self, index: usize, pod: &Pod) -> Value {
        let ready = if self.chance(85) { "True" } else { "False" };
        let mut labels = json!({"app": self.one(&["web", "api"])});
        if self.chance(50) {
            labels["tier"] = json!(self.one(&["front", "back"]));
        }
        let ips = pod.addresses().map(|ip| json!({"ip": ip}));
        let mut container = json!({"name": "c", "image": "x"});
        if self.chance(70) {
            container["ports"] =
                json!([{"name": "http", "containerPort": self.one(&[OPEN, OPEN, CLOSED])}]);
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": namespace_of(index), "labels": labels},
            "spec": {"nodeName": pod.node, "containers": [container]},
            "status": {
                "phase": "Running", "podIP": pod.v4, "podIPs": ips,
                "conditions": [{"type": "Ready", "status": ready}],
            },
        })
    }

    fn service(&mut self, n: usize, cast: &Cast<'_>) -> Value {
        let target = match self.0.below(10) {
            0 => json!(ON_LOOPBACK),
            1 => json!(CLOSED),
            2 | 3 => json!("http"),
            _ => json!(OPEN),
        };
        let port = |protocol: &str, number: u16| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": number, "targetPort": target});
        let [v4, v6] = addresses(n);
        let selector = match self.0.below(10) {
            0 => json!({"app": "wbe"}),
            1 | 2 => json!({"tier": "front"}),
            3 | 4 => json!({}),
            _ => json!({"app": self.one(&["web", "api"])}),
        };
        let mut spec = json!({
            "type": "ClusterIP", "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
            "ports": [port("TCP", 80), port("UDP", 80)],
        });
        if selector.as_object().is_some_and(|labels| !labels.is_empty()) {
            spec["selector"] = selector;
        }
        if self.chance(15) {
            spec["internalTrafficPolicy"] = json!("Local");
        }
        let namespace = namespace_of(self.0.below(cast.pods.len()));
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{n}"), "namespace": namespace}, "spec": spec})
    }

    fn policy(&mut self, n: usize, cast: &Cast<'_>) -> Value {
        let types = self.one(&[vec!["Ingress"], vec!["Egress"], vec!["Ingress", "Egress"]]);
        let mut spec = json!({"podSelector": self.selector(), "policyTypes": types});
        for (kind, list, peers) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
            if types.contains(&kind) {
                let n_rules = self.0.below(3);
                let rules: Vec<Value> = (0..n_rules).map(|_| self.rule(peers, cast)).collect();
                spec[list] = json!(rules);
            }
        }
        let mut metadata = json!({"name": format!("p{n}"), "namespace": self.one(&NAMESPACES)});
        if self.chance(10) {
            metadata["annotations"] = json!({"lb-agent.io/mode": "shadow"});
        }
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    }

    fn rule(&mut self, peers: &str, cast: &Cast<'_>) -> Value {
        let mut rule = json!({});
        if self.chance(80) {
            let n = 1 + self.0.below(2);
            rule[peers] = (0..n).map(|_| self.peer(cast)).collect();
        }
        if self.chance(50) {
            rule["ports"] = json!([self.port()]);
        }
        rule
    }

    fn peer(&mut self, cast: &Cast<'_>) -> Value {
        let namespaces = |dice: &mut Self| match dice.0.below(3) {
            0 => json!({}),
            _ => json!({"matchLabels": {"team": dice.one(&NAMESPACES)}}),
        };
        match self.0.below(5) {
            0 | 1 => json!({"podSelector": self.selector()}),
            2 => json!({"namespaceSelector": namespaces(self)}),
            3 => json!({"namespaceSelector": namespaces(self), "podSelector": self.selector()}),
            _ => self.block(cast),
        }
    }

    /// All Pods of a node, one address, all but one Pod; or the Services' addresses, which no policy sees.
    fn block(&mut self, cast: &Cast<'_>) -> Value {
        let pod = self.one(&cast.pods.iter().collect::<Vec<_>>()).v4;
        let cidr = match self.0.below(4) {
            0 => json!({"cidr": format!("{pod}/32")}),
            1 => json!({"cidr": "10.0.0.0/8", "except": [format!("{pod}/32")]}),
            2 => json!({"cidr": "10.96.0.0/24"}),
            _ => json!({"cidr": format!("10.244.{}.0/24", 1 + self.0.below(2))}),
        };
        json!({"ipBlock": cidr})
    }

    fn port(&mut self) -> Value {
        let protocol = if self.chance(30) { "UDP" } else { "TCP" };
        match self.0.below(6) {
            0 => json!({"protocol": protocol}),
            // The Service's, which no policy sees.
            1 => json!({"protocol": protocol, "port": 80}),
            2 => json!({"protocol": protocol, "port": "http"}),
            3 => json!({"protocol": protocol, "port": 8000, "endPort": 9000}),
            _ => json!({"protocol": protocol, "port": OPEN}),
        }
    }

    fn selector(&mut self) -> Value {
        match self.0.below(5) {
            0 => json!({}),
            1 => json!({"matchLabels": {"tier": self.one(&["front", "back"])}}),
            2 => {
                json!({"matchExpressions": [{"key": "tier", "operator": self.one(&["Exists", "DoesNotExist"])}]})
            }
            _ => json!({"matchLabels": {"app": self.one(&["web", "api"])}}),
        }
    }

    fn cluster_policy(&mut self) -> Value {
        let action = self.one(&["Deny", "Accept", "Pass"]);
        let team = self.one(&NAMESPACES);
        let namespaces = json!({"matchLabels": {"team": team}});
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "c"},
            "spec": {
                "tier": self.one(&["Admin", "Baseline"]), "priority": 1, "subject": {"namespaces": {}},
                "ingress": [{"action": action, "from": [{"namespaces": namespaces}]}],
            },
        })
    }

    fn flow(&mut self, cast: &Cast<'_>) -> FlowCase {
        let opener = match self.0.below(8) {
            0 => Opener::Node(self.0.below(cast.nodes.len())),
            _ => Opener::Pod(self.0.below(cast.pods.len())),
        };
        let src = match opener {
            Opener::Node(n) => format!("node/{}", cast.nodes[n].name),
            Opener::Pod(n) => format!("{}/{}", namespace_of(n), cast.pods[n].name),
        };
        let (transport, word) = match self.chance(25) {
            true => (Transport::Udp, "udp"),
            false => (Transport::Tcp, "tcp"),
        };
        let (ip, port): (IpAddr, u16) = match self.0.below(20) {
            0 => (FREE.parse().unwrap(), 80),
            1 => (addresses(self.0.below(SERVICES))[0].parse().unwrap(), 81),
            2 => (cast.nodes[self.0.below(2)].v4.into(), self.one(&[OF_NODE, CLOSED])),
            3..8 => {
                let pod = &cast.pods[self.0.below(cast.pods.len())];
                (self.one(&pod.addresses()), self.one(&[OPEN, OPEN, ON_LOOPBACK, CLOSED]))
            }
            _ => {
                let of_service = addresses(self.0.below(SERVICES));
                (self.one(&of_service).parse().unwrap(), 80)
            }
        };
        let dial = SocketAddr::new(ip, port);
        // A server of the node that is bound to no address answers datagrams from the address of the route to the Pod, not from
        // the one that was dialed.
        let is_of_node = cast.nodes.iter().any(|node| IpAddr::from(node.v4) == ip);
        let (transport, word) =
            if is_of_node { (Transport::Tcp, "tcp") } else { (transport, word) };
        FlowCase { opener, src, dst: format!("{dial}/{word}"), dial, transport }
    }
}

/// The ClusterIPs of a Service.
fn addresses(n: usize) -> [&'static str; 2] {
    [["10.96.0.10", "fd96::10"], ["10.96.0.11", "fd96::11"], ["10.96.0.12", "fd96::12"]][n]
}

/// Whether it is one of these ClusterIPs.
pub(super) fn is_of_service(ip: IpAddr) -> bool {
    let of = (0..SERVICES).flat_map(addresses);
    of.into_iter().any(|own| own.parse() == Ok(ip))
}
