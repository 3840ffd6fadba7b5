//! The owner of each address of the Pod network, whether or not policies distinguish it: no other Pod may send from it.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};

use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::endpoint::IdentFlags;

use super::AddressIdentity;
use crate::cluster::{Owners, Pod, Prefix, Snapshot};

/// The addresses that a node has in its own range: that of flannel's VXLAN device, that of a CNI's bridge.
const FIRST: u32 = 2;

/// All holders, without identities.
pub(super) fn holders(cluster: &Snapshot) -> HashMap<Addr, AddressIdentity> {
    let mut addrs = HashMap::new();
    let owners = Owners::of(cluster);
    for (name, pod) in cluster.all_pods() {
        let flags = flags(cluster, pod);
        let own = pod.ips.iter().filter(|addr| owners.is_pods(name, addr));
        addrs.extend(own.map(|addr| (*addr, AddressIdentity { ident: 0, flags })));
    }
    let node = AddressIdentity { ident: 0, flags: IdentFlags::NODE };
    for (name, of) in cluster.nodes() {
        let own = of.addresses.iter().filter(|addr| owners.is_nodes(name, addr));
        addrs.extend(own.map(|addr| (*addr, node)));
    }
    for addr in in_pod_network(cluster) {
        addrs.entry(addr).or_insert(node);
    }
    addrs
}

/// The ranges that other nodes take their Pods' addresses from, if those Pods are not known.
pub(super) fn pod_ranges(cluster: &Snapshot) -> BTreeSet<Prefix> {
    if cluster.knows_all_pods() {
        return BTreeSet::new();
    }
    let others = cluster.nodes().filter(|(name, _)| !cluster.is_this_node(name));
    others.flat_map(|(_, node)| &node.pod_cidrs).copied().collect()
}

/// What `ident` says of a Pod's addresses.
pub(super) fn flags(cluster: &Snapshot, pod: &Pod) -> IdentFlags {
    IdentFlags::POD | IdentFlags::HERE.when(cluster.is_own(pod))
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

#[cfg(test)]
mod tests {
    use lb_common::addr::Addr;
    use lb_common::endpoint::IdentFlags;

    use super::super::compile;
    use crate::cluster::{Change, Cluster, Event, Name, Node};

    #[test]
    fn nodes_have_tunnels_and_bridges_in_the_network_of_the_pods() {
        let addr = |text: &str| Addr::from_ip(text.parse().unwrap());
        let mut cluster = Cluster::new("n1");
        let node = Node {
            addresses: [addr("192.0.2.2")].into(),
            tunnels: [addr("10.245.9.64")].into(),
            pod_cidrs: ["10.244.2.0/24", "fd44:0:0:2::/64"]
                .map(|text| text.parse().unwrap())
                .into(),
            ..Node::default()
        };
        cluster.apply(Event::Node(Change::Applied(Name::new("", "n2"), node)));
        let addrs = compile(&cluster).addrs;
        assert!(addrs.values().all(|known| known.flags == IdentFlags::NODE));
        let mut of_nodes: Vec<String> = addrs.keys().map(Addr::to_string).collect();
        of_nodes.sort();
        let v4 = ["10.244.2.0", "10.244.2.1", "10.245.9.64", "192.0.2.2"];
        assert_eq!(of_nodes, [&v4[..], &["fd44:0:0:2::", "fd44:0:0:2::1"]].concat());
    }
}
