//! Whether the maps still say what the agent wrote: what `lbctl diff` asks.

use serde::{Deserialize, Serialize};

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Fields that differ, the first [`LINES`] of them.
    pub lines: Vec<AuditLine>,
    /// Elements that differ.
    pub elements: u64,
    /// Elements of them that were written again.
    pub repaired: u64,
    /// Services that wait for a write that has failed or is not due yet. These are not drift.
    pub pending: u64,
}

/// Most fields that a report lists.
pub const LINES: usize = 1000;

/// A field of an element of a map that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLine {
    /// The map.
    pub map: String,
    /// The element, in the words of its map.
    pub element: String,
    /// The field; empty where the whole element is there on one side only.
    pub field: String,
    /// What the agent wrote.
    pub wanted: String,
    /// What the map says.
    pub found: String,
}
