//! From a Service to the frontends of its ports, and who keeps an address that two Services claim.
#![forbid(unsafe_code)]

use std::cmp::Ordering;

use lb_common::addr::Addr;
use lb_common::flow::proto;

use crate::cluster::{Cluster, Name, Service, ServicePort};
use crate::issue::{Issue, ObjectRef};

/// Whether the frontend at `addr` of this port belongs to the Service; if an older one has it, that one's name.
///
/// The API server gives each ClusterIP to one Service; only manifests can contradict each other. The older Service
/// keeps the frontend (those without a creation time come last), then the first by name, so that the outcome does
/// not depend on the order in which they were read.
pub(super) fn owner<'a>(
    cluster: &'a Cluster,
    name: &'a Name,
    addr: &'a Addr,
    port: &'a ServicePort,
) -> Result<(), &'a Name> {
    let taken = |other: &Service| {
        other.ports.iter().any(|p| p.port == port.port && p.protocol == port.protocol)
    };
    match older_claimants(cluster, name, addr).find(|(_, other)| taken(other)) {
        Some((older, _)) => Err(older),
        None => Ok(()),
    }
}

/// Whether the Service refuses the undefined ports of `addr`: the oldest of those that claim it does.
pub(super) fn owns_wildcard(cluster: &Cluster, name: &Name, addr: &Addr) -> bool {
    older_claimants(cluster, name, addr).next().is_none()
}

/// The issue on the Service that does not get a frontend.
pub(super) fn contested(name: &Name, addr: &Addr, port: &ServicePort, owner: &Name) -> Issue {
    let (number, protocol) = (port.port, protocol_name(port.protocol));
    Issue::new(
        ObjectRef::new("Service", name),
        "spec.clusterIPs",
        format!("{addr} port {number}/{protocol} belongs to the older Service {owner}: not served"),
    )
}

fn older_claimants<'a>(
    cluster: &'a Cluster,
    name: &'a Name,
    addr: &'a Addr,
) -> impl Iterator<Item = (&'a Name, &'a Service)> {
    let own = cluster.service(name);
    cluster.claimants(addr).filter_map(|other| cluster.service(other)).filter(move |other| {
        own.is_some_and(|own| other.0 != own.0 && age(*other, own) == Ordering::Less)
    })
}

fn age(a: (&Name, &Service), b: (&Name, &Service)) -> Ordering {
    let key = |created: Option<i64>| created.unwrap_or(i64::MAX);
    key(a.1.created).cmp(&key(b.1.created)).then_with(|| a.0.cmp(b.0))
}

/// The name of a protocol in `spec.ports[].protocol`.
fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        _ => "other",
    }
}
