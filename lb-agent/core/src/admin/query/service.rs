//! A Service: its ports, its endpoints, and when it has none, what its selector misses.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use lb_common::addr::Addr;

use super::{MOST, similar};
use crate::admin::context::{
    EndpointContext, FlowQuery, Label, Party, ServiceContext, ServicePortContext,
};
use crate::cluster::{self, Cluster, Labels, Name};

/// Labels that are named.
const NEAREST: usize = 3;

/// The Service that the flow is for, by its name or one of its addresses.
pub(super) fn service(cluster: &Cluster, wanted: &FlowQuery) -> Option<ServiceContext> {
    let (name, service) = match &wanted.dst {
        Party::Service(name) => cluster.service(name)?,
        Party::Ip(ip) => at(cluster, Addr::from_ip(*ip), wanted)?,
        Party::Pod(_) | Party::Workload(..) | Party::Node(_) | Party::World => return None,
    };
    let extra = service.extra.as_deref();
    let mut endpoints = Vec::new();
    let mut n_endpoints = 0;
    for (_, slice) in cluster.slices_of(name) {
        n_endpoints += slice.endpoints.len();
        for endpoint in &slice.endpoints {
            let of = |port: &cluster::SlicePort| EndpointContext {
                at: SocketAddr::new(endpoint.addr.to_ip(), port.port),
                port_name: Arc::clone(&port.name),
                protocol: port.protocol,
                pod: endpoint.pod.map(|pod| Name::new(Arc::clone(&name.namespace), pod)),
                node: endpoint.node.cloned(),
                conditions: endpoint.conditions.into(),
            };
            endpoints.extend(slice.ports.iter().map(of));
        }
    }
    endpoints.truncate(MOST);
    let has_selector = service.selector.iter().next().is_some();
    let is_chosen = |pod: &cluster::Pod| has_selector && has_all(&pod.labels, &service.selector);
    let chosen = || pods(cluster, name).filter(|(_, pod)| is_chosen(pod));
    let selected = chosen().count();
    let addressless = || chosen().filter(|(_, pod)| pod.ips.is_empty());
    let mut without_address: Vec<Name> = addressless().map(|(pod, _)| pod.clone()).collect();
    without_address.sort();
    without_address.truncate(MOST);
    Some(ServiceContext {
        name: name.clone(),
        service_type: service.service_type,
        cluster_ips: service.cluster_ips.iter().map(|addr| addr.to_ip()).collect(),
        lb_ips: extra
            .map(|extra| extra.lb_ips.iter().map(|addr| addr.to_ip()).collect())
            .unwrap_or_default(),
        ports: service.ports.iter().map(port).collect(),
        selector: service.selector.clone(),
        internal_local: service.internal_policy == cluster::TrafficPolicy::Local,
        selected: u32::try_from(selected).unwrap_or(u32::MAX),
        addressless: u32::try_from(addressless().count()).unwrap_or(u32::MAX),
        without_address,
        similar: if selected == 0 { nearby(cluster, name, &service.selector) } else { Vec::new() },
        endpoints,
        n_endpoints: u32::try_from(n_endpoints).unwrap_or(u32::MAX),
    })
}

fn at<'a>(
    cluster: &'a Cluster,
    addr: Addr,
    wanted: &FlowQuery,
) -> Option<(&'a Name, &'a cluster::Service)> {
    if let Some(name) = cluster.claimants(&addr).next() {
        return cluster.service(name);
    }
    let port = (wanted.port?, wanted.protocol);
    if let Some(found) = cluster.external_claimants(addr, port).next() {
        return Some(found);
    }
    let is_node = cluster.host_addrs().contains(&addr)
        || cluster.nodes().any(|(_, node)| node.addresses.contains(&addr));
    cluster.node_port_claimants(port).next().filter(|_| is_node)
}

fn port(port: &cluster::ServicePort) -> ServicePortContext {
    ServicePortContext {
        name: Arc::clone(&port.name),
        protocol: port.protocol,
        port: port.port,
        node_port: port.node_port.map_or(0, |port| port.get()),
    }
}

/// The Pods that the Service may select.
fn pods<'a>(
    cluster: &'a Cluster,
    service: &'a Name,
) -> impl Iterator<Item = (&'a Name, &'a cluster::Pod)> {
    cluster.all_pods().filter(|(name, _)| name.namespace == service.namespace)
}

fn has_all(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key).is_some_and(|has| has == value))
}

/// Labels in the Service's namespace that are nearly one that it wants, and of how many Pods.
fn nearby(cluster: &Cluster, service: &Name, wanted: &Labels) -> Vec<(Label, u32)> {
    let mut found: BTreeMap<Label, u32> = BTreeMap::new();
    for labels in pods(cluster, service).map(|(_, pod)| &pod.labels) {
        for (key, value) in wanted.iter() {
            if labels.get(key).is_some_and(|has| has == value) {
                continue;
            }
            let near = |other: &str, its: &str| {
                (other == &**key && similar::is_slip(its, value))
                    || (its == &**value && other != &**key)
            };
            for label in labels.iter().filter(|(other, its)| near(other, its)) {
                *found.entry(label.clone()).or_default() += 1;
            }
        }
    }
    let mut found: Vec<(Label, u32)> = found.into_iter().collect();
    found.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    found.truncate(NEAREST);
    found
}
