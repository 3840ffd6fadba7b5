//! The endpoints that serve no client, with the reasons.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::net::SocketAddr;

use lb_common::addr::Addr;

use super::{EndpointCounts, Places, TableFacts, conditions, counts, endpoint, pod_of};
use lb_core::cluster::Name;
use lb_core::model::topology::Rejection;
use lb_core::model::{Desired, DesiredPort};
use lb_core::names::{EndpointConditions, RejectedName};

/// Most service ports have none, which shows without asking for the reasons: all their endpoints are backends.
pub(super) fn rejected_of<'a>(
    known: &TableFacts<'a>,
    service: &'a Name,
    port: &'a DesiredPort,
    service_id: u32,
    places: &mut Places<'a>,
) -> Vec<RejectedName<'a>> {
    let EndpointCounts { endpoints, .. } = counts(known.cluster, service, port);
    if endpoints == port.backends.len() {
        return Vec::new();
    }
    let rejected = Desired::rejected(known.cluster, service, port).into_iter();
    let line = |(addr, number, why): (Addr, u16, Rejection)| {
        let found = endpoint(known.cluster, service, &addr);
        RejectedName {
            service_id,
            endpoint: SocketAddr::new(addr.to_ip(), number),
            pod: pod_of(service, found),
            place: found.map_or(0, |found| places.of(found)),
            conditions: found.map_or(EndpointConditions::Gone, conditions),
            why: Cow::Borrowed(why.name()),
        }
    };
    rejected.map(line).collect()
}
