//! Which devices are Pods' veths. Pure: descriptions of devices in, events out.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::DeviceEvent;
use super::addresses::{AddressPair, PodAddress};
use super::link::Link;

/// A Pod's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// ifindex of the host's end.
    pub ifindex: u32,
    /// Name of the host's end.
    pub name: String,
    /// ifindex of the Pod's end, in its namespace.
    pub peer: u32,
    /// The Pod's namespace as ours numbers it.
    pub nsid: u32,
    /// ifindex of the bridge that the host's end is a port of, or 0.
    pub bridge: u32,
    /// What the bridge does with frames of that port.
    pub port: BridgePort,
    /// MAC address of the host's end: the Pod cannot change it.
    pub own_mac: [u8; 6],
    /// Largest IP packet of the host's end in bytes.
    pub mtu: u32,
    /// MAC address of the Pod's end; zero until known.
    pub mac: [u8; 6],
    /// What else is known of the Pod's end.
    pub far: FarDevice,
    /// The Pod's addresses, as far as known.
    pub addresses: AddressPair,
    /// All addresses in the Pod's namespace, of whatever device, as far as known.
    pub inside: Vec<PodAddress>,
}

/// A port of a bridge, as far as it is kept from other ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// Isolated ports do not reach each other.
    pub isolated: bool,
    /// The bridge filters VLANs.
    pub vlans: bool,
}

/// The Pod's end of a veth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FarDevice {
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether another device of the Pod hands its packets on as its own (a bridge, bond or team).
    pub is_port: bool,
    /// Whether it has an XDP program.
    pub xdp: bool,
}

/// Veths as known so far.
#[derive(Debug, Default)]
pub(super) struct KnownVeths {
    pub(super) veths: BTreeMap<u32, Veth>,
    /// Bridges that filter VLANs.
    vlans: BTreeSet<u32>,
    /// Host's end → other end, of veths that have both ends here.
    inner: BTreeMap<u32, u32>,
}

impl KnownVeths {
    /// A device exists as described.
    pub(super) fn link(&mut self, link: Link, at: Instant) -> Option<DeviceEvent> {
        let ifindex = link.ifindex;
        if link.kind == "bridge" {
            return self.bridge(ifindex, link.vlans);
        }
        if link.kind != "veth" {
            return None;
        }
        let Some(nsid) = link.nsid else {
            self.inner.insert(ifindex, link.peer);
            return self.veths.remove(&ifindex).map(|_| DeviceEvent::Gone(ifindex));
        };
        self.inner.remove(&ifindex);
        let veth = Veth {
            ifindex,
            name: link.name,
            peer: link.peer,
            nsid,
            bridge: link.bridge,
            port: BridgePort { isolated: link.isolated, vlans: self.vlans.contains(&link.bridge) },
            own_mac: link.mac,
            mtu: link.mtu,
            mac: [0; 6],
            far: FarDevice::default(),
            addresses: AddressPair::default(),
            inside: Vec::new(),
        };
        let Some(known) = self.veths.get_mut(&ifindex) else {
            self.veths.insert(ifindex, veth);
            return Some(DeviceEvent::Appeared { ifindex, at });
        };
        if (known.nsid, known.peer) != (veth.nsid, veth.peer) {
            *known = veth;
            return Some(DeviceEvent::Appeared { ifindex, at });
        }
        let before = (known.bridge, known.port, known.own_mac, known.mtu, &known.name);
        if before == (veth.bridge, veth.port, veth.own_mac, veth.mtu, &veth.name) {
            return None;
        }
        (known.bridge, known.port, known.own_mac) = (veth.bridge, veth.port, veth.own_mac);
        (known.mtu, known.name) = (veth.mtu, veth.name);
        Some(DeviceEvent::Changed(ifindex))
    }

    /// A bridge exists as described. What its ports are changes with it; that is written with the event of any of them.
    fn bridge(&mut self, ifindex: u32, vlans: bool) -> Option<DeviceEvent> {
        let changed = match vlans {
            true => self.vlans.insert(ifindex),
            false => self.vlans.remove(&ifindex),
        };
        if !changed {
            return None;
        }
        let mut port = None;
        for veth in self.veths.values_mut().filter(|veth| veth.bridge == ifindex) {
            veth.port.vlans = vlans;
            port = Some(veth.ifindex);
        }
        port.map(DeviceEvent::Changed)
    }

    /// A device has left our namespace. Returns the veth whose other end it was, if that is still here: it is a
    /// Pod's now, and the kernel says nothing else about it.
    pub(super) fn gone(&mut self, ifindex: u32) -> (Option<DeviceEvent>, Option<u32>) {
        self.inner.remove(&ifindex);
        self.vlans.remove(&ifindex);
        let other = self.inner.iter().find(|(_, peer)| **peer == ifindex).map(|(end, _)| *end);
        (self.veths.remove(&ifindex).map(|_| DeviceEvent::Gone(ifindex)), other)
    }

    /// A new list of all devices begins.
    pub(super) fn begin_again(&mut self) {
        self.inner.clear();
    }

    /// What the far end looks like. `true` when that is news.
    pub(super) fn inside(&mut self, ifindex: u32, far: &Link, inside: Vec<PodAddress>) -> bool {
        let Some(veth) = self.veths.get_mut(&ifindex) else { return false };
        let mac = far.mac;
        let far = FarDevice { mtu: far.mtu, is_port: far.port_of != 0, xdp: far.xdp };
        let news = (veth.mac, veth.far, &veth.inside) != (mac, far, &inside);
        veth.addresses = AddressPair::of(veth.peer, &inside);
        (veth.mac, veth.far, veth.inside) = (mac, far, inside);
        news
    }

    /// Bridges that have Pods' veths as ports.
    pub(super) fn bridges(&self) -> BTreeSet<u32> {
        self.veths.values().map(|veth| veth.bridge).filter(|bridge| *bridge != 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{AddressPair, DeviceEvent, KnownVeths, Link, PodAddress};

    fn veth(ifindex: u32, peer: u32, nsid: Option<u32>) -> Link {
        Link { ifindex, peer, nsid, kind: "veth".to_owned(), ..Link::default() }
    }

    fn bridge(ifindex: u32, vlans: bool) -> Link {
        Link { ifindex, vlans, kind: "bridge".to_owned(), ..Link::default() }
    }

    #[test]
    fn a_port_is_kept_from_others_as_its_bridge_and_itself_say() {
        let mut known = KnownVeths::default();
        let port = |known: &KnownVeths| (known.veths[&5].port.isolated, known.veths[&5].port.vlans);
        known.link(bridge(9, true), Instant::now());
        known.link(Link { bridge: 9, ..veth(5, 2, Some(0)) }, Instant::now());
        assert_eq!(port(&known), (false, true), "its bridge was first");
        known.link(bridge(9, false), Instant::now());
        assert_eq!(port(&known), (false, false));
        known.link(Link { bridge: 9, isolated: true, ..veth(5, 2, Some(0)) }, Instant::now());
        assert_eq!(port(&known), (true, false));
    }

    #[test]
    fn a_pods_veth_is_one_whose_other_end_is_elsewhere() {
        let at = Instant::now();
        let mut known = KnownVeths::default();
        let appeared = |ifindex| Some(DeviceEvent::Appeared { ifindex, at });
        let bridged = Link { bridge: 9, ..veth(5, 2, Some(0)) };
        let cases = [
            ("hardware", Link { ifindex: 2, ..Link::default() }, None),
            ("both ends here", veth(3, 4, None), None),
            ("a Pod's", veth(5, 2, Some(0)), appeared(5)),
            ("said again", veth(5, 2, Some(0)), None),
            ("put into a bridge", bridged.clone(), Some(DeviceEvent::Changed(5))),
            ("said again", bridged, None),
            ("a bridge that is not its", bridge(8, true), None),
            ("its bridge filters VLANs", bridge(9, true), Some(DeviceEvent::Changed(5))),
            ("said again", bridge(9, true), None),
            ("it does no more", bridge(9, false), Some(DeviceEvent::Changed(5))),
            (
                "isolated",
                Link { isolated: true, bridge: 9, ..veth(5, 2, Some(0)) },
                Some(DeviceEvent::Changed(5)),
            ),
            ("moved to another Pod", veth(5, 2, Some(1)), appeared(5)),
            ("its end came here", veth(5, 6, None), Some(DeviceEvent::Gone(5))),
        ];
        for (name, link, want) in cases {
            assert_eq!(known.link(link, at), want, "{name}");
        }
    }

    #[test]
    fn a_pair_whose_other_end_leaves_is_asked_about() {
        let at = Instant::now();
        let mut known = KnownVeths::default();
        known.link(veth(3, 4, None), at);
        known.link(veth(4, 3, None), at);
        assert_eq!(known.gone(4), (None, Some(3)));
        assert_eq!(
            known.link(veth(3, 4, Some(0)), at),
            Some(DeviceEvent::Appeared { ifindex: 3, at })
        );
        assert_eq!(known.gone(3), (Some(DeviceEvent::Gone(3)), None));
    }

    #[test]
    fn only_news_from_inside_counts() {
        let mut known = KnownVeths::default();
        known.link(veth(5, 2, Some(0)), Instant::now());
        let far = Link { mac: [2; 6], ..Link::default() };
        let at = |device| PodAddress { device, ip: "10.1.0.2".parse().unwrap(), main: true };
        assert!(known.inside(5, &far, vec![at(2)]));
        assert_eq!(known.veths[&5].addresses.ip4, Some(at(2).ip));
        assert!(!known.inside(5, &far, vec![at(2)]));
        assert!(known.inside(5, &far, vec![at(3)]), "now on a bridge in it");
        assert_eq!(known.veths[&5].addresses, AddressPair::default());
        assert!(known.inside(5, &far, vec![]));
        assert!(!known.inside(6, &far, vec![at(2)]), "not a Pod's");
    }
}
