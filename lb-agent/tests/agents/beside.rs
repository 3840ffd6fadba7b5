//! Beside others: networks of other shapes, other programs on the same devices, other rules in netfilter, smaller MTUs.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    process::Command,
};

use nix::sys::socket::{setsockopt, sockopt};
use testbed::{
    Netns, Node, Pod, Shape,
    client::{Transport, ask_connected, seen_as, udp_socket},
    manifest::pod_of,
    server::Server,
};

use crate::outside::{addresses, echo_600_kb, load_balancer, node_port, seen};
use crate::stage::{SOON, Stage, TRANSPORTS};

pub(crate) const NODE_PORT: u16 = 30080;
const ECHO: u16 = 30081;
pub(crate) const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
pub(crate) const LB: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];

/// A stage with one server Pod `web` on node b behind every kind of address, and an outside client.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) client: Netns,
    pub(crate) inside: Pod,
    pub(crate) web: Pod,
    _echo: Server,
}

impl Scene {
    pub(crate) fn new(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) -> Self {
        let mut stage = Stage::prepared(prefix, shape, prepare);
        let (a, b) = (stage.a.clone(), stage.b.clone());
        let client = stage.outsider();
        let web = stage.server(&b, "web");
        let inside = a.pod("inside").unwrap();
        let echo = Server::bytes(&web.netns, 8081).unwrap();
        stage.serve(load_balancer(node_port("web", WEB, NODE_PORT), LB), &[&web]);
        Self { stage, client, inside, web, _echo: echo }
    }

    /// Every way to the Service: who asks, and at which addresses (names' port, bytes' port).
    pub(crate) fn ways(&self) -> Vec<(&Netns, SocketAddr, SocketAddr)> {
        let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        let Stage { a, b, .. } = &self.stage;
        (0..2)
            .flat_map(|i| {
                let ports = |node| (addresses(node, NODE_PORT)[i], addresses(node, ECHO)[i]);
                let ((near, near_echo), (far, far_echo)) = (ports(b), ports(a));
                let vip = (at(WEB[i], 80), at(WEB[i], 81));
                let lb = (at(LB[i], 80), at(LB[i], 81));
                [
                    (&self.client, near, near_echo),
                    (&self.client, far, far_echo),
                    (&self.client, lb.0, lb.1),
                    (&self.inside.netns, vip.0, vip.1),
                    (&self.inside.netns, far, far_echo),
                    (&a.netns, vip.0, vip.1),
                ]
            })
            .collect()
    }

    /// All of them answer, and carry bulk.
    pub(crate) fn all_ways_work(&self) {
        for (netns, names, bytes) in self.ways() {
            self.stage.wait_for(netns, names, &["web"]);
            for transport in TRANSPORTS {
                assert_eq!(self.stage.ask(netns, transport, names), "web");
            }
            echo_600_kb(netns, bytes, &self.stage);
        }
    }
}

/// A link in the middle that takes smaller packets than both ends believe. Each sender must learn it: through the
/// ClusterIP, through a node port with the client kept, and through a masquerade.
#[test]
fn s33_path_mtu_discovery_works_on_every_way() {
    let scene = Scene::new("ebmtu", Shape::Routed, |_| ());
    // Towards the Pod: its veth on the node's side.
    let veth = &scene.web.device;
    scene.stage.b.netns.ip(&format!("link set {veth} mtu 1340\n")).unwrap();
    // Towards the client and the Pod on the other node.
    let nodes = [&scene.stage.a, &scene.stage.b];
    for (node, way_back) in nodes.into_iter().zip([
        "route replace 172.31.0.200/32 dev eth0 mtu 1330\n\
         route replace fd31::200/128 dev eth0 mtu 1330\n",
        "route replace 172.31.0.200/32 dev eth0 mtu 1320\n\
         route replace fd31::200/128 dev eth0 mtu 1320\n\
         route replace 10.244.1.0/24 via 172.31.0.11 mtu 1310\n\
         route replace fd44:0:0:1::/64 via fd31::11 mtu 1310\n",
    ]) {
        node.netns.ip(way_back).unwrap();
    }
    scene.all_ways_work();
}

/// Datagrams of several pieces arrive whole, whoever sends them.
#[test]
fn s34_datagrams_in_pieces_arrive_on_every_way() {
    let scene = Scene::new("ebfrag", Shape::Routed, |_| ());
    for (netns, names, _) in scene.ways() {
        scene.stage.wait_for(netns, names, &["web"]);
        let answer = netns.enter(|| {
            let socket = udp_socket(names, SOON)?;
            // The pieces must be ours to make: without path MTU discovery the sender's own host cuts the datagram.
            setsockopt(&socket.as_fd(), sockopt::SndBuf, &65_536)?;
            socket.connect(names)?;
            socket.send(&[b'?'; 5000])?;
            let mut answer = [0; 64];
            let n = socket.recv(&mut answer)?;
            std::io::Result::Ok(String::from_utf8_lossy(&answer[..n]).trim().to_owned())
        });
        let answer = answer.unwrap();
        assert_eq!(
            answer.ok().as_deref(),
            Some("web"),
            "{names} from {netns}\n{}",
            scene.stage.logs()
        );
    }
}

/// Other programs on the same hooks, and the bandwidth plugin's mirror of a Pod's packets to an ifb device.
#[test]
fn other_programs_and_the_bandwidth_plugin_on_the_same_device() {
    let scene = Scene::new("ebtc", Shape::Routed, |_| ());
    let on = |node: &Node, device: &str| {
        for args in [
            // Takes every packet and ends the chain of its kind with TC_ACT_OK.
            format!("qdisc add dev {device} clsact"),
            format!("filter add dev {device} ingress protocol all u32 match u32 0 0 flowid 1:1"),
            format!("filter add dev {device} egress protocol all u32 match u32 0 0 flowid 1:1"),
        ] {
            node.netns.output(Command::new("tc").args(args.split(' '))).unwrap();
        }
    };
    on(&scene.stage.a, "eth0");
    on(&scene.stage.b, "eth0");
    on(&scene.stage.a, &scene.inside.device);
    // The bandwidth plugin: what the Pod sends is mirrored to an ifb, where it is shaped; what it gets, by tbf.
    let (node, veth) = (&scene.stage.b, &scene.web.device);
    node.netns.ip("link add bwp0 type ifb\nlink set bwp0 up\n").unwrap();
    for args in [
        format!("qdisc add dev {veth} root tbf rate 800mbit burst 256kb latency 25ms"),
        format!("qdisc add dev {veth} ingress"),
        format!(
            "filter add dev {veth} parent ffff: protocol all u32 match u32 0 0 \
             action mirred egress redirect dev bwp0"
        ),
        "qdisc add dev bwp0 root tbf rate 800mbit burst 256kb latency 25ms".to_owned(),
    ] {
        node.netns.output(Command::new("tc").args(args.split(' '))).unwrap();
    }
    scene.all_ways_work();
}

/// A service mesh's sidecar takes the Pod's own connections by a redirect in the Pod: it must still see the ClusterIP.
#[test]
fn s19_a_sidecar_sees_the_cluster_ip() {
    let scene = Scene::new("ebmesh", Shape::Routed, |_| ());
    let _sidecar = Server::named(&scene.inside.netns, "sidecar", 15001).unwrap();
    let vip = SocketAddr::new(WEB[0].parse().unwrap(), 80);
    scene.stage.wait_for(&scene.inside.netns, vip, &["web"]);
    scene
        .inside
        .netns
        .nft(&format!(
            "table ip mesh {{
               chain output {{
                 type nat hook output priority -100
                 ip daddr {} tcp dport 80 redirect to :15001
               }}
             }}",
            WEB[0]
        ))
        .unwrap();
    assert_eq!(scene.stage.ask(&scene.inside.netns, Transport::Tcp, vip), "sidecar");
    assert_eq!(scene.stage.ask(&scene.inside.netns, Transport::Udp, vip), "web");
}

/// A CNI's own rules: a host port mapped by DNAT, and a masquerade of what leaves the cluster. Both are left to
/// netfilter, both ways; and neither catches a Service's packets.
#[test]
fn host_ports_and_masquerade_rules_of_the_cni_keep_working() {
    let scene = Scene::new("ebcni", Shape::Routed, |_| ());
    let (b, web) = (&scene.stage.b, &scene.web);
    b.netns
        .nft(&format!(
            "table ip portmap {{
               chain prerouting {{ type nat hook prerouting priority -100; tcp dport 8888 dnat to {}:8080; }}
               chain postrouting {{ type nat hook postrouting priority 100;
                 ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade; }}
             }}",
            web.v4
        ))
        .unwrap();
    scene.all_ways_work();
    let host_port = SocketAddr::new(b.v4.into(), 8888);
    assert_eq!(scene.stage.ask(&scene.client, Transport::Tcp, host_port), "web");
    let near = addresses(b, NODE_PORT)[0];
    let client: IpAddr = "172.31.0.200".parse().unwrap();
    assert_eq!(seen(&scene.client, Transport::Tcp, near, &scene.stage), client);
    // Out of the cluster, by the CNI's masquerade.
    let _server = Server::named(&scene.client, "world", 8080).unwrap();
    let world = SocketAddr::new(client, 8080);
    let seen = web.netns.enter(|| seen_as(Transport::Tcp, world, SOON)).unwrap().unwrap();
    assert_eq!(seen.ip(), IpAddr::from(b.v4));
}

/// A UDP client that keeps its socket follows the Service when its endpoint goes and when the first one comes: from
/// outside, from a Pod and from a host process, none is left in a black hole.
#[test]
fn s15_s16_udp_clients_that_keep_their_socket_follow_the_service() {
    let mut scene = Scene::new("ebudp", Shape::Routed, |_| ());
    let (a, b) = (scene.stage.a.clone(), scene.stage.b.clone());
    let next = scene.stage.server(&a, "next");
    let ways: Vec<_> =
        scene.ways().into_iter().map(|(netns, names, _)| (netns.clone(), names)).collect();
    let socket = |netns: &Netns, addr| {
        let made = netns.enter(|| {
            let socket = udp_socket(addr, std::time::Duration::from_millis(300))?;
            socket.connect(addr)?;
            std::io::Result::Ok(socket)
        });
        made.unwrap()
    };
    let mut sockets: Vec<_> = ways
        .iter()
        .map(|(netns, addr)| {
            scene.stage.wait_for(netns, *addr, &["web"]);
            let socket = socket(netns, *addr).unwrap();
            assert_eq!(ask_connected(&socket).unwrap(), "web");
            socket
        })
        .collect();
    let service = load_balancer(node_port("web", WEB, NODE_PORT), LB);
    let only_next = [service.clone(), pod_of(&next).label("app", "web")];
    for (objects, want) in
        [(&only_next[..], Some("next")), (&only_next[..1], None), (&only_next[..], Some("next"))]
    {
        scene.stage.dir.write("web", objects).unwrap();
        for ((netns, addr), socket_kept) in ways.iter().zip(&mut sockets) {
            let host = *netns == a.netns || *netns == b.netns;
            let end = std::time::Instant::now() + SOON;
            loop {
                let answer = ask_connected(socket_kept).or_else(|err| {
                    if !host {
                        return Err(err);
                    }
                    // The agent closed the socket of a host process: it makes another, as resolvers do.
                    *socket_kept = socket(netns, *addr)?;
                    ask_connected(socket_kept)
                });
                let refused = std::io::ErrorKind::ConnectionRefused;
                match (&answer, want) {
                    (Ok(name), Some(want)) if name == want => break,
                    (Err(err), None) if err.kind() == refused => break,
                    _ => {}
                }
                let logs = || scene.stage.logs();
                let late = std::time::Instant::now() > end;
                assert!(!late, "{addr} from {netns}: {answer:?}, not {want:?}\n{}", logs());
            }
        }
    }
}
