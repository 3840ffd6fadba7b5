//! `lbctl status`: is everything as it should be, and if not, what is not?
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::borrow::Cow;
use std::io::{self, Write};

use lb_common::limits::MAP_FRAGMENTS;
use serde::{Deserialize, Serialize};

use crate::columns::{self, age, align};
use crate::maps::permille;
use crate::services;
use crate::snapshot::MapUse;
use crate::view::View;
use lb_core::counts::Counts;
use lb_core::names::{State, StatusPart, Subsystem};

/// Share of a map's capacity, in thousandths, from which it needs attention.
const FULL: u64 = 900;
/// Seconds after which the maps and the name table agree.
const SETTLED: u64 = 5;

/// What the report is made from.
#[derive(Clone, Copy, Debug)]
pub struct StatusFacts<'a> {
    /// Maps and names.
    pub view: &'a View<'a>,
    /// How full the maps are.
    pub maps: &'a [MapUse],
    pub counts: &'a Counts,
    /// Whether an agent runs; `None` when that cannot be told.
    pub running: Option<bool>,
    /// Why there are no names.
    pub names_error: Option<&'a str>,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `OK` or `DEGRADED`: how the node is. What is wrong with objects of users does not count.
    pub verdict: Cow<'static, str>,
    /// What is degraded, one line; empty when nothing is.
    pub because: String,
    /// This node's name, empty when not known.
    pub node: String,
    pub subsystems: Vec<StatusLine>,
    /// What is wrong with objects.
    pub issues: Vec<StatusIssue>,
    /// Events of the slow path since the maps were made.
    pub counters: Vec<Count>,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusLine {
    pub subsystem: String,
    /// How it is.
    pub state: State,
    /// One line for people.
    pub detail: String,
}

/// One thing that is wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusIssue {
    pub object: String,
    /// Seconds since it was first seen.
    pub since: Option<u64>,
    /// Field, may be empty.
    pub field: String,
    pub message: String,
}

/// One counter of the slow path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Its name in metrics.
    pub counter: Cow<'static, str>,
    /// All CPUs together.
    pub count: u64,
}

impl Report {
    /// Whether nothing of the node needs attention, or, if `strict`, nothing at all.
    pub fn is_ok(&self, strict: bool) -> bool {
        self.because.is_empty() && !(strict && !self.issues.is_empty())
    }

    /// The first line.
    fn summary(&self) -> String {
        let issues = match self.issues.len() {
            0 => String::new(),
            1 => ", 1 issue of an object".to_owned(),
            n => format!(", {n} issues of objects"),
        };
        let colon = if self.because.is_empty() { "" } else { ": " };
        format!("{}{colon}{}{issues}", self.verdict, self.because)
    }
}

/// Makes the report. Lines that the agent wrote keep their order; what the maps tell now replaces its word.
pub fn report(found: &StatusFacts<'_>) -> Report {
    let view = found.view;
    let mut subsystems = vec![agent_line(found)];
    if let Some(error) = found.names_error {
        subsystems.push(line(StatusPart::Names, State::Failed, error.to_owned()));
    }
    let ours = [StatusPart::Agent, StatusPart::Maps, StatusPart::Tables].map(StatusPart::name);
    let is_ours = |subsystem: &&Subsystem<'_>| ours.contains(&&*subsystem.name);
    // Of a dead agent, these are its last words.
    let last = if found.running == Some(true) { "" } else { "last known: " };
    subsystems.extend(view.names.subsystems.iter().filter(|s| !is_ours(s)).map(|subsystem| {
        // By its name, which another version of the agent may have chosen.
        StatusLine {
            subsystem: subsystem.name.clone().into_owned(),
            state: subsystem.state,
            detail: format!("{last}{}", subsystem.detail),
        }
    }));
    subsystems.push(tables_line(view));
    subsystems.push(maps_line(found.maps));
    let issues: Vec<StatusIssue> = (view.names.issues.iter())
        .map(|issue| StatusIssue {
            object: issue.object.to_string(),
            since: view.since(issue.since),
            field: issue.field.to_string(),
            message: issue.message.to_string(),
        })
        .collect();
    let because = because(&subsystems, found.maps);
    Report {
        verdict: Cow::Borrowed(if because.is_empty() { "OK" } else { "DEGRADED" }),
        because,
        node: view.directory.node.to_owned(),
        subsystems,
        issues,
        counters: (found.counts.counters.iter())
            .map(|(counter, count)| Count { counter: counter.name().into(), count: *count })
            .collect(),
    }
}

fn line(part: StatusPart, state: State, detail: String) -> StatusLine {
    StatusLine { subsystem: part.name().to_owned(), state, detail }
}

fn agent_line(found: &StatusFacts<'_>) -> StatusLine {
    let view = found.view;
    let agent = &view.names.agent;
    let ago = |time| view.since(time).map_or("an unknown time".to_owned(), age);
    let node = if view.directory.node.is_empty() { "?" } else { view.directory.node };
    if found.names_error.is_some() {
        return match found.running {
            Some(true) => line(StatusPart::Agent, State::Ok, "running".to_owned()),
            Some(false) => line(
                StatusPart::Agent,
                State::Failed,
                "not running: traffic continues with the maps as they are".to_owned(),
            ),
            None => line(StatusPart::Agent, State::Degraded, "unknown whether it runs".to_owned()),
        };
    }
    let synced = match agent.synced {
        0 => "never synced".to_owned(),
        time => format!("synced {} ago", ago(time)),
    };
    let own = lb_core::build::VERSION;
    let skew = if agent.version == own { String::new() } else { format!(", lbctl is {own}") };
    let who = format!("{} on {node}", agent.version);
    match found.running {
        Some(false) => line(
            StatusPart::Agent,
            State::Failed,
            format!(
                "not running: traffic continues with the maps written {} ago; last was {who}, {synced}{skew}",
                ago(agent.written)
            ),
        ),
        Some(true) if agent.synced == 0 => line(
            StatusPart::Agent,
            State::Waiting,
            format!("{who}, up {}, {synced}{skew}", ago(agent.started)),
        ),
        Some(true) => line(
            StatusPart::Agent,
            State::Ok,
            format!("{who}, up {}, {synced}{skew}", ago(agent.started)),
        ),
        None => line(
            StatusPart::Agent,
            State::Degraded,
            format!("unknown whether it runs; last was {who}, {synced}{skew}"),
        ),
    }
}

fn tables_line(view: &View<'_>) -> StatusLine {
    let frontends = view.snapshot.frontends.iter().filter(|f| !f.key.is_wildcard()).count();
    let services = view.service_ids().len();
    let (backends, pods) = (view.snapshot.backends.len(), view.snapshot.pods.len());
    let detail = format!(
        "service ports {services}, frontends {frontends}, backends {backends}, pods {pods}"
    );
    let missing = services::n_missing(view);
    // The agent writes the maps first and the names a moment later.
    let is_settled = view.since(view.names.agent.written).is_some_and(|age| age >= SETTLED);
    if missing > 0 && is_settled {
        return line(
            StatusPart::Tables,
            State::Degraded,
            format!("{detail}, frontends missing {missing}"),
        );
    }
    line(StatusPart::Tables, State::Ok, detail)
}

fn maps_line(maps: &[MapUse]) -> StatusLine {
    let is_full = full(maps).next().is_some();
    let state = if is_full { State::Degraded } else { State::Ok };
    let shares = maps.iter().filter_map(|map| {
        Some(format!("{} {}/{} ({}%)", map.name, map.used?, map.max?, permille(map)? / 10))
    });
    line(StatusPart::Maps, state, shares.collect::<Vec<_>>().join(", "))
}

/// The maps that need attention, with their shares in thousandths.
fn full(maps: &[MapUse]) -> impl Iterator<Item = (&'static str, u64)> {
    // Fragments are never removed, only replaced by newer ones: that table is full in the long run, and well.
    let judged = maps.iter().filter(|map| map.name != MAP_FRAGMENTS.name);
    let shares = judged.filter_map(|map| Some((map.name, permille(map)?)));
    shares.filter(|(_, share)| *share >= FULL)
}

/// What to do about a map without room.
fn remedy(map: &str) -> &'static str {
    match map {
        "ct" | "kept" => "raise --ct-entries, or lower --pod-new-flows",
        "groups" | "peer_bits" | "port_bits" | "cidrs" | "hits" | "ident" => {
            "use fewer or broader rules of policies"
        }
        "frontends" | "slots" | "backends" | "affinity" | "source_ranges" => {
            "use fewer Services, or fewer with Maglev, weights or affinity"
        }
        _ => "see `lbctl maps`",
    }
}

fn because(subsystems: &[StatusLine], maps: &[MapUse]) -> String {
    let bad = subsystems.iter().filter(|line| line.state != State::Ok);
    let others = bad.filter(|line| line.subsystem != StatusPart::Maps.name());
    let others =
        others.map(|line| format!("{} {}", line.subsystem, line.state.name().to_lowercase()));
    let maps = full(maps)
        .map(|(map, share)| format!("map {map} is {}% full ({})", share / 10, remedy(map)));
    others.chain(maps).collect::<Vec<_>>().join(", ")
}

/// Prints the report for people; `all` adds the counters.
///
/// # Errors
/// When the output cannot be written.
pub fn print(out: &mut dyn Write, report: &Report, all: bool, headers: bool) -> io::Result<()> {
    columns::line(out, report.summary())?;
    let header = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut section = |names: &[&str], lines: Vec<Vec<String>>| {
        if lines.is_empty() {
            return Ok(());
        }
        let first = headers.then(|| header(names));
        writeln!(out)?;
        align(out, &first.into_iter().chain(lines).collect::<Vec<_>>(), "")
    };
    let words = |line: &StatusLine| {
        vec![line.subsystem.clone(), line.state.name().to_owned(), line.detail.clone()]
    };
    section(&["SUBSYSTEM", "STATE", "DETAIL"], report.subsystems.iter().map(words).collect())?;
    let words = |issue: &StatusIssue| {
        let since = issue.since.map_or(columns::NONE.to_owned(), age);
        let text = match issue.field.as_str() {
            "" => issue.message.clone(),
            field => format!("{field}: {}", issue.message),
        };
        vec![issue.object.clone(), since, text]
    };
    section(&["OBJECT", "SINCE", "ISSUE"], report.issues.iter().map(words).collect())?;
    if all {
        let words = |count: &Count| vec![count.counter.to_string(), count.count.to_string()];
        section(&["COUNTER", "COUNT"], report.counters.iter().map(words).collect())?;
    }
    Ok(())
}
