//! Other people's connections: half-open ones that fill a table, forged segments that end or move one, and priority tags
//! at the node's devices.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde_json::json;
use testbed::{
    Shape,
    client::{Connection, Transport, ask},
    frame::{Ip, PRIORITY_TAG, SERVICE_TAG, Tcp, flags},
    manifest::{Object, slice},
    wait,
};

use crate::{
    attacks::lab::{FAMILIES, Lab, PATIENCE, Station},
    stage::service,
};

const NODE_PORT: u16 = 30080;
/// Addresses of the Service `outside`.
const OUTSIDE: [&str; 2] = ["10.96.0.20", "fd96::20"];

/// A Service with a node port, whose backends are these stations.
fn node_port(lab: &Lab, backends: &[&Station]) {
    let ports = json!([
        {"name": "tcp-80", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT},
        {"name": "udp-80", "protocol": "UDP", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT},
    ]);
    // Without a selector: the endpoints are what the slices say.
    let object: Object = service("outside", OUTSIDE)
        .set(&["spec", "type"], json!("NodePort"))
        .set(&["spec", "ports"], ports)
        .set(&["spec", "selector"], json!({}));
    let mut objects = vec![object];
    for (family, name) in FAMILIES.into_iter().zip(["outside-4", "outside-6"]) {
        let ips: Vec<IpAddr> = backends.iter().map(|backend| backend.ips[family]).collect();
        let slice = slice(name, "outside", &ips);
        objects.push(slice.slice_port("TCP", 80, 8080).slice_port("UDP", 80, 8080));
    }
    lab.stage.dir.write("outside", &objects).unwrap();
    for at in node_addresses(lab) {
        for backend in backends {
            lab.stage.wait_for(&lab.client.netns, at, &[&backend.name]);
        }
    }
}

fn node_addresses(lab: &Lab) -> [SocketAddr; 2] {
    [IpAddr::from(lab.stage.a.v4), lab.stage.a.v6.into()].map(|ip| SocketAddr::new(ip, NODE_PORT))
}

/// 25,000 connections that are never completed, more than a node has source ports for a backend on another node: clients are
/// served as before.
#[test]
fn half_open_connections_take_no_port_from_others() {
    const FLOOD: usize = 25_000;
    let lab = Lab::new("halfopen", Shape::Routed, "");
    node_port(&lab, &[&lab.far]);
    for (family, at) in node_addresses(&lab).into_iter().enumerate() {
        let mut kept = lab.client.netns.enter(|| Connection::open(at, PATIENCE)).unwrap().unwrap();
        let link = lab.link(&lab.client, &lab.far);
        let link = testbed::frame::Link { dst: lab.link(&lab.client, &lab.web).dst, ..link };
        for i in 0..FLOOD {
            let host = 210 + (i / 5000) as u8;
            let src = match family {
                0 => IpAddr::from(Ipv4Addr::new(172, 31, 0, host)),
                _ => Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, u16::from(host) + 0x1000).into(),
            };
            let src = SocketAddr::new(src, 20_000 + (i % 5000) as u16);
            let syn = Tcp { flags: flags::SYN, seq: i as u32, ack: 0 };
            lab.client.port.send(&link.frame(&Ip::tcp(src, at, syn, &[]))).unwrap();
        }
        for _ in 0..20 {
            let answer = lab.client.netns.enter(|| ask(Transport::Tcp, at, Duration::from_secs(3)));
            let answer = answer.unwrap();
            assert_eq!(answer.as_deref().ok(), Some("far"), "{answer:?}\n{}", lab.stage.logs());
        }
        assert_eq!(kept.ask().unwrap(), "far", "a connection from before");
    }
}

/// A segment with the address and port of a client, from an attacker who knows only these: a SYN does not move the connection
/// to another backend, a reset or FIN outside of the window does not end it.
#[test]
fn forged_segments_end_no_connection() {
    let lab = Lab::new("forged", Shape::Routed, "");
    node_port(&lab, &[&lab.web, &lab.friend]);
    for at in node_addresses(&lab) {
        let family = usize::from(at.is_ipv6());
        for (name, flags) in [
            ("SYN", flags::SYN),
            ("RST", flags::RST),
            ("RST|ACK", flags::RST | flags::ACK),
            ("FIN", flags::FIN),
            ("FIN|ACK", flags::FIN | flags::ACK),
            ("SYN|RST", flags::SYN | flags::RST),
        ] {
            let mut connection =
                lab.client.netns.enter(|| Connection::open(at, PATIENCE)).unwrap().unwrap();
            let backend = connection.ask().unwrap();
            let client = connection.local().unwrap();
            let link = lab.link(&lab.client, &lab.web);
            for seq in 1..=8 {
                let seq = seq * 0x1234_5678;
                let tcp = Tcp { flags, seq, ack: 1 };
                lab.client.port.send(&link.frame(&Ip::tcp(client, at, tcp, &[]))).unwrap();
            }
            for _ in 0..3 {
                let answer = connection.ask();
                assert_eq!(
                    answer.as_deref().ok(),
                    Some(backend.as_str()),
                    "{name}: {answer:?}\n{}",
                    lab.stage.logs()
                );
            }
            let rows = lab.stage.agents[0].lbctl(&["ct"]).unwrap();
            let own = format!(":{} ", client.port());
            let of_it: Vec<&str> = rows.lines().filter(|line| line.contains(&own)).collect();
            assert!(!of_it.is_empty(), "family {family}: none of port {} in {rows}", client.port());
            // A half-closed connection has an hour; one that is over has about a minute.
            for row in of_it {
                let soon = row.trim_end().ends_with('s') && !row.contains('m');
                assert!(!soon, "{name}: {row}");
            }
            // The client's own reset ends it, at once.
            connection.reset().unwrap();
            wait::until("a reset is heard", PATIENCE, || {
                let rows = lab.stage.agents[0].lbctl(&["ct"])?;
                let open = rows.lines().any(|l| l.contains(&own) && l.contains("ESTABLISHED"));
                anyhow::ensure!(!open, "{rows}");
                Ok(())
            })
            .unwrap();
        }
    }
}

/// A priority tag is not a VLAN: a node port answers frames with one like others.
#[test]
fn a_priority_tag_hides_no_node_port() {
    let lab = Lab::new("priority", Shape::Routed, "");
    node_port(&lab, &[&lab.web]);
    for at in node_addresses(&lab) {
        let family = usize::from(at.is_ipv6());
        for (i, tag) in [PRIORITY_TAG, SERVICE_TAG].into_iter().enumerate() {
            let src = lab.client.at(family, 4100 + i as u16);
            let link = lab.link(&lab.client, &lab.web);
            lab.client.port.received().unwrap();
            let question = link.tagged(&[tag], &Ip::udp(src, at, b"?\n"));
            lab.client.port.send(&question).unwrap();
            wait::until("the node port answers", PATIENCE, || {
                let frames = lab.client.port.received()?;
                let port = src.port().to_be_bytes();
                let answered =
                    |f: &Vec<u8>| f.windows(2).any(|w| w == port) && f.ends_with(b"web\n");
                anyhow::ensure!(frames.iter().any(answered), "no answer to {tag:?}");
                Ok(())
            })
            .unwrap_or_else(|err| panic!("{err:#}\n{}", lab.stage.logs()));
        }
    }
}
