//! Packets in another's name: of nodes, other Pods, Services, strangers; and forged neighbours, by which a Pod takes
//! another's place on a bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use testbed::{
    Shape,
    client::Transport,
    frame::{BROADCAST, Ip, Link},
    raw, wait,
};

use crate::{
    lab::{At, FAMILIES, ISOLATED, Lab, PATIENCE, Shot, Station, WEB},
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

/// Everybody may reach a Pod from its own node; but not who says so: outside, on another node, or a Pod beside.
fn own_node(shape: Shape, prefix: &str) {
    let lab = Lab::new(prefix, shape, ISOLATED);
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
    own_node(Shape::Routed, "ownroute");
}

#[test]
fn the_own_node_is_who_it_is_behind_a_bridge() {
    own_node(Shape::Bridge, "ownbridge");
}

/// Router advertisements, redirects, and ARP and neighbour advertisements in another's name, leave no Pod; its own do.
fn neighbours(shape: Shape, prefix: &str) {
    let lab = Lab::new(prefix, shape, ISOLATED);
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
        // A trailer is no part of an ARP packet, and shows that it arrived.
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
    // Everybody finds his neighbours anew.
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
    neighbours(Shape::Routed, "neiroute");
}

#[test]
fn forged_neighbours_leave_no_pod_behind_a_bridge() {
    neighbours(Shape::Bridge, "neibridge");
}

/// An answer in a Service's name, to a Pod that has just asked it: not from the Pod that the Service chose.
#[test]
fn nobody_answers_in_a_service_s_name() {
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
