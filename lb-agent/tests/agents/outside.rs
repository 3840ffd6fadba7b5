//! Clients outside the cluster: node ports, load balancer and external addresses, with real sockets and strict hosts
//! (reverse path filters, and netfilter dropping what it finds invalid).

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::json;
use testbed::{
    Netns, Pod, Shape,
    client::{Connection, Transport, ask, ask_to, echo, http_get, seen_as},
    manifest::{Object, node_of, pod, pod_of},
    server::Server,
    wait,
};

use crate::stage::{SOON, Stage, TRANSPORTS, service};

pub(crate) const NODE_PORT: u16 = 30080;
pub(crate) const ECHO_NODE_PORT: u16 = 30081;
const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// Addresses of a load balancer that no device has.
const LB: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
/// The same of an external address.
const EXTERNAL: [&str; 2] = ["203.0.113.20", "2001:db8:113::20"];

/// The Service `name` with node ports for its three ports.
pub(crate) fn node_port(name: &str, ips: [&str; 2], first: u16) -> Object {
    let mut object = service(name, ips).set(&["spec", "type"], json!("NodePort"));
    object = object.set(&["spec", "ports"], json!([]));
    for (protocol, port, target, node_port) in
        [("TCP", 80, 8080, first), ("UDP", 80, 8080, first), ("TCP", 81, 8081, first + 1)]
    {
        let name = format!("{}-{port}", protocol.to_lowercase());
        let entry = json!({"name": name, "protocol": protocol, "port": port, "targetPort": target, "nodePort": node_port});
        object = object.push(&["spec", "ports"], entry);
    }
    object
}

pub(crate) fn load_balancer(object: Object, ips: [&str; 2]) -> Object {
    let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    object
        .set(&["spec", "type"], json!("LoadBalancer"))
        .set(&["status", "loadBalancer", "ingress"], json!(ingress))
}

impl Stage {
    /// The nodes' objects, and an outside client that reaches the addresses of load balancers by node a.
    pub(crate) fn outsider(&self) -> Netns {
        self.dir.write("nodes", &[node_of(&self.a), node_of(&self.b)]).unwrap();
        let client = self.bed.outsider("client").unwrap();
        let (v4, v6) = (self.a.v4, self.a.v6);
        client
            .ip(&format!(
                "route add 203.0.113.0/24 via {v4}\nroute add 2001:db8:113::/64 via {v6}\n"
            ))
            .unwrap();
        client
    }

    pub(crate) fn serve(&self, object: Object, pods: &[&Pod]) {
        let mut objects = vec![object];
        objects.extend(pods.iter().map(|pod| pod_of(pod).label("app", "web")));
        self.dir.write("web", &objects).unwrap();
    }
}

/// Both addresses of a node at a port.
pub(crate) fn addresses(node: &testbed::Node, port: u16) -> [SocketAddr; 2] {
    [IpAddr::from(node.v4), IpAddr::from(node.v6)].map(|ip| SocketAddr::new(ip, port))
}

/// A client outside, and a backend on node b that it reaches by the node port of node a.
pub(crate) fn remote_backend(stage: &mut Stage) -> (Netns, Pod) {
    let b = stage.b.clone();
    let client = stage.outsider();
    let web = stage.server(&b, "web");
    stage.serve(node_port("web", WEB, NODE_PORT), &[&web]);
    for addr in addresses(&stage.a, NODE_PORT) {
        stage.wait_for(&client, addr, &["web"]);
    }
    (client, web)
}

pub(crate) fn echo_600_kb(client: &Netns, addr: SocketAddr, stage: &Stage) {
    let echoed = client.enter(|| echo(addr, 600_000, SOON)).unwrap();
    assert!(echoed.is_ok(), "600 KB to {addr} from {client}: {echoed:?}\n{}", stage.logs());
}

/// The address that the server behind `addr` sees as the client.
pub(crate) fn seen(
    client: &Netns,
    transport: Transport,
    addr: SocketAddr,
    stage: &Stage,
) -> IpAddr {
    match client.enter(|| seen_as(transport, addr, SOON)).unwrap() {
        Ok(seen) => seen.ip(),
        Err(err) => panic!("{transport:?} {addr} from {client}: {err}\n{}", stage.logs()),
    }
}

#[test]
fn routed_pods_serve_clients_outside() {
    serve_clients_outside(Stage::new("eoutr", Shape::Routed));
}

#[test]
fn bridged_pods_serve_clients_outside() {
    serve_clients_outside(Stage::new("eoutb", Shape::Bridge));
}

#[test]
fn bridged_pods_without_bridge_netfilter_serve_clients_outside() {
    serve_clients_outside(Stage::prepared(
        "eoutbn",
        Shape::Bridge,
        crate::cluster_ip::without_bridge_netfilter,
    ));
}

/// One backend on node b: near for what comes in at node b, far for what comes in at node a. Both directions of each
/// flow must take the same way past netfilter or through it, or the bulk of it stalls.
fn serve_clients_outside(mut stage: Stage) {
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let client = stage.outsider();
    let web = stage.server(&b, "web");
    let _echo = Server::bytes(&web.netns, 8081).unwrap();
    stage.serve(load_balancer(node_port("web", WEB, NODE_PORT), LB), &[&web]);
    let outside: [IpAddr; 2] = ["172.31.0.200", "fd31::200"].map(|ip| ip.parse().unwrap());
    for (i, ip) in LB.into_iter().enumerate() {
        stage.wait_for(&client, SocketAddr::new(ip.parse().unwrap(), 80), &["web"]);
        let (near, far) = (addresses(&b, NODE_PORT)[i], addresses(&a, NODE_PORT)[i]);
        for transport in TRANSPORTS {
            assert_eq!(stage.ask(&client, transport, near), "web");
            assert_eq!(seen(&client, transport, near, &stage), outside[i], "the client is kept");
            assert_eq!(stage.ask(&client, transport, far), "web");
            let own = addresses(&a, 0)[i].ip();
            assert_eq!(seen(&client, transport, far, &stage), own, "masqueraded by the other node");
        }
        for addr in [
            addresses(&b, ECHO_NODE_PORT)[i],
            addresses(&a, ECHO_NODE_PORT)[i],
            SocketAddr::new(ip.parse().unwrap(), 81),
        ] {
            echo_600_kb(&client, addr, &stage);
        }
    }
}

/// Inside the cluster every address of a Service works like its ClusterIP, and the client is seen as it is; a host
/// process has the node ports at the loopback address as well.
#[test]
fn s03_clients_inside_reach_every_address() {
    let mut stage = Stage::new("eoutin", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    stage.outsider();
    let web = stage.server(&b, "web");
    let [client, _] = stage.clients();
    // Local to node b: only in-cluster clients may still be served from node a.
    let object = load_balancer(node_port("web", WEB, NODE_PORT), LB)
        .set(&["spec", "externalTrafficPolicy"], json!("Local"));
    stage.serve(object, &[&web]);
    for (i, ip) in LB.into_iter().enumerate() {
        let lb = SocketAddr::new(ip.parse().unwrap(), 80);
        for addr in [lb, addresses(&a, NODE_PORT)[i]] {
            stage.wait_for(&client.netns, addr, &["web"]);
            stage.wait_for(&a.netns, addr, &["web"]);
            for transport in TRANSPORTS {
                let pod = client.addresses()[i];
                assert_eq!(seen(&client.netns, transport, addr, &stage), pod);
            }
        }
        let loopback = ["127.0.0.1", "::1"][i].parse::<IpAddr>().unwrap();
        for transport in TRANSPORTS {
            let addr = SocketAddr::new(loopback, NODE_PORT);
            assert_eq!(stage.ask(&a.netns, transport, addr), "web");
        }
    }
}

/// At another node's address a client inside the cluster is one outside: the packets go there as they are, and what that
/// node's own endpoints do not serve is dropped there.
#[test]
fn s02_s03_another_node_s_address_is_asked_from_outside() {
    let mut stage = Stage::new("eoutoth", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    stage.outsider();
    let web = stage.server(&b, "web");
    let [here, there] = stage.clients();
    let object = load_balancer(node_port("web", WEB, NODE_PORT), LB)
        .set(&["spec", "externalTrafficPolicy"], json!("Local"));
    stage.serve(object, &[&web]);
    for (i, lb) in LB.into_iter().enumerate() {
        let [with, without] = [&b, &a].map(|node| addresses(node, NODE_PORT)[i]);
        let lb = SocketAddr::new(lb.parse().unwrap(), 80);
        // Its own node's and the load balancer's: all endpoints, from the node without one as well.
        for (client, addr) in [(&here, without), (&here, lb), (&there, with), (&there, lb)] {
            stage.wait_for(&client.netns, addr, &["web"]);
        }
        stage.wait_for(&here.netns, with, &["web"]);
        for transport in TRANSPORTS {
            let pod = here.addresses()[i];
            assert_eq!(seen(&here.netns, transport, with, &stage), pod, "the client is kept");
            for client in [&there.netns, &b.netns] {
                let silent = client.enter(|| ask(transport, without, Duration::from_millis(700)));
                let silent = silent.unwrap().map_err(|err| err.kind());
                let kind = silent.as_ref().err();
                let dropped = [std::io::ErrorKind::TimedOut, std::io::ErrorKind::WouldBlock];
                assert!(
                    kind.is_some_and(|kind| dropped.contains(kind)),
                    "{transport:?} {without} from {client}: {silent:?}\n{}",
                    stage.logs()
                );
            }
        }
    }
    let drops = stage.agents[0].lbctl(&["drops"]).unwrap();
    assert!(drops.contains("NO_LOCAL_ENDPOINTS"), "{drops}");
}

/// `externalTrafficPolicy: Local`: the node with the endpoint answers and its health port says so; the other one is
/// silent, and its health port tells the load balancer.
#[test]
fn s02_s06_external_local_answers_where_the_endpoint_is() {
    let mut stage = Stage::new("eoutloc", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let client = stage.outsider();
    let web = stage.server(&b, "web");
    let object = load_balancer(node_port("web", WEB, NODE_PORT), LB)
        .set(&["spec", "externalTrafficPolicy"], json!("Local"))
        .set(&["spec", "healthCheckNodePort"], json!(30999));
    stage.serve(object.clone(), &[&web]);
    for i in 0..2 {
        stage.wait_for(&client, addresses(&b, NODE_PORT)[i], &["web"]);
        let addr = addresses(&a, NODE_PORT)[i];
        // Before its agent knows the Service, the host itself refuses.
        wait::until("dropped, not refused", SOON, || {
            let silent = client.enter(|| ask(Transport::Tcp, addr, Duration::from_millis(700)))?;
            let kind = silent.as_ref().map_err(std::io::Error::kind);
            anyhow::ensure!(kind == Err(std::io::ErrorKind::TimedOut), "{silent:?}");
            Ok(())
        })
        .unwrap();
    }
    let health = |node: &testbed::Node| {
        let addr = SocketAddr::new(node.v4.into(), 30999);
        client.enter(|| http_get(addr, "/", Duration::from_secs(1))).unwrap()
    };
    wait::until("200 of the node with the endpoint", SOON, || {
        Ok(health(&b).map(|body| assert!(body.contains("\"localEndpoints\": 1"), "{body}"))?)
    })
    .unwrap();
    let elsewhere = match health(&a) {
        Ok(body) => panic!("{body}\n{}", stage.logs()),
        Err(err) => err.to_string(),
    };
    assert!(elsewhere.contains("503"), "{elsewhere}");
    // Only a terminating endpoint is left: no new traffic is to come, but what comes is served.
    let leaving = pod_of(&web)
        .label("app", "web")
        .set(&["metadata", "deletionTimestamp"], json!("2026-01-01T00:00:00Z"));
    stage.dir.write("web", &[object, leaving]).unwrap();
    wait::until("503 while only a terminating endpoint is left", SOON, || {
        anyhow::ensure!(health(&b).is_err_and(|err| err.to_string().contains("503")), "not yet");
        Ok(())
    })
    .unwrap();
    assert_eq!(stage.ask(&client, Transport::Tcp, addresses(&b, NODE_PORT)[0]), "web");
}

/// A backend in the host's network: the API server, an ingress controller. It sees the client and answers as the
/// frontend, from its own node as from another.
#[test]
fn host_network_backends_serve_clients_outside() {
    let stage = Stage::new("eouthost", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let client = stage.outsider();
    let _servers =
        [Server::named(&b.netns, "host", 8080).unwrap(), Server::bytes(&b.netns, 8081).unwrap()];
    let host = pod("host", "b")
        .ip(&b.v4.to_string())
        .ip(&b.v6.to_string())
        .label("app", "web")
        .set(&["spec", "hostNetwork"], json!(true));
    let object = load_balancer(node_port("web", WEB, NODE_PORT), LB);
    stage.dir.write("web", &[object, host]).unwrap();
    for (i, ip) in LB.into_iter().enumerate() {
        for node in [&a, &b] {
            stage.wait_for(&client, addresses(node, NODE_PORT)[i], &["host"]);
            for transport in TRANSPORTS {
                assert_eq!(stage.ask(&client, transport, addresses(node, NODE_PORT)[i]), "host");
            }
            echo_600_kb(&client, addresses(node, ECHO_NODE_PORT)[i], &stage);
        }
        echo_600_kb(&client, SocketAddr::new(ip.parse().unwrap(), 81), &stage);
    }
}

/// `spec.externalIPs` are off unless their range is allowed: whoever may create Services could take any address
/// (CVE-2020-8554). `loadBalancerSourceRanges` close the load balancer's address to others, not the node port.
#[test]
fn s27_source_ranges_and_external_ips_that_are_not_allowed() {
    let mut stage = Stage::new("eoutrng", Shape::Routed);
    let a = stage.a.clone();
    let client = stage.outsider();
    let web = stage.server(&a, "web");
    let object = load_balancer(node_port("web", WEB, NODE_PORT), LB)
        .set(&["spec", "externalIPs"], json!(EXTERNAL))
        .set(&["spec", "loadBalancerSourceRanges"], json!(["172.31.0.77/32", "fd31::77/128"]));
    stage.serve(object.clone(), &[&web]);
    stage.wait_for(&client, addresses(&a, NODE_PORT)[0], &["web"]);
    let lb = SocketAddr::new(LB[0].parse().unwrap(), 80);
    let refused = client.enter(|| ask(Transport::Tcp, lb, Duration::from_millis(700))).unwrap();
    assert!(refused.is_err(), "{refused:?}");
    let external = SocketAddr::new(EXTERNAL[0].parse().unwrap(), 80);
    let silent =
        client.enter(|| ask(Transport::Tcp, external, Duration::from_millis(700))).unwrap();
    assert!(silent.is_err(), "{silent:?}");
    let status = stage.agents[0].lbctl(&["status"]).unwrap();
    assert!(status.contains("externalIPs"), "{status}");
    let object =
        object.set(&["spec", "loadBalancerSourceRanges"], json!(["172.31.0.0/24", "fd31::/64"]));
    stage.serve(object, &[&web]);
    for ip in LB {
        stage.wait_for(&client, SocketAddr::new(ip.parse().unwrap(), 80), &["web"]);
    }
}

/// A client keeps its endpoint, from outside as from a Pod and from a host process.
#[test]
fn s11_session_affinity_of_every_kind_of_client() {
    let mut stage = Stage::new("eoutaff", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let client = stage.outsider();
    let pods: Vec<Pod> = (0..4)
        .map(|i| stage.server(if i % 2 == 0 { &a } else { &b }, &format!("web{i}")))
        .collect();
    let inside = a.pod("inside").unwrap();
    let object = node_port("web", WEB, NODE_PORT)
        .set(&["spec", "sessionAffinity"], json!("ClientIP"))
        .set(&["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"], json!(600));
    stage.serve(object, &pods.iter().collect::<Vec<_>>());
    let names = ["web0", "web1", "web2", "web3"];
    for (i, ip) in WEB.into_iter().enumerate() {
        let vip = SocketAddr::new(ip.parse().unwrap(), 80);
        for (netns, addr) in
            [(&client, addresses(&a, NODE_PORT)[i]), (&inside.netns, vip), (&a.netns, vip)]
        {
            stage.wait_for(netns, addr, &names);
            for transport in TRANSPORTS {
                let first = stage.ask(netns, transport, addr);
                for _ in 0..12 {
                    assert_eq!(stage.ask(netns, transport, addr), first, "{addr} from {netns}");
                }
            }
        }
    }
}

/// Frontends are for first packets: whoever is connected stays so when the node port and the load balancer's address are
/// taken away, wherever the backend is and over passes over conntrack; and is reset when the backend is gone.
#[test]
fn s52_connections_from_outside_outlive_their_frontends() {
    const PASSES: Duration = Duration::from_secs(40);
    let mut stage = Stage::new("eoutend", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let client = stage.outsider();
    let web = stage.server(&b, "web");
    let exposed = load_balancer(node_port("web", WEB, NODE_PORT), LB);
    stage.serve(exposed, &[&web]);
    let mut addrs = Vec::new();
    for (i, ip) in LB.into_iter().enumerate() {
        let lb = SocketAddr::new(ip.parse().unwrap(), 80);
        addrs.extend([lb, addresses(&a, NODE_PORT)[i], addresses(&b, NODE_PORT)[i]]);
    }
    let mut open = Vec::new();
    for addr in addrs {
        stage.wait_for(&client, addr, &["web"]);
        let connection = client.enter(|| Connection::open(addr, Duration::from_secs(3))).unwrap();
        open.push((addr, connection.unwrap()));
    }
    stage.serve(service("web", WEB), &[&web]);
    for (addr, _) in &open {
        wait::until("no new connection", SOON, || {
            let answer = client.enter(|| ask(Transport::Tcp, *addr, Duration::from_millis(500)))?;
            anyhow::ensure!(answer.is_err(), "{addr} answers");
            Ok(())
        })
        .unwrap();
    }
    let end = Instant::now() + PASSES;
    while Instant::now() < end {
        for (addr, connection) in &mut open {
            let answer = connection.ask();
            assert_eq!(answer.as_deref().ok(), Some("web"), "{addr}: {answer:?}\n{}", stage.logs());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    stage.dir.remove("web").unwrap();
    for (addr, mut connection) in open {
        wait::until("reset of a connection to a Pod that is gone", 4 * SOON, || {
            match connection.ask() {
                Err(err) if err.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
                Err(err) => panic!("{addr}: {err}\n{}", stage.logs()),
                Ok(name) => anyhow::bail!("{addr} answered by {name}"),
            }
        })
        .unwrap();
    }
}

/// A process of the node and a Pod that the CNI masquerades send a datagram from a node port: whoever is asked answers
/// everything, as does the Service's Pod. The answer comes to who has asked, and that is the end of it.
#[test]
fn s54_the_node_s_own_datagrams_from_a_node_port_are_answered_to_it() {
    const MASQUERADE: &str = "table inet cni {
      chain postrouting {
        type nat hook postrouting priority 100;
        ip saddr 10.244.0.0/16 ip daddr 172.31.0.200 masquerade
        ip6 daddr fd31::200 masquerade
      }
    }";
    let mut stage = Stage::prepared("eoutown", Shape::Routed, |node| {
        node.netns.nft(MASQUERADE).unwrap();
    });
    let a = stage.a.clone();
    let remote = stage.outsider();
    let _remotes = [9000, 9001].map(|port| Server::named(&remote, "remote", port).unwrap());
    let web = stage.server(&a, "web");
    let [pod, _] = stage.clients();
    stage.serve(node_port("web", WEB, NODE_PORT), &[&web]);
    for (i, ip) in ["172.31.0.200", "fd31::200"].into_iter().enumerate() {
        let node_port = addresses(&a, NODE_PORT)[i];
        stage.wait_for(&remote, node_port, &["web"]);
        // Of two flows to one port netfilter would give the second another port of the node.
        for (netns, port) in [(&a.netns, 9000), (&pod.netns, 9001)] {
            let remote_at = SocketAddr::new(ip.parse().unwrap(), port);
            let before = datagrams(&remote);
            let any: IpAddr = if node_port.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            for round in 0..3 {
                let answer = netns.enter(|| {
                    let socket = std::net::UdpSocket::bind((any, NODE_PORT))?;
                    socket.set_read_timeout(Some(SOON))?;
                    ask_to(&socket, remote_at)
                });
                let answer = answer.unwrap().map_err(|err| err.to_string());
                let want = ("remote".to_owned(), remote_at);
                assert_eq!(answer, Ok(want), "{round} from {netns}\n{}", stage.logs());
            }
            assert_eq!(datagrams(&remote) - before, 3, "questions and no more, from {netns}");
        }
        assert_eq!(stage.ask(&remote, Transport::Udp, node_port), "web", "and clients are served");
    }
}

/// Datagrams that came to a namespace, in both families.
fn datagrams(netns: &Netns) -> u64 {
    let text = netns
        .enter(|| {
            std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap()
                + &std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()
        })
        .unwrap();
    let v6 = text.lines().find_map(|line| line.strip_prefix("Udp6InDatagrams"));
    let v4 = text.lines().filter_map(|line| line.strip_prefix("Udp: ")).nth(1);
    let v4 = v4.and_then(|line| line.split(' ').next());
    [v4, v6].into_iter().map(|n| n.unwrap().trim().parse::<u64>().unwrap()).sum()
}
