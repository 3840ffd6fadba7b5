//! An overlay between the nodes, as flannel makes it: packets to the other node's Pods leave by a VXLAN device, and the Pods'
//! own devices take no more than that one. So nodes have to cut what comes from clients that know nothing of it.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use testbed::{
    Netns, Node, Shape,
    client::{Transport, return_datagram},
    server::Server,
};

use crate::beside::{LB, NODE_PORT, Scene, WEB};
use crate::outside::{addresses, load_balancer, node_port, seen};
use crate::stage::Stage;

/// What the headers of VXLAN leave of 1,500 bytes.
const MTU: u16 = 1450;
/// Datagrams as IPv4 packets of 1,450 and a bit more bytes, as many as a link takes, and of several pieces.
const SIZES: [usize; 5] = [1_422, 1_423, 1_450, 1_472, 4_000];
/// How long a datagram may take there and back.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn connect(node: &Node, mtu: u16) {
    let (me, other) = if node.name == "a" { (1, 2) } else { (2, 1) };
    node.netns
        .ip(&format!(
            "link add flannel.1 address 02:00:00:00:01:0{me} mtu {mtu} type vxlan id 1 \
             local 172.31.0.1{me} dev eth0 dstport 8472 nolearning\n\
             link set flannel.1 up\n\
             addr add 10.244.{me}.0/32 dev flannel.1\n\
             addr add fd44:0:0:{me}::/128 dev flannel.1 nodad\n\
             route add fd44:0:0:{other}::/128 dev flannel.1\n\
             neigh add 10.244.{other}.0 lladdr 02:00:00:00:01:0{other} dev flannel.1\n\
             neigh add fd44:0:0:{other}:: lladdr 02:00:00:00:01:0{other} dev flannel.1\n\
             route replace 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink\n\
             route replace fd44:0:0:{other}::/64 dev flannel.1 via fd44:0:0:{other}:: onlink\n"
        ))
        .unwrap();
    let mut fdb = Command::new("bridge");
    fdb.args(["fdb", "append", &format!("02:00:00:00:01:0{other}"), "dev", "flannel.1", "dst"]);
    node.netns.output(fdb.arg(format!("172.31.0.1{other}"))).unwrap();
}

/// Whether sockets that are made from now on let routers cut what they send.
fn allow_cutting(netns: &Netns, allow: bool) {
    let value = if allow { "1" } else { "0" };
    netns.sysctl(&[("net/ipv4/ip_no_pmtu_disc", value)]).unwrap();
}

/// Ten datagrams of each size come back over IPv4 when they may be cut. Else, and over IPv6, the first one that is too big
/// is lost, and its sender learns why.
fn come_back(stage: &Stage, netns: &Netns, at: SocketAddr, cutting: bool) {
    allow_cutting(netns, cutting);
    let may_lose = if cutting && at.is_ipv4() { 0 } else { 1 };
    for n in SIZES {
        let round = || netns.enter(|| return_datagram(at, n, PATIENCE)).unwrap();
        let lost: Vec<_> = (0..10).filter_map(|_| round().err()).collect();
        assert!(
            lost.len() <= may_lose,
            "{n} bytes to {at} from {netns}, cutting {cutting}: lost {lost:?}\n{}",
            stage.logs()
        );
    }
}

#[test]
fn an_overlay_between_the_nodes() {
    let scene = Scene::new("ebvxlan", Shape::Bridge, |node| connect(node, 1430));
    scene.all_ways_work();
    let far = addresses(&scene.stage.a, NODE_PORT);
    for (addr, own) in far.into_iter().zip(["10.244.1.0", "fd44:0:0:1::"]) {
        let seen = seen(&scene.client, Transport::Tcp, addr, &scene.stage);
        assert_eq!(seen, own.parse::<IpAddr>().unwrap(), "the overlay's own address");
    }
}

fn datagrams_of_every_size(prefix: &str, shape: Shape) {
    let scene = Scene::new(prefix, shape, |node| connect(node, MTU));
    let Stage { a, b, .. } = &scene.stage;
    for (node, pod) in [(a, &scene.inside), (b, &scene.web)] {
        node.netns.ip(&format!("link set {} mtu {MTU}\n", pod.device)).unwrap();
        pod.netns.ip(&format!("link set eth0 mtu {MTU}\n")).unwrap();
    }
    scene.all_ways_work();
    for cutting in [true, false] {
        for (netns, names, _) in scene.ways() {
            come_back(&scene.stage, netns, names, cutting);
        }
    }
    // The load balancer sends to the node of the Pod.
    let routes = format!(
        "route replace 203.0.113.0/24 via {}\nroute replace 2001:db8:113::/64 via {}\n",
        b.v4, b.v6
    );
    scene.client.ip(&routes).unwrap();
    for lb in LB {
        let at = SocketAddr::new(lb.parse().unwrap(), 80);
        scene.stage.wait_for(&scene.client, at, &["web"]);
        come_back(&scene.stage, &scene.client, at, true);
    }
}

#[test]
fn datagrams_of_every_size_reach_bridged_pods_behind_smaller_devices() {
    datagrams_of_every_size("ebcutb", Shape::Bridge);
}

#[test]
fn datagrams_of_every_size_reach_routed_pods_behind_smaller_devices() {
    datagrams_of_every_size("ebcutr", Shape::Routed);
}

/// The other way round: what Pods answer is too big for the way to the client.
#[test]
fn answers_of_every_size_reach_clients_behind_smaller_links() {
    let scene = Scene::new("ebcuta", Shape::Routed, |_| ());
    for node in [&scene.stage.a, &scene.stage.b] {
        node.netns.ip("route add 172.31.0.200/32 dev eth0 mtu lock 1400\n").unwrap();
    }
    scene.all_ways_work();
    let plain = scene.stage.b.pod("plain").unwrap();
    allow_cutting(&plain.netns, true);
    let _server = Server::named(&plain.netns, "plain", 8080).unwrap();
    scene.stage.serve(load_balancer(node_port("web", WEB, NODE_PORT), LB), &[&plain]);
    for (netns, names, _) in scene.ways().into_iter().filter(|(_, at, _)| at.is_ipv4()) {
        scene.stage.wait_for(netns, names, &["plain"]);
        come_back(&scene.stage, netns, names, true);
    }
}
