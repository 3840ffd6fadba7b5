//! One map with its types, from a freshly loaded object or from its pin.
#![forbid(unsafe_code)]

use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError as AyaError};
use lb_common::limits::MapSpec;
use libc::{E2BIG, ENOMEM, ENOSPC};

use crate::bpf::pins::Pins;
use lb_core::plan::MapError;

/// A map that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// The kernel object has no such map.
    #[error("the kernel object has no map {map}")]
    Missing {
        /// Its name.
        map: &'static str,
    },
    /// The pin is missing, or what is pinned there is something else.
    #[error("map {map}: {source}")]
    Unusable {
        /// Its name.
        map: &'static str,
        /// Why.
        source: AyaError,
    },
}

/// Capacity of a map that is already pinned, `None` when there is none (of this version).
pub fn pinned_capacity(pin: &Path) -> Option<u32> {
    MapData::from_pin(pin).ok()?.info().ok().map(|info| info.max_entries())
}

/// Whether an access failed since the element is not there.
pub fn is_missing(error: &AyaError) -> bool {
    match error {
        AyaError::KeyNotFound => true,
        // What a removal gets.
        AyaError::SyscallError(e) => e.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

/// A map of the loaded object.
pub(super) fn take(ebpf: &mut Ebpf, spec: &MapSpec) -> Result<Map, MapsError> {
    ebpf.take_map(spec.name).ok_or(MapsError::Missing { map: spec.name })
}

/// A pinned map.
pub(super) fn pinned(pins: &Pins, spec: &MapSpec) -> Result<Map, MapsError> {
    pinned_at(&pins.map(spec), spec)
}

/// A map that is pinned under another name than its own.
pub(super) fn pinned_at(pin: &Path, spec: &MapSpec) -> Result<Map, MapsError> {
    MapData::from_pin(pin)
        .and_then(Map::from_map_data)
        .map_err(|source| MapsError::Unusable { map: spec.name, source })
}

/// A pinned map with its types.
pub(super) fn open<T: TryFrom<Map, Error = AyaError>>(
    pins: &Pins,
    spec: &MapSpec,
) -> Result<T, MapsError> {
    typed(spec, pinned(pins, spec)?)
}

/// A map with its types.
pub(super) fn typed<T: TryFrom<Map, Error = AyaError>>(
    spec: &MapSpec,
    map: Map,
) -> Result<T, MapsError> {
    T::try_from(map).map_err(|source| MapsError::Unusable { map: spec.name, source })
}

/// A write that the kernel refused.
pub(super) fn failed(map: &'static str, error: AyaError) -> MapError {
    let errno = match &error {
        AyaError::SyscallError(e) => e.io_error.raw_os_error(),
        AyaError::IoError(e) => e.raw_os_error(),
        _ => None,
    };
    // A hash table answers E2BIG at its capacity, an array beyond its end; ENOMEM is the memory cgroup's.
    let full = matches!(errno, Some(E2BIG | ENOSPC | ENOMEM))
        || matches!(error, AyaError::OutOfBounds { .. });
    MapError { map, full, source: flatten(error) }
}

/// Without the aya layer around the kernel's answer, which says only that a call failed.
fn flatten(error: AyaError) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        AyaError::SyscallError(e) => e.io_error.into(),
        AyaError::IoError(e) => e.into(),
        other => other.into(),
    }
}
