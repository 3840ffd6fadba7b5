//! What is known of a flow without the agent: from the name table and the maps.

use std::net::IpAddr;

use lb_common::addr::Addr;

use crate::directory::service_name;
use crate::view::View;
use lb_core::admin::context::{Context, End, Kind, Party, Port, Service, Wanted};
use lb_core::names::ServiceName;

/// The same as an agent's answer, with less in it.
pub fn context(view: &View<'_>, wanted: &Wanted) -> Context {
    Context {
        node: view.directory.node.to_owned(),
        agent: false,
        complete: false,
        src: end(view, &wanted.src),
        dst: end(view, &wanted.dst),
        service: service(view, wanted),
        legs: Vec::new(),
    }
}

fn end(view: &View<'_>, party: &Party) -> End {
    match party {
        Party::Pod(name) => {
            let mut ips = view.directory.ips_of(name);
            ips.sort();
            let kind = if ips.is_empty() { Kind::Missing } else { Kind::Pod };
            End { kind, name: name.clone(), ips, ..End::default() }
        }
        Party::Node(name) => {
            End { kind: Kind::Node, name: name.clone(), node: name.clone(), ..End::default() }
        }
        Party::Service(name) => End { kind: Kind::Service, name: name.clone(), ..End::default() },
        Party::Ip(ip) => match view.directory.pod_at(*ip) {
            Some(name) => {
                End { kind: Kind::Pod, name: name.to_owned(), ips: vec![*ip], ..End::default() }
            }
            None => {
                // A Pod of this node whose name is not known.
                let is_pod = view.directory.ifindex_of(&Addr::from_ip(*ip)) != 0;
                let (kind, name) = if is_pod {
                    (Kind::Pod, ip.to_string())
                } else {
                    (Kind::Outside, String::new())
                };
                End { kind, name, ips: vec![*ip], ..End::default() }
            }
        },
        Party::World => {
            End { kind: Kind::Outside, ips: vec![IpAddr::from([203, 0, 113, 1])], ..End::default() }
        }
    }
}

fn service(view: &View<'_>, wanted: &Wanted) -> Option<Service> {
    let is = |service: &&ServiceName<'_>| match &wanted.dst {
        Party::Service(name) => service_name(service) == *name,
        Party::Ip(ip) => {
            let port = wanted.port.unwrap_or_default();
            let mut all = service.frontends.iter().chain(service.externals.iter().map(|e| &e.at));
            all.any(|at| at.ip() == *ip && at.port() == port)
        }
        Party::Pod(_) | Party::Node(_) | Party::World => false,
    };
    let ports: Vec<&ServiceName<'_>> = view.names.services.iter().filter(is).collect();
    let first = ports.first()?;
    let mut cluster_ips: Vec<IpAddr> =
        ports.iter().flat_map(|port| &port.frontends).map(|at| at.ip()).collect();
    cluster_ips.sort();
    cluster_ips.dedup();
    let port = |service: &&ServiceName<'_>| Port {
        name: service.port_name.to_string(),
        protocol: service.protocol,
        port: service.port,
        node_port: 0,
    };
    Some(Service {
        name: service_name(first),
        service_type: first.kind.to_string(),
        cluster_ips,
        ports: ports.iter().map(port).collect(),
        n_endpoints: first.endpoints,
        ..Service::default()
    })
}
