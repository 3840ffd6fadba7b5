//! What was counted after each round, and whether it stayed: the middle of the last third of all rounds beside that of the first, after
//! the rounds in which everything is warmed up.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result, bail};
use testbed::load::Report as Asked;

use crate::conformance::bed::Bed;

/// A tenth of the rounds, and at least one, is left out at the beginning: caches and queues fill.
const WARM_UP: usize = 10;
/// What the memory of an agent may grow by, in bytes. 36 million connections, as in two hours, exceed it if each leaves a thirtieth
/// of a byte behind.
const MEMORY: f64 = 1024.0 * 1024.0;
/// Files that may be open at one time and not at another: a question of `lbctl`, a health check.
const FILES: f64 = 3.0;
/// Elements that a map may have more: entries of UDP flows go in steps.
const ELEMENTS: f64 = 500.0;
/// The same in proportion.
const SHARE: f64 = 1.1;
/// How much longer an answer may take in the end: the machine has other work, too.
const SLOWER: f64 = 1.5;

/// Of one agent.
#[derive(Clone, Debug, Default, PartialEq)]
struct Usage {
    /// Resident memory, in bytes.
    memory: f64,
    files: f64,
    /// Elements of each map.
    elements: BTreeMap<String, f64>,
}

/// One round.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    requests: u64,
    failures: BTreeMap<String, u64>,
    seconds: f64,
    p50_us: u64,
    p99_us: u64,
    /// By node.
    agents: BTreeMap<String, Usage>,
}

/// All rounds.
#[derive(Debug, Default)]
pub(super) struct Record(Vec<Round>);

impl Round {
    /// Sums up what the loads report, and reads the agents' metrics.
    ///
    /// # Errors
    /// When an agent does not answer.
    pub(super) fn look(bed: &Bed<'_>, loads: Vec<Asked>) -> Result<Self> {
        let mut round = Self::default();
        for load in loads {
            round.requests += load.requests;
            round.seconds = round.seconds.max(load.seconds);
            round.p50_us = round.p50_us.max(load.p50_us);
            round.p99_us = round.p99_us.max(load.p99_us);
            for (kind, n) in load.failures {
                *round.failures.entry(kind).or_default() += n;
            }
        }
        for node in &bed.cluster.nodes {
            let usage = bed.metrics(node).and_then(|text| Usage::read(&text));
            round.agents.insert(node.clone(), usage.with_context(|| node.clone())?);
        }
        Ok(round)
    }

    fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

impl Usage {
    /// From the metrics' text.
    fn read(text: &str) -> Result<Self> {
        let mut usage = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let map = name
                .strip_prefix("lb_map_entries{map=\"")
                .and_then(|rest| rest.strip_suffix("\"}"));
            let place = match (name, map) {
                ("process_resident_memory_bytes", _) => &mut usage.memory,
                ("process_open_fds", _) => &mut usage.files,
                (_, Some(map)) => usage.elements.entry(map.to_owned()).or_default(),
                _ => continue,
            };
            *place = value.parse().with_context(|| format!("metric {line:?}"))?;
        }
        if usage.memory == 0.0 || usage.files == 0.0 || usage.elements.is_empty() {
            bail!("the metrics lack memory, files or maps: {} bytes of text", text.len());
        }
        Ok(usage)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.requests as f64 / self.seconds;
        write!(
            f,
            "{rate:.0} a second, {} failed; p50 {} us, p99 {} us;",
            self.failed(),
            self.p50_us,
            self.p99_us
        )?;
        for (node, usage) in &self.agents {
            let flows = usage.elements.get("ct").copied().unwrap_or_default();
            write!(
                f,
                " {node} {:.1} MiB, {} files, {flows} flows",
                usage.memory / 1024.0 / 1024.0,
                usage.files
            )?;
        }
        Ok(())
    }
}

impl Record {
    /// One more.
    pub(super) fn add(&mut self, round: Round) {
        self.0.push(round);
    }

    /// Fails if a request was not.
    pub(super) fn answered(&self) -> Result<String> {
        let mut failures: BTreeMap<&str, u64> = BTreeMap::new();
        for (kind, n) in self.0.iter().flat_map(|round| &round.failures) {
            *failures.entry(kind).or_default() += n;
        }
        let requests: u64 = self.0.iter().map(|round| round.requests).sum();
        if !failures.is_empty() {
            bail!("of {requests}: {failures:?}");
        }
        Ok(requests.to_string())
    }

    /// Fails if fewer than 19 of 20 requests could be made.
    pub(super) fn reached(&self, wanted: u32) -> Result<String> {
        let requests: u64 = self.0.iter().map(|round| round.requests).sum();
        let seconds: f64 = self.0.iter().map(|round| round.seconds).sum();
        let rate = requests as f64 / seconds;
        let said = format!("{rate:.0} of {wanted} a second");
        if rate < 0.95 * f64::from(wanted) {
            bail!(said);
        }
        Ok(said)
    }

    /// Fails if answers take longer in the end.
    pub(super) fn stayed_fast(&self) -> Result<String> {
        let (before, after) = self.ends(|round| round.p50_us as f64)?;
        let said = format!("p50 {before:.0} us, then {after:.0} us");
        if after > SLOWER * before {
            bail!(said);
        }
        Ok(said)
    }

    /// Fails if an agent's memory or number of open files grew.
    pub(super) fn agents_stayed(&self) -> Result<String> {
        let mut said = Vec::new();
        for node in self.nodes() {
            let of = |round: &Round| round.agents.get(node).cloned().unwrap_or_default();
            let (memory, more_memory) = self.ends(|round| of(round).memory)?;
            let (files, more_files) = self.ends(|round| of(round).files)?;
            let mib = |bytes: f64| bytes / 1024.0 / 1024.0;
            let line = format!(
                "{node} {:.2} MiB and {files} files, then {:.2} MiB and {more_files}",
                mib(memory),
                mib(more_memory)
            );
            if more_memory > memory + MEMORY || more_files > files + FILES {
                bail!(line);
            }
            said.push(line);
        }
        Ok(said.join("; "))
    }

    /// Fails if a map of an agent has more elements in the end.
    pub(super) fn maps_stayed(&self) -> Result<String> {
        let mut said = Vec::new();
        for node in self.nodes() {
            let first = self.0.first().and_then(|round| round.agents.get(node));
            for map in first.into_iter().flat_map(|usage| usage.elements.keys()) {
                let of = |round: &Round| round.agents.get(node)?.elements.get(map).copied();
                let (before, after) = self.ends(|round| of(round).unwrap_or_default())?;
                let line = format!("{node} {map} {before:.0}, then {after:.0}");
                if after > SHARE * before + ELEMENTS {
                    bail!(line);
                }
                if map == "ct" {
                    said.push(line);
                }
            }
        }
        Ok(said.join("; "))
    }

    fn nodes(&self) -> impl Iterator<Item = &String> {
        self.0.first().into_iter().flat_map(|round| round.agents.keys())
    }

    /// The middle of the first third of the warm rounds, and of the last.
    fn ends(&self, of: impl Fn(&Round) -> f64) -> Result<(f64, f64)> {
        let warm = self.0.get((self.0.len() / WARM_UP).max(1)..).unwrap_or_default();
        let third = warm.len() / 3;
        if third == 0 {
            bail!("{} rounds are too few", self.0.len());
        }
        let middle = |rounds: &[Round]| {
            let mut values: Vec<f64> = rounds.iter().map(&of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let (first, _) = warm.split_at(third);
        let (_, last) = warm.split_at(warm.len() - third);
        Ok((middle(first), middle(last)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Record, Round, Usage};

    const METRICS: &str = "# HELP process_open_fds x\nprocess_open_fds 40\nprocess_resident_memory_bytes 1.2e+07\n\
                           lb_map_entries{map=\"ct\"} 1200\nlb_map_entries{map=\"pods\"} 3\nlb_other 5\n";

    fn record(grow: impl Fn(&mut Round, u32)) -> Record {
        let usage = Usage::read(METRICS).unwrap();
        let round = |n: u32| {
            let agents = BTreeMap::from([("n1".to_owned(), usage.clone())]);
            let mut round =
                Round { requests: 1000, seconds: 10.0, p50_us: 100, agents, ..Round::default() };
            grow(&mut round, n);
            round
        };
        Record((0..30).map(round).collect())
    }

    #[test]
    fn what_stays_passes_and_what_grows_does_not() {
        let still = record(|_, _| {});
        for outcome in [
            still.answered(),
            still.reached(100),
            still.stayed_fast(),
            still.agents_stayed(),
            still.maps_stayed(),
        ] {
            outcome.unwrap();
        }
        assert!(still.reached(106).is_err());
        assert!(record(|round, n| round.p50_us += u64::from(5 * n)).stayed_fast().is_err());
        let usage = |round: &mut Round, change: &dyn Fn(&mut Usage)| {
            round.agents.values_mut().for_each(change);
        };
        let leak = record(|round, n| usage(round, &|it| it.memory += 60_000.0 * f64::from(n)));
        assert!(leak.agents_stayed().is_err());
        let files = record(|round, n| usage(round, &|it| it.files += f64::from(n) / 4.0));
        assert!(files.agents_stayed().is_err());
        let flows = record(|round, n| {
            usage(round, &|it| *it.elements.get_mut("ct").unwrap() += 40.0 * f64::from(n));
        });
        assert!(flows.maps_stayed().is_err());
        let lost = record(|round, n| {
            if n == 17 {
                round.failures.insert("no answer in time".to_owned(), 1);
            }
        });
        let said = lost.answered().unwrap_err().to_string();
        assert_eq!(said, "of 30000: {\"no answer in time\": 1}");
        assert!(Record::default().stayed_fast().is_err());
    }

    #[test]
    fn metrics_without_what_is_judged_are_an_error() {
        assert!(Usage::read("process_open_fds 40\n").is_err());
    }
}
