//! The maps `ident` and `devs`: who has which address on this node, and by which address packets leave it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError as AyaError};
use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::endpoint::{Dev, Ident};
use lb_common::limits::{MAP_DEVS, MAP_IDENT};

use crate::bpf::apply::failed;
use crate::bpf::maps::{self, MapsError};
use crate::bpf::pins::Pins;
use crate::syscall;
use lb_core::plan::MapError;

/// What the two maps say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Who has which address.
    pub ident: BTreeMap<Addr, Ident>,
    /// Devices by ifindex.
    pub devs: BTreeMap<u32, Dev>,
}

/// The two maps: written by the agent's loop alone.
pub struct AddressTables {
    /// By the words of an address, in network order.
    ident: HashMap<MapData, [u32; 4], Ident>,
    devs: HashMap<MapData, u32, Dev>,
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

    /// What an earlier run left.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn load(&self) -> Result<Contents, MapError> {
        let failed = |map| move |e: std::io::Error| MapError { map, full: false, source: e.into() };
        let mut contents = Contents::default();
        syscall::for_each(&self.ident, |words: &[u32; 4], value: &Ident| {
            contents.ident.insert(Addr::v6(words.map(Be32::from_wire)), *value);
        })
        .map_err(failed(MAP_IDENT.name))?;
        syscall::for_each(&self.devs, |ifindex: &u32, value: &Dev| {
            contents.devs.insert(*ifindex, *value);
        })
        .map_err(failed(MAP_DEVS.name))?;
        Ok(contents)
    }

    /// Writes the owner of an address; `None` removes it: no local object has the address (any longer).
    ///
    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn set_ident(&mut self, addr: &Addr, ident: Option<&Ident>) -> Result<(), MapError> {
        let words = addr.words().map(Be32::to_wire);
        match ident {
            Some(ident) => self.ident.insert(&words, ident, 0),
            None => self.ident.remove(&words).or_else(ignore_missing),
        }
        .map_err(|e| failed(MAP_IDENT.name, e))
    }

    /// Writes what packets need that leave by a device, or `None`: none do (any more).
    ///
    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn set_dev(&mut self, ifindex: &u32, dev: Option<&Dev>) -> Result<(), MapError> {
        match dev {
            Some(dev) => self.devs.insert(ifindex, dev, 0),
            None => self.devs.remove(ifindex).or_else(ignore_missing),
        }
        .map_err(|e| failed(MAP_DEVS.name, e))
    }
}

fn ignore_missing(error: AyaError) -> Result<(), AyaError> {
    if maps::is_missing(&error) { Ok(()) } else { Err(error) }
}
