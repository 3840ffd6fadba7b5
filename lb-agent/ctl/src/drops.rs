//! `lbctl drops`: packets that were not delivered, why, and what to do about it.

use lb_common::policy::Judgement;
use lb_common::verdict::DropReason;
use serde::Serialize;

use crate::attribution::{DecidedBy, PolicyNames};
use crate::columns::{Cell, Column, MergeRule, Row, RowScope};
use crate::network::protocol_name;
use crate::view::View;
use lb_core::counts::Counts;

/// One reason in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DropRow {
    /// Name of the reason.
    pub reason: &'static str,
    /// Direction of the packets, as the Pod sees it: `egress` or `ingress`.
    pub direction: &'static str,
    /// Packets since the maps were made, over all CPUs.
    pub count: u64,
    /// Seconds since the last one that was sampled.
    pub last: Option<u64>,
    /// The last one that was sampled.
    pub example: String,
    /// Whose policies decided of that one, and which rule.
    pub by: DecidedBy,
    /// What the operator can do.
    pub what_to_do: &'static str,
    /// Number of the reason.
    pub number: u8,
}

impl Row for DropRow {
    const NOUN: &'static str = "drops";
    const SCOPE: RowScope = RowScope::Cluster;
    const COLUMNS: &'static [Column] = &[
        Column::new("REASON"),
        Column::new("DIRECTION"),
        Column::new("COUNT").merged(MergeRule::Sum),
        Column::new("LAST").merged(MergeRule::Smallest),
        Column::new("EXAMPLE").merged(MergeRule::Latest),
        Column::new("BY").merged(MergeRule::Union),
        Column::wide("NUMBER"),
        Column::new("WHAT-TO-DO"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::Text(self.reason.to_owned()),
            Cell::Text(self.direction.to_owned()),
            Cell::Number(self.count),
            Cell::age(self.last),
            Cell::Text(self.example.clone()),
            Cell::Text(self.by.to_string()),
            Cell::Number(self.number.into()),
            Cell::Note(self.what_to_do.to_owned()),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(self.reason.to_owned())
    }
}

/// Reasons that occurred (or `all`), the most frequent first.
pub fn rows(view: &View<'_>, counts: &Counts, all: bool) -> Vec<DropRow> {
    let policies = PolicyNames::of(view.names);
    let wanted = counts.drops.iter().filter(|(_, _, count)| all || *count > 0);
    let mut rows: Vec<DropRow> = wanted
        .map(|(reason, ingress, count)| row(view, &policies, (*reason, *ingress), *count))
        .collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.count), row.number, row.direction));
    rows
}

fn row(
    view: &View<'_>,
    policies: &PolicyNames,
    (reason, ingress): (DropReason, bool),
    count: u64,
) -> DropRow {
    let number = reason as u8;
    let examples = view.names.drops.iter().filter(|e| e.reason == number && e.ingress == ingress);
    let last = examples.max_by_key(|example| example.at);
    let example = last.map(|example| {
        let src = view.directory.host(example.src.ip(), example.src.port());
        let protocol = protocol_name(example.protocol);
        match example.service_id {
            0 => {
                let dst = view.directory.host(example.dst.ip(), example.dst.port());
                format!("{protocol} {src} -> {dst}")
            }
            id => {
                let service = view.directory.service_port(id);
                format!("{protocol} {src} -> {} ({service})", example.dst)
            }
        }
    });
    DropRow {
        reason: reason.name(),
        direction: if ingress { "ingress" } else { "egress" },
        count,
        last: last.and_then(|example| view.since(example.at)),
        example: example.unwrap_or_default(),
        by: last.map_or_else(DecidedBy::default, |example| {
            policies.by(example.group, Judgement::from_number(example.judgement))
        }),
        what_to_do: reason.what_to_do(),
        number,
    }
}
