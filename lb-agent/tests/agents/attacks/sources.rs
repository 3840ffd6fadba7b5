//! Packets in another's name: of nodes, other Pods, Services, strangers; and forged neighbours, by which a Pod takes
//! another's place on a bridge.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::json;
use testbed::{
    Shape,
    client::{Connection, Transport, ask, ask_connected, udp_socket},
    frame::{BROADCAST, Ip, Link},
    manifest::node_of,
    raw, wait,
};

use crate::{
    attacks::lab::{At, FAMILIES, ISOLATED, Lab, PATIENCE, Shared, Shot, Station, WEB},
    stage::TRANSPORTS,
};

/// Datagrams to a port of web that only friends reach, from each of these.
fn to_web(lab: &Lab, from: &Station, family: usize, sources: &[IpAddr]) -> Vec<Shot> {
    let link = lab.link(from, &lab.web);
    let shot = |src: &IpAddr| {
        lab.shot(format!("as {src}"), |mark| {
            let src = SocketAddr::new(*src, 4000);
            vec![link.frame(&Ip::udp(src, lab.web.at(family, 8080), mark))]
        })
    };
    sources.iter().map(shot).collect()
}

/// The own node may reach a Pod. Senders that use its address may not: outside, on another node, or a Pod beside.
fn own_node(shape: Shape) {
    let lab = Shared::isolated(shape);
    let gateways = ["10.244.1.1", "fd44:0:0:1::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let nodes = [IpAddr::from(lab.stage.a.v4), lab.stage.a.v6.into()];
    for family in FAMILIES {
        for from in [&lab.client, &lab.far, &lab.stranger] {
            let shots = to_web(&lab, from, family, &[nodes[family], gateways[family]]);
            lab.stops(from, &lab.web, family, &shots);
        }
        // A Pod of this node, by a packet that comes from elsewhere.
        let shots = to_web(&lab, &lab.client, family, &[lab.friend.ips[family]]);
        lab.drops(At::NodeA, "SPOOFED_SOURCE", (&lab.client, &lab.web, family), &shots);
        for transport in TRANSPORTS {
            lab.stage.ask(&lab.stage.a.netns, transport, lab.web.at(family, 8080));
            lab.stage.ask(&lab.friend.netns, transport, lab.web.at(family, 8080));
        }
    }
}

#[test]
fn the_own_node_is_who_it_is_on_a_routed_node() {
    own_node(Shape::Routed);
}

#[test]
fn the_own_node_is_who_it_is_behind_a_bridge() {
    own_node(Shape::Bridge);
}

/// A Pod cannot send from the address of another on its node, with or without policies; with policies only from its own.
fn names_of_others(shape: Shape, prefix: &str) {
    let lab = Lab::new(prefix, shape, "");
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    // An overlay's devices have the first address of their nodes' ranges.
    let nodes = [(1, &lab.stage.a), (2, &lab.stage.b)].map(|(n, node)| {
        let ranges = json!([format!("10.244.{n}.0/24"), format!("fd44:0:0:{n}::/64")]);
        node_of(node).set(&["spec", "podCIDRs"], ranges)
    });
    lab.stage.dir.write("nodes", &nodes).unwrap();
    let owners: [[IpAddr; 7]; 2] = [
        [
            lab.friend.ips[0],
            lab.far.ips[0],
            lab.stage.a.v4.into(),
            lab.stage.b.v4.into(),
            ip(WEB[0]),
            ip("169.254.42.1"),
            ip("10.244.2.0"),
        ],
        [
            lab.friend.ips[1],
            lab.far.ips[1],
            lab.stage.a.v6.into(),
            lab.stage.b.v6.into(),
            ip(WEB[1]),
            ip("fd6c:6261:6c62::42"),
            ip("fd44:0:0:2::"),
        ],
    ];
    let unowned = [ip("198.51.100.9"), ip("2001:db8:9::9")];
    let from = &lab.stranger;
    for family in FAMILIES {
        // Without policies the agent does not need to know the Pods of other nodes.
        let here: Vec<IpAddr> = [0, 2, 4, 5].map(|i| owners[family][i]).into();
        let shots = to_web(&lab, from, family, &here);
        lab.drops(At::NodeA, "SPOOFED_SOURCE", (from, &lab.web, family), &shots);
    }
    lab.enforce(ISOLATED);
    for family in FAMILIES {
        let link = lab.link(from, &lab.friend);
        // Friend is under no policy, stranger neither.
        let sources: Vec<IpAddr> =
            owners[family].iter().filter(|ip| **ip != lab.friend.ips[family]).copied().collect();
        let shots: Vec<Shot> = sources
            .into_iter()
            .chain([unowned[family]])
            .map(|src| {
                lab.shot(format!("as {src}"), |mark| {
                    let src = SocketAddr::new(src, 4000);
                    vec![link.frame(&Ip::udp(src, lab.friend.at(family, 8080), mark))]
                })
            })
            .collect();
        lab.drops(At::NodeA, "SPOOFED_SOURCE", (from, &lab.friend, family), &shots);
    }
}

#[test]
fn no_pod_sends_with_another_s_address_on_a_routed_node() {
    names_of_others(Shape::Routed, "namroute");
}

#[test]
fn no_pod_sends_with_another_s_address_behind_a_bridge() {
    names_of_others(Shape::Bridge, "nambridge");
}

/// Router advertisements, redirects, and ARP and neighbour advertisements in another's name, leave no Pod; its own do.
fn neighbours(shape: Shape) {
    let lab = Shared::isolated(shape);
    let gateways = (Ipv4Addr::new(10, 244, 1, 1), "fd44:0:0:1::1".parse::<Ipv6Addr>().unwrap());
    let (IpAddr::V4(friend4), IpAddr::V6(friend6)) = (lab.friend.ips[0], lab.friend.ips[1]) else {
        panic!("one of each family")
    };
    for from in [&lab.mallory, &lab.stranger] {
        let mac = from.port.mac;
        let (IpAddr::V4(own4), IpAddr::V6(own6)) = (from.ips[0], from.ips[1]) else {
            panic!("one of each family")
        };
        let to = &lab.web;
        let link = lab.link(from, to);
        let all = Link { src: mac, dst: BROADCAST };
        let multicast = Link { src: mac, dst: [0x33, 0x33, 0, 0, 0, 1] };
        let all_nodes = "ff02::1".parse::<Ipv6Addr>().unwrap();
        let link_local = "fe80::bad".parse::<Ipv6Addr>().unwrap();
        // A trailer is not part of an ARP packet, and shows that it arrived.
        let arp = |what: &str, frame: Vec<u8>| lab.shot(what, |mark| vec![[&frame, mark].concat()]);
        let shots = [
            arp("gratuitous ARP as friend", all.arp(1, (mac, friend4), friend4)),
            arp("ARP answer as friend", link.arp(2, (mac, friend4), own4)),
            arp("ARP answer as the gateway", all.arp(2, (mac, gateways.0), gateways.0)),
            arp("ARP question as friend", all.arp(1, (mac, friend4), own4)),
        ];
        lab.drops(At::NodeA, "FORGED_NEIGHBOR", (from, to, 0), &shots);
        let icmp = |what: &str, link: Link, ip: Ip| {
            lab.shot(what, |mark| vec![[link.frame(&ip), mark.to_vec()].concat()])
        };
        let prefix = "2001:db8:bad::".parse().unwrap();
        let IpAddr::V6(web6) = to.ips[1] else { panic!("an IPv6 address") };
        let shots = [
            icmp("router", multicast, Ip::router_advertisement(link_local, prefix, mac)),
            icmp("router, unicast", link, Ip::router_advertisement(own6, prefix, mac)),
            icmp("redirect", link, Ip::redirect(gateways.1, web6, own6, friend6)),
            icmp("redirect of its own", link, Ip::redirect(link_local, web6, own6, friend6)),
            icmp("friend is here", multicast, Ip::neighbour(own6, all_nodes, 136, friend6, mac)),
            icmp(
                "the gateway is here",
                link,
                Ip::neighbour(gateways.1, web6, 136, gateways.1, mac),
            ),
        ];
        lab.drops(At::NodeA, "FORGED_NEIGHBOR", (from, to, 1), &shots);
        if shape == Shape::Bridge {
            lab.passes(from, to, 0, &[arp("its own ARP", all.arp(1, (mac, own4), own4))]);
            // The bridge takes off what stands behind an IPv6 packet: the mark is an option.
            let own = lab.shot("its own", |mark| {
                let options = [&[2, 1], &mac[..], &[253, 2, 0, 0, 0, 0, 0, 0], mark].concat();
                let body = [&own6.octets()[..], &options].concat();
                let ip = Ip::icmp(own6.into(), all_nodes.into(), [136, 0], [0x20, 0, 0, 0], &body);
                vec![multicast.frame(&ip.hops(255))]
            });
            lab.passes(from, to, 1, &[own]);
        }
    }
    // All Pods and the node resolve their neighbors again.
    for station in [&lab.friend, &lab.web] {
        station.netns.ip("neigh flush dev eth0\n").unwrap();
    }
    lab.stage.a.netns.ip("neigh flush all\n").unwrap();
    for family in FAMILIES {
        for from in [&lab.friend.netns, &lab.stage.a.netns] {
            lab.stage.ask(from, Transport::Udp, lab.web.at(family, 8080));
        }
    }
}

#[test]
fn forged_neighbours_leave_no_pod_on_a_routed_node() {
    neighbours(Shape::Routed);
}

#[test]
fn forged_neighbours_leave_no_pod_behind_a_bridge() {
    neighbours(Shape::Bridge);
}

/// A bridge learns from any frame: whoever sends honest ones, but for their link-layer source, from that of another Pod or
/// of the node, takes nothing from the other, and cannot answer in its name. Not after changing its own device either,
/// nor when the agent has been away meanwhile.
#[test]
fn a_stolen_link_layer_address_gives_nothing() {
    let mut lab = Lab::new("stolen", Shape::Bridge, ISOLATED);
    for changed in [false, true] {
        let victim = lab.web.port.mac;
        if changed {
            let [a, b, c, d, e, f] = victim;
            let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            lab.stranger.netns.ip(&format!("link set eth0 address {mac}\n")).unwrap();
            lab.stage.agents[0].stop().unwrap();
            lab.stage.agents[0].start().unwrap();
        }
        let bridge = raw::mac(&lab.stage.a.netns, "cni0").unwrap();
        for family in FAMILIES {
            let (thief, asker) = (&lab.stranger, &lab.friend);
            let theft = Ip::udp(thief.at(family, 4054), asker.at(family, 7), b"theft");
            let shots: Vec<Shot> = [victim, bridge]
                .into_iter()
                .map(|src| {
                    lab.shot(format!("from {src:x?}, changed: {changed}"), |mark| {
                        let ip = Ip::udp(thief.at(family, 4054), asker.at(family, 7), mark);
                        vec![Link { src, dst: asker.port.mac }.frame(&ip)]
                    })
                })
                .collect();
            let before = lab.dropped(At::NodeA, "SPOOFED_MAC");
            // With the thief's device changed, nothing it sends by itself is honest any more.
            if !changed {
                lab.drops(At::NodeA, "SPOOFED_MAC", (thief, asker, family), &shots);
            }
            let theft = Link { src: victim, dst: asker.port.mac }.frame(&theft);
            let answers = answers_under(&lab, family, &theft);
            assert_eq!(answers, QUESTIONS, "answered under theft, changed: {changed}");
            assert!(lab.dropped(At::NodeA, "SPOOFED_MAC") > before + QUESTIONS as u64);
            if changed {
                continue;
            }
            let answer = lab.shot("an answer of the thief", |mark| {
                let ip = Ip::udp(lab.web.at(family, 8080), asker.at(family, 4053), mark);
                vec![lab.link(thief, asker).frame(&ip)]
            });
            lab.drops(At::NodeA, "SPOOFED_SOURCE", (thief, asker, family), &[answer]);
        }
    }
}

const QUESTIONS: usize = 100;

/// How many of [`QUESTIONS`] friend gets answered by web, over a connection and by datagrams, while stranger sends `theft`
/// all the time.
fn answers_under(lab: &Lab, family: usize, theft: &[u8]) -> usize {
    const LIMIT: Duration = Duration::from_secs(1);
    let (over, port, web) = (AtomicBool::new(false), &lab.stranger.port, lab.web.at(family, 8080));
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let thief = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                (0..8).for_each(|_| port.send(theft).unwrap());
                sent.fetch_add(8, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let answered = lab.friend.netns.enter(|| {
            let mut connection = Connection::open(web, PATIENCE).unwrap();
            let socket = udp_socket(web, LIMIT).unwrap();
            socket.connect(web).unwrap();
            let mut answered = 0;
            for n in 0..QUESTIONS {
                // On a busy machine the other thread may be late: before each question two frames of the thief.
                while sent.load(Ordering::Relaxed) < 2 * (n + 1) {
                    std::thread::yield_now();
                }
                let datagram = ask_connected(&socket).is_ok_and(|name| name == "web");
                let stream = connection.ask().is_ok_and(|name| name == "web");
                answered += usize::from(datagram && stream);
            }
            answered
        });
        over.store(true, Ordering::Relaxed);
        thief.join().unwrap();
        answered.unwrap()
    })
}

/// A virtual machine behind a bridge in its Pod has the Pod's addresses and a link-layer address of its own, as KubeVirt
/// arranges it: it is served, and serves.
#[test]
fn a_machine_behind_a_bridge_in_its_pod_is_served() {
    let lab = Lab::new("machine", Shape::Bridge, ISOLATED);
    let [v4, v6] = lab.friend.ips;
    lab.friend
        .netns
        .ip(&format!(
            "link add br0 type bridge\n\
             link add tap0 type veth peer name vm0\n\
             addr flush dev eth0\n\
             link set eth0 master br0\nlink set tap0 master br0 up\nlink set br0 up\n\
             link set vm0 address 52:54:00:12:34:56 up\n\
             addr add {v4}/24 dev vm0\naddr add {v6}/64 dev vm0 nodad\n\
             route replace default via 10.244.1.1\nroute replace default via fd44:0:0:1::1\n"
        ))
        .unwrap();
    for family in FAMILIES {
        for to in [&lab.web, &lab.far] {
            lab.stage.wait_for(&lab.friend.netns, to.at(family, 8080), &[&to.name]);
        }
        lab.stage.wait_for(&lab.stranger.netns, lab.friend.at(family, 8080), &["friend"]);
    }
    assert_eq!(lab.dropped(At::NodeA, "SPOOFED_MAC"), 0);
}

/// An answer in a Service's name, to a Pod that has just asked it: not from the Pod that the Service chose.
#[test]
fn no_pod_answers_with_a_service_s_address() {
    let lab = Lab::new("svcname", Shape::Bridge, ISOLATED);
    let (thief, asker) = (&lab.stranger, &lab.friend);
    for family in FAMILIES {
        let vip = SocketAddr::new(WEB[family].parse().unwrap(), 80);
        // The flow: friend asks the Service from port 4055; web answers.
        let question = Ip::udp(asker.at(family, 4055), vip, b"?\n");
        asker.port.received().unwrap();
        let via = Link { src: asker.port.mac, dst: raw::mac(&lab.stage.a.netns, "cni0").unwrap() };
        asker.port.send(&via.frame(&question)).unwrap();
        wait::until("web answers as the Service", PATIENCE, || {
            let frames = asker.port.received()?;
            anyhow::ensure!(frames.iter().any(|f| f.windows(3).any(|w| w == b"web")), "not yet");
            Ok(())
        })
        .unwrap();
        let answer = lab.shot("as the Service", |mark| {
            let ip = Ip::udp(vip, asker.at(family, 4055), mark);
            vec![lab.link(thief, asker).frame(&ip)]
        });
        lab.drops(At::NodeA, "SPOOFED_SOURCE", (thief, asker, family), &[answer]);
    }
}

/// A Pod with NET_ADMIN gives itself another Pod's address, beside its own or first, and an agent restarts meanwhile: it
/// stays who it is.
#[test]
fn changed_addresses_change_no_identity() {
    let mut lab = Lab::new("changed", Shape::Routed, ISOLATED);
    let friend = lab.friend.ips;
    lab.mallory
        .netns
        .ip(&format!(
            "addr flush dev eth0 scope global\n\
             addr add {}/32 dev eth0\naddr add {}/32 dev eth0\n\
             addr add {}/128 dev eth0 nodad\naddr add {}/128 dev eth0 nodad\n\
             route replace 10.244.1.1/32 dev eth0 scope link\n\
             route replace default via 10.244.1.1\n\
             route replace fd44:0:0:1::1/128 dev eth0\n\
             route replace default via fd44:0:0:1::1\n",
            friend[0], lab.mallory.ips[0], friend[1], lab.mallory.ips[1],
        ))
        .unwrap();
    for restarted in [false, true] {
        if restarted {
            lab.stage.agents[0].stop().unwrap();
            lab.stage.agents[0].start().unwrap();
        }
        // Another change on the node makes it look again.
        lab.stage.a.netns.ip("link set lo down\nlink set lo up\n").unwrap();
        for family in FAMILIES {
            let link = lab.link(&lab.mallory, &lab.far);
            let shots = [lab.mallory.ips[family], friend[family]].map(|src| {
                lab.shot(format!("as {src}, restarted: {restarted}"), |mark| {
                    let src = SocketAddr::new(src, 4000);
                    vec![link.frame(&Ip::udp(src, lab.far.at(family, 8080), mark))]
                })
            });
            lab.stops(&lab.mallory, &lab.far, family, &shots);
            let shots = to_web(&lab, &lab.mallory, family, &[friend[family]]);
            lab.stops(&lab.mallory, &lab.web, family, &shots);
        }
        let answer = lab
            .friend
            .netns
            .enter(|| ask(Transport::Tcp, lab.web.at(0, 8080), Duration::from_secs(2)));
        assert_eq!(answer.unwrap().unwrap(), "web", "friend is still friend");
    }
}
