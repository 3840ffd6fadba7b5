//! A hash table or a trie that a larger one takes the place of.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::time::Instant;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, InnerMap, IterableMap as _, Map, MapData, MapError as AyaError};
use aya::{Ebpf, Pod};
use lb_common::pod::Field;
use tracing::info;

use super::{GrowingTable, Growth, errno};
use crate::bpf::pins::{self, Pins};
use crate::bpf::typed::{self, MapsError};
use crate::syscall;

/// Memory is charged for each element, not ahead (include/uapi/linux/bpf.h).
const BPF_F_NO_PREALLOC: u32 = 1;

/// A map that a larger one takes the place of when it is full.
pub struct GrowingMap<M> {
    table: GrowingTable,
    map: M,
    growth: Option<Growth<M>>,
}

/// A map whose elements can be copied.
pub trait CopiedMap: InnerMap + TryFrom<Map, Error = AyaError> + Sized {
    /// What its elements are found by.
    type Key;
    /// What they say.
    type Value;
    /// What the kernel answers when it is full.
    const FULL: i32;
    /// A new one.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn with_capacity(capacity: u32) -> Result<Self, AyaError>;
    /// What the kernel knows it by.
    fn data(&self) -> &MapData;
    /// Adds or replaces an element.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn put(&mut self, key: &Self::Key, value: &Self::Value) -> Result<(), AyaError>;
    /// Removes an element.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no such element.
    fn delete(&mut self, key: &Self::Key) -> Result<(), AyaError>;
    /// Writes all elements to another one.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn copy_to(&self, to: &mut Self) -> io::Result<()>;
}

impl<K: Pod + Field, V: Pod + Field> CopiedMap for HashMap<MapData, K, V> {
    type Key = K;
    type Value = V;
    const FULL: i32 = libc::E2BIG;

    fn with_capacity(capacity: u32) -> Result<Self, AyaError> {
        Self::create(capacity, BPF_F_NO_PREALLOC)
    }

    fn data(&self) -> &MapData {
        self.map()
    }

    fn put(&mut self, key: &K, value: &V) -> Result<(), AyaError> {
        self.insert(key, value, 0)
    }

    fn delete(&mut self, key: &K) -> Result<(), AyaError> {
        self.remove(key)
    }

    fn copy_to(&self, to: &mut Self) -> io::Result<()> {
        let mut done = Ok(());
        syscall::for_each(self, |key: &K, value: &V| {
            if done.is_ok() {
                done = to.insert(key, value, 0).map_err(errno);
            }
        })?;
        done
    }
}

impl<K: Pod, V: Pod> CopiedMap for LpmTrie<MapData, K, V> {
    type Key = Key<K>;
    type Value = V;
    const FULL: i32 = libc::ENOSPC;

    fn with_capacity(capacity: u32) -> Result<Self, AyaError> {
        Self::create(capacity, BPF_F_NO_PREALLOC)
    }

    fn data(&self) -> &MapData {
        self.map()
    }

    fn put(&mut self, key: &Key<K>, value: &V) -> Result<(), AyaError> {
        self.insert(key, value, 0)
    }

    fn delete(&mut self, key: &Key<K>) -> Result<(), AyaError> {
        self.remove(key)
    }

    fn copy_to(&self, to: &mut Self) -> io::Result<()> {
        for element in self.iter() {
            let (key, value) = element.map_err(errno)?;
            to.insert(&key, &value, 0).map_err(errno)?;
        }
        Ok(())
    }
}

impl<M: CopiedMap> GrowingMap<M> {
    /// Takes the map out of the loaded object.
    pub(in crate::bpf) fn take(
        ebpf: &mut Ebpf,
        table: GrowingTable,
        pins: Option<&Pins>,
    ) -> Result<Self, MapsError> {
        let growth = Growth::take(ebpf, &table, pins)?;
        let map = typed::typed(&table.map, typed::take(ebpf, &table.map)?)?;
        // An agent has ended while it filled it.
        let unusable = |error| MapsError::Unusable {
            map: table.map.name,
            source: AyaError::IoError(io::Error::other(error)),
        };
        if let Some(growth) = &growth {
            pins::remove(&growth.pins.next(&table.map)).map_err(unusable)?;
        }
        Ok(Self { table, map, growth })
    }

    /// Opens the pinned map.
    pub(in crate::bpf) fn open(pins: &Pins, table: GrowingTable) -> Result<Self, MapsError> {
        Ok(Self { table, map: typed::open(pins, &table.map)?, growth: None })
    }

    /// Adds or replaces an element. A full map is replaced by a larger one first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put(&mut self, key: &M::Key, value: &M::Value) -> Result<(), AyaError> {
        match self.map.put(key, value) {
            Err(AyaError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(M::FULL) && self.can_grow()? =>
            {
                self.grow()?;
                self.map.put(key, value)
            }
            done => done,
        }
    }

    /// Removes an element.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no such element.
    pub fn delete(&mut self, key: &M::Key) -> Result<(), AyaError> {
        self.map.delete(key)
    }

    fn capacity(&self) -> Result<u32, AyaError> {
        Ok(self.map.data().info()?.max_entries())
    }

    fn can_grow(&self) -> Result<bool, AyaError> {
        Ok(self.growth.is_some() && self.capacity()? < self.table.max)
    }

    fn grow(&mut self) -> Result<(), AyaError> {
        let capacity = self.capacity()?.saturating_mul(2).min(self.table.max);
        let Some(growth) = &mut self.growth else { return Ok(()) };
        let (table, old) = (&self.table.map, &self.map);
        let begun = Instant::now();
        self.map = growth.step(|growth| {
            let (pin, next) = (growth.pins.map(table), growth.pins.next(table));
            let larger =
                filled(old, capacity, &next).inspect_err(|_| drop(fs::remove_file(&next)))?;
            fs::rename(&next, &pin)?;
            growth.directory.set(0, &larger, 0).map_err(|error| {
                // The old one stays in place, so it gets its name back.
                drop(old.data().pin(&next).map(|()| fs::rename(&next, &pin)));
                errno(error)
            })?;
            Ok(larger)
        })?;
        info!(map = table.name, elements = capacity, took = ?begun.elapsed(), "table has grown");
        Ok(())
    }
}

/// A larger map that says the same.
fn filled<M: CopiedMap>(old: &M, capacity: u32, pin: &Path) -> io::Result<M> {
    let mut larger = M::with_capacity(capacity).map_err(errno)?;
    larger.data().pin(pin).map_err(io::Error::other)?;
    old.copy_to(&mut larger)?;
    Ok(larger)
}

impl<M> Deref for GrowingMap<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.map
    }
}
