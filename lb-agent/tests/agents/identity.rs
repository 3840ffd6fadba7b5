//! Which Pod is behind a device: addresses of Pods wherever they are configured in them, and containers that are not Pods.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde_json::json;
use testbed::{
    Netns, Node, Pod, Shape,
    client::{Transport, ask},
    manifest::{self, Object, node_of, pod_of},
    server::Server,
    wait,
};

use crate::{
    outside::{addresses, node_port},
    stage::{SOON, Stage, TRANSPORTS, port_80},
};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const VM: [&str; 2] = ["10.96.0.20", "fd96::20"];
const PORTS: [u16; 2] = [30080, 30090];
/// No answer within this time is none: answers take far less.
const DENIED: Duration = Duration::from_millis(500);

/// Clients in the cluster by label, and one outside by its address.
const ONLY_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-friends, namespace: default}
spec:
  podSelector: {matchLabels: {tier: front}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {friend: \"yes\"}}
    - ipBlock: {cidr: 172.31.0.200/32}
    - ipBlock: {cidr: \"fd31::200/128\"}
";

const DENY_ALL: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: default}
spec: {podSelector: {matchLabels: {app: quiet}}, policyTypes: [Ingress, Egress]}
";

fn answers(netns: &Netns, transport: Transport, addr: SocketAddr, limit: Duration) -> bool {
    netns.enter(|| ask(transport, addr, limit)).unwrap().is_ok()
}

/// The number of its node, which its addresses have.
fn number(pod: &Pod) -> u8 {
    pod.v4.octets()[2]
}

/// Its addresses on a bridge in it whose port the veth is, as beside a virtual machine.
fn onto_a_bridge(pod: &Pod, shape: Shape) {
    let n = number(pod);
    let (v4, v6) = (pod.v4, pod.v6);
    let (bits4, bits6) = if shape == Shape::Routed { (32, 128) } else { (24, 64) };
    let mut lines = format!(
        "link add k6t-eth0 type bridge\n\
         addr flush dev eth0\n\
         link set eth0 down\n\
         link set eth0 master k6t-eth0 up\n\
         link set k6t-eth0 up\n\
         addr add {v4}/{bits4} dev k6t-eth0\n\
         addr add {v6}/{bits6} dev k6t-eth0 nodad\n"
    );
    if shape == Shape::Routed {
        lines += &format!(
            "route add 10.244.{n}.1/32 dev k6t-eth0 scope link\n\
             route add fd44:0:0:{n}::1/128 dev k6t-eth0\n"
        );
    }
    lines += &format!(
        "route add default via 10.244.{n}.1\n\
         route add default via fd44:0:0:{n}::1\n"
    );
    pod.netns.ip(&lines).unwrap();
}

/// Two more global IPv6 addresses, later ones than the one in its status, one lower and one higher. No answer is sent
/// from them, as a server without `IPV6_PKTINFO` would.
fn with_more_addresses(pod: &Pod) {
    let n = number(pod);
    let more = format!(
        "addr add fd44:0:0:{n}::5/128 dev eth0 nodad preferred_lft 0\n\
         addr add fd44:0:0:{n}::ffff/128 dev eth0 nodad preferred_lft 0\n"
    );
    pod.netns.ip(&more).unwrap();
}

fn pods_reached_wherever_their_addresses_are(prefix: &str, shape: Shape) {
    let mut stage = Stage::new(prefix, shape);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let outsider = stage.outsider();
    let [web, vm] = ["web", "vm"].map(|name| stage.server(&a, name));
    with_more_addresses(&web);
    onto_a_bridge(&vm, shape);
    let [friend, remote, stranger] = [(&a, "friend"), (&b, "remote"), (&a, "stranger")]
        .map(|(node, name)| node.pod(name).unwrap());
    let mut objects = Vec::new();
    for (pod, ips, port) in [(&web, WEB, PORTS[0]), (&vm, VM, PORTS[1])] {
        objects.push(node_port(&pod.name, ips, port));
        objects.push(pod_of(pod).label("app", &pod.name).label("tier", "front"));
    }
    objects.extend([&friend, &remote].map(|pod| pod_of(pod).label("friend", "yes")));
    objects.push(pod_of(&stranger));
    stage.dir.write("cast", &objects).unwrap();
    stage.wait_for(&stranger.netns, port_80(WEB[0]), &["web"]);
    stage.wait_for(&stranger.netns, port_80(VM[0]), &["vm"]);
    stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    let denied = wait::until("the policy holds", SOON, || {
        let open = answers(&stranger.netns, Transport::Udp, port_80(WEB[0]), DENIED);
        anyhow::ensure!(!open, "the stranger is answered");
        Ok(())
    });
    denied.unwrap_or_else(|err| panic!("{err:#}\n{}", stage.logs()));

    for (pod, ips, port) in [(&web, WEB, PORTS[0]), (&vm, VM, PORTS[1])] {
        let straight = pod.addresses().map(|ip| SocketAddr::new(ip, 8080));
        let inside = straight.into_iter().chain(ips.map(port_80));
        for addr in inside.chain(addresses(&a, port)) {
            for transport in TRANSPORTS {
                let is_node = addr.port() == port;
                if !is_node {
                    for client in [&friend, &remote] {
                        assert_eq!(stage.ask(&client.netns, transport, addr), pod.name, "{addr}");
                    }
                    let what = format!("{transport:?} {addr} from the stranger");
                    let open = answers(&stranger.netns, transport, addr, DENIED);
                    assert!(!open, "{what}\n{}", stage.logs());
                    continue;
                }
                // On the Pod's own node: a client outside, a Pod beside it, the host itself.
                for netns in [&outsider, &friend.netns, &a.netns] {
                    assert_eq!(stage.ask(netns, transport, addr), pod.name, "{addr} from {netns}");
                }
            }
        }
    }
}

#[test]
fn routed_pods_are_reached_wherever_their_addresses_are() {
    pods_reached_wherever_their_addresses_are("idwhr", Shape::Routed);
}

#[test]
fn bridged_pods_are_reached_wherever_their_addresses_are() {
    pods_reached_wherever_their_addresses_are("idwhb", Shape::Bridge);
}

/// A Pod's address in IPv6 only, the second of its device, under a policy: nothing else of it is known.
#[test]
fn a_pod_of_one_family_with_two_addresses() {
    let mut stage = Stage::new("idone", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    with_more_addresses(&web);
    web.netns.ip(&format!("addr del {}/32 dev eth0\n", web.v4)).unwrap();
    let [friend, stranger] = ["friend", "stranger"].map(|name| a.pod(name).unwrap());
    stage.dir.write("nodes", &[node_of(&stage.a), node_of(&stage.b)]).unwrap();
    let only_v6 = |pod: &Pod| manifest::pod(&pod.name, &pod.node).ip(&pod.v6.to_string());
    let web_service = node_port("web", WEB, PORTS[0]);
    stage
        .dir
        .write(
            "cast",
            &[
                web_service,
                only_v6(&web).label("app", "web").label("tier", "front"),
                only_v6(&friend).label("friend", "yes"),
                only_v6(&stranger),
            ],
        )
        .unwrap();
    stage.wait_for(&stranger.netns, port_80(WEB[1]), &["web"]);
    stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    let addr = SocketAddr::new(web.v6.into(), 8080);
    let denied = wait::until("the policy holds", SOON, || {
        anyhow::ensure!(!answers(&stranger.netns, Transport::Udp, addr, DENIED), "it is answered");
        Ok(())
    });
    denied.unwrap_or_else(|err| panic!("{err:#}\n{}", stage.logs()));
    let node_at = SocketAddr::new(IpAddr::from(a.v6), PORTS[0]);
    for transport in TRANSPORTS {
        for addr in [addr, port_80(WEB[1]), node_at] {
            assert_eq!(stage.ask(&friend.netns, transport, addr), "web", "{addr}");
        }
        assert_eq!(stage.ask(&a.netns, transport, node_at), "web");
    }
}

/// A container of something else than Kubernetes, on a bridge of its own, while a Pod that is isolated cannot start. One
/// whose address may be a Pod's waits.
#[test]
fn containers_that_are_not_pods_go_on_beside_a_pod_that_cannot_start() {
    let mut stage = Stage::new("idnopod", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    let n = number(&web);
    let ranges = |node: &Node, n: u8| -> Object {
        node_of(node).set(
            &["spec", "podCIDRs"],
            json!([format!("10.244.{n}.0/24"), format!("fd44:0:0:{n}::/64")]),
        )
    };
    stage.dir.write("nodes", &[ranges(&stage.a, n), ranges(&stage.b, n + 1)]).unwrap();
    let stuck = manifest::pod("stuck", &a.name).label("app", "quiet");
    stage.dir.write("web", &[pod_of(&web).label("app", "web"), stuck]).unwrap();
    stage.dir.write_text("policy", DENY_ALL).unwrap();
    a.netns
        .ip("link add docker0 type bridge\n\
             link set docker0 up\n\
             addr add 172.17.0.1/16 dev docker0\n")
        .unwrap();
    let start = |name: &str, ip: &str| {
        let netns = Netns::create(&format!("idnopod-a-{name}")).unwrap();
        a.netns
            .ip(&format!(
                "link add {name} type veth peer name eth0 netns {netns}\n\
                 link set {name} master docker0 up\n"
            ))
            .unwrap();
        netns
            .ip(&format!(
                "link set eth0 up\n\
                 addr add {ip}/32 dev eth0\n\
                 route add default via 172.17.0.1 dev eth0 onlink\n"
            ))
            .unwrap();
        netns
    };
    let addr = SocketAddr::new(web.v4.into(), 8080);
    // The agent has taken note of the policy: a device whose address may be a Pod's waits.
    let waits = start("waits", &format!("10.244.{n}.200"));
    a.netns.ip(&format!("route add 10.244.{n}.200/32 dev docker0\n")).unwrap();
    let policy = wait::until("the policy holds", SOON, || {
        let lines = stage.agents[0].lbctl(&["policy", "list"])?;
        anyhow::ensure!(lines.contains("deny-all"), "{lines}");
        let said = stage.agents[0].lbctl(&["pods"])?;
        anyhow::ensure!(said.contains("waits"), "{said}");
        Ok(())
    });
    policy.unwrap_or_else(|err| panic!("{err:#}\n{}", stage.logs()));
    let docker = start("docker", "172.17.0.2");
    let answered = wait::until("the container is answered", SOON, || {
        anyhow::ensure!(answers(&docker, Transport::Udp, addr, DENIED), "no answer");
        Ok(())
    });
    answered.unwrap_or_else(|err| panic!("{err:#}\n{}", stage.logs()));
    for transport in TRANSPORTS {
        assert_eq!(stage.ask(&docker, transport, addr), "web");
        assert!(!answers(&waits, transport, addr, DENIED), "{transport:?}\n{}", stage.logs());
    }
    // And it is reached.
    let _server = Server::named(&docker, "docker", 8080).unwrap();
    let inside = SocketAddr::new(IpAddr::from([172, 17, 0, 2]), 8080);
    for transport in TRANSPORTS {
        assert_eq!(stage.ask(&web.netns, transport, inside), "docker");
    }
    // The control of the one that waits: once no Pod is awaited, it is answered, too.
    stage.dir.write("web", &[pod_of(&web).label("app", "web")]).unwrap();
    let answered = wait::until("no Pod is awaited any more", SOON, || {
        anyhow::ensure!(answers(&waits, Transport::Udp, addr, DENIED), "no answer");
        Ok(())
    });
    answered.unwrap_or_else(|err| panic!("{err:#}\n{}", stage.logs()));
}
