//! A load of a given rate for a given time, and what happened to each request.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{
    client::{self, Connection, Transport},
    netns::Netns,
};

/// No load lasts longer.
const MAX_DURATION: Duration = Duration::from_secs(600);
/// No load has more workers.
const MAX_WORKERS: u32 = 64;

/// What to ask, how often and how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Protocol of the requests.
    pub transport: Transport,
    /// The server to ask.
    pub addr: SocketAddr,
    /// Number of ports, from that of `addr` on, that are asked in turn. A client has 28,000 ports of its own towards each, and looks for a
    /// free one for long when most have been used within a minute.
    pub ports: u16,
    /// Requests a second, of all workers together.
    pub rate: u32,
    /// Threads that share the rate; a slow request delays only its own worker.
    pub workers: u32,
    /// How long; at most ten minutes.
    pub duration: Duration,
    /// After this time without an answer a request has failed.
    pub timeout: Duration,
    /// Whether a worker asks over one connection (or one connected UDP socket) all the time; otherwise each request
    /// has its own. After a failure the worker opens another one.
    pub keep_open: bool,
}

impl Load {
    /// 200 requests a second by 4 workers, a new connection each, 2 s of patience, for at most a minute.
    pub fn new(transport: Transport, addr: SocketAddr) -> Self {
        Self {
            transport,
            addr,
            ports: 1,
            rate: 200,
            workers: 4,
            duration: Duration::from_secs(60),
            timeout: Duration::from_secs(2),
            keep_open: false,
        }
    }

    /// Starts the load inside `netns`.
    pub fn start(self, netns: &Netns) -> anyhow::Result<Running> {
        let netns = netns.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let workers = self.workers.clamp(1, MAX_WORKERS);
        let threads = (0..workers)
            .map(|worker| {
                let (netns, stop) = (netns.clone(), stop.clone());
                std::thread::spawn(move || netns.enter(|| self.work(worker, workers, &stop)))
            })
            .collect();
        Ok(Running { stop, threads, start: Instant::now() })
    }

    /// Runs the load in the calling process's own namespace, to its end.
    pub fn run_here(self) -> Report {
        let stop = AtomicBool::new(false);
        let workers = self.workers.clamp(1, MAX_WORKERS);
        let start = Instant::now();
        let samples = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers)
                .map(|worker| {
                    let stop = &stop;
                    scope.spawn(move || self.work(worker, workers, stop))
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
        });
        Report::of(samples, start.elapsed())
    }

    fn work(self, worker: u32, workers: u32, stop: &AtomicBool) -> Vec<Sample> {
        let interval = Duration::from_secs(1) * workers / self.rate.max(1);
        let start = Instant::now();
        let end = start + self.duration.min(MAX_DURATION);
        let mut next = start + interval * worker / workers;
        let mut samples = Vec::new();
        let mut open = None;
        let mut turns = (0..self.ports.max(1)).cycle();
        while next < end && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let asked = Instant::now();
            let mut addr = self.addr;
            addr.set_port(addr.port().saturating_add(turns.next().unwrap_or_default()));
            let answer = self.request(&mut open, addr);
            samples.push(Sample { asked, took: asked.elapsed(), answer });
            // A worker that fell behind does not make up for it by a burst.
            next = (next + interval).max(Instant::now());
        }
        samples
    }

    fn request(&self, open: &mut Option<Channel>, addr: SocketAddr) -> Result<String, String> {
        let answer = match open.take() {
            Some(channel) => Ok(channel),
            None => Channel::open(self, addr),
        }
        .and_then(|mut channel| Ok((channel.ask()?, channel)));
        match answer {
            Ok((name, channel)) => {
                *open = self.keep_open.then_some(channel);
                Ok(name)
            }
            Err(err) => Err(describe(&err)),
        }
    }
}

/// What a worker asks over.
enum Channel {
    Tcp(Connection),
    Udp(std::net::UdpSocket),
}

impl Channel {
    fn open(load: &Load, addr: SocketAddr) -> io::Result<Self> {
        match load.transport {
            Transport::Tcp => Connection::open(addr, load.timeout).map(Self::Tcp),
            Transport::Udp => {
                let socket = client::udp_socket(addr, load.timeout)?;
                socket.connect(addr)?;
                Ok(Self::Udp(socket))
            }
        }
    }

    fn ask(&mut self) -> io::Result<String> {
        match self {
            Self::Tcp(connection) => connection.ask(),
            Self::Udp(socket) => client::ask_connected(socket),
        }
    }
}

/// A failure in words that are the same for all failures of a kind.
fn describe(err: &io::Error) -> String {
    match err.kind() {
        // What a read timeout of a socket looks like.
        io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
        kind => kind.to_string(),
    }
}

/// One request.
struct Sample {
    asked: Instant,
    took: Duration,
    answer: Result<String, String>,
}

/// A load that runs.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<Vec<Sample>>>>,
    start: Instant,
}

impl Running {
    /// Ends the load after the requests under way and reports.
    pub fn stop(mut self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.collect()
    }

    /// Waits until the load's time is over and reports.
    pub fn wait(mut self) -> anyhow::Result<Report> {
        self.collect()
    }

    fn collect(&mut self) -> anyhow::Result<Report> {
        let mut samples = Vec::new();
        for thread in self.threads.drain(..) {
            let worker = thread.join().ok().context("a worker of the load panicked")?;
            samples.extend(worker?);
        }
        Ok(Report::of(samples, self.start.elapsed()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The result of a load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Requests made.
    pub requests: u64,
    /// Requests without an answer.
    pub failed: u64,
    /// Answers by the name of who answered.
    pub by_backend: BTreeMap<String, u64>,
    /// Failures by kind.
    pub failures: BTreeMap<String, u64>,
    /// When the first failed request was made, in seconds from the load's start.
    pub first_failure_s: Option<f64>,
    /// Median time to the answer, in microseconds.
    pub p50_us: u64,
    /// 99th percentile of the time to the answer, in microseconds.
    pub p99_us: u64,
    /// Longest time to an answer, in microseconds.
    pub max_us: u64,
    /// How long the load ran, in seconds.
    pub seconds: f64,
}

impl Report {
    fn of(samples: Vec<Sample>, ran: Duration) -> Self {
        let start = samples.iter().map(|sample| sample.asked).min();
        let mut report = Self { seconds: ran.as_secs_f64(), ..Self::default() };
        let mut times = Vec::new();
        for Sample { asked, took, answer } in samples {
            report.requests += 1;
            match answer {
                Ok(name) => {
                    *report.by_backend.entry(name).or_default() += 1;
                    times.push(took.as_micros() as u64);
                }
                Err(kind) => {
                    report.failed += 1;
                    *report.failures.entry(kind).or_default() += 1;
                    let at = start.map_or(0.0, |start| (asked - start).as_secs_f64());
                    report.first_failure_s = Some(report.first_failure_s.unwrap_or(at).min(at));
                }
            }
        }
        times.sort_unstable();
        report.p50_us = quantile(&times, 0.5);
        report.p99_us = quantile(&times, 0.99);
        report.max_us = times.last().copied().unwrap_or(0);
        report
    }
}

/// The `q` quantile of sorted values, 0 of none.
pub(crate) fn quantile(sorted: &[u64], q: f64) -> u64 {
    let index = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
    sorted.get(index).copied().unwrap_or(0)
}
