//! The self-audit: reads the maps and compares them with what was written there.
//!
//! The loop is their only writer and keeps a record of what it wrote, so it would never find out on its own that something
//! else changed them. Every [`INTERVAL`], and whenever `lbctl diff` asks. Only `lbctl diff --repair` writes.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use tracing::{error, warn};

use crate::agent::Agent;
use lb_core::admin::audit::{AuditLine, AuditReport, LINES};
use lb_core::admin::{Request, Response};
use lb_core::plan::{Drift, MapError, MapStore as _, drift};

/// Time between two audits. One reads all maps: 20 ms with 10,000 Services.
pub(super) const INTERVAL: Duration = Duration::from_secs(600);

impl Agent {
    /// Answers a request that the maps are needed for; returns any other.
    pub(super) fn audit_request(&mut self, request: &Request) -> Option<Response> {
        let Request::Audit { repair } = request else { return None };
        Some(match self.audit(*repair) {
            Ok(report) => Response::Audit(report),
            Err(err) => Response::Error(format!("cannot read the maps: {err}")),
        })
    }

    /// Audits, without a repair.
    pub(super) fn audit_due(&mut self) {
        self.housekeeping.next_audit = Instant::now() + INTERVAL;
        if let Err(err) = self.audit(false) {
            warn!(%err, "cannot read the maps for an audit");
        }
    }

    fn audit(&mut self, repair: bool) -> Result<AuditReport, MapError> {
        let found = self.maps.load()?;
        let differing = drift(self.planner.actual(), &found);
        drop(found);
        let metric = self.metrics.records.audit_drift.clone();
        let count = |action: &'static str, n: u64| {
            metric.get_or_create(&[("action", action)]).inc_by(n);
        };
        let elements = differing.len() as u64;
        count("found", elements);
        if let Some(first) = differing.first() {
            let map = first.repair.map();
            error!(elements, map, element = %first.element, "maps differ from what was written: something else changed them; see `lbctl diff`");
        }
        let lines = differing.iter().flat_map(lines).take(LINES).collect();
        let mut repaired = 0;
        for Drift { repair: write, element, .. } in differing.iter().filter(|_| repair) {
            match self.maps.apply(write) {
                Ok(()) => repaired += 1,
                Err(err) => warn!(%err, map = write.map(), element, "cannot repair an element"),
            }
        }
        count("repaired", repaired);
        self.housekeeping.drifted = elements - repaired;
        self.housekeeping.touch();
        let pending = self.planner.n_pending() as u64;
        Ok(AuditReport { lines, elements, repaired, pending })
    }
}

fn lines(drift: &Drift) -> impl Iterator<Item = AuditLine> {
    drift.fields.iter().map(|field| AuditLine {
        map: drift.repair.map().to_owned(),
        element: drift.element.clone(),
        field: field.name.to_owned(),
        wanted: field.wanted.clone(),
        found: field.found.clone(),
    })
}
