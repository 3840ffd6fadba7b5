//! Conntrack tables as they are pinned: today's, those that are set aside, and one with the layout of an earlier version.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, IterableMap as _, Map, MapData};
use lb_common::conntrack::{CtEntry, CtKey};
use lb_common::earlier::EarlierCtEntry;
use lb_common::limits::MapSpec;

use crate::bpf::pins::Pins;
use crate::bpf::{maps, typed};
use crate::syscall;

/// A table with today's layout.
pub(super) type CtTable = HashMap<MapData, CtKey, CtEntry>;

/// A table of either layout.
pub(super) enum PinnedCt {
    Today(CtTable),
    Earlier(HashMap<MapData, CtKey, EarlierCtEntry>),
}

/// The pin of the table with the layout of an earlier version.
pub(super) fn earlier(pins: &Pins, spec: &MapSpec) -> PathBuf {
    pins.map(&MapSpec { version: EarlierCtEntry::VERSION, ..*spec })
}

/// Every pin of the table that exists.
pub fn pins_of(pins: &Pins, spec: &MapSpec) -> impl Iterator<Item = PathBuf> {
    [pins.map(spec), pins.aside(spec), earlier(pins, spec)].into_iter().filter(|pin| pin.exists())
}

/// A pinned table with today's layout.
pub(super) fn open(pin: &Path, spec: MapSpec) -> io::Result<CtTable> {
    let map = typed::pinned_at(pin, &spec).map_err(io::Error::other)?;
    typed::typed(&spec, map).map_err(io::Error::other)
}

impl PinnedCt {
    /// The table that is pinned there.
    pub(super) fn open(pin: &Path) -> io::Result<Self> {
        let data = MapData::from_pin(pin).map_err(io::Error::other)?;
        let value = data.info().map_err(io::Error::other)?.value_size();
        let map = Map::from_map_data(data).map_err(io::Error::other)?;
        if value as usize == size_of::<EarlierCtEntry>() {
            return HashMap::try_from(map).map(Self::Earlier).map_err(io::Error::other);
        }
        HashMap::try_from(map).map(Self::Today).map_err(io::Error::other)
    }

    /// Calls `each` for every entry, as today's layout has it.
    pub(super) fn for_each(&self, mut each: impl FnMut(&CtKey, &CtEntry)) -> io::Result<()> {
        match self {
            Self::Today(table) => syscall::for_each(table, each),
            Self::Earlier(table) => {
                syscall::for_each(table, |key: &CtKey, old: &EarlierCtEntry| {
                    each(key, &old.today(key));
                })
            }
        }
    }

    /// The entry under this key, as today's layout has it.
    pub(super) fn get(&self, key: &CtKey) -> io::Result<Option<CtEntry>> {
        match self {
            Self::Today(table) => find(table, key),
            Self::Earlier(table) => Ok(find(table, key)?.map(|old| old.today(key))),
        }
    }

    pub(super) fn capacity(&self) -> io::Result<usize> {
        match self {
            Self::Today(table) => capacity(table.map()),
            Self::Earlier(table) => capacity(table.map()),
        }
    }
}

/// The entry under this key.
pub(super) fn find<V: aya::Pod>(
    table: &HashMap<MapData, CtKey, V>,
    key: &CtKey,
) -> io::Result<Option<V>> {
    match table.get(key, 0) {
        Ok(entry) => Ok(Some(entry)),
        Err(e) if maps::is_missing(&e) => Ok(None),
        Err(e) => Err(io::Error::other(e)),
    }
}

/// Entries that a map has room for.
pub(super) fn capacity(map: &MapData) -> io::Result<usize> {
    let info = map.info().map_err(io::Error::other)?;
    Ok(info.max_entries() as usize)
}
