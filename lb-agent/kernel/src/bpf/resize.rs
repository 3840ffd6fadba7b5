//! Another capacity for conntrack while connections go on.
//!
//! The kernel cannot resize a map. So the old one is set aside (its pin gets another name), the loader makes a new one,
//! and what the old one holds is copied before any device gets the new programs. Until all devices have them, the old
//! programs write the old map: what they touched meanwhile is copied again and again for a while, then the old map goes.
//! A start that finds a map set aside, since the last agent was ended in between, does the same with it.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::time::Duration;

use aya::maps::{HashMap, MapData, MapError as AyaError};
use lb_common::conntrack::{CtEntry, CtKey, age};
use lb_common::limits::{MAP_CT, MAP_KEPT, MapSpec, kept_entries};

use crate::bpf::clock::Clock;
use crate::bpf::maps;
use crate::bpf::pins::{self, Pins};
use crate::bpf::typed;
use crate::syscall;

/// Only where there is no element (`BPF_NOEXIST`, include/uapi/linux/bpf.h).
const BPF_NOEXIST: u64 = 1;
/// Time between two copies.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Copies after the first one. Each device takes some 20 ms to get its two programs: enough for 1,000 of them.
pub const ROUNDS: u32 = 20;

type CtTable = HashMap<MapData, CtKey, CtEntry>;

/// Maps that are set aside, until they are gone.
pub struct Resize {
    pins: Pins,
    clock: Clock,
    old: Vec<Old>,
}

struct Old {
    spec: MapSpec,
    table: CtTable,
    /// When the last copy began.
    copied: Option<u32>,
}

impl Resize {
    /// Sets aside the pinned maps that have another capacity than is wanted. To be called before the maps are loaded.
    ///
    /// # Errors
    /// When a map cannot be read or its pin not be renamed.
    pub fn set_aside(pins: &Pins, clock: Clock, ct_entries: u32) -> io::Result<Self> {
        let mut old = Vec::new();
        for (spec, wanted) in [(MAP_CT, ct_entries), (MAP_KEPT, kept_entries(ct_entries))] {
            let (pin, aside) = (pins.map(&spec), pins.aside(&spec));
            let is_other = maps::pinned_capacity(&pin).is_some_and(|pinned| pinned != wanted);
            if is_other && aside.exists() {
                // The last agent did not get to its end. What it had set aside is copied at once; programs that still
                // write it are followed as long as we run.
                let mut left = Old::open(pins, spec)?;
                left.copy(&mut open(&pin, spec)?, clock.stamp()?)?;
                pins::remove(&aside).map_err(io::Error::other)?;
                old.push(left);
            }
            if is_other {
                fs::rename(&pin, &aside)?;
            }
            if aside.exists() {
                old.push(Old::open(pins, spec)?);
            }
        }
        Ok(Self { pins: pins.clone(), clock, old })
    }

    /// Whether no map is set aside.
    pub fn is_empty(&self) -> bool {
        self.old.is_empty()
    }

    /// Copies into the new maps what they lack: everything at the first time, later what was touched since the last
    /// time. Returns the number of entries.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn copy(&mut self) -> io::Result<u64> {
        let mut n = 0;
        for old in &mut self.old {
            let mut new = open(&self.pins.map(&old.spec), old.spec)?;
            n += old.copy(&mut new, self.clock.stamp()?)?;
        }
        Ok(n)
    }

    /// Removes the old maps.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn finish(self) -> io::Result<()> {
        for old in self.old {
            pins::remove(&self.pins.aside(&old.spec)).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Old {
    fn open(pins: &Pins, spec: MapSpec) -> io::Result<Self> {
        Ok(Self { spec, table: open(&pins.aside(&spec), spec)?, copied: None })
    }

    fn copy(&mut self, new: &mut CtTable, now: u32) -> io::Result<u64> {
        let mut oldest = self.copied.map_or(u32::MAX, |since| age(since, now).saturating_add(1));
        let mut room = capacity(new)?;
        if room < capacity(&self.table)? {
            // The kernel evicts before a table is quite full.
            room = room / 16 * 15;
            let mut ages = Vec::new();
            syscall::for_each(&self.table, |_: &CtKey, entry: &CtEntry| {
                ages.push(age(entry.last_seen, now));
            })?;
            if ages.len() > room {
                oldest = oldest.min(*ages.select_nth_unstable(room.saturating_sub(1)).1);
            }
        }
        let (mut n, mut failed) = (0, None);
        syscall::for_each(&self.table, |key: &CtKey, entry: &CtEntry| {
            if n >= room || age(entry.last_seen, now) > oldest {
                return;
            }
            match new.insert(key, entry, BPF_NOEXIST) {
                Ok(()) => n += 1,
                Err(AyaError::SyscallError(e))
                    if matches!(e.io_error.raw_os_error(), Some(libc::EEXIST | libc::E2BIG)) => {}
                Err(error) => failed = Some(error),
            }
        })?;
        self.copied = Some(now);
        failed.map_or(Ok(n as u64), |error| Err(io::Error::other(error)))
    }
}

fn open(pin: &std::path::Path, spec: MapSpec) -> io::Result<CtTable> {
    let map = typed::pinned_at(pin, &spec).map_err(io::Error::other)?;
    typed::typed(&spec, map).map_err(io::Error::other)
}

fn capacity(table: &CtTable) -> io::Result<usize> {
    use aya::maps::IterableMap as _;
    let info = table.map().info().map_err(io::Error::other)?;
    Ok(info.max_entries() as usize)
}
