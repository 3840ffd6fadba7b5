//! Clusters as objects: what is in them, and random ones.

use std::net::IpAddr;

use serde_json::{Value, json};

use lb_testkit::random::Random;

/// All objects of a cluster, as they would be in files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) namespaces: Vec<Value>,
    pub(crate) nodes: Vec<Value>,
    pub(crate) pods: Vec<Value>,
    pub(crate) policies: Vec<Value>,
    pub(crate) cluster_policies: Vec<Value>,
}

/// A new flow of a Pod that is judged in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Flow<'a> {
    pub(crate) pod: &'a Value,
    pub(crate) ingress: bool,
    pub(crate) peer: IpAddr,
    pub(crate) protocol: &'a str,
    /// 0 when it has none.
    pub(crate) port: u16,
    /// The packet does not show its port.
    pub(crate) hidden: bool,
    /// This host made it; else it came by some device.
    pub(crate) from_host: bool,
}

impl Objects {
    /// All of it, an object a line.
    pub(crate) fn text(&self) -> String {
        let all =
            [&self.namespaces, &self.nodes, &self.pods, &self.policies, &self.cluster_policies];
        all.into_iter().flatten().map(|object| format!("{object}\n")).collect()
    }

    /// Whether the destination has a container port with this name, of the flow's protocol and port.
    pub(crate) fn is_named(&self, name: &str, flow: &Flow<'_>) -> bool {
        self.named_ports(name, flow).any(|port| port["containerPort"] == flow.port)
    }

    /// Whether it has one with this name and the flow's protocol.
    pub(crate) fn has_named(&self, name: &str, flow: &Flow<'_>) -> bool {
        self.named_ports(name, flow).next().is_some()
    }

    fn named_ports<'a>(
        &'a self,
        name: &'a str,
        flow: &'a Flow<'_>,
    ) -> impl Iterator<Item = &'a Value> {
        let destination = if flow.ingress { Some(flow.pod) } else { self.pod_at(flow.peer) };
        let containers = destination.map_or(&[][..], |pod| list(&pod["spec"]["containers"]));
        containers.iter().flat_map(|container| list(&container["ports"])).filter(move |port| {
            port["name"] == name && port["protocol"].as_str().unwrap_or("TCP") == flow.protocol
        })
    }

    /// The Pod with this address. Pods of the host network have none of their own.
    pub(crate) fn pod_at(&self, ip: IpAddr) -> Option<&Value> {
        let has = |pod: &&Value| {
            let ips = list(&pod["status"]["podIPs"]);
            pod["spec"]["hostNetwork"] != true && ips.iter().any(|at| parse(&at["ip"]) == ip)
        };
        self.pods.iter().find(has)
    }

    /// Whether an address is this node's.
    pub(crate) fn is_local_node(&self, node: &str, ip: IpAddr) -> bool {
        self.nodes.iter().any(|n| n["metadata"]["name"] == node && node_ips(n).contains(&ip))
    }

    /// Whether an address is some node's.
    pub(crate) fn is_any_node(&self, ip: IpAddr) -> bool {
        self.nodes.iter().any(|node| node_ips(node).contains(&ip))
    }

    /// Whether the node is at the other end, and not only its address.
    pub(crate) fn is_of_node(&self, node: &str, flow: &Flow<'_>) -> bool {
        self.is_local_node(node, flow.peer) && (!flow.ingress || flow.from_host)
    }

    pub(crate) fn namespace_labels(&self, pod: &Value) -> &Value {
        let of = |ns: &&Value| ns["metadata"]["name"] == pod["metadata"]["namespace"];
        self.namespaces.iter().find(of).map_or(&Value::Null, |ns| &ns["metadata"]["labels"])
    }
}

pub(crate) fn in_range(from: &Value, to: Option<u64>, port: u16) -> bool {
    let from = from.as_u64().unwrap();
    (from..=to.unwrap_or(from)).contains(&port.into())
}

pub(crate) fn within(cidr: &Value, ip: IpAddr) -> bool {
    let (net, len) = cidr.as_str().unwrap().split_once('/').unwrap();
    let len: u32 = len.parse().unwrap();
    match (net.parse().unwrap(), ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            (u64::from(net.to_bits()) ^ u64::from(ip.to_bits())) >> (32 - len) == 0
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            len == 0 || (net.to_bits() ^ ip.to_bits()) >> (128 - len) == 0
        }
        _ => false,
    }
}

pub(crate) fn node_ips(node: &Value) -> Vec<IpAddr> {
    list(&node["status"]["addresses"]).iter().map(|address| parse(&address["address"])).collect()
}

pub(crate) fn parse(ip: &Value) -> IpAddr {
    ip.as_str().unwrap().parse().unwrap()
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// This node.
pub(crate) const NODE: &str = "n1";
const NODES: [&str; 3] = [NODE, "n2", "n3"];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 3] = ["app", "tier", "team"];
const VALUES: [&str; 3] = ["x", "y", ""];
const PORT_NAMES: [&str; 3] = ["http", "dns", "x"];
/// Ports at whose bounds something may happen.
pub(crate) const PORTS: [u16; 12] = [1, 53, 79, 80, 81, 90, 8080, 8081, 32767, 32768, 65534, 65535];
pub(crate) const PROTOCOLS: [&str; 5] = ["TCP", "UDP", "SCTP", "ICMP", "GRE"];
const BLOCKS: [&str; 16] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.0/24",
    "10.1.0.0/30",
    "10.1.0.4/32",
    "172.31.0.0/24",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "192.0.2.7/32",
    "128.0.0.0/1",
    "::/0",
    "fd01::/16",
    "fd01::/126",
    "2001:db8::/32",
    "2001:db8::7/128",
];
/// Addresses without an owner, beside and within the blocks.
const STRANGERS: [&str; 10] = [
    "192.0.2.7",
    "192.0.2.127",
    "192.0.2.128",
    "198.51.100.1",
    "10.1.0.200",
    "10.2.0.1",
    "126.255.0.1",
    "2001:db8::7",
    "2001:db8::8",
    "fd01::77",
];

/// A random cluster: few names and values, so that much overlaps.
pub(crate) fn generate(random: &mut Random) -> Objects {
    let mut objects = Objects::default();
    for name in NAMESPACES {
        let mut labels = labels(random);
        labels["kubernetes.io/metadata.name"] = json!(name);
        objects.namespaces.push(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        }));
    }
    for (i, name) in NODES.into_iter().enumerate() {
        objects.nodes.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels(random)},
            "status": {"addresses": [
                {"type": "InternalIP", "address": format!("172.31.0.{}", i + 1)},
                {"type": "InternalIP", "address": format!("fd31::{}", i + 1)},
            ]},
        }));
    }
    for i in 0..4 + random.below(9) {
        objects.pods.push(pod(random, i));
    }
    for i in 0..random.below(7) {
        objects.policies.push(policy(random, i));
    }
    if random.below(2) == 0 {
        for i in 0..random.below(5) {
            objects.cluster_policies.push(cluster_policy(random, i));
        }
    }
    objects
}

/// An address to send to or from: of a Pod, of another node, or without an owner.
pub(crate) fn peer(objects: &Objects, random: &mut Random) -> IpAddr {
    match random.below(8) {
        0 => {
            let node = random.choose(&objects.nodes);
            *random.choose(&node_ips(node))
        }
        1..=2 => random.choose(&STRANGERS).parse().unwrap(),
        _ => {
            let pod = random.choose(&objects.pods);
            parse(&random.choose(list(&pod["status"]["podIPs"]))["ip"])
        }
    }
}

fn labels(random: &mut Random) -> Value {
    let mut labels = json!({});
    for key in KEYS {
        if random.below(3) > 0 {
            labels[key] = json!(random.choose(&VALUES));
        }
    }
    labels
}

fn pod(random: &mut Random, i: usize) -> Value {
    let node = if i < 2 { NODE } else { *random.choose(&NODES) };
    let host_network = i >= 2 && random.below(6) == 0;
    let ips = if host_network {
        let at = NODES.iter().position(|known| *known == node).unwrap() + 1;
        [format!("172.31.0.{at}"), format!("fd31::{at}")]
    } else {
        [format!("10.1.0.{}", i + 1), format!("fd01::{}", i + 1)]
    };
    let mut ports = Vec::new();
    for name in PORT_NAMES {
        if random.below(2) == 0 {
            let (port, protocol) = (random.choose(&PORTS), random.choose(&PROTOCOLS[..3]));
            ports.push(json!({"name": name, "containerPort": port, "protocol": protocol}));
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": random.choose(&NAMESPACES), "name": format!("p{i}"), "labels": labels(random)},
        "spec": {"nodeName": node, "hostNetwork": host_network, "containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ips[0]}, {"ip": ips[1]}]},
    })
}

fn selector(random: &mut Random) -> Value {
    let mut selector = json!({});
    if random.below(3) == 0 {
        return selector;
    }
    if random.below(2) == 0 {
        selector["matchLabels"] = json!({*random.choose(&KEYS): random.choose(&VALUES)});
    } else {
        let operator = *random.choose(&["In", "NotIn", "Exists", "DoesNotExist"]);
        let mut want = json!({"key": random.choose(&KEYS), "operator": operator});
        if operator.ends_with("In") {
            let n = 1 + random.below(2);
            want["values"] = (0..n).map(|_| json!(random.choose(&VALUES))).collect();
        }
        selector["matchExpressions"] = json!([want]);
    }
    selector
}

fn some(random: &mut Random, most: usize, mut make: impl FnMut(&mut Random) -> Value) -> Value {
    (0..random.below(most + 1)).map(|_| make(random)).collect()
}

fn peer_of_policy(random: &mut Random) -> Value {
    match random.below(4) {
        0 => {
            let cidr = *random.choose(&BLOCKS);
            let inside = |except: &&&str| {
                let (net, len) = except.split_once('/').unwrap();
                let shorter = cidr.split_once('/').unwrap().1.parse::<u8>().unwrap();
                within(&json!(cidr), net.parse().unwrap()) && len.parse::<u8>().unwrap() > shorter
            };
            let excepts: Vec<&str> = BLOCKS.iter().filter(inside).copied().collect();
            let n = if excepts.is_empty() { 0 } else { random.below(3) };
            let excepts: Vec<&str> = (0..n).map(|_| *random.choose(&excepts)).collect();
            json!({"ipBlock": {"cidr": cidr, "except": excepts}})
        }
        1 => json!({"podSelector": selector(random)}),
        2 => json!({"namespaceSelector": selector(random)}),
        _ => json!({"podSelector": selector(random), "namespaceSelector": selector(random)}),
    }
}

fn port_of_policy(random: &mut Random) -> Value {
    let mut port = json!({});
    if random.below(3) > 0 {
        port["protocol"] = json!(random.choose(&PROTOCOLS[..3]));
    }
    match random.below(5) {
        0 => {}
        1 => port["port"] = json!(random.choose(&PORT_NAMES)),
        2 => {
            let (from, to) = range(random);
            (port["port"], port["endPort"]) = (json!(from), json!(to));
        }
        _ => port["port"] = json!(random.choose(&PORTS)),
    }
    port
}

fn range(random: &mut Random) -> (u16, u16) {
    let (a, b) = (*random.choose(&PORTS), *random.choose(&PORTS));
    (a.min(b), a.max(b))
}

fn policy(random: &mut Random, i: usize) -> Value {
    let mut spec = json!({"podSelector": selector(random)});
    let types = *random.choose(&[&[][..], &["Ingress"], &["Egress"], &["Ingress", "Egress"]]);
    if !types.is_empty() {
        spec["policyTypes"] = json!(types);
    }
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        if random.below(3) > 0 {
            spec[rules] = some(random, 3, |random| {
                let mut rule = json!({});
                if random.below(4) > 0 {
                    rule[peers] = some(random, 2, peer_of_policy);
                }
                if random.below(3) > 0 {
                    rule["ports"] = some(random, 3, port_of_policy);
                }
                rule
            });
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": random.choose(&NAMESPACES), "name": format!("np{i}")}, "spec": spec,
    })
}

fn cluster_policy(random: &mut Random, i: usize) -> Value {
    let mut spec = json!({
        "tier": random.choose(&["Admin", "Baseline"]), "priority": 10 * i,
        "subject": pods_of_cluster_policy(random),
    });
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        spec[rules] = some(random, 3, |random| {
            let named = random.below(4) == 0;
            let mut rule = json!({"action": random.choose(&["Accept", "Deny", "Pass"])});
            rule[peers] = (0..1 + random.below(2))
                .map(|_| match random.below(4) {
                    // Ranges and nodes have no named ports.
                    0 if peers == "to" && !named => {
                        let n = 1 + random.below(2);
                        json!({"networks": (0..n).map(|_| *random.choose(&BLOCKS)).collect::<Vec<_>>()})
                    }
                    1 if peers == "to" && !named => json!({"nodes": selector(random)}),
                    _ => pods_of_cluster_policy(random),
                })
                .collect();
            if named || random.below(2) == 0 {
                rule["protocols"] = (0..1 + random.below(2))
                    .map(|_| {
                        if named {
                            json!({"destinationNamedPort": random.choose(&PORT_NAMES)})
                        } else {
                            protocol(random)
                        }
                    })
                    .collect();
            }
            rule
        });
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": format!("cnp{i}")}, "spec": spec,
    })
}

fn pods_of_cluster_policy(random: &mut Random) -> Value {
    if random.below(2) == 0 {
        return json!({"namespaces": selector(random)});
    }
    json!({"pods": {"namespaceSelector": selector(random), "podSelector": selector(random)}})
}

fn protocol(random: &mut Random) -> Value {
    let name = random.choose(&PROTOCOLS[..3]).to_lowercase();
    let port = match random.below(2) {
        0 => json!({"destinationPort": {"number": random.choose(&PORTS)}}),
        _ => {
            let (start, end) = range(random);
            json!({"destinationPort": {"range": {"start": start, "end": end.max(start.saturating_add(1))}}})
        }
    };
    json!({name: port})
}
