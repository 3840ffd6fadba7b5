//! Addresses that are given away again while objects still say whose they were: which Pods have left theirs, and which
//! bindings were made by a status that was old.
//!
//! The status of a Pod is written after its device is there, so for a moment a new device has an address that only an old
//! Pod is known by: one that is being deleted, or, after a reboot of the node, one whose new address is not told yet.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use lb_common::addr::Addr;
use tracing::info;

use super::{BindingFacts, Bindings, Bound, SKEW, Standing};
use lb_core::cluster::{Cluster, Kind, Name};
use lb_kernel::devices::Veth;

impl Bindings {
    /// The Pod of this node that an address is found by.
    pub(super) fn pod_at<'a>(&self, addr: &Addr, cluster: &'a Cluster) -> Option<&'a Name> {
        cluster.pod_at(addr).filter(|name| !self.has_left(name, cluster))
    }

    /// Whether the Pod that has an address by its status has left it.
    pub(super) fn is_left(&self, addr: &Addr, cluster: &Cluster) -> bool {
        cluster.pod_at(addr).is_some_and(|name| self.has_left(name, cluster))
    }

    /// Returns whether a Pod is being deleted and its device is gone: it will not get another one.
    pub(super) fn has_left(&self, name: &Name, cluster: &Cluster) -> bool {
        let uid = self.left.get(name);
        cluster.pod(name).is_some_and(|pod| pod.deleting && uid == Some(&pod.uid))
    }

    /// Forgets those Pods that are gone altogether.
    pub(super) fn forget_left(&mut self, cluster: &Cluster) {
        if cluster.is_synced(Kind::Pod) {
            let is_there =
                |name: &Name, uid: &mut u64| cluster.pod(name).is_some_and(|pod| pod.uid == *uid);
            self.left.retain(is_there);
        }
    }

    /// Binds devices again that were taken for those of other Pods: the address by which that was found out is another
    /// Pod's by now, and the former has it no more or is being deleted.
    ///
    /// A workload cannot cause that. What counts is not what is bound in a namespace now but the address of the
    /// first match, which the CNI plugin gave this very device, and it must have passed to the other Pod: that one is
    /// behind no device, is not younger than this one, and no device is there that may be its own.
    pub(super) fn revise(&mut self, veths: &[&Veth], view: &BindingFacts<'_>) {
        let cluster = view.cluster;
        if !cluster.is_synced(Kind::Pod) {
            return;
        }
        let mut held = self.held();
        let claimed: HashSet<Name> =
            self.claimants(veths, cluster).into_iter().flat_map(|(_, names)| names).collect();
        let is_unseen = |veth: &&&Veth| {
            let device = self.devices.get(&veth.ifindex);
            let waits = |device: &super::BoundDevice| {
                device.standing == Standing::Unknown && view.now.steady < device.until
            };
            veth.inside.is_empty() && device.is_some_and(waits)
        };
        if veths.iter().any(|veth| is_unseen(&veth)) {
            return;
        }
        for veth in veths {
            let Some(device) = self.devices.get_mut(&veth.ifindex) else { continue };
            let Some(bound) = device.bound.as_ref().filter(|bound| bound.uid != 0) else {
                continue;
            };
            let had = cluster.pod(&bound.pod).filter(|pod| pod.uid == bound.uid && !pod.deleting);
            let has = |addr: &&Addr| had.is_some_and(|pod| pod.ips.contains(addr));
            let passed = bound.ips.iter().filter(|addr| !has(addr));
            let Some(name) = passed.filter_map(|addr| cluster.pod_at(addr)).next() else {
                continue;
            };
            let Some(pod) = cluster.pod(name).filter(|_| *name != bound.pod) else { continue };
            let older = pod.created.is_none_or(|at| device.since.saturating_add(SKEW) < at.get());
            if older || pod.deleting || held.contains_key(name) || claimed.contains(name) {
                continue;
            }
            info!(ifindex = veth.ifindex, device = veth.name, pod = %name, before = %bound.pod, "pod identified by a newer status");
            let (ips, mac) = (pod.ips.clone(), bound.mac);
            device.bound = Some(Bound { pod: name.clone(), uid: pod.uid, ips, mac });
            device.standing = Standing::Pod;
            held.insert(name.clone(), veth.ifindex);
        }
    }
}
