//! `lbctl pods`: the Pods of this node whose veths carry our programs.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::endpoint::{PodEntry, PodFlags};
use serde::Serialize;

use crate::attribution::PolicyNames;
use crate::columns::{Cell, Column, Row};
use crate::network;
use crate::selection::Selection;
use crate::view::View;
use lb_core::names::EndpointConditions;

/// One Pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// Namespace, empty when not known.
    pub namespace: String,
    /// Name, empty when not known.
    pub name: String,
    /// Its addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Host side of its veth, empty when not known.
    pub iface: String,
    /// ifindex of that device.
    pub ifindex: u32,
    /// Policies about what enters it: `open`, `isolated(3)`, `shadow(1)`, `no-room`.
    pub ingress: String,
    /// Policies about what leaves it.
    pub egress: String,
    /// What carries our programs: `pod_in` and `pod_out` with links of their own, or `clsact` for both.
    pub hooks: Vec<String>,
    /// MAC address of the Pod's end.
    pub mac: String,
    /// Whether the veth is a port of a bridge.
    pub bridged: bool,
    /// Why its flows go through the IP stack; empty = new flows to other such Pods of the node go past it.
    pub path_reasons: Vec<&'static str>,
    /// Why what goes past the IP stack to it goes by the host's end of its veth; empty = it goes to the Pod's end.
    pub veth_reasons: Vec<&'static str>,
    /// Seconds since creation.
    pub age: Option<u64>,
    /// Service ports of which it is an endpoint that is not ready.
    pub unready_for: Vec<String>,
}

impl Row for PodRow {
    const NOUN: &'static str = "pods";
    const COLUMNS: &'static [Column] = &[
        Column::new("NAMESPACE"),
        Column::new("NAME"),
        Column::new("IP"),
        Column::new("IFACE"),
        Column::new("INGRESS"),
        Column::new("EGRESS"),
        Column::new("AGE"),
        Column::wide("IFINDEX"),
        Column::wide("MAC"),
        Column::wide("BRIDGED"),
        Column::wide("HOOKS"),
        Column::wide("PATH"),
        Column::new("ISSUE"),
    ];

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::Text(self.namespace.clone()),
            Cell::Text(self.name.clone()),
            Cell::list(&self.ips),
            Cell::Text(self.iface.clone()),
            Cell::Text(self.ingress.clone()),
            Cell::Text(self.egress.clone()),
            Cell::age(self.age),
            Cell::Number(self.ifindex.into()),
            Cell::Text(self.mac.clone()),
            Cell::Text(self.bridged.to_string()),
            Cell::list(&self.hooks),
            match (self.path_reasons.as_slice(), self.veth_reasons.as_slice()) {
                ([], []) => Cell::Text("past".to_owned()),
                ([], reasons) => Cell::Text(format!("past, by veth: {}", reasons.join(","))),
                (reasons, _) => Cell::list(reasons),
            },
            Cell::Note(match self.unready_for.as_slice() {
                [] => String::new(),
                ports => format!("not ready, an endpoint of {}", ports.join(",")),
            }),
        ]
    }

    fn name(&self) -> Option<String> {
        Some(match self.name.as_str() {
            "" => format!("#{}", self.ifindex),
            name => format!("{}/{name}", self.namespace),
        })
    }
}

/// The wanted Pods, by name; those without come last.
pub fn rows(view: &View<'_>, selection: &Selection) -> Vec<PodRow> {
    let policies = PolicyNames::of(view.names);
    let mut unready: HashMap<&str, Vec<String>> = HashMap::new();
    let rejected = view.names.rejected.iter();
    for endpoint in rejected.filter(|it| it.conditions == EndpointConditions::NotReady) {
        let ports = unready.entry(&endpoint.pod).or_default();
        let port = view.directory.service_port(endpoint.service_id);
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let all = view.snapshot.pods.iter().map(|(ifindex, pod)| {
        let row = row(view, &policies, *ifindex, pod);
        let unready_for = row.name().and_then(|name| unready.get(&*name).cloned());
        PodRow { unready_for: unready_for.unwrap_or_default(), ..row }
    });
    let mut rows: Vec<PodRow> = all
        .filter(|row| selection.takes_namespace(&row.namespace))
        .filter(|row| row.name().is_some_and(|name| selection.takes_pod(&name)))
        .filter(|row| selection.takes_ip(&row.ips))
        .filter(|row| selection.service.is_none() || is_backend(view, row, selection))
        .collect();
    rows.sort_by(|a, b| {
        let key = |row: &PodRow| (row.name.is_empty(), row.namespace.clone(), row.name.clone());
        key(a).cmp(&key(b)).then(a.ifindex.cmp(&b.ifindex))
    });
    rows
}

/// Whether the Pod is a backend of the wanted Service.
fn is_backend(view: &View<'_>, row: &PodRow, selection: &Selection) -> bool {
    let wanted = Selection { service: selection.service.clone(), ..Selection::default() };
    crate::backends::rows(view, &wanted).iter().any(|b| row.ips.contains(&b.address.ip()))
}

fn row(view: &View<'_>, policies: &PolicyNames, ifindex: u32, pod: &PodEntry) -> PodRow {
    let name = view.directory.pod(ifindex);
    let mac = pod.mac.map(|byte| format!("{byte:02x}")).join(":");
    PodRow {
        namespace: name.map(|name| name.namespace.to_string()).unwrap_or_default(),
        name: name.map(|name| name.name.to_string()).unwrap_or_default(),
        ips: [pod.ip4, pod.ip6].into_iter().filter_map(network::ip).collect(),
        iface: match (view.snapshot.ifaces.get(&ifindex), name) {
            (Some(iface), _) => iface.clone(),
            (None, Some(name)) => name.iface.to_string(),
            (None, None) => String::new(),
        },
        ifindex,
        ingress: policies.about(pod.ingress, pod.shadow_ingress),
        egress: policies.about(pod.egress, pod.shadow_egress),
        hooks: view.snapshot.hooks.get(&ifindex).cloned().unwrap_or_default(),
        mac: if pod.mac == [0; 6] { String::new() } else { mac },
        bridged: pod.flags.contains(PodFlags::BRIDGED),
        path_reasons: view.snapshot.past.reasons(pod).iter().map(|reason| reason.name()).collect(),
        veth_reasons: view.snapshot.past.by_veth(pod).iter().map(|reason| reason.name()).collect(),
        age: name.and_then(|name| view.since(name.created)),
        unready_for: Vec::new(),
    }
}
