//! An array that grows by parts.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::ops::ControlFlow;

use aya::maps::{Array, IterableMap as _, MapData, MapError as AyaError};
use aya::{Ebpf, Pod};
use lb_common::limits::MapSpec;
use lb_common::pod::Field;
use tracing::info;

use super::{GrowingTable, Growth, errno};
use crate::bpf::pins::Pins;
use crate::bpf::typed::{self, MapsError};
use crate::syscall;

/// Elements in a row that were never written, after which none was. Writes that failed and are repeated leave fewer.
const A_WHILE: u32 = 1024;

/// An array in parts.
pub struct PartedArray<V: Pod> {
    table: GrowingTable,
    parts: Vec<Array<MapData, V>>,
    /// `None` for those who only use what is there.
    growth: Option<Growth<Array<MapData, V>>>,
}

impl<V: Pod + Field> PartedArray<V> {
    /// Takes the array out of the loaded object, and links all parts that are pinned.
    pub(in crate::bpf) fn take(
        ebpf: &mut Ebpf,
        table: GrowingTable,
        pins: Option<&Pins>,
    ) -> Result<Self, MapsError> {
        let mut growth = Growth::take(ebpf, &table, pins)?;
        let mut parts = vec![typed::typed(&table.map, typed::take(ebpf, &table.map)?)?];
        let unusable = |source| MapsError::Unusable { map: table.directory.name, source };
        if let Some(growth) = &mut growth {
            for (n, part) in (1..).zip(further(&growth.pins, &table.map)?) {
                growth.directory.set(n, &part, 0).map_err(unusable)?;
                parts.push(part);
            }
        }
        Ok(Self { table, parts, growth })
    }

    /// Opens the pinned parts.
    pub(in crate::bpf) fn open(pins: &Pins, table: GrowingTable) -> Result<Self, MapsError> {
        let mut parts = vec![typed::open(pins, &table.map)?];
        parts.extend(further(pins, &table.map)?);
        Ok(Self { table, parts, growth: None })
    }

    /// Number of elements there are, used or not.
    pub fn len(&self) -> u32 {
        self.parts.iter().map(Array::len).sum()
    }

    /// Whether it has no elements: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes an element. If there is no part for it yet, one is made.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&mut self, index: u32, value: &V) -> Result<(), AyaError> {
        self.reach(index)?;
        let (part, within) = self.place(index);
        let max_entries = self.len();
        let part = self.parts.get_mut(part).ok_or(AyaError::OutOfBounds { index, max_entries })?;
        part.set(within, value, 0)
    }

    /// Reads an element.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn get(&self, index: u32) -> Result<V, AyaError> {
        let (part, within) = self.place(index);
        let max_entries = self.len();
        let part = self.parts.get(part).ok_or(AyaError::OutOfBounds { index, max_entries })?;
        part.get(&within, 0)
    }

    /// Sees to it that there is such an element.
    pub(in crate::bpf) fn reach(&mut self, index: u32) -> Result<(), AyaError> {
        while index >= self.len() {
            let max_entries = self.len();
            let refused = AyaError::OutOfBounds { index, max_entries };
            let Some(growth) = self.growth.as_mut().filter(|_| index < self.table.max) else {
                return Err(refused);
            };
            let n = self.parts.len() as u32;
            let size = max_entries / n;
            let part = growth.step(|growth| {
                let part = Array::create(size, 0).map_err(errno)?;
                let pin = growth.pins.part(&self.table.map, n);
                part.map().pin(&pin).map_err(io::Error::other)?;
                growth.directory.set(n, &part, 0).map_err(|error| {
                    drop(fs::remove_file(&pin));
                    errno(error)
                })?;
                Ok(part)
            })?;
            info!(map = self.table.map.name, elements = max_entries + size, "table has grown");
            self.parts.push(part);
        }
        Ok(())
    }

    /// Calls `each` for every element.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn for_each(&self, mut each: impl FnMut(u32, &V)) -> io::Result<()> {
        let mut first = 0;
        for part in &self.parts {
            syscall::for_each(part, |index: &u32, value: &V| each(first + index, value))?;
            first += part.len();
        }
        Ok(())
    }

    /// Calls `each` for every element below an index. Of a table that is mostly empty, the kernel copies the rest in vain.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn for_each_below(&self, end: u32, mut each: impl FnMut(u32, &V)) -> io::Result<()> {
        let mut first = 0;
        for part in &self.parts {
            if first >= end {
                return Ok(());
            }
            syscall::walk(part, |index: &u32, value: &V| {
                let index = first + index;
                if index >= end {
                    return ControlFlow::Break(());
                }
                each(index, value);
                ControlFlow::Continue(())
            })?;
            first += part.len();
        }
        Ok(())
    }

    /// Calls `each` for the elements that were ever written, of a table that is filled from its beginning and whose elements keep a
    /// trace of having been used. The kernel copies what follows them in vain, so reading ends where nothing was written for a
    /// while, but not before `end`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn for_each_written(
        &self,
        end: u32,
        is_written: impl Fn(&V) -> bool,
        mut each: impl FnMut(u32, &V),
    ) -> io::Result<()> {
        let (mut first, mut unwritten) = (0, 0);
        for part in &self.parts {
            syscall::walk(part, |index: &u32, value: &V| {
                let index = first + index;
                if is_written(value) {
                    unwritten = 0;
                    each(index, value);
                } else {
                    unwritten += 1;
                }
                match unwritten >= A_WHILE && index >= end {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })?;
            first += part.len();
            if unwritten >= A_WHILE && first >= end {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Which part an element is in, and where.
    fn place(&self, index: u32) -> (usize, u32) {
        let size = self.parts.first().map_or(1, Array::len).max(1);
        ((index / size) as usize, index % size)
    }
}

/// The parts after the first.
fn further<V: Pod>(pins: &Pins, spec: &MapSpec) -> Result<Vec<Array<MapData, V>>, MapsError> {
    let pins = (1..).map(|n| pins.part(spec, n)).take_while(|pin| pin.exists());
    pins.map(|pin| typed::typed(spec, typed::pinned_at(&pin, spec)?)).collect()
}
