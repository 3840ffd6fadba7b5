//! The name table, indexed for lookups: what an id, an ifindex or an address is called.
//!
//! With no name table it is empty and everything is called by its number.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::addr::Addr;
use lb_common::service::Backend;

use crate::network;
use crate::snapshot::TableSnapshot;
use lb_core::names::{BackendName, EndpointConditions, Names, Place, PodName, ServiceName};

/// Names by number.
#[derive(Clone, Debug, Default)]
pub struct Directory<'n> {
    /// This node's name, empty when not known.
    pub node: &'n str,
    services: HashMap<u32, &'n ServiceName<'static>>,
    backends: HashMap<u32, &'n BackendName<'static>>,
    pods: HashMap<u32, &'n PodName<'static>>,
    places: &'n [Place<'static>],
    by_ip: HashMap<IpAddr, String>,
    ifindexes: HashMap<Addr, u32>,
}

impl<'n> Directory<'n> {
    /// Indexes `names`. Addresses are those of the maps: Pods of this node, then endpoints with a Pod.
    pub fn new(names: &'n Names<'static>, snapshot: &TableSnapshot) -> Self {
        let mut directory = Self {
            node: &names.node,
            services: names.services.iter().map(|service| (service.id, service)).collect(),
            backends: names.backends.iter().map(|backend| (backend.id, backend)).collect(),
            pods: names.pods.iter().map(|pod| (pod.ifindex, pod)).collect(),
            places: &names.places,
            by_ip: HashMap::new(),
            ifindexes: HashMap::new(),
        };
        let named = snapshot.backends.iter().filter_map(|(id, backend)| {
            let name = directory.backend(*id).filter(|name| !name.pod.is_empty())?;
            Some((name.conditions, name.pod.as_ref(), backend.addr.to_ip()))
        });
        // Of several Pods with one address the one that is not going, as the maps are in no order: it comes last.
        let mut named: Vec<_> = named.collect();
        let going = |of: EndpointConditions| {
            !matches!(of, EndpointConditions::Ready | EndpointConditions::NotReady)
        };
        named.sort_unstable_by_key(|(of, pod, _)| Reverse((going(*of), *of, *pod)));
        let named = named.into_iter().map(|(_, pod, ip)| (ip, pod.to_owned()));
        directory.by_ip.extend(named);
        for (ifindex, pod) in &snapshot.pods {
            let addresses = [pod.ip4, pod.ip6].into_iter().filter(|addr| *addr != Addr::NONE);
            directory.ifindexes.extend(addresses.map(|addr| (addr, *ifindex)));
            if let Some(name) = directory.pod(*ifindex).filter(|name| !name.name.is_empty()) {
                let name = format!("{}/{}", name.namespace, name.name);
                for addr in [pod.ip4, pod.ip6].into_iter().filter_map(network::ip) {
                    directory.by_ip.insert(addr, name.clone());
                }
            }
        }
        directory
    }

    /// Learns who has addresses that are not in the maps, such as Pods of other nodes.
    pub fn learn(&mut self, owners: impl IntoIterator<Item = (IpAddr, String)>) {
        for (addr, name) in owners {
            self.by_ip.entry(addr).or_insert(name);
        }
    }

    /// The service port with this id.
    pub fn service(&self, id: u32) -> Option<&'n ServiceName<'static>> {
        self.services.get(&id).copied().filter(|_| id != 0)
    }

    /// The backend with this id.
    pub fn backend(&self, id: u32) -> Option<&'n BackendName<'static>> {
        self.backends.get(&id).copied()
    }

    /// The Pod behind this veth.
    pub fn pod(&self, ifindex: u32) -> Option<&'n PodName<'static>> {
        self.pods.get(&ifindex).copied()
    }

    /// Node and zone of a backend.
    pub fn place(&self, backend: Option<&BackendName<'_>>) -> Option<&'n Place<'static>> {
        self.place_at(backend?.place)
    }

    /// The place with this number, counted from 1.
    pub fn place_at(&self, number: u32) -> Option<&'n Place<'static>> {
        self.places.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    /// Whether a backend is a Pod of this node.
    pub fn is_local(&self, id: u32, backend: &Backend) -> bool {
        let node = self.place(self.backend(id)).map(|place| place.node.as_ref());
        self.ifindexes.contains_key(&backend.addr)
            || node.is_some_and(|node| !node.is_empty() && node == self.node)
    }

    /// ifindex of the veth of the Pod of this node that has the address, or 0.
    pub fn ifindex_of(&self, addr: &Addr) -> u32 {
        self.ifindexes.get(addr).copied().unwrap_or_default()
    }

    /// `namespace/name:port` of a service port, or its id as `#7`.
    pub fn service_port(&self, id: u32) -> String {
        match self.service(id) {
            Some(service) => format!("{}:{}", service_name(service), port_word(service)),
            None => format!("#{id}"),
        }
    }

    /// `namespace/name` of the Pod with this address.
    pub fn pod_at(&self, ip: IpAddr) -> Option<&str> {
        self.by_ip.get(&ip).map(String::as_str)
    }

    /// `pod:port` when the address is a Pod's, else `address:port`.
    pub fn host(&self, ip: IpAddr, port: u16) -> String {
        match self.pod_at(ip) {
            Some(pod) => format!("{pod}:{port}"),
            None => std::net::SocketAddr::new(ip, port).to_string(),
        }
    }

    /// All addresses of the Pod `namespace/name`.
    pub fn ips_of(&self, pod: &str) -> Vec<IpAddr> {
        self.by_ip.iter().filter(|(_, name)| *name == pod).map(|(ip, _)| *ip).collect()
    }
}

/// `namespace/name` of a Service.
pub fn service_name(service: &ServiceName<'_>) -> String {
    format!("{}/{}", service.namespace, service.name)
}

/// The port of a Service by its name, or by its number when it has none.
pub fn port_word(service: &ServiceName<'_>) -> String {
    if service.port_name.is_empty() {
        service.port.to_string()
    } else {
        service.port_name.to_string()
    }
}
