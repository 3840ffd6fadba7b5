//! All writes to the maps that result from plans: done, counted and logged in one place.
#![forbid(unsafe_code)]

use tracing::{debug, warn};

use crate::agent::Agent;
use lb_core::plan::{Applied, Plan};

impl Agent {
    /// Does a plan's writes. Those that failed come again in a later plan.
    pub(super) fn write(&mut self, plan: Plan) -> Applied {
        let start = self.start;
        let applied = self.planner.apply(plan, &mut self.maps, &mut || start.elapsed());
        let ours = &self.metrics.ours;
        ours.map_writes.inc_by(applied.writes as u64);
        ours.sync_failures.inc_by(applied.failed.len() as u64);
        for (write, err) in &applied.failed {
            debug!(?write, %err, "write failed");
            if err.full {
                // The object has an issue; there is nothing to wait for.
                ours.map_full.get_or_create(&[("map", err.map)]).inc();
            }
        }
        if let Some((_, err)) = applied.failed.iter().find(|(_, err)| !err.full) {
            warn!(map = err.map, failed = applied.failed.len(), %err, "writes failed, retrying");
        }
        applied
    }
}
