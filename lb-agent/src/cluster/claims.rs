//! Which Services want an address or a port of the nodes: more than one is a mistake of a user, and every change of
//! one is of interest to the others.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use lb_common::addr::Addr;

use super::{Dirty, Name, Service};

/// The Services by what they want.
#[derive(Debug)]
pub(super) struct Claims {
    /// (ClusterIP, Service).
    cluster_ips: BTreeSet<(Addr, Name)>,
    /// (address of a load balancer or of `spec.externalIPs`, Service).
    external: BTreeSet<(Addr, Name)>,
    /// (`nodePort`, Service).
    node_ports: BTreeSet<(u16, Name)>,
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
        self.external.extend(service.external_addrs().map(|addr| (addr, name.clone())));
        self.node_ports.extend(node_ports(service).map(|port| (port, name.clone())));
    }

    pub(super) fn remove(&mut self, name: &Name, service: &Service) {
        for addr in &service.cluster_ips {
            self.cluster_ips.remove(&(*addr, name.clone()));
        }
        for addr in service.external_addrs() {
            self.external.remove(&(addr, name.clone()));
        }
        for port in node_ports(service) {
            self.node_ports.remove(&(port, name.clone()));
        }
    }

    /// Those with this ClusterIP.
    pub(super) fn of_cluster_ip(&self, addr: &Addr) -> impl Iterator<Item = &Name> + use<'_> {
        of(&self.cluster_ips, *addr, &self.least)
    }

    /// Those with this address outside the cluster.
    pub(super) fn of_external(&self, addr: &Addr) -> impl Iterator<Item = &Name> + use<'_> {
        of(&self.external, *addr, &self.least)
    }

    /// Those with this port of the nodes, of whatever protocol.
    pub(super) fn of_node_port(&self, port: u16) -> impl Iterator<Item = &Name> {
        of(&self.node_ports, port, &self.least)
    }

    /// All with an address outside the cluster become dirty.
    pub(super) fn touch_external(&self, dirty: &mut Dirty) {
        dirty.services.extend(self.external.iter().map(|(_, name)| name.clone()));
    }

    /// All with a port of the nodes become dirty.
    pub(super) fn touch_node_ports(&self, dirty: &mut Dirty) {
        dirty.services.extend(self.node_ports.iter().map(|(_, name)| name.clone()));
    }

    /// Whoever may gain or lose a frontend by a change of this Service becomes dirty. `node` are the addresses of
    /// this node, where a port of the nodes and one of a load balancer may meet.
    pub(super) fn touch_rivals(&self, service: &Service, node: &[Addr], dirty: &mut Dirty) {
        for addr in &service.cluster_ips {
            dirty.services.extend(self.of_cluster_ip(addr).cloned());
            dirty.services.extend(self.of_external(addr).cloned());
        }
        let mut outside = false;
        for addr in service.external_addrs() {
            outside = true;
            dirty.services.extend(self.of_external(&addr).cloned());
        }
        for port in service.ports.iter().filter(|_| outside) {
            dirty.services.extend(self.of_node_port(port.port).cloned());
        }
        let mut open = false;
        for port in node_ports(service) {
            open = true;
            dirty.services.extend(self.of_node_port(port).cloned());
        }
        for addr in node.iter().filter(|_| open) {
            dirty.services.extend(self.of_external(addr).cloned());
        }
    }

    /// Packs the trees, which have grown in order and are little more than half full.
    pub(super) fn pack(&mut self) {
        self.cluster_ips = std::mem::take(&mut self.cluster_ips).into_iter().collect();
    }
}

fn of<'a, K: Ord + Copy>(
    set: &'a BTreeSet<(K, Name)>,
    key: K,
    least: &Name,
) -> impl Iterator<Item = &'a Name> + use<'a, K> {
    set.range((key, least.clone())..).take_while(move |(k, _)| *k == key).map(|(_, name)| name)
}

fn node_ports(service: &Service) -> impl Iterator<Item = u16> {
    service.ports.iter().filter_map(|port| port.node_port).map(Into::into)
}
