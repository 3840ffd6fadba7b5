//! Flows between Pods of one node past its IP stack and netfilter, with real agents: netfilter sees neither direction of them,
//! policies are enforced as ever, and what is turned off goes through the stack again.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use testbed::{
    Netns, Node, Pod, Shape,
    client::{Connection, Transport, ask, echo},
    manifest::{node_of, pod_of},
    server::Server,
    wait,
};

use crate::cluster_ip::without_bridge_netfilter;
use crate::stage::{ONLY_FRIENDS, SOON, Stage, TRANSPORTS, port_80, service, ways_to};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// No answer within this time is none: answers take far less.
const DENIED: Duration = Duration::from_millis(400);

/// Counts what netfilter sees of forwarded flows, for those who list the rules: a counter with a name would be a reason. Not
/// the higher types of ICMPv6: Pods of a bridge look for each other and leave groups (RFC 4861, RFC 3810) when they like.
pub(crate) const COUNT: &str = "table inet seen {
  chain forward {
    type filter hook forward priority -10; policy accept;
    meta l4proto { tcp, udp, icmp } counter
    icmpv6 type 1-129 counter
  }
}";

/// Adds or removes the rule of a table of its own that marks what the node forwards from one end to the other.
pub(crate) fn marks_forwarded(node: &Node, table: &str, ends: [Ends; 2], there: bool) {
    if !there {
        return node.netns.nft(&format!("delete table inet {table}\n")).unwrap();
    }
    let [from, to] = ends;
    node.netns
        .nft(&format!(
            "table inet {table} {{\n chain forward {{\n type filter hook forward priority 0\n \
             ip saddr {} ip daddr {} meta mark set 7\n \
             ip6 saddr {} ip6 daddr {} meta mark set 7\n }}\n}}\n",
            from.0, to.0, from.1, to.1
        ))
        .unwrap();
}

/// The addresses of a Pod or a node.
pub(crate) type Ends = (Ipv4Addr, Ipv6Addr);

/// Packets that the node has forwarded.
pub(crate) fn forwarded(node: &Node) -> u64 {
    let list = ["list", "chain", "inet", "seen", "forward"];
    let text = node.netns.output(Command::new("nft").args(list)).unwrap();
    let counts: Vec<u64> = text
        .split("packets ")
        .skip(1)
        .map(|rest| rest.split_whitespace().next().and_then(|word| word.parse().ok()))
        .collect::<Option<_>>()
        .unwrap_or_else(|| panic!("{text}"));
    assert_eq!(counts.len(), 2, "{text}");
    counts.iter().sum()
}

/// A server and two clients on one node.
pub(crate) struct Neighbors {
    pub(crate) stage: Stage,
    pub(crate) web: Pod,
    pub(crate) friend: Pod,
    stranger: Pod,
    forwarded_before: Cell<u64>,
}

impl Neighbors {
    /// All flows go past the stack.
    pub(crate) fn new(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) -> Self {
        Self::with(prefix, shape, prepare, &["--past-stack", "on"])
    }

    /// Those go past it that no rule of the node is about: it has the kubelet's, and one that drops invalid packets.
    fn auto(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) -> Self {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/rulesets/kubelet.rules");
        let prepare = |node: &Node| {
            let mut restore = Command::new("iptables-nft-restore");
            node.netns.output(restore.arg(&rules)).unwrap();
            prepare(node);
        };
        Self::with(prefix, shape, prepare, &[])
    }

    fn with(prefix: &str, shape: Shape, prepare: impl Fn(&Node), arguments: &[&str]) -> Self {
        let prepare = |node: &Node| {
            node.netns.nft(COUNT).unwrap();
            prepare(node);
        };
        let mut stage = Stage::with_arguments(prefix, shape, prepare, arguments);
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
        Self { stage, web, friend, stranger, forwarded_before: Cell::new(0) }
    }

    /// The server, straight and through its Service.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        ways_to(&self.web, WEB)
    }

    /// What netfilter sees of a question to each address over both transports.
    fn seen(&self, client: &Netns) -> u64 {
        self.forwarded();
        for addr in self.addresses() {
            for transport in TRANSPORTS {
                self.stage.ask(client, transport, addr);
            }
        }
        self.forwarded()
    }

    /// Packets that the node has forwarded since this was asked last.
    pub(crate) fn forwarded(&self) -> u64 {
        let now = forwarded(&self.stage.a);
        now - self.forwarded_before.replace(now)
    }

    /// Waits until new flows go past the stack, or through it.
    pub(crate) fn wait_until(&self, past: bool) {
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
    assert_eq!(cast.forwarded(), 0, "600 KB there and back");
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
    assert_eq!(cast.forwarded(), 0);
}

/// What a test says of the node's rules.
struct Refusal {
    /// The setting `nf_conntrack_tcp_loose`.
    loose: bool,
    /// Whether connections that are open stay past the stack.
    stay: bool,
}

/// A rule that drops what one Pod sends to another is obeyed by new flows soon, is named, and costs no connection that it is not
/// about.
fn a_rule_is_obeyed(prefix: &str, shape: Shape, Refusal { loose, stay }: Refusal) {
    let cast = Neighbors::auto(prefix, shape, |node| {
        let value = if loose { "1" } else { "0" };
        node.netns.sysctl(&[("net/netfilter/nf_conntrack_tcp_loose", value)]).unwrap();
    });
    cast.wait_until(true);
    assert_path(&cast, "past");
    let open = |addr| cast.friend.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let mut connections: Vec<Connection> = cast.addresses().into_iter().map(open).collect();
    let over = AtomicBool::new(false);
    let (web, stranger) = (cast.web.clone(), cast.stranger.clone());
    let families =
        [("ip", web.v4.into(), stranger.v4.into()), ("ip6", web.v6.into(), stranger.v6.into())];
    let rule = |(word, to, from): (&str, IpAddr, IpAddr)| {
        format!("{word} saddr {from} {word} daddr {to} drop\n")
    };
    let rules: String = families.map(rule).concat();
    let refusing = format!(
        "table inet pairs {{\n chain forward {{\n type filter hook forward priority 0\n {rules} }}\n}}\n"
    );
    let addresses = cast.addresses();
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                connections.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
            }
        });
        cast.stage.a.netns.nft(&refusing).unwrap();
        let since = Instant::now();
        for addr in &addresses {
            wait::until("the stranger is refused", Duration::from_secs(10), || {
                let answer = cast.stranger.netns.enter(|| ask(Transport::Tcp, *addr, DENIED))?;
                anyhow::ensure!(answer.is_err(), "{addr} answers");
                Ok(())
            })
            .unwrap_or_else(|err| panic!("{err:#}\n{}", cast.stage.logs()));
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
        cast.forwarded();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(cast.forwarded() == 0, stay, "connections that were open before");
        over.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });
    assert_path(&cast, "host-rule");
    // The agent writes what lbctl reads in pauses of 50 times what a write takes.
    let patience = Duration::from_secs(20);
    let said = wait::until("lbctl names the rule", patience, || {
        let status = cast.stage.agents[0].lbctl(&["status"])?;
        let line = status.lines().find(|line| line.starts_with("past-stack")).unwrap_or(&status);
        anyhow::ensure!(line.contains("host-rule: inet pairs forward: handle"), "{line}");
        anyhow::ensure!(line.contains("older flows stay past it") == stay, "{line}");
        Ok(())
    });
    said.unwrap_or_else(|err| panic!("{err:#}"));
    cast.stage.a.netns.nft("delete table inet pairs\n").unwrap();
    cast.wait_until(true);
    cast.stage.ask(&cast.stranger.netns, Transport::Tcp, addresses[0]);
}

/// What `lbctl pods -o wide` says of all Pods of the node.
fn assert_path(cast: &Neighbors, want: &str) {
    let said = wait::until("lbctl shows the path", SOON, || {
        let pods = cast.stage.agents[0].lbctl(&["pods", "-o", "wide"])?;
        let rows: Vec<&str> = pods.lines().skip(1).collect();
        anyhow::ensure!(rows.len() == 3 && rows.iter().all(|row| row.ends_with(want)), "{pods}");
        Ok(())
    });
    said.unwrap_or_else(|err| panic!("{err:#}\n{}", cast.stage.logs()));
}

#[test]
fn a_rule_is_obeyed_between_routed_pods_and_open_connections_go_on_through_the_stack() {
    a_rule_is_obeyed("epasta", Shape::Routed, Refusal { loose: true, stay: false });
}

#[test]
fn a_rule_is_obeyed_between_bridged_pods_and_open_connections_go_on_through_the_stack() {
    a_rule_is_obeyed("epastc", Shape::Bridge, Refusal { loose: true, stay: false });
}

/// Netfilter would call them invalid.
#[test]
fn a_rule_is_obeyed_and_open_connections_stay_past_the_stack_where_they_could_not_go_on() {
    a_rule_is_obeyed("epastl", Shape::Routed, Refusal { loose: false, stay: true });
}

/// A running connection goes on through the stack when the way past it is turned off, and stays there.
#[test]
fn a_running_connection_goes_on_when_its_way_is_turned_off() {
    let mut cast = Neighbors::new("epastw", Shape::Routed, |_| ());
    cast.wait_until(true);
    let open = |addr| cast.friend.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let mut connections: Vec<Connection> = cast.addresses().into_iter().map(open).collect();
    connections.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
    assert_eq!(cast.forwarded(), 0);
    let [agent, _] = &mut cast.stage.agents;
    agent.stop().unwrap();
    agent.arguments = ["--past-stack", "off"].map(str::to_owned).into();
    agent.start().unwrap();
    for connection in &mut connections {
        connection.ask().unwrap();
    }
    assert!(cast.forwarded() > 0);
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
    assert_eq!(cast.forwarded(), 0, "{}", cast.stage.logs());
}

/// The annotation sends the flows of a Pod, or those to a Service, through the stack; others stay past it.
#[test]
fn an_annotation_sends_flows_through_the_stack() {
    let cast = Neighbors::auto("epasty", Shape::Routed, |_| ());
    cast.wait_until(true);
    let [straight, .., through] = &cast.addresses()[..] else { panic!("too few addresses") };
    let goes = |client: &Pod, addr: &SocketAddr, past: bool| {
        let told = wait::until("it takes its way", SOON, || {
            cast.forwarded();
            cast.stage.ask(&client.netns, Transport::Tcp, *addr);
            let seen = cast.forwarded();
            anyhow::ensure!((seen == 0) == past, "{addr} from {}: {seen} packets", client.name);
            Ok(())
        });
        told.unwrap_or_else(|err| panic!("{err:#}\n{}", cast.stage.logs()));
    };
    let annotate = |web: &str, friend: &str| {
        let with = |object: testbed::manifest::Object, path: &str| match path {
            "" => object,
            path => object.annotation("lb-agent.io/path", path),
        };
        let objects = [
            with(service("web", WEB), web),
            pod_of(&cast.web).label("app", "web"),
            with(pod_of(&cast.friend).label("friend", "yes"), friend),
            pod_of(&cast.stranger).label("friend", "no"),
        ];
        cast.stage.dir.write("cast", &objects).unwrap();
    };
    annotate("stack", "");
    goes(&cast.friend, through, false);
    goes(&cast.friend, straight, true);
    annotate("", "stack");
    goes(&cast.friend, straight, false);
    goes(&cast.stranger, through, true);
    annotate("", "");
    goes(&cast.friend, through, true);
}

/// What a bridge keeps apart stays apart.
#[test]
fn isolated_ports_of_a_bridge_are_not_joined_past_it() {
    let cast = Neighbors::auto("epastv", Shape::Bridge, |_| ());
    cast.wait_until(true);
    let a = &cast.stage.a.netns;
    let address = cast.addresses()[0];
    let reached = |client: &Pod, want: bool| {
        let told = wait::until("it is reached or not", SOON, || {
            let answer = client.netns.enter(|| ask(Transport::Tcp, address, DENIED))?;
            anyhow::ensure!(answer.is_ok() == want, "{}: {answer:?}", client.name);
            Ok(())
        });
        told.unwrap_or_else(|err| panic!("{err:#}\n{}", cast.stage.logs()));
    };
    let isolate = |state: &str| {
        for pod in [&cast.web, &cast.stranger] {
            a.ip(&format!("link set dev {} type bridge_slave isolated {state}\n", pod.device))
                .unwrap();
        }
    };
    isolate("on");
    reached(&cast.stranger, false);
    reached(&cast.friend, true);
    isolate("off");
    reached(&cast.stranger, true);
    cast.wait_until(true);
}
