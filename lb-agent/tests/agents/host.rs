//! Processes of the node itself: translated when they connect, and they must not notice.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use testbed::{
    Shape,
    client::{Connection, ask_connected, ask_to, udp_socket},
    manifest::{pod_of, service},
    server::Server,
    wait,
};

use crate::stage::{SOON, Stage, port_80};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const DNS: [&str; 2] = ["10.96.0.11", "fd96::11"];

/// `getpeername` and `recvmsg` show the ClusterIP again, to connected sockets too.
#[test]
fn s17_host_sockets_see_the_cluster_ip() {
    let mut stage = Stage::new("ehost", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let (web, dns) = (stage.server(&a, "web"), stage.server(&b, "dns"));
    stage.announce("web", WEB, &[&web]);
    stage.announce("dns", DNS, &[&dns]);
    for (web, dns) in WEB.into_iter().zip(DNS) {
        let (web, dns) = (port_80(web), port_80(dns));
        stage.wait_for(&a.netns, web, &["web"]);
        stage.wait_for(&a.netns, dns, &["dns"]);
        a.netns.enter(|| connected_sockets_see(web)).unwrap();
        a.netns.enter(|| one_unconnected_socket_sees(web, dns)).unwrap();
    }
}

fn connected_sockets_see(addr: SocketAddr) {
    let mut tcp = Connection::open(addr, SOON).unwrap();
    assert_eq!(tcp.peer().unwrap(), addr, "getpeername of TCP");
    assert_eq!(tcp.ask().unwrap(), "web");

    let udp = udp_socket(addr, SOON).unwrap();
    udp.connect(addr).unwrap();
    assert_eq!(udp.peer_addr().unwrap(), addr, "getpeername of UDP");
    assert_eq!(ask_connected(&udp).unwrap(), "web");
    udp.send(b"?\n").unwrap();
    let (_, from) = udp.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from, addr, "recvmsg of a connected UDP socket");
}

/// A resolver asks several servers over one socket and tells their answers apart by the address.
fn one_unconnected_socket_sees(web: SocketAddr, dns: SocketAddr) {
    let socket = udp_socket(web, SOON).unwrap();
    for _ in 0..3 {
        assert_eq!(ask_to(&socket, web).unwrap(), ("web".to_owned(), web));
        assert_eq!(ask_to(&socket, dns).unwrap(), ("dns".to_owned(), dns));
    }
}

/// Only sockets of the node's own namespace are translated when they connect: a Pod's packets are, whatever
/// sends them (a sidecar, a virtual machine, a raw socket). The conntrack entry with the ClusterIP shows which it was.
#[test]
fn s19_pods_are_translated_by_packet() {
    let mut stage = Stage::new("ehostpod", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    let [client, _] = stage.clients();
    stage.announce("web", WEB, &[&web]);
    for ip in WEB {
        stage.wait_for(&client.netns, port_80(ip), &["web"]);
        client.netns.enter(|| connected_sockets_see(port_80(ip))).unwrap();
    }
    let counters = stage.agents[0].lbctl(&["ct"]).unwrap();
    assert!(
        counters.contains(WEB[0]),
        "no entry of a Pod's flow through the ClusterIP:\n{counters}"
    );
}

/// However many Services one unconnected socket talks to, each answer comes from the address that was asked, and each
/// Service stays with its backend.
#[test]
fn s17_one_socket_talks_to_two_dozen_services() {
    const SERVICES: u16 = 24;
    let mut stage = Stage::new("ehostmany", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let pods = [stage.server(&a, "here"), stage.server(&b, "there")];
    let mut servers = Vec::new();
    let mut objects: Vec<_> = pods.iter().map(|pod| pod_of(pod).label("app", "many")).collect();
    for i in 0..SERVICES {
        let target = 9000 + i;
        for (pod, place) in pods.iter().zip(["here", "there"]) {
            let server = Server::named(&pod.netns, &format!("{place}-{i}"), target);
            servers.push(server.unwrap());
        }
        let many = service(&format!("many{i}")).selector("app", "many");
        let many = many.port("UDP", 53, target.into());
        objects.push(many.ip(&format!("10.96.1.{i}")).ip(&format!("fd96::1:{i:x}")));
    }
    stage.dir.write("many", &objects).unwrap();
    for v4 in [true, false] {
        let addrs: Vec<SocketAddr> = (0..SERVICES)
            .map(|i| if v4 { format!("10.96.1.{i}:53") } else { format!("[fd96::1:{i:x}]:53") })
            .map(|addr| addr.parse().unwrap())
            .collect();
        for addr in &addrs {
            let what = format!("{addr} answers");
            wait::until(&what, SOON, || {
                let socket = a.netns.enter(|| udp_socket(*addr, Duration::from_millis(500)))??;
                ask_to(&socket, *addr)?;
                Ok(())
            })
            .unwrap();
        }
        let socket = a.netns.enter(|| udp_socket(addrs[0], SOON)).unwrap().unwrap();
        let mut first = vec![None; addrs.len()];
        for round in 0..4 {
            // In turn, and all questions before the first answer.
            let mut answers = Vec::new();
            if round % 2 == 0 {
                answers.extend(addrs.iter().map(|addr| ask_to(&socket, *addr).unwrap()));
            } else {
                for addr in &addrs {
                    socket.send_to(b"?\n", addr).unwrap();
                }
                answers.extend(addrs.iter().map(|_| answer(&socket)));
            }
            answers.sort_by_key(|(_, from)| addrs.iter().position(|addr| addr == from));
            for (i, (name, from)) in answers.into_iter().enumerate() {
                assert_eq!(from, addrs[i], "round {round}: {name}\n{}", stage.logs());
                assert!(name.ends_with(&format!("re-{i}")), "{from} in round {round}: {name}");
                let first = first[i].get_or_insert_with(|| name.clone());
                assert_eq!(*first, name, "{from} in round {round}");
            }
        }
    }
}

fn answer(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut bytes = [0; 64];
    let (n, from) = socket.recv_from(&mut bytes).unwrap();
    (String::from_utf8_lossy(&bytes[..n]).trim_end().to_owned(), from)
}
