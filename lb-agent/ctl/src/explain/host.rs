//! What is wrong with the node itself, and may be why a flow does not arrive.

use std::fs;

use lb_common::verdict::DropReason;

use crate::explain::{Code, Finding};
use crate::view::View;

/// A table that was full so many seconds ago may be full still.
const LATELY: u64 = 300;
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

/// New flows that had no room lately.
pub(super) fn full(view: &View<'_>) -> Option<Finding> {
    let lately = |at: u64| view.now.saturating_sub(at) <= LATELY;
    let reason = |number: u8| FULL.into_iter().find(|reason| *reason as u8 == number);
    let (reason, drop) = view
        .names
        .drops
        .iter()
        .filter(|drop| lately(drop.at))
        .find_map(|drop| Some((reason(drop.reason)?, drop)))?;
    let ago = view.now.saturating_sub(drop.at);
    Some(Finding {
        code: Some(Code::TableFull),
        headline: "a table was recently too full for new flows".to_owned(),
        because: vec![format!(
            "{ago} s ago a flow from {} to {} was dropped on this node: {}",
            drop.src,
            drop.dst,
            reason.name()
        )],
        to_fix: vec![reason.what_to_do().to_owned()],
        evidence: vec![format!("lbctl drops: {}", reason.name())],
        ..Finding::default()
    })
}

/// The kernel does not forward what the flow needs.
pub(super) fn unforwarded(v4: bool, node: &str) -> Finding {
    let [ipv4, ipv6] = FORWARDING;
    let (family, setting) = if v4 { ("IPv4", ipv4) } else { ("IPv6", ipv6) };
    Finding {
        code: Some(Code::HostSetup),
        object: format!("Node {node}"),
        headline: format!(
            "{setting} is 0: the node forwards no packets unless a device overrides it"
        ),
        because: vec![format!(
            "{setting} is 0: the kernel does not forward {family} packets between devices, and so not between a Pod and another node, unless the receiving device overrides the setting"
        )],
        to_fix: vec![format!(
            "run `sysctl -w {setting}=1`, add it to /etc/sysctl.d, and find out what set it to 0"
        )],
        evidence: vec![format!("sysctl {setting}")],
        ..Finding::default()
    }
}
