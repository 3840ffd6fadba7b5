//! Clients outside whose backend is on another node than the one that they ask: at the backend's node their packets come from that
//! node's address, and go past the IP stack and netfilter as those of its Pods do; with real agents.

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::json;
use testbed::{
    Netns, Node, Pod, Shape,
    client::{Connection, ask, return_datagram},
    manifest::policy,
    server::Server,
    wait,
};

use crate::outside::{ECHO_NODE_PORT, NODE_PORT, addresses, echo_600_kb, remote_backend, seen};
use crate::past::{COUNT, forwarded, marks_forwarded};
use crate::peer::packets;
use crate::stage::{SOON, Stage, TRANSPORTS};
use crate::{cluster_ip, overlay};

/// What Pods begin outside of their network shows their node's address, as most CNI plugins have it.
const MASQUERADE: &str = "table inet cni {
  chain postrouting {
    type nat hook postrouting priority 100;
    ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
    ip6 saddr fd44::/32 ip6 daddr != fd44::/32 masquerade
  }
}";

/// A client outside asks node a for the server on node b.
struct Remote {
    stage: Stage,
    client: Netns,
    web: Pod,
    before: Cell<u64>,
}

impl Remote {
    fn new(prefix: &str, shape: Shape, mode: &str, prepare: impl Fn(&Node)) -> Self {
        let prepare = |node: &Node| {
            node.netns.nft(COUNT).unwrap();
            node.netns.nft(MASQUERADE).unwrap();
            prepare(node);
        };
        let mut stage = Stage::with_arguments(prefix, shape, prepare, &["--past-stack", mode]);
        let (client, web) = remote_backend(&mut stage);
        Self { stage, client, web, before: Cell::default() }
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        addresses(&self.stage.a, NODE_PORT)
    }

    /// What netfilter has forwarded on the server's node since this was asked last.
    fn forwarded(&self) -> u64 {
        let now = forwarded(&self.stage.b);
        now - self.before.replace(now)
    }

    fn open(&self, addr: SocketAddr) -> Connection {
        self.client.enter(|| Connection::open(addr, SOON)).unwrap().unwrap()
    }

    /// Waits until new flows go past the stack of the server's node, or all of their packets through it.
    fn wait_until(&self, past: bool) {
        let told = wait::until("new flows take their way", Duration::from_secs(15), || {
            self.forwarded();
            for addr in self.addresses() {
                for transport in TRANSPORTS {
                    self.client.enter(|| ask(transport, addr, Duration::from_secs(1)))??;
                }
            }
            let seen = self.forwarded();
            // A question and an answer of each datagram, and of each connection four packets each way.
            anyhow::ensure!(if past { seen == 0 } else { seen >= 2 * (2 + 8) }, "{seen} forwarded");
            Ok(())
        });
        told.unwrap_or_else(|err| panic!("past: {past}: {err:#}\n{}", self.stage.logs()));
    }
}

fn netfilter_of_the_server_sees_neither_direction(
    prefix: &str,
    shape: Shape,
    prepare: impl Fn(&Node),
) {
    let cast = Remote::new(prefix, shape, "on", prepare);
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until(true);
    for loose in ["1", "0"] {
        let setting = [("net/netfilter/nf_conntrack_tcp_loose", loose)];
        cast.stage.b.netns.sysctl(&setting).unwrap();
        cast.forwarded();
        let by_hosts_end = || packets(&cast.stage.b.netns, &cast.web.device, "tx");
        let before = by_hosts_end();
        for (addr, node) in cast.addresses().into_iter().zip(addresses(&cast.stage.a, 0)) {
            let mut open = cast.open(addr);
            (0..20).for_each(|_| assert_eq!(open.ask().unwrap(), "web"));
            for transport in TRANSPORTS {
                assert_eq!(seen(&cast.client, transport, addr, &cast.stage), node.ip());
            }
        }
        assert!(by_hosts_end() - before < 20, "packets go to the Pod's end");
        for addr in addresses(&cast.stage.a, ECHO_NODE_PORT) {
            echo_600_kb(&cast.client, addr, &cast.stage);
        }
        for addr in cast.addresses() {
            for n in [100, 4_000] {
                let back = cast.client.enter(|| return_datagram(addr, n, SOON)).unwrap();
                assert!(back.is_ok(), "{n} bytes to {addr}: {back:?}\n{}", cast.stage.logs());
            }
        }
        assert_eq!(cast.forwarded(), 0, "loose: {loose}\n{}", cast.stage.logs());
    }
    let flows = cast.stage.agents[1].metric("lb_slow_path_total{path=\"flow_hop\"}").unwrap();
    assert!(flows > 0.0);
}

#[test]
fn netfilter_sees_no_masqueraded_client_of_a_routed_pod() {
    netfilter_of_the_server_sees_neither_direction("emasqr", Shape::Routed, |_| ());
}

#[test]
fn netfilter_sees_no_masqueraded_client_of_a_bridged_pod() {
    netfilter_of_the_server_sees_neither_direction("emasqb", Shape::Bridge, |_| ());
}

#[test]
fn netfilter_sees_no_masqueraded_client_of_a_bridged_pod_without_bridge_netfilter() {
    let without = cluster_ip::without_bridge_netfilter;
    netfilter_of_the_server_sees_neither_direction("emasqn", Shape::Bridge, without);
}

/// The Pods' devices take more than the overlay: what answers do not fit would go through netfilter, which masquerades them.
#[test]
fn masqueraded_clients_over_an_overlay_are_served_whatever_their_path() {
    let cast = Remote::new("emasqv", Shape::Bridge, "on", |node| overlay::connect(node, 1_450));
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    for addr in addresses(&cast.stage.a, ECHO_NODE_PORT) {
        echo_600_kb(&cast.client, addr, &cast.stage);
    }
    for addr in cast.addresses() {
        assert_eq!(cast.open(addr).ask().unwrap(), "web");
    }
}

fn a_rule(cast: &Remote, there: bool) {
    let (a, web) = (&cast.stage.a, &cast.web);
    marks_forwarded(&cast.stage.b, "nodes", [(a.v4, a.v6), (web.v4, web.v6)], there);
}

/// Open connections go on, whichever end speaks first after the change: netfilter masquerades none of their answers.
#[test]
fn a_rule_about_a_node_is_obeyed_and_costs_no_open_connection() {
    let cast = Remote::new("emasqf", Shape::Routed, "auto", |_| ());
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until(true);
    let mut open: Vec<Connection> = cast.addresses().into_iter().map(|to| cast.open(to)).collect();
    let bulk = AtomicBool::new(true);
    thread::scope(|scope| {
        let echoing = scope.spawn(|| {
            while bulk.load(Ordering::Relaxed) {
                for addr in addresses(&cast.stage.a, ECHO_NODE_PORT) {
                    echo_600_kb(&cast.client, addr, &cast.stage);
                }
            }
        });
        for there in [true, false] {
            a_rule(&cast, there);
            let told = wait::until("the agent has read the rule", Duration::from_secs(15), || {
                let status = cast.stage.agents[1].lbctl(&["status"])?;
                anyhow::ensure!(status.contains("inet nodes forward") == there, "{status}");
                Ok(())
            });
            told.unwrap_or_else(|err| panic!("{err:#}\n{}", cast.stage.logs()));
            for connection in &mut open {
                assert_eq!(connection.ask().unwrap(), "web");
            }
        }
        bulk.store(false, Ordering::Relaxed);
        echoing.join().unwrap();
    });
    cast.wait_until(true);
    a_rule(&cast, true);
    cast.wait_until(false);
}

/// The node is the peer that policies see.
#[test]
fn policies_judge_the_node_that_masquerades() {
    let cast = Remote::new("emasqp", Shape::Routed, "on", |_| ());
    cast.wait_until(true);
    let allow = |from: &Node| {
        let block = |cidr: String| json!({"ipBlock": {"cidr": cidr}});
        let from = [block(format!("{}/32", from.v4)), block(format!("{}/128", from.v6))];
        let selector = json!({"matchLabels": {"app": "web"}});
        policy("nodes", json!({"podSelector": selector, "ingress": [{"from": from}]}))
    };
    for (from, allowed) in [(&cast.stage.b, false), (&cast.stage.a, true)] {
        cast.stage.dir.write("policy", &[allow(from)]).unwrap();
        let told = wait::until("the policy is enforced", SOON, || {
            for addr in cast.addresses() {
                for transport in TRANSPORTS {
                    let told =
                        cast.client.enter(|| ask(transport, addr, Duration::from_millis(400)))?;
                    anyhow::ensure!(told.is_ok() == allowed, "{addr}: {told:?}");
                }
            }
            Ok(())
        });
        told.unwrap_or_else(|err| panic!("allowed: {allowed}: {err:#}\n{}", cast.stage.logs()));
        assert_eq!(cast.forwarded(), 0, "allowed: {allowed}");
    }
}
