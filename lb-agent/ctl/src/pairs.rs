//! `lbctl flows --by`: live flows counted by source and destination. The counts are those of conntrack, which has every flow; what
//! was denied left no entry, so denied flows are those of the agent's sample. A flow that leaves its Pod has an entry there even if
//! the Pod it goes to denies it: it is called unanswered.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::conntrack::{CtEntry, CtFlags, CtKey};
use lb_common::flow::proto;
use serde::{Deserialize, Serialize};

use crate::account::{CountedFlows, FlowTotals, add};
use crate::columns::{Cell, Column, MergeRule, Row, RowScope};
use crate::ct;
use crate::flows::{FlowFilter, FlowVerdict, row};
use crate::natural;
use crate::network::protocol_name;
use crate::snapshot::Now;
use crate::view::View;
use lb_core::admin::FlowRecord;
use lb_core::admin::what_if::SeenFlow;
use lb_core::admin::workload;

/// What flows are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PairBy {
    /// Source and destination; the Pods of a workload count together, by their names.
    Pair,
    /// The same, each Pod by itself.
    Pod,
}

/// Flows with the same ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LivePair {
    /// The ends, as policies see them.
    pub flow: SeenFlow,
    /// `namespace/name:port` of the Service, or empty.
    pub via: String,
    /// Whether they were answered, also by a refusal. If not, something may drop them further on.
    pub is_answered: bool,
    /// How many there are.
    pub count: u64,
    /// Seconds since the last packet of any of them.
    pub idle: u64,
    /// What was counted of them.
    pub totals: Option<FlowTotals>,
}

impl LivePair {
    /// Whether the packets may arrive: a TCP connection that was not answered does not work, and policies break nothing of it. Other
    /// protocols need no answer.
    pub const fn may_arrive(&self) -> bool {
        self.is_answered || self.flow.protocol != proto::TCP
    }
}

/// The live flows of a conntrack table: by ends, destination port, Service, and whether they were answered. A flow between two Pods
/// of this node counts once.
pub fn live(view: &View<'_>, counted: &CountedFlows, now: Now) -> Vec<LivePair> {
    let mut pairs = BTreeMap::<(SeenFlow, String, bool), PairSum>::new();
    for (key, entry) in ct::flows(&counted.entries, now) {
        if now.is_expired(key, &entry) || entry.flags.contains(CtFlags::TO_HOST) {
            continue;
        }
        let via = ct::service_id(view, key, &entry);
        let via = via.map(|id| view.directory.service_port(id)).unwrap_or_default();
        let idle = now.idle_secs(&entry);
        let totals = counted.totals(key, &entry);
        let is_answered = ct::is_answered(key.proto, entry.flags);
        pairs.entry((seen(key, &entry), via, is_answered)).or_default().add(1, idle, totals);
    }
    let pair = |((flow, via, is_answered), sum): (_, PairSum)| {
        let PairSum { count, idle, totals } = sum;
        LivePair { flow, via, is_answered, count, idle, totals }
    };
    pairs.into_iter().map(pair).collect()
}

/// The verdict on flows that this node allows, and that were not answered.
const UNANSWERED: &str = "unanswered";

/// What flows of one pair have in sum.
#[derive(Clone, Copy, Debug)]
struct PairSum {
    count: u64,
    /// The least.
    idle: u64,
    totals: Option<FlowTotals>,
}

impl Default for PairSum {
    fn default() -> Self {
        Self { count: 0, idle: u64::MAX, totals: None }
    }
}

impl PairSum {
    /// This number of flows more.
    fn add(&mut self, count: u64, idle: u64, totals: Option<FlowTotals>) {
        self.count += count;
        self.idle = self.idle.min(idle);
        add(&mut self.totals, totals);
    }
}

/// The ends of a flow: its opener, and behind a Service its backend.
fn seen(key: &CtKey, entry: &CtEntry) -> SeenFlow {
    let [src, dialed] = ct::ends(key, entry);
    let is_translated = entry.flags.contains(CtFlags::FORWARD);
    let (dst, port) = if is_translated { (entry.nat_addr, entry.nat_port) } else { dialed };
    let has_ports = matches!(key.proto, proto::TCP | proto::UDP | proto::SCTP);
    SeenFlow {
        src: src.0.to_ip(),
        dst: dst.to_ip(),
        protocol: key.proto,
        port: if has_ports { port.get() } else { 0 },
        from_host: entry.flags.contains(CtFlags::FROM_HOST),
    }
}

/// One end, in rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairEnd {
    /// `namespace/name` of the workload or the Pod, `node/name`, or the address.
    pub name: String,
    /// The address; empty where several Pods count together.
    pub address: String,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PairRow {
    pub src: PairEnd,
    /// Behind a Service the backend.
    pub dst: PairEnd,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// `namespace/name:port` of the Service, or empty.
    pub via: String,
    /// Of live flows `allowed`, or `unanswered`: allowed here, and perhaps dropped further on.
    pub verdict: &'static str,
    /// Flows: all live ones, or those of the agent's sample where they were denied.
    pub count: u64,
    /// Seconds since the last packet.
    pub idle: u64,
    /// Policies and rule that decided, where flows were denied.
    pub by: String,
    /// What was counted of the live flows; absent while flows are not counted.
    #[serde(flatten)]
    pub totals: Option<FlowTotals>,
}

impl Row for PairRow {
    const NOUN: &'static str = "flows";
    const SCOPE: RowScope = RowScope::Cluster;
    const COLUMNS: &'static [Column] = &[
        Column::new("SRC"),
        Column::new("DST"),
        Column::new("PORT"),
        Column::new("PROTO"),
        Column::new("VIA"),
        Column::new("VERDICT"),
        Column::new("COUNT").merged(MergeRule::Sum),
        Column::new("LAST").merged(MergeRule::Smallest),
        Column::new("BY"),
        Column::wide("SRC-ADDRESS"),
        Column::wide("DST-ADDRESS"),
        FlowTotals::PACKETS,
        FlowTotals::BYTES,
        FlowTotals::REPLY_PACKETS,
        FlowTotals::REPLY_BYTES,
    ];

    fn cells(&self) -> Vec<Cell> {
        let text = |text: &str| Cell::Text(text.to_owned());
        let mut cells = vec![
            text(&self.src.name),
            text(&self.dst.name),
            Cell::Number(self.port.into()),
            text(&self.protocol),
            text(&self.via),
            text(self.verdict),
            Cell::Number(self.count),
            Cell::Age(self.idle),
            text(&self.by),
            text(&self.src.address),
            text(&self.dst.address),
        ];
        cells.extend(FlowTotals::cells(self.totals.as_ref()));
        cells
    }

    fn name(&self) -> Option<String> {
        None
    }
}

/// What rows are made from.
pub struct PairFacts<'a> {
    /// The live flows.
    pub live: &'a [LivePair],
    /// The flows of the agent's sample.
    pub sample: &'a [FlowRecord],
    /// Who has an address: `namespace/name` of a Pod, `node/name`, or empty.
    pub owner: &'a dyn Fn(IpAddr) -> String,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// Everything that two rows of one pair have in common.
type PairKey = (PairEnd, PairEnd, u16, String, String, &'static str, String);

/// The rows that are wanted, those with the most flows first.
pub fn rows(facts: &PairFacts<'_>, wanted: &FlowFilter, by: PairBy) -> Vec<PairRow> {
    let mut sums = BTreeMap::<PairKey, PairSum>::new();
    // Nothing dropped them, and which rule allowed them is not in conntrack.
    let is_about_denials = !wanted.reason.is_empty() || wanted.policy.is_some();
    for LivePair { flow, via, is_answered, count, idle, totals } in
        facts.live.iter().filter(|_| !is_about_denials)
    {
        let ends = [flow.src, flow.dst].map(|ip| (ip, (facts.owner)(ip)));
        let allowed = FlowVerdict::Allowed;
        if !wanted.takes_pair([&ends[0], &ends[1]], (flow.port, via), allowed) {
            continue;
        }
        let verdict = if *is_answered { allowed.name() } else { UNANSWERED };
        let [src, dst] = ends.map(|(ip, name)| end(ip, &name, by));
        let protocol = protocol_name(flow.protocol);
        let key = (src, dst, flow.port, protocol, via.clone(), verdict, String::new());
        sums.entry(key).or_default().add(*count, *idle, *totals);
    }
    // What was allowed is in conntrack.
    let denied = facts.sample.iter().map(|record| (record, row(record)));
    for (record, row) in denied.filter(|(_, row)| row.verdict != FlowVerdict::Allowed.name()) {
        if !wanted.takes(&row) {
            continue;
        }
        let [src, dst] = [&row.src, &row.dst].map(|of| end(of.address.ip(), &of.name, by));
        let port = record.dst.port();
        let by = row.by.to_string();
        let by = if by.is_empty() { row.reason.to_owned() } else { by };
        let key = (src, dst, port, row.protocol.clone(), row.via.clone(), row.verdict, by);
        let idle = facts.now_ms.saturating_sub(record.at_ms) / 1000;
        sums.entry(key).or_default().add(1, idle, None);
    }
    let rows = sums.into_iter().map(|(key, sum)| {
        let (src, dst, port, protocol, via, verdict, by) = key;
        let PairSum { count, idle, totals } = sum;
        PairRow { src, dst, port, protocol, via, verdict, count, idle, by, totals }
    });
    let mut rows: Vec<PairRow> = rows.collect();
    rows.sort_by(|a, b| {
        let name = |row: &PairRow| format!("{} {}", row.src.name, row.dst.name);
        b.count.cmp(&a.count).then_with(|| natural::compare(&name(a), &name(b)))
    });
    rows
}

/// An end, as it is counted.
pub fn end(ip: IpAddr, name: &str, by: PairBy) -> PairEnd {
    let address = ip.to_string();
    match (by, name) {
        (_, "") => PairEnd { name: address.clone(), address },
        (PairBy::Pod, name) => PairEnd { name: name.to_owned(), address },
        (PairBy::Pair, name) if name.starts_with("node/") => {
            PairEnd { name: name.to_owned(), address: String::new() }
        }
        (PairBy::Pair, name) => PairEnd { name: workload_name(name), address: String::new() },
    }
}

/// `namespace/name` of what makes the Pod with this name.
pub fn workload_name(pod: &str) -> String {
    match pod.split_once('/') {
        Some((namespace, name)) => format!("{namespace}/{}", workload::of_pod(name)),
        None => workload::of_pod(pod).to_owned(),
    }
}
