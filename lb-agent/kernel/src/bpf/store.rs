//! All maps that the agent's loop owns: the real [`MapStore`], one system call a write.
#![forbid(unsafe_code)]

use aya::Ebpf;
use aya::maps::MapError as AyaError;
use aya::maps::lpm_trie::Key;
use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::service::{Affinity, AffinityKey, Backend};

use crate::bpf::addresses::AddressTables;
use crate::bpf::maps::{self, MapsError, Tables};
use crate::bpf::pins::Pins;
use crate::bpf::policy::PolicyTables;
use crate::bpf::read;
use crate::bpf::typed::failed;
use crate::syscall;
use lb_core::cluster::Prefix;
use lb_core::model::policy::CidrRange;
use lb_core::plan::{Actual, MapError, MapStore, Write};

/// All maps that the agent's loop owns: nothing else writes to them.
pub struct Maps {
    /// Services and Pods.
    pub tables: Tables,
    /// Addresses and devices of this node.
    pub addresses: AddressTables,
    /// Policies.
    pub policies: PolicyTables,
}

impl Maps {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// When the object lacks one or it has other sizes.
    pub fn take(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<Self, MapsError> {
        Ok(Self {
            tables: Tables::take(ebpf, pins)?,
            addresses: AddressTables::take(ebpf, pins)?,
            policies: PolicyTables::take(ebpf)?,
        })
    }

    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When a pin is missing or has other sizes.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Ok(Self {
            tables: Tables::open(pins)?,
            addresses: AddressTables::open(pins)?,
            policies: PolicyTables::open(pins)?,
        })
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn load(&self) -> Result<Actual, MapError> {
        let mut actual = Actual::default();
        read::services(&self.tables, &mut actual)?;
        self.policies.load(&mut actual)?;
        self.addresses.load(&mut actual)?;
        Ok(actual)
    }
}

impl MapStore for Maps {
    fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        let Self { tables, addresses, policies } = self;
        let map = write.map();
        let done = match write {
            Write::PutBackend { id, backend } => tables.put_backend(*id, backend),
            Write::PutSlot { slot, backend_id } => tables.slots.set(*slot, backend_id),
            Write::PutFrontend { key, frontend } => tables.frontends.put(key, frontend),
            Write::DeleteFrontend { key } => gone(tables.frontends.delete(key)),
            Write::PutSourceRange { key } => {
                let (bits, range) = key.to_map();
                tables.source_ranges.put(&Key::new(bits, range), &1)
            }
            Write::DeleteSourceRange { key } => {
                let (bits, range) = key.to_map();
                gone(tables.source_ranges.delete(&Key::new(bits, range)))
            }
            Write::ClearAffinity { service_id } => tables.clear_affinity(*service_id),
            Write::PutFrontendPorts { word, bits } => tables.frontend_ports.set(*word, bits, 0),
            Write::PutFormerPorts { word, bits } => tables.former_ports.set(*word, bits, 0),
            Write::PutHostPorts { word, bits } => tables.host_ports.set(*word, bits, 0),
            Write::PutSettings(settings) => tables.settings.set(0, &**settings, 0),
            Write::PutGroup { id, group } => policies.groups.set(*id, &**group, 0),
            Write::PutPeerBits { key, bits } => policies.peer_bits.insert(key, bits, 0),
            Write::DeletePeerBits { key } => gone(policies.peer_bits.remove(key)),
            Write::PutPortBits { len, key, bits } => {
                policies.port_bits.insert(&Key::new(*len, *key), bits, 0)
            }
            Write::DeletePortBits { len, key } => {
                gone(policies.port_bits.remove(&Key::new(*len, *key)))
            }
            Write::PutCidr { range, ident } => policies.cidrs.insert(&prefix(range), ident, 0),
            Write::DeleteCidr { range } => gone(policies.cidrs.remove(&prefix(range))),
            Write::PutPolicyState(state) => policies.put_state(*state),
            Write::PutIdent { addr, ident } => addresses.ident.put(&words(addr), ident),
            Write::DeleteIdent { addr } => gone(addresses.ident.delete(&words(addr))),
            Write::PutPod { ifindex, pod } => tables.pods.insert(ifindex, &**pod, 0),
            Write::DeletePod { ifindex } => gone(tables.pods.remove(ifindex)),
            Write::PutLocal { id, local } => addresses.locals.set(*id, local, 0),
            Write::PutDev { ifindex, dev } => addresses.devs.insert(ifindex, dev, 0),
            Write::DeleteDev { ifindex } => gone(addresses.devs.remove(ifindex)),
            Write::PutMac { mac, holder } => addresses.macs.insert(mac, holder, 0),
            Write::DeleteMac { mac } => gone(addresses.macs.remove(mac)),
            Write::PutLink { index, element } => addresses.links.set(*index, element, 0),
            Write::PutPodRange { range } => addresses.pod_ranges.insert(&pod_range(range), &1, 0),
            Write::DeletePodRange { range } => gone(addresses.pod_ranges.remove(&pod_range(range))),
            Write::PutPodSource { key } => {
                let (bits, source) = key.to_map();
                addresses.pod_sources.insert(&Key::new(bits, source), &1, 0)
            }
            Write::DeletePodSource { key } => {
                let (bits, source) = key.to_map();
                gone(addresses.pod_sources.remove(&Key::new(bits, source)))
            }
        };
        done.map_err(|e| failed(map, e))
    }
}

/// The words of an address, in network order.
fn words(addr: &Addr) -> [u32; 4] {
    addr.words().map(Be32::to_wire)
}

fn prefix(range: &CidrRange) -> Key<[u32; 4]> {
    Key::new(u32::from(range.len), words(&range.addr()))
}

fn pod_range(range: &Prefix) -> Key<[u32; 4]> {
    Key::new(u32::from(range.wide_bits()), words(&range.addr()))
}

/// The result of a removal: that the element was not there is fine.
fn gone(result: Result<(), AyaError>) -> Result<(), AyaError> {
    match result {
        Err(error) if maps::is_missing(&error) => Ok(()),
        other => other,
    }
}

impl Tables {
    /// The programs count its flows, so its load is there first.
    fn put_backend(&mut self, id: u32, backend: &Backend) -> Result<(), AyaError> {
        self.loads.reach(id)?;
        self.backends.set(id, backend)
    }

    /// Reads the whole map: it is small, and that affinity is taken off a Service is rare.
    fn clear_affinity(&mut self, service_id: u32) -> Result<(), AyaError> {
        let mut keys = Vec::new();
        let read = syscall::for_each(&self.affinity, |key: &AffinityKey, _: &Affinity| {
            if key.service_id == service_id {
                keys.push(*key);
            }
        });
        read.map_err(AyaError::IoError)?;
        keys.iter().try_for_each(|key| gone(self.affinity.remove(key)))
    }
}
