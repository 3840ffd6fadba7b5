//! `lbctl services --tree`: the shape of `ipvsadm -Ln`, with names behind its columns.
//!
//! The first words of a line are ipvsadm's, so that scripts made for it keep working. A draining backend has weight 0,
//! as with IPVS. Behind the name of a frontend's Service stand its scope and, as `key=value`, the fields it uses.
//! An endpoint that serves no client is listed with the reason, and nothing is forwarded to it.

use std::io::{self, Write};
use std::net::SocketAddr;

use lb_common::service::FrontendFlags;
use serde::Serialize;

use crate::backends::{self, BackendRow};
use crate::columns::{NONE, align, line};
use crate::frontend::FrontendSlots;
use crate::network::protocol_name;
use crate::services::ServiceRow;
use crate::view::View;
use lb_core::names::RejectedName;

/// One frontend with its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Branch {
    /// Name of the IP protocol (`TCP`), or its IANA number.
    pub protocol: String,
    /// `address:port`.
    pub frontend: SocketAddr,
    /// How a backend is chosen, in ipvsadm's words where it has one.
    pub scheduler: &'static str,
    /// The same as the Service's annotation names it.
    pub algorithm: &'static str,
    /// Service port, `namespace/name:port` or `#id`.
    pub service: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalIP`, `Localhost`, or `External` when only the maps are known.
    pub scope: &'static str,
    /// The traffic policy that applies, `None` when the maps do not tell.
    pub policy: Option<&'static str>,
    /// Timeout of session affinity in seconds, 0 = none.
    pub affinity_secs: u32,
    /// Clients that its service port knows again.
    pub affinity_clients: u64,
    /// Ranges of the clients that may use it; `None` = all clients.
    pub source_ranges: Option<Vec<String>>,
    /// Which clients' new flows find no backend, and what happens to them: `outside=dropped`.
    pub unserved: Option<&'static str>,
    /// Its backends.
    pub backends: Vec<Leaf>,
    /// Endpoints of its Service port that are not backends.
    pub rejected: Vec<Rejected>,
}

/// One backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaf {
    /// Number of slots it has; 0 = takes no new flows.
    pub weight: u64,
    /// The lists that contain it: `cluster`, `local`.
    pub lists: Vec<&'static str>,
    /// Why it takes no new flows, as far as known.
    pub why_not: String,
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendRow,
}

/// An endpoint that serves no client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// Address and target port.
    pub address: SocketAddr,
    /// `namespace/name` of the Pod, empty when not known.
    pub pod: String,
    /// Node, empty when not known.
    pub node: String,
    /// Zone, empty when not known.
    pub zone: String,
    /// Its conditions as one word.
    pub state: &'static str,
    /// The reason.
    pub why_not: String,
}

/// The frontends of `services`, in their order.
pub fn branches(view: &View<'_>, services: &[ServiceRow]) -> Vec<Branch> {
    let frontends = services.iter().flat_map(|service| view.frontends_of(service.id));
    frontends.map(|frontend| branch(view, frontend)).collect()
}

fn branch(view: &View<'_>, frontend: &FrontendSlots) -> Branch {
    let service_id = frontend.frontend.service_id;
    let is_v4 = frontend.key.addr.is_v4();
    let of_family = view
        .backends_of(service_id)
        .filter_map(|id| Some((id, view.snapshot.backends.get(&id)?)))
        .filter(|(_, backend)| backend.addr.is_v4() == is_v4);
    let mut backends: Vec<Leaf> = of_family
        .map(|(id, backend)| leaf(view, frontend, backends::row(view, id, backend)))
        .collect();
    backends.sort_by_key(|leaf| leaf.backend.address);
    let rejected = view.rejected_of(service_id).iter();
    let mut rejected: Vec<Rejected> = rejected
        .filter(|rejected| rejected.endpoint.is_ipv4() == is_v4)
        .filter(|rejected| backends.iter().all(|leaf| leaf.backend.address != rejected.endpoint))
        .map(|rejected| self::rejected(view, rejected))
        .collect();
    rejected.sort_by_key(|rejected| rejected.address);
    let is_gated = frontend.has(FrontendFlags::SOURCE_RANGES);
    Branch {
        protocol: protocol_name(frontend.key.proto),
        frontend: frontend.socket(),
        scheduler: frontend.scheduler(),
        algorithm: frontend.algorithm().name(),
        service: view.directory.service_port(service_id),
        scope: view.scope_of(frontend),
        policy: frontend.policy(),
        affinity_secs: frontend.frontend.affinity_secs,
        affinity_clients: view.clients_of(service_id),
        source_ranges: is_gated.then(|| {
            let ranges = view.snapshot.fields.source_ranges.get(&service_id);
            ranges.into_iter().flatten().map(ToString::to_string).collect()
        }),
        unserved: frontend.unserved(),
        backends,
        rejected,
    }
}

fn leaf(view: &View<'_>, frontend: &FrontendSlots, backend: BackendRow) -> Leaf {
    let weight = frontend.weight(backend.id);
    // An endpoint that is rejected may still have flows to end.
    let mut rejected = view.rejected_of(frontend.frontend.service_id).iter();
    let reason = rejected.find(|rejected| weight == 0 && rejected.endpoint == backend.address);
    Leaf {
        weight,
        lists: frontend.lists(backend.id),
        why_not: reason.map(|rejected| rejected.why.to_string()).unwrap_or_default(),
        backend,
    }
}

fn rejected(view: &View<'_>, rejected: &RejectedName<'_>) -> Rejected {
    let place = view.directory.place_at(rejected.place);
    Rejected {
        address: rejected.endpoint,
        pod: rejected.pod.to_string(),
        node: place.map(|place| place.node.to_string()).unwrap_or_default(),
        zone: place.map(|place| place.zone.to_string()).unwrap_or_default(),
        state: rejected.conditions.name(),
        why_not: rejected.why.to_string(),
    }
}

/// Prints the branches as ipvsadm does.
///
/// # Errors
/// When the output cannot be written.
pub fn print(out: &mut dyn Write, branches: &[Branch], headers: bool) -> io::Result<()> {
    let header = [
        "RemoteAddress:Port",
        "Forward",
        "Weight",
        "ActiveConn",
        "InActConn",
        "Pod",
        "Node",
        "Zone",
        "State",
        "List",
        "Why-Not",
    ];
    let mut words = vec![header.map(str::to_owned).to_vec()];
    for branch in branches {
        words.extend(branch.backends.iter().map(leaf_words));
        words.extend(branch.rejected.iter().map(rejected_words));
    }
    let mut leaves = Vec::new();
    align(&mut leaves, &words, "  -> ")?;
    let mut leaves = leaves.split_inclusive(|byte| *byte == b'\n');
    let header = leaves.next().unwrap_or_default();
    if headers {
        writeln!(out, "Prot LocalAddress:Port Scheduler Service Scope Flags")?;
        out.write_all(header)?;
    }
    for branch in branches {
        line(out, branch_words(branch).join(" "))?;
        for leaf in leaves.by_ref().take(branch.backends.len() + branch.rejected.len()) {
            out.write_all(leaf)?;
        }
    }
    Ok(())
}

fn branch_words(branch: &Branch) -> Vec<String> {
    let mut words = vec![
        format!("{:4}", branch.protocol),
        branch.frontend.to_string(),
        branch.scheduler.to_owned(),
        branch.service.clone(),
        branch.scope.to_owned(),
    ];
    words.extend(branch.policy.map(|policy| format!("policy={policy}")));
    if branch.affinity_secs != 0 {
        words.push(format!("affinity={}s", branch.affinity_secs));
        words.push(format!("clients={}", branch.affinity_clients));
    }
    // An empty list admits no client.
    words.extend(branch.source_ranges.as_deref().map(|ranges| match ranges {
        [] => "sources=none".to_owned(),
        ranges => format!("sources={}", ranges.join(",")),
    }));
    words.extend(branch.unserved.map(str::to_owned));
    words
}

fn leaf_words(leaf: &Leaf) -> Vec<String> {
    let BackendRow { address, pod, node, zone, state, active, inactive, .. } = &leaf.backend;
    let lists = leaf.lists.join(",");
    let start = [address.to_string(), "Masq".to_owned(), leaf.weight.to_string()];
    let flows = [active.to_string(), inactive.to_string()];
    let names = [pod, node, zone, state, &lists].map(|text| or_none(text));
    [start.as_slice(), &flows, &names, std::slice::from_ref(&leaf.why_not)].concat()
}

fn rejected_words(rejected: &Rejected) -> Vec<String> {
    let Rejected { address, pod, node, zone, state, why_not } = rejected;
    let start = [address.to_string(), "-".to_owned(), "0".to_owned()];
    let flows = ["0", "0"].map(str::to_owned);
    let names = [pod.as_str(), node, zone, state, ""].map(or_none);
    [start.as_slice(), &flows, &names, std::slice::from_ref(why_not)].concat()
}

fn or_none(text: &str) -> String {
    if text.is_empty() { NONE.to_owned() } else { text.to_owned() }
}
