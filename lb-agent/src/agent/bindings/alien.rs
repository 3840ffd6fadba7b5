//! Which devices are those of no Pod: of containers that something else on the node runs (Docker, LXD, Podman).
//!
//! A device that matches no Pod waits, cut off, while one that a policy isolates is awaited. A container that is none
//! should not, so the agent looks for signs of such a device. Names of devices differ by plugin, namespaces by runtime, and the
//! processes in a namespace cannot be seen from here; its addresses can. A device does not belong to a Pod if all of this holds:
//!
//! - it is a port of a bridge, and no port of that bridge is a Pod's: each runtime has a bridge of its own;
//! - it has an address of a family whose Pods are known to have theirs within the nodes' `podCIDRs` only, and none of its
//!   addresses is within those, or a Pod's. Where plugins have other ranges, Pods show it, and nothing is concluded;
//! - each Pod of this node that has an address by its status has been found behind a device.
//!
//! A workload cannot use this to escape policies: the plugin configures the address before the first container starts, and the agent
//! looks within milliseconds. Who is faster (no agent was running, say) and puts another address in its place still has
//! `status.podIPs`, which the workload cannot change: the Pod is one that is not found, so nothing is concluded from then on
//! and its device waits like any other. Nothing of this is final: a device that matches a Pod later is that Pod's.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashSet};

use lb_common::addr::Addr;

use super::{BindingFacts, Bindings, BoundDevice, Standing};
use lb_core::cluster::{Cluster, Family, Kind, Prefix};
use lb_kernel::devices::Veth;

impl Bindings {
    /// Records which devices do not belong to Pods.
    pub(super) fn find_aliens(&mut self, veths: &[&Veth], view: &BindingFacts<'_>) {
        let is_open = |veth: &&Veth| {
            let device = self.devices.get(&veth.ifindex);
            let waits = |device: &BoundDevice| {
                device.standing == Standing::Unknown && view.now.steady < device.until
            };
            veth.bridge != 0 && device.is_some_and(waits)
        };
        let ranges = if veths.iter().any(is_open) && self.all_found(view.cluster) {
            PodRanges::of(view.cluster)
        } else {
            PodRanges::default()
        };
        let of_pods: HashSet<u32> = veths
            .iter()
            .filter(|veth| {
                let device = self.devices.get(&veth.ifindex);
                device.is_some_and(|device| device.standing != Standing::Unknown)
            })
            .map(|veth| veth.bridge)
            .collect();
        for veth in veths {
            let addrs = veth.inside.iter().map(|inside| Addr::from_ip(inside.ip));
            let alien = veth.bridge != 0
                && !of_pods.contains(&veth.bridge)
                && ranges.are_elsewhere(addrs, view);
            if let Some(device) = self.devices.get_mut(&veth.ifindex) {
                device.alien = alien && device.standing == Standing::Unknown;
            }
        }
    }

    /// Whether each Pod of this node that has an address is behind a device that is known.
    fn all_found(&self, cluster: &Cluster) -> bool {
        let held = self.held();
        let mut pods = cluster.pods().filter(|(_, pod)| !pod.host_network && !pod.ips.is_empty());
        cluster.is_synced(Kind::Pod)
            && cluster.is_synced(Kind::Node)
            && pods.all(|(name, _)| held.contains_key(name) || self.has_left(name, cluster))
    }
}

/// The ranges of Pods, of those families in which they hold for all Pods.
#[derive(Default)]
struct PodRanges {
    ranges: NodeRanges,
    families: Vec<Family>,
}

/// The ranges of all nodes: there may be thousands, of few lengths.
#[derive(Default)]
struct NodeRanges {
    all: HashSet<Prefix>,
    bits: BTreeSet<u8>,
}

impl NodeRanges {
    fn contain(&self, addr: &Addr) -> bool {
        let mut lengths = self.bits.iter().filter_map(|bits| Prefix::new(*addr, *bits));
        lengths.any(|range| self.all.contains(&range))
    }
}

impl PodRanges {
    fn of(cluster: &Cluster) -> Self {
        let all: HashSet<Prefix> = cluster.pod_ranges().copied().collect();
        let bits = all.iter().map(Prefix::bits).collect();
        let ranges = NodeRanges { all, bits };
        let pods = || cluster.all_pods().filter(|(_, pod)| !pod.host_network);
        let holds = |family: &Family| {
            let mut known = pods().flat_map(|(_, pod)| &pod.ips);
            let mut shown = false;
            let within = known.all(|addr| {
                let is_of = Family::of(addr) == *family;
                shown |= is_of;
                !is_of || ranges.contain(addr)
            });
            within && shown
        };
        let families = [Family::V4, Family::V6].into_iter().filter(holds).collect();
        Self { ranges, families }
    }

    /// Whether these are addresses, and none of them can be a Pod's.
    fn are_elsewhere(&self, addrs: impl Iterator<Item = Addr>, view: &BindingFacts<'_>) -> bool {
        let mut shown = false;
        for addr in addrs {
            let ip = addr.to_ip();
            if ip.is_loopback() {
                continue;
            }
            shown |= self.families.contains(&Family::of(&addr));
            if self.ranges.contain(&addr)
                || view.cluster.pod_at(&addr).is_some()
                || (view.is_elsewhere)(&addr)
            {
                return false;
            }
        }
        shown
    }
}
