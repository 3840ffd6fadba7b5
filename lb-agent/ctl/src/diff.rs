//! `lbctl diff`: elements of the maps that say something else than what the agent wrote.

use serde::Serialize;

use crate::columns::{Cell, Column, Row, Style};
use lb_core::admin::audit::{AuditLine, AuditReport};

/// Flags of `diff`.
#[derive(Clone, Debug, clap::Args)]
pub struct DiffArgs {
    /// Have the agent write what differs again; the only request to it that changes something
    #[arg(long)]
    pub repair: bool,
    /// How to print them
    #[command(flatten)]
    pub style: Style,
}

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiffRow {
    /// Map and element: `frontends 10.96.0.10:80/6`.
    pub object: String,
    /// The field; empty where the whole element is there on one side only.
    pub field: String,
    /// What the agent wrote.
    pub wanted: String,
    /// What the map says.
    pub found: String,
}

impl Row for DiffRow {
    const NOUN: &'static str = "differences";
    const COLUMNS: &'static [Column] =
        &[Column::new("OBJECT"), Column::new("FIELD"), Column::new("WANTED"), Column::new("FOUND")];

    fn cells(&self) -> Vec<Cell> {
        [&self.object, &self.field, &self.wanted, &self.found]
            .map(|text| Cell::Text(text.clone()))
            .into()
    }

    fn name(&self) -> Option<String> {
        Some(self.object.clone())
    }
}

/// The rows of a report.
pub fn rows(report: &AuditReport) -> Vec<DiffRow> {
    let row = |line: &AuditLine| DiffRow {
        object: format!("{} {}", line.map, line.element),
        field: line.field.clone(),
        wanted: line.wanted.clone(),
        found: line.found.clone(),
    };
    report.lines.iter().map(row).collect()
}

/// The sentence about all of it.
pub fn summary(report: &AuditReport) -> String {
    let AuditReport { elements, repaired, pending, .. } = report;
    let waits = match pending {
        0 => String::new(),
        n => format!("; {n} Services wait for a write, see `lbctl status`"),
    };
    match (elements, repaired) {
        (0, _) => format!("the maps say what the agent wrote{waits}"),
        (n, 0) => {
            format!("{n} elements differ: `lbctl diff --repair` has them written again{waits}")
        }
        (n, repaired) => format!("{repaired} of {n} elements were written again{waits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{rows, summary};
    use lb_core::admin::audit::{AuditLine, AuditReport};

    #[test]
    fn a_difference_is_a_row_and_the_summary_says_what_to_do() {
        let line = AuditLine {
            map: "frontends".into(),
            element: "10.96.0.10:80/6".into(),
            field: "n".into(),
            wanted: "2".into(),
            found: "1".into(),
        };
        let report = AuditReport { lines: vec![line], elements: 1, repaired: 0, pending: 0 };
        assert_eq!(rows(&report)[0].object, "frontends 10.96.0.10:80/6");
        assert_eq!(
            summary(&report),
            "1 elements differ: `lbctl diff --repair` has them written again"
        );
        let repaired = AuditReport { repaired: 1, pending: 2, ..report };
        assert_eq!(
            summary(&repaired),
            "1 of 1 elements were written again; 2 Services wait for a write, see `lbctl status`"
        );
        assert_eq!(summary(&AuditReport::default()), "the maps say what the agent wrote");
    }
}
