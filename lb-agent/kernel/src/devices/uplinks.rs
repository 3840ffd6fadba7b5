//! Which devices packets of other machines come in by: all but the loopback and the Pods' veths.
//!
//! ```text
//! port of a bridge, bond or team        its master hands the packets on as its own: the master is attached to
//! bridge with Pods' veths as ports      what comes in by it comes from Pods, which their veths have dealt with;
//!                                       its other ports, if any, are attached to instead
//! no link-layer header                  tunnels, WireGuard, tun, PPP: programs of their own
//! ```
//! Pure: descriptions of devices in, differences out.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use libc::{
    ARPHRD_ETHER, ARPHRD_IPGRE, ARPHRD_LOOPBACK, ARPHRD_NONE, ARPHRD_PPP, ARPHRD_SIT,
    ARPHRD_TUNNEL, ARPHRD_TUNNEL6,
};

use super::link::Link;

/// Of include/uapi/linux/if_arp.h; libc lacks them.
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_IP6GRE: u16 = 823;

/// Where the IP header of a packet begins at the tc hooks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// Behind an Ethernet header.
    Ethernet,
    /// At once.
    Ip,
}

impl Layer {
    /// That of a hardware type (`ARPHRD_*`); `None` for those whose packets the programs cannot read.
    const fn of(header_type: u16) -> Option<Self> {
        match header_type {
            ARPHRD_ETHER => Some(Self::Ethernet),
            ARPHRD_NONE | ARPHRD_PPP | ARPHRD_RAWIP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6
            | ARPHRD_SIT | ARPHRD_IPGRE | ARPHRD_IP6GRE => Some(Self::Ip),
            _ => None,
        }
    }
}

/// A device that does not belong to a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Interface name, such as `eth0`: at most 15 bytes, and it can change.
    pub name: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// MAC address, zero if it has none.
    pub mac: [u8; 6],
    header_type: u16,
    is_bridge: bool,
    is_dummy: bool,
    port_of: u32,
}

/// The devices that do not belong to Pods.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    links: BTreeMap<u32, Uplink>,
    attached: BTreeMap<u32, Layer>,
}

impl Uplinks {
    /// Records a device that does not belong to a Pod. Returns `true` if it is new or has changed.
    pub(super) fn put(&mut self, link: &Link) -> bool {
        if link.header_type == ARPHRD_LOOPBACK || is_workload(link) {
            return self.remove(link.ifindex);
        }
        let uplink = Uplink {
            name: link.name.clone(),
            mtu: link.mtu,
            mac: link.mac,
            header_type: link.header_type,
            is_bridge: link.kind == "bridge",
            is_dummy: link.kind == "dummy",
            port_of: link.port_of,
        };
        self.links.insert(link.ifindex, uplink.clone()) != Some(uplink)
    }

    /// A device is gone, or a Pod's. `true` when it was known.
    pub(super) fn remove(&mut self, ifindex: u32) -> bool {
        self.links.remove(&ifindex).is_some()
    }

    /// Every device of these numbers only is left.
    pub(super) fn retain(&mut self, exists: impl Fn(u32) -> bool) {
        self.links.retain(|ifindex, _| exists(*ifindex));
    }

    /// What differs from the last call in the devices that are to be attached to: `None` for one that is no longer.
    pub(super) fn changes(&mut self, pod_bridges: &BTreeSet<u32>) -> Vec<(u32, Option<Layer>)> {
        let wanted: BTreeMap<u32, Layer> = self
            .links
            .iter()
            .filter(|(ifindex, link)| match link.port_of {
                0 => !pod_bridges.contains(ifindex),
                master => pod_bridges.contains(&master),
            })
            .filter_map(|(ifindex, link)| Some((*ifindex, Layer::of(link.header_type)?)))
            .collect();
        let gone = self.attached.keys().filter(|ifindex| !wanted.contains_key(ifindex));
        let mut changes: Vec<_> = gone.map(|ifindex| (*ifindex, None)).collect();
        let news =
            wanted.iter().filter(|(ifindex, layer)| self.attached.get(ifindex) != Some(layer));
        changes.extend(news.map(|(ifindex, layer)| (*ifindex, Some(*layer))));
        self.attached = wanted;
        changes
    }

    /// How to attach to a device; `None` when it is not to be attached to.
    pub(super) fn layer(&self, ifindex: u32) -> Option<Layer> {
        self.attached.get(&ifindex).copied()
    }

    /// One device.
    pub(super) fn get(&self, ifindex: u32) -> Option<&Uplink> {
        self.links.get(&ifindex)
    }

    /// The devices that routes may name: no ports of others. A bridge with Pods' veths is one of them.
    pub(super) fn routed(&self) -> impl Iterator<Item = (u32, &Uplink)> {
        self.links
            .iter()
            .filter(|(_, link)| link.port_of == 0)
            .map(|(ifindex, link)| (*ifindex, link))
    }

    /// Those of them except bridges without ports.
    pub(super) fn leading_out(&self) -> impl Iterator<Item = (u32, &Uplink)> {
        let has_port = |bridge: u32| self.links.values().any(|link| link.port_of == bridge);
        self.routed().filter(move |(ifindex, link)| !link.is_bridge || has_port(*ifindex))
    }

    /// The devices whose addresses may stand for the node, best first: not those of dummies, which serve something
    /// local, and those of bridges last.
    pub(super) fn standing_for_node(&self) -> impl Iterator<Item = u32> {
        let of = |bridges: bool| {
            let fit = move |link: &Uplink| link.is_bridge == bridges && !link.is_dummy;
            self.routed().filter(move |(_, link)| fit(link)).map(|(ifindex, _)| ifindex)
        };
        of(false).chain(of(true))
    }
}

/// Returns whether the device leads to a workload of this node although it is not a veth: the host's end of a netkit pair.
fn is_workload(link: &Link) -> bool {
    link.kind == "netkit" && link.nsid.is_some()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use libc::{
        ARPHRD_ETHER, ARPHRD_IPGRE, ARPHRD_LOOPBACK, ARPHRD_NONE, ARPHRD_PPP, ARPHRD_SIT,
        ARPHRD_TUNNEL, ARPHRD_TUNNEL6,
    };

    use super::{Layer, Link, Uplinks};

    fn link(ifindex: u32, kind: &str, header_type: u16) -> Link {
        Link { ifindex, kind: kind.to_owned(), header_type, ..Link::default() }
    }

    fn port(link: Link, port_of: u32) -> Link {
        Link { port_of, ..link }
    }

    fn changes(uplinks: &mut Uplinks, pod_bridges: &[u32]) -> Vec<(u32, Option<Layer>)> {
        uplinks.changes(&pod_bridges.iter().copied().collect::<BTreeSet<_>>())
    }

    #[test]
    fn every_kind_of_device() {
        let ethernet = Some(Layer::Ethernet);
        let cases = [
            ("hardware", link(2, "", ARPHRD_ETHER), ethernet),
            ("lo", link(1, "", ARPHRD_LOOPBACK), None),
            ("a VLAN", link(3, "vlan", ARPHRD_ETHER), ethernet),
            ("a bond", link(4, "bond", ARPHRD_ETHER), ethernet),
            ("a port of a bond", port(link(5, "", ARPHRD_ETHER), 4), None),
            ("VXLAN", link(6, "vxlan", ARPHRD_ETHER), ethernet),
            ("a veth with both ends here", link(7, "veth", ARPHRD_ETHER), ethernet),
            ("a bridge", link(8, "bridge", ARPHRD_ETHER), ethernet),
            ("WireGuard", link(9, "wireguard", ARPHRD_NONE), Some(Layer::Ip)),
            ("ipip", link(10, "ipip", ARPHRD_TUNNEL), Some(Layer::Ip)),
            ("sit", link(11, "sit", ARPHRD_SIT), Some(Layer::Ip)),
            ("ip6tnl", link(12, "ip6tnl", ARPHRD_TUNNEL6), Some(Layer::Ip)),
            ("gre", link(13, "gre", ARPHRD_IPGRE), Some(Layer::Ip)),
            ("PPP", link(14, "ppp", ARPHRD_PPP), Some(Layer::Ip)),
            ("InfiniBand", link(15, "", 32), None),
            ("netkit of a Pod", Link { nsid: Some(1), ..link(16, "netkit", ARPHRD_ETHER) }, None),
        ];
        for (name, link, want) in cases {
            let mut uplinks = Uplinks::default();
            let ifindex = link.ifindex;
            uplinks.put(&link);
            let want: Vec<_> = want.map(|layer| (ifindex, Some(layer))).into_iter().collect();
            assert_eq!(changes(&mut uplinks, &[]), want, "{name}");
            assert_eq!(changes(&mut uplinks, &[]), [], "{name}: said once");
        }
    }

    #[test]
    fn a_bridge_of_pods_leaves_its_place_to_its_other_ports() {
        let mut uplinks = Uplinks::default();
        uplinks.put(&link(8, "bridge", ARPHRD_ETHER));
        uplinks.put(&port(link(2, "", ARPHRD_ETHER), 8));
        assert_eq!(changes(&mut uplinks, &[]), [(8, Some(Layer::Ethernet))]);
        assert_eq!(changes(&mut uplinks, &[8]), [(8, None), (2, Some(Layer::Ethernet))]);
        assert_eq!(uplinks.routed().map(|(ifindex, _)| ifindex).collect::<Vec<_>>(), [8]);
        uplinks.put(&link(3, "dummy", ARPHRD_ETHER));
        uplinks.put(&link(9, "", ARPHRD_ETHER));
        assert_eq!(uplinks.standing_for_node().collect::<Vec<_>>(), [9, 8]);
        uplinks.remove(3);
        uplinks.remove(9);
        assert_eq!(changes(&mut uplinks, &[]), [(2, None), (8, Some(Layer::Ethernet))]);
    }

    #[test]
    fn devices_change_their_master_and_go() {
        let mut uplinks = Uplinks::default();
        let eth = link(2, "", ARPHRD_ETHER);
        assert!(uplinks.put(&eth));
        assert!(!uplinks.put(&eth), "said again");
        assert_eq!(changes(&mut uplinks, &[]), [(2, Some(Layer::Ethernet))]);
        assert!(uplinks.put(&port(eth.clone(), 4)));
        assert_eq!(changes(&mut uplinks, &[]), [(2, None)]);
        assert!(uplinks.put(&Link { name: "wan".to_owned(), mtu: 1400, ..eth }));
        assert_eq!(changes(&mut uplinks, &[]), [(2, Some(Layer::Ethernet))]);
        assert_eq!(uplinks.get(2).map(|link| (link.name.as_str(), link.mtu)), Some(("wan", 1400)));
        uplinks.retain(|ifindex| ifindex != 2);
        assert_eq!(changes(&mut uplinks, &[]), [(2, None)]);
    }
}
