//! Flows between Pods of one node that go to the Pod's end of the receiver's veth, with real agents: only while nothing at the host's
//! end needs to see them, and never to another Pod.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use testbed::{
    Netns, Node, Shape,
    client::{Connection, Transport, ask, ask_connected, echo, udp_socket},
    manifest::pod_of,
    server::Server,
    wait,
};

use crate::outside::{ECHO_NODE_PORT, NODE_PORT, addresses, node_port};
use crate::past::Neighbors;
use crate::stage::{SOON, Stage};

/// A limit of what a device sends, as the bandwidth plugin sets it.
pub(crate) const LIMIT: &str = "rate 40mbit burst 32kb latency 50ms";
pub(crate) const BYTES: usize = 2_000_000;
/// What [`BYTES`] need at least within the limit; less than 0.4 s, since a burst is free.
pub(crate) const LIMITED: Duration = Duration::from_millis(300);
/// Answers take far less.
const QUICK: Duration = Duration::from_millis(300);

pub(crate) fn tc(node: &Node, words: &str) {
    node.netns.output(Command::new("tc").args(words.split_whitespace())).unwrap();
}

/// Column PATH of the newest flow of `lbctl ct` to the server, one that is asked now.
fn path(cast: &Neighbors, addr: SocketAddr) -> String {
    cast.stage.ask(&cast.friend.netns, Transport::Udp, addr);
    let [agent, _] = &cast.stage.agents;
    let flows = agent.lbctl(&["ct", "-o", "json"]).unwrap();
    let flows: serde_json::Value = serde_json::from_str(&flows).unwrap();
    let flows = flows["items"].as_array().or(flows.as_array()).unwrap();
    let is_it = |flow: &&serde_json::Value| {
        flow["dstAddress"] == addr.to_string().as_str() && flow["protocol"] == "UDP"
    };
    let flow = flows.iter().filter(is_it).min_by_key(|flow| flow["idle"].as_u64());
    flow.unwrap_or_else(|| panic!("{flows:?}"))["path"].as_str().unwrap().to_owned()
}

fn wait_for_path(cast: &Neighbors, want: &str) {
    for addr in cast.addresses() {
        let told = wait::until("flows take another way", SOON, || {
            let path = path(cast, addr);
            anyhow::ensure!(path == want, "{addr} by {path}, not by {want}");
            Ok(())
        });
        if let Err(err) = told {
            panic!("{err:#}\n{}", cast.stage.logs());
        }
    }
}

/// Packets that a device has received (`rx`) or sent (`tx`).
pub(crate) fn packets(netns: &Netns, device: &str, way: &str) -> u64 {
    let mut command = Command::new("ip");
    let text = netns.output(command.args(["-json", "-stats", "link", "show", "dev", device]));
    let links: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
    links[0]["stats64"][way]["packets"].as_u64().unwrap()
}

fn nothing_passes_the_hosts_end(prefix: &str, shape: Shape) {
    let cast = Neighbors::new(prefix, shape, |_| ());
    cast.wait_until(true);
    wait_for_path(&cast, "peer");
    let sent = || packets(&cast.stage.a.netns, &cast.web.device, "tx");
    let received = || packets(&cast.web.netns, "eth0", "rx");
    let (sent_before, received_before) = (sent(), received());
    for addr in cast.addresses() {
        let mut open = cast.friend.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
        (0..50).for_each(|_| assert_eq!(open.ask().unwrap(), "web"));
    }
    let (sent, received) = (sent() - sent_before, received() - received_before);
    assert!(received >= 200, "the Pod counts what it receives: {received}");
    // Neighbor discovery between the Pod and its node is all that may be left.
    assert!(sent < 20, "{sent} of {received} packets by the host's end");
    assert_eq!(cast.forwarded(), 0);
}

#[test]
fn packets_do_not_pass_the_hosts_end_of_a_routed_pod() {
    nothing_passes_the_hosts_end("epeerr", Shape::Routed);
}

#[test]
fn packets_do_not_pass_the_hosts_end_of_a_bridged_pod() {
    nothing_passes_the_hosts_end("epeerb", Shape::Bridge);
}

/// As the bandwidth plugin limits what a Pod receives, but while it runs: its flows keep their way past the IP stack.
#[test]
fn a_bandwidth_limit_of_the_receiver_is_obeyed() {
    let cast = Neighbors::new("epeerl", Shape::Routed, |_| ());
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until(true);
    wait_for_path(&cast, "peer");
    let transfer = |addr: SocketAddr| {
        let addr = SocketAddr::new(addr.ip(), if addr.port() == 80 { 81 } else { 8081 });
        let start = Instant::now();
        let echoed = cast.friend.netns.enter(|| echo(addr, BYTES, SOON)).unwrap();
        assert!(echoed.is_ok(), "{addr}: {echoed:?}\n{}", cast.stage.logs());
        start.elapsed()
    };
    let device = &cast.web.device;
    tc(&cast.stage.a, &format!("qdisc add dev {device} root tbf {LIMIT}"));
    wait_for_path(&cast, "veth");
    for addr in cast.addresses() {
        let took = transfer(addr);
        assert!(took >= LIMITED, "{addr}: {took:?}\n{}", cast.stage.logs());
    }
    tc(&cast.stage.a, &format!("qdisc del dev {device} root"));
    wait_for_path(&cast, "peer");
    let fastest = cast.addresses().into_iter().map(transfer).min().unwrap();
    assert!(fastest < LIMITED, "without a limit: {fastest:?}");
    assert_eq!(cast.forwarded(), 0);
}

/// What clients outside send to a Pod of this node does not pass the host's end either, unless something there must see it.
#[test]
fn packets_from_outside_do_not_pass_the_hosts_end() {
    let arguments = ["--past-stack", "on"];
    let mut stage = Stage::with_arguments("epeero", Shape::Routed, |_| (), &arguments);
    let a = stage.a.clone();
    let client = stage.outsider();
    let web = stage.server(&a, "web");
    let _echo = Server::bytes(&web.netns, 8081).unwrap();
    stage.serve(node_port("web", ["10.96.0.10", "fd96::10"], NODE_PORT), &[&web]);
    for addr in addresses(&a, NODE_PORT) {
        stage.wait_for(&client, addr, &["web"]);
    }
    let sent_for = |addr: SocketAddr| {
        let sent = || packets(&a.netns, &web.device, "tx");
        let before = sent();
        let mut open = client.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
        (0..50).for_each(|_| assert_eq!(open.ask().unwrap(), "web"));
        sent() - before
    };
    for addr in addresses(&a, NODE_PORT) {
        // The Pod's device is known to need nothing a moment after the Pod is served.
        let told = wait::until("packets pass the host's end by", SOON, || {
            let sent = sent_for(addr);
            anyhow::ensure!(sent < 20, "{addr}: {sent} packets");
            Ok(())
        });
        assert!(told.is_ok(), "{told:?}\n{}", stage.logs());
    }
    tc(&a, &format!("qdisc add dev {} root tbf {LIMIT}", web.device));
    for addr in addresses(&a, ECHO_NODE_PORT) {
        let told = wait::until("the limit is obeyed", SOON, || {
            let start = Instant::now();
            client.enter(|| echo(addr, BYTES, SOON)).unwrap().unwrap();
            anyhow::ensure!(start.elapsed() >= LIMITED, "{addr}: {:?}", start.elapsed());
            Ok(())
        });
        assert!(told.is_ok(), "{told:?}\n{}", stage.logs());
    }
}

/// Connections live without the agent, and one that comes back does not take their way.
#[test]
fn flows_go_on_while_the_agent_is_away() {
    let mut cast = Neighbors::new("epeera", Shape::Routed, |_| ());
    cast.wait_until(true);
    wait_for_path(&cast, "peer");
    let open = |addr| cast.friend.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let mut connections: Vec<Connection> = cast.addresses().into_iter().map(open).collect();
    cast.stage.agents[0].stop().unwrap();
    connections.iter_mut().for_each(|connection| assert_eq!(connection.ask().unwrap(), "web"));
    cast.stage.agents[0].start().unwrap();
    for _ in 0..20 {
        connections.iter_mut().for_each(|connection| assert_eq!(connection.ask().unwrap(), "web"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(cast.forwarded(), 0);
    wait_for_path(&cast, "peer");
}

/// The receiver goes while it is asked all the time, and others take its place, with its address and its number: whoever sends is
/// told, and no other Pod answers.
#[test]
fn a_pod_that_goes_under_load_is_unreachable_and_never_another() {
    // As some CNI plugins have it: addresses of Pods that are not here lead nowhere.
    let mut cast = Neighbors::new("epeerg", Shape::Routed, |node| {
        let n = if node.name == "a" { 1 } else { 2 };
        let routes = format!(
            "route add unreachable 10.244.{n}.0/24\nroute add unreachable fd44:0:0:{n}::/64\n"
        );
        node.netns.ip(&routes).unwrap();
    });
    cast.wait_until(true);
    wait_for_path(&cast, "peer");
    let straight: Vec<SocketAddr> = cast.web.addresses().map(|ip| (ip, 8080).into()).to_vec();
    let socket = |addr: SocketAddr| {
        let socket = udp_socket(addr, QUICK)?;
        socket.connect(addr)?;
        std::io::Result::Ok(socket)
    };
    let sockets: Vec<UdpSocket> = straight
        .iter()
        .map(|addr| cast.friend.netns.enter(|| socket(*addr)).unwrap().unwrap())
        .collect();
    let mut open: Vec<Connection> = straight
        .iter()
        .map(|addr| cast.friend.netns.enter(|| Connection::open(*addr, SOON)).unwrap().unwrap())
        .collect();
    for (socket, connection) in sockets.iter().zip(&mut open) {
        assert_eq!(ask_connected(socket).unwrap(), "web");
        assert_eq!(connection.ask().unwrap(), "web");
    }
    cast.web.remove().unwrap();
    for (addr, socket) in straight.iter().zip(&sockets) {
        assert!(ask_connected(socket).is_err());
        if addr.is_ipv6() {
            // The kernel answers nothing to a client behind such routes, with or without programs.
            continue;
        }
        // The agent hears of it within moments. From then on each packet goes to the stack, which answers.
        let told = wait::until("who connects is told", SOON, || {
            let opened = cast.friend.netns.enter(|| Connection::open(*addr, QUICK))?;
            match opened.map(drop).map_err(|err| err.kind()) {
                Err(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => Ok(()),
                other => anyhow::bail!("{other:?}"),
            }
        });
        told.unwrap_or_else(|err| panic!("{addr}: {err:#}\n{}", cast.stage.logs()));
    }
    // Another Pod, with its own address, gets the number.
    let a = cast.stage.a.clone();
    let other = cast.stage.server(&a, "other");
    cast.stage.dir.write("other", &[pod_of(&other).label("app", "other")]).unwrap();
    cast.stage.wait_for(&cast.friend.netns, (other.v4, 8080).into(), &["other"]);
    for (addr, connection) in straight.iter().zip(&mut open) {
        connection.set_timeout(QUICK).unwrap();
        assert!(connection.ask().is_err(), "{addr} is answered");
        for transport in [Transport::Tcp, Transport::Udp] {
            let told = cast.friend.netns.enter(|| ask(transport, *addr, QUICK)).unwrap();
            assert!(told.is_err(), "{transport:?} {addr}: {told:?}");
        }
    }
}
