//! What a netlink message says about a device, and the requests that ask for it.
#![forbid(unsafe_code)]

use std::io;

use libc::RTM_GETLINK;
use netlink_packet_core::{parse_mac, parse_u16, parse_u16_be, parse_u32};

use super::netlink::{NetlinkClient, NetlinkRequest, Want, attributes, text, word32};

/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

/// Of include/uapi/linux/if_link.h; libc has them for Android only.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
/// Also called `IFLA_IF_NETNSID`.
const IFLA_XDP: u16 = 43;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_XDP_ATTACHED: u16 = 2;

/// The UDP port that devices of a kind listen at: kind, and attribute in `IFLA_INFO_DATA` (`IFLA_VXLAN_PORT`,
/// `IFLA_GENEVE_PORT`, `IFLA_BAREUDP_PORT` of include/uapi/linux/if_link.h), in network order.
const TUNNELS: [(&str, u16); 3] = [("vxlan", 15), ("geneve", 5), ("bareudp", 1)];

/// A device of our network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, always positive.
    pub ifindex: u32,
    /// Interface name, such as `eth0`: at most 15 bytes, and it can change.
    pub name: String,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, ...; empty for hardware.
    pub kind: String,
    /// `IFLA_LINK`: for a veth, the ifindex of its other end (in that end's namespace).
    pub peer: u32,
    /// `IFLA_LINK_NETNSID`: the namespace of the other end as ours numbers it; absent when both are in ours.
    pub nsid: Option<u32>,
    /// ifindex of the bridge that it is a port of, or 0.
    pub bridge: u32,
    /// As a port of a bridge: whether it is isolated from other such ports.
    pub isolated: bool,
    /// As a bridge: whether it filters VLANs.
    pub vlans: bool,
    /// MAC address, zero if it has none.
    pub mac: [u8; 6],
    /// ifindex of the device that hands its packets on as its own (a bridge, bond or team), or 0.
    pub port_of: u32,
    /// `ARPHRD_*`: which link-layer header its packets have.
    pub header_type: u16,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// The UDP port at which it takes packets out of a tunnel, or 0.
    pub tunnel_port: u16,
    /// Whether it has an XDP program, in whichever mode.
    pub xdp: bool,
}

/// Reads the payload of `RTM_NEWLINK` or `RTM_DELLINK`. `None` for messages about something else: a bridge tells
/// about its ports in the same message types, with another family.
pub fn parse_link(payload: &[u8]) -> Option<Link> {
    let (header, rest) = payload.split_at_checked(IFINFOMSG)?;
    if *header.first()? != 0 {
        return None;
    }
    let mut link = Link {
        ifindex: number(header.get(4..8)?)?,
        header_type: parse_u16(header.get(2..4)?).ok()?,
        ..Link::default()
    };
    let (mut master, mut port_kind) = (0, String::new());
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = parse_mac(value).unwrap_or_default(),
            IFLA_MTU => link.mtu = number(value)?,
            IFLA_LINK => link.peer = number(value)?,
            IFLA_MASTER => master = number(value)?,
            IFLA_XDP => {
                let mut modes = attributes(value).filter(|(kind, _)| *kind == IFLA_XDP_ATTACHED);
                link.xdp = modes.any(|(_, mode)| mode.first().is_some_and(|mode| *mode != 0));
            }
            // A negative id means that the kernel could not number the namespace.
            IFLA_LINK_NETNSID => link.nsid = number(value).filter(|id| *id <= i32::MAX as u32),
            IFLA_LINKINFO => {
                let (mut data, mut port_data): (&[u8], &[u8]) = (&[], &[]);
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_INFO_DATA => data = value,
                        IFLA_INFO_KIND => link.kind = text(value),
                        IFLA_INFO_SLAVE_KIND => port_kind = text(value),
                        IFLA_INFO_SLAVE_DATA => port_data = value,
                        _ => {}
                    }
                }
                let is_set = |data, kind| {
                    let value = attributes(data).find(|(attribute, _)| *attribute == kind);
                    value.is_some_and(|(_, value)| value.first().is_some_and(|byte| *byte != 0))
                };
                link.isolated = port_kind == "bridge" && is_set(port_data, IFLA_BRPORT_ISOLATED);
                link.vlans = link.kind == "bridge" && is_set(data, IFLA_BR_VLAN_FILTERING);
                link.tunnel_port = tunnel_port(&link.kind, data);
            }
            _ => {}
        }
    }
    if port_kind == "bridge" {
        link.bridge = master;
    }
    // A VRF only chooses the routing table: packets come in by its ports.
    if port_kind != "vrf" {
        link.port_of = master;
    }
    Some(link)
}

/// The port in the data of a tunnel's kind, also when its device takes its peers from routes (flow-based).
fn tunnel_port(kind: &str, data: &[u8]) -> u16 {
    let wanted = TUNNELS.iter().find(|(name, _)| *name == kind).map(|(_, attribute)| *attribute);
    let mut found = attributes(data).filter(|(attribute, _)| Some(*attribute) == wanted);
    found.find_map(|(_, value)| parse_u16_be(value).ok()).unwrap_or(0)
}

/// All devices of our namespace.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn all(client: &mut NetlinkClient) -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    client.call(&NetlinkRequest::new(RTM_GETLINK, Want::Dump, &ifinfomsg(0)), |_, payload| {
        links.extend(parse_link(payload));
    })?;
    Ok(links)
}

/// One device of our namespace, `None` when it does not exist (any more).
///
/// # Errors
/// When the kernel refuses.
pub fn one(client: &mut NetlinkClient, ifindex: u32) -> io::Result<Option<Link>> {
    ask(client, &NetlinkRequest::new(RTM_GETLINK, Want::Object, &ifinfomsg(ifindex)))
}

/// One device of another namespace.
///
/// # Errors
/// When the kernel refuses; needs `CAP_NET_ADMIN` over that namespace.
pub fn one_in(client: &mut NetlinkClient, nsid: u32, ifindex: u32) -> io::Result<Option<Link>> {
    let request = NetlinkRequest::new(RTM_GETLINK, Want::Object, &ifinfomsg(ifindex))
        .attr(IFLA_TARGET_NETNSID, &word32(nsid));
    ask(client, &request)
}

fn ask(client: &mut NetlinkClient, request: &NetlinkRequest) -> io::Result<Option<Link>> {
    let mut link = None;
    match client.call(request, |_, payload| link = parse_link(payload)) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
        Ok(()) => Ok(link),
    }
}

fn ifinfomsg(ifindex: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&word32(ifindex));
    header
}

/// A 32-bit integer of an attribute.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    parse_u32(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::{Link, parse_link};
    use crate::devices::netlink::word32;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_le_bytes().to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link_message(family: u8, attrs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[0] = family;
        bytes[2] = 1;
        bytes[4..8].copy_from_slice(&word32(9));
        bytes.extend(attrs.concat());
        bytes
    }

    #[test]
    fn links() {
        let port = attr(5, &[attr(32, &[0]), attr(33, &[1])].concat());
        let info = [attr(1, b"veth\0"), attr(4, b"bridge\0"), port].concat();
        let bridged = [
            attr(3, b"veth1\0"),
            attr(1, &[2, 0, 0, 0, 0, 1]),
            attr(4, &word32(1450)),
            attr(5, &word32(2)),
            attr(10, &word32(4)),
            attr(18, &info),
            attr(37, &word32(0)),
        ];
        let want = Link {
            ifindex: 9,
            name: "veth1".to_owned(),
            kind: "veth".to_owned(),
            peer: 2,
            nsid: Some(0),
            bridge: 4,
            isolated: true,
            vlans: false,
            mac: [2, 0, 0, 0, 0, 1],
            port_of: 4,
            header_type: 1,
            mtu: 1450,
            tunnel_port: 0,
            xdp: false,
        };
        let in_vrf = [attr(10, &word32(4)), attr(18, &attr(4, b"vrf\0"))];
        let device = Link { ifindex: 9, header_type: 1, ..Link::default() };
        let tunnel = |kind: &str, data: Vec<u8>| {
            link_message(0, &[attr(18, &[attr(1, kind.as_bytes()), attr(2, &data)].concat())])
        };
        let with = |kind: &str, tunnel_port: u16| {
            Some(Link { kind: kind.to_owned(), tunnel_port, ..device.clone() })
        };
        let id = attr(1, &word32(7));
        let port = |kind: u16, port: u16| attr(kind, &port.to_be_bytes());
        let vxlan = [id.clone(), port(15, 4789)].concat();
        let bridge = |vlans: u8| attr(2, &attr(7, &[vlans]));
        let bridge = |vlans: u8| {
            link_message(0, &[attr(18, &[attr(1, b"bridge\0"), bridge(vlans)].concat())])
        };
        let is_bridge =
            |vlans: bool| Some(Link { kind: "bridge".to_owned(), vlans, ..device.clone() });
        let xdp = |mode: u8| link_message(0, &[attr(43, &attr(2, &[mode]))]);
        let cases: [(&str, Vec<u8>, Option<Link>); 15] = [
            ("a bridge", bridge(0), is_bridge(false)),
            ("a bridge that filters VLANs", bridge(1), is_bridge(true)),
            ("an XDP program", xdp(1), Some(Link { xdp: true, ..device.clone() })),
            ("none", xdp(0), Some(device.clone())),
            ("VXLAN", tunnel("vxlan\0", vxlan), with("vxlan", 4789)),
            ("Geneve", tunnel("geneve\0", port(5, 6081)), with("geneve", 6081)),
            ("MPLS in UDP", tunnel("bareudp\0", port(1, 6635)), with("bareudp", 6635)),
            ("no tunnel", tunnel("macvlan\0", port(15, 4789)), with("macvlan", 0)),
            ("a port of a bridge", link_message(0, &bridged), Some(want)),
            ("the bridge's own message", link_message(7, &bridged), None),
            (
                "both ends here",
                link_message(0, &[attr(5, &word32(2))]),
                Some(Link { peer: 2, ..device.clone() }),
            ),
            (
                "a namespace that could not be numbered",
                link_message(0, &[attr(37, &word32(u32::MAX))]),
                Some(device.clone()),
            ),
            ("in a VRF", link_message(0, &in_vrf), Some(device.clone())),
            (
                "a port of a bond",
                link_message(0, &[attr(10, &word32(4)), attr(18, &attr(4, b"bond\0"))]),
                Some(Link { port_of: 4, ..device }),
            ),
            ("too short", vec![0; 8], None),
        ];
        for (name, message, want) in cases {
            assert_eq!(parse_link(&message), want, "{name}");
        }
    }
}
