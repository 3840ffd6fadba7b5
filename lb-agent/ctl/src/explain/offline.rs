//! What is known of a flow without the agent: from the name table and the maps.

use std::net::IpAddr;
use std::sync::Arc;

use lb_common::addr::Addr;

use crate::view::View;
use lb_core::admin::context::{
    EndKind, FlowContext, FlowEnd, FlowQuery, Party, ServiceContext, ServicePortContext,
};
use lb_core::cluster::{Labels, Name, ServiceType};
use lb_core::names::ServiceName;

/// The same as an agent's response, with less in it.
pub fn context(view: &View<'_>, wanted: &FlowQuery) -> FlowContext {
    FlowContext {
        node: view.directory.node.into(),
        agent: false,
        complete: false,
        src: end(view, &wanted.src),
        dst: end(view, &wanted.dst),
        service: service(view, wanted),
        legs: Vec::new(),
    }
}

fn end(view: &View<'_>, party: &Party) -> FlowEnd {
    let named =
        |kind, name: &Name| FlowEnd { kind, name: Some(name.clone()), ..FlowEnd::default() };
    match party {
        Party::Pod(name) => {
            let mut ips = view.directory.ips_of(&name.to_string());
            ips.sort();
            let kind = if ips.is_empty() { EndKind::Missing } else { EndKind::Pod };
            FlowEnd { ips, ..named(kind, name) }
        }
        Party::Workload(kind, wanted) => {
            let pods = view.names.pods.iter().filter(|pod| {
                *pod.namespace == *wanted.namespace && kind.has_pod(&wanted.name, &pod.name)
            });
            let first = pods.map(|pod| Name::new(&*pod.namespace, &*pod.name)).min();
            first.map_or_else(
                || named(EndKind::Missing, wanted),
                |name| end(view, &Party::Pod(name)),
            )
        }
        Party::Node(name) => {
            let node = Some(Arc::clone(name));
            FlowEnd { node, ..named(EndKind::Node, &Name::new("", Arc::clone(name))) }
        }
        Party::Service(name) => named(EndKind::Service, name),
        Party::Ip(ip) => {
            let name = view.directory.pod_at(*ip).map(Name::parse);
            // A Pod of this node may have no name yet.
            let is_pod = name.is_some() || view.directory.ifindex_of(&Addr::from_ip(*ip)) != 0;
            let kind = if is_pod { EndKind::Pod } else { EndKind::Outside };
            FlowEnd { kind, name, ips: vec![*ip], ..FlowEnd::default() }
        }
        Party::World => FlowEnd {
            kind: EndKind::Outside,
            ips: vec![IpAddr::from([203, 0, 113, 1])],
            ..FlowEnd::default()
        },
    }
}

fn service(view: &View<'_>, wanted: &FlowQuery) -> Option<ServiceContext> {
    let is = |service: &&ServiceName<'_>| match &wanted.dst {
        Party::Service(name) => {
            (&*service.namespace, &*service.name) == (&*name.namespace, &*name.name)
        }
        Party::Ip(ip) => {
            let port = wanted.port.unwrap_or_default();
            let mut all = service.frontends.iter().chain(service.externals.iter().map(|e| &e.at));
            all.any(|at| at.ip() == *ip && at.port() == port)
        }
        Party::Pod(_) | Party::Workload(..) | Party::Node(_) | Party::World => false,
    };
    let ports: Vec<&ServiceName<'_>> = view.names.services.iter().filter(is).collect();
    let first = ports.first()?;
    let mut cluster_ips: Vec<IpAddr> =
        ports.iter().flat_map(|port| &port.frontends).map(|at| at.ip()).collect();
    cluster_ips.sort();
    cluster_ips.dedup();
    let port = |service: &&ServiceName<'_>| ServicePortContext {
        name: (&*service.port_name).into(),
        protocol: service.protocol,
        port: service.port,
        node_port: 0,
    };
    let service_type = ServiceType::ALL.into_iter().find(|known| known.name() == first.kind);
    Some(ServiceContext {
        name: Name::new(&*first.namespace, &*first.name),
        service_type: service_type.unwrap_or(ServiceType::ClusterIp),
        cluster_ips,
        lb_ips: Vec::new(),
        ports: ports.iter().map(port).collect(),
        selector: Labels::default(),
        internal_local: false,
        selected: 0,
        addressless: 0,
        without_address: Vec::new(),
        similar: Vec::new(),
        endpoints: Vec::new(),
        n_endpoints: first.endpoints,
    })
}
