//! Rates of one client against one server of [`crate::measured`], at best both on one CPU.
//!
//! On one CPU the rate is the inverse of all the work a transaction takes, both sides and the kernel between them; on
//! two, wake-ups across CPUs scatter by more than what is to be seen.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    client,
    load::quantile,
    measured::{CHUNK, CLOSE},
};

/// No measurement lasts longer.
const MAX_DURATION: Duration = Duration::from_secs(120);
/// After this time without an answer a datagram is lost.
const LOST: Duration = Duration::from_secs(1);
/// A measurement that is not over this long after its end has lost its server.
const OVERTIME: Duration = Duration::from_secs(15);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Bytes in one direction over one connection, as iperf3 sends them.
    Stream,
    /// The same over eight connections at a time.
    Streams,
    /// One byte there and one back over one connection, again and again.
    RoundTrips,
    /// Connect, one byte there and one back, close; again and again.
    Connects,
    /// One byte there and one back in datagrams of one socket, again and again.
    Datagrams,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Transactions a second, or bits a second of a stream.
    pub per_second: f64,
    /// Median time of a transaction, in nanoseconds; 0 of a stream.
    pub p50_ns: u64,
    /// 99th percentile, in nanoseconds; 0 of a stream.
    pub p99_ns: u64,
    /// Datagrams without an answer.
    #[serde(default)]
    pub lost: u64,
}

/// Who closes the connections of [`What::Connects`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closer {
    /// The client, whose ports then wait. It needs `net.ipv4.tcp_tw_reuse` or runs out of them.
    Client,
    /// The server.
    Server,
}

impl What {
    /// All, in the order in which results are shown.
    pub const ALL: [Self; 5] =
        [Self::Stream, Self::Streams, Self::RoundTrips, Self::Connects, Self::Datagrams];

    /// The word for it on a command line and in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Streams => "streams",
            Self::RoundTrips => "round-trips",
            Self::Connects => "connects",
            Self::Datagrams => "datagrams",
        }
    }

    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Streams => "8 streams",
            Self::RoundTrips => "request/response",
            Self::Connects => "connect/request/close",
            Self::Datagrams => "UDP request/response",
        }
    }

    /// Finds it by its word.
    ///
    /// # Errors
    /// When no word fits.
    pub fn parse(word: &str) -> anyhow::Result<Self> {
        let what = Self::ALL.into_iter().find(|what| what.word() == word);
        what.with_context(|| format!("unknown measurement {word:?}"))
    }

    /// Whether it is a rate of bits, without times of transactions.
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::Stream | Self::Streams)
    }

    /// Measures for some time.
    ///
    /// # Errors
    /// When the server refuses, breaks a connection, or does not answer any more.
    pub fn measure(self, addr: SocketAddr, duration: Duration, closer: Closer) -> io::Result<Rate> {
        let (done, over) = std::sync::mpsc::channel::<()>();
        thread::spawn(move || {
            let limit = duration.min(MAX_DURATION) + OVERTIME;
            if over.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{}: no answer from {addr} for {} s", self.word(), OVERTIME.as_secs());
                std::process::exit(1);
            }
        });
        let rate = match self {
            Self::Stream => streams(addr, duration, 1),
            Self::Streams => streams(addr, duration, 8),
            Self::RoundTrips => round_trips(addr, duration),
            Self::Connects if closer == Closer::Client => connects(addr, duration),
            Self::Connects => connects_that_the_server_closes(addr, duration),
            Self::Datagrams => datagrams(addr, duration),
        };
        drop(done);
        rate
    }
}

/// Binds the calling thread, and what it starts, to one CPU.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("bind to CPU {cpu}"))
}

/// The highest CPU that this process may run on: the one that interrupts and housekeeping like least.
pub fn last_cpu() -> anyhow::Result<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("list the CPUs of this process")?;
    let mut allowed = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    allowed.next_back().context("this process is not allowed to run on any CPU")
}

/// One byte there and one back over one connection, again and again.
pub fn round_trips(addr: SocketAddr, duration: Duration) -> io::Result<Rate> {
    let mut stream = connect(addr)?;
    transactions(duration, || exchange(&mut stream))
}

/// Connect, one byte there and one back, close; again and again.
pub fn connects(addr: SocketAddr, duration: Duration) -> io::Result<Rate> {
    transactions(duration, || {
        let mut stream = connect(addr)?;
        exchange(&mut stream)
    })
}

fn connects_that_the_server_closes(addr: SocketAddr, duration: Duration) -> io::Result<Rate> {
    transactions(duration, || {
        let mut stream = connect(addr)?;
        let mut answer = [0; 2];
        stream.write_all(&[CLOSE])?;
        stream.read_exact(answer.get_mut(..1).unwrap_or_default())?;
        match stream.read(&mut answer)? {
            0 => Ok(()),
            _ => Err(io::Error::other("the server did not close")),
        }
    })
}

fn datagrams(addr: SocketAddr, duration: Duration) -> io::Result<Rate> {
    let socket = client::udp_socket(addr, LOST)?;
    socket.connect(addr)?;
    let mut lost = 0;
    let rate = transactions(duration, || {
        let mut answer = [0; 16];
        socket.send(b"?")?;
        match socket.recv(&mut answer) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => lost += 1,
            other => drop(other?),
        }
        Ok(())
    })?;
    Ok(Rate { lost, ..rate })
}

/// Streams at a time, each with a thread; the rate is what arrived until the last of them was answered.
fn streams(addr: SocketAddr, duration: Duration, n: usize) -> io::Result<Rate> {
    // Not by `connect`: without Nagle's algorithm a stream has more and smaller packets than one of iperf3.
    let connections: Vec<_> =
        (0..n).map(|_| TcpStream::connect(addr)).collect::<io::Result<_>>()?;
    let start = Instant::now();
    let end = start + duration.min(MAX_DURATION);
    let received = thread::scope(|scope| {
        let each = |stream| scope.spawn(move || stream_until(stream, end));
        let threads: Vec<_> = connections.into_iter().map(each).collect();
        let all = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a stream panicked")))
        });
        all.sum::<io::Result<u64>>()
    })?;
    let per_second = received as f64 * 8.0 / start.elapsed().as_secs_f64();
    Ok(Rate { per_second, p50_ns: 0, p99_ns: 0, lost: 0 })
}

/// Sends until the end; returns how many bytes the server has received.
fn stream_until(mut stream: TcpStream, end: Instant) -> io::Result<u64> {
    let chunk = vec![0; CHUNK];
    while Instant::now() < end {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_be_bytes(total))
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [1];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

fn transactions(
    duration: Duration,
    mut transaction: impl FnMut() -> io::Result<()>,
) -> io::Result<Rate> {
    let start = Instant::now();
    let end = start + duration.min(MAX_DURATION);
    let mut times = Vec::with_capacity(1 << 18);
    let mut last = start;
    while last < end {
        transaction()?;
        let now = Instant::now();
        times.push((now - last).as_nanos() as u64);
        last = now;
    }
    let per_second = times.len() as f64 / (last - start).as_secs_f64();
    times.sort_unstable();
    Ok(Rate { per_second, p50_ns: quantile(&times, 0.5), p99_ns: quantile(&times, 0.99), lost: 0 })
}
