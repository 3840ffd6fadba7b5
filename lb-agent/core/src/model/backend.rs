//! From the slices of a Service to the backends of one of its ports in one family.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::addr::Addr;

use super::topology::{self, Candidate, Hint, Rejection};
use super::{DesiredBackend, DesiredPort};
use crate::cluster::{Cluster, EndpointSlice, EndpointView, Name};

/// The backends of a service port.
pub(super) struct Chosen {
    /// In the order of [`DesiredPort::backends`].
    pub(super) backends: Vec<DesiredBackend>,
    /// As [`DesiredPort::anywhere`].
    pub(super) anywhere: bool,
}

/// Chooses the backends of a service port that has its frontends already.
///
/// A slice's port belongs to the service port of the same name and protocol. Its number is the slice's, so a named
/// target port may differ between slices. An endpoint that stands in two slices, as happens while it moves from one
/// to the other, counts once, with the better of its conditions.
pub(super) fn backends(
    cluster: &Cluster,
    slices: &[(Name, &EndpointSlice)],
    port: &DesiredPort,
) -> Chosen {
    let found = endpoints(slices, port);
    let candidates = candidates(cluster, &found);
    let choice = topology::choose(&candidates, port.lists());
    let chosen =
        found.into_iter().zip(choice.chosen).filter_map(|(((addr, port), found), choice)| {
            let (class, state) = choice?;
            Some(DesiredBackend { class, addr, port, state, is_pod: found.pod.is_some() })
        });
    let mut backends: Vec<_> = chosen.collect();
    backends.sort_by_key(|backend| (backend.class, backend.addr, backend.port));
    Chosen { backends, anywhere: choice.anywhere }
}

/// Returns the endpoints of a Service port that serve no client: address, port, reason.
pub(super) fn rejected(
    cluster: &Cluster,
    slices: &[(Name, &EndpointSlice)],
    port: &DesiredPort,
) -> Vec<(Addr, u16, Rejection)> {
    let found = endpoints(slices, port);
    let reasons = topology::rejections(&candidates(cluster, &found), port.lists());
    let rejected = found.into_keys().zip(reasons);
    rejected.filter_map(|((addr, port), reason)| Some((addr, port, reason?))).collect()
}

fn candidates(cluster: &Cluster, found: &Found<'_>) -> Vec<Candidate> {
    let zone = cluster.this_node().and_then(|node| node.zone.as_deref());
    let hint = |names: &[Arc<str>], own: Option<&str>| match (names, own) {
        ([], _) => Hint::Absent,
        (names, Some(own)) if names.iter().any(|name| **name == *own) => Hint::Here,
        (_, _) => Hint::Elsewhere,
    };
    let candidate = |endpoint: &EndpointView<'_>| {
        let hints = endpoint.hints;
        Candidate {
            conditions: endpoint.conditions,
            local: endpoint.node.is_some_and(|node| **node == *cluster.node_name()),
            zones: hint(hints.map(|hints| &*hints.zones).unwrap_or_default(), zone),
            nodes: hint(
                hints.map(|hints| &*hints.nodes).unwrap_or_default(),
                Some(cluster.node_name()),
            ),
        }
    };
    found.values().map(candidate).collect()
}

/// Endpoints by address and target port.
type Found<'a> = BTreeMap<(Addr, u16), EndpointView<'a>>;

fn endpoints<'a>(slices: &'a [(Name, &EndpointSlice)], port: &DesiredPort) -> Found<'a> {
    let mut found = Found::new();
    for (_, slice) in slices {
        if slice.family != port.family {
            continue;
        }
        let ports = slice.ports.iter();
        for target in ports.filter(|p| p.name == port.port_name && p.protocol == port.protocol) {
            for endpoint in &slice.endpoints {
                let best = found.entry((endpoint.addr, target.port)).or_insert(endpoint);
                if endpoint.conditions.rank() > best.conditions.rank() {
                    *best = endpoint;
                }
            }
        }
    }
    found
}
