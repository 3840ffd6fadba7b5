//! `lbctl services`: service ports, what they answer at and how many endpoints they have.

use std::net::SocketAddr;

use lb_common::service::FrontendFlags;
use serde::Serialize;

use crate::columns::{Cell, Column, MergeRule, Row, RowScope};
use crate::directory::service_name;
use crate::frontend::FrontendSlots;
use crate::network::protocol_name;
use crate::selection::Selection;
use crate::view::View;
use lb_core::names::{EndpointConditions, ServiceName};

/// Pods that are named.
const NAMED: usize = 3;

/// One service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Namespace, empty when not known.
    pub namespace: String,
    /// Name of the Service, or the id as `#7` when it has none.
    pub name: String,
    /// Name of the port, may be empty.
    pub port_name: String,
    /// Port, `None` when not known.
    pub port: Option<u16>,
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// `spec.type`, empty when not known.
    pub r#type: String,
    /// Frontends in the maps.
    pub frontends: Vec<SocketAddr>,
    /// Frontends that should be in the maps and are not.
    pub missing: Vec<SocketAddr>,
    /// Ready endpoints.
    pub ready: u64,
    /// Endpoints of all states.
    pub endpoints: u64,
    /// Backends on this node.
    pub local: u64,
    /// Live flows of this node's Pods.
    pub flows: u64,
    /// Seconds since creation.
    pub age: Option<u64>,
    /// `internalTrafficPolicy`, `None` when there is no ClusterIP or no endpoint that would show it.
    pub internal_policy: Option<&'static str>,
    /// `externalTrafficPolicy`, `None` when there is no address for clients outside the cluster.
    pub external_policy: Option<&'static str>,
    /// How a backend is chosen: `random`, `maglev` (for clients outside the cluster), `least-connections`; empty when
    /// there is no frontend.
    pub algorithm: &'static str,
    /// Timeout of session affinity in seconds, 0 = none.
    pub affinity_secs: u32,
    /// What is wrong.
    pub issues: Vec<String>,
    /// While no endpoint is ready: Pods of those that are not, the first of them.
    pub not_ready: Vec<String>,
    /// `service_id` in the maps; 0 = not there.
    pub id: u32,
}

impl Row for ServiceRow {
    const NOUN: &'static str = "services";
    const SCOPE: RowScope = RowScope::Cluster;
    const COLUMNS: &'static [Column] = &[
        Column::new("NAMESPACE"),
        Column::new("NAME"),
        Column::new("PORT"),
        Column::new("TYPE"),
        Column::new("FRONTENDS").merged(MergeRule::Union),
        Column::new("READY"),
        Column::new("LOCAL").merged(MergeRule::Sum),
        Column::new("FLOWS").merged(MergeRule::Sum),
        Column::new("AGE").merged(MergeRule::Largest),
        Column::wide("INTERNAL").merged(MergeRule::Union),
        Column::wide("EXTERNAL").merged(MergeRule::Union),
        Column::wide("ALGORITHM").merged(MergeRule::Union),
        Column::wide("AFFINITY"),
        Column::wide("ID").merged(MergeRule::Union),
        Column::new("ISSUE").merged(MergeRule::Union),
    ];

    fn cells(&self) -> Vec<Cell> {
        let affinity = self.affinity_secs;
        let port = match (self.port, self.port_name.as_str()) {
            (None, _) => self.protocol.clone(),
            (Some(port), "") => format!("{port}/{}", self.protocol),
            (Some(port), name) => format!("{name}:{port}/{}", self.protocol),
        };
        vec![
            Cell::Text(self.namespace.clone()),
            Cell::Text(self.name.clone()),
            Cell::Text(port),
            Cell::Text(self.r#type.clone()),
            Cell::list(&self.frontends),
            Cell::Text(format!("{}/{}", self.ready, self.endpoints)),
            Cell::Number(self.local),
            Cell::Number(self.flows),
            Cell::age(self.age),
            Cell::Text(self.internal_policy.unwrap_or_default().to_owned()),
            Cell::Text(self.external_policy.unwrap_or_default().to_owned()),
            Cell::Text(self.algorithm.to_owned()),
            Cell::Text(if affinity == 0 { String::new() } else { format!("{affinity}s") }),
            Cell::Number(self.id.into()),
            Cell::Note(self.issues.join("; ")),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(match self.namespace.as_str() {
            "" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        })
    }
}

/// The wanted service ports: those with names first, in the order of their names, then those without.
pub fn rows(view: &View<'_>, selection: &Selection) -> Vec<ServiceRow> {
    let mut rows: Vec<ServiceRow> =
        view.names.services.iter().map(|service| named(view, service)).collect();
    rows.sort_by(|a, b| {
        let key = |row: &ServiceRow| (row.port, row.protocol.clone(), row.id);
        (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)).then_with(|| key(a).cmp(&key(b)))
    });
    let nameless =
        view.service_ids().into_iter().filter(|id| view.directory.service(*id).is_none());
    rows.extend(nameless.map(|id| numbered(view, id)));
    rows.retain(|row| is_wanted(view, row, selection));
    rows
}

/// Number of frontends that should be in the maps and are not.
pub fn n_missing(view: &View<'_>) -> usize {
    let services = view.names.services.iter();
    services.map(|service| missing(service, &view.sockets_of(service.id)).count()).sum()
}

fn missing<'a>(
    service: &'a ServiceName<'_>,
    found: &'a [SocketAddr],
) -> impl Iterator<Item = SocketAddr> + 'a {
    let externals = service.externals.iter().map(|external| &external.at);
    let wanted = service.frontends.iter().chain(externals);
    wanted.filter(|wanted| !found.contains(wanted)).copied()
}

fn is_wanted(view: &View<'_>, row: &ServiceRow, selection: &Selection) -> bool {
    let mut backends = view.backends_of(row.id);
    let of_pod = |id| selection.takes_pod(&view.pod_of(id));
    // Whoever asks for an endpoint wants to know why it is none, too.
    let rejected = view.rejected_of(row.id);
    let mut rejected_pods = rejected.iter().map(|rejected| &rejected.pod);
    let ips = || {
        let backends = view.backends_of(row.id).filter_map(|id| view.snapshot.backends.get(&id));
        let frontends = row.frontends.iter().chain(&row.missing).map(SocketAddr::ip);
        let rejected = rejected.iter().map(|rejected| rejected.endpoint.ip());
        let backends = backends.map(|backend| backend.addr.to_ip());
        frontends.chain(backends).chain(rejected).collect::<Vec<_>>()
    };
    selection.takes_namespace(&row.namespace)
        && (selection.service.is_none() || row.name().is_some_and(|n| selection.takes_service(&n)))
        && (selection.pod.is_none()
            || backends.any(of_pod)
            || rejected_pods.any(|pod| selection.takes_pod(pod)))
        && (selection.ip.is_none() || selection.takes_ip(&ips()))
}

fn named(view: &View<'_>, service: &ServiceName<'_>) -> ServiceRow {
    let frontends = view.sockets_of(service.id);
    let missing: Vec<SocketAddr> = missing(service, &frontends).collect();
    ServiceRow {
        namespace: service.namespace.to_string(),
        name: service.name.to_string(),
        port_name: service.port_name.to_string(),
        port: Some(service.port),
        protocol: protocol_name(service.protocol),
        r#type: service.kind.to_string(),
        ready: service.ready.into(),
        endpoints: service.endpoints.into(),
        age: view.since(service.created),
        issues: issues(view, service, &missing),
        not_ready: not_ready(view, service),
        missing,
        ..counted(view, service.id)
    }
}

/// A service port of the maps that the name table does not know.
fn numbered(view: &View<'_>, id: u32) -> ServiceRow {
    let first = view.frontends_of(id).first().map(|frontend| frontend.key);
    let n = view.backends_of(id).count() as u64;
    ServiceRow {
        name: format!("#{id}"),
        port: first.map(|key| key.port.get()),
        protocol: first.map(|key| protocol_name(key.proto)).unwrap_or_default(),
        ready: n,
        endpoints: n,
        ..counted(view, id)
    }
}

/// What the maps alone say.
fn counted(view: &View<'_>, id: u32) -> ServiceRow {
    let is_local = |id: &u32| {
        view.snapshot.backends.get(id).is_some_and(|backend| view.directory.is_local(*id, backend))
    };
    let frontends = view.frontends_of(id);
    let policy = |is_external| {
        let own = frontends.iter().filter(|frontend| !frontend.is_localhost());
        own.filter(|f| f.is_external() == is_external).find_map(|f| f.policy())
    };
    let algorithms = frontends.iter().map(|frontend| frontend.algorithm().name());
    let flows = |id| {
        let count = view.flows_of(id);
        count.active + count.inactive
    };
    ServiceRow {
        namespace: String::new(),
        name: String::new(),
        port_name: String::new(),
        port: None,
        protocol: String::new(),
        r#type: String::new(),
        frontends: view.sockets_of(id),
        missing: Vec::new(),
        ready: 0,
        endpoints: 0,
        local: view.backends_of(id).filter(is_local).count() as u64,
        flows: view.backends_of(id).map(flows).sum(),
        age: None,
        internal_policy: policy(false),
        external_policy: policy(true),
        // Maglev is for some of them only.
        algorithm: algorithms.max_by_key(|word| *word != "random").unwrap_or_default(),
        affinity_secs: view.affinity_secs(id),
        issues: Vec::new(),
        not_ready: Vec::new(),
        id,
    }
}

/// The Pods whose endpoints are not ready, if none is.
fn not_ready(view: &View<'_>, service: &ServiceName<'_>) -> Vec<String> {
    let mut pods: Vec<String> = Vec::new();
    let rejected = view.rejected_of(service.id).iter().filter(|_| service.ready == 0);
    for endpoint in rejected.filter(|it| it.conditions == EndpointConditions::NotReady) {
        let pod = endpoint.pod.to_string();
        if !pod.is_empty() && !pods.contains(&pod) && pods.len() < NAMED {
            pods.push(pod);
        }
    }
    pods
}

fn issues(view: &View<'_>, service: &ServiceName<'_>, missing: &[SocketAddr]) -> Vec<String> {
    let name = service_name(service);
    let object = format!("Service {name}");
    let of_service = view.names.issues.iter().filter(|i| i.object == object || i.service == name);
    let mut issues: Vec<String> = of_service
        .map(|issue| match issue.field.as_ref() {
            "" => issue.message.to_string(),
            field => format!("{field}: {}", issue.message),
        })
        .collect();
    if !missing.is_empty() {
        let missing: Vec<String> = missing.iter().map(SocketAddr::to_string).collect();
        issues.push(format!("missing in the maps: {}", missing.join(",")));
    }
    let (dropped, refused): (Vec<_>, Vec<_>) = (view.frontends_of(service.id).iter())
        .filter(|frontend| frontend.frontend.n == 0)
        .partition(|frontend| frontend.has(FrontendFlags::ELSEWHERE));
    let sockets = |frontends: &[&&FrontendSlots]| {
        frontends.iter().map(|f| f.socket().to_string()).collect::<Vec<_>>().join(",")
    };
    if !refused.is_empty() {
        issues.push(format!("no usable endpoint, connections refused at {}", sockets(&refused)));
    }
    if !dropped.is_empty() {
        let at = sockets(&dropped);
        issues.push(format!(
            "no usable endpoint on this node (traffic policy), packets dropped at {at}"
        ));
    }
    let not_ready = not_ready(view, service);
    if !not_ready.is_empty() {
        issues.push(format!("not ready: {}", not_ready.join(",")));
    }
    issues
}
