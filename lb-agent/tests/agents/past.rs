//! Flows between Pods of one node past its IP stack and netfilter, with real agents: netfilter sees neither direction of them,
//! policies are enforced as ever, and what is turned off goes through the stack again.

use std::{
    net::SocketAddr,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use testbed::{
    Netns, Node, Pod, Shape,
    client::{Connection, Transport, ask, echo},
    manifest::{node_of, pod_of},
    server::Server,
    wait,
};

use crate::cluster_ip::without_bridge_netfilter;
use crate::stage::{SOON, Stage, TRANSPORTS, port_80, service, ways_to};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// No answer within this time is none: answers take far less.
const DENIED: Duration = Duration::from_millis(400);

/// Counts what netfilter sees of forwarded flows.
const COUNT: &str = "table inet seen {
  counter forwarded {}
  chain forward {
    type filter hook forward priority -10; policy accept;
    meta l4proto { tcp, udp } counter name forwarded
  }
}";

const ONLY_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-friends, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {friend: \"yes\"}}}]
";

/// Packets that the node has forwarded since this was asked last.
fn forwarded(node: &Node) -> u64 {
    let text = node
        .netns
        .output(Command::new("nft").args(["reset", "counter", "inet", "seen", "forwarded"]))
        .unwrap();
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

/// A server and two clients on one node.
struct Neighbors {
    stage: Stage,
    web: Pod,
    friend: Pod,
    stranger: Pod,
}

impl Neighbors {
    fn new(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) -> Self {
        let prepare = |node: &Node| {
            node.netns.nft(COUNT).unwrap();
            prepare(node);
        };
        let mut stage = Stage::with_arguments(prefix, shape, prepare, &["--past-stack", "on"]);
        let a = stage.a.clone();
        let web = stage.server(&a, "web");
        let [friend, stranger] = ["friend", "stranger"].map(|name| a.pod(name).unwrap());
        stage.dir.write("nodes", &[&stage.a, &stage.b].map(node_of)).unwrap();
        let objects = [
            service("web", WEB),
            pod_of(&web).label("app", "web"),
            pod_of(&friend).label("friend", "yes"),
            pod_of(&stranger).label("friend", "no"),
        ];
        stage.dir.write("cast", &objects).unwrap();
        for client in [&friend, &stranger] {
            for ip in WEB {
                stage.wait_for(&client.netns, port_80(ip), &["web"]);
            }
        }
        Self { stage, web, friend, stranger }
    }

    /// The server, straight and through its Service.
    fn addresses(&self) -> Vec<SocketAddr> {
        ways_to(&self.web, WEB)
    }

    /// What netfilter sees of a question to each address over both transports.
    fn seen(&self, client: &Netns) -> u64 {
        forwarded(&self.stage.a);
        for addr in self.addresses() {
            for transport in TRANSPORTS {
                self.stage.ask(client, transport, addr);
            }
        }
        forwarded(&self.stage.a)
    }

    /// Waits until new flows go past the stack, or through it.
    fn wait_until(&self, past: bool) {
        let told = wait::until("all flows take one way", SOON, || {
            let seen = self.seen(&self.friend.netns);
            anyhow::ensure!((seen == 0) == past, "{seen} packets forwarded");
            Ok(())
        });
        if let Err(err) = told {
            panic!("{err:#}\n{}", self.stage.logs());
        }
    }
}

fn netfilter_sees_neither_direction(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) {
    let cast = Neighbors::new(prefix, shape, prepare);
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until(true);
    for addr in cast.addresses() {
        let addr = SocketAddr::new(addr.ip(), if addr.port() == 80 { 81 } else { 8081 });
        let echoed = cast.friend.netns.enter(|| echo(addr, 600_000, SOON)).unwrap();
        assert!(echoed.is_ok(), "600 KB to {addr}: {echoed:?}\n{}", cast.stage.logs());
    }
    assert_eq!(forwarded(&cast.stage.a), 0, "600 KB there and back");
}

#[test]
fn netfilter_sees_neither_direction_between_routed_pods() {
    netfilter_sees_neither_direction("epastr", Shape::Routed, |_| ());
}

#[test]
fn netfilter_sees_neither_direction_between_bridged_pods() {
    netfilter_sees_neither_direction("epastb", Shape::Bridge, |_| ());
}

#[test]
fn netfilter_sees_neither_direction_between_bridged_pods_without_bridge_netfilter() {
    netfilter_sees_neither_direction("epastn", Shape::Bridge, without_bridge_netfilter);
}

#[test]
fn policies_of_the_receiver_hold_past_the_stack() {
    let cast = Neighbors::new("epastp", Shape::Routed, |_| ());
    cast.wait_until(true);
    let mut open: Vec<(bool, Connection)> = Vec::new();
    for (client, is_friend) in [(&cast.friend, true), (&cast.stranger, false)] {
        for addr in cast.addresses() {
            let connection = client.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
            open.push((is_friend, connection));
        }
    }
    cast.stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    for (client, is_friend) in [(&cast.friend, true), (&cast.stranger, false)] {
        for addr in cast.addresses() {
            for transport in TRANSPORTS {
                let told = wait::until("friends only", SOON, || {
                    let answer = client.netns.enter(|| ask(transport, addr, DENIED))?;
                    anyhow::ensure!(answer.is_ok() == is_friend, "{answer:?}");
                    Ok(())
                });
                if let Err(err) = told {
                    panic!("{}: {addr}: {err:#}\n{}", client.name, cast.stage.logs());
                }
            }
        }
    }
    for (is_friend, mut connection) in open {
        connection.set_timeout(if is_friend { SOON } else { DENIED }).unwrap();
        assert_eq!(connection.ask().is_ok(), is_friend, "a connection that was open before");
    }
    assert_eq!(forwarded(&cast.stage.a), 0);
}

/// A running connection goes on through the stack when the way past it is turned off, and stays there.
#[test]
fn a_running_connection_goes_on_when_its_way_is_turned_off() {
    let mut cast = Neighbors::new("epastw", Shape::Routed, |_| ());
    cast.wait_until(true);
    let open = |addr| cast.friend.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let mut connections: Vec<Connection> = cast.addresses().into_iter().map(open).collect();
    connections.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
    assert_eq!(forwarded(&cast.stage.a), 0);
    let [agent, _] = &mut cast.stage.agents;
    agent.stop().unwrap();
    agent.arguments = ["--past-stack", "off"].map(str::to_owned).into();
    agent.start().unwrap();
    for connection in &mut connections {
        connection.ask().unwrap();
    }
    assert!(forwarded(&cast.stage.a) > 0);
    cast.wait_until(false);
    let straight = cast.addresses()[0];
    cast.stage.ask(&cast.friend.netns, Transport::Tcp, straight);
}

/// What an agent finds out again when it starts is what the one before it has found: no flow loses its way meanwhile.
#[test]
fn a_running_connection_keeps_its_way_when_the_agent_restarts() {
    let mut cast = Neighbors::new("epastk", Shape::Routed, |_| ());
    cast.wait_until(true);
    let open = |addr| cast.friend.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let mut connections: Vec<Connection> = cast.addresses().into_iter().map(open).collect();
    let over = AtomicBool::new(false);
    let [agent, _] = &mut cast.stage.agents;
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                connections.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
            }
        });
        agent.stop().unwrap();
        agent.start().unwrap();
        thread::sleep(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });
    assert_eq!(forwarded(&cast.stage.a), 0, "{}", cast.stage.logs());
}
