//! How much the maps of Services hold, when they have grown as far as they may.
#![forbid(unsafe_code)]

use lb_common::limits;

/// How much the maps hold at most: they grow as they are written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Elements of `frontends`.
    pub frontends: u32,
    /// Elements of `slots`.
    pub slots: u32,
    /// Elements of `backends`; id 0 is never used.
    pub backends: u32,
    /// Elements of `source_ranges`.
    pub source_ranges: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: limits::FRONTENDS_MAX,
            slots: limits::SLOTS_MAX,
            backends: limits::BACKENDS_MAX,
            source_ranges: limits::SOURCE_RANGES_MAX,
        }
    }
}
