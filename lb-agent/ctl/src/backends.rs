//! `lbctl backends`: where packets for the frontends go.

use std::net::SocketAddr;

use lb_common::service::{Backend, FrontendFlags};
use serde::Serialize;

use crate::columns::{Cell, Column, MergeRule, Row, RowScope};
use crate::directory::service_name;
use crate::natural;
use crate::network::{protocol_name, socket};
use crate::selection::Selection;
use crate::view::View;

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Address and target port.
    pub address: SocketAddr,
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// `namespace/name` of the Pod, empty when not known.
    pub pod: String,
    /// Node, empty when not known.
    pub node: String,
    /// Zone, empty when not known.
    pub zone: String,
    /// `ready`, `serving`, `terminating`, `draining`, `dead`, ...
    pub state: String,
    /// Service port, `namespace/name:port` or `#id`, empty when not known.
    pub service: String,
    /// Frontends that lead here.
    pub frontends: Vec<SocketAddr>,
    /// Established flows of this node's Pods.
    pub active: u64,
    /// Flows in their handshake or closing.
    pub inactive: u64,
    /// Live flows as the programs count them, where least connections are looked for.
    pub load: Option<u32>,
    /// Backend id in the maps.
    pub id: u32,
    /// Raised when the backend dies and when its id goes to another one: older flows have lost their backend.
    pub generation: u32,
    /// ifindex of the Pod's veth, 0 when it is not on this node.
    pub ifindex: u32,
}

impl Row for BackendRow {
    const NOUN: &'static str = "backends";
    const SCOPE: RowScope = RowScope::Cluster;
    const COLUMNS: &'static [Column] = &[
        Column::new("ADDRESS"),
        Column::new("POD"),
        Column::new("NODE"),
        Column::new("ZONE"),
        Column::new("STATE"),
        Column::new("SERVICE"),
        Column::new("FRONTENDS").merged(MergeRule::Union),
        Column::new("ACTIVE").merged(MergeRule::Sum),
        Column::wide("INACTIVE").merged(MergeRule::Sum),
        Column::wide("LOAD").merged(MergeRule::Sum),
        Column::wide("PROTO"),
        Column::wide("ID").merged(MergeRule::Union),
        Column::wide("GENERATION").merged(MergeRule::Union),
        Column::wide("IFINDEX").merged(MergeRule::Union),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::Text(self.address.to_string()),
            Cell::Text(self.pod.clone()),
            Cell::Text(self.node.clone()),
            Cell::Text(self.zone.clone()),
            Cell::Text(self.state.clone()),
            Cell::Text(self.service.clone()),
            Cell::list(&self.frontends),
            Cell::Number(self.active),
            Cell::Number(self.inactive),
            Cell::number(self.load.map(u64::from)),
            Cell::Text(self.protocol.clone()),
            Cell::Number(self.id.into()),
            Cell::Number(self.generation.into()),
            Cell::number((self.ifindex != 0).then_some(self.ifindex.into())),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(self.address.to_string())
    }
}

/// The wanted backends, in the order of their Service and address.
pub fn rows(view: &View<'_>, selection: &Selection) -> Vec<BackendRow> {
    let all = view.snapshot.backends.iter();
    let wanted = all.filter(|(id, backend)| is_wanted(view, **id, backend, selection));
    let mut rows: Vec<BackendRow> = wanted.map(|(id, backend)| row(view, *id, backend)).collect();
    rows.sort_by(|a, b| {
        // Those that drain and have no name any more come last.
        (a.service.is_empty().cmp(&b.service.is_empty()))
            .then_with(|| natural::compare(&a.service, &b.service))
            .then_with(|| (a.address, a.id).cmp(&(b.address, b.id)))
    });
    rows
}

fn is_wanted(view: &View<'_>, id: u32, backend: &Backend, selection: &Selection) -> bool {
    if !selection.is_limited() {
        return true;
    }
    let service_id = view.service_of(id).unwrap_or_default();
    let service = view.directory.service(service_id);
    let in_namespace = selection.namespace.is_none()
        || service.is_some_and(|service| selection.takes_namespace(&service.namespace));
    let of_service = selection.service.is_none()
        || service.is_some_and(|service| selection.takes_service(&service_name(service)));
    let mut ips = vec![backend.addr.to_ip()];
    ips.extend(view.frontends_of(service_id).iter().map(|frontend| frontend.socket().ip()));
    in_namespace && of_service && selection.takes_pod(&view.pod_of(id)) && selection.takes_ip(&ips)
}

fn counts_loads(view: &View<'_>, service_id: u32) -> bool {
    let frontends = view.frontends_of(service_id);
    frontends.iter().any(|frontend| frontend.has(FrontendFlags::LEAST_CONNECTIONS))
}

/// The row of one backend.
pub fn row(view: &View<'_>, id: u32, backend: &Backend) -> BackendRow {
    let place = view.directory.place(view.directory.backend(id));
    let flows = view.flows_of(id);
    let service_id = view.service_of(id);
    BackendRow {
        address: socket(backend.addr, backend.port),
        protocol: protocol_name(backend.proto),
        pod: view.pod_of(id),
        node: place.map(|place| place.node.to_string()).unwrap_or_default(),
        zone: place.map(|place| place.zone.to_string()).unwrap_or_default(),
        state: view.state_of(id, backend).to_string(),
        service: service_id.map(|id| view.directory.service_port(id)).unwrap_or_default(),
        frontends: service_id
            .map(|service_id| {
                (view.frontends_of(service_id).iter())
                    .filter(|frontend| !frontend.lists(id).is_empty())
                    .map(|frontend| frontend.socket())
                    .collect()
            })
            .unwrap_or_default(),
        active: flows.active,
        inactive: flows.inactive,
        load: service_id
            .filter(|service_id| counts_loads(view, *service_id))
            .map(|_| view.snapshot.fields.loads.get(&id).copied().unwrap_or_default()),
        id,
        generation: backend.generation,
        ifindex: view.directory.ifindex_of(&backend.addr),
    }
}
