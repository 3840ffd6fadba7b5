//! Scenarios: manifests in, tables out. Each file of `../scenarios/` tells one story.
//!
//! ```text
//! What it is about.
//! -- write web.yaml --      puts a manifest file into the directory
//! -- delete web.yaml --     removes it
//! -- advance 5s --          lets time pass; `ms` and `s`
//! -- busy 192.0.2.1 --      from now on only these addresses have connections
//! -- dialed 80 --           and these ports of frontends that are gone
//! -- restart --             ends the agent and starts another on the same maps
//! -- check --               what the maps and the issues must be, and the number of writes since the last check
//! ```
//! Every story is told twice: once with maps that obey, once with maps that fail one write in ten. What clients see
//! must be the same; ids and timers may differ. `UPDATE_EXPECT=1` writes the `check` sections again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::config::Settings;
use lb_common::service::{Frontend, FrontendFlags, state};
use lb_core::cluster::{Event, Kind};
use lb_core::plan::Capacity;
use lb_kube::manifests::ManifestDirectory;

use crate::maps::{FakeMaps, endpoint_text, key_text};
use crate::pipeline::Pipeline;

/// The node the stories take place on.
const NODE: &str = "n1";

#[test]
fn scenarios() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let failed: Vec<_> = files.iter().filter(|path| !tell(path)).collect();
    assert!(failed.is_empty(), "stories that came out differently: {failed:?}");
}

/// Tells one story twice; false when it came out differently.
fn tell(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap();
    let (title, sections) = sections(&text);
    let mut outcome = title.to_owned();
    let mut obeying = Story::new(title, 0);
    let mut failing = Story::new(title, 10);
    let mut same = true;
    for (header, body) in sections {
        let body = if header == "check" {
            let found = obeying.dump();
            same &= found == body;
            if found != body {
                eprintln!("{}:\n--- expected\n{body}\n--- found\n{found}", path.display());
            }
            let traffic = (obeying.pipeline.maps.traffic(), failing.pipeline.maps.traffic());
            assert_eq!(traffic.0, traffic.1, "{}: with failing maps", path.display());
            found
        } else {
            obeying.step(header, body);
            failing.step(header, body);
            body.to_owned()
        };
        write!(outcome, "-- {header} --\n{body}").unwrap();
    }
    if !same && std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, outcome).unwrap();
        return true;
    }
    same
}

/// The text before the first section, and the sections with their headers.
fn sections(text: &str) -> (&str, Vec<(&str, &str)>) {
    let header = |line: &str| Some(line.trim_end().strip_prefix("-- ")?.strip_suffix(" --")?.len());
    let mut starts = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if let Some(len) = header(line) {
            starts.push((offset, len, offset + line.len()));
        }
        offset += line.len();
    }
    let ends = starts.iter().skip(1).map(|start| start.0).chain([text.len()]);
    let sections = starts
        .iter()
        .zip(ends)
        .map(|((start, len, body), end)| (&text[start + 3..start + 3 + len], &text[*body..end]));
    (&text[..starts.first().map_or(text.len(), |start| start.0)], sections.collect())
}

struct Story {
    path: PathBuf,
    directory: ManifestDirectory,
    pipeline: Pipeline,
    n_writes: usize,
}

impl Story {
    fn new(title: &str, fail_every: u32) -> Self {
        let unique = format!("lb-scenario-{}-{fail_every}-{}", std::process::id(), title.len());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).unwrap();
        // The stories are small: a few slots and ids are plenty, and a word in the title makes them scarce.
        let scarce = title.contains("[few slots]");
        let capacity = Capacity {
            frontends: 100,
            slots: if scarce { 4 } else { 5000 },
            backends: 50,
            source_ranges: 8,
        };
        let mut pipeline = Pipeline::new(NODE, capacity);
        pipeline.maps.fail_every = fail_every;
        pipeline.tell(Kind::ALL.map(Event::Synced));
        Self { directory: ManifestDirectory::new(&path, NODE), path, pipeline, n_writes: 0 }
    }

    fn step(&mut self, header: &str, body: &str) {
        match header.split_once(' ').unwrap_or((header, "")) {
            ("write", name) => {
                let name = Path::new(name);
                std::fs::write(self.path.join("new"), body).unwrap();
                std::fs::rename(self.path.join("new"), self.path.join(name)).unwrap();
                self.refresh(&[name]);
            }
            ("delete", name) => {
                std::fs::remove_file(self.path.join(name)).unwrap();
                self.refresh(&[]);
            }
            ("advance", time) => self.pipeline.advance(duration(time)),
            ("busy", addrs) => {
                let addrs = addrs.split_whitespace().map(|addr| addr.parse().unwrap());
                self.pipeline.busy = addrs.map(Addr::from_ip).collect();
                self.pipeline.idle = true;
            }
            ("dialed", ports) => {
                let ports = ports.split_whitespace().map(|port| port.parse().unwrap());
                self.pipeline.dialed = ports.collect();
            }
            ("restart", "") => {
                self.directory = ManifestDirectory::new(&self.path, NODE);
                let events = self.read(&[].into());
                let synced = Kind::ALL.map(Event::Synced);
                self.pipeline.restart(events.into_iter().chain(synced));
                self.settle();
            }
            _ => panic!("no such step: {header}"),
        }
    }

    fn refresh(&mut self, names: &[&Path]) {
        let names = names.iter().map(|name| name.as_os_str().to_owned()).collect();
        let events = self.read(&names);
        self.pipeline.tell(events);
        self.settle();
    }

    fn read(&mut self, names: &BTreeSet<OsString>) -> Vec<Event> {
        let mut events = Vec::new();
        self.directory.refresh(names, &mut |event| events.push(event)).unwrap();
        events
    }

    fn settle(&mut self) {
        // A map that is full stays so: such a story must not wait for its Service to be programmed.
        self.n_writes += self.pipeline.round().len();
        let stuck = |issue: &lb_core::issue::Issue| issue.message.contains("is full");
        while self.pipeline.planner.n_pending() > 0 && !self.pipeline.issues().iter().any(stuck) {
            let at = self.pipeline.planner.next_wakeup().unwrap();
            self.pipeline.maps.now = self.pipeline.maps.now.max(at);
            self.n_writes += self.pipeline.round().len();
        }
        // Writes that failed beside it come again.
        for _ in 0..if self.pipeline.maps.fail_every > 0 { 4 } else { 0 } {
            if let Some(at) = self.pipeline.planner.next_wakeup() {
                self.pipeline.maps.now = self.pipeline.maps.now.max(at);
                self.pipeline.round();
            }
        }
    }

    /// What the maps and the issues are.
    fn dump(&mut self) -> String {
        let mut dump = String::new();
        let maps = &self.pipeline.maps;
        let mut frontends: Vec<_> = maps.actual.frontends.iter().collect();
        frontends.sort_by_key(|(key, _)| (key.addr, key.proto == 0, key.port.get(), key.proto));
        for (key, frontend) in frontends {
            writeln!(dump, "{}{}", key_text(key), treatment(maps, frontend)).unwrap();
        }
        for (id, backend) in maps.leftover() {
            let state = match backend.state {
                state::ACTIVE => "active",
                state::DRAINING => "draining",
                state::DEAD => "dead",
                other => panic!("state {other}"),
            };
            let endpoint = endpoint_text(&backend.addr, backend.port.get());
            writeln!(dump, "{state} {endpoint} (#{id}), generation {}", backend.generation)
                .unwrap();
        }
        for ((found, wanted), what) in maps.ports().into_iter().zip(["frontends", "host"]) {
            if what == "host" && !wanted.is_empty() {
                writeln!(dump, "ports of the host: {wanted:?}").unwrap();
            }
            let left: Vec<_> = found.difference(&wanted).collect();
            if !left.is_empty() {
                writeln!(dump, "ports left over: {left:?} of {what}").unwrap();
            }
            assert!(wanted.is_subset(&found), "ports of {what} that are not seen");
        }
        let former = maps.former_ports();
        if !former.is_empty() {
            writeln!(dump, "ports of frontends that are gone: {former:?}").unwrap();
        }
        let settings = maps.actual.settings.as_deref().copied().unwrap_or(Settings::ZERO);
        if settings != Settings::ZERO {
            let cidrs = settings.service_cidrs.iter().take(settings.n_service_cidrs as usize);
            let cidrs: Vec<_> = cidrs.map(|cidr| cidr.addr.to_string()).collect();
            writeln!(dump, "node {} {}, ranges {cidrs:?}", settings.node4, settings.node6).unwrap();
        }
        let path = format!("{}/", self.path.display());
        for issue in self.pipeline.issues() {
            writeln!(dump, "issue: {}", issue.to_string().replace(&path, "")).unwrap();
        }
        writeln!(dump, "writes: {}\n", std::mem::take(&mut self.n_writes)).unwrap();
        dump
    }
}

/// What a frontend does with a client.
fn treatment(maps: &FakeMaps, frontend: &Frontend) -> String {
    let has = |flag| frontend.flags.contains(flag);
    let mut text = String::new();
    if has(FrontendFlags::ADDRESS_ONLY) {
        return " is a Service's".to_owned();
    }
    for (flag, word) in [
        (FrontendFlags::EXTERNAL, " external"),
        (FrontendFlags::SOCKET_ONLY, " socket"),
        (FrontendFlags::LEAST_CONNECTIONS, " least"),
        (FrontendFlags::BY_STACK, " by-stack"),
    ] {
        if has(flag) {
            text.push_str(word);
        }
    }
    let without = if has(FrontendFlags::ELSEWHERE) { "drop" } else { "refuse" };
    let list = |base: u32, n: u32| {
        let ids = (base..base + n).map(|slot| maps.id_at(slot)).map(|id| {
            let backend = maps.backend(id);
            format!("{} (#{id})", endpoint_text(&backend.addr, backend.port.get()))
        });
        if n == 0 { without.to_owned() } else { ids.collect::<Vec<_>>().join(", ") }
    };
    write!(text, " -> {}", list(frontend.base, frontend.n)).unwrap();
    if has(FrontendFlags::EXTERNAL_LOCAL) {
        write!(text, "; outside {}", list(frontend.local_base, frontend.local_n)).unwrap();
    }
    let mut table = BTreeMap::new();
    for slot in frontend.maglev_base..frontend.maglev_base + frontend.maglev_n {
        *table.entry(maps.id_at(slot)).or_insert(0) += 1;
    }
    if !table.is_empty() {
        let shares = table.iter().map(|(id, n)| format!("{n} of #{id}"));
        write!(text, "; table {}", shares.collect::<Vec<_>>().join(", ")).unwrap();
    }
    if has(FrontendFlags::SOURCE_RANGES) {
        write!(text, "; only for {:?}", maps.ranges(frontend.service_id)).unwrap();
    }
    if frontend.affinity_secs > 0 {
        write!(text, "; affinity {}s", frontend.affinity_secs).unwrap();
    }
    text
}

impl Drop for Story {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.path).unwrap();
    }
}

fn duration(text: &str) -> Duration {
    match text.strip_suffix("ms") {
        Some(ms) => Duration::from_millis(ms.parse().unwrap()),
        None => Duration::from_secs(text.strip_suffix('s').unwrap().parse().unwrap()),
    }
}
