//! What no backend can answer is refused at once, in words that every client understands.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use testbed::{
    Netns, Shape,
    client::{Transport, ask},
    manifest::{pod_of, slice},
};

use crate::stage::{Stage, TRANSPORTS, port_80, service};

const EMPTY: [&str; 2] = ["10.96.0.10", "fd96::10"];
const WEB: [&str; 2] = ["10.96.0.11", "fd96::11"];

/// Longer than any refusal takes, shorter than the first retransmission of a SYN (1 s).
const AT_ONCE: Duration = Duration::from_millis(500);

/// A Service without endpoints refuses actively and fast: to Pods and hosts, over TCP and UDP, in both families.
#[test]
fn s01_without_endpoints_refuses_at_once() {
    let stage = Stage::new("erefuse", Shape::Routed);
    let [client, _] = stage.clients();
    stage.dir.write("empty", &[service("empty", EMPTY)]).unwrap();
    for netns in [&client.netns, &stage.a.netns] {
        for ip in EMPTY {
            becomes_refused(&stage, netns, port_80(ip));
        }
    }
}

/// Like the routed Pod: the answer takes another way back to a Pod behind a bridge.
#[test]
fn s01_bridged_pod_is_refused_at_once() {
    let stage = Stage::new("erefuseb", Shape::Bridge);
    let [client, _] = stage.clients();
    stage.dir.write("empty", &[service("empty", EMPTY)]).unwrap();
    for ip in EMPTY {
        becomes_refused(&stage, &client.netns, port_80(ip));
    }
}

/// A port that the Service does not declare is refused too; the declared ones work.
#[test]
fn s25_undefined_port_is_refused() {
    let mut stage = Stage::new("eundef", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    let [client, _] = stage.clients();
    stage.announce("web", WEB, &[&web]);
    for netns in [&client.netns, &a.netns] {
        for ip in WEB {
            stage.wait_for(netns, port_80(ip), &["web"]);
            let undefined = SocketAddr::new(port_80(ip).ip(), 8080);
            for transport in TRANSPORTS {
                refused_at_once(&stage, netns, transport, undefined);
            }
        }
    }
}

/// One family of a Service has endpoints, the other has none: one works, the other refuses.
#[test]
fn s29_families_are_independent() {
    let mut stage = Stage::new("efamily", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    let [client, _] = stage.clients();
    let endpoints = slice("web-v4", "web", &[web.v4.into()])
        .slice_port("TCP", 80, 8080)
        .slice_port("UDP", 80, 8080);
    stage.dir.write("web", &[service("web", WEB), endpoints, pod_of(&web)]).unwrap();
    for netns in [&client.netns, &a.netns] {
        stage.wait_for(netns, port_80(WEB[0]), &["web"]);
        for transport in TRANSPORTS {
            refused_at_once(&stage, netns, transport, port_80(WEB[1]));
        }
    }
}

/// Waits for the agent to have read the Service, then wants every further refusal at once.
fn becomes_refused(stage: &Stage, netns: &Netns, addr: SocketAddr) {
    let what = format!("refusal of {addr} to {netns}");
    let refused = testbed::wait::until(&what, crate::stage::SOON, || {
        match netns.enter(|| ask(Transport::Tcp, addr, AT_ONCE))? {
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    });
    if let Err(err) = refused {
        panic!("{err:#}\n{}", stage.logs());
    }
    for transport in TRANSPORTS {
        refused_at_once(stage, netns, transport, addr);
    }
}

fn refused_at_once(stage: &Stage, netns: &Netns, transport: Transport, addr: SocketAddr) {
    for _ in 0..5 {
        let start = Instant::now();
        let answer = netns.enter(|| ask(transport, addr, 2 * AT_ONCE)).unwrap();
        let took = start.elapsed();
        let refused = matches!(&answer, Err(err) if err.kind() == io::ErrorKind::ConnectionRefused);
        let what = format!("{transport:?} {addr} from {netns} after {took:?}: {answer:?}");
        assert!(refused && took < AT_ONCE, "{what}\n{}", stage.logs());
    }
}
