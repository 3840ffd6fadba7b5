//! `lbctl programs`: how often each program ran and how long a run takes.

use serde::Serialize;

use crate::columns::{Cell, Column, Row};

/// One program of the kernel object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramRow {
    /// Name in the kernel object.
    pub program: &'static str,
    /// Runs while the kernel counted them.
    pub runs: u64,
    /// Time of these runs in nanoseconds.
    pub time_ns: u64,
    /// Mean time of a run in nanoseconds.
    pub ns_per_run: Option<u64>,
    /// Instructions that the verifier looked at to load it.
    pub verified_instructions: Option<u64>,
}

impl Row for ProgramRow {
    const NOUN: &'static str = "programs";
    const COLUMNS: &'static [Column] = &[
        Column::new("PROGRAM"),
        Column::new("RUNS"),
        Column::new("NS/RUN"),
        Column::wide("TIME-NS"),
        Column::wide("VERIFIED"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::Text(self.program.to_owned()),
            Cell::Number(self.runs),
            Cell::number(self.ns_per_run),
            Cell::Number(self.time_ns),
            Cell::number(self.verified_instructions),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(self.program.to_owned())
    }
}
