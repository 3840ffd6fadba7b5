//! `kubectl lb flows`: the streams of all nodes, merged by time.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::FlowsArgs;
use crate::columns::{self, Format, RowStream};
use crate::fleet::ask::{FleetQuery, NoAnswer, no_answers, own_words, report};
use crate::fleet::merge::merge;
use crate::fleet::remark::remark;
use crate::flows::{self, BEFORE, FlowLine, FlowsHeader};
use crate::table::{RowTable, TableRow};
use lb_remote::{FollowEvent, FollowStep, RemoteCommand};

/// How long the past of slow nodes is awaited.
const PAST: Duration = Duration::from_secs(5);
/// How long a flow waits for older ones of other nodes.
const REORDER: Duration = Duration::from_millis(250);

/// Prints the flows.
///
/// # Errors
/// When no node answers, or the output cannot be written.
pub fn flows(
    asked: &FleetQuery,
    args: Vec<String>,
    wanted: &FlowsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let stream = RowStream::new(&wanted.style)?;
    if let Some(text) = wanted.wanted.needs_follow(wanted.follow) {
        remark(&text);
    }
    let follow =
        asked.fleet.follow(&RemoteCommand { args, ..RemoteCommand::default() }, &asked.agents);
    report(&asked.without_agent(), asked.agents.len());
    let wide = wanted.style.output == Format::Wide;
    let total = asked.agents.len();
    let pending = asked.agents.iter().map(|agent| agent.node.clone()).collect();
    let (closed, is_followed) = (Vec::new(), wanted.follow);
    let mut merged = Merged { follow, stream, wide, total, is_followed, pending, closed };
    merged.past(wanted, out)?;
    if wanted.follow { merged.live(out) } else { Ok(()) }
}

/// The streams of all nodes.
struct Merged {
    follow: lb_remote::Follow,
    stream: RowStream,
    wide: bool,
    total: usize,
    is_followed: bool,
    /// Nodes whose past is not complete.
    pending: BTreeSet<String>,
    /// Nodes whose streams have ended too early.
    closed: Vec<NoAnswer>,
}

/// What an event is.
enum StreamNews {
    Line(String, FlowLine),
    Other,
    Silence,
    End,
}

impl Merged {
    /// Prints what has happened before, with the header.
    fn past(&mut self, wanted: &FlowsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let started = Instant::now();
        let (mut tables, mut header) = (Vec::new(), None::<FlowsHeader>);
        while !self.pending.is_empty() {
            let left = PAST.saturating_sub(started.elapsed());
            if left.is_zero() {
                let silent: Vec<&str> = self.pending.iter().map(String::as_str).collect();
                remark(&format_args!("no answer yet from {}", silent.join(", ")));
                break;
            }
            match self.next(left) {
                StreamNews::Line(node, FlowLine::Rows(table)) => {
                    tables.push(RowTable { node, ..table })
                }
                StreamNews::Line(_, FlowLine::Header(one)) => {
                    header = Some(match header {
                        Some(header) => header.and(&one),
                        None => one,
                    });
                }
                StreamNews::Line(node, FlowLine::Now) => {
                    self.pending.remove(&node);
                }
                StreamNews::End => break,
                StreamNews::Other | StreamNews::Silence => {}
            }
        }
        let Some(header) = header else { return Err(no_answers(&self.closed)) };
        report(&self.closed, self.total);
        let shown = || tables.iter().map(|table: &RowTable| table.rows.len()).sum();
        let shown = wanted.wanted.is_limited().then(shown);
        let text = flows::header(&header.covers, header.lost, shown);
        let style = &wanted.style;
        if style.output.is_json() || style.no_headers {
            remark(&text);
        } else {
            columns::line(out, format_args!("# {text}"))?;
        }
        let most = wanted.last.unwrap_or(if wanted.follow { BEFORE } else { usize::MAX });
        self.print(&tables, most, out)
    }

    /// Prints what happens, until all nodes are gone.
    fn live(&mut self, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut tables: Vec<RowTable> = Vec::new();
        let mut since = Instant::now();
        loop {
            if tables.is_empty() {
                since = Instant::now();
            }
            let n_closed = self.closed.len();
            let news = self.next(REORDER.saturating_sub(since.elapsed()));
            report(self.closed.get(n_closed..).unwrap_or_default(), self.total);
            match news {
                StreamNews::Line(node, FlowLine::Rows(table)) => {
                    tables.push(RowTable { node, ..table })
                }
                StreamNews::Line(_, FlowLine::Header(_) | FlowLine::Now)
                | StreamNews::Other
                | StreamNews::Silence => {}
                StreamNews::End => return self.print(&tables, usize::MAX, out),
            }
            if since.elapsed() >= REORDER && !tables.is_empty() {
                self.print(&std::mem::take(&mut tables), usize::MAX, out)?;
            }
        }
    }

    fn next(&mut self, patience: Duration) -> StreamNews {
        match self.follow.next(patience) {
            FollowStep::Event(FollowEvent::Line { node, line }) => {
                match serde_json::from_str(&line) {
                    Ok(line) => StreamNews::Line(node, line),
                    Err(error) => {
                        remark(&format_args!("{node}: unexpected output: {error}"));
                        StreamNews::Other
                    }
                }
            }
            FollowStep::Event(FollowEvent::Remark { node, line }) => {
                remark(&format_args!("{node}: {}", own_words(&line)));
                StreamNews::Other
            }
            FollowStep::Event(FollowEvent::Closed { node, why }) => {
                // Without -f, a complete answer ends.
                if self.pending.remove(&node) || self.is_followed {
                    self.closed.push(NoAnswer { node, error: why });
                }
                StreamNews::Other
            }
            FollowStep::Silence => StreamNews::Silence,
            FollowStep::End => StreamNews::End,
        }
    }

    /// Prints the last of these flows in the order of their times.
    fn print(
        &mut self,
        tables: &[RowTable],
        most: usize,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let Some(mut merged) = merge(tables, self.wide) else { return Ok(()) };
        merged.rows.sort_by_cached_key(time);
        merged.rows.drain(..merged.rows.len().saturating_sub(most));
        self.stream.print_table(out, &merged)
    }
}

/// When it happened: the text in RFC 3339, which sorts by time.
fn time(row: &TableRow) -> String {
    row.item.get("time").and_then(|time| time.as_str()).unwrap_or_default().to_owned()
}
