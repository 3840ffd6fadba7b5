//! What claims to be an answer: segments without a connection, ICMP errors about nothing, neighbour discovery that is
//! none.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use testbed::{
    Shape,
    client::{Connection, Transport, udp_socket},
    frame::{Ip, Tcp, flags},
    wait,
};

use super::lab::{At, FAMILIES, ISOLATED, Lab, PATIENCE, Shared, Shot, Station};

const SEGMENTS: [(&str, u8); 10] = [
    ("ACK", flags::ACK),
    ("PSH|ACK", flags::PSH | flags::ACK),
    ("FIN", flags::FIN),
    ("FIN|ACK", flags::FIN | flags::ACK),
    ("NULL", flags::NULL),
    ("SYN|ACK", flags::SYN | flags::ACK),
    ("RST", flags::RST),
    ("RST|ACK", flags::RST | flags::ACK),
    ("URG", flags::URG | flags::ACK),
    ("SYN|FIN", flags::SYN | flags::FIN),
];

/// Segments of no connection: the first of each has a tuple of its own, the second follows it.
fn segments(lab: &Lab, (from, to, family): (&Station, &Station, usize), dport: u16) -> Vec<Shot> {
    let link = lab.link(from, to);
    let segment = |(i, (name, flags)): (usize, &(&str, u8))| {
        lab.shot(format!("{name} to port {dport}"), |mark| {
            let (src, dst) = (from.at(family, 5100 + i as u16), to.at(family, dport));
            let tcp = Tcp { flags: *flags, seq: 1000, ack: 2000 };
            let ip = Ip::tcp(src, dst, tcp, mark);
            vec![link.frame(&ip), link.frame(&ip)]
        })
    };
    SEGMENTS.iter().enumerate().map(segment).collect()
}

/// A segment that begins no connection opens nothing: neither outwards for a Pod that may send nothing, nor inwards to a Pod
/// without allowed clients, where a FIN would show which ports are open.
fn mid_flow(shape: Shape) {
    let lab = Shared::isolated(shape);
    let ways = [
        (&lab.mallory, &lab.far),
        (&lab.mallory, &lab.client),
        (&lab.mallory, &lab.friend),
        (&lab.stranger, &lab.web),
        (&lab.far, &lab.web),
        (&lab.client, &lab.web),
    ];
    for (from, to) in ways {
        for family in FAMILIES {
            for dport in [8080, 9999] {
                lab.stops(from, to, family, &segments(&lab, (from, to, family), dport));
            }
        }
    }
    // Where nothing is closed they pass, as ever: a connection may be older than the tables.
    lab.passes(&lab.stranger, &lab.friend, 0, &[]);
}

#[test]
fn segments_of_no_connection_open_nothing_on_a_routed_node() {
    mid_flow(Shape::Routed);
}

#[test]
fn segments_of_no_connection_open_nothing_behind_a_bridge() {
    mid_flow(Shape::Bridge);
}

/// A connection that a policy has closed stays closed when the table forgets it, here with its pin; one that
/// is allowed goes on.
#[test]
fn a_closed_connection_stays_closed_when_it_is_forgotten() {
    let mut lab = Lab::new("revive", Shape::Routed, "");
    let open = |from: &Station, to: &Station| {
        (0..2)
            .map(|family| {
                from.netns
                    .enter(|| Connection::open(to.at(family, 8080), PATIENCE))
                    .unwrap()
                    .unwrap()
            })
            .collect()
    };
    let mut closed: Vec<Connection> = open(&lab.stranger, &lab.web);
    closed.extend::<Vec<_>>(open(&lab.mallory, &lab.far));
    let mut kept: Vec<Connection> = open(&lab.friend, &lab.web);
    for connection in closed.iter_mut().chain(&mut kept) {
        connection.ask().unwrap();
    }
    lab.enforce(ISOLATED);
    let ask_all = |connections: &mut [Connection]| -> Vec<bool> {
        connections
            .iter_mut()
            .map(|connection| {
                connection.set_timeout(Duration::from_millis(300)).unwrap();
                connection.ask().is_ok()
            })
            .collect()
    };
    assert_eq!(ask_all(&mut closed), [false; 4], "closed by the policy");
    assert_eq!(ask_all(&mut kept), [true; 2], "allowed");
    // The table's pin goes: the agent makes a new one, which knows no connection. Until then the old programs hold.
    let agent = &mut lab.stage.agents[0];
    agent.stop().unwrap();
    let pins: Vec<_> =
        std::fs::read_dir(&agent.pin_dir).unwrap().map(|pin| pin.unwrap().path()).collect();
    let tables: Vec<_> = pins
        .iter()
        .filter(|pin| pin.file_name().unwrap().to_string_lossy().starts_with("ct"))
        .collect();
    assert!(!tables.is_empty(), "{pins:?}");
    for table in tables {
        std::fs::remove_file(table).unwrap();
    }
    agent.start().unwrap();
    lab.enforce(ISOLATED);
    assert_eq!(ask_all(&mut closed), [false; 4], "closed still\n{}", lab.stage.logs());
    let kept: Vec<bool> = kept
        .iter_mut()
        .map(|connection| {
            connection.set_timeout(PATIENCE).unwrap();
            connection.ask().is_ok()
        })
        .collect();
    assert_eq!(kept, [true; 2], "allowed, and picked up\n{}", lab.stage.logs());
}

/// ICMP errors go to the sender of the quoted packet, and are not longer than real ones.
fn errors(shape: Shape) {
    let lab = Shared::isolated(shape);
    let from = &lab.mallory;
    for family in FAMILIES {
        // A flow that mallory has: far asked it, or it asked far at the open port.
        let (own, far) = (from.at(family, 4007), lab.far.at(family, 7));
        lab.passes(from, &lab.far, family, &[]);
        let quote = |payload: &[u8]| Ip::udp(far, own, payload).bytes();
        let about = |to: &Station, src: IpAddr, size: usize| {
            let link = lab.link(from, to);
            lab.shot(format!("{size} bytes to {} as {src}", to.name), |mark| {
                let quote = quote(&[mark, &vec![0; size]].concat());
                vec![link.frame(&Ip::too_big(src, to.ips[family], 1280, &quote))]
            })
        };
        // To a host that did not send the quoted packet.
        for to in [&lab.client, &lab.friend] {
            let shots = [
                about(to, from.ips[family], 20),
                about(to, from.ips[family], 800),
                about(to, lab.friend.ips[family], 20),
            ];
            lab.stops(from, to, family, &shots);
        }
        // To the sender, but longer than an error; in another's name.
        let to = &lab.far;
        let shots = [about(to, from.ips[family], 1350), about(to, lab.friend.ips[family], 20)];
        lab.stops(from, to, family, &shots);
        lab.passes(from, to, family, &[about(to, from.ips[family], 20)]);
        // Inwards: errors about what web never sent.
        for from in [&lab.client, &lab.stranger, &lab.far] {
            let link = lab.link(from, &lab.web);
            let shot = lab.shot("about nothing", |mark| {
                let quote = Ip::udp(lab.web.at(family, 9), from.at(family, 9), mark).bytes();
                vec![link.frame(&Ip::too_big(from.ips[family], lab.web.ips[family], 1280, &quote))]
            });
            lab.stops(from, &lab.web, family, &[shot]);
        }
        // A real one: this port of mallory's has no listener, and far learns it.
        let closed = from.at(family, 4999);
        let refused = lab.far.netns.enter(|| {
            let socket = udp_socket(closed, Duration::from_secs(2)).unwrap();
            socket.connect(closed).unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 16]).map_err(|err| err.kind())
        });
        assert_eq!(
            refused.unwrap(),
            Err(std::io::ErrorKind::ConnectionRefused),
            "{}",
            lab.stage.logs()
        );
    }
}

#[test]
fn errors_go_to_the_end_they_are_about_on_a_routed_node() {
    errors(Shape::Routed);
}

#[test]
fn errors_go_to_the_end_they_are_about_behind_a_bridge() {
    errors(Shape::Bridge);
}

/// Neighbour discovery and multicast listeners' reports stay on their link, and carry nothing else.
fn discovery(shape: Shape) {
    let lab = Shared::isolated(shape);
    let v6 = 1;
    let messages = |from: &Station, to: &Station| -> Vec<Shot> {
        let link = lab.link(from, to);
        let mut shots = Vec::new();
        for kind in [130, 131, 132, 133, 134, 135, 136, 137, 143] {
            for hops in [255, 64, 1] {
                shots.push(lab.shot(format!("type {kind}, hop limit {hops}"), |mark| {
                    let body = [&[0; 16], mark, &[0; 800]].concat();
                    let ip = Ip::icmp(from.ips[v6], to.ips[v6], [kind, 0], [0; 4], &body);
                    vec![link.frame(&ip.hops(hops))]
                }));
            }
        }
        shots
    };
    for (from, to) in [
        (&lab.mallory, &lab.far),
        (&lab.mallory, &lab.client),
        (&lab.far, &lab.web),
        (&lab.client, &lab.web),
    ] {
        lab.stops(from, to, v6, &messages(from, to));
    }
    // In another's name they go nowhere, on the link or off it.
    for src in [lab.friend.ips[v6], lab.stage.a.v6.into()] {
        let link = lab.link(&lab.mallory, &lab.far);
        let shots: Vec<Shot> = [135, 136, 143]
            .into_iter()
            .map(|kind| {
                lab.shot(format!("type {kind} as {src}"), |mark| {
                    let body = [&[0; 16], mark].concat();
                    let ip = Ip::icmp(src, lab.far.ips[v6], [kind, 0], [0; 4], &body);
                    vec![link.frame(&ip.hops(255))]
                })
            })
            .collect();
        lab.stops(&lab.mallory, &lab.far, v6, &shots);
    }
    // A true solicitation to the neighbour: answered.
    let gateway = "fd44:0:0:1::1".parse::<Ipv6Addr>().unwrap();
    let (from, IpAddr::V6(own)) = (&lab.mallory, lab.mallory.ips[v6]) else { panic!("IPv6") };
    let link = lab.link(from, &lab.far);
    from.port.received().unwrap();
    let ip = Ip::neighbour(own, gateway, 135, gateway, from.port.mac);
    from.port.send(&link.frame(&ip)).unwrap();
    wait::until("the gateway answers a solicitation", PATIENCE, || {
        let frames = from.port.received()?;
        anyhow::ensure!(
            frames.iter().any(|f| f.get(12..14) == Some(&[0x86, 0xdd]) && f.get(54) == Some(&136)),
            "no advertisement"
        );
        Ok(())
    })
    .unwrap();
    from.netns.ip("neigh flush dev eth0\n").unwrap();
    lab.passes(from, &lab.far, v6, &[]);
    let dns = SocketAddr::new(lab.friend.ips[v6], 8080);
    lab.stage.ask(&lab.stranger.netns, Transport::Udp, dns);
}

#[test]
fn discovery_stays_on_its_link_on_a_routed_node() {
    discovery(Shape::Routed);
}

#[test]
fn discovery_stays_on_its_link_behind_a_bridge() {
    discovery(Shape::Bridge);
}

/// Dropped, with the reason that says so.
#[test]
fn what_was_never_opened_is_counted_as_that() {
    let lab = Lab::new("notopen", Shape::Routed, ISOLATED);
    for family in FAMILIES {
        let way = (&lab.stranger, &lab.web, family);
        let shots = segments(&lab, way, 9999);
        let counted = |lab: &Lab| {
            ["NOT_OPENED", "POLICY_ISOLATED"]
                .map(|why| lab.dropped(At::NodeA, why))
                .iter()
                .sum::<u64>()
        };
        let before = counted(&lab);
        lab.stops(way.0, way.1, family, &shots);
        assert!(counted(&lab) - before >= 2 * SEGMENTS.len() as u64, "{}", lab.stage.logs());
    }
}
