//! What needs modules that not every kernel has: SCTP sockets, VLAN devices. Real agents, real sockets, two nodes and a
//! client outside; `cargo xtask verifier --wrap` runs it on kernels that have them.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use testbed::{
    Agent, Bed, Netns, Node, Pod, Shape,
    client::{Transport, ask},
    manifest::{Object, node_of, pod_of, service},
    server::Server,
    wait,
};

/// Long enough for an emulated machine that shares its CPUs: there, the verifier alone needs a minute.
const SOON: Duration = Duration::from_secs(180);
const NODE_PORT: u16 = 30068;
const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];

fn load(module: &str) {
    let out = Command::new("modprobe").arg(module).output().unwrap();
    let there = out.status.success() || Path::new("/sys/module").join(module).exists();
    assert!(there, "no module {module}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Two nodes with agents, a Pod `web` on node b and `inside` on node a, and a client outside.
struct Scene {
    // Dropped in this order.
    agents: Vec<Agent>,
    a: Node,
    b: Node,
    web: Pod,
    inside: Pod,
    client: Netns,
    _bed: Bed,
}

impl Scene {
    fn new(prefix: &str, service: Object, prepare: impl Fn(&Node)) -> Self {
        let bed = Bed::new(prefix).unwrap();
        let dir = bed.manifests().unwrap();
        let [a, b] = ["a", "b"].map(|name| bed.node(name, Shape::Routed).unwrap());
        let client = bed.outsider("client").unwrap();
        let (web, inside) = (b.pod("web").unwrap(), a.pod("inside").unwrap());
        let objects =
            [node_of(&a), node_of(&b), service, pod_of(&web).label("app", "web"), pod_of(&inside)];
        dir.write("web", &objects).unwrap();
        let agents = [&a, &b].map(|node| {
            prepare(node);
            let mut agent = Agent::new(node, Path::new(env!("CARGO_BIN_EXE_lb-agent")), &dir.path);
            agent.spawn().unwrap();
            agent
        });
        Self { agents: agents.into(), a, b, web, inside, client, _bed: bed }
    }

    fn logs(&self) -> String {
        self.agents
            .iter()
            .map(|agent| format!("--- {}\n{}\n", agent.node.name, agent.log_tail()))
            .collect()
    }
}

fn port(protocol: &str, port: u16, target: u16, node_port: u16) -> serde_json::Value {
    let name = format!("{}-{port}", protocol.to_lowercase());
    json!({"name": name, "protocol": protocol, "port": port, "targetPort": target, "nodePort": node_port})
}

fn sctp(addr: SocketAddr) -> std::io::Result<Socket> {
    let protocol = Protocol::from(132);
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(socket)
}

/// Sends back what it gets on one SCTP association after the other.
fn serve_sctp(netns: &Netns, addr: SocketAddr) {
    let listener = netns
        .enter(|| {
            let listener = sctp(addr)?;
            listener.bind(&SockAddr::from(addr))?;
            listener.listen(8)?;
            listener.set_read_timeout(None)?;
            std::io::Result::Ok(listener)
        })
        .unwrap()
        .unwrap();
    // Ends with the test's process.
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut bytes = [0; 2048];
            while let Ok(n @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(bytes.get(..n).unwrap_or_default()).is_err() {
                    break;
                }
            }
        }
    });
}

/// Messages of several sizes there and back: a wrong CRC32c would be dropped without a word.
fn echo_sctp(addr: SocketAddr) -> std::io::Result<()> {
    let mut socket = sctp(addr)?;
    socket.connect_timeout(&SockAddr::from(addr), Duration::from_secs(10))?;
    for len in [1, 63, 700, 1400] {
        let sent: Vec<u8> = (0..len).map(|i| i as u8).collect();
        socket.write_all(&sent)?;
        let mut got = vec![0; len];
        socket.read_exact(&mut got)?;
        if got != sent {
            return Err(std::io::Error::other("the message came back changed"));
        }
    }
    Ok(())
}

#[test]
fn sctp_services_with_another_target_port() {
    load("sctp");
    let service = service("web")
        .selector("app", "web")
        .set(&["spec", "type"], json!("NodePort"))
        .set(&["spec", "ports"], json!([port("SCTP", 80, 3868, NODE_PORT)]))
        .ip(WEB[0])
        .ip(WEB[1]);
    let scene = Scene::new("msctp", service, |_| ());
    for ip in scene.web.addresses() {
        serve_sctp(&scene.web.netns, SocketAddr::new(ip, 3868));
    }
    for (i, vip) in WEB.iter().enumerate() {
        let vip = SocketAddr::new(vip.parse().unwrap(), 80);
        let node =
            |node: &Node| SocketAddr::new([IpAddr::from(node.v4), node.v6.into()][i], NODE_PORT);
        for (netns, addr) in [
            (&scene.inside.netns, vip),
            (&scene.client, node(&scene.b)),
            (&scene.client, node(&scene.a)),
        ] {
            let what = format!("SCTP {addr} from {netns}");
            let echoed = wait::until(&what, SOON, || Ok(netns.enter(|| echo_sctp(addr))??));
            assert!(echoed.is_ok(), "{:?}\n{}", echoed.err(), scene.logs());
        }
    }
}

#[test]
fn a_client_behind_a_vlan() {
    load("8021q");
    let service = service("web")
        .selector("app", "web")
        .set(&["spec", "type"], json!("NodePort"))
        .set(
            &["spec", "ports"],
            json!([port("TCP", 80, 8080, NODE_PORT), port("UDP", 80, 8080, NODE_PORT)]),
        )
        .set(&["status", "loadBalancer", "ingress"], json!([{"ip": "203.0.113.10"}]))
        .set(&["spec", "type"], json!("LoadBalancer"))
        .ip(WEB[0])
        .ip(WEB[1]);
    let scene = Scene::new("mvlan", service, |node| {
        let n = if node.name == "a" { 11 } else { 12 };
        let lines = format!(
            "link add link eth0 name eth0.5 type vlan id 5\n\
             link set eth0.5 up\n\
             addr add 172.32.0.{n}/24 dev eth0.5\n"
        );
        node.netns.ip(&lines).unwrap();
    });
    scene
        .client
        .ip("link add link eth0 name eth0.5 type vlan id 5\n\
             link set eth0.5 up\n\
             addr add 172.32.0.200/24 dev eth0.5\n\
             route add 203.0.113.0/24 via 172.32.0.11\n")
        .unwrap();
    let _server = Server::named(&scene.web.netns, "web", 8080).unwrap();
    let addr = "203.0.113.10:80".parse().unwrap();
    for transport in [Transport::Tcp, Transport::Udp] {
        let answered = wait::until("an answer over the VLAN", SOON, || {
            Ok(scene.client.enter(|| ask(transport, addr, Duration::from_secs(5)))??)
        });
        assert_eq!(answered.ok().map(|(name, _)| name).as_deref(), Some("web"), "{}", scene.logs());
    }
}
