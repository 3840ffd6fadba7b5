//! Flows between Pods of different nodes past the nodes' IP stacks and netfilter, with real agents: netfilter sees neither
//! direction of them on any node, whatever connects the nodes; each node decides by itself; routes and MTUs are obeyed.

use std::{
    cell::Cell,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use testbed::{
    Node, Pod, Shape,
    client::{Connection, Transport, ask, echo, return_datagram},
    manifest::{node_of, pod_of},
    server::Server,
    wait,
};

use crate::cluster_ip::without_bridge_netfilter;
use crate::overlay;
use crate::past::{COUNT, forwarded, marks_forwarded};
use crate::stage::{SOON, Stage, TRANSPORTS, port_80, service, ways_to};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// Datagrams of one piece and of several.
const SIZES: [usize; 2] = [100, 4_000];

/// A server on one node and its client on the other.
pub(crate) struct Far {
    pub(crate) stage: Stage,
    pub(crate) web: Pod,
    pub(crate) client: Pod,
    forwarded_before: Cell<[u64; 2]>,
}

impl Far {
    /// All flows go past the stacks.
    pub(crate) fn new(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) -> Self {
        Self::with(prefix, shape, prepare, &["--past-stack", "on"])
    }

    pub(crate) fn with(
        prefix: &str,
        shape: Shape,
        prepare: impl Fn(&Node),
        arguments: &[&str],
    ) -> Self {
        let prepare = |node: &Node| {
            node.netns.nft(COUNT).unwrap();
            prepare(node);
        };
        let mut stage = Stage::with_arguments(prefix, shape, prepare, arguments);
        let (a, b) = (stage.a.clone(), stage.b.clone());
        let web = stage.server(&b, "web");
        let client = a.pod("client").unwrap();
        stage.dir.write("nodes", &[&stage.a, &stage.b].map(node_of)).unwrap();
        let objects = [service("web", WEB), pod_of(&web).label("app", "web"), pod_of(&client)];
        stage.dir.write("cast", &objects).unwrap();
        for ip in WEB {
            stage.wait_for(&client.netns, port_80(ip), &["web"]);
        }
        Self { stage, web, client, forwarded_before: Cell::default() }
    }

    /// The server, straight and through its Service.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        ways_to(&self.web, WEB)
    }

    /// What netfilter has forwarded on both nodes since this was asked last.
    pub(crate) fn forwarded(&self) -> [u64; 2] {
        let now = [forwarded(&self.stage.a), forwarded(&self.stage.b)];
        let before = self.forwarded_before.replace(now);
        [now[0] - before[0], now[1] - before[1]]
    }

    /// Waits until new flows go past the stacks of the nodes for which that is said.
    pub(crate) fn wait_until(&self, past: [bool; 2]) {
        let told = wait::until("new flows take their way", SOON, || {
            self.forwarded();
            for addr in self.addresses() {
                for transport in TRANSPORTS {
                    self.client.netns.enter(|| ask(transport, addr, Duration::from_secs(1)))??;
                }
            }
            let seen = self.forwarded();
            anyhow::ensure!(seen.map(|n| n == 0) == past, "{seen:?} packets forwarded");
            Ok(())
        });
        if let Err(err) = told {
            panic!("{err:#}\n{}", self.stage.logs());
        }
    }

    /// Waits until new flows take this path at the client's node. What has no notice is read every eight seconds.
    fn wait_for_path(&self, wanted: &str) {
        let told = wait::until("new flows take the path", Duration::from_secs(11), || {
            let paths = self.new_paths()?;
            anyhow::ensure!(paths.iter().all(|path| path == wanted), "{paths:?}");
            Ok(())
        });
        told.unwrap_or_else(|err| panic!("{wanted}: {err:#}\n{}", self.stage.logs()));
    }

    /// Which paths new flows to each address take there.
    fn new_paths(&self) -> anyhow::Result<Vec<String>> {
        let mut paths = Vec::new();
        for addr in self.addresses() {
            let before = self.hops()?;
            self.client.netns.enter(|| ask(Transport::Tcp, addr, Duration::from_secs(1)))??;
            let path = if self.hops()? > before { "hop" } else { "stack" };
            paths.push(path.to_owned());
        }
        Ok(paths)
    }

    /// Flows that went past the stack of the client's node from their beginning.
    fn hops(&self) -> anyhow::Result<f64> {
        self.stage.agents[0].metric("lb_slow_path_total{path=\"flow_hop\"}")
    }

    pub(crate) fn open(&self, addr: SocketAddr) -> Connection {
        self.client.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap()
    }

    /// 600 KB there and back over each address.
    fn echo(&self) {
        for addr in self.addresses() {
            let addr = SocketAddr::new(addr.ip(), if addr.port() == 80 { 81 } else { 8081 });
            let echoed = self.client.netns.enter(|| echo(addr, 600_000, SOON)).unwrap();
            assert!(echoed.is_ok(), "600 KB to {addr}: {echoed:?}\n{}", self.stage.logs());
        }
    }

    /// Over IPv6 the first one that is too big for the way is lost, and its sender learns why.
    fn datagrams(&self) {
        const EMSGSIZE: i32 = 90;
        for addr in self.addresses() {
            for n in SIZES {
                let send = || self.client.netns.enter(|| return_datagram(addr, n, SOON)).unwrap();
                let told = match send() {
                    Err(err) if addr.is_ipv6() && err.raw_os_error() == Some(EMSGSIZE) => send(),
                    told => told,
                };
                assert!(told.is_ok(), "{n} bytes to {addr}: {told:?}\n{}", self.stage.logs());
            }
        }
    }

    /// A port without a server is refused at once: the Pod's error comes back.
    fn refused(&self) {
        for ip in self.web.addresses() {
            let addr = SocketAddr::new(ip, 9);
            for transport in TRANSPORTS {
                let told = self.client.netns.enter(|| ask(transport, addr, SOON)).unwrap();
                let kind = told.as_ref().err().map(std::io::Error::kind);
                assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{addr}: {told:?}");
            }
        }
    }

    fn ping(&self) {
        for ip in self.web.addresses() {
            let mut ping = Command::new("ping");
            ping.args(["-c", "2", "-i", "0.1", "-W", "2", &ip.to_string()]);
            self.client.netns.output(&mut ping).unwrap();
        }
    }
}

fn netfilter_sees_neither_direction(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) {
    let cast = Far::new(prefix, shape, prepare);
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until([true, true]);
    for loose in ["1", "0"] {
        for node in [&cast.stage.a, &cast.stage.b] {
            let setting = [("net/netfilter/nf_conntrack_tcp_loose", loose)];
            node.netns.sysctl(&setting).unwrap();
        }
        cast.echo();
        cast.datagrams();
        cast.refused();
        cast.ping();
        assert_eq!(cast.forwarded(), [0, 0], "loose: {loose}\n{}", cast.stage.logs());
    }
    let ct = cast.stage.agents[0].lbctl(&["ct"]).unwrap();
    let paths: Vec<&str> = ct.lines().filter(|line| line.contains(" hop ")).collect();
    assert!(!paths.is_empty(), "{ct}");
    for agent in &cast.stage.agents {
        assert!(agent.metric("lb_slow_path_total{path=\"flow_hop\"}").unwrap() > 0.0);
    }
}

#[test]
fn netfilter_sees_neither_direction_between_routed_pods() {
    netfilter_sees_neither_direction("ehopr", Shape::Routed, |_| ());
}

#[test]
fn netfilter_sees_neither_direction_between_bridged_pods() {
    netfilter_sees_neither_direction("ehopb", Shape::Bridge, |_| ());
}

#[test]
fn netfilter_sees_neither_direction_between_bridged_pods_without_bridge_netfilter() {
    netfilter_sees_neither_direction("ehopn", Shape::Bridge, without_bridge_netfilter);
}

/// The Pods' devices take more than the overlay: their flows go by it anyway, and their senders learn what fits.
#[test]
fn netfilter_sees_neither_direction_over_an_overlay() {
    let cast = Far::new("ehopv", Shape::Bridge, |node| overlay::connect(node, 1_450));
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until([true, true]);
    cast.ping();
    cast.refused();
    assert_eq!(cast.forwarded(), [0, 0], "{}", cast.stage.logs());
    cast.echo();
    cast.datagrams();
}

#[test]
fn senders_learn_what_fits_the_way_between_the_nodes() {
    let narrow = |node: &Node| node.netns.ip("link set eth0 mtu 1400\n").unwrap();
    let cast = Far::new("ehopm", Shape::Routed, narrow);
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until([true, true]);
    for node in [&cast.stage.a, &cast.stage.b] {
        let setting = [("net/netfilter/nf_conntrack_tcp_loose", "0")];
        node.netns.sysctl(&setting).unwrap();
    }
    cast.echo();
    assert_eq!(cast.forwarded(), [0, 0], "the stack tells the sender, and forwards nothing");
    cast.datagrams();
}

/// One of the nodes runs without; the other goes past its own stack alone.
#[test]
fn each_node_decides_by_itself() {
    let mut cast = Far::new("ehopx", Shape::Routed, |_| ());
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until([true, true]);
    let mut open: Vec<Connection> = cast.addresses().into_iter().map(|to| cast.open(to)).collect();
    for off in [1, 0] {
        for (number, agent) in cast.stage.agents.iter_mut().enumerate() {
            let mode = if number == off { "off" } else { "on" };
            agent.stop().unwrap();
            agent.arguments = ["--past-stack", mode].map(str::to_owned).into();
            agent.start().unwrap();
        }
        cast.wait_until([off != 0, off != 1]);
        for connection in &mut open {
            connection.ask().unwrap();
        }
        cast.echo();
        cast.datagrams();
        cast.refused();
    }
}

/// A running connection follows its route within two seconds, while no agent runs on any node.
#[test]
fn a_changed_route_is_obeyed_while_no_agent_runs() {
    let mut cast = Far::new("ehopw", Shape::Routed, |_| ());
    let (a, b) = (cast.stage.a.clone(), cast.stage.b.clone());
    a.netns.ip(&format!("link add second type veth peer name second netns {}\n", b.netns)).unwrap();
    for (node, me) in [(&a, 1), (&b, 2)] {
        node.netns
            .ip(&format!(
                "addr add 172.30.0.{me}/24 dev second\n\
                 addr add fd30::{me}/64 dev second nodad\n\
                 link set second up\n"
            ))
            .unwrap();
    }
    cast.wait_until([true, true]);
    wait::until("both devices are attached", Duration::from_secs(20), || {
        for agent in &cast.stage.agents {
            let status = agent.lbctl(&["status"])?;
            anyhow::ensure!(status.contains("2 of 2 other devices"), "{status}");
        }
        Ok(())
    })
    .unwrap_or_else(|err| panic!("{err:#}"));
    let mut open: Vec<Connection> = cast.addresses().into_iter().map(|to| cast.open(to)).collect();
    open.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
    cast.stage.agents.iter_mut().for_each(|agent| agent.stop().unwrap());
    let sent = || -> u64 {
        let mut show = Command::new("ip");
        let text = a.netns.output(show.args(["-s", "-j", "link", "show", "second"])).unwrap();
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    for (node, other) in [(&a, 2), (&b, 1)] {
        node.netns
            .ip(&format!(
                "route replace 10.244.{other}.0/24 via 172.30.0.{other}\n\
                 route replace fd44:0:0:{other}::/64 via fd30::{other}\n"
            ))
            .unwrap();
    }
    let moved = Instant::now();
    let before = sent();
    let mut by_second = 0;
    while moved.elapsed() < Duration::from_secs(2) {
        for connection in &mut open {
            connection.set_timeout(SOON).unwrap();
            connection.ask().unwrap();
        }
        by_second = sent() - before;
        thread::sleep(Duration::from_millis(50));
    }
    assert!(by_second > 0, "nothing left by the new device");
    // The old way is not needed any more.
    for node in [&a, &b] {
        node.netns.ip("link set eth0 down\n").unwrap();
    }
    for connection in &mut open {
        connection.ask().unwrap();
    }
    let straight: IpAddr = cast.web.addresses()[0];
    let told =
        cast.client.netns.enter(|| ask(Transport::Tcp, SocketAddr::new(straight, 8080), SOON));
    told.unwrap().unwrap();
}

/// What a node does to packets to Pods of other nodes takes effect on new flows within ten seconds, is named, and costs no open
/// connection; flows within the node stay past its stack.
fn what_the_node_does_is_obeyed(
    prefix: &str,
    shape: Shape,
    what: impl Fn(&Far, bool),
    (said, loose): (&str, bool),
) {
    let prepare = |node: &Node| {
        let value = if loose { "1" } else { "0" };
        node.netns.sysctl(&[("net/netfilter/nf_conntrack_tcp_loose", value)]).unwrap();
    };
    let cast = Far::with(prefix, shape, prepare, &[]);
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until([true, true]);
    let mut open: Vec<Connection> = cast.addresses().into_iter().map(|to| cast.open(to)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                open.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
                thread::sleep(Duration::from_millis(5));
            }
        });
        what(&cast, true);
        let since = Instant::now();
        cast.wait_for_path("stack");
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
        thread::sleep(Duration::from_millis(1_500));
        cast.forwarded();
        thread::sleep(Duration::from_millis(300));
        let [of_client, of_server] = cast.forwarded();
        assert_eq!(of_client == 0, !loose, "connections that were open before");
        assert_eq!(of_server, 0, "the other node decides by itself");
        over.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });
    // The agent writes what lbctl reads in pauses of 50 times what a write takes.
    let patience = Duration::from_secs(20);
    let told = wait::until("lbctl names the reason", patience, || {
        let status = cast.stage.agents[0].lbctl(&["status"])?;
        let line = status.lines().find(|line| line.starts_with("past-stack")).unwrap_or(&status);
        anyhow::ensure!(line.contains("Pods of this node go past its IP stack"), "{line}");
        anyhow::ensure!(
            line.contains(&format!("those to other nodes through it: {said}")),
            "{line}"
        );
        Ok(())
    });
    told.unwrap_or_else(|err| panic!("{err:#}"));
    what(&cast, false);
    cast.wait_for_path("hop");
    cast.wait_until([true, true]);
}

fn a_rule(cast: &Far, there: bool) {
    let ends = [&cast.client, &cast.web].map(|pod| (pod.v4, pod.v6));
    marks_forwarded(&cast.stage.a, "pairs", ends, there);
}

#[test]
fn a_rule_about_other_nodes_is_obeyed_between_routed_pods() {
    let said = ("host-rule: inet pairs forward: handle", true);
    what_the_node_does_is_obeyed("ehopra", Shape::Routed, a_rule, said);
}

#[test]
fn a_rule_about_other_nodes_is_obeyed_between_bridged_pods_and_open_connections_stay() {
    let said = ("host-rule: inet pairs forward: handle", false);
    what_the_node_does_is_obeyed("ehoprc", Shape::Bridge, a_rule, said);
}

#[test]
fn a_routing_rule_about_pods_is_obeyed() {
    let rule = |cast: &Far, there: bool| {
        let word = if there { "add" } else { "del" };
        let rule = format!("rule {word} priority 100 from {} lookup 77\n", cast.client.v4);
        cast.stage.a.netns.ip(&rule).unwrap();
    };
    let said = ("policy-routing: ip rule 100", true);
    what_the_node_does_is_obeyed("ehoprd", Shape::Routed, rule, said);
}

/// Whatever the policies of IPsec select: packets past the stack would not be encrypted.
#[test]
fn a_policy_of_ipsec_is_obeyed() {
    let policy = |cast: &Far, there: bool| {
        let ends = "src 192.168.1.0/24 dst 192.168.2.0/24 dir out";
        let template = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel";
        let words = if there {
            format!("policy add {ends} {template}")
        } else {
            format!("policy delete {ends}")
        };
        let mut ip = Command::new("ip");
        cast.stage.a.netns.output(ip.arg("xfrm").args(words.split(' '))).unwrap();
    };
    what_the_node_does_is_obeyed("ehopri", Shape::Routed, policy, ("xfrm", true));
}
