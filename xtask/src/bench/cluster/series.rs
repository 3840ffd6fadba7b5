//! The measurements: a series in each client's Pod against each server, whose results are read as they come.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use testbed::{measure::What, series::Entry};

use super::{
    Options,
    bed::{Bed, cpu},
    record::{Client, Place, Row},
};
use crate::command::say;

/// Measures everything.
///
/// # Errors
/// When a client cannot be started, or a target does not answer.
pub(super) fn measure(bed: &Bed<'_>, options: &Options) -> Result<Vec<Row>> {
    let mut series = Vec::new();
    for client in [Client::Pod, Client::Host] {
        series.extend(bed.places.iter().map(|place| (client, *place)));
    }
    let mut progress =
        Progress { start: Instant::now(), done: 0, all: series.len() * options.rounds as usize };
    let mut rows = Vec::new();
    for (client, place) in series {
        let entries = one(bed, options, client, place, &mut progress)
            .with_context(|| format!("{client}, {place}"))?;
        rows.extend(Row::all(client, place, &entries));
    }
    Ok(rows)
}

struct Progress {
    start: Instant,
    /// Rounds.
    done: usize,
    all: usize,
}

impl Progress {
    fn round(&mut self, client: Client, place: Place) {
        let left = match u32::try_from(self.done) {
            Ok(done @ 1..) => {
                let left = self.start.elapsed() / done * (self.all - self.done) as u32;
                format!(", about {} s left", left.as_secs())
            }
            _ => String::new(),
        };
        self.done += 1;
        say(&format!("round {} of {}{left}: {client}, {place}", self.done, self.all));
    }
}

fn one(
    bed: &Bed<'_>,
    options: &Options,
    client: Client,
    place: Place,
    progress: &mut Progress,
) -> Result<Vec<Entry>> {
    let whats = What::ALL.map(What::word).join(",");
    let (rounds, time) = (options.rounds.to_string(), options.duration().as_millis().to_string());
    let targets = bed.targets(place)?.map(|target| target.to_string());
    let mut args = vec!["series", &whats, &rounds, &time, cpu(options)];
    args.extend(targets.iter().map(String::as_str));
    let mut child = bed
        .exec(client, &args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start kubectl")?;
    let stdout = child.stdout.take().context("output of kubectl")?;
    let mut stderr = child.stderr.take().context("output of kubectl")?;
    let said = std::thread::spawn(move || {
        let mut said = Vec::new();
        // What cannot be read is not shown.
        drop(stderr.read_to_end(&mut said));
        String::from_utf8_lossy(&said).into_owned()
    });
    let mut entries: Vec<Entry> = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("read the results")?;
        let entry: Entry =
            serde_json::from_str(&line).with_context(|| format!("unexpected output {line:?}"))?;
        if entries.last().is_none_or(|last| last.round != entry.round) {
            progress.round(client, place);
        }
        entries.push(entry);
    }
    let status = child.wait().context("wait for kubectl")?;
    let said = said.join().unwrap_or_default();
    let wanted = What::ALL.len() * targets.len() * options.rounds as usize;
    if !status.success() || entries.len() != wanted {
        bail!("{} of {wanted} measurements: {}", entries.len(), said.trim());
    }
    Ok(entries)
}
