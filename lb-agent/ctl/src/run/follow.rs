//! `lbctl flows`: requests flows from the agent, joins them with names, prints them as they come.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::verdict::Counter;

use crate::FlowsArgs;
use crate::admin::{self, Client};
use crate::attribution::PolicyNames;
use crate::columns::{self, Format, RowStream};
use crate::flows::{self, BEFORE, FlowFilter, FlowLine, FlowRow, FlowsHeader, Joined};
use crate::pinned::Pinned;
use crate::run::{TablePaths, end_with_input, remark};
use lb_core::admin::{Covers, FlowRecord, FlowsWanted, Response};
use lb_core::counts::Counts;
use lb_core::names::Names;

/// How long what is known of an address is used: it may get another owner.
const OWNERS: Duration = Duration::from_secs(10);
/// The shortest time between two reads of the name table.
const NAMES: Duration = Duration::from_secs(1);
/// Addresses of one request.
const ADDRESSES: usize = 200;

/// Prints the flows.
pub(super) fn flows(
    place: TablePaths<'_>,
    args: &FlowsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let wanted = args.wanted.clone().complete()?;
    if wanted.allowed() && !args.follow {
        remark("allowed flows are only reported while a client follows them: add -f");
    }
    let mut stream = RowStream::new(&args.style)?;
    if args.follow && args.style.output == Format::Rows {
        end_with_input();
    }
    let request = FlowsWanted { follow: args.follow, allowed: wanted.allowed() };
    let mut responses = Client::new(place.state_dir).flows(request)?;
    let mut past = Vec::new();
    let mut covers = Covers::default();
    for response in &mut responses {
        match response? {
            Response::Covers(found) => covers = found,
            Response::Flow(record) => past.push(record),
            Response::Lost(n) => remark(&lost(n)),
            Response::Now => break,
            other => return Err(admin::unexpected(&other)),
        }
    }
    let lost_events = lost_in_kernel(place);
    let header = flows::header(&covers, lost_events);
    let for_laptop = args.style.output == Format::Rows;
    if for_laptop {
        let header = FlowsHeader { covers, lost: lost_events };
        columns::json_line(out, &FlowLine::Header(header))?;
    } else if args.style.output == Format::Json || args.style.no_headers {
        remark(&header);
    } else {
        columns::line(out, format_args!("# {header}"))?;
    }
    let mut joiner = Joiner::new(place, place.names_or_remark().names);
    let mut rows = joiner.rows(&wanted, &past);
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
                let rows = joiner.rows(&wanted, &[record]);
                stream.print(out, &rows)?;
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

/// What the numbers in flows are called, kept up to date.
struct Joiner<'a> {
    place: TablePaths<'a>,
    names: Names<'static>,
    policies: PolicyNames,
    read: Instant,
    /// Returns the owners of addresses; addresses without an owner are included.
    owners: HashMap<IpAddr, String>,
    asked: Instant,
}

impl<'a> Joiner<'a> {
    fn new(place: TablePaths<'a>, names: Names<'static>) -> Self {
        let policies = PolicyNames::of(&names);
        let now = Instant::now();
        Self { place, names, policies, read: now, owners: HashMap::new(), asked: now }
    }

    /// The rows that are wanted.
    fn rows(&mut self, wanted: &FlowFilter, records: &[FlowRecord]) -> Vec<FlowRow> {
        if records.iter().any(|record| !self.knows(record)) && self.read.elapsed() > NAMES {
            self.names = self.place.names().names;
            self.policies = PolicyNames::of(&self.names);
            self.read = Instant::now();
        }
        self.ask_owners(records);
        let Self { names, policies, owners, .. } = self;
        let joined = Joined { names, policies, owners };
        let records = records.iter().filter(|record| !flows::is_told_better(&joined, record));
        let rows = records.map(|record| flows::row(&joined, record));
        rows.filter(|row| wanted.takes(row)).collect()
    }

    fn knows(&self, record: &FlowRecord) -> bool {
        let is = |id: u32| self.names.services.iter().any(|service| service.id == id);
        (record.service_id == 0 || is(record.service_id))
            && (record.group == 0 || self.policies.group(record.group).is_some())
    }

    fn ask_owners(&mut self, records: &[FlowRecord]) {
        if self.asked.elapsed() > OWNERS {
            self.owners.clear();
            self.asked = Instant::now();
        }
        let ends = records.iter().flat_map(|record| [record.src.ip(), record.dst.ip()]);
        let unknown: HashSet<IpAddr> = ends.filter(|ip| !self.owners.contains_key(ip)).collect();
        let unknown: Vec<IpAddr> = unknown.into_iter().collect();
        for some in unknown.chunks(ADDRESSES) {
            self.owners.extend(some.iter().map(|ip| (*ip, String::new())));
            // Without an answer, addresses are shown.
            if let Ok(owners) = Client::new(self.place.state_dir).who(some.to_vec()) {
                self.owners.extend(owners.into_iter().map(|owner| (owner.addr, owner.name)));
            }
        }
    }
}
