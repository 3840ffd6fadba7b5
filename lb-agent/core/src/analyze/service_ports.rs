//! Where Services lead, as far as policies ask for their ports.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use lb_common::addr::Addr;

use crate::cluster::{Cluster, Name, Policy, PortSpec};

/// Ports of Services, or of their Pods, that policies ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServicePorts(Vec<AskedPort>);

#[derive(Clone, Debug)]
struct AskedPort {
    service: Name,
    port: u16,
    protocol: u8,
    /// The port of the Pods.
    target: u16,
    /// The Pods behind it.
    addrs: BTreeSet<Addr>,
}

impl ServicePorts {
    /// Those that these policies ask for by number.
    pub(crate) fn of<'a>(
        cluster: &Cluster,
        policies: impl IntoIterator<Item = &'a Policy>,
    ) -> Self {
        let asked: BTreeSet<u16> = policies.into_iter().flat_map(asked_ports).collect();
        let mut found = Vec::new();
        if asked.is_empty() {
            return Self(found);
        }
        for (name, service) in cluster.services() {
            for (_, slice) in cluster.slices_of(name) {
                for target in &slice.ports {
                    let of_slice = service.ports.iter().filter(|port| {
                        *port.name == *target.name && port.protocol == target.protocol
                    });
                    let of_slice = of_slice
                        .filter(|port| asked.contains(&port.port) || asked.contains(&target.port));
                    found.extend(of_slice.map(|port| AskedPort {
                        service: name.clone(),
                        port: port.port,
                        protocol: port.protocol,
                        target: target.port,
                        addrs: slice.endpoints.iter().map(|endpoint| endpoint.addr).collect(),
                    }));
                }
            }
        }
        Self(found)
    }

    /// The first Service through which one of the addresses is reached at a port, and the port behind which it listens, unless one of
    /// them listens at the asked port itself.
    pub(super) fn behind(
        &self,
        (asked, protocol): (u16, Option<u8>),
        addrs: &BTreeSet<Addr>,
    ) -> Option<(&Name, u16)> {
        let of_protocol = |port: &&AskedPort| protocol.is_none_or(|it| it == port.protocol);
        let of_them = |port: &&AskedPort| !port.addrs.is_disjoint(addrs);
        let ports = || self.0.iter().filter(of_protocol).filter(of_them);
        if ports().any(|port| port.target == asked) {
            return None;
        }
        let through = ports().filter(|port| port.port == asked);
        through.map(|port| (&port.service, port.target)).min()
    }
}

/// The single ports in the rules of a policy.
fn asked_ports(policy: &Policy) -> impl Iterator<Item = u16> + '_ {
    let rules = [&policy.ingress, &policy.egress].into_iter().flatten().flatten();
    let ports = rules.flat_map(|rule| rule.ports.iter().flatten());
    ports.filter_map(|port| match &port.ports {
        PortSpec::Range(first, last) if first == last => Some(*first),
        PortSpec::Range(..) | PortSpec::Named(_) | PortSpec::All => None,
    })
}
