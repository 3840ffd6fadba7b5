//! Flows for audit: JSON lines on standard output or in files that are rotated, apart from the agent's log.
//!
//! A thread of its own writes, and no caller waits for it. What cannot be written is counted, and the stream itself says how
//! many records are missing, and where.
#![forbid(unsafe_code)]

mod config;
mod rotate;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::warn;

use self::rotate::RotatedFile;
use lb_core::admin::FlowRecord;
use lb_ctl::flows::{self, FlowRow};

pub(crate) use self::config::{FlowLogArgs, FlowLogConfig, FlowLogTarget};

/// Records that may wait to be written.
const WAITING: usize = 4096;
/// Between two warnings about a stream that cannot be written.
const QUIET: Duration = Duration::from_secs(60);

/// Counters of the stream, shared with the metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlowLogCounts {
    pub(crate) written: Counter,
    /// Records that found no room in the queue, or could not be written.
    pub(crate) lost: Counter,
}

/// Where records go to be written.
#[derive(Clone, Debug)]
pub(crate) struct FlowLog {
    queue: SyncSender<Arc<FlowRecord>>,
    verdicts: Box<[flows::FlowVerdict]>,
    counts: FlowLogCounts,
}

/// A line of the stream.
#[derive(Debug, Serialize)]
struct LogLine<'a> {
    node: &'a str,
    #[serde(flatten)]
    flow: &'a FlowRow,
}

/// A line about lines that are missing before it.
#[derive(Debug, Serialize)]
struct LostLine<'a> {
    time: String,
    node: &'a str,
    lost: u64,
}

impl FlowLog {
    /// Opens the stream and starts the thread that writes it.
    ///
    /// # Errors
    /// When the file cannot be opened, or the thread cannot be started.
    pub(crate) fn spawn(
        cfg: &FlowLogConfig,
        node: &str,
        counts: FlowLogCounts,
    ) -> anyhow::Result<Self> {
        let out: Box<dyn Write + Send> = match &cfg.destination {
            FlowLogTarget::Stdout => Box::new(io::stdout()),
            FlowLogTarget::File(path) => {
                let file = RotatedFile::open(path, cfg.size, cfg.files)
                    .with_context(|| format!("--flow-log: open {}", path.display()))?;
                Box::new(file)
            }
        };
        let (queue, records) = sync_channel(WAITING);
        let writer = LogWriter {
            out,
            node: node.to_owned(),
            fields: cfg.fields.clone(),
            counts: counts.clone(),
            told: 0,
            warned: None,
        };
        thread::Builder::new()
            .name("flow-log".to_owned())
            .spawn(move || writer.run(&records))
            .context("start the thread of the flow log")?;
        Ok(Self { queue, verdicts: cfg.verdicts.clone(), counts })
    }

    /// Has a record written, if it is wanted.
    pub(crate) fn take(&self, record: &Arc<FlowRecord>) {
        let is_wanted = self.verdicts.contains(&flows::FlowVerdict::of(record));
        if is_wanted && self.queue.try_send(Arc::clone(record)).is_err() {
            self.counts.lost.inc();
        }
    }

    /// Whether the programs have to report allowed flows for it.
    pub(crate) fn wants_allowed(&self) -> bool {
        self.verdicts.contains(&flows::FlowVerdict::Allowed)
    }
}

struct LogWriter {
    out: Box<dyn Write + Send>,
    node: String,
    /// The fields that are written; `None` = all.
    fields: Option<Box<[String]>>,
    counts: FlowLogCounts,
    /// Lost records that the stream has mentioned.
    told: u64,
    warned: Option<Instant>,
}

impl LogWriter {
    fn run(mut self, records: &Receiver<Arc<FlowRecord>>) {
        while let Ok(first) = records.recv() {
            let mut batch = vec![first];
            batch.extend(records.try_iter().take(WAITING));
            if let Err(err) = self.write(&batch) {
                self.counts.lost.inc_by(batch.len() as u64);
                if self.warned.is_none_or(|at| at.elapsed() > QUIET) {
                    warn!(%err, "cannot write the flow log: records are lost");
                    self.warned = Some(Instant::now());
                }
            } else {
                self.counts.written.inc_by(batch.len() as u64);
            }
        }
    }

    /// Writes the batch as a whole: after an error none of it counts as written.
    fn write(&mut self, batch: &[Arc<FlowRecord>]) -> io::Result<()> {
        let lost = self.counts.lost.get();
        if lost > self.told {
            let line = LostLine { time: now(), node: &self.node, lost: lost - self.told };
            self.line(&serde_json::to_vec(&line)?)?;
            self.told = lost;
        }
        for record in batch {
            let flow = &flows::row(record);
            let line = LogLine { node: &self.node, flow };
            let text = match &self.fields {
                None => serde_json::to_vec(&line)?,
                Some(fields) => serde_json::to_vec(&masked(serde_json::to_value(&line)?, fields))?,
            };
            self.line(&text)?;
        }
        self.out.flush()
    }

    /// Writes one line in one call, so that no file begins within it.
    fn line(&mut self, text: &[u8]) -> io::Result<()> {
        let mut line = text.to_vec();
        line.push(b'\n');
        self.out.write_all(&line)
    }
}

/// Only these fields of the line.
fn masked(line: Value, fields: &[String]) -> Map<String, Value> {
    let Value::Object(all) = line else { return Map::new() };
    all.into_iter().filter(|(key, _)| fields.contains(key)).collect()
}

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    flows::utc(u64::try_from(since.as_millis()).unwrap_or_default())
}

#[cfg(test)]
mod tests;
