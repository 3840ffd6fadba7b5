//! The bed itself: Pods of both shapes reach each other straight, and nothing else. Needs root.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use testbed::{
    Bed, Shape,
    client::{Transport, ask},
    load::Load,
    measure,
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
    let _bytes = Server::bytes(&server.netns, 81).unwrap();
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

    let bytes = SocketAddr::new(server.v4.into(), 81);
    let limit = Duration::from_millis(200);
    let (rr, crr) = client
        .netns
        .enter(|| (measure::round_trips(bytes, limit), measure::connects(bytes, limit)))
        .unwrap();
    assert!(rr.unwrap().per_second > crr.unwrap().per_second);
}
