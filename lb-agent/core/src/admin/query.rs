//! What the agent's records say to a request: who has an address, what a policy is about, what is known of a flow.
//!
//! Pure. Whether a flow is let through is not decided here: that is what the maps say, and `lbctl` asks them with the
//! programs' own evaluator. Rules are held against flows only to say what is missing.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::addr::Addr;

use crate::admin::AddressOwner;
use crate::admin::context::{EndKind, FlowContext, FlowEnd, FlowQuery, Party};
use crate::cluster::{self, Cluster, Family, Labels, Name, Owners, Pod};
use crate::model::policy::PolicyDirection;

pub use self::differences::differences;
pub use self::peers::peers;
pub use self::policy::policy;
pub use self::progress::{LoopProgress, progress};
pub use self::record::RecordQuestions;
pub(crate) use self::tables::{AskedFlow, RecordTables};
pub use self::what_if::TrialQuestion;

mod differences;
mod leg;
mod peers;
mod policy;
mod progress;
mod record;
mod service;
mod similar;
mod tables;
mod what_if;

/// Pods and endpoints that an answer lists.
const MOST: usize = 64;
/// Addresses that stand for all hosts outside: those for documentation (RFC 5737, RFC 3849).
pub(crate) const WORLD: [&str; 2] = ["203.0.113.1", "2001:db8::1"];

/// Who has these addresses. Pods of the host network have none of their own.
pub fn who(cluster: &Cluster, addrs: &[IpAddr]) -> Vec<AddressOwner> {
    let wanted: HashSet<Addr> = addrs.iter().map(|addr| Addr::from_ip(*addr)).collect();
    let owners = Owners::of_some(cluster, |addr| wanted.contains(addr));
    let named = wanted.iter().filter_map(|addr| {
        let name = match owners.get(addr)? {
            cluster::Owner::Pod(name, _) => name.to_string(),
            cluster::Owner::Node(name, _) => format!("node/{name}"),
        };
        Some(AddressOwner { addr: addr.to_ip(), name })
    });
    named.collect()
}

/// What is known of a flow, all of it.
pub fn context(cluster: &Cluster, wanted: &FlowQuery) -> FlowContext {
    let (mut context, questions) = asked(cluster, wanted);
    questions.answer(&mut context);
    context
}

/// What is known of a flow, and what is left to be judged of it.
pub fn asked(cluster: &Cluster, wanted: &FlowQuery) -> (FlowContext, RecordQuestions) {
    let src = OwnerRecord::of(cluster, &wanted.src);
    let dst = OwnerRecord::of(cluster, &wanted.dst);
    let service = service::service(cluster, wanted);
    let mut context = FlowContext {
        node: cluster.node_name().into(),
        agent: true,
        complete: cluster.synced() && cluster.knows_all_pods(),
        src: src.end(cluster),
        dst: dst.end(cluster),
        service,
        legs: Vec::new(),
    };
    for (holder, at, port) in targets(cluster, wanted, &dst, &context) {
        let family = Family::of(&at);
        let Some(from) = src.addr(family) else { continue };
        let flow = |direction| leg::FlowAtPod { direction, protocol: wanted.protocol, port };
        if let OwnerRecord::Pod(name, pod, _) = &src
            && !pod.host_network
        {
            let to = leg::OtherEnd { addr: at, holder: &holder };
            context.legs.push(leg::leg(cluster, (name, pod), &to, flow(PolicyDirection::Egress)));
        }
        if let OwnerRecord::Pod(name, pod, _) = &holder
            && !pod.host_network
        {
            let peer = leg::OtherEnd { addr: from, holder: &src };
            context.legs.push(leg::leg(
                cluster,
                (name, pod),
                &peer,
                flow(PolicyDirection::Ingress),
            ));
        }
    }
    let questions = RecordQuestions::of(cluster, wanted.protocol, &context);
    (context, questions)
}

/// Who has an address, with the record.
enum OwnerRecord<'a> {
    /// A Pod, and those of the addresses in its status that it has.
    Pod(&'a Name, &'a Pod, Vec<Addr>),
    Node(&'a Name, &'a [Addr], &'a Labels),
    /// Not in the cluster.
    Outside(Vec<Addr>),
    Service,
    Missing(Vec<Name>),
}

impl<'a> OwnerRecord<'a> {
    fn of(cluster: &'a Cluster, party: &Party) -> Self {
        match party {
            Party::Pod(wanted) => {
                let found = cluster.all_pods().find(|(name, _)| *name == wanted);
                let names = || cluster.all_pods().map(|(name, _)| name);
                found.map_or_else(
                    || Self::Missing(similar::names(&wanted.name, names())),
                    |(name, pod)| Self::pod(cluster, name, pod),
                )
            }
            Party::Workload(kind, wanted) => {
                let is_of = |name: &&Name| {
                    name.namespace == wanted.namespace && kind.has_pod(&wanted.name, &name.name)
                };
                let pods = cluster.all_pods().filter(|(name, _)| is_of(name));
                let names = || cluster.all_pods().map(|(name, _)| name);
                pods.min_by_key(|(name, _)| *name).map_or_else(
                    || Self::Missing(similar::names(&wanted.name, names())),
                    |(name, pod)| Self::pod(cluster, name, pod),
                )
            }
            Party::Node(wanted) => {
                let found = cluster.nodes().find(|(name, _)| name.name == *wanted);
                let names = || cluster.nodes().map(|(name, _)| name);
                found.map_or_else(
                    || Self::Missing(similar::names(wanted, names())),
                    |(name, node)| Self::Node(name, &node.addresses, &node.labels),
                )
            }
            Party::Service(wanted) => {
                if cluster.service(wanted).is_some() {
                    return Self::Service;
                }
                let names = cluster.services().map(|(name, _)| name);
                Self::Missing(similar::names(&wanted.name, names))
            }
            Party::Ip(ip) => Self::at(cluster, Addr::from_ip(*ip)),
            Party::World => Self::Outside(
                WORLD.iter().filter_map(|ip| Some(Addr::from_ip(ip.parse().ok()?))).collect(),
            ),
        }
    }

    fn pod(cluster: &Cluster, name: &'a Name, pod: &'a Pod) -> Self {
        let owners = Owners::of_some(cluster, |addr| pod.ips.contains(addr));
        let has = |addr: &&Addr| pod.host_network || owners.is_pods(name, addr);
        Self::Pod(name, pod, pod.ips.iter().filter(has).copied().collect())
    }

    /// Who has this address.
    fn at(cluster: &'a Cluster, addr: Addr) -> Self {
        match cluster.owner(&addr) {
            Some(cluster::Owner::Pod(name, pod)) => Self::pod(cluster, name, pod),
            Some(cluster::Owner::Node(name, node)) => {
                Self::Node(name, &node.addresses, &node.labels)
            }
            None => Self::Outside(vec![addr]),
        }
    }

    fn addrs(&self) -> &[Addr] {
        match self {
            Self::Pod(.., addrs) => addrs,
            Self::Node(_, addrs, _) => addrs,
            Self::Outside(addrs) => addrs,
            Self::Service | Self::Missing(_) => &[],
        }
    }

    /// Its first address of the family.
    fn addr(&self, family: Family) -> Option<Addr> {
        self.addrs().iter().find(|addr| Family::of(addr) == family).copied()
    }

    fn end(&self, cluster: &Cluster) -> FlowEnd {
        let ips = self.addrs().iter().map(|addr| addr.to_ip()).collect();
        match self {
            Self::Pod(name, pod, _) => FlowEnd {
                kind: if pod.host_network { EndKind::HostPod } else { EndKind::Pod },
                name: Some((*name).clone()),
                node: Some(Arc::clone(&pod.node)).filter(|node| !node.is_empty()),
                ips,
                ports: pod.ports.to_vec(),
                similar: Vec::new(),
            },
            Self::Node(name, ..) => FlowEnd {
                kind: EndKind::Node,
                name: Some((*name).clone()),
                node: Some(Arc::clone(&name.name)),
                // As the kernel has them, where it is this one.
                ips: if *name.name == *cluster.node_name() {
                    cluster.host_addrs().iter().map(|addr| addr.to_ip()).chain(ips).collect()
                } else {
                    ips
                },
                ports: Vec::new(),
                similar: Vec::new(),
            },
            Self::Outside(_) => FlowEnd { kind: EndKind::Outside, ips, ..FlowEnd::default() },
            Self::Service => FlowEnd { kind: EndKind::Service, ..FlowEnd::default() },
            Self::Missing(similar) => {
                FlowEnd { kind: EndKind::Missing, similar: similar.clone(), ..FlowEnd::default() }
            }
        }
    }
}

/// Where the flow may end up: behind a Service its endpoints.
fn targets<'a>(
    cluster: &'a Cluster,
    wanted: &FlowQuery,
    dst: &OwnerRecord<'a>,
    context: &FlowContext,
) -> Vec<(OwnerRecord<'a>, Addr, u16)> {
    if let Some(service) = &context.service {
        let ports = service.ports.iter().filter(|port| port.protocol == wanted.protocol);
        let names: Vec<&str> = ports
            .filter(|port| {
                wanted.port.is_none_or(|wanted| [port.port, port.node_port].contains(&wanted))
            })
            .map(|port| &*port.name)
            .collect();
        let serves = |port: &str| names.contains(&port);
        let endpoints = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.protocol == wanted.protocol && serves(&endpoint.port_name));
        return endpoints
            .map(|endpoint| {
                let addr = Addr::from_ip(endpoint.at.ip());
                (OwnerRecord::at(cluster, addr), addr, endpoint.at.port())
            })
            .collect();
    }
    let port = wanted.port.unwrap_or_default();
    let again = |addr: &Addr| match dst {
        OwnerRecord::Pod(name, pod, own) => OwnerRecord::Pod(name, pod, own.clone()),
        OwnerRecord::Node(name, addrs, labels) => OwnerRecord::Node(name, addrs, labels),
        OwnerRecord::Outside(_) | OwnerRecord::Service | OwnerRecord::Missing(_) => {
            OwnerRecord::Outside(vec![*addr])
        }
    };
    dst.addrs().iter().map(|addr| (again(addr), *addr, port)).collect()
}
