//! `lbctl affinity`: which clients of `sessionAffinity: ClientIP` go to which backend, and for how long.
//!
//! A client counts from its last new flow, which is also when its backend was last chosen or confirmed.

use lb_common::addr::Addr;
use lb_common::service::{Affinity, AffinityKey};
use serde::Serialize;

use crate::columns::{Cell, Column, Row};
use crate::directory::service_name;
use crate::fields::AffinityState;
use crate::natural;
use crate::network::socket;
use crate::selection::Selection;
use crate::view::View;

/// One client of one service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AffinityRow {
    /// Its Pod, or its address.
    pub client: String,
    /// Service port, `namespace/name:port` or `#id`.
    pub service: String,
    /// Where it goes: `pod:port` or `address:port`; empty when the backend has left.
    pub backend: String,
    /// Seconds since its last new flow.
    pub age: u64,
    /// Seconds until it is balanced again, if it opens no flow before.
    pub expires: u64,
    /// Whether the next flow goes there, too.
    pub state: AffinityState,
    /// IP address of the client.
    pub client_address: String,
    /// `address:port` of the backend, empty when that has left.
    pub backend_address: String,
}

impl Row for AffinityRow {
    const NOUN: &'static str = "clients with affinity";
    const COLUMNS: &'static [Column] = &[
        Column::new("CLIENT"),
        Column::new("SERVICE"),
        Column::new("BACKEND"),
        Column::new("AGE"),
        Column::new("EXPIRES"),
        Column::wide("STATE"),
        Column::wide("CLIENT-ADDRESS"),
        Column::wide("BACKEND-ADDRESS"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::Text(self.client.clone()),
            Cell::Text(self.service.clone()),
            Cell::Text(self.backend.clone()),
            Cell::Age(self.age),
            Cell::Age(self.expires),
            Cell::Text(self.state.name().to_owned()),
            Cell::Text(self.client_address.clone()),
            Cell::Text(self.backend_address.clone()),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(self.client.clone())
    }
}

/// The wanted clients, by Service; with `all` those too whose affinity no longer counts.
pub fn rows(view: &View<'_>, selection: &Selection, all: bool) -> Vec<AffinityRow> {
    let clients = view.snapshot.fields.clients.iter();
    let wanted = clients.filter(|(key, value)| is_wanted(view, key, value, selection));
    let mut rows: Vec<AffinityRow> = wanted.map(|(key, value)| row(view, key, value)).collect();
    rows.retain(|row| all || row.state == AffinityState::Valid);
    rows.sort_by(|a, b| {
        natural::compare(&a.service, &b.service)
            .then_with(|| natural::compare(&a.client, &b.client))
    });
    rows
}

fn is_wanted(view: &View<'_>, key: &AffinityKey, value: &Affinity, selection: &Selection) -> bool {
    if !selection.is_limited() {
        return true;
    }
    let service = view.directory.service(key.service_id);
    let in_namespace = selection.namespace.is_none()
        || service.is_some_and(|service| selection.takes_namespace(&service.namespace));
    let of_service = selection.service.is_none()
        || service.is_some_and(|service| selection.takes_service(&service_name(service)));
    let client = key.client.to_ip();
    let backend = view.snapshot.backends.get(&value.backend_id);
    let mut ips = vec![client];
    ips.extend(backend.map(|backend| backend.addr.to_ip()));
    let of_pod = selection.takes_pod(&view.pod_of(value.backend_id))
        || view.directory.pod_at(client).is_some_and(|pod| selection.takes_pod(pod));
    in_namespace && of_service && of_pod && selection.takes_ip(&ips)
}

fn row(view: &View<'_>, key: &AffinityKey, value: &Affinity) -> AffinityRow {
    let timeout = view.affinity_secs(key.service_id);
    let age = view.snapshot.fields.ticks.secs_since(value.tick());
    let backend = view.snapshot.backends.get(&value.backend_id);
    let backend = backend.filter(|backend| backend.generation == value.backend_gen);
    let host = |addr: Addr| {
        let ip = addr.to_ip();
        view.directory.pod_at(ip).map_or_else(|| ip.to_string(), str::to_owned)
    };
    AffinityRow {
        client: host(key.client),
        service: view.directory.service_port(key.service_id),
        backend: backend
            .map(|backend| view.directory.host(backend.addr.to_ip(), backend.port.get()))
            .unwrap_or_default(),
        age,
        expires: u64::from(timeout).saturating_sub(age),
        state: view.snapshot.affinity_state(value, timeout),
        client_address: key.client.to_ip().to_string(),
        backend_address: backend
            .map(|backend| socket(backend.addr, backend.port).to_string())
            .unwrap_or_default(),
    }
}
