//! Who has which address of the Pods' network, whether or not policies tell them apart: nobody else may send from it.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::endpoint::ident_flags;

use super::Known;
use crate::cluster::{Name, Pod, Prefix, Snapshot};

/// Addresses that several Pods have in their status, and who really has them.
pub(super) type Shared<'a> = HashMap<Addr, &'a Name>;

/// The addresses that a node has in its own range: that of flannel's VXLAN device, that of a CNI's bridge.
const FIRST: u32 = 2;

/// All holders, without identities.
pub(super) fn holders(cluster: &Snapshot) -> HashMap<Addr, Known> {
    let mut addrs = HashMap::new();
    let shared = shared(cluster);
    for (name, pod) in pods(cluster) {
        let flags = flags(cluster, pod);
        let own = pod.ips.iter().filter(|addr| has(&shared, name, addr));
        addrs.extend(own.map(|addr| (*addr, Known { ident: 0, flags })));
    }
    let node = Known { ident: 0, flags: ident_flags::NODE };
    addrs.extend(cluster.nodes().flat_map(|(_, of)| &of.addresses).map(|addr| (*addr, node)));
    for addr in in_pod_network(cluster) {
        addrs.entry(addr).or_insert(node);
    }
    addrs
}

/// What `ident` says of a Pod's addresses.
pub(super) fn flags(cluster: &Snapshot, pod: &Pod) -> u32 {
    ident_flags::POD | if cluster.is_own(pod) { ident_flags::HERE } else { 0 }
}

/// The addresses that more than one Pod has: one is going, or its node is dead.
pub(super) fn shared(cluster: &Snapshot) -> Shared<'_> {
    let mut first: HashMap<Addr, (&Name, &Pod)> = HashMap::new();
    let mut shared = Shared::new();
    for (name, pod) in pods(cluster) {
        for addr in &pod.ips {
            let Some(known) = first.get_mut(addr) else {
                first.insert(*addr, (name, pod));
                continue;
            };
            if pod.has_before(known.1) {
                *known = (name, pod);
            }
            shared.insert(*addr, known.0);
        }
    }
    shared
}

/// Whether this Pod has the address that is in its status.
pub(super) fn has(shared: &Shared<'_>, name: &Name, addr: &Addr) -> bool {
    shared.get(addr).is_none_or(|holder| *holder == name)
}

/// The addresses that nodes have within the network of the Pods.
pub(super) fn in_pod_network(cluster: &Snapshot) -> impl Iterator<Item = Addr> + use<'_> {
    cluster.nodes().flat_map(|(_, node)| {
        let firsts = node.pod_cidrs.iter().flat_map(first);
        node.tunnels.iter().copied().chain(firsts)
    })
}

fn first(range: &Prefix) -> impl Iterator<Item = Addr> + use<> {
    let [a, b, c, d] = range.addr().words();
    let n = if *range == Prefix::host(range.addr()) { 0 } else { FIRST };
    (0..n).map(move |i| Addr::v6([a, b, c, Be32::new(d.get() + i)]))
}

fn pods(cluster: &Snapshot) -> impl Iterator<Item = (&Name, &Pod)> {
    cluster.all_pods().filter(|(_, pod)| !pod.host_network)
}
