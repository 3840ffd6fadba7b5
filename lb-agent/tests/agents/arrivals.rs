//! Flows between Pods of different nodes that go from the device that they come in by to the Pod's end of its veth, with real
//! agents: only while nothing at the host's end needs to see them.

use std::{net::SocketAddr, time::Instant};

use testbed::{Node, Pod, Shape, client::echo, server::Server, wait};

use crate::hop::Far;
use crate::overlay;
use crate::peer::{BYTES, LIMIT, LIMITED, packets, tc};
use crate::stage::SOON;

/// Packets that pass the host's end of the veth of a Pod on its way to it.
fn by_hosts_end(node: &Node, pod: &Pod) -> u64 {
    packets(&node.netns, &pod.device, "tx")
}

fn nothing_passes_the_hosts_end(prefix: &str, shape: Shape, prepare: impl Fn(&Node)) {
    let cast = Far::new(prefix, shape, prepare);
    cast.wait_until([true, true]);
    let (a, b) = (&cast.stage.a, &cast.stage.b);
    let sent = || [by_hosts_end(a, &cast.client), by_hosts_end(b, &cast.web)];
    let received = || [&cast.client, &cast.web].map(|pod| packets(&pod.netns, "eth0", "rx"));
    let (sent_before, received_before) = (sent(), received());
    for addr in cast.addresses() {
        let mut open = cast.open(addr);
        (0..50).for_each(|_| assert_eq!(open.ask().unwrap(), "web"));
    }
    for (of, (now, before)) in received().into_iter().zip(received_before).enumerate() {
        assert!(now - before >= 200, "Pod {of} counts what it receives: {}", now - before);
    }
    for (of, (now, before)) in sent().into_iter().zip(sent_before).enumerate() {
        // Neighbor discovery between the Pod and its node is all that may be left.
        assert!(now - before < 20, "Pod {of}: {} packets by the host's end", now - before);
    }
    assert_eq!(cast.forwarded(), [0, 0]);
}

#[test]
fn packets_of_other_nodes_do_not_pass_the_hosts_end_of_a_routed_pod() {
    nothing_passes_the_hosts_end("einr", Shape::Routed, |_| ());
}

#[test]
fn packets_of_other_nodes_do_not_pass_the_hosts_end_of_a_bridged_pod() {
    nothing_passes_the_hosts_end("einb", Shape::Bridge, |_| ());
}

#[test]
fn packets_of_an_overlay_do_not_pass_the_hosts_end() {
    nothing_passes_the_hosts_end("einv", Shape::Bridge, |node| overlay::connect(node, 1_450));
}

/// As the bandwidth plugin limits what a Pod receives, but while its flows are open: they keep their way past the IP stack.
#[test]
fn a_bandwidth_limit_of_the_receiver_is_obeyed_by_flows_of_other_nodes() {
    let cast = Far::new("einl", Shape::Routed, |_| ());
    let _echo = Server::bytes(&cast.web.netns, 8081).unwrap();
    cast.wait_until([true, true]);
    let mut open: Vec<_> = cast.addresses().into_iter().map(|addr| cast.open(addr)).collect();
    let mut wait_until = |passes: bool| {
        let told = wait::until("the device has its say", SOON, || {
            let before = by_hosts_end(&cast.stage.b, &cast.web);
            for connection in &mut open {
                for _ in 0..20 {
                    anyhow::ensure!(connection.ask()? == "web");
                }
            }
            let packets = by_hosts_end(&cast.stage.b, &cast.web) - before;
            anyhow::ensure!((packets >= 20) == passes, "{packets} packets");
            Ok(())
        });
        told.unwrap_or_else(|err| panic!("{err:#}\n{}", cast.stage.logs()));
    };
    let transfer = |addr: SocketAddr| {
        let addr = SocketAddr::new(addr.ip(), if addr.port() == 80 { 81 } else { 8081 });
        let start = Instant::now();
        let echoed = cast.client.netns.enter(|| echo(addr, BYTES, SOON)).unwrap();
        assert!(echoed.is_ok(), "{addr}: {echoed:?}\n{}", cast.stage.logs());
        start.elapsed()
    };
    let device = &cast.web.device;
    wait_until(false);
    tc(&cast.stage.b, &format!("qdisc add dev {device} root tbf {LIMIT}"));
    wait_until(true);
    for addr in cast.addresses() {
        let took = transfer(addr);
        assert!(took >= LIMITED, "{addr}: {took:?}\n{}", cast.stage.logs());
    }
    tc(&cast.stage.b, &format!("qdisc del dev {device} root"));
    wait_until(false);
    let fastest = cast.addresses().into_iter().map(transfer).min().unwrap();
    assert!(fastest < LIMITED, "without a limit: {fastest:?}");
    assert_eq!(cast.forwarded(), [0, 0]);
}
