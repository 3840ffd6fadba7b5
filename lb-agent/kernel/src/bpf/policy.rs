//! The maps `groups`, `peer_bits`, `port_bits`, `cidrs` and `policy`: what policies come to; and `hits`: what they did.
#![forbid(unsafe_code)]

use std::io;

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError as AyaError, PerCpuHashMap};
use lb_common::be::Be32;
use lb_common::limits::{
    MAP_CIDRS, MAP_GROUPS, MAP_HITS, MAP_PEER_BITS, MAP_POLICY, MAP_PORT_BITS, MapSpec,
};
use lb_common::policy::{Bits, Group, HitKey, PeerKey, PolicyFlags, PolicyState, PortKey};

use crate::bpf::maps::{self, MapsError};
use crate::bpf::pins::Pins;
use crate::bpf::typed::{self, failed};
use crate::syscall;
use lb_core::model::policy::{CidrRange, number};
use lb_core::plan::{Actual, MapError};

/// The policy tables.
pub struct PolicyTables {
    pub(super) groups: Array<MapData, Group>,
    pub(super) peer_bits: HashMap<MapData, PeerKey, Bits>,
    pub(super) port_bits: LpmTrie<MapData, PortKey, Bits>,
    /// By the words of an address, in network order.
    pub(super) cidrs: LpmTrie<MapData, [u32; 4], u32>,
    state: Array<MapData, PolicyState>,
    /// Written by the programs, cleared by the agent.
    hits: PerCpuHashMap<MapData, HitKey, u64>,
}

impl PolicyTables {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// When the object lacks one or it has other sizes.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        Self::typed(|spec| typed::take(ebpf, spec))
    }

    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When a pin is missing or has other sizes.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Self::typed(|spec| typed::pinned(pins, spec))
    }

    fn typed(mut map: impl FnMut(&MapSpec) -> Result<Map, MapsError>) -> Result<Self, MapsError> {
        Ok(Self {
            groups: typed::typed(&MAP_GROUPS, map(&MAP_GROUPS)?)?,
            peer_bits: typed::typed(&MAP_PEER_BITS, map(&MAP_PEER_BITS)?)?,
            port_bits: typed::typed(&MAP_PORT_BITS, map(&MAP_PORT_BITS)?)?,
            cidrs: typed::typed(&MAP_CIDRS, map(&MAP_CIDRS)?)?,
            state: typed::typed(&MAP_POLICY, map(&MAP_POLICY)?)?,
            hits: typed::typed(&MAP_HITS, map(&MAP_HITS)?)?,
        })
    }

    /// Reads the five maps.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(super) fn load(&self, actual: &mut Actual) -> Result<(), MapError> {
        let read = |map| move |e: io::Error| failed(map, AyaError::IoError(e));
        syscall::for_each(&self.groups, |id: &u32, group: &Group| {
            if *group != Group::ZERO {
                actual.groups.insert(*id, *group);
            }
        })
        .map_err(read(MAP_GROUPS.name))?;
        syscall::for_each(&self.peer_bits, |key: &PeerKey, bits: &Bits| {
            actual.peer_bits.insert(*key, *bits);
        })
        .map_err(read(MAP_PEER_BITS.name))?;
        // Not all kernels read this kind in batches.
        for entry in self.port_bits.iter() {
            let (key, bits) = entry.map_err(|e| failed(MAP_PORT_BITS.name, e))?;
            actual.port_bits.insert((key.prefix_len(), key.data()), bits);
        }
        for entry in self.cidrs.iter() {
            let (key, ident) = entry.map_err(|e| failed(MAP_CIDRS.name, e))?;
            let addr = lb_common::addr::Addr::v6(key.data().map(Be32::from_wire));
            let len = u8::try_from(key.prefix_len()).unwrap_or(128);
            actual.cidrs.insert(CidrRange::around(number(&addr), len), ident);
        }
        actual.policy = self.state.get(&0, 0).map_err(|e| failed(MAP_POLICY.name, e))?;
        Ok(())
    }

    /// New flows by who decided, all CPUs together.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn hits(&self) -> Result<Vec<(HitKey, u64)>, MapError> {
        let mut hits = Vec::new();
        for entry in self.hits.iter() {
            let (key, values) = entry.map_err(|e| failed(MAP_HITS.name, e))?;
            hits.push((key, values.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n))));
        }
        Ok(hits)
    }

    /// Forgets a count.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_hits(&mut self, key: &HitKey) -> Result<(), MapError> {
        match self.hits.remove(key) {
            Err(e) if !maps::is_missing(&e) => Err(failed(MAP_HITS.name, e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Writes the state, but for its flags: they belong to the clients that follow events.
    pub(super) fn put_state(&mut self, state: PolicyState) -> Result<(), AyaError> {
        let flags = self.state.get(&0, 0).map_or(PolicyFlags::NONE, |state| state.flags);
        self.state.set(0, &PolicyState { flags, ..state }, 0)
    }

    /// Lets the programs report flows that are allowed, or no longer.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn report_allowed(&mut self, wanted: bool) -> Result<(), MapError> {
        let old = self.state.get(&0, 0).map_err(|e| failed(MAP_POLICY.name, e))?;
        let report = PolicyFlags::REPORT_ALLOWED;
        let flags = old.flags.without(report) | report.when(wanted);
        if flags == old.flags {
            return Ok(());
        }
        self.state.set(0, &PolicyState { flags, ..old }, 0).map_err(|e| failed(MAP_POLICY.name, e))
    }
}
