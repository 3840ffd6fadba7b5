//! The source ports that masqueraded flows have, from the pinned tables.
//!
//! An agent that starts with other `--masquerade-ports` must still take answers to the flows of the last one for what they
//! are: each has its port in its entries, but a program only looks for an entry when the port is in its range.
#![forbid(unsafe_code)]

use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, scope};
use lb_common::limits::{MAP_CT, MAP_KEPT};

use crate::bpf::pins::Pins;
use crate::syscall;

/// The narrowest range that has all ports of masqueraded flows in it; `None` when there is no such flow.
///
/// # Errors
/// When a table is there and cannot be read.
pub fn of_masqueraded_flows(pins: &Pins) -> io::Result<Option<RangeInclusive<u16>>> {
    let mut found: Option<RangeInclusive<u16>> = None;
    for spec in [MAP_CT, MAP_KEPT] {
        for pin in [pins.map(&spec), pins.aside(&spec)] {
            if pin.exists() {
                add(&pin, &mut found)?;
            }
        }
    }
    Ok(found)
}

fn add(pin: &Path, found: &mut Option<RangeInclusive<u16>>) -> io::Result<()> {
    let table: HashMap<MapData, CtKey, CtEntry> = MapData::from_pin(pin)
        .and_then(Map::from_map_data)
        .and_then(HashMap::try_from)
        .map_err(io::Error::other)?;
    syscall::for_each(&table, |key: &CtKey, entry: &CtEntry| {
        if key.scope == scope::EXTERNAL_REPLY && entry.flags.contains(CtFlags::MASQUERADED) {
            let port = key.remote_port.get();
            *found = Some(match found.take() {
                None => port..=port,
                Some(range) => port.min(*range.start())..=port.max(*range.end()),
            });
        }
    })
}
