//! The maps `ident` and `devs`: who has which address on this node, and by which address packets leave it.
#![forbid(unsafe_code)]

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::endpoint::{Dev, Ident};
use lb_common::limits::{MAP_DEVS, MAP_IDENT};

use crate::bpf::maps::{self, MapsError};
use crate::bpf::pins::Pins;
use crate::syscall;
use lb_core::plan::{Actual, MapError};

/// The two maps.
pub struct AddressTables {
    /// By the words of an address, in network order.
    pub(super) ident: HashMap<MapData, [u32; 4], Ident>,
    /// By ifindex.
    pub(super) devs: HashMap<MapData, u32, Dev>,
}

impl AddressTables {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// When the object lacks one or it has other sizes.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        let (ident, devs) = (maps::take(ebpf, &MAP_IDENT)?, maps::take(ebpf, &MAP_DEVS)?);
        Self::typed(ident, devs)
    }

    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When a pin is missing or has other sizes.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Self::typed(maps::pinned(pins, &MAP_IDENT)?, maps::pinned(pins, &MAP_DEVS)?)
    }

    fn typed(ident: Map, devs: Map) -> Result<Self, MapsError> {
        Ok(Self { ident: maps::typed(&MAP_IDENT, ident)?, devs: maps::typed(&MAP_DEVS, devs)? })
    }

    /// Reads both maps.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(super) fn load(&self, actual: &mut Actual) -> Result<(), MapError> {
        let failed = |map| move |e: std::io::Error| MapError { map, full: false, source: e.into() };
        syscall::for_each(&self.ident, |words: &[u32; 4], value: &Ident| {
            actual.ident.insert(Addr::v6(words.map(Be32::from_wire)), *value);
        })
        .map_err(failed(MAP_IDENT.name))?;
        syscall::for_each(&self.devs, |ifindex: &u32, value: &Dev| {
            actual.devs.insert(*ifindex, *value);
        })
        .map_err(failed(MAP_DEVS.name))
    }
}
