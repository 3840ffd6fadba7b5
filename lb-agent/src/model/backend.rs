//! From the slices of a Service to the backends of one of its ports in one family.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

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
    let candidates: Vec<_> = found.values().map(|(_, endpoint)| candidate(endpoint)).collect();
    let choices = topology::choose(&candidates);
    let chosen = found.into_iter().zip(choices).filter_map(|(found, choice)| {
        let ((addr, port), (namespace, endpoint)) = found;
        let (class, state) = choice?;
        let pod = endpoint
            .pod
            .as_ref()
            .map(|pod| Name { namespace: Arc::clone(namespace), name: Arc::clone(pod) });
        let (node, zone) = (endpoint.node.clone(), endpoint.zone.clone());
        Some(DesiredBackend { class, addr, port, state, pod, node, zone })
    });
    let mut backends: Vec<_> = chosen.collect();
    backends.sort_by_key(|backend| (backend.class, backend.addr, backend.port));
    backends
}

/// Endpoints by address and target port; with each the namespace it is in.
type Found<'a> = BTreeMap<(Addr, u16), (&'a Arc<str>, &'a Endpoint)>;

fn endpoints<'a>(
    slices: &'a [(Name, &EndpointSlice)],
    port: &ServicePort,
    family: Family,
) -> Found<'a> {
    let mut found = Found::new();
    for (name, slice) in slices {
        if slice.family != family {
            continue;
        }
        let ports = slice.ports.iter();
        for target in ports.filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in &slice.endpoints {
                let entry = (&name.namespace, endpoint);
                let best = found.entry((endpoint.addr, target.port)).or_insert(entry);
                if rank(endpoint.conditions) > rank(best.1.conditions) {
                    *best = entry;
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
