//! The metrics about traffic from outside.
#![forbid(unsafe_code)]

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{MetricLabels, add, family};

/// About traffic from outside, and about what backends leave behind.
#[derive(Clone, Debug)]
pub(crate) struct OutsideMetrics {
    /// Flows from outside that leave by an address and port of this node.
    pub masqueraded_flows: Gauge,
    /// The most ports that one backend takes.
    pub masquerade_ports_used: Gauge,
    /// The most of them that are held by flows which do not yield them to new ones.
    pub masquerade_ports_held: Gauge,
    /// Ports that each backend may take.
    pub masquerade_ports: Gauge,
    /// Loads of backends that were put right.
    pub loads_corrected: Counter,
    /// Whether externalIPs are served, and by what.
    pub external_ips: Family<MetricLabels<1>, Gauge>,
    /// UDP sockets of this host that were closed.
    pub sockets_closed: Counter,
}

impl OutsideMetrics {
    pub(super) fn register(root: &mut Registry) -> Self {
        let registry = root.sub_registry_with_prefix("lb");
        Self {
            masqueraded_flows: add(
                registry,
                "masqueraded_flows",
                "Flows from external clients to other nodes, at the last expiry pass",
                Gauge::default(),
            ),
            masquerade_ports_used: add(
                registry,
                "masquerade_ports_used",
                "Highest number of source ports in use with one backend, at the last expiry pass",
                Gauge::default(),
            ),
            masquerade_ports_held: add(
                registry,
                "masquerade_ports_held",
                "Highest number of source ports with one backend that a new flow cannot take over, at the last expiry pass",
                Gauge::default(),
            ),
            masquerade_ports: add(
                registry,
                "masquerade_ports",
                "Source ports available with each backend",
                Gauge::default(),
            ),
            loads_corrected: add(
                registry,
                "loads_corrected",
                "Corrections of backends' counts of live flows",
                Counter::default(),
            ),
            external_ips: add(
                registry,
                "external_ips_served",
                "1 if spec.externalIPs are served; decided by the flag or by the version of Kubernetes",
                family(),
            ),
            sockets_closed: add(
                registry,
                "sockets_closed",
                "UDP sockets of this host that were closed because their backend was removed",
                Counter::default(),
            ),
        }
    }
}
