//! Reads the maps of [`Fields`].

use std::collections::HashMap;

use anyhow::Context as _;
use lb_common::service::{Affinity, AffinityKey};

use crate::fields::{Fields, Ticks};
use lb_core::cluster::Prefix;
use lb_core::plan::RangeKey;
use lb_kernel::bpf::clock::Clock;
use lb_kernel::bpf::maps::Tables;
use lb_kernel::syscall;

/// Reads all of them; the ids of all backends are below `end`.
pub(super) fn read(tables: &Tables, end: u32) -> anyhow::Result<Fields> {
    let clock = Clock::detect().context("find the kernel's tick rate")?;
    let mut clients = Vec::new();
    syscall::for_each(&tables.affinity, |key: &AffinityKey, value: &Affinity| {
        clients.push((*key, *value));
    })
    .context("read affinity")?;
    // Read after the clients: none of them has been seen later.
    let now = clock.ticks().context("read the monotonic clock")?;
    Ok(Fields {
        clients,
        source_ranges: source_ranges(tables)?,
        loads: loads(tables, end)?,
        ticks: Ticks { now, hz: clock.hz },
    })
}

/// The map is small, and not all kernels read this kind in batches.
fn source_ranges(tables: &Tables) -> anyhow::Result<HashMap<u32, Vec<Prefix>>> {
    let mut ranges: HashMap<u32, Vec<Prefix>> = HashMap::new();
    for key in tables.source_ranges.keys() {
        let key = key.context("read source_ranges")?;
        if let Some(RangeKey { service_id, clients }) =
            RangeKey::from_map(key.prefix_len(), key.data())
        {
            ranges.entry(service_id).or_default().push(clients);
        }
    }
    for of_service in ranges.values_mut() {
        of_service.sort_unstable();
    }
    Ok(ranges)
}

fn loads(tables: &Tables, end: u32) -> anyhow::Result<HashMap<u32, u32>> {
    let mut loads = HashMap::new();
    let read = tables.loads.for_each_below(end, |id, load| {
        if *load != 0 {
            loads.insert(id, *load);
        }
    });
    read.context("read loads")?;
    Ok(loads)
}
