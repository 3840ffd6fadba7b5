//! Pods in the two shapes that CNI plugins give them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::Ordering,
};

use crate::{
    netns::Netns,
    node::{Node, Shape},
};

/// A Pod: a namespace with one veth to its node.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Name as in `metadata.name`.
    pub name: String,
    /// Name of its node.
    pub node: String,
    /// Its namespace.
    pub netns: Netns,
    /// Name of its veth's other end, in the node.
    pub device: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    node_netns: Netns,
}

impl Node {
    /// Adds a Pod with the node's next addresses (`10.244.N.10` and `fd44:0:0:N::10` the first).
    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        let index = 10 + self.n_pods.fetch_add(1, Ordering::Relaxed);
        let n = self.number;
        let pod = Pod {
            name: name.to_owned(),
            node: self.name.clone(),
            netns: Netns::create(&format!("{}-{}-{name}", self.prefix, self.name))?,
            device: format!("veth{index}"),
            v4: Ipv4Addr::new(10, 244, n, index),
            v6: Ipv6Addr::new(0xfd44, 0, 0, n.into(), 0, 0, 0, hex_digits_as_decimal(index)),
            node_netns: self.netns.clone(),
        };
        match self.shape {
            Shape::Routed => self.connect_routed(&pod)?,
            Shape::Bridge => self.connect_bridged(&pod)?,
        }
        Ok(pod)
    }

    fn connect_routed(&self, pod: &Pod) -> anyhow::Result<()> {
        let Pod { netns, device, v4, v6, .. } = pod;
        let n = self.number;
        self.netns.ip(&format!(
            "link add {device} type veth peer name eth0 netns {netns}\n\
             link set {device} up\n\
             addr add 10.244.{n}.1/32 dev {device}\n\
             addr add fd44:0:0:{n}::1/128 dev {device} nodad\n\
             route add {v4}/32 dev {device}\n\
             route add {v6}/128 dev {device}\n"
        ))?;
        netns.ip(&format!(
            "link set eth0 up\n\
             addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             route add 10.244.{n}.1/32 dev eth0 scope link\n\
             route add default via 10.244.{n}.1\n\
             route add fd44:0:0:{n}::1/128 dev eth0\n\
             route add default via fd44:0:0:{n}::1\n"
        ))
    }

    fn connect_bridged(&self, pod: &Pod) -> anyhow::Result<()> {
        let Pod { netns, device, v4, v6, .. } = pod;
        let n = self.number;
        self.netns.ip(&format!(
            "link add {device} type veth peer name eth0 netns {netns}\n\
             link set {device} master cni0 up\n"
        ))?;
        netns.ip(&format!(
            "link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add default via 10.244.{n}.1\n\
             route add default via fd44:0:0:{n}::1\n"
        ))
    }
}

impl Pod {
    /// Both addresses, IPv4 first, as `status.podIPs` lists them.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Takes the Pod away as a CNI plugin does: its veth, then its namespace. Processes in it are not touched.
    pub fn remove(&self) -> anyhow::Result<()> {
        self.node_netns.ip(&format!("link del {}\n", self.device))?;
        self.netns.remove()
    }
}

/// 12 → 0x12: the IPv6 address of a Pod then reads like its IPv4 address.
const fn hex_digits_as_decimal(index: u8) -> u16 {
    let index = index as u16;
    ((index / 100) << 8) | ((index / 10 % 10) << 4) | (index % 10)
}
