//! The metrics about traffic from outside.
#![forbid(unsafe_code)]

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Labels, add, family};

/// About traffic from outside, and about what backends leave behind.
#[derive(Clone, Debug)]
pub(crate) struct Outside {
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
    pub external_ips: Family<Labels<1>, Gauge>,
    /// UDP sockets of this host that were closed.
    pub sockets_closed: Counter,
}

impl Outside {
    pub(super) fn register(root: &mut Registry) -> Self {
        let registry = root.sub_registry_with_prefix("lb");
        Self {
            masqueraded_flows: add(
                registry,
                "masqueraded_flows",
                "Flows from outside to other nodes, at the last pass",
                Gauge::default(),
            ),
            masquerade_ports_used: add(
                registry,
                "masquerade_ports_used",
                "The most source ports in use towards one backend, at the last pass",
                Gauge::default(),
            ),
            masquerade_ports_held: add(
                registry,
                "masquerade_ports_held",
                "The most source ports towards one backend that a new flow cannot take over, at the last pass",
                Gauge::default(),
            ),
            masquerade_ports: add(
                registry,
                "masquerade_ports",
                "Source ports there are towards each backend",
                Gauge::default(),
            ),
            loads_corrected: add(
                registry,
                "loads_corrected",
                "Numbers of live flows of backends that were put right",
                Counter::default(),
            ),
            external_ips: add(
                registry,
                "external_ips_served",
                "1 when spec.externalIPs are served; by the flag, or by the version of Kubernetes",
                family(),
            ),
            sockets_closed: add(
                registry,
                "sockets_closed",
                "UDP sockets of this host closed since their backend was gone",
                Counter::default(),
            ),
        }
    }
}
