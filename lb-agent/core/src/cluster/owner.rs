//! Who has an address that several Pods or nodes have in their status: one order, used wherever an address stands for
//! one of them.
//!
//! Two objects with one address are common for a moment: one is being deleted, or its node is dead, and the address has
//! been given away again. Which of them was told first, or sorts first, must not decide whose policies apply.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::HashMap;

use lb_common::addr::Addr;

use super::{Cluster, Name, Node, Pod, Snapshot};

/// Who has an address.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A Pod, not of the host network.
    Pod(&'a Name, &'a Pod),
    /// A node.
    Node(&'a Name, &'a Node),
}

/// Who has which address.
#[derive(Debug, Default)]
pub struct Owners<'a>(HashMap<Addr, Owner<'a>>);

impl<'a> Owners<'a> {
    /// Of all addresses of Pods and nodes.
    pub fn of(cluster: &'a Snapshot) -> Self {
        Self::among(cluster.all_pods(), cluster.nodes(), |_| true)
    }

    /// Of those addresses that are wanted.
    pub fn of_some(cluster: &'a Cluster, wanted: impl Fn(&Addr) -> bool) -> Self {
        Self::among(cluster.all_pods(), cluster.nodes(), wanted)
    }

    /// Of those addresses of these Pods and nodes that are wanted.
    pub(super) fn among(
        pods: impl Iterator<Item = (&'a Name, &'a Pod)>,
        nodes: impl Iterator<Item = (&'a Name, &'a Node)>,
        wanted: impl Fn(&Addr) -> bool,
    ) -> Self {
        let mut owners: HashMap<Addr, Owner<'_>> = HashMap::new();
        let mut claim = |addr: &Addr, claimant: Owner<'a>| {
            if wanted(addr) {
                let owner = owners.entry(*addr).or_insert(claimant);
                if claimant.rank() > owner.rank() {
                    *owner = claimant;
                }
            }
        };
        for (name, pod) in pods.filter(|(_, pod)| !pod.host_network) {
            pod.ips.iter().for_each(|addr| claim(addr, Owner::Pod(name, pod)));
        }
        for (name, node) in nodes {
            node.addresses.iter().for_each(|addr| claim(addr, Owner::Node(name, node)));
        }
        Self(owners)
    }

    /// Who has this address.
    pub fn get(&self, addr: &Addr) -> Option<Owner<'a>> {
        self.0.get(addr).copied()
    }

    /// Whether this Pod has the address that is in its status.
    pub fn is_pods(&self, name: &Name, addr: &Addr) -> bool {
        matches!(self.0.get(addr), Some(Owner::Pod(owner, _)) if *owner == name)
    }

    /// Whether this node has the address that is in its status.
    pub fn is_nodes(&self, name: &Name, addr: &Addr) -> bool {
        matches!(self.0.get(addr), Some(Owner::Node(owner, _)) if *owner == name)
    }
}

impl Owner<'_> {
    /// Who has an address before others that have it in their status, too: a node that is heard of, whatever is said of
    /// Pods; then a Pod that is not being deleted; then one that is; then a node that is lost. Of two of a kind the
    /// newest has it, then the one with the greater UID (users cannot choose it), then the first by name.
    fn rank(&self) -> impl Ord {
        match self {
            Self::Node(name, node) if node.lost => (0, node.created, 0, Reverse(*name)),
            Self::Pod(name, pod) if pod.deleting => (1, pod.created, pod.uid, Reverse(*name)),
            Self::Pod(name, pod) => (2, pod.created, pod.uid, Reverse(*name)),
            Self::Node(name, node) => (3, node.created, 0, Reverse(*name)),
        }
    }
}

#[cfg(test)]
mod tests;
