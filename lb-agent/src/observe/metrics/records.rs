//! The metrics about what the agent takes for true: how long its watches have been silent, and whether its maps still say what was
//! written there.
#![forbid(unsafe_code)]

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{GaugeF64, MetricLabels, add, family};
use lb_core::cluster::Kind;

/// About watches and audits.
#[derive(Clone, Debug)]
pub(crate) struct RecordMetrics {
    /// Seconds since the last event, by resource.
    pub event_age: Family<MetricLabels<1>, GaugeF64>,
    /// The same under its former name.
    pub lag: Family<MetricLabels<1>, GaugeF64>,
    /// Elements of maps that differed from what was written, by what became known of them: found, repaired.
    pub audit_drift: Family<MetricLabels<1>, Counter>,
}

impl RecordMetrics {
    pub(super) fn register(root: &mut Registry) -> Self {
        let registry = root.sub_registry_with_prefix("lb");
        let metrics = Self {
            event_age: add(
                registry,
                "watch_event_age_seconds",
                "Time since the last event of the watch; high where nothing changes, so no sign of a delay",
                family(),
            ),
            lag: add(
                registry,
                "watch_lag_seconds",
                "Former name of lb_watch_event_age_seconds, for one release",
                family(),
            ),
            audit_drift: add(
                registry,
                "audit_drift",
                "Elements of maps that differed from what the agent wrote, found by its audits, and repaired by `lbctl diff --repair`",
                family(),
            ),
        };
        for kind in Kind::ALL {
            metrics.set_event_age(kind, 0);
        }
        for action in ["found", "repaired"] {
            drop(metrics.audit_drift.get_or_create(&[("action", action)]));
        }
        metrics
    }

    /// Sets the time since the last event of a resource.
    pub(crate) fn set_event_age(&self, kind: Kind, seconds: u64) {
        let labels = [("resource", kind.name())];
        self.event_age.get_or_create(&labels).set(seconds as f64);
        self.lag.get_or_create(&labels).set(seconds as f64);
    }
}
