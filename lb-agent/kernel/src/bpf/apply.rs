//! The real [`MapStore`]: one system call a write.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::MapError as AyaError;
use aya::maps::lpm_trie::Key;
use lb_common::endpoint::{Pod, PodSource};
use lb_common::service::{Affinity, AffinityKey};
use libc::{E2BIG, ENOMEM, ENOSPC};

use crate::bpf::maps::{self, Tables};
use crate::bpf::read;
use crate::syscall;
use lb_core::cluster::Prefix;
use lb_core::plan::{Actual, MapError, MapStore, Op};

/// Bits of [`PodSource`] before the address.
const DEVICE_BITS: u32 = 32;

impl MapStore for Tables {
    fn load(&self) -> Result<Actual, MapError> {
        read::actual(self)
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match op {
            Op::PutBackend { id, backend } => {
                self.backends.set(*id, backend, 0).map_err(|e| failed("backends", e))
            }
            Op::PutSlot { slot, backend_id } => {
                self.slots.set(*slot, backend_id, 0).map_err(|e| failed("slots", e))
            }
            Op::PutFrontend { key, frontend } => {
                self.frontends.insert(key, frontend, 0).map_err(|e| failed("frontends", e))
            }
            Op::DeleteFrontend { key } => match self.frontends.remove(key) {
                Err(e) if maps::is_missing(&e) => Ok(()),
                other => other.map_err(|e| failed("frontends", e)),
            },
            Op::PutSourceRange { key } => {
                let (bits, range) = key.to_map();
                let written = self.source_ranges.insert(&Key::new(bits, range), &1, 0);
                written.map_err(|e| failed("source_ranges", e))
            }
            Op::DeleteSourceRange { key } => {
                let (bits, range) = key.to_map();
                match self.source_ranges.remove(&Key::new(bits, range)) {
                    Err(e) if maps::is_missing(&e) => Ok(()),
                    other => other.map_err(|e| failed("source_ranges", e)),
                }
            }
            Op::ClearAffinity { service_id } => self.clear_affinity(*service_id),
            Op::PutFrontendPorts { word, bits } => {
                self.frontend_ports.set(*word, bits, 0).map_err(|e| failed("frontend_ports", e))
            }
            Op::PutFormerPorts { word, bits } => {
                self.former_ports.set(*word, bits, 0).map_err(|e| failed("former_ports", e))
            }
            Op::PutHostPorts { word, bits } => {
                self.host_ports.set(*word, bits, 0).map_err(|e| failed("host_ports", e))
            }
            Op::PutSettings(settings) => {
                self.settings.set(0, &**settings, 0).map_err(|e| failed("settings", e))
            }
        }
    }
}

impl Tables {
    /// Reads the whole map: it is small, and that affinity is taken off a Service is rare.
    fn clear_affinity(&mut self, service_id: u32) -> Result<(), MapError> {
        let mut keys = Vec::new();
        let read = syscall::for_each(&self.affinity, |key: &AffinityKey, _: &Affinity| {
            if key.service_id == service_id {
                keys.push(*key);
            }
        });
        read.map_err(|e| failed("affinity", AyaError::IoError(e)))?;
        for key in keys {
            match self.affinity.remove(&key) {
                Err(e) if !maps::is_missing(&e) => return Err(failed("affinity", e)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Writes a Pod of this node.
    ///
    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn put_pod(&mut self, ifindex: u32, pod: &Pod) -> Result<(), MapError> {
        self.pods.insert(&ifindex, pod, 0).map_err(|e| failed("pods", e))
    }

    /// Admits a range as sources of a Pod, or no longer.
    ///
    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn set_source(
        &mut self,
        ifindex: u32,
        range: &Prefix,
        admitted: bool,
    ) -> Result<(), MapError> {
        let source = PodSource { ifindex, addr: range.addr() };
        let key = Key::new(DEVICE_BITS + u32::from(range.wide_bits()), source);
        let done = if admitted {
            self.pod_sources.insert(&key, &1, 0)
        } else {
            match self.pod_sources.remove(&key) {
                Err(e) if maps::is_missing(&e) => Ok(()),
                other => other,
            }
        };
        done.map_err(|e| failed("pod_sources", e))
    }

    /// The ranges that are admitted as sources of Pods, by the numbers of their devices.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn load_sources(&self) -> Result<BTreeSet<(u32, Prefix)>, MapError> {
        let mut found = BTreeSet::new();
        for key in self.pod_sources.keys() {
            let key = key.map_err(|e| failed("pod_sources", e))?;
            let PodSource { ifindex, addr } = key.data();
            let bits = key.prefix_len().saturating_sub(DEVICE_BITS);
            let bits = if addr.is_v4() { bits.saturating_sub(96) } else { bits };
            let range = u8::try_from(bits).ok().and_then(|bits| Prefix::new(addr, bits));
            found.extend(range.map(|range| (ifindex, range)));
        }
        Ok(found)
    }

    /// Writes the link-layer address that belongs behind a Pod's device: index and element as in
    /// [`lb_common::endpoint::link`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_link(&mut self, index: u32, element: u64) -> Result<(), MapError> {
        self.links.set(index, &element, 0).map_err(|e| failed("links", e))
    }

    /// Writes the owner of a link-layer address; `None` removes it.
    ///
    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn set_mac(&mut self, mac: u64, holder: Option<u32>) -> Result<(), MapError> {
        let done = match holder {
            Some(holder) => self.macs.insert(&mac, &holder, 0),
            None => match self.macs.remove(&mac) {
                Err(e) if maps::is_missing(&e) => Ok(()),
                other => other,
            },
        };
        done.map_err(|e| failed("macs", e))
    }

    /// Who has which link-layer address, as it is written.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn load_macs(&self) -> Result<BTreeMap<u64, u32>, MapError> {
        let mut found = BTreeMap::new();
        syscall::for_each(&self.macs, |mac: &u64, holder: &u32| {
            found.insert(*mac, *holder);
        })
        .map_err(|e| failed("macs", AyaError::IoError(e)))?;
        Ok(found)
    }

    /// The element of `links` at an index.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn load_link(&self, index: u32) -> Result<u64, MapError> {
        self.links.get(&index, 0).map_err(|e| failed("links", e))
    }

    /// The Pods of this node that are written.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn load_pods(&self) -> Result<Vec<(u32, Pod)>, MapError> {
        let mut pods = Vec::new();
        syscall::for_each(&self.pods, |ifindex: &u32, pod: &Pod| pods.push((*ifindex, *pod)))
            .map_err(|e| failed("pods", AyaError::IoError(e)))?;
        Ok(pods)
    }

    /// Removes a Pod of this node; one that is not there is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_pod(&mut self, ifindex: u32) -> Result<(), MapError> {
        match self.pods.remove(&ifindex) {
            Err(e) if maps::is_missing(&e) => Ok(()),
            other => other.map_err(|e| failed("pods", e)),
        }
    }
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
