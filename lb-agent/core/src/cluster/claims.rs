//! Which Services want an address or a port of the nodes: more than one is a mistake of a user, and every change of
//! one is of interest to the others.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use lb_common::addr::Addr;

use super::{Dirty, Name, Service};

/// A port number and its IP protocol number.
type ClaimedPort = (u16, u8);

/// The Services by what they want.
#[derive(Debug)]
pub(super) struct Claims {
    /// (ClusterIP, Service).
    cluster_ips: BTreeSet<(Addr, Name)>,
    /// (address of a load balancer or of `spec.externalIPs`, port, Service).
    external: BTreeSet<(Addr, ClaimedPort, Name)>,
    /// (`nodePort`, Service).
    node_ports: BTreeSet<(ClaimedPort, Name)>,
    /// The least name, for the lower bound of a range.
    least: Name,
}

impl Default for Claims {
    fn default() -> Self {
        let empty: Arc<str> = "".into();
        Self {
            cluster_ips: BTreeSet::new(),
            external: BTreeSet::new(),
            node_ports: BTreeSet::new(),
            least: Name { namespace: Arc::clone(&empty), name: empty },
        }
    }
}

impl Claims {
    pub(super) fn insert(&mut self, name: &Name, service: &Service) {
        self.cluster_ips.extend(service.cluster_ips.iter().map(|addr| (*addr, name.clone())));
        self.external.extend(externals(service).map(|(addr, port)| (addr, port, name.clone())));
        self.node_ports.extend(node_ports(service).map(|port| (port, name.clone())));
    }

    pub(super) fn remove(&mut self, name: &Name, service: &Service) {
        for addr in &service.cluster_ips {
            self.cluster_ips.remove(&(*addr, name.clone()));
        }
        for (addr, port) in externals(service) {
            self.external.remove(&(addr, port, name.clone()));
        }
        for port in node_ports(service) {
            self.node_ports.remove(&(port, name.clone()));
        }
    }

    /// Those with this ClusterIP.
    pub(super) fn of_cluster_ip(&self, addr: &Addr) -> impl Iterator<Item = &Name> + use<'_> {
        let addr = *addr;
        let from = (addr, self.least.clone());
        let found = self.cluster_ips.range(from..).take_while(move |(a, _)| *a == addr);
        found.map(|(_, name)| name)
    }

    /// Those with this address outside the cluster, as often as they have ports.
    pub(super) fn of_addr(&self, addr: &Addr) -> impl Iterator<Item = &Name> + use<'_> {
        let addr = *addr;
        let from = (addr, (0, 0), self.least.clone());
        let found = self.external.range(from..).take_while(move |(a, ..)| *a == addr);
        found.map(|(.., name)| name)
    }

    /// Whether some Service has this address.
    pub(super) fn has(&self, addr: &Addr) -> bool {
        self.of_cluster_ip(addr).next().is_some() || self.of_addr(addr).next().is_some()
    }

    /// Those with this port at this address outside the cluster.
    pub(super) fn of_external(
        &self,
        addr: Addr,
        port: ClaimedPort,
    ) -> impl Iterator<Item = &Name> + use<'_> {
        let from = (addr, port, self.least.clone());
        let same = move |(a, p, _): &&(Addr, ClaimedPort, Name)| (*a, *p) == (addr, port);
        self.external.range(from..).take_while(same).map(|(.., name)| name)
    }

    /// Those with this port of the nodes.
    pub(super) fn of_node_port(&self, port: ClaimedPort) -> impl Iterator<Item = &Name> + use<'_> {
        let from = (port, self.least.clone());
        let found = self.node_ports.range(from..).take_while(move |(p, _)| *p == port);
        found.map(|(_, name)| name)
    }

    /// All with this address outside the cluster become dirty.
    pub(super) fn touch_addr(&self, addr: &Addr, dirty: &mut Dirty) {
        dirty.services.extend(self.of_addr(addr).cloned());
    }

    /// All with an address outside the cluster become dirty.
    pub(super) fn touch_external(&self, dirty: &mut Dirty) {
        dirty.services.extend(self.external.iter().map(|(.., name)| name.clone()));
    }

    /// All with a port of the nodes become dirty.
    pub(super) fn touch_node_ports(&self, dirty: &mut Dirty) {
        dirty.services.extend(self.node_ports.iter().map(|(_, name)| name.clone()));
    }

    /// Whoever may gain or lose a frontend by a change of this Service becomes dirty. `node` are addresses of this
    /// node, where a port of the nodes and one of a load balancer may meet.
    pub(super) fn touch_rivals(&self, service: &Service, node: &[Addr], dirty: &mut Dirty) {
        for addr in &service.cluster_ips {
            dirty.services.extend(self.of_cluster_ip(addr).cloned());
            self.touch_addr(addr, dirty);
        }
        for (_, port) in externals(service) {
            dirty.services.extend(self.of_node_port(port).cloned());
        }
        // The oldest with an address answers for all of it, whatever the ports.
        service.external_addrs().for_each(|addr| self.touch_addr(&addr, dirty));
        for port in node_ports(service) {
            dirty.services.extend(self.of_node_port(port).cloned());
            for addr in node {
                dirty.services.extend(self.of_external(*addr, port).cloned());
            }
        }
    }

    /// Packs the tree that every Service is in: it has grown in order and is little more than half full.
    pub(super) fn pack(&mut self) {
        self.cluster_ips = std::mem::take(&mut self.cluster_ips).into_iter().collect();
    }
}

fn externals(service: &Service) -> impl Iterator<Item = (Addr, ClaimedPort)> {
    let ports = || service.ports.iter().map(|port| (port.port, port.protocol));
    service.external_addrs().flat_map(move |addr| ports().map(move |port| (addr, port)))
}

fn node_ports(service: &Service) -> impl Iterator<Item = ClaimedPort> {
    let ports = service.ports.iter();
    ports.filter_map(|port| Some((port.node_port?.into(), port.protocol)))
}
