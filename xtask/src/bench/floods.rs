//! What floods from one Pod, or from a host outside, do to another Pod's connections: 200 that are open through a ClusterIP,
//! each asked every two seconds, and new ones that are opened meanwhile.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;
use testbed::{
    Netns, Pod,
    client::Connection,
    frame::{Ip, Link, Tcp, flags},
    manifest::{pod_of, policy},
    raw,
    raw::Port,
};

use super::field::{Field, TARGET};
use crate::command::say;

/// Connections that are open before a flood begins.
const KEPT: usize = 200;
/// Each is asked again after this time.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A port without a listener.
const CLOSED: u16 = 9;
/// The node port of the measured Service.
const NODE_PORT: u16 = 8080;

/// What happened to the neighbor's connections under a flood.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Flooded {
    /// What was sent, and its sender.
    pub(super) flood: &'static str,
    /// Packets a second that the machine managed to send.
    pub(super) per_second: u64,
    /// Open connections that broke, of how many.
    pub(super) broken: usize,
    /// How many there were.
    pub(super) of: usize,
    /// New connections that were answered.
    pub(super) opened: usize,
    /// New connections that were not.
    pub(super) failed: usize,
    /// Median time from connecting to the answer, in milliseconds.
    pub(super) p50_ms: f64,
    /// 99th percentile of it.
    pub(super) p99_ms: f64,
}

/// A flood: who sends what, packets a second.
struct Flood<'a> {
    name: &'static str,
    netns: &'a Netns,
    rate: u64,
    source: Source,
}

/// Where a flood's packets come from.
enum Source {
    /// Frames, made by their number.
    Frames(Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>),
    /// Datagrams of ordinary sockets, each twice.
    Datagrams(Ipv4Addr),
}

/// Measures each flood for some seconds.
pub(super) fn measure(field: &Field, quick: bool) -> Result<Vec<Flooded>> {
    let seconds = Duration::from_secs(if quick { 6 } else { 20 });
    let node = &field.with.node;
    let (flooder, isolated) = (node.pod("flooder")?, node.pod("isolated")?);
    let deny = json!({"podSelector": {"matchLabels": {"role": "isolated"}}});
    let pods = [&flooder, &isolated, &field.with.client, &field.with.near, &field.with.far];
    let mut objects = vec![policy("isolated", deny)];
    objects.extend(pods.map(|pod| pod_of(pod).label("role", &pod.name)));
    field.manifests.write("floods", &objects)?;
    field.announce_target(&field.with.far)?;
    let mut measured = Vec::new();
    for flood in floods(field, &flooder, &isolated)? {
        say(&format!("under a flood: {}", flood.name));
        measured.push(under(field, &flood, seconds)?);
    }
    field.manifests.remove("floods")?;
    Ok(measured)
}

fn floods<'a>(field: &'a Field, flooder: &'a Pod, isolated: &Pod) -> Result<Vec<Flood<'a>>> {
    let side = &field.with;
    let from_pod = Link {
        src: raw::mac(&flooder.netns, "eth0")?,
        dst: raw::mac(&side.node.netns, &flooder.device)?,
    };
    let from_outside =
        Link { src: raw::mac(&side.outside, "eth0")?, dst: raw::mac(&side.node.netns, "eth0")? };
    let segment = |link: Link, tcp: u8, src: IpAddr, dst: SocketAddr, any_port: bool| {
        Source::Frames(Box::new(move |n| {
            let src = match src {
                // A source for each 60,000 packets.
                IpAddr::V4(ip) if any_port => {
                    Ipv4Addr::from_bits(ip.to_bits() + (n / 60_000) as u32).into()
                }
                ip => ip,
            };
            let src = SocketAddr::new(src, 1024 + (n % 60_000) as u16);
            // From one address flows differ by the port that they are for.
            let dst = if any_port {
                dst
            } else {
                SocketAddr::new(dst.ip(), dst.port() + (n / 60_000) as u16 % 60)
            };
            let tcp = Tcp { flags: tcp, seq: n as u32, ack: 1 };
            link.frame(&Ip::tcp(src, dst, tcp, &[]))
        }))
    };
    let stranger = IpAddr::from([198, 18, 0, 1]);
    let closed = SocketAddr::new(side.near.v4.into(), CLOSED);
    let shut = SocketAddr::new(isolated.v4.into(), 80);
    let node_port = SocketAddr::new(side.node.v4.into(), NODE_PORT);
    Ok(vec![
        Flood {
            name: "a Pod: 100,000 SYN/s to a closed port",
            netns: &flooder.netns,
            rate: 100_000,
            source: segment(from_pod, flags::SYN, flooder.v4.into(), closed, false),
        },
        Flood {
            name: "a Pod: 50,000 UDP flows/s by plain sockets, each datagram twice",
            netns: &flooder.netns,
            rate: 100_000,
            source: Source::Datagrams(side.near.v4),
        },
        Flood {
            name: "outside: 60,000 ACK/s to an isolated Pod",
            netns: &side.outside,
            rate: 60_000,
            source: segment(from_outside, flags::ACK, stranger, shut, true),
        },
        Flood {
            name: "outside: 60,000 SYN/s to a node port, backend on another node",
            netns: &side.outside,
            rate: 60_000,
            source: segment(from_outside, flags::SYN, stranger, node_port, true),
        },
    ])
}

/// Opens the connections, floods, and asks.
fn under(field: &Field, flood: &Flood<'_>, seconds: Duration) -> Result<Flooded> {
    let addr = SocketAddr::new(TARGET.into(), 80);
    let client = &field.with.client.netns;
    let mut kept = client.enter(|| -> Result<Vec<Connection>> {
        (0..KEPT).map(|_| Connection::open(addr, PATIENCE).context("open")).collect()
    })??;
    for connection in &mut kept {
        connection.ask().context("requests before the flood")?;
    }
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (sent, broken, times) = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood.run(&stop, start + seconds));
        let asking = scope.spawn(|| broken(kept, start + seconds));
        let opening = scope.spawn(|| client.enter(|| openings(addr, start + seconds)));
        let broken = asking.join();
        let times = opening.join();
        stop.store(true, Ordering::Relaxed);
        (flooding.join(), broken, times)
    });
    let panicked = "a thread panicked";
    let sent = sent.ok().context(panicked)??;
    let broken = broken.ok().context(panicked)?;
    let (mut times, failed) = times.ok().context(panicked)??;
    times.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = ((times.len().saturating_sub(1)) as f64 * q).round() as usize;
        times.get(at).copied().unwrap_or(f64::NAN)
    };
    Ok(Flooded {
        flood: flood.name,
        per_second: (sent as f64 / start.elapsed().as_secs_f64()) as u64,
        broken,
        of: KEPT,
        opened: times.len(),
        failed,
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
    })
}

impl Flood<'_> {
    /// Sends at its rate until it shall stop; returns how many packets.
    fn run(&self, stop: &AtomicBool, end: Instant) -> Result<u64> {
        let mut send: Box<dyn FnMut(u64) -> Result<()>> = match &self.source {
            Source::Frames(frame) => {
                let port = Port::open(self.netns, "eth0")?;
                Box::new(move |n| port.send(&frame(n)))
            }
            Source::Datagrams(to) => {
                let bind = || (0..16).map(|_| UdpSocket::bind("0.0.0.0:0")).collect();
                let sockets: Vec<UdpSocket> =
                    self.netns.enter(|| -> std::io::Result<_> { bind() })?.context("bind")?;
                let to = *to;
                Box::new(move |n| {
                    let flow = n / 2;
                    let port = 1024 + (flow / sockets.len() as u64 % 60_000) as u16;
                    if let Some(socket) = sockets.get(flow as usize % sockets.len()) {
                        // Refusals of earlier datagrams are told here: no matter.
                        drop(socket.send_to(b"flood", (to, port)));
                    }
                    Ok(())
                })
            }
        };
        let start = Instant::now();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) && Instant::now() < end {
            let due = (start.elapsed().as_micros() as u64).saturating_mul(self.rate) / 1_000_000;
            // A sender that fell behind makes up for a tenth of a second at most.
            sent = sent.max(due.saturating_sub(self.rate / 10));
            while sent < due {
                send(sent)?;
                sent += 1;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(sent)
    }
}

/// Asks each connection every two seconds; returns how many broke.
fn broken(mut kept: Vec<Connection>, end: Instant) -> usize {
    let all = kept.len();
    while Instant::now() < end {
        let round = Instant::now();
        kept.retain_mut(|connection| connection.ask().is_ok());
        std::thread::sleep(PAUSE.saturating_sub(round.elapsed()));
    }
    kept.retain_mut(|connection| connection.ask().is_ok());
    all - kept.len()
}

/// Opens a connection every 20 ms; returns the milliseconds of each until its answer, and how many had none.
fn openings(addr: SocketAddr, end: Instant) -> (Vec<f64>, usize) {
    let (mut times, mut failed) = (Vec::new(), 0);
    while Instant::now() < end {
        let start = Instant::now();
        let answer = Connection::open(addr, PATIENCE).and_then(|mut connection| connection.ask());
        match answer {
            Ok(_) => times.push(start.elapsed().as_secs_f64() * 1000.0),
            Err(_) => failed += 1,
        }
        std::thread::sleep(Duration::from_millis(20).saturating_sub(start.elapsed()));
    }
    (times, failed)
}
