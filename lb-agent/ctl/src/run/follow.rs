//! `lbctl flows`: requests flows from the agent, prints them as they come.

use std::io::Write;

use lb_common::verdict::Counter;

use crate::FlowsArgs;
use crate::admin::{self, Client};
use crate::columns::{self, Format, RowStream};
use crate::flows::{self, BEFORE, FlowFilter, FlowLine, FlowRow, FlowsHeader};
use crate::pinned::Pinned;
use crate::run::{TablePaths, end_with_input, evidence, remark};
use lb_core::admin::{Covers, FlowRecord, FlowsWanted, Response};
use lb_core::counts::Counts;

/// Prints the flows.
pub(super) fn flows(
    place: TablePaths<'_>,
    args: &FlowsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    if let Some(by) = args.by {
        return evidence::pairs(place, (args, by), out);
    }
    let wanted = args.wanted.clone().complete()?;
    let for_laptop = args.style.output == Format::Rows;
    if let Some(text) = wanted.needs_follow(args.follow).filter(|_| !for_laptop) {
        remark(text);
    }
    let mut stream = RowStream::new(&args.style)?;
    if args.follow && for_laptop {
        end_with_input();
    }
    let request = FlowsWanted { follow: args.follow, allowed: wanted.allowed() };
    let mut responses = Client::new(place.state_dir).flows(request)?;
    let mut past = Vec::new();
    let mut covers = Covers::default();
    for response in &mut responses {
        match response? {
            Response::Covers(found) => covers = found,
            Response::Flow(record) => past.push(*record),
            Response::Lost(n) => remark(&lost(n)),
            Response::Now => break,
            other => return Err(admin::unexpected(&other)),
        }
    }
    let lost_events = lost_in_kernel(place);
    let mut rows = rows(&wanted, &past);
    let shown = wanted.is_limited().then_some(rows.len());
    let header = flows::header(&covers, lost_events, shown);
    if for_laptop {
        let header = FlowsHeader { covers, lost: lost_events };
        columns::json_line(out, &FlowLine::Header(header))?;
    } else if args.style.output.is_json() || args.style.no_headers {
        remark(&header);
    } else {
        columns::line(out, format_args!("# {header}"))?;
    }
    let most = args.last.unwrap_or(if args.follow { BEFORE } else { usize::MAX });
    stream.print(out, &rows.split_off(rows.len().saturating_sub(most)))?;
    if for_laptop {
        columns::json_line(out, &FlowLine::Now)?;
        out.flush()?;
    }
    if !args.follow {
        return Ok(());
    }
    responses.follow()?;
    for response in responses {
        match response? {
            Response::Flow(record) => {
                stream.print(out, &self::rows(&wanted, &[*record]))?;
            }
            Response::Lost(n) => remark(&lost(n)),
            other => return Err(admin::unexpected(&other)),
        }
    }
    remark("the agent closed the connection");
    Ok(())
}

fn lost(n: u64) -> String {
    format!("{n} flows lost: they arrived faster than they were read")
}

fn lost_in_kernel(place: TablePaths<'_>) -> Option<u64> {
    let Counts { counters, .. } = Pinned::open(place.pin_dir).ok()?.counts().ok()?;
    counters.iter().find(|(counter, _)| *counter == Counter::EventLost).map(|(_, n)| *n)
}

/// The rows that are wanted.
fn rows(wanted: &FlowFilter, records: &[FlowRecord]) -> Vec<FlowRow> {
    records.iter().map(flows::row).filter(|row| wanted.takes(row)).collect()
}
