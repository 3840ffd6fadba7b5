//! Nodes, and the two ways in which CNI plugins connect Pods to them.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{Arc, atomic::AtomicU8},
};

use crate::netns::Netns;

/// How a node connects its Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A route per Pod to its veth, the Pod's default route through the host side (ptp, kindnet, Calico).
    Routed,
    /// A bridge in the node whose ports are the Pods' veths (the bridge plugin, flannel).
    Bridge,
}

/// What kubeadm's preflight checks ask for.
const BRIDGE_NETFILTER: [(&str, &str); 2] =
    [("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")];

/// A node: a namespace with a device towards the fabric and Pods of one shape.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name as in `spec.nodeName`.
    pub name: String,
    /// The namespace that stands for the host's.
    pub netns: Netns,
    /// Address on the fabric.
    pub v4: Ipv4Addr,
    /// Address on the fabric.
    pub v6: Ipv6Addr,
    pub(crate) number: u8,
    pub(crate) shape: Shape,
    pub(crate) prefix: String,
    pub(crate) n_pods: Arc<AtomicU8>,
}

impl Shape {
    /// What the node needs before its first Pod.
    pub(crate) fn prepare(self, node: &Node) -> anyhow::Result<()> {
        match self {
            Self::Routed => Ok(()),
            Self::Bridge => {
                let n = node.number;
                // As kubeadm demands it: netfilter sees what the bridge forwards. Only there with br_netfilter.
                if Path::new("/proc/sys/net/bridge").exists() {
                    node.netns.sysctl(&BRIDGE_NETFILTER)?;
                }
                node.netns.ip(&format!(
                    "link add cni0 type bridge\n\
                     link set cni0 up\n\
                     addr add 10.244.{n}.1/24 dev cni0\n\
                     addr add fd44:0:0:{n}::1/64 dev cni0 nodad\n"
                ))
            }
        }
    }
}
