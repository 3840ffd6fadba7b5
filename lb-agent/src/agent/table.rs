//! The name table for `lbctl`: what the agent knows, lent to [`Names`].
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::agent::issues::Issues;
use lb_core::cluster::{self, Cluster, EndpointView, Name};
use lb_core::model::{Desired, DesiredPort, EndpointState, External, Scope};
use lb_core::names::{
    BackendName, DropExample, EndpointConditions, ExternalName, ExternalScope, IssueLine, Names,
    Place, PodName, RejectedName, ServiceName,
};
use lb_core::plan::{Planner, PortIds};
use lb_kernel::bpf::events::Examples;
use lb_kernel::devices::Veth;

pub(super) mod policies;
mod rejected;

#[cfg(test)]
mod tests;

/// What the lists of the table are made from.
#[derive(Clone, Copy)]
pub(super) struct TableFacts<'a> {
    /// What we were told.
    pub cluster: &'a Cluster,
    /// What should be.
    pub desired: &'a Desired,
    /// The ids.
    pub planner: &'a Planner,
    /// What is wrong.
    pub issues: &'a Issues,
    /// Dropped packets.
    pub examples: &'a Examples,
}

/// The name table. The long lists are made while it is written, one element after the other: with ten thousand
/// Services, a second copy of all names would be a third of the agent's memory.
pub(super) struct NameTable<'a> {
    /// All but the long lists, which are empty in it.
    pub head: Names<'a>,
    /// What the long lists are made from.
    pub known: TableFacts<'a>,
    /// The table that was found at the start: its long lists are good until the first plan.
    pub former: Option<&'a Names<'static>>,
}

impl Serialize for NameTable<'_> {
    /// As [`Names`] does it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Names {
            layout,
            node,
            agent,
            source,
            masquerade_ports,
            host_rule,
            subsystems,
            issues,
            services: _,
            backends: _,
            places: _,
            rejected: _,
            pods,
            drops,
            policies,
            groups,
            idents,
        } = &self.head;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("layout", layout)?;
        map.serialize_entry("node", node)?;
        map.serialize_entry("agent", agent)?;
        map.serialize_entry("source", source)?;
        if let Some(ports) = masquerade_ports {
            map.serialize_entry("masquerade_ports", ports)?;
        }
        if !host_rule.is_empty() {
            map.serialize_entry("host_rule", host_rule)?;
        }
        map.serialize_entry("subsystems", subsystems)?;
        map.serialize_entry("issues", issues)?;
        match self.former {
            Some(former) => {
                map.serialize_entry("services", &former.services)?;
                map.serialize_entry("backends", &former.backends)?;
                map.serialize_entry("rejected", &former.rejected)?;
                map.serialize_entry("places", &former.places)?;
                map.serialize_entry("policies", &former.policies)?;
                map.serialize_entry("groups", &former.groups)?;
                map.serialize_entry("idents", &former.idents)?;
            }
            None => {
                let places = RefCell::new(Places::default());
                map.serialize_entry("services", &StreamedList(|| services(&self.known)))?;
                map.serialize_entry("backends", &StreamedList(|| backends(&self.known, &places)))?;
                map.serialize_entry("rejected", &StreamedList(|| rejected(&self.known, &places)))?;
                map.serialize_entry("places", &places.into_inner().list)?;
                if !policies.is_empty() {
                    map.serialize_entry("policies", policies)?;
                }
                if !groups.is_empty() {
                    map.serialize_entry("groups", groups)?;
                }
                if !idents.is_empty() {
                    map.serialize_entry("idents", idents)?;
                }
            }
        }
        map.serialize_entry("pods", pods)?;
        map.serialize_entry("drops", drops)?;
        map.end()
    }
}

/// Serialises what an iterator gives.
struct StreamedList<F>(F);

impl<F: Fn() -> I, I: Iterator<Item: Serialize>> Serialize for StreamedList<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0())
    }
}

/// The short lists of the table; agent, source and subsystems are left to the caller.
pub(super) fn head<'a>(
    known: &TableFacts<'a>,
    veths: impl Iterator<Item = (&'a Veth, Option<&'a Name>)>,
) -> Names<'a> {
    Names {
        layout: lb_core::names::LAYOUT,
        pods: veths.map(|(veth, pod)| pod_name(known.cluster, veth, pod)).collect(),
        issues: known.issues.iter().map(|(issue, since)| issue_line(issue, since)).collect(),
        drops: known.examples.iter().map(drop_example).collect(),
        ..Names::default()
    }
}

/// All desired service ports with their ids, if they have some.
fn ports<'a>(
    known: TableFacts<'a>,
) -> impl Iterator<Item = (&'a Name, &'a DesiredPort, Option<PortIds<'a>>)> {
    let TableFacts { desired, planner, .. } = known;
    desired.services.iter().flat_map(move |(name, service)| {
        service.ports.iter().map(move |port| {
            let ids = planner.port_ids(name).find(|ids| is_of(ids, port));
            (name, port, ids)
        })
    })
}

fn services<'a>(known: &TableFacts<'a>) -> impl Iterator<Item = ServiceName<'a>> {
    let known = *known;
    ports(known).map(move |(name, port, ids)| service_name(&known, name, port, ids.as_ref()))
}

fn backends<'a>(
    known: &TableFacts<'a>,
    places: &RefCell<Places<'a>>,
) -> impl Iterator<Item = BackendName<'a>> {
    let known = *known;
    ports(known).flat_map(move |(name, port, ids)| {
        let mut places = places.borrow_mut();
        let mut list = Vec::new();
        if let Some(ids) = ids {
            backends_of(&known, name, port, &ids, &mut places, &mut list);
        }
        list
    })
}

fn rejected<'a>(
    known: &TableFacts<'a>,
    places: &RefCell<Places<'a>>,
) -> impl Iterator<Item = RejectedName<'a>> {
    let known = *known;
    ports(known).flat_map(move |(name, port, ids)| {
        let mut places = places.borrow_mut();
        ids.map(|ids| rejected::rejected_of(&known, name, port, ids.service_id, &mut places))
            .unwrap_or_default()
    })
}

/// Endpoints of a service port in all its slices.
struct EndpointCounts {
    endpoints: usize,
    ready: usize,
}

fn counts(cluster: &Cluster, service: &Name, port: &DesiredPort) -> EndpointCounts {
    let mut counts = EndpointCounts { endpoints: 0, ready: 0 };
    for (_, slice) in cluster.slices_of(service) {
        let serves =
            |p: &cluster::SlicePort| (&p.name, p.protocol) == (&port.port_name, port.protocol);
        if slice.family == port.family && slice.ports.iter().any(serves) {
            counts.endpoints += slice.endpoints.len();
            counts.ready +=
                slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready).count();
        }
    }
    counts
}

/// Whether these ids are that port's.
fn is_of(ids: &PortIds<'_>, port: &DesiredPort) -> bool {
    (ids.port_name, ids.protocol, ids.port, ids.family)
        == (&port.port_name, port.protocol, port.port, port.family)
}

fn service_name<'a>(
    known: &TableFacts<'a>,
    name: &'a Name,
    port: &'a DesiredPort,
    ids: Option<&PortIds<'_>>,
) -> ServiceName<'a> {
    let service = known.cluster.service(name).map(|(_, service)| service);
    let EndpointCounts { endpoints, ready } = counts(known.cluster, name, port);
    ServiceName {
        id: ids.map_or(0, |ids| ids.service_id),
        namespace: Cow::Borrowed(&name.namespace),
        name: Cow::Borrowed(&name.name),
        port_name: Cow::Borrowed(&port.port_name),
        port: port.port,
        protocol: port.protocol,
        kind: Cow::Borrowed(
            known.desired.services.get(name).map_or("", |service| service.service_type.name()),
        ),
        frontends: port
            .frontends
            .iter()
            .map(|addr| SocketAddr::new(addr.to_ip(), port.port))
            .collect(),
        externals: (port.extra.iter().flat_map(|extra| &extra.externals))
            .map(external_name)
            .collect(),
        endpoints: u32::try_from(endpoints).unwrap_or(u32::MAX),
        ready: u32::try_from(ready).unwrap_or(u32::MAX),
        created: service
            .and_then(|s| s.created)
            .and_then(|s| u64::try_from(s.get()).ok())
            .unwrap_or(0),
    }
}

fn external_name(external: &External) -> ExternalName {
    ExternalName {
        at: SocketAddr::new(external.addr.to_ip(), external.port),
        scope: match external.scope {
            Scope::LoadBalancer => ExternalScope::LoadBalancer,
            Scope::ExternalIp => ExternalScope::ExternalIp,
            Scope::NodePort => ExternalScope::NodePort,
            Scope::Localhost => ExternalScope::Localhost,
        },
    }
}

fn backends_of<'a>(
    known: &TableFacts<'a>,
    service: &'a Name,
    port: &'a DesiredPort,
    ids: &PortIds<'_>,
    places: &mut Places<'a>,
    list: &mut Vec<BackendName<'a>>,
) {
    let mut push = |id: u32, addr: Option<Addr>, state: Option<EndpointState>| {
        let found = addr.and_then(|addr| endpoint(known.cluster, service, &addr));
        list.push(BackendName {
            id,
            service_id: ids.service_id,
            pod: pod_of(service, found),
            place: found.map_or(0, |found| places.of(found)),
            conditions: match state {
                Some(EndpointState::Ready) => EndpointConditions::Ready,
                Some(EndpointState::Terminating) => EndpointConditions::Serving,
                None => found.map_or(EndpointConditions::Gone, conditions),
            },
        });
    };
    for (id, backend) in ids.backend_ids.iter().zip(&port.backends) {
        push(*id, Some(backend.addr), Some(backend.state));
    }
    // Those that have left the slots: what their endpoints say now, if there are any.
    for id in ids.former_ids {
        let backend = known.planner.actual().backends.get(*id as usize);
        push(*id, backend.map(|backend| backend.addr), None);
    }
}

/// `namespace/name` of an endpoint's Pod, or empty.
fn pod_of(service: &Name, endpoint: Option<EndpointView<'_>>) -> Cow<'static, str> {
    let pod = endpoint.and_then(|endpoint| endpoint.pod);
    pod.map_or(Cow::Borrowed(""), |pod| Cow::Owned(format!("{}/{pod}", service.namespace)))
}

fn endpoint<'a>(cluster: &'a Cluster, service: &'a Name, addr: &Addr) -> Option<EndpointView<'a>> {
    let all = cluster.slices_of(service).flat_map(|(_, slice)| &slice.endpoints);
    // Of two Pods the one whose conditions the backend has: the other one is going.
    let same = all.filter(|endpoint| endpoint.addr == *addr);
    same.reduce(|a, b| if b.conditions.rank() > a.conditions.rank() { b } else { a })
}

fn conditions(endpoint: EndpointView<'_>) -> EndpointConditions {
    endpoint.conditions.into()
}

fn pod_name<'a>(cluster: &Cluster, veth: &'a Veth, pod: Option<&'a Name>) -> PodName<'a> {
    let created = pod.and_then(|pod| cluster.pod(pod)?.created);
    PodName {
        ifindex: veth.ifindex,
        iface: Cow::Borrowed(&veth.name),
        namespace: pod.map_or(Cow::Borrowed(""), |pod| Cow::Borrowed(&pod.namespace)),
        name: pod.map_or(Cow::Borrowed(""), |pod| Cow::Borrowed(&pod.name)),
        created: created.and_then(|at| u64::try_from(at.get()).ok()).unwrap_or_default(),
    }
}

fn issue_line(issue: &lb_core::issue::Issue, since: u64) -> IssueLine<'_> {
    IssueLine {
        object: Cow::Owned(issue.object.to_string()),
        field: Cow::Borrowed(&issue.field),
        message: Cow::Borrowed(&issue.message),
        service: Cow::Borrowed(""),
        since,
    }
}

fn drop_example(example: &lb_kernel::bpf::events::Example) -> DropExample {
    let event = &example.event;
    let socket = |addr: Addr, port: Be16| SocketAddr::new(addr.to_ip(), port.get());
    DropExample {
        reason: event.reason,
        ingress: event.ingress != 0,
        protocol: event.proto,
        src: socket(event.src, event.sport),
        dst: socket(event.dst, event.dport),
        ifindex: event.ifindex,
        service_id: event.service_id,
        at: example.at,
        group: event.group,
        judgement: event.judgement,
    }
}

/// Nodes with their zones, each once.
#[derive(Default)]
struct Places<'a> {
    list: Vec<Place<'a>>,
    known: BTreeMap<(&'a str, &'a str), u32>,
}

impl<'a> Places<'a> {
    /// Its number, counted from 1; 0 when neither node nor zone is known.
    fn of(&mut self, endpoint: EndpointView<'a>) -> u32 {
        let [node, zone] =
            [endpoint.node, endpoint.zone].map(|name| name.map_or("", |name| &**name));
        let key = (node, zone);
        if key == ("", "") {
            return 0;
        }
        if let Some(number) = self.known.get(&key) {
            return *number;
        }
        self.list.push(Place { node: Cow::Borrowed(key.0), zone: Cow::Borrowed(key.1) });
        let number = u32::try_from(self.list.len()).unwrap_or(0);
        self.known.insert(key, number);
        number
    }
}
