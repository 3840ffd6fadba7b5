//! The maps with their types, from a freshly loaded object or from the pins alone.
#![forbid(unsafe_code)]

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use lb_common::account::{AccountEntry, AccountKey};
use lb_common::config::Settings;
use lb_common::conntrack::{CtEntry, CtKey};
use lb_common::endpoint::PodEntry;
use lb_common::limits::{
    MAP_ACCOUNTS, MAP_AFFINITY, MAP_COUNTERS, MAP_CT, MAP_EVENTS, MAP_FORMER_PORTS,
    MAP_FRONTEND_PORTS, MAP_FRONTENDS, MAP_HOST_PORTS, MAP_KEPT, MAP_LOCALS, MAP_PODS,
    MAP_SETTINGS,
};
use lb_common::past::LocalEnd;
use lb_common::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange};

use crate::bpf::growing::{self, GrowingMap, PartedArray};
use crate::bpf::pins::Pins;
use crate::bpf::typed::{open, take, typed};

pub use crate::bpf::typed::{MapsError, is_missing, pinned_capacity};

/// The load balancing tables and the Pods.
pub struct Tables {
    /// Frontends by address, port and protocol.
    pub frontends: GrowingMap<HashMap<MapData, FrontendKey, Frontend>>,
    /// Backend ids by slot.
    pub slots: PartedArray<u32>,
    /// Backends by id.
    pub backends: PartedArray<Backend>,
    /// Their live flows, which the programs count.
    pub loads: PartedArray<u32>,
    /// Who may use the gated frontends of a service port.
    pub source_ranges: GrowingMap<LpmTrie<MapData, SourceRange, u32>>,
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
    pub fn take(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<Self, MapsError> {
        Ok(Self {
            frontends: GrowingMap::take(ebpf, growing::FRONTENDS, pins)?,
            slots: PartedArray::take(ebpf, growing::SLOTS, pins)?,
            backends: PartedArray::take(ebpf, growing::BACKENDS, pins)?,
            loads: PartedArray::take(ebpf, growing::LOADS, pins)?,
            source_ranges: GrowingMap::take(ebpf, growing::SOURCE_RANGES, pins)?,
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
            frontends: GrowingMap::open(pins, growing::FRONTENDS)?,
            slots: PartedArray::open(pins, growing::SLOTS)?,
            backends: open_backends(pins)?,
            loads: open_loads(pins)?,
            source_ranges: GrowingMap::open(pins, growing::SOURCE_RANGES)?,
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

/// The pinned counts of flows; `None` while flows are not counted.
///
/// # Errors
/// When the pin has other sizes.
pub fn open_accounts(
    pins: &Pins,
) -> Result<Option<HashMap<MapData, AccountKey, AccountEntry>>, MapsError> {
    if !pins.map(&MAP_ACCOUNTS).exists() {
        return Ok(None);
    }
    open(pins, &MAP_ACCOUNTS).map(Some)
}

/// The pinned loads of backends: connections through Services, by backend id.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_loads(pins: &Pins) -> Result<PartedArray<u32>, MapsError> {
    PartedArray::open(pins, growing::LOADS)
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
pub fn open_backends(pins: &Pins) -> Result<PartedArray<Backend>, MapsError> {
    PartedArray::open(pins, growing::BACKENDS)
}

/// The pinned frontends, for readers beside the loop.
///
/// # Errors
/// When the pin is missing or has other sizes.
pub fn open_frontends(pins: &Pins) -> Result<HashMap<MapData, FrontendKey, Frontend>, MapsError> {
    open(pins, &MAP_FRONTENDS)
}
