//! Packets in packets: the node unpacks what other nodes send it, and nothing of a Pod's.

use std::net::{IpAddr, SocketAddr};

use testbed::{
    Shape,
    frame::{Ip, Link},
    raw,
    raw::Port,
    wait,
};

use super::lab::{At, PATIENCE, Shared, Shot};

const VXLAN: u16 = 8472;

/// A tunnel device, as flannel has it; packets out of it are not checked against routes.
fn tunnelled(shape: Shape) {
    let lab = Shared::isolated(shape);
    let node = &lab.stage.a;
    node.netns
        .ip(&format!(
            "link add flannel.1 type vxlan id 1 local {} dev eth0 dstport {VXLAN} nolearning\n\
             link set flannel.1 up\n",
            node.v4
        ))
        .unwrap();
    let device = Port::open(&node.netns, "flannel.1").unwrap();
    let vtep = raw::mac(&node.netns, "flannel.1").unwrap();
    let inner_link = Link { src: [2, 0, 0, 0, 0, 9], dst: vtep };
    // The inner packet of an attacker has the source of a Pod on another node, and a destination that only friends may reach.
    let inner = |mark: &[u8]| {
        let ip = Ip::udp(lab.far.at(0, 4000), lab.web.at(0, 8080), mark);
        inner_link.frame(&ip)
    };
    let at = SocketAddr::new(node.v4.into(), VXLAN);
    // The agent has to see the device first: until then a forged packet may come through.
    let from = &lab.mallory;
    let link = Link { src: from.port.mac, dst: lab.link(from, &lab.far).dst };
    let vxlan =
        |port: u16, mark: &[u8]| link.frame(&Ip::vxlan(from.at(0, port), at, 1, &inner(mark)));
    wait::until("the node's tunnels are known", PATIENCE, || {
        from.port.send(&vxlan(4300, b"first"))?;
        anyhow::ensure!(lab.dropped(At::NodeA, "ENCAPSULATED") > 0, "not yet");
        Ok(())
    })
    .unwrap();
    // What came through before.
    device.received().unwrap();
    let shots: Vec<Shot> = vec![
        lab.shot("VXLAN", |mark| vec![vxlan(4301, mark)]),
        lab.shot("VXLAN to the gateway", |mark| {
            let at = SocketAddr::new(IpAddr::from([10, 244, 1, 1]), VXLAN);
            vec![link.frame(&Ip::vxlan(from.at(0, 4302), at, 1, &inner(mark)))]
        }),
        lab.shot("IP in IP", |mark| {
            let ip = Ip::udp(lab.far.at(0, 4000), lab.web.at(0, 8080), mark).bytes();
            vec![link.frame(&Ip::new(from.ips[0], node.v4.into(), 4, &ip))]
        }),
        lab.shot("IPv6 in IP", |mark| {
            let ip = Ip::udp(lab.far.at(1, 4000), lab.web.at(1, 8080), mark).bytes();
            vec![link.frame(&Ip::new(from.ips[0], node.v4.into(), 41, &ip))]
        }),
        lab.shot("GRE", |mark| {
            let ip = Ip::udp(lab.far.at(0, 4000), lab.web.at(0, 8080), mark).bytes();
            let body = [&[0, 0, 8, 0], &ip[..]].concat();
            vec![link.frame(&Ip::new(from.ips[0], node.v4.into(), 47, &body))]
        }),
    ];
    lab.drops(At::NodeA, "ENCAPSULATED", (from, &lab.web, 0), &shots);
    let unpacked = device.received().unwrap();
    let unpacked: Vec<_> = shots.iter().filter(|shot| shot.is_in(&unpacked)).collect();
    assert!(unpacked.is_empty(), "unpacked: {unpacked:?}\n{}", lab.stage.logs());
    // In IPv6 as well.
    let node6 = SocketAddr::new(node.v6.into(), VXLAN);
    let six = lab.shot("VXLAN over IPv6", |mark| {
        vec![link.frame(&Ip::vxlan(from.at(1, 4303), node6, 1, &inner(mark)))]
    });
    lab.drops(At::NodeA, "ENCAPSULATED", (from, &lab.far, 1), &[six]);
    // The other node's tunnel goes on.
    let b = &lab.stage.b;
    let sender = Port::open(&b.netns, "eth0").unwrap();
    let link = Link { src: sender.mac, dst: raw::mac(&node.netns, "eth0").unwrap() };
    let src = SocketAddr::new(b.v4.into(), 5555);
    let of_b = lab
        .shot("of the other node", |mark| vec![link.frame(&Ip::vxlan(src, at, 1, &inner(mark)))]);
    wait::until("the other node's packets are unpacked", PATIENCE, || {
        of_b.frames.iter().try_for_each(|frame| sender.send(frame))?;
        anyhow::ensure!(of_b.is_in(&device.received()?), "nothing");
        Ok(())
    })
    .unwrap();
}

#[test]
fn nothing_of_a_pod_is_unpacked_on_a_routed_node() {
    tunnelled(Shape::Routed);
}

#[test]
fn nothing_of_a_pod_is_unpacked_behind_a_bridge() {
    tunnelled(Shape::Bridge);
}
