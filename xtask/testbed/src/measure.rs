//! Round trips and connects a second, one client against one server of [`crate::server`], both on one CPU.
//!
//! On one CPU the rate is the inverse of all the work a transaction takes, both sides and the kernel between them; on
//! two, wake-ups across CPUs scatter by more than what is to be seen.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::load::quantile;

/// No measurement lasts longer.
const MAX_DURATION: Duration = Duration::from_secs(120);

/// Transactions of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Transactions a second.
    pub per_second: f64,
    /// Median time of one, in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile, in nanoseconds.
    pub p99_ns: u64,
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
    Ok(Rate { per_second, p50_ns: quantile(&times, 0.5), p99_ns: quantile(&times, 0.99) })
}
