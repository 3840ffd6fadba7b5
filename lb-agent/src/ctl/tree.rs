//! `lbctl services --tree`: the shape of `ipvsadm -Ln`, with names behind its columns.
//!
//! The first six words of a line are ipvsadm's, so that scripts made for it keep working. A draining backend has
//! weight 0, as with IPVS.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde::Serialize;

use crate::ctl::backends::{self, BackendRow};
use crate::ctl::columns::{NONE, align};
use crate::ctl::services::ServiceRow;
use crate::ctl::snapshot::{FrontendSlots, protocol_name};
use crate::ctl::view::View;

/// One frontend with its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// Protocol.
    pub protocol: String,
    /// `address:port`.
    pub frontend: SocketAddr,
    /// How a backend is chosen, in ipvsadm's words where it has one.
    pub scheduler: &'static str,
    /// Service port, `namespace/name:port` or `#id`.
    pub service: String,
    /// Its backends.
    pub backends: Vec<Leaf>,
}

/// One backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leaf {
    /// Number of slots it has; 0 = takes no new flows.
    pub weight: u64,
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendRow,
}

/// The frontends of `services`, in their order.
pub fn branches(view: &View<'_>, services: &[ServiceRow]) -> Vec<Branch> {
    let frontends = services.iter().flat_map(|service| view.frontends_of(service.id));
    frontends.map(|frontend| branch(view, frontend)).collect()
}

fn branch(view: &View<'_>, frontend: &FrontendSlots) -> Branch {
    let service_id = frontend.frontend.service_id;
    let weight = |id| frontend.backend_ids.iter().filter(|slot| **slot == id).count() as u64;
    let is_v4 = frontend.key.addr.is_v4();
    let of_family = view
        .backends_of(service_id)
        .filter_map(|id| Some((id, view.snapshot.backends.get(&id)?)))
        .filter(|(_, backend)| backend.addr.is_v4() == is_v4);
    let mut backends: Vec<Leaf> = of_family
        .map(|(id, backend)| Leaf { weight: weight(id), backend: backends::row(view, id, backend) })
        .collect();
    backends.sort_by_key(|leaf| leaf.backend.address);
    Branch {
        protocol: protocol_name(frontend.key.proto),
        frontend: frontend.socket(),
        scheduler: if frontend.frontend.maglev_base == 0 { "random" } else { "mh" },
        service: view.directory.service_port(service_id),
        backends,
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
    ];
    let mut words = vec![header.map(str::to_owned).to_vec()];
    words.extend(branches.iter().flat_map(|branch| &branch.backends).map(leaf_words));
    let mut leaves = Vec::new();
    align(&mut leaves, &words, "  -> ")?;
    let mut leaves = leaves.split_inclusive(|byte| *byte == b'\n');
    let header = leaves.next().unwrap_or_default();
    if headers {
        writeln!(out, "Prot LocalAddress:Port Scheduler Service")?;
        out.write_all(header)?;
    }
    for branch in branches {
        let Branch { protocol, frontend, scheduler, service, backends } = branch;
        writeln!(out, "{protocol:4} {frontend} {scheduler} {service}")?;
        for leaf in leaves.by_ref().take(backends.len()) {
            out.write_all(leaf)?;
        }
    }
    Ok(())
}

fn leaf_words(leaf: &Leaf) -> Vec<String> {
    let or_none = |text: &str| if text.is_empty() { NONE.to_owned() } else { text.to_owned() };
    let BackendRow { address, pod, node, zone, state, active, inactive, .. } = &leaf.backend;
    vec![
        address.to_string(),
        "Masq".to_owned(),
        leaf.weight.to_string(),
        active.to_string(),
        inactive.to_string(),
        or_none(pod),
        or_none(node),
        or_none(zone),
        or_none(state),
    ]
}
