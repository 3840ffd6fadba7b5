//! A ClusterIP reaches its backends: from Pods and hosts, on both nodes, both transports, both families.

use std::{net::SocketAddr, time::Duration};

use testbed::{
    Netns, Node, Shape,
    client::{Transport, echo},
    load::Load,
    server::Server,
};

use crate::stage::{SOON, Stage, TRANSPORTS, port_80};

const NEAR: [&str; 2] = ["10.96.0.10", "fd96::10"];
const FAR: [&str; 2] = ["10.96.0.11", "fd96::11"];
const BOTH: [&str; 2] = ["10.96.0.12", "fd96::12"];

#[test]
fn routed_pods_and_hosts_reach_every_cluster_ip() {
    reach_every_cluster_ip(Stage::new("erouted", Shape::Routed));
}

#[test]
fn bridged_pods_and_hosts_reach_every_cluster_ip() {
    reach_every_cluster_ip(Stage::new("ebridged", Shape::Bridge));
}

/// Without bridge-nf, netfilter does not see what the bridge forwards from a backend to a client behind it: so it must
/// not see the other direction either.
#[test]
fn bridged_pods_without_bridge_netfilter_reach_every_cluster_ip() {
    reach_every_cluster_ip(Stage::prepared("ebrnonf", Shape::Bridge, without_bridge_netfilter));
}

pub(crate) fn without_bridge_netfilter(node: &Node) {
    if std::path::Path::new("/proc/sys/net/bridge").exists() {
        let settings =
            ["iptables", "ip6tables"].map(|name| format!("net/bridge/bridge-nf-call-{name}"));
        for setting in &settings {
            node.netns.sysctl(&[(setting, "0")]).unwrap();
        }
    }
}

fn reach_every_cluster_ip(mut stage: Stage) {
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let (near, far) = (stage.server(&a, "near"), stage.server(&b, "far"));
    let (one, two) = (stage.server(&a, "one"), stage.server(&b, "two"));
    let clients = stage.clients();
    let _echo = [&near, &far].map(|pod| Server::bytes(&pod.netns, 8081).unwrap());
    stage.announce("near", NEAR, &[&near]);
    stage.announce("far", FAR, &[&far]);
    stage.announce("both", BOTH, &[&one, &two]);

    let netns = [&clients[0].netns, &clients[1].netns, &a.netns, &b.netns];
    for client in netns {
        for (ips, names) in [(NEAR, &["near"][..]), (FAR, &["far"]), (BOTH, &["one", "two"])] {
            for ip in ips {
                stage.wait_for(client, port_80(ip), names);
                for transport in TRANSPORTS {
                    let name = stage.ask(client, transport, port_80(ip));
                    assert!(names.contains(&name.as_str()), "{ip} answered by {name}");
                }
            }
        }
    }
    for client in netns {
        for ip in [NEAR, FAR].as_flattened() {
            echo_600_kb(client, SocketAddr::new(ip.parse().unwrap(), 81));
        }
    }
}

/// Enough bytes for several windows and segments of 64 KB: checksums and sequence numbers must survive.
fn echo_600_kb(client: &Netns, addr: SocketAddr) {
    let echoed = client.enter(|| echo(addr, 600_000, SOON)).unwrap();
    assert!(echoed.is_ok(), "600 KB to {addr} from {client}: {echoed:?}");
}

/// New connections spread over the backends: with 400 over two, fewer than 140 for one would be 6 sigma off.
#[test]
fn connections_spread_over_the_backends() {
    let mut stage = Stage::new("espread", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let pods = [stage.server(&a, "one"), stage.server(&b, "two")];
    let [client, _] = stage.clients();
    stage.announce("web", BOTH, &[&pods[0], &pods[1]]);
    for netns in [&client.netns, &a.netns] {
        for ip in BOTH {
            stage.wait_for(netns, port_80(ip), &["one", "two"]);
            for transport in TRANSPORTS {
                spread(netns, transport, port_80(ip));
            }
        }
    }
}

fn spread(netns: &Netns, transport: Transport, addr: SocketAddr) {
    let load =
        Load { rate: 800, duration: Duration::from_millis(500), ..Load::new(transport, addr) };
    let report = load.start(netns).unwrap().wait().unwrap();
    assert_eq!(report.failed, 0, "{transport:?} {addr} from {netns}: {report:?}");
    let least = report.requests * 35 / 100;
    for name in ["one", "two"] {
        let answers = report.by_backend.get(name).copied().unwrap_or(0);
        assert!(answers > least, "{transport:?} {addr} from {netns}: {report:?}");
    }
}

/// A Pod that dials its own Service may be its own backend.
#[test]
fn routed_pod_reaches_itself_through_its_service() {
    reach_itself(Stage::new("ehairr", Shape::Routed));
}

/// Like the routed Pod; the bridge port has no hairpin mode.
#[test]
fn bridged_pod_reaches_itself_through_its_service() {
    reach_itself(Stage::new("ehairb", Shape::Bridge));
}

fn reach_itself(mut stage: Stage) {
    let node = stage.a.clone();
    let alone = stage.server(&node, "near");
    let _echo = Server::bytes(&alone.netns, 8081).unwrap();
    stage.announce("near", NEAR, &[&alone]);
    for ip in NEAR {
        stage.wait_for(&alone.netns, port_80(ip), &["near"]);
        echo_600_kb(&alone.netns, SocketAddr::new(ip.parse().unwrap(), 81));
    }
}
