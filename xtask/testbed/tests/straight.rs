//! The bed itself: Pods of both shapes reach each other straight, and nothing else. Needs root.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use testbed::{
    Bed, Shape,
    client::{Transport, ask},
    load::Load,
    measure::What,
    series::Entry,
    server::Server,
};

const PATIENCE: Duration = Duration::from_secs(2);

#[test]
fn pods_reach_each_other_and_nothing_else() {
    let bed = Bed::new("tbstr").unwrap();
    let (a, b) = (bed.node("a", Shape::Routed).unwrap(), bed.node("b", Shape::Bridge).unwrap());
    let pods: Vec<_> = [&a, &a, &b, &b]
        .into_iter()
        .zip(0..)
        .map(|(n, i)| n.pod(&format!("p{i}")).unwrap())
        .collect();
    let _servers: Vec<_> =
        pods.iter().map(|pod| Server::named(&pod.netns, &pod.name, 80).unwrap()).collect();
    for client in [&pods[0].netns, &pods[2].netns, &a.netns, &b.netns] {
        for server in &pods {
            for (ip, transport) in server
                .addresses()
                .into_iter()
                .flat_map(|ip| [(ip, Transport::Tcp), (ip, Transport::Udp)])
            {
                let addr = SocketAddr::new(ip, 80);
                let name = client.enter(|| ask(transport, addr, PATIENCE)).unwrap();
                assert_eq!(name.unwrap(), server.name, "{transport:?} {addr} from {client}");
            }
        }
    }
    // A packet to a Service address that was not translated goes to the fabric and no further.
    let lost: IpAddr = "10.96.0.1".parse().unwrap();
    let answer = pods[0]
        .netns
        .enter(|| ask(Transport::Tcp, SocketAddr::new(lost, 80), Duration::from_millis(300)));
    assert!(answer.unwrap().is_err());
    drop(bed);
    assert!(!Path::new("/run/netns/tbstr-a").exists());
    assert!(!Path::new("/run/testbed-tbstr").exists());
}

#[test]
fn loads_and_measurements_count() {
    let bed = Bed::new("tbload").unwrap();
    let a = bed.node("a", Shape::Routed).unwrap();
    let (client, server) = (a.pod("client").unwrap(), a.pod("server").unwrap());
    let named = Server::named(&server.netns, "server", 80).unwrap();
    let addr = SocketAddr::new(server.v4.into(), 80);
    let load = Load { keep_open: true, ..Load::new(Transport::Tcp, addr) };
    let running = load.start(&client.netns).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let report = running.stop().unwrap();
    assert_eq!(report.failed, 0, "{report:?}");
    assert_eq!(report.by_backend["server"], report.requests, "{report:?}");
    assert!((60..=140).contains(&report.requests), "{report:?}");

    drop(named);
    let running = Load::new(Transport::Tcp, addr).start(&client.netns).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let report = running.stop().unwrap();
    assert_eq!(report.failures.get("connection refused"), Some(&report.requests), "{report:?}");

    let program = env!("CARGO_BIN_EXE_traffic");
    let mut bytes = Command::new(program);
    let mut bytes = server.netns.spawn(bytes.args(["bytes", "81", "last"])).unwrap();
    let targets =
        server.addresses().map(|ip| format!("{}={ip},81,81,82", if ip.is_ipv4() { 4 } else { 6 }));
    let whats = What::ALL.map(What::word).join(",");
    let mut series = Command::new(program);
    series.args(["series", &whats, "2", "100", "last"]).args(&targets);
    let output = client.netns.output(&mut series);
    let mut series = Command::new(program);
    series.args(["measure", "round-trips", "10.244.1.11:9", "100", "last"]);
    let nothing = client.netns.output(&mut series);
    bytes.kill().unwrap();
    bytes.wait().unwrap();

    let entries: Vec<Entry> =
        output.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len(), What::ALL.len() * 2 * 2);
    let rate = |what| {
        let of = |entry: &&Entry| entry.what == what && entry.target == "4";
        entries.iter().find(of).unwrap().rate
    };
    // A stream of 100 ms that counts no bytes, or all bytes twice, is far outside of this.
    assert!((1e8..2e12).contains(&rate(What::Stream).per_second), "{entries:?}");
    assert!((1e8..2e12).contains(&rate(What::Streams).per_second), "{entries:?}");
    assert!(rate(What::RoundTrips).per_second > rate(What::Connects).per_second, "{entries:?}");
    assert!(rate(What::RoundTrips).p50_ns < rate(What::Connects).p50_ns, "{entries:?}");
    assert!(rate(What::Datagrams).per_second > 1e3 && rate(What::Datagrams).lost == 0);
    let refused = nothing.unwrap_err().to_string();
    assert!(refused.contains("refused"), "{refused}");
}
