//! What the programs counted of flows, joined with conntrack: packets and bytes of both directions.

use std::collections::HashMap;
use std::ops::AddAssign;

use lb_common::account::{AccountEntry, AccountKey, Directions};
use lb_common::conntrack::{CtEntry, CtKey};
use serde::Serialize;

use crate::columns::{Cell, Column, MergeRule};

/// The counts of a node, by direction.
pub type Accounts = HashMap<AccountKey, AccountEntry>;

/// Conntrack entries and what was counted of their flows, as they were read.
#[derive(Clone, Debug, Default)]
pub struct CountedFlows {
    /// The entries.
    pub entries: Vec<(CtKey, CtEntry)>,
    /// The counts; `None` while flows are not counted.
    pub accounts: Option<Accounts>,
}

impl CountedFlows {
    /// What was counted of the flow that has this entry; `None` if nothing was.
    pub fn totals(&self, key: &CtKey, entry: &CtEntry) -> Option<FlowTotals> {
        let accounts = self.accounts.as_ref()?;
        let Directions { original, reply } = Directions::of(key, entry)?;
        let AccountEntry { packets, bytes, .. } = *accounts.get(&original)?;
        let none = AccountEntry::ZERO;
        let reply = reply.map(|key| accounts.get(&key).unwrap_or(&none));
        Some(FlowTotals {
            packets,
            bytes,
            reply_packets: reply.map(|reply| reply.packets),
            reply_bytes: reply.map(|reply| reply.bytes),
        })
    }
}

/// Packets and bytes of a flow, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTotals {
    /// Packets from the source to the destination.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Packets that answer them; `None` if these are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_packets: Option<u64>,
    /// Their bytes, from the IP header on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_bytes: Option<u64>,
}

impl FlowTotals {
    /// Columns of the rows that have totals: packets and bytes of each direction.
    pub const PACKETS: Column = Column::wide("PACKETS").merged(MergeRule::Sum);
    /// See `PACKETS`.
    pub const BYTES: Column = Column::wide("BYTES").merged(MergeRule::Sum);
    /// See `PACKETS`.
    pub const REPLY_PACKETS: Column = Column::wide("REPLY-PACKETS").merged(MergeRule::Sum);
    /// See `PACKETS`.
    pub const REPLY_BYTES: Column = Column::wide("REPLY-BYTES").merged(MergeRule::Sum);

    /// A row's cells for these columns.
    pub fn cells(totals: Option<&Self>) -> [Cell; 4] {
        let bytes = |bytes: Option<u64>| bytes.map_or(Cell::None, Cell::Bytes);
        [
            Cell::number(totals.map(|all| all.packets)),
            bytes(totals.map(|all| all.bytes)),
            Cell::number(totals.and_then(|all| all.reply_packets)),
            bytes(totals.and_then(|all| all.reply_bytes)),
        ]
    }
}

impl AddAssign for FlowTotals {
    fn add_assign(&mut self, other: Self) {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or_default() + b.unwrap_or_default()),
        };
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.reply_packets = sum(self.reply_packets, other.reply_packets);
        self.reply_bytes = sum(self.reply_bytes, other.reply_bytes);
    }
}

/// Adds the totals of one flow more to those of several, of which some may not have been counted.
pub fn add(sum: &mut Option<FlowTotals>, totals: Option<FlowTotals>) {
    if let Some(totals) = totals {
        *sum.get_or_insert_default() += totals;
    }
}
