//! Endpoints come and go: what runs goes on, what is new goes to who is there.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use testbed::{
    Netns, Pod, Shape,
    client::{Connection, Transport, ask, ask_and_reset, ask_connected, udp_socket},
    load::{Load, Running},
    manifest::{pod_of, slice},
    wait,
};

use crate::stage::{SOON, Stage, TRANSPORTS, port_80};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const ALSO: [&str; 2] = ["10.96.0.11", "fd96::11"];

/// The agent kills the flows of a backend that has left only after 5 s, so that requests under way can finish.
const DRAINED: Duration = Duration::from_secs(20);
/// The same: no sooner.
const DRAIN: Duration = Duration::from_secs(5);

/// 0 → N → 0 endpoints: refusal, answers, refusal. A connected UDP socket of a Pod follows each step.
#[test]
fn s15_flows_follow_from_zero_to_n_and_back() {
    let mut stage = Stage::new("ezero", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    let [client, _] = stage.clients();
    for ip in WEB {
        let addr = port_80(ip);
        let socket = client.netns.enter(|| udp_socket(addr, Duration::from_millis(300))).unwrap();
        let socket = socket.unwrap();
        socket.connect(addr).unwrap();
        for _ in 0..2 {
            stage.announce("web", WEB, &[]);
            becomes(&stage, "the old UDP socket is refused", || refused(ask_connected(&socket)));
            for netns in [&client.netns, &a.netns] {
                for transport in TRANSPORTS {
                    becomes(&stage, "a new flow is refused", || {
                        refused(netns.enter(|| ask(transport, addr, SOON))?)
                    });
                }
            }
            stage.announce("web", WEB, &[&web]);
            becomes(&stage, "the old UDP socket is answered", || {
                // A refusal from before may still wait in the socket.
                Ok(ask_connected(&socket).map(drop)?)
            });
            for netns in [&client.netns, &a.netns] {
                stage.wait_for(netns, addr, &["web"]);
            }
        }
    }
}

fn refused(answer: io::Result<String>) -> anyhow::Result<()> {
    match answer {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => anyhow::bail!("{other:?}"),
    }
}

fn becomes(stage: &Stage, what: &str, attempt: impl FnMut() -> anyhow::Result<()>) {
    if let Err(err) = wait::until(what, SOON, attempt) {
        panic!("{err:#}\n{}", stage.logs());
    }
}

/// A backend leaves under load from a Pod and from the host, over both transports: no request fails, and the backend
/// gets no new ones.
#[test]
fn backend_leaves_under_load_and_no_request_fails() {
    let mut stage = Stage::new("eleave", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let (one, two) = (stage.server(&a, "one"), stage.server(&b, "two"));
    let [client, _] = stage.clients();
    keep_the_source_port(&client);
    stage.announce("web", WEB, &[&one, &two]);
    for netns in [&client.netns, &a.netns] {
        for ip in WEB {
            stage.wait_for(netns, port_80(ip), &["one", "two"]);
        }
    }
    let loads = loads(&[&client.netns, &a.netns]);
    std::thread::sleep(Duration::from_secs(1));
    stage.announce("web", WEB, &[&two]);
    std::thread::sleep(Duration::from_secs(2));
    no_failures(&stage, loads);

    for netns in [&client.netns, &a.netns] {
        for transport in TRANSPORTS {
            let load =
                Load { duration: Duration::from_millis(300), ..new_flows(transport, WEB[0]) };
            let report = load.start(netns).unwrap().wait().unwrap();
            assert_eq!(report.by_backend.keys().collect::<Vec<_>>(), ["two"], "{report:?}");
        }
    }
}

/// A load of new flows from each namespace, over each transport.
fn loads(namespaces: &[&Netns]) -> Vec<(String, Running)> {
    let mut loads = Vec::new();
    for netns in namespaces {
        for transport in TRANSPORTS {
            let running = new_flows(transport, WEB[0]).start(netns).unwrap();
            loads.push((format!("{transport:?} from {netns}"), running));
        }
    }
    loads
}

fn new_flows(transport: Transport, ip: &str) -> Load {
    Load { rate: 100, workers: 2, ..Load::new(transport, port_80(ip)) }
}

fn no_failures(stage: &Stage, loads: Vec<(String, Running)>) {
    for (name, load) in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failed, 0, "{name}: {report:?}\n{}", stage.logs());
        assert!(report.requests > 100, "{name}: {report:?}");
    }
}

/// The UDP flow of a Pod whose backend leaves goes to another backend, without the socket's help.
#[test]
fn s16_udp_flow_chooses_again_when_its_backend_leaves() {
    let mut stage = Stage::new("eudp", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let (one, two) = (stage.server(&a, "one"), stage.server(&b, "two"));
    let [client, _] = stage.clients();
    stage.announce("web", WEB, &[&one]);
    for ip in WEB {
        let addr = port_80(ip);
        stage.announce("web", WEB, &[&one]);
        stage.wait_for(&client.netns, addr, &["one"]);
        let socket = client.netns.enter(|| udp_socket(addr, SOON)).unwrap().unwrap();
        socket.connect(addr).unwrap();
        assert_eq!(ask_connected(&socket).unwrap(), "one");
        // The flow stays where it is as long as its backend does.
        stage.announce("web", WEB, &[&one, &two]);
        stage.wait_for(&client.netns, addr, &["two"]);
        for _ in 0..20 {
            assert_eq!(ask_connected(&socket).unwrap(), "one");
        }
        stage.announce("web", WEB, &[&two]);
        becomes(&stage, "the UDP flow moves", || {
            // Whoever answers: none of the questions is lost.
            let name = ask_connected(&socket)?;
            anyhow::ensure!(name == "two", "answered by {name}");
            Ok(())
        });
    }
}

/// A TCP connection outlives its backend's leaving for a while, and is then reset instead of hanging.
#[test]
fn s15_connection_to_a_dead_backend_drains_and_is_reset() {
    let mut stage = Stage::new("edead", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let (one, two) = (stage.server(&b, "one"), stage.server(&b, "two"));
    let client = a.pod("client").unwrap();
    stage.announce("web", WEB, &[&one]);
    for ip in WEB {
        stage.wait_for(&client.netns, port_80(ip), &["one"]);
    }
    let mut connections = WEB.map(|ip| {
        let open = client.netns.enter(|| Connection::open(port_80(ip), Duration::from_secs(3)));
        open.unwrap().unwrap()
    });
    for connection in &mut connections {
        assert_eq!(connection.ask().unwrap(), "one");
    }
    stage.announce("web", WEB, &[&two]);
    for ip in WEB {
        stage.wait_for(&client.netns, port_80(ip), &["two"]);
    }
    for connection in &mut connections {
        assert_eq!(connection.ask().unwrap(), "one", "drains");
    }
    for connection in &mut connections {
        let what = "reset of the connection to a dead backend";
        wait::until(what, DRAINED, || match connection.ask() {
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(err) => panic!("{what}: {err}\n{}", stage.logs()),
            Ok(name) => anyhow::bail!("answered by {name}"),
        })
        .unwrap();
    }
}

/// A connection lasts as long as its Pod, whatever happens to the Service: the Pod loses its label, then the Service is
/// deleted. New connections find no backend. A connection to an endpoint that is not a Pod lasts until it ends.
#[test]
fn s51_a_connection_outlives_its_service_and_ends_with_its_pod() {
    let mut stage = Stage::new("eleft", Shape::Routed);
    let b = stage.b.clone();
    let (web, other) = (stage.server(&b, "web"), stage.server(&b, "other"));
    let [client, _] = stage.clients();
    let plain = crate::stage::service("plain", ALSO);
    let plain = [
        plain.set(&["spec", "selector"], serde_json::json!(null)),
        slice("plain-4", "plain", &other.addresses()[..1]).slice_port("TCP", 80, 8080),
        slice("plain-6", "plain", &other.addresses()[1..]).slice_port("TCP", 80, 8080),
    ];
    stage.dir.write("plain", &plain).unwrap();
    stage.announce("web", WEB, &[&web]);
    let open = |ip: &str| {
        becomes(&stage, "a connection", || {
            client.netns.enter(|| ask(Transport::Tcp, port_80(ip), SOON))??;
            Ok(())
        });
        client.netns.enter(|| Connection::open(port_80(ip), Duration::from_secs(3))).unwrap()
    };
    let mut to_pod = WEB.map(|ip| open(ip).unwrap());
    let mut to_other = ALSO.map(|ip| open(ip).unwrap());
    let all_answer = |what: &str, connections: &mut [Connection; 2], name: &str| {
        for connection in connections {
            let answer = connection.ask();
            assert_eq!(answer.as_deref().ok(), Some(name), "{what}: {answer:?}\n{}", stage.logs());
        }
    };
    let mut go_on = |what: &str| {
        let end = Instant::now() + 2 * DRAIN;
        while Instant::now() < end {
            all_answer(what, &mut to_pod, "web");
            all_answer(what, &mut to_other, "other");
            std::thread::sleep(Duration::from_millis(250));
        }
    };
    stage.dir.remove("plain").unwrap();
    let moved = pod_of(&web).label("app", "moved");
    stage.dir.write("web", &[crate::stage::service("web", WEB), moved.clone()]).unwrap();
    for ip in WEB {
        becomes(&stage, "a new one is refused", || {
            refused(client.netns.enter(|| ask(Transport::Tcp, port_80(ip), SOON))?)
        });
    }
    go_on("without the label");
    stage.dir.write("web", &[moved]).unwrap();
    go_on("without the Service");
    stage.dir.remove("web").unwrap();
    for connection in &mut to_pod {
        let what = "reset of the connection to a Pod that is gone";
        wait::until(what, DRAINED, || match connection.ask() {
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(err) => panic!("{what}: {err}\n{}", stage.logs()),
            Ok(name) => anyhow::bail!("answered by {name}"),
        })
        .unwrap();
    }
    for connection in &mut to_other {
        assert_eq!(connection.ask().unwrap(), "other");
    }
}

/// A SYN on the tuple of a closed connection is a new flow: it chooses afresh and does not stall.
#[test]
fn s22_reused_source_port_chooses_afresh() {
    let mut stage = Stage::new("ereuse", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let (one, two) = (stage.server(&a, "one"), stage.server(&b, "two"));
    let [client, _] = stage.clients();
    keep_the_source_port(&client);
    stage.announce("web", WEB, &[&one, &two]);
    for ip in WEB {
        stage.wait_for(&client.netns, port_80(ip), &["one", "two"]);
    }
    use_one_source_port(&client);
    for ip in WEB {
        let names: std::collections::BTreeSet<String> = (0..60)
            .map(|i| match client.netns.enter(|| ask_and_reset(port_80(ip), SOON)).unwrap() {
                Ok(name) => name,
                Err(err) => panic!("connection {i} to {ip}: {err}\n{}", stage.logs()),
            })
            .collect();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["one", "two"]);
    }
}

/// No connection of the client gets the source port that [`use_one_source_port`] gives to all: it would wait there for a minute.
fn keep_the_source_port(client: &Pod) {
    client.netns.sysctl(&[("net/ipv4/ip_local_reserved_ports", "40000")]).unwrap();
}

/// Every connection of the client gets the same source port.
fn use_one_source_port(client: &Pod) {
    let none_reserved = ("net/ipv4/ip_local_reserved_ports", "\n");
    client.netns.sysctl(&[none_reserved, ("net/ipv4/ip_local_port_range", "40000 40000")]).unwrap();
}

/// One backend behind two ClusterIPs, dialled from one source port: after translation both flows would be the same.
#[test]
fn s20_two_services_of_one_backend_from_one_source_port() {
    let (stage, client, _) = two_services_of_one_backend("etuple");
    for (first, second) in WEB.into_iter().zip(ALSO) {
        all_at_once(&stage, &client, &[port_80(first), port_80(second)]);
    }
}

/// The same with one of the flows going straight to the backend, before or after the other.
#[test]
fn s20_service_and_its_backend_from_one_source_port() {
    let (stage, client, web) = two_services_of_one_backend("estrait");
    for (service, backend) in WEB.into_iter().zip(web.addresses()) {
        let backend = SocketAddr::new(backend, 8080);
        all_at_once(&stage, &client, &[backend, port_80(service)]);
        all_at_once(&stage, &client, &[port_80(service), backend]);
    }
}

/// A backend on the other node, two Services that select it, and a client with one source port.
fn two_services_of_one_backend(prefix: &str) -> (Stage, Pod, Pod) {
    let mut stage = Stage::new(prefix, Shape::Routed);
    let b = stage.b.clone();
    let web = stage.server(&b, "web");
    let [client, _] = stage.clients();
    keep_the_source_port(&client);
    stage.announce("web", WEB, &[&web]);
    let also = crate::stage::service("also", ALSO)
        .set(&["spec", "selector"], serde_json::json!({"app": "web"}));
    stage.dir.write("also", &[also]).unwrap();
    for ip in [WEB, ALSO].as_flattened() {
        stage.wait_for(&client.netns, port_80(ip), &["web"]);
    }
    use_one_source_port(&client);
    (stage, client, web)
}

/// Opens a connection to each address, then asks over all of them in turn.
fn all_at_once(stage: &Stage, client: &Pod, addrs: &[SocketAddr]) {
    let mut open = Vec::new();
    for (i, addr) in addrs.iter().enumerate() {
        let connection = client.netns.enter(|| Connection::open(*addr, SOON)).unwrap();
        let connection = connection
            .unwrap_or_else(|err| panic!("connection {i} of {addrs:?}: {err}\n{}", stage.logs()));
        open.push(connection);
    }
    for _ in 0..3 {
        for (connection, addr) in open.iter_mut().zip(addrs) {
            let name = connection.ask();
            let name = name.unwrap_or_else(|err| {
                panic!("answer of {addr} among {addrs:?}: {err}\n{}", stage.logs())
            });
            assert_eq!(name, "web");
        }
    }
    // Ended by a reset: TIME_WAIT would keep the one source port.
    open.into_iter().for_each(|connection| connection.reset().unwrap());
}
