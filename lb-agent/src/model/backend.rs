//! From the slices of a Service to the backends of one of its ports in one family.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use lb_common::addr::Addr;

use super::DesiredBackend;
use super::topology::{self, Candidate};
use crate::cluster::{Cluster, Conditions, Endpoint, EndpointSlice, Family, Name, ServicePort};

/// The backends of a service port, in the order of [`super::DesiredPort::backends`].
///
/// A slice's port belongs to the service port of the same name and protocol. Its number is the slice's, so a named
/// target port may differ between slices. An endpoint that stands in two slices, as happens while it moves from one
/// to the other, counts once, with the better of its conditions.
pub(super) fn backends(
    cluster: &Cluster,
    slices: &[(Name, &EndpointSlice)],
    port: &ServicePort,
    family: Family,
) -> Vec<DesiredBackend> {
    let found = endpoints(slices, port, family);
    let candidate = |endpoint: &&Endpoint| Candidate {
        conditions: endpoint.conditions,
        local: endpoint.node.as_deref() == Some(cluster.node_name()),
    };
    let candidates: Vec<_> = found.values().map(candidate).collect();
    let choices = topology::choose(&candidates);
    let chosen = found.into_keys().zip(choices).filter_map(|((addr, port), choice)| {
        let (class, state) = choice?;
        Some(DesiredBackend { class, addr, port, state })
    });
    let mut backends: Vec<_> = chosen.collect();
    backends.sort_by_key(|backend| (backend.class, backend.addr, backend.port));
    backends
}

/// Endpoints by address and target port.
type Found<'a> = BTreeMap<(Addr, u16), &'a Endpoint>;

fn endpoints<'a>(
    slices: &'a [(Name, &EndpointSlice)],
    port: &ServicePort,
    family: Family,
) -> Found<'a> {
    let mut found = Found::new();
    for (_, slice) in slices {
        if slice.family != family {
            continue;
        }
        let ports = slice.ports.iter();
        for target in ports.filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in &slice.endpoints {
                let best = found.entry((endpoint.addr, target.port)).or_insert(endpoint);
                if rank(endpoint.conditions) > rank(best.conditions) {
                    *best = endpoint;
                }
            }
        }
    }
    found
}

/// How useful an endpoint with these conditions is; more is better.
fn rank(conditions: Conditions) -> u8 {
    match conditions {
        Conditions { ready: true, .. } => 2,
        Conditions { serving: true, terminating: true, .. } => 1,
        Conditions { .. } => 0,
    }
}
