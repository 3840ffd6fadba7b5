//! The maps with their types, from a freshly loaded object or from the pins alone.
#![forbid(unsafe_code)]

use std::path::Path;

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError as AyaError, PerCpuArray, RingBuf};
use lb_common::config::Settings;
use lb_common::conntrack::{CtEntry, CtKey};
use lb_common::endpoint::PodEntry;
use lb_common::limits::{
    MAP_AFFINITY, MAP_BACKENDS, MAP_COUNTERS, MAP_CT, MAP_EVENTS, MAP_FORMER_PORTS,
    MAP_FRONTEND_PORTS, MAP_FRONTENDS, MAP_HOST_PORTS, MAP_KEPT, MAP_LOADS, MAP_LOCALS, MAP_PODS,
    MAP_SETTINGS, MAP_SLOTS, MAP_SOURCE_RANGES, MapSpec,
};
use lb_common::past::LocalEnd;
use lb_common::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange};
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

/// The load balancing tables and the Pods.
pub struct Tables {
    /// Frontends by address, port and protocol.
    pub frontends: HashMap<MapData, FrontendKey, Frontend>,
    /// Backend ids by slot.
    pub slots: Array<MapData, u32>,
    /// Backends by id.
    pub backends: Array<MapData, Backend>,
    /// Who may use the gated frontends of a service port.
    pub source_ranges: LpmTrie<MapData, SourceRange, u32>,
    /// Clients with session affinity: written by the programs, cleared by the agent.
    pub affinity: HashMap<MapData, AffinityKey, Affinity>,
    /// Ports of frontends, one bit each.
    pub frontend_ports: Array<MapData, u64>,
    /// Ports of backends that are processes of this host.
    pub host_ports: Array<MapData, u64>,
    /// Ports of frontends that are gone, while flows to them may be left.
    pub former_ports: Array<MapData, u64>,
    /// What may change while the programs run; one element.
    pub settings: Array<MapData, Settings>,
    /// Pods by ifindex.
    pub pods: HashMap<MapData, u32, PodEntry>,
}

impl Tables {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// When the object lacks one or it has other sizes.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        Ok(Self {
            frontends: typed(&MAP_FRONTENDS, take(ebpf, &MAP_FRONTENDS)?)?,
            slots: typed(&MAP_SLOTS, take(ebpf, &MAP_SLOTS)?)?,
            backends: typed(&MAP_BACKENDS, take(ebpf, &MAP_BACKENDS)?)?,
            source_ranges: typed(&MAP_SOURCE_RANGES, take(ebpf, &MAP_SOURCE_RANGES)?)?,
            affinity: typed(&MAP_AFFINITY, take(ebpf, &MAP_AFFINITY)?)?,
            frontend_ports: typed(&MAP_FRONTEND_PORTS, take(ebpf, &MAP_FRONTEND_PORTS)?)?,
            host_ports: typed(&MAP_HOST_PORTS, take(ebpf, &MAP_HOST_PORTS)?)?,
            former_ports: typed(&MAP_FORMER_PORTS, take(ebpf, &MAP_FORMER_PORTS)?)?,
            settings: typed(&MAP_SETTINGS, take(ebpf, &MAP_SETTINGS)?)?,
            pods: typed(&MAP_PODS, take(ebpf, &MAP_PODS)?)?,
        })
    }

    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When a pin is missing or has other sizes.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Ok(Self {
            frontends: open(pins, &MAP_FRONTENDS)?,
            slots: open(pins, &MAP_SLOTS)?,
            backends: open(pins, &MAP_BACKENDS)?,
            source_ranges: open(pins, &MAP_SOURCE_RANGES)?,
            affinity: open(pins, &MAP_AFFINITY)?,
            frontend_ports: open(pins, &MAP_FRONTEND_PORTS)?,
            host_ports: open(pins, &MAP_HOST_PORTS)?,
            former_ports: open(pins, &MAP_FORMER_PORTS)?,
            settings: open(pins, &MAP_SETTINGS)?,
            pods: open(pins, &MAP_PODS)?,
        })
    }
}

/// What the programs write and the agent reads.
pub struct Traces {
    /// Conntrack entries.
    pub ct: HashMap<MapData, CtKey, CtEntry>,
    /// Packets per CPU, by `verdict::drop_index` and `Counter::index`.
    pub counters: PerCpuArray<MapData, u64>,
    /// Packets that were not delivered.
    pub events: RingBuf<MapData>,
}

impl Traces {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// When the object lacks one or it has other sizes.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        Ok(Self {
            ct: typed(&MAP_CT, take(ebpf, &MAP_CT)?)?,
            counters: typed(&MAP_COUNTERS, take(ebpf, &MAP_COUNTERS)?)?,
            events: typed(&MAP_EVENTS, take(ebpf, &MAP_EVENTS)?)?,
        })
    }
}

/// The pinned conntrack table.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_ct(pins: &Pins) -> Result<HashMap<MapData, CtKey, CtEntry>, MapsError> {
    open(pins, &MAP_CT)
}

/// The pinned loads of backends: connections through Services, by backend id.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_loads(pins: &Pins) -> Result<Array<MapData, u32>, MapsError> {
    open(pins, &MAP_LOADS)
}

/// The pinned copies of entries of translated connections.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_kept(pins: &Pins) -> Result<HashMap<MapData, CtKey, CtEntry>, MapsError> {
    open(pins, &MAP_KEPT)
}

/// The pinned Pods, for readers beside the loop.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_pods(pins: &Pins) -> Result<HashMap<MapData, u32, PodEntry>, MapsError> {
    open(pins, &MAP_PODS)
}

/// The pinned ends of Pods of this node, for readers beside the loop.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_locals(pins: &Pins) -> Result<Array<MapData, LocalEnd>, MapsError> {
    open(pins, &MAP_LOCALS)
}

/// The pinned counters, for readers beside the loop.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_counters(pins: &Pins) -> Result<PerCpuArray<MapData, u64>, MapsError> {
    open(pins, &MAP_COUNTERS)
}

/// The pinned backends, for readers beside the loop.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_backends(pins: &Pins) -> Result<Array<MapData, Backend>, MapsError> {
    open(pins, &MAP_BACKENDS)
}

/// The pinned frontends, for readers beside the loop.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_frontends(pins: &Pins) -> Result<HashMap<MapData, FrontendKey, Frontend>, MapsError> {
    open(pins, &MAP_FRONTENDS)
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
    MapData::from_pin(pins.map(spec))
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
        other => other.into(),
    }
}
