//! `lbctl shadow report`: what would change if the policies in shadow mode were enforced.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::Serialize;

use crate::columns::{Cell, Column, MergeRule, Row, RowScope};
use crate::flows::{FlowVerdict, row, utc};
use crate::network::protocol_name;
use crate::pairs::{LivePair, PairBy, PairEnd, end};
use crate::trial::Fate;
use lb_core::admin::FlowRecord;
use lb_core::admin::what_if::SeenFlow;

/// Flows between two workloads whose verdict would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShadowRow {
    pub src: PairEnd,
    /// Behind a Service the backend.
    pub dst: PairEnd,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// `allowed` or `denied`.
    pub now: &'static str,
    /// The other one.
    pub would_be: &'static str,
    /// Policies and rule that would decide.
    pub by: String,
    /// Live flows.
    pub live: u64,
    /// New flows of the agent's sample.
    pub count: u64,
    /// When the first of the sample was, UTC; empty without any.
    pub first: String,
    /// When the last packet or flow was, UTC.
    pub last: String,
    #[serde(skip)]
    first_age: Option<u64>,
    #[serde(skip)]
    last_age: u64,
}

impl Row for ShadowRow {
    const NOUN: &'static str = "changes";
    const SCOPE: RowScope = RowScope::Cluster;
    const COLUMNS: &'static [Column] = &[
        Column::new("SRC"),
        Column::new("DST"),
        Column::new("PORT"),
        Column::new("PROTO"),
        Column::new("NOW"),
        Column::new("WOULD-BE"),
        Column::new("BY"),
        Column::new("LIVE").merged(MergeRule::Sum),
        Column::new("COUNT").merged(MergeRule::Sum),
        Column::new("FIRST").merged(MergeRule::Largest),
        Column::new("LAST").merged(MergeRule::Smallest),
    ];

    fn cells(&self) -> Vec<Cell> {
        let text = |text: &str| Cell::Text(text.to_owned());
        vec![
            text(&self.src.name),
            text(&self.dst.name),
            Cell::Number(self.port.into()),
            text(&self.protocol),
            text(self.now),
            text(self.would_be),
            text(&self.by),
            Cell::Number(self.live),
            Cell::Number(self.count),
            self.first_age.map_or_else(|| text(""), Cell::Age),
            Cell::Age(self.last_age),
        ]
    }

    fn name(&self) -> Option<String> {
        None
    }
}

/// What the rows are made from.
pub struct ShadowFacts<'a> {
    pub live: &'a [LivePair],
    /// What would happen to live flows.
    pub fates: &'a HashMap<SeenFlow, Fate>,
    pub sample: &'a [FlowRecord],
    /// Who has an address: `namespace/name` of a Pod, `node/name`, or empty.
    pub owner: &'a dyn Fn(IpAddr) -> String,
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// Only flows with an end in this namespace.
    pub namespace: Option<&'a str>,
    /// Only what this policy would decide.
    pub policy: Option<&'a str>,
}

/// Ends, port, protocol, whether it would be denied, and by which policies.
type ShadowKey = (PairEnd, PairEnd, u16, String, bool, String);

#[derive(Default)]
struct ShadowCount {
    live: u64,
    count: u64,
    first: Option<u64>,
    last: u64,
}

/// The rows, those with the most flows first.
pub fn rows(facts: &ShadowFacts<'_>) -> Vec<ShadowRow> {
    let mut counts = BTreeMap::<ShadowKey, ShadowCount>::new();
    let is_wanted = |src: &str, dst: &str, by: &str| {
        let is_in = |name: &str, namespace: &str| {
            name.split_once('/').is_some_and(|(of, _)| of == namespace)
        };
        let by_policy = |wanted: &str| by.split([',', ' ']).any(|word| word == wanted);
        facts.namespace.is_none_or(|namespace| is_in(src, namespace) || is_in(dst, namespace))
            && facts.policy.is_none_or(by_policy)
    };
    for LivePair { flow, count, idle, .. } in facts.live {
        let Some(Fate { denied: true, by, .. }) = facts.fates.get(flow) else { continue };
        let names = [flow.src, flow.dst].map(|ip| (ip, (facts.owner)(ip)));
        let by = by.to_string();
        if !is_wanted(&names[0].1, &names[1].1, &by) {
            continue;
        }
        let [src, dst] = names.map(|(ip, name)| end(ip, &name, PairBy::Pair));
        let key = (src, dst, flow.port, protocol_name(flow.protocol), true, by);
        let sum = counts.entry(key).or_default();
        sum.live += count;
        sum.last = sum.last.max(facts.now_ms.saturating_sub(idle * 1000));
    }
    for record in facts.sample {
        let denied = match FlowVerdict::of(record) {
            FlowVerdict::WouldDeny => true,
            FlowVerdict::WouldAllow => false,
            FlowVerdict::Allowed | FlowVerdict::Dropped => continue,
        };
        let row = row(record);
        let by = row.by.to_string();
        if !is_wanted(&row.src.name, &row.dst.name, &by) {
            continue;
        }
        let [src, dst] =
            [&row.src, &row.dst].map(|of| end(of.address.ip(), &of.name, PairBy::Pair));
        let key = (src, dst, record.dst.port(), row.protocol.clone(), denied, by);
        let sum = counts.entry(key).or_default();
        sum.count += 1;
        sum.first = Some(sum.first.map_or(record.at_ms, |first| first.min(record.at_ms)));
        sum.last = sum.last.max(record.at_ms);
    }
    let row = |(key, sum)| shadow_row(facts.now_ms, key, &sum);
    let mut rows: Vec<ShadowRow> = counts.into_iter().map(row).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.live + row.count));
    rows
}

fn shadow_row(now_ms: u64, key: ShadowKey, sum: &ShadowCount) -> ShadowRow {
    let age = |at_ms: u64| now_ms.saturating_sub(at_ms) / 1000;
    let (src, dst, port, protocol, denied, by) = key;
    let [now, would_be] = if denied { ["allowed", "denied"] } else { ["denied", "allowed"] };
    ShadowRow {
        src,
        dst,
        port,
        protocol,
        now,
        would_be,
        by,
        live: sum.live,
        count: sum.count,
        first: sum.first.map(utc).unwrap_or_default(),
        last: utc(sum.last),
        first_age: sum.first.map(age),
        last_age: age(sum.last),
    }
}
