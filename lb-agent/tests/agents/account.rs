//! Packets and bytes of flows, with real agents and sockets: what `lbctl ct` and `lbctl flows --by` say is what was sent, by
//! whichever way it went.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
};

use serde_json::Value;
use testbed::{
    Agent, Netns, Node, Pod, Shape,
    client::{return_connected, udp_socket},
    manifest::{node_of, pod_of},
    server::Server,
    wait,
};

use crate::peer::{LIMIT, tc};
use crate::stage::{SOON, Stage, port_80, service};

const NEAR: [&str; 2] = ["10.96.0.10", "fd96::10"];
const FAR: [&str; 2] = ["10.96.0.11", "fd96::11"];
/// Datagrams of a flow: of one piece, and of three.
const DATAGRAMS: [(u64, usize, u64); 2] = [(7, 100, 1), (4, 4_000, 3)];
/// Bytes of a connection in each direction.
const BYTES: usize = 600_000;

/// A client on node a, a server beside it, another one on node b.
struct Cast {
    stage: Stage,
    client: Pod,
    near: Pod,
    far: Pod,
    _echo: [Server; 2],
}

impl Cast {
    fn new(prefix: &str, shape: Shape, past_stack: &str, prepare: impl Fn(&Node)) -> Self {
        let arguments = ["--past-stack", past_stack, "--flow-accounting", "on"];
        let mut stage = Stage::with_arguments(prefix, shape, prepare, &arguments);
        let (a, b) = (stage.a.clone(), stage.b.clone());
        let client = a.pod("client").unwrap();
        let (near, far) = (stage.server(&a, "near"), stage.server(&b, "far"));
        let echo = [&near, &far].map(|pod| Server::bytes(&pod.netns, 8081).unwrap());
        stage.dir.write("nodes", &[&a, &b].map(node_of)).unwrap();
        let objects = [
            service("near", NEAR),
            service("far", FAR),
            pod_of(&near).label("app", "near"),
            pod_of(&far).label("app", "far"),
            pod_of(&client),
        ];
        stage.dir.write("cast", &objects).unwrap();
        for (ips, name) in [(NEAR, "near"), (FAR, "far")] {
            for ip in ips {
                stage.wait_for(&client.netns, port_80(ip), &[name]);
            }
        }
        Self { stage, client, near, far, _echo: echo }
    }

    /// A server, straight and through its Service.
    fn ways_to(server: &Pod, ips: [&str; 2]) -> [SocketAddr; 4] {
        let [v4, v6] = server.addresses().map(|ip| SocketAddr::new(ip, 8080));
        let [service4, service6] = ips.map(port_80);
        [v4, v6, service4, service6]
    }

    /// A connected socket whose flow takes this path at the client's node. The way is chosen at the first packet.
    fn socket(&self, from: &Netns, addr: SocketAddr, path: &str) -> UdpSocket {
        let found = wait::until("a flow takes the path", 3 * SOON, || {
            let socket = from.enter(|| {
                let socket = udp_socket(addr, SOON)?;
                socket.connect(addr)?;
                std::io::Result::Ok(socket)
            })??;
            from.enter(|| return_connected(&socket, 10))??;
            let row = row(&self.stage.agents[0], "UDP", socket.local_addr()?)?;
            anyhow::ensure!(row["path"] == path, "{addr} by {}", row["path"]);
            Ok(socket)
        });
        found.unwrap_or_else(|err| panic!("{path}: {err:#}\n{}", self.stage.logs())).0
    }

    /// Sends datagrams over a flow that takes this path, and compares what these agents say: exactly what was sent.
    fn datagrams(&self, from: &Netns, addr: SocketAddr, path: &str, agents: &[&Agent]) {
        for (n, size, pieces) in DATAGRAMS {
            let socket = self.socket(from, addr, path);
            let at = socket.local_addr().unwrap();
            for _ in 0..n {
                from.enter(|| return_connected(&socket, size)).unwrap().unwrap();
            }
            let header = if addr.is_ipv4() { 20 } else { 40 };
            // Each piece has an IP header, and in IPv6 one for fragments.
            let headers = pieces * if addr.is_ipv6() && pieces > 1 { header + 8 } else { header };
            let bytes = (header + 8 + 10) + n * (headers + 8 + size as u64);
            let want = [1 + n * pieces, bytes, 1 + n * pieces, bytes];
            for agent in agents {
                let found = totals(&row(agent, "UDP", at).unwrap());
                let node = &agent.node.name;
                assert_eq!(found, want, "{size} B to {addr} by {path}, at {node}\n{}", self.logs());
            }
        }
    }

    /// Sends bytes there and back over a connection and compares what the agents say while it is open: what was sent, headers, and
    /// little else.
    fn stream(&self, addr: SocketAddr, agents: &[&Agent]) {
        let mut stream = self.client.netns.enter(|| TcpStream::connect(addr)).unwrap().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let write = std::thread::spawn(move || writer.write_all(&vec![7; BYTES]));
        let mut received = vec![0; BYTES];
        stream.read_exact(&mut received).unwrap();
        write.join().unwrap().unwrap();
        let at = stream.local_addr().unwrap();
        for agent in agents {
            let row = row(agent, "TCP", at).unwrap();
            for [packets, bytes] in totals(&row).as_chunks().0 {
                // At most 60 bytes of each header, and what TCP had to send again on a busy machine.
                let most = BYTES as u64 / 4 * 5 + packets * 120;
                assert!(*packets > 10, "{row}");
                assert!((BYTES as u64..=most).contains(bytes), "{row}\n{}", self.logs());
            }
        }
    }

    fn logs(&self) -> String {
        self.stage.logs()
    }
}

/// Row of the flow that this end opened.
fn row(agent: &Agent, protocol: &str, src: SocketAddr) -> anyhow::Result<Value> {
    let text = agent.lbctl(&["ct", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    let mut rows = list["items"].as_array().into_iter().flatten();
    let is_it = |row: &&Value| row["protocol"] == protocol && row["srcAddress"] == *src.to_string();
    rows.find(is_it).cloned().ok_or_else(|| anyhow::anyhow!("no flow from {src}: {text}"))
}

fn totals(row: &Value) -> [u64; 4] {
    ["packets", "bytes", "replyPackets", "replyBytes"]
        .map(|field| row[field].as_u64().unwrap_or_else(|| panic!("no {field}: {row}")))
}

fn counts_are_what_was_sent(prefix: &str, shape: Shape, past: bool) {
    let cast = Cast::new(prefix, shape, if past { "on" } else { "off" }, |_| ());
    let [a, b] = &cast.stage.agents;
    let (near_path, far_path) = if past { ("peer", "hop") } else { ("stack", "stack") };
    let client = &cast.client.netns;
    for addr in Cast::ways_to(&cast.near, NEAR) {
        cast.datagrams(client, addr, near_path, &[a]);
        cast.stream(SocketAddr::new(addr.ip(), addr.port() + 1), &[a]);
    }
    for addr in Cast::ways_to(&cast.far, FAR) {
        // At the server's node, too, where the client did not dial the Service.
        cast.datagrams(client, addr, far_path, &[a, b]);
        cast.stream(SocketAddr::new(addr.ip(), addr.port() + 1), &[a, b]);
    }
    // What a process of the node sends comes in nowhere.
    for addr in Cast::ways_to(&cast.near, NEAR) {
        cast.datagrams(&cast.stage.a.netns, addr, "stack", &[a]);
    }
    if past {
        tc(&cast.stage.a, &format!("qdisc add dev {} root tbf {LIMIT}", cast.near.device));
        for addr in Cast::ways_to(&cast.near, NEAR) {
            cast.datagrams(client, addr, "veth", &[a]);
        }
    }
}

#[test]
fn counts_of_routed_pods_past_the_stack_are_what_was_sent() {
    counts_are_what_was_sent("eaccrp", Shape::Routed, true);
}

#[test]
fn counts_of_routed_pods_are_what_was_sent() {
    counts_are_what_was_sent("eaccrs", Shape::Routed, false);
}

#[test]
fn counts_of_bridged_pods_past_the_stack_are_what_was_sent() {
    counts_are_what_was_sent("eaccbp", Shape::Bridge, true);
}

#[test]
fn counts_of_bridged_pods_are_what_was_sent() {
    counts_are_what_was_sent("eaccbs", Shape::Bridge, false);
}

/// The answers come in with the node's address, and get the Pod's from netfilter.
#[test]
fn answers_to_a_masqueraded_pod_are_counted() {
    const MASQUERADE: &str = "table inet cni {
  chain postrouting {
    type nat hook postrouting priority 100;
    oifname \"eth0\" masquerade
  }
}";
    let prepare = |node: &Node| {
        if node.name == "a" {
            node.netns.nft(MASQUERADE).unwrap();
        }
    };
    let cast = Cast::new("eaccma", Shape::Routed, "off", prepare);
    let [a, _] = &cast.stage.agents;
    for addr in Cast::ways_to(&cast.far, FAR) {
        cast.datagrams(&cast.client.netns, addr, "stack", &[a]);
    }
}

/// Sums of pairs; and when flows are not counted any more, nothing is left of it.
#[test]
fn pairs_have_sums_and_off_leaves_nothing() {
    let mut cast = Cast::new("eaccof", Shape::Routed, "on", |_| ());
    let [addr, ..] = Cast::ways_to(&cast.far, FAR);
    let sockets: Vec<UdpSocket> =
        (0..3).map(|_| cast.socket(&cast.client.netns, addr, "hop")).collect();
    for socket in &sockets {
        cast.client.netns.enter(|| return_connected(socket, 1_000)).unwrap().unwrap();
    }
    let sent = |row: &Value| row["src"]["name"] == "default/client" && row["protocol"] == "UDP";
    let straight = |row: &Value| row["dst"]["name"] == "default/far" && row["via"] == "";
    let list = |cast: &Cast, args: &[&str]| -> Vec<Value> {
        let text = cast.stage.agents[0].lbctl(&[args, &["-o", "json"]].concat()).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["items"].as_array().unwrap().clone()
    };
    let pairs = list(&cast, &["flows", "--by", "pod"]);
    let pair = pairs.iter().find(|row| sent(row) && straight(row)).unwrap();
    let count = pair["count"].as_u64().unwrap();
    // Flows that were opened only to find the path count as well: one short datagram each.
    let (short, long) = (20 + 8 + 10, 20 + 8 + 1_000);
    assert!(count >= 3, "{pair}");
    let (packets, bytes) = (count + 3, count * short + 3 * long);
    assert_eq!(totals(pair), [packets, bytes, packets, bytes]);
    let accounts = |cast: &Cast| list(cast, &["maps"]).into_iter().find(|m| m["map"] == "accounts");
    assert!(accounts(&cast).unwrap()["used"].as_u64().unwrap() >= 6);
    let links = |cast: &Cast| {
        let pins = std::fs::read_dir(&cast.stage.agents[0].pin_dir).unwrap();
        let names = pins.map(|pin| pin.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("a_") || name.starts_with("accounts")).count()
    };
    assert!(links(&cast) > 5);
    let agent = &mut cast.stage.agents[0];
    agent.stop().unwrap();
    // Flows are counted while the agent is away, and what was counted stays.
    cast.client.netns.enter(|| return_connected(&sockets[0], 1_000)).unwrap().unwrap();
    cast.stage.agents[0].start().unwrap();
    let at = sockets[0].local_addr().unwrap();
    let counted = totals(&row(&cast.stage.agents[0], "UDP", at).unwrap());
    assert_eq!(counted, [3, short + 2 * long, 3, short + 2 * long]);
    let agent = &mut cast.stage.agents[0];
    agent.stop().unwrap();
    agent.arguments = ["--past-stack", "on"].map(str::to_owned).to_vec();
    agent.start().unwrap();
    assert_eq!((links(&cast), accounts(&cast)), (0, None));
    let row = row(&cast.stage.agents[0], "UDP", at).unwrap();
    assert_eq!((row.get("packets"), row.get("replyBytes")), (None, None), "{row}");
    // Flows still go past the stack.
    let _: UdpSocket = cast.socket(&cast.client.netns, addr, "hop");
}
