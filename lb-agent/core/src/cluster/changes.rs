//! What an event changes in the tables, in the indices beside them, and which services it touches.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lb_common::addr::Addr;

use super::table::Listing;
use super::{
    Cluster, Dirty, EndpointSlice, Kind, Name, Namespace, Node, Pod, PodScope, Policy, Service,
    ServiceCidr,
};

impl Cluster {
    pub(super) fn put_service(&mut self, mut name: Name, mut service: Service, dirty: &mut Dirty) {
        self.strings.share(&mut name.namespace);
        name = self.known(name);
        for port in &mut service.ports {
            self.strings.share(&mut port.name);
        }
        self.strings.share_labels(&mut service.selector);
        if self.services.get(&name).is_some_and(|old| *old == service) {
            // A change of something we do not look at.
            self.services.repeated(&name);
            return;
        }
        self.unclaim(&name, dirty);
        self.claims.insert(&name, &service);
        self.touch_rivals(&service, dirty);
        dirty.services.insert(name.clone());
        self.services.insert(name, service);
    }

    pub(super) fn remove_service(&mut self, name: &Name, dirty: &mut Dirty) {
        self.unclaim(name, dirty);
        if self.services.remove(name).is_some() {
            dirty.services.insert(name.clone());
        }
    }

    /// Takes back the claims of a Service; its rivals become dirty.
    fn unclaim(&mut self, name: &Name, dirty: &mut Dirty) {
        let Some(old) = self.services.get(name) else { return };
        self.claims.remove(name, old);
        self.touch_rivals(old, dirty);
    }

    fn touch_rivals(&self, service: &Service, dirty: &mut Dirty) {
        // Until everything is known, all that there is is dirty anyway.
        if self.synced() {
            let node = self.this_node().map(|node| &*node.addresses).unwrap_or_default();
            self.claims.touch_rivals(service, node, dirty);
            self.claims.touch_rivals(service, &self.host, dirty);
        }
    }

    pub(super) fn put_slice(
        &mut self,
        mut name: Name,
        mut slice: EndpointSlice,
        dirty: &mut Dirty,
    ) {
        self.share_slice(&mut name, &mut slice);
        let service = Name::new(Arc::clone(&name.namespace), Arc::clone(&slice.service));
        let service = self.known(service);
        slice.service = Arc::clone(&service.name);
        for endpoint in &slice.endpoints {
            self.uses.add(&endpoint.addr);
            self.ended.begins(&endpoint.addr);
        }
        if self.slices.get(&name).is_some_and(|old| old.service != slice.service) {
            self.remove_slice(&name, dirty);
        }
        if self.nodes.is_synced() && self.has_stray(&slice) {
            dirty.policies |= !self.has_strays;
            self.has_strays = true;
        }
        self.touch_if_api_server(&service, dirty);
        self.slices_of.insert((service.clone(), Arc::clone(&name.name)));
        if let Some(old) = self.slices.insert(name, slice) {
            self.release_endpoints(&old);
        }
        dirty.services.insert(service);
    }

    /// Whether a Pod of a node has an address outside of the ranges of that node: the CNI plugin takes it from elsewhere.
    fn has_stray(&self, slice: &EndpointSlice) -> bool {
        !self.knows_all_pods()
            && slice.endpoints.iter().any(|endpoint| {
                let named = endpoint.node.filter(|_| endpoint.pod.is_some());
                let name = named.map(|node| Name::new(Arc::clone(&self.empty), Arc::clone(node)));
                let Some(node) = name.and_then(|name| self.nodes.get(&name)) else { return false };
                // Those of the host network have the node's own.
                !node.addresses.contains(&endpoint.addr)
                    && !node.pod_cidrs.iter().any(|range| range.contains(&endpoint.addr))
            })
    }

    /// The name of a Service with the strings that other records have already.
    fn known(&self, name: Name) -> Name {
        if let Some(known) = self.services.key(&name) {
            return known.clone();
        }
        let start = (name, Arc::clone(&self.empty));
        match self.slices_of.range(&start..).next() {
            Some((known, _)) if *known == start.0 => known.clone(),
            Some(_) | None => start.0,
        }
    }

    fn share_slice(&mut self, name: &mut Name, slice: &mut EndpointSlice) {
        self.strings.share(&mut name.namespace);
        for port in &mut slice.ports {
            self.strings.share(&mut port.name);
        }
        slice.endpoints.places_mut().for_each(|place| self.strings.share_place(place));
        for hints in slice.endpoints.hints_mut() {
            let names = hints.zones.iter_mut().chain(&mut hints.nodes);
            names.for_each(|name| self.strings.share(name));
        }
    }

    pub(super) fn remove_slice(&mut self, name: &Name, dirty: &mut Dirty) {
        let Some(old) = self.slices.remove(name) else { return };
        self.release_endpoints(&old);
        let service = Name::new(Arc::clone(&name.namespace), Arc::clone(&old.service));
        self.slices_of.remove(&(service.clone(), Arc::clone(&name.name)));
        self.touch_if_api_server(&service, dirty);
        dirty.services.insert(service);
    }

    /// No Service may have the address of the API server outside the cluster.
    fn touch_if_api_server(&self, service: &Name, dirty: &mut Dirty) {
        if is_api_server(service) {
            self.touch_external(dirty);
        }
    }

    pub(super) fn touch_external(&self, dirty: &mut Dirty) {
        if self.synced() {
            self.claims.touch_external(dirty);
        }
    }

    pub(super) fn put_pod(&mut self, mut name: Name, mut pod: Pod, dirty: &mut Dirty) {
        self.share_pod(&mut name, &mut pod);
        if self.pods.get(&name).is_some_and(|old| *old == pod) {
            // A change of something we do not look at.
            self.pods.repeated(&name);
            return;
        }
        dirty.policies = true;
        let own = self.is_own(&pod);
        for addr in &pod.ips {
            self.uses.add(addr);
            if own {
                self.claims.touch_addr(addr, dirty);
            }
        }
        let (ips, host_network) = (pod.ips.clone(), pod.host_network);
        let kube_proxy = own && pod.kube_proxy;
        if let Some(old) = self.pods.insert(name.clone(), pod) {
            self.forget_pod(&name, &old, dirty);
        }
        if kube_proxy {
            self.kube_proxies.insert(name.clone());
        }
        if own && !host_network {
            for addr in ips {
                let names = self.pod_at.entry(addr).or_default();
                if !names.contains(&name) {
                    names.push(name.clone());
                }
            }
        }
    }

    fn share_pod(&mut self, name: &mut Name, pod: &mut Pod) {
        self.strings.share(&mut name.namespace);
        self.strings.share(&mut pod.node);
        self.strings.share_labels(&mut pod.labels);
        for port in &mut pod.ports {
            self.strings.share(&mut port.name);
        }
    }

    pub(super) fn remove_pod(&mut self, name: &Name, dirty: &mut Dirty) {
        if let Some(old) = self.pods.remove(name) {
            dirty.policies = true;
            self.forget_pod(name, &old, dirty);
        }
    }

    /// Takes back what a Pod has in the indices.
    fn forget_pod(&mut self, name: &Name, old: &Pod, dirty: &mut Dirty) {
        self.release(old.ips.iter().copied());
        if !self.is_own(old) {
            return;
        }
        self.kube_proxies.remove(name);
        for addr in &old.ips {
            self.claims.touch_addr(addr, dirty);
            if let Some(names) = self.pod_at.get_mut(addr) {
                names.retain(|known| known != name);
                if names.is_empty() {
                    self.pod_at.remove(addr);
                }
            }
        }
    }

    pub(super) fn put_namespace(
        &mut self,
        mut name: Name,
        mut namespace: Namespace,
        dirty: &mut Dirty,
    ) {
        self.strings.share(&mut name.name);
        self.strings.share_labels(&mut namespace.labels);
        let old = self.namespaces.get(&name);
        dirty.policies |= old.is_none_or(|old| old.labels != namespace.labels);
        dirty.policies |= if namespace.terminating {
            self.retained.going(&name.name)
        } else {
            self.retained.stays(&name.name)
        };
        self.namespaces.insert(name, namespace);
    }

    pub(super) fn remove_namespace(&mut self, name: &Name, dirty: &mut Dirty) {
        dirty.policies |= self.namespaces.remove(name).is_some();
        dirty.policies |= self.retained.retain(|namespace| *namespace != *name.name);
    }

    pub(super) fn put_network_policy(
        &mut self,
        mut name: Name,
        mut policy: Policy,
        dirty: &mut Dirty,
    ) {
        self.strings.share(&mut name.namespace);
        self.strings.share_policy(&mut policy);
        self.retained.forget(&name);
        if self.network_policies.get(&name).is_some_and(|old| *old == policy) {
            self.network_policies.repeated(&name);
            return;
        }
        dirty.policies = true;
        self.network_policies.insert(name, policy);
    }

    pub(super) fn remove_network_policy(&mut self, name: &Name, dirty: &mut Dirty) {
        let Some(old) = self.network_policies.remove(name) else { return };
        let namespace = Name::new(Arc::clone(&self.empty), Arc::clone(&name.namespace));
        let is_listed = !self.namespaces.waits_for(&namespace);
        match self.namespaces.get(&namespace).filter(|_| is_listed) {
            Some(namespace) if !namespace.terminating => self.retained.note(name.clone(), old),
            None if is_listed => {}
            Some(_) | None => return self.retained.hold(name.clone(), old),
        }
        dirty.policies = true;
    }

    pub(super) fn put_cluster_network_policy(
        &mut self,
        name: Name,
        mut policy: Policy,
        dirty: &mut Dirty,
    ) {
        self.strings.share_policy(&mut policy);
        if self.cluster_network_policies.get(&name).is_some_and(|old| *old == policy) {
            self.cluster_network_policies.repeated(&name);
            return;
        }
        dirty.policies = true;
        self.cluster_network_policies.insert(name, policy);
    }

    pub(super) fn remove_cluster_network_policy(&mut self, name: &Name, dirty: &mut Dirty) {
        dirty.policies |= self.cluster_network_policies.remove(name).is_some();
    }

    pub(super) fn put_node(&mut self, name: Name, mut node: Node, dirty: &mut Dirty) {
        self.strings.share_some(&mut node.zone);
        self.strings.share_labels(&mut node.labels);
        let own = *name.name == *self.node;
        let zone = node.zone.clone();
        let places =
            |node: &Node| (node.addresses.clone(), node.pod_cidrs.clone(), node.tunnels.clone());
        let now = places(&node);
        let old = self.nodes.get(&name);
        dirty.policies |= old.is_none_or(|old| {
            (&old.labels, old.lost, old.created) != (&node.labels, node.lost, node.created)
                || places(old) != now
        });
        let old = self.nodes.insert(name, node);
        if old.as_deref().map(places) != Some(now) {
            self.touch_external(dirty);
            if own {
                self.node_changed(dirty);
            }
        }
        if own && old.is_none_or(|old| old.zone != zone) {
            self.zone_changed(dirty);
        }
    }

    pub(super) fn remove_node(&mut self, name: &Name, dirty: &mut Dirty) {
        if self.nodes.remove(name).is_some() {
            dirty.policies = true;
            self.touch_external(dirty);
            if *name.name == *self.node {
                self.node_changed(dirty);
                self.zone_changed(dirty);
            }
        }
    }

    /// The addresses of this node are others than before.
    pub(super) fn node_changed(&self, dirty: &mut Dirty) {
        dirty.node = true;
        if self.synced() {
            self.claims.touch_node_ports(dirty);
            self.claims.touch_external(dirty);
        }
    }

    /// Any Service may have hints for zones.
    fn zone_changed(&self, dirty: &mut Dirty) {
        if self.synced() {
            dirty.services.extend(self.services.iter().map(|(name, _)| name.clone()));
        }
    }

    pub(super) fn put_service_cidr(&mut self, name: Name, cidr: ServiceCidr, dirty: &mut Dirty) {
        dirty.node = true;
        self.service_cidrs.insert(name, cidr);
        self.touch_external(dirty);
    }

    pub(super) fn remove_service_cidr(&mut self, name: &Name, dirty: &mut Dirty) {
        dirty.node = true;
        self.service_cidrs.remove(name);
        self.touch_external(dirty);
    }

    fn release_endpoints(&mut self, slice: &EndpointSlice) {
        self.release(slice.endpoints.iter().map(|endpoint| endpoint.addr));
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.conditions.terminating) {
            if !self.uses.has(&endpoint.addr) {
                self.ended.note(endpoint.addr);
            }
        }
    }

    /// From the next list on, these Pods are told.
    pub(super) fn tell_pods(&mut self, scope: PodScope) {
        if self.scope != scope {
            self.scope = scope;
            self.lists_all = false;
        }
    }

    fn release(&mut self, addrs: impl Iterator<Item = Addr>) {
        addrs.for_each(|addr| self.uses.remove(&addr));
    }

    /// The table of a kind.
    pub(super) fn table(&self, kind: Kind) -> &dyn Listing {
        match kind {
            Kind::Service => &self.services,
            Kind::EndpointSlice => &self.slices,
            Kind::Pod => &self.pods,
            Kind::Namespace => &self.namespaces,
            Kind::Node => &self.nodes,
            Kind::ServiceCidr => &self.service_cidrs,
            Kind::NetworkPolicy => &self.network_policies,
            Kind::ClusterNetworkPolicy => &self.cluster_network_policies,
        }
    }

    fn table_mut(&mut self, kind: Kind) -> &mut dyn Listing {
        match kind {
            Kind::Service => &mut self.services,
            Kind::EndpointSlice => &mut self.slices,
            Kind::Pod => &mut self.pods,
            Kind::Namespace => &mut self.namespaces,
            Kind::Node => &mut self.nodes,
            Kind::ServiceCidr => &mut self.service_cidrs,
            Kind::NetworkPolicy => &mut self.network_policies,
            Kind::ClusterNetworkPolicy => &mut self.cluster_network_policies,
        }
    }

    fn remove(&mut self, kind: Kind, name: &Name, dirty: &mut Dirty) {
        match kind {
            Kind::Service => self.remove_service(name, dirty),
            Kind::EndpointSlice => self.remove_slice(name, dirty),
            Kind::Pod => self.remove_pod(name, dirty),
            Kind::Namespace => self.remove_namespace(name, dirty),
            Kind::Node => self.remove_node(name, dirty),
            Kind::ServiceCidr => self.remove_service_cidr(name, dirty),
            Kind::NetworkPolicy => self.remove_network_policy(name, dirty),
            Kind::ClusterNetworkPolicy => self.remove_cluster_network_policy(name, dirty),
        }
    }

    pub(super) fn restarted(&mut self, kind: Kind) {
        self.table_mut(kind).restarted();
        let objects = self.issues.keys().filter(|object| object.kind == kind.name());
        self.stale_issues.extend(objects.cloned());
    }

    pub(super) fn synced_kind(&mut self, kind: Kind, dirty: &mut Dirty) {
        for name in self.table_mut(kind).synced() {
            self.remove(kind, &name, dirty);
        }
        if kind == Kind::Pod && self.scope == PodScope::All && !self.lists_all {
            self.lists_all = true;
            dirty.policies = true;
        }
        self.table_mut(kind).pack();
        if kind == Kind::Service {
            self.claims.pack();
        } else if kind == Kind::EndpointSlice {
            self.slices_of = std::mem::take(&mut self.slices_of).into_iter().collect();
        } else if kind == Kind::Node && !self.has_strays {
            self.has_strays = self.slices.iter().any(|(_, slice)| self.has_stray(slice));
            dirty.policies |= self.has_strays;
        } else if kind == Kind::Namespace {
            let there = |name: &str| self.namespaces.get(&Name::new("", name)).is_some();
            dirty.policies |= self.retained.retain(there);
        }
        let stale = std::mem::take(&mut self.stale_issues);
        for object in stale {
            if object.kind == kind.name() {
                self.issues.remove(&object);
            } else {
                self.stale_issues.insert(object);
            }
        }
    }
}

/// Whether this is the Service of the API server, whose endpoints the API server itself writes.
fn is_api_server(service: &Name) -> bool {
    &*service.namespace == "default" && &*service.name == "kubernetes"
}
