//! The maps about addresses on this node: who has which (`ident`, `macs`, `links`), which others Pods can send from
//! (`pod_sources`), and by which address packets leave the node (`devs`).
#![forbid(unsafe_code)]

use std::io;

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::endpoint::{Dev, Ident, PodSource};
use lb_common::limits::{
    MAP_DEVS, MAP_IDENT, MAP_LINKS, MAP_LOCALS, MAP_MACS, MAP_POD_RANGES, MAP_POD_SOURCES, MapSpec,
};
use lb_common::past::LocalEnd;

use crate::bpf::growing::{self, GrowingMap};
use crate::bpf::maps::MapsError;
use crate::bpf::pins::Pins;
use crate::bpf::typed;
use crate::syscall;
use lb_core::cluster::Prefix;
use lb_core::plan::{Actual, MapError, SourceKey};

/// The maps.
pub struct AddressTables {
    /// By the words of an address, in network order.
    pub(super) ident: GrowingMap<HashMap<MapData, [u32; 4], Ident>>,
    /// By ifindex.
    pub(super) devs: HashMap<MapData, u32, Dev>,
    /// How packets reach Pods past the IP stack, by the numbers of Pods.
    pub(super) locals: Array<MapData, LocalEnd>,
    /// Holders of MAC addresses on bridges.
    pub(super) macs: HashMap<MapData, u64, u32>,
    /// MAC addresses of Pods' devices.
    pub(super) links: Array<MapData, u64>,
    /// Ranges of other nodes' Pods, by the words of an address.
    pub(super) pod_ranges: LpmTrie<MapData, [u32; 4], u32>,
    /// Ranges that annotations of Pods admit as sources.
    pub(super) pod_sources: LpmTrie<MapData, PodSource, u32>,
}

impl AddressTables {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// When the object lacks one or it has other sizes.
    pub fn take(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<Self, MapsError> {
        let ident = GrowingMap::take(ebpf, growing::IDENT, pins)?;
        Self::typed(ident, |spec| typed::take(ebpf, spec))
    }

    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When a pin is missing or has other sizes.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Self::typed(GrowingMap::open(pins, growing::IDENT)?, |spec| typed::pinned(pins, spec))
    }

    fn typed(
        ident: GrowingMap<HashMap<MapData, [u32; 4], Ident>>,
        mut map: impl FnMut(&MapSpec) -> Result<Map, MapsError>,
    ) -> Result<Self, MapsError> {
        Ok(Self {
            ident,
            devs: typed::typed(&MAP_DEVS, map(&MAP_DEVS)?)?,
            locals: typed::typed(&MAP_LOCALS, map(&MAP_LOCALS)?)?,
            macs: typed::typed(&MAP_MACS, map(&MAP_MACS)?)?,
            links: typed::typed(&MAP_LINKS, map(&MAP_LINKS)?)?,
            pod_ranges: typed::typed(&MAP_POD_RANGES, map(&MAP_POD_RANGES)?)?,
            pod_sources: typed::typed(&MAP_POD_SOURCES, map(&MAP_POD_SOURCES)?)?,
        })
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(super) fn load(&self, actual: &mut Actual) -> Result<(), MapError> {
        let failed = |map| move |e: io::Error| MapError { map, full: false, source: e.into() };
        syscall::for_each(&*self.ident, |words: &[u32; 4], value: &Ident| {
            actual.ident.insert(Addr::v6(words.map(Be32::from_wire)), *value);
        })
        .map_err(failed(MAP_IDENT.name))?;
        syscall::for_each(&self.devs, |ifindex: &u32, value: &Dev| {
            actual.devs.insert(*ifindex, *value);
        })
        .map_err(failed(MAP_DEVS.name))?;
        syscall::for_each(&self.locals, |id: &u32, local: &LocalEnd| {
            if *local != LocalEnd::ZERO {
                actual.locals.insert(*id, *local);
            }
        })
        .map_err(failed(MAP_LOCALS.name))?;
        syscall::for_each(&self.macs, |mac: &u64, holder: &u32| {
            actual.macs.insert(*mac, *holder);
        })
        .map_err(failed(MAP_MACS.name))?;
        syscall::for_each(&self.links, |index: &u32, element: &u64| {
            if *element != 0 {
                actual.links.insert(*index, *element);
            }
        })
        .map_err(failed(MAP_LINKS.name))?;
        for key in self.pod_ranges.keys() {
            let key = key.map_err(|e| failed(MAP_POD_RANGES.name)(io::Error::other(e)))?;
            let addr = Addr::v6(key.data().map(Be32::from_wire));
            actual.pod_ranges.extend(Prefix::from_wide(addr, key.prefix_len()));
        }
        for key in self.pod_sources.keys() {
            let key = key.map_err(|e| failed(MAP_POD_SOURCES.name)(io::Error::other(e)))?;
            actual.pod_sources.extend(SourceKey::from_map(key.prefix_len(), key.data()));
        }
        Ok(())
    }
}
