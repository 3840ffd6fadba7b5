//! What is wrong with the node itself and may prevent delivery.

use std::fs;

use lb_common::verdict::DropReason;

use crate::explain::trace::TableFull;
use crate::view::View;
use lb_core::names::DropExample;

/// A table that was full within this number of seconds may still be full.
const RECENT: u64 = 300;
/// Packets are dropped for these where a table has no room for a new flow.
const FULL: [DropReason; 3] =
    [DropReason::ConntrackFull, DropReason::TupleExhausted, DropReason::MasqueradeExhausted];

/// The settings by which the kernel forwards packets, IPv4 and IPv6.
pub const FORWARDING: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// Whether the kernel forwards packets of each family; a family that it lacks counts as forwarded.
pub fn forwards() -> [bool; 2] {
    FORWARDING.map(|setting| {
        let path = format!("/proc/sys/{}", setting.replace('.', "/"));
        fs::read_to_string(path).map_or(true, |value| value.trim() != "0")
    })
}

/// Returns a flow that recently had no room in a table.
pub(super) fn full(view: &View<'_>) -> Option<TableFull> {
    let ago = |drop: &DropExample| view.now.saturating_sub(drop.at);
    let recent = view.names.drops.iter().filter(|drop| ago(drop) <= RECENT);
    let full = |number: u8| FULL.into_iter().find(|reason| *reason as u8 == number);
    let found = recent.filter_map(|drop| Some((full(drop.reason)?, drop))).next();
    let (reason, drop) = found?;
    Some(TableFull { reason, ago: ago(drop), src: drop.src, dst: drop.dst })
}
