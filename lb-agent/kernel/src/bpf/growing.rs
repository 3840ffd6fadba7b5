//! Tables that grow while packets come, although no map can.
//!
//! The programs reach such a table through an array of maps, its directory. An array grows by parts of equal size, which
//! stay where they are: what the programs have written there (`loads`) is never copied. A hash table or a trie is
//! replaced: a larger one is filled beside it, which is exact since only the agent writes them.
//!
//! ```text
//! backends_parts ─┬─ 0 ► backends_v1       ids 0 to 65,535
//!                 └─ 1 ► backends_v1_1     ids 65,536 to 131,071, since one of them was needed
//! frontends_now ──── 0 ► frontends_v2
//!                  ( 1 ) frontends_v2_next is filled
//!                  ( 2 ) and gets the name frontends_v2
//!                  ( 3 ) and its place in the directory
//! ```
//! A packet finds the old map or the new one, which say the same. An agent that ends in between leaves the old one in
//! place. The next agent begins with (3), for every map that has its name, and removes what is not filled.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{ArrayOfMaps, InnerMap, Map, MapData, MapError as AyaError};
use lb_common::limits::{
    self, MAP_BACKENDS, MAP_BACKENDS_PARTS, MAP_FRONTENDS, MAP_FRONTENDS_NOW, MAP_IDENT,
    MAP_IDENT_NOW, MAP_LOADS, MAP_LOADS_PARTS, MAP_RANGES_NOW, MAP_SLOTS, MAP_SLOTS_PARTS,
    MAP_SOURCE_RANGES, MapSpec,
};

use crate::bpf::pins::Pins;
use crate::bpf::typed::{self, MapsError};

mod parts;
mod replaced;

pub use self::parts::PartedArray;
pub use self::replaced::{CopiedMap, GrowingMap};

/// After a refusal, nothing is asked of the kernel for this time: every write to a full table would.
const PAUSE: Duration = Duration::from_secs(1);

/// A table that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowingTable {
    /// Its map, the first part of it, or the one in place.
    pub map: MapSpec,
    /// The array of maps that leads to it.
    pub directory: MapSpec,
    /// The most elements.
    pub max: u32,
}

/// Frontends.
pub(super) const FRONTENDS: GrowingTable =
    GrowingTable { map: MAP_FRONTENDS, directory: MAP_FRONTENDS_NOW, max: limits::FRONTENDS_MAX };
/// Source ranges.
pub(super) const SOURCE_RANGES: GrowingTable = GrowingTable {
    map: MAP_SOURCE_RANGES,
    directory: MAP_RANGES_NOW,
    max: limits::SOURCE_RANGES_MAX,
};
/// Who has an address.
pub(super) const IDENT: GrowingTable =
    GrowingTable { map: MAP_IDENT, directory: MAP_IDENT_NOW, max: limits::IDENT_MAX };
/// Slots.
pub(super) const SLOTS: GrowingTable =
    GrowingTable { map: MAP_SLOTS, directory: MAP_SLOTS_PARTS, max: limits::SLOTS_MAX };
/// Backends.
pub(super) const BACKENDS: GrowingTable =
    GrowingTable { map: MAP_BACKENDS, directory: MAP_BACKENDS_PARTS, max: limits::BACKENDS_MAX };
/// Live flows of backends.
pub(super) const LOADS: GrowingTable =
    GrowingTable { map: MAP_LOADS, directory: MAP_LOADS_PARTS, max: limits::BACKENDS_MAX };

/// Those whose map is replaced, and hence may be larger than at first.
pub(super) const REPLACED: [GrowingTable; 3] = [FRONTENDS, SOURCE_RANGES, IDENT];

/// All of them.
pub const TABLES: [GrowingTable; 6] = [FRONTENDS, SOURCE_RANGES, IDENT, SLOTS, BACKENDS, LOADS];

/// Puts the maps that the object has into the directories. Before that the programs find nothing.
pub(super) fn link(ebpf: &mut Ebpf) -> Result<(), MapsError> {
    for GrowingTable { map, directory, .. } in TABLES {
        let unusable = |source| MapsError::Unusable { map: map.name, source };
        let (Some(Map::Array(first)) | Some(Map::HashMap(first)) | Some(Map::LpmTrie(first))) =
            ebpf.map(map.name)
        else {
            return Err(MapsError::Missing { map: map.name });
        };
        let fd = first.fd().as_fd().try_clone_to_owned().map_err(|e| unusable(e.into()))?;
        let first = MapData::from_fd(fd).map_err(unusable)?;
        let found = ebpf.map_mut(directory.name);
        let found = found.ok_or(MapsError::Missing { map: directory.name })?;
        ArrayOfMaps::<&mut MapData, MapData>::try_from(found)
            .and_then(|mut directory| directory.set(0, &first, 0))
            .map_err(|source| MapsError::Unusable { map: directory.name, source })?;
    }
    Ok(())
}

/// What it takes to grow.
struct Growth<M> {
    directory: ArrayOfMaps<MapData, M>,
    pins: Pins,
    /// When the kernel has refused.
    refused: Option<Instant>,
}

impl<M: InnerMap> Growth<M> {
    /// Without pins nothing could be found again, so nothing grows.
    fn take(
        ebpf: &mut Ebpf,
        table: &GrowingTable,
        pins: Option<&Pins>,
    ) -> Result<Option<Self>, MapsError> {
        let Some(pins) = pins else { return Ok(None) };
        let map = typed::take(ebpf, &table.directory)?;
        let directory = typed::typed(&table.directory, map)?;
        Ok(Some(Self { directory, pins: pins.clone(), refused: None }))
    }

    /// Does a step, unless one was refused just now.
    fn step<T>(&mut self, step: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.refused.is_some_and(|at| at.elapsed() < PAUSE) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        let done = step(self);
        self.refused = done.is_err().then(Instant::now);
        done
    }
}

/// What the kernel said.
fn errno(error: AyaError) -> io::Error {
    match error {
        AyaError::CreateError { io_error, .. } | AyaError::IoError(io_error) => io_error,
        AyaError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
