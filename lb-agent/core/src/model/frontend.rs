//! From a Service to the frontends of its ports, and who keeps an address that two Services claim.
#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroI64;

use lb_common::addr::Addr;
use lb_common::flow::proto;

use crate::cluster::{Cluster, Family, Name, Service, ServicePort};
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
    let others = cluster.claimants(addr).filter_map(|other| cluster.service(other));
    others.filter(move |other| own.is_some_and(|own| is_older(*other, own)))
}

/// Whether a Service keeps what both it and another want: the older does, then the first by name.
pub(super) fn is_older(one: (&Name, &Service), other: (&Name, &Service)) -> bool {
    one.0 != other.0 && age(one, other) == Ordering::Less
}

/// The loopback address at which host processes reach NodePorts.
pub(super) fn localhost(family: Family) -> Addr {
    match family {
        Family::V4 => Addr::from_ip(Ipv4Addr::LOCALHOST.into()),
        Family::V6 => Addr::from_ip(Ipv6Addr::LOCALHOST.into()),
    }
}

/// Whether it is one of those.
pub(super) fn is_localhost(addr: &Addr) -> bool {
    *addr == localhost(Family::of(addr))
}

fn age(a: (&Name, &Service), b: (&Name, &Service)) -> Ordering {
    let key = |created: Option<NonZeroI64>| created.map_or(i64::MAX, NonZeroI64::get);
    key(a.1.created).cmp(&key(b.1.created)).then_with(|| a.0.cmp(b.0))
}

/// The name of a protocol in `spec.ports[].protocol`.
pub(super) fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        _ => "other",
    }
}
