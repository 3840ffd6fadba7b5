//! What Services cost by their number: from complete lists to the kernel's maps, then one endpoint's change after the other.
//! Prints `SIZE WHAT VALUE`, one line each. Each size is measured in a process of its own, since its memory is the process's.
//!
//! The watch, its JSON and the name table are not part of it: `cargo xtask bench --part programming` measures the agent.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "a test's helper panics like the test"
)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lb_common::config::Config;
use lb_common::limits;
use lb_core::cluster::{Change, Cluster, Dirty, Endpoint, Event, Kind, Name};
use lb_core::model::Desired;
use lb_core::plan::{Actual, Capacity, Planner};
use lb_kernel::bpf::load::{self, LoadOptions};
use lb_kernel::bpf::pins::Pins;
use lb_kernel::bpf::store::Maps;
use lb_testkit::objects::{endpoint, nth, service, slice};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};

/// Services and endpoints of each: what the agent's limits were made for, ten times the API's threshold of endpoints, and
/// a million endpoints.
const SIZES: [(u32, u32); 4] = [(10_000, 2), (10_000, 10), (10_000, 25), (30_000, 33)];
/// Changes measured, and the time between two of them.
const CHANGES: (u32, Duration) = (2_000, Duration::from_millis(10));

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [services, endpoints] = &args[..] {
        return measure(services.parse().unwrap(), endpoints.parse().unwrap());
    }
    for (services, endpoints) in SIZES {
        let mut one = Command::new(std::env::current_exe().unwrap());
        let status = one.args([services, endpoints].map(|n| n.to_string())).status().unwrap();
        assert!(status.success(), "{services} Services of {endpoints} endpoints: {status}");
    }
}

fn name(i: u32, suffix: &str) -> Name {
    Name::new(format!("team-{}", i % 50), format!("service-{i}{suffix}"))
}

fn service_event(i: u32) -> Event {
    Event::Service(Change::Applied(name(i, ""), service(nth("10.96.0.1", i), [("http", 80)])))
}

/// Its slice, whose first endpoint is the `moved`th.
fn slice_event((i, n): (u32, u32), moved: u32) -> Event {
    let endpoint = |k: u32| {
        let number = if k == 0 && moved > 0 { 40_000_000 + moved } else { i * n + k };
        Endpoint {
            node: Some(format!("node-{}", number % 5000).into()),
            zone: Some("zone-a".into()),
            pod: Some(format!("service-{i}-5d8f7c9b4-{number:07}").into()),
            ..endpoint(nth("10.128.0.0", number))
        }
    };
    let endpoints = (0..n).map(endpoint);
    let slice = slice(&format!("service-{i}"), [("http", 8080)], endpoints);
    Event::Slice(Change::Applied(name(i, "-x7k2p"), slice))
}

/// KiB that this process has written to memory (`/proc/self/status`, proc_pid_status(5)), now or at most.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What this process has computed, the kernel's part included.
fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

/// A bpf file system of our own, which goes with the process.
fn pins() -> Pins {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let dir = Path::new("/sys/fs/bpf");
    nix::mount::mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), none).unwrap();
    Pins::create(&dir.join("lb")).unwrap()
}

fn measure(services: u32, endpoints: u32) {
    let print = |what: &str, value: u128| println!("{services}x{endpoints} {what} {value}");
    let pins = pins();
    let options =
        LoadOptions { pin_dir: Some(pins.dir()), config: Config::ZERO, ct_entries: limits::CT };
    let mut ebpf = load::open(&options).unwrap();
    let mut maps = Maps::take(&mut ebpf, Some(&pins)).unwrap();
    drop(ebpf);
    let mut cluster = Cluster::new("node-1");
    let mut desired = Desired::default();
    let mut planner = Planner::restore(Actual::default(), Capacity::default());
    let start = Instant::now();
    let mut round = |events: &mut dyn Iterator<Item = Event>, now: Duration| {
        let mut dirty = Dirty::default();
        for event in events {
            dirty.merge(cluster.apply(event));
        }
        let lists = start.elapsed();
        let changed = desired.update(&cluster, &dirty);
        let plan = planner.plan(&desired, &changed, &|addr| cluster.is_alive(addr), now);
        let applied = planner.apply(plan, &mut maps, &mut || now);
        if let Some((write, error)) = applied.failed.first() {
            panic!("{} writes failed: {write:?}: {error}", applied.failed.len());
        }
        assert_eq!(planner.issues().next().map(ToString::to_string), None);
        lists
    };
    let all = (0..services).flat_map(|i| [service_event(i), slice_event((i, endpoints), 0)]);
    let lists = round(&mut all.chain(Kind::ALL.map(Event::Synced)), Duration::ZERO);
    print("lists_ms", lists.as_millis());
    print("programmed_ms", (start.elapsed() - lists).as_millis());
    print("cpu_ms", busy().as_millis());
    print("resident_kib", memory("RssAnon:").into());
    let (n, every) = CHANGES;
    let (before, mut times) = (busy(), Vec::new());
    for k in 1..=n {
        let event = slice_event((k * 37 % services, endpoints), k);
        let at = Instant::now();
        round(&mut [event].into_iter(), every * k);
        times.push(at.elapsed());
    }
    let busy = busy() - before;
    times.sort_unstable();
    print("change_us_median", times[times.len() / 2].as_micros());
    print("change_us_p99", times[times.len() * 99 / 100].as_micros());
    print("change_us_most", times[times.len() - 1].as_micros());
    print("permille_of_a_core", busy.as_nanos() * 1000 / (every * n).as_nanos());
    print("resident_kib_after", memory("RssAnon:").into());
    print("resident_kib_most", memory("VmHWM:").into());
}
