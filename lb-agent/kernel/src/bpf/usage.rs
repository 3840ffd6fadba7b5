//! What pinned maps hold and cost, for those who only look: no object is loaded and nothing is written.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError as AyaError, MapType, PerCpuArray, PerCpuHashMap};
use lb_common::limits::{MAP_COUNTERS, MAP_HITS, MapSpec};
use lb_common::pod::Field;
use lb_common::policy::HitKey;

use crate::bpf::growing;
use crate::bpf::maps::MapsError;
use crate::bpf::pins::Pins;
use crate::bpf::read;
use crate::bpf::typed;
use crate::syscall;
use lb_core::counts::Counts;

/// A pinned map as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Name of the type, as bpftool prints it.
    pub kind: &'static str,
    /// Elements it has room for (bytes for a ring buffer); `None` where there is no such number.
    pub size: Option<u64>,
    /// The same at most, if it grows.
    pub max: Option<u64>,
    /// Memory in bytes, as the kernel accounts it; `None` without /proc.
    pub bytes: Option<u64>,
}

/// Describes a pinned map.
///
/// # Errors
/// When the pin is missing or may not be opened.
pub fn usage(pins: &Pins, spec: &MapSpec) -> Result<Usage, MapsError> {
    let mut all = one(&pins.map(spec), spec)?;
    let further = (1..).map(|n| pins.part(spec, n)).take_while(|pin| pin.exists());
    for pin in further {
        let part = one(&pin, spec)?;
        all.size = all.size.zip(part.size).map(|(all, part)| all + part);
        all.bytes = all.bytes.zip(part.bytes).map(|(all, part)| all + part);
    }
    let table = growing::TABLES.iter().find(|table| table.map == *spec);
    all.max = table.map_or(all.size, |table| Some(table.max.into()));
    Ok(all)
}

fn one(pin: &Path, spec: &MapSpec) -> Result<Usage, MapsError> {
    let unusable = |source| MapsError::Unusable { map: spec.name, source };
    let map = MapData::from_pin(pin).map_err(unusable)?;
    let info = map.info().map_err(unusable)?;
    let size = Some(u64::from(info.max_entries())).filter(|size| *size != 0);
    Ok(Usage { kind: kind(info.map_type()), size, max: size, bytes: memlock(&map) })
}

/// Reads the pinned counters.
///
/// # Errors
/// When the pin is missing, may not be opened or is something else.
pub fn counts(pins: &Pins) -> Result<Counts, MapsError> {
    let unusable = |source| MapsError::Unusable { map: MAP_COUNTERS.name, source };
    let map: PerCpuArray<MapData, u64> = typed::open(pins, &MAP_COUNTERS)?;
    read::counts(&map).map_err(|error| unusable(AyaError::IoError(error)))
}

/// A key or value of a map.
pub trait Element: Pod + Field {}

impl<T: Pod + Field> Element for T {}

/// Number of elements of a hash map with these keys and values.
///
/// # Errors
/// When the pin is missing, may not be opened or is something else.
pub fn n_elements<K: Element, V: Element>(pins: &Pins, spec: &MapSpec) -> Result<usize, MapsError> {
    let unusable = |source| MapsError::Unusable { map: spec.name, source };
    let map: HashMap<MapData, K, V> = typed::open(pins, spec)?;
    let mut n = 0;
    syscall::for_each(&map, |_: &K, _: &V| n += 1)
        .map_err(|error| unusable(AyaError::IoError(error)))?;
    Ok(n)
}

/// Number of elements of `hits`.
///
/// # Errors
/// When the pin is missing, may not be opened or is something else.
pub fn n_hits(pins: &Pins) -> Result<usize, MapsError> {
    let unusable = |source| MapsError::Unusable { map: MAP_HITS.name, source };
    let map: PerCpuHashMap<MapData, HitKey, u64> = typed::open(pins, &MAP_HITS)?;
    map.keys().try_fold(0, |n, key| key.map(|_| n + 1)).map_err(unusable)
}

/// Line `memlock` of the file descriptor in /proc.
fn memlock(map: &MapData) -> Option<u64> {
    let fd = map.fd().as_fd().as_raw_fd();
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

fn kind(map_type: Result<MapType, AyaError>) -> &'static str {
    match map_type {
        Ok(MapType::Hash) => "hash",
        Ok(MapType::Array) => "array",
        Ok(MapType::LruHash) => "lru_hash",
        Ok(MapType::LpmTrie) => "lpm_trie",
        Ok(MapType::PerCpuArray) => "percpu_array",
        Ok(MapType::PerCpuHash) => "percpu_hash",
        Ok(MapType::RingBuf) => "ringbuf",
        Ok(MapType::SkStorage) => "sk_storage",
        Ok(MapType::ArrayOfMaps) => "array_of_maps",
        Ok(_) | Err(_) => "other",
    }
}
