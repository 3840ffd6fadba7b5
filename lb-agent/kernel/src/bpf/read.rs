//! The maps as plain tables: what a restart begins with, and what the counters say.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;

use aya::maps::{Array, MapData, PerCpuArray};
use lb_common::endpoint::PodEntry;
use lb_common::service::{Backend, Frontend, FrontendKey, state};
use lb_common::verdict::{Counter, DropReason, drop_index, judged_index};

use crate::bpf::maps::Tables;
use crate::syscall;
use lb_core::counts::{Counts, verdicts};
use lb_core::plan::{Actual, MapError, RangeKey};

/// Reads the load balancing tables and the Pods.
///
/// # Errors
/// When a map cannot be read.
pub(super) fn services(tables: &Tables, actual: &mut Actual) -> Result<(), MapError> {
    syscall::for_each(&*tables.frontends, |key: &FrontendKey, value: &Frontend| {
        actual.frontends.insert(*key, *value);
    })
    .map_err(|e| failed("frontends", e))?;
    // Both arrays are mostly empty: what lies beyond the last used element is left out.
    let slots = tables.slots.for_each(|slot, backend_id| {
        if *backend_id != 0 {
            put(&mut actual.slots, slot, *backend_id, 0);
        }
    });
    slots.map_err(|e| failed("slots", e))?;
    let backends = tables.backends.for_each(|id, backend| {
        // An unused id keeps its generation: flows may still remember it.
        if backend.state != state::UNUSED || backend.generation != 0 {
            put(&mut actual.backends, id, *backend, Backend::ZERO);
        }
    });
    backends.map_err(|e| failed("backends", e))?;
    actual.source_ranges = source_ranges(tables)?;
    actual.frontend_ports =
        words(&tables.frontend_ports).map_err(|e| failed("frontend_ports", e))?;
    actual.host_ports = words(&tables.host_ports).map_err(|e| failed("host_ports", e))?;
    actual.former_ports = words(&tables.former_ports).map_err(|e| failed("former_ports", e))?;
    syscall::for_each(&tables.pods, |ifindex: &u32, pod: &PodEntry| {
        actual.pods.insert(*ifindex, *pod);
    })
    .map_err(|e| failed("pods", e))?;
    let settings = tables.settings.get(&0, 0);
    actual.settings =
        Some(Box::new(settings.map_err(|e| failed("settings", io::Error::other(e)))?));
    Ok(())
}

/// The map is small, and not all kernels read this kind in batches.
fn source_ranges(tables: &Tables) -> Result<BTreeSet<RangeKey>, MapError> {
    let mut ranges = BTreeSet::new();
    for key in tables.source_ranges.keys() {
        let key = key.map_err(|e| failed("source_ranges", io::Error::other(e)))?;
        ranges.extend(RangeKey::from_map(key.prefix_len(), key.data()));
    }
    Ok(ranges)
}

/// The words of a set of ports, up to the last that is in use.
fn words(map: &Array<MapData, u64>) -> io::Result<Vec<u64>> {
    let mut words = Vec::new();
    syscall::for_each(map, |word: &u32, bits: &u64| {
        if *bits != 0 {
            put(&mut words, *word, *bits, 0);
        }
    })?;
    Ok(words)
}

/// The map of the programs' counters.
pub type CounterMap = PerCpuArray<MapData, u64>;

/// Reads the counters.
///
/// # Errors
/// When the map cannot be read.
pub fn counts(map: &CounterMap) -> io::Result<Counts> {
    let sum = |index: u32| -> io::Result<u64> {
        let values = map.get(&index, 0).map_err(io::Error::other)?;
        Ok(values.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value)))
    };
    let mut counts = Counts::default();
    for reason in DropReason::ALL {
        for ingress in [false, true] {
            counts.drops.push((reason, ingress, sum(drop_index(reason, ingress))?));
        }
    }
    for counter in Counter::ALL {
        counts.counters.push((counter, sum(counter.index())?));
    }
    for (outcome, tier, ingress) in verdicts() {
        counts.verdicts.push((outcome, tier, ingress, sum(judged_index(outcome, tier, ingress))?));
    }
    Ok(counts)
}

fn put<T: Copy>(table: &mut Vec<T>, index: u32, value: T, empty: T) {
    let index = index as usize;
    if table.len() <= index {
        table.resize(index + 1, empty);
    }
    if let Some(place) = table.get_mut(index) {
        *place = value;
    }
}

fn failed(map: &'static str, source: io::Error) -> MapError {
    MapError { map, full: false, source: source.into() }
}
