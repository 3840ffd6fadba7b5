//! The source ports of flows from outside to backends on other nodes: they do not run out, and another range at a restart
//! breaks no connection.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use testbed::{
    Netns, Pod, Shape,
    client::{Connection, Transport, seen_as},
    exchanges::Exchanges,
};

use crate::{
    outside::{NODE_PORT, addresses, remote_backend},
    stage::{SOON, Stage, TRANSPORTS},
};

/// A backend on node b, and a client outside that asks node a, which has these ports only.
fn far(prefix: &str, ports: std::ops::RangeInclusive<u16>) -> (Stage, Netns, Pod) {
    let mut stage = Stage::new(prefix, Shape::Routed);
    let [agent, _] = &mut stage.agents;
    agent.stop().unwrap();
    agent.masquerade_ports = Some(ports);
    agent.start().unwrap();
    let (client, web) = remote_backend(&mut stage);
    (stage, client, web)
}

/// The port that the backend sees, asked over this socket.
fn own_port(socket: &UdpSocket) -> u16 {
    socket.send(b"seen as?\n").unwrap();
    let mut answer = [0; 256];
    let n = socket.recv(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..n]);
    answer.trim_end().parse::<SocketAddr>().unwrap().port()
}

/// 60,000 questions with an answer each through 500 ports, and a conversation between them that keeps its port.
#[test]
fn questions_and_answers_do_not_use_up_the_ports() {
    let ports = 20_000..=20_499;
    let (stage, client, _web) = far("eports", ports.clone());
    let sources: [IpAddr; 2] = ["172.31.0.200", "fd31::200"].map(|ip| ip.parse().unwrap());
    for (addr, source) in addresses(&stage.a, NODE_PORT).into_iter().zip(sources) {
        let talks = client.enter(|| UdpSocket::bind((source, 0))).unwrap().unwrap();
        talks.connect(addr).unwrap();
        talks.set_read_timeout(Some(SOON)).unwrap();
        let own = own_port(&talks);
        assert!(ports.contains(&own), "{own}");
        let from = [source];
        for _ in 0..6 {
            assert_eq!(own_port(&talks), own, "the conversation keeps its port");
            let asking = Exchanges {
                number: 5_000,
                duration: Duration::from_secs(60),
                patience: Duration::from_secs(2),
                ..Exchanges::new(addr, &from)
            };
            let answers = client.enter(|| asking.run()).unwrap().unwrap();
            assert!(answers.asked > 4_900, "{answers:?}");
            assert_eq!(answers.mixed_up, 0, "{answers:?}");
            assert!(answers.lost() <= 5, "{answers:?}\n{}", stage.logs());
        }
        assert_eq!(own_port(&talks), own, "the conversation keeps its port");
    }
    let taken = stage.agents[0].lbctl(&["status", "--all"]).unwrap();
    let taken = taken.lines().find(|line| line.starts_with("port_taken_over")).unwrap();
    let taken: u64 = taken.split_whitespace().last().unwrap().parse().unwrap();
    assert!(taken > 40_000, "{taken}");
    assert!(!stage.agents[0].lbctl(&["drops"]).unwrap().contains("MASQUERADE_EXHAUSTED"));
}

/// The agent comes back with other ports: connections keep theirs, new ones get the new ones.
#[test]
fn another_range_at_a_restart_breaks_no_connection() {
    let (former, later) = (20_000..=20_499, 12_000..=12_099);
    let (mut stage, client, _web) = far("eportsnew", former.clone());
    let a = stage.a.clone();
    let mut open: Vec<_> = addresses(&a, NODE_PORT)
        .into_iter()
        .map(|addr| client.enter(|| Connection::open(addr, SOON)).unwrap().unwrap())
        .collect();
    for ports in [later.clone(), 40_000..=40_007] {
        let [agent, _] = &mut stage.agents;
        agent.stop().unwrap();
        agent.masquerade_ports = Some(ports.clone());
        agent.start().unwrap();
        for addr in addresses(&a, NODE_PORT) {
            stage.wait_for(&client, addr, &["web"]);
            for transport in TRANSPORTS {
                let own = client.enter(|| seen_as(transport, addr, SOON)).unwrap().unwrap().port();
                assert!(ports.contains(&own), "{own}");
            }
            if ports == later {
                open.push(client.enter(|| Connection::open(addr, SOON)).unwrap().unwrap());
            }
        }
        for connection in &mut open {
            let name = connection.ask().unwrap_or_else(|err| panic!("{err}\n{}", stage.logs()));
            assert_eq!(name, "web");
        }
    }
    assert_eq!(stage.ask(&client, Transport::Tcp, addresses(&a, NODE_PORT)[0]), "web");
}
