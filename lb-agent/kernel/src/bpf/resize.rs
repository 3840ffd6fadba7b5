//! Another capacity for conntrack while connections go on, or the layout of another version.
//!
//! The kernel cannot resize a map. So the old one is set aside (its pin gets another name), the loader makes a new one,
//! and what the old one holds is copied before any device gets the new programs. Until all devices have them, the old
//! programs write the old map: what they touched meanwhile is copied again and again for a while, then the old map goes.
//! The entries of a translated flow are copied together: with one alone, its answers would come untranslated.
//! A start that finds a map set aside, since the last agent was ended in between, does the same with it. A map of an earlier
//! version keeps its name until it goes, so that an agent of that version finds it.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{IterableMap as _, MapError as AyaError};
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, age, partner};
use lb_common::limits::{MAP_CT, MAP_KEPT, MapSpec, kept_entries};

use crate::bpf::clock::Clock;
use crate::bpf::conntrack::{self, CtTable, PinnedCt, find};
use crate::bpf::maps;
use crate::bpf::pins::{self, Pins};

/// Only where there is no element (`BPF_NOEXIST`, include/uapi/linux/bpf.h).
const BPF_NOEXIST: u64 = 1;
/// Only where there is one.
const BPF_EXIST: u64 = 2;
/// Time between two copies, at least: a flow that began since the last one is not known to the new programs.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// How much of the time copies take, at most: one part in this many.
pub const SHARE: u32 = 5;
/// For how long it is copied. Each device takes some 20 ms to get its two programs: enough for 1,000 of them.
pub const PERIOD: Duration = Duration::from_secs(20);

/// Maps that are set aside, until they are gone.
pub struct Resize {
    pins: Pins,
    clock: Clock,
    old: Vec<Old>,
}

struct Old {
    spec: MapSpec,
    pin: PathBuf,
    table: PinnedCt,
    /// When the last copy began.
    copied: Option<u32>,
}

impl Resize {
    /// Sets aside the pinned maps that have another capacity than is wanted, and finds those of an earlier version. To be called before the maps are loaded.
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
                let mut left = Old::open(spec, aside.clone())?;
                left.copy(&mut conntrack::open(&pin, spec)?, clock.stamp()?)?;
                pins::remove(&aside).map_err(io::Error::other)?;
                old.push(left);
            }
            if is_other {
                fs::rename(&pin, &aside)?;
            }
            for pin in [aside, conntrack::earlier(pins, &spec)] {
                if pin.exists() {
                    old.push(Old::open(spec, pin)?);
                }
            }
        }
        Ok(Self { pins: pins.clone(), clock, old })
    }

    /// Whether no map is set aside.
    pub fn is_empty(&self) -> bool {
        self.old.is_empty()
    }

    /// The pins of what is not copied to its end.
    pub fn needed(&self) -> Vec<PathBuf> {
        self.old.iter().map(|old| old.pin.clone()).collect()
    }

    /// Copies into the new maps what they lack: everything at the first time, later what was touched since the last
    /// time. Returns the number of entries.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn copy(&mut self) -> io::Result<u64> {
        let mut n = 0;
        for old in &mut self.old {
            let mut new = conntrack::open(&self.pins.map(&old.spec), old.spec)?;
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
            pins::remove(&old.pin).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Old {
    fn open(spec: MapSpec, pin: PathBuf) -> io::Result<Self> {
        Ok(Self { spec, table: PinnedCt::open(&pin)?, pin, copied: None })
    }

    fn copy(&mut self, new: &mut CtTable, now: u32) -> io::Result<u64> {
        let mut oldest = self.copied.map_or(u32::MAX, |since| age(since, now).saturating_add(1));
        let mut room = conntrack::capacity(new.map())?;
        if room < self.table.capacity()? {
            // The kernel evicts before a table is quite full.
            room = room / 16 * 15;
            let mut ages = Vec::new();
            self.table.for_each(|_, entry| {
                ages.push(age(entry.last_seen, now));
            })?;
            if ages.len() > room {
                oldest = oldest.min(*ages.select_nth_unstable(room.saturating_sub(1)).1);
            }
        }
        let (mut n, mut failed) = (0, None);
        self.table.for_each(|key, entry| {
            if n >= room || age(entry.last_seen, now) > oldest {
                return;
            }
            match self.put(new, key, entry) {
                Ok(copied) => n += copied,
                Err(error) => failed = Some(error),
            }
        })?;
        self.copied = Some(now);
        failed.map_or(Ok(n as u64), Err)
    }

    /// Copies an entry, a forward entry after its reply entry. Returns how many that were.
    fn put(&self, new: &mut CtTable, key: &CtKey, entry: &CtEntry) -> io::Result<usize> {
        let mut n = 0;
        if entry.flags.contains(CtFlags::FORWARD)
            && let Some(twin) = partner(key, entry)
            && !find(new, &twin)?.is_some_and(|found| found.flags.contains(CtFlags::REPLY))
        {
            // The walk may have passed its place before it was there.
            let Some(reply) = self.table.get(&twin)? else { return Ok(0) };
            n += usize::from(put(new, &twin, &reply)?);
        }
        Ok(n + usize::from(put(new, key, entry)?))
    }
}

/// Writes an entry where there is none, or only one that the new programs made of a packet of that flow, when they did not yet
/// know it. Returns whether it is written.
fn put(new: &mut CtTable, key: &CtKey, entry: &CtEntry) -> io::Result<bool> {
    let translated = CtFlags::FORWARD | CtFlags::REPLY;
    let may_replace = |found: CtEntry| {
        entry.flags.intersects(translated)
            && found.flags.contains(CtFlags::PICKED_UP)
            && !found.flags.intersects(translated)
    };
    let mut done = new.insert(key, entry, BPF_NOEXIST);
    if let Err(AyaError::SyscallError(e)) = &done
        && e.io_error.raw_os_error() == Some(libc::EEXIST)
        && find(new, key)?.is_some_and(may_replace)
    {
        done = new.insert(key, entry, BPF_EXIST);
    }
    match done {
        Ok(()) => Ok(true),
        Err(AyaError::SyscallError(e))
            if matches!(
                e.io_error.raw_os_error(),
                Some(libc::EEXIST | libc::ENOENT | libc::E2BIG)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(io::Error::other(error)),
    }
}
