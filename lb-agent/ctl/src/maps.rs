//! `lbctl maps`: how full the pinned maps are and what they cost.

use serde::Serialize;

use crate::columns::{Cell, Column, Row};
use crate::snapshot::MapUse;

/// One pinned map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapRow {
    /// Name in the kernel object.
    pub map: &'static str,
    /// Kernel's name of the type.
    pub r#type: &'static str,
    /// Elements in use.
    pub used: Option<u64>,
    /// Elements there is room for; bytes for a ring buffer.
    pub size: Option<u64>,
    /// The same at most: some maps grow.
    pub max: Option<u64>,
    /// Share of the most that is in use, in thousandths.
    pub permille: Option<u64>,
    /// Memory in bytes.
    pub bytes: Option<u64>,
    /// Where it is pinned.
    pub pin: String,
}

impl Row for MapRow {
    const NOUN: &'static str = "maps";
    const COLUMNS: &'static [Column] = &[
        Column::new("MAP"),
        Column::new("TYPE"),
        Column::new("USED"),
        Column::new("SIZE"),
        Column::new("MAX"),
        Column::new("%"),
        Column::new("BYTES"),
        Column::new("PIN"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::Text(self.map.to_owned()),
            Cell::Text(self.r#type.to_owned()),
            Cell::number(self.used),
            Cell::number(self.size),
            Cell::number(self.max),
            self.permille.map_or(Cell::None, Cell::Permille),
            self.bytes.map_or(Cell::None, Cell::Bytes),
            Cell::Text(self.pin.clone()),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(self.map.to_owned())
    }
}

/// One row a map.
pub fn rows(maps: &[MapUse]) -> Vec<MapRow> {
    maps.iter()
        .map(|map| MapRow {
            map: map.name,
            r#type: map.kind,
            used: map.used,
            size: map.size,
            max: map.max,
            permille: permille(map),
            bytes: map.bytes,
            pin: map.pin.clone(),
        })
        .collect()
}

/// Share of the capacity in use, in thousandths.
pub fn permille(map: &MapUse) -> Option<u64> {
    map.used?.saturating_mul(1000).checked_div(map.max?)
}
