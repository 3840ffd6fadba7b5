//! The source ports that masqueraded flows have, from the pinned tables.
//!
//! An agent that starts with other `--masquerade-ports` must still take answers to the flows of the last one for what they
//! are: each has its port in its entries, but a program only looks for an entry when the port is in its range.
#![forbid(unsafe_code)]

use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use lb_common::conntrack::{CtFlags, scope};
use lb_common::limits::{MAP_CT, MAP_KEPT};

use crate::bpf::conntrack::{self, PinnedCt};
use crate::bpf::pins::Pins;

/// The narrowest range that has all ports of masqueraded flows in it; `None` when there is no such flow.
///
/// # Errors
/// When a table is there and cannot be read.
pub fn of_masqueraded_flows(pins: &Pins) -> io::Result<Option<RangeInclusive<u16>>> {
    let mut found: Option<RangeInclusive<u16>> = None;
    for spec in [MAP_CT, MAP_KEPT] {
        for pin in conntrack::pins_of(pins, &spec) {
            add(&pin, &mut found)?;
        }
    }
    Ok(found)
}

fn add(pin: &Path, found: &mut Option<RangeInclusive<u16>>) -> io::Result<()> {
    PinnedCt::open(pin)?.for_each(|key, entry| {
        if key.scope == scope::EXTERNAL_REPLY && entry.flags.contains(CtFlags::MASQUERADED) {
            let port = key.remote_port.get();
            *found = Some(match found.take() {
                None => port..=port,
                Some(range) => port.min(*range.start())..=port.max(*range.end()),
            });
        }
    })
}
