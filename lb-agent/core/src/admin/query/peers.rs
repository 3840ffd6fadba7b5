//! The Pods at the ends of flows, and all others of their namespaces: a selector is to select no more than it should.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use lb_common::addr::Addr;

use crate::admin::peers::{KnownPeers, LabeledPod, PeersWanted};
use crate::cluster::{Cluster, Name, Owner, Owners};

/// The Service of the cluster's DNS server, by convention (kubernetes/dns, `specification.md`).
const DNS: [&str; 2] = ["kube-system", "kube-dns"];

/// What is known of these Pods.
pub fn peers(cluster: &Cluster, wanted: &PeersWanted) -> KnownPeers {
    let addrs: HashSet<Addr> = wanted.addrs.iter().map(|ip| Addr::from_ip(*ip)).collect();
    let owners = Owners::of_some(cluster, |addr| addrs.contains(addr));
    let mut namespaces: BTreeSet<&Arc<str>> = BTreeSet::from([&wanted.namespace]);
    namespaces.extend(addrs.iter().filter_map(|addr| match owners.get(addr)? {
        Owner::Pod(name, _) => Some(&name.namespace),
        Owner::Node(..) => None,
    }));
    let is_wanted = |name: &Name| namespaces.contains(&name.namespace);
    let pods = || cluster.all_pods().filter(|(name, pod)| !pod.host_network && is_wanted(name));
    let all: HashSet<&Addr> = pods().flat_map(|(_, pod)| &pod.ips).collect();
    let owners = Owners::of_some(cluster, |addr| all.contains(addr));
    let pods = pods().map(|(name, pod)| {
        let ips = pod.ips.iter().filter(|addr| owners.is_pods(name, addr));
        LabeledPod {
            name: name.clone(),
            ips: ips.map(|addr| addr.to_ip()).collect(),
            labels: pod.labels.clone(),
        }
    });
    let [namespace, name] = DNS;
    let dns = cluster.service(&Name::new(namespace, name)).map(|(_, service)| &service.selector);
    let dns = dns.filter(|selector| selector.iter().next().is_some());
    KnownPeers {
        pods: pods.collect(),
        pod_ranges: cluster.pod_ranges().copied().collect(),
        dns: dns.map(|selector| (namespace.into(), selector.clone())),
        complete: cluster.synced() && cluster.knows_all_pods(),
    }
}
