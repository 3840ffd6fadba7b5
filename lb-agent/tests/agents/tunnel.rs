//! Devices without a link layer, as tunnels, WireGuard and PPP have: packets come and go without an Ethernet header.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;
use testbed::{
    Shape,
    client::{Transport, return_datagram},
    manifest::{pod, pod_of},
    server::Server,
    tun::Wire,
};

use crate::outside::{addresses, echo_600_kb, node_port, seen};
use crate::stage::{SOON, Stage, TRANSPORTS};

/// NodePorts of the Services near, far and host; the ports of their echoes are one above.
const PORTS: [u16; 3] = [30080, 30090, 30100];

/// The client reaches node a, and the nodes each other's Pods, by such devices only. A Pod of node a, a Pod of the other
/// node and a process of node a answer, and each sees the expected client.
#[test]
fn clients_and_nodes_behind_devices_without_a_link_layer() {
    let mut stage = Stage::new("etun", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let client = stage.outsider();
    let _wires = [
        Wire::connect([(&client, "tun0"), (&a.netns, "tun0")]).unwrap(),
        Wire::connect([(&a.netns, "tun1"), (&b.netns, "tun1")]).unwrap(),
    ];
    client
        .ip(&format!(
            "link set eth0 down\n\
             addr add 10.77.0.2/30 dev tun0\n\
             addr add fd77::2/64 dev tun0 nodad\n\
             route add {}/32 dev tun0 src 10.77.0.2\n\
             route add {}/128 dev tun0 src fd77::2\n",
            a.v4, a.v6
        ))
        .unwrap();
    // A datagram server of the host answers from the address that the route prefers: the one that was asked.
    a.netns
        .ip(&format!(
            "addr add 10.77.0.1/30 dev tun0 noprefixroute\n\
             addr add fd77::1/64 dev tun0 nodad noprefixroute\n\
             route add 10.77.0.0/30 dev tun0 src {}\n\
             route add fd77::/64 dev tun0 src {}\n\
             addr add 10.78.0.1/30 dev tun1\n\
             addr add fd78::1/64 dev tun1 nodad\n\
             route replace 10.244.2.0/24 via 10.78.0.2\n\
             route replace fd44:0:0:2::/64 via fd78::2\n",
            a.v4, a.v6
        ))
        .unwrap();
    b.netns
        .ip("addr add 10.78.0.2/30 dev tun1\n\
             addr add fd78::2/64 dev tun1 nodad\n\
             route replace 10.244.1.0/24 via 10.78.0.1\n\
             route replace fd44:0:0:1::/64 via fd78::1\n")
        .unwrap();

    let (near, far) = (stage.server(&a, "near"), stage.server(&b, "far"));
    let _servers = [
        Server::bytes(&near.netns, 8081).unwrap(),
        Server::bytes(&far.netns, 8081).unwrap(),
        Server::named(&a.netns, "host", 8080).unwrap(),
        Server::bytes(&a.netns, 8081).unwrap(),
    ];
    let host = pod("host", "a").ip(&a.v4.to_string()).ip(&a.v6.to_string());
    let host = host.set(&["spec", "hostNetwork"], json!(true));
    let backends = [("near", pod_of(&near)), ("far", pod_of(&far)), ("host", host)];
    for (i, (name, backend)) in backends.into_iter().enumerate() {
        let (v4, v6) = (format!("10.96.0.1{i}"), format!("fd96::1{i}"));
        let service = node_port(name, [&v4, &v6], PORTS[i]);
        stage.dir.write(name, &[service, backend.label("app", name)]).unwrap();
    }
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (i, (own, masqueraded)) in
        [("10.77.0.2", "10.78.0.1"), ("fd77::2", "fd78::1")].into_iter().enumerate()
    {
        let at = |port: u16| -> SocketAddr { addresses(&a, port)[i] };
        for ((name, sees), port) in
            [("near", own), ("far", masqueraded), ("host", own)].into_iter().zip(PORTS)
        {
            stage.wait_for(&client, at(port), &[name]);
            for transport in TRANSPORTS {
                assert_eq!(stage.ask(&client, transport, at(port)), name);
            }
            assert_eq!(seen(&client, Transport::Tcp, at(port), &stage), ip(sees), "{name}");
            echo_600_kb(&client, at(port + 1), &stage);
        }
    }
    // What comes in by such a device is cut like anything else.
    a.netns.ip(&format!("link set {} mtu 1400\nlink set tun1 mtu 1400\n", near.device)).unwrap();
    near.netns.ip("link set eth0 mtu 1400\n").unwrap();
    client.sysctl(&[("net/ipv4/ip_no_pmtu_disc", "1")]).unwrap();
    let [near, far, _] = PORTS;
    for port in [near, far] {
        for n in [1_422, 4_000] {
            let at = addresses(&a, port)[0];
            let back = client.enter(|| return_datagram(at, n, SOON)).unwrap();
            assert!(back.is_ok(), "{n} bytes to {at}: {back:?}\n{}", stage.logs());
        }
    }
}
