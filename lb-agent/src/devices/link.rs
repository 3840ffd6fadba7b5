//! What a netlink message says about a device or an address, and the requests that ask for it.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{parse_ip, parse_mac, parse_u32};

use super::netlink::{Client, Request, Want, attributes, text, word32};

/// `RTM_NEWLINK` (include/uapi/linux/rtnetlink.h).
pub const RTM_NEWLINK: u16 = 16;
/// `RTM_DELLINK`.
pub const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;

/// Lengths of `struct ifinfomsg` and `struct ifaddrmsg`.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
/// Also called `IFLA_IF_NETNSID`.
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_TARGET_NETNSID: u16 = 10;

/// `IFA_F_SECONDARY` (for IPv6 `IFA_F_TEMPORARY`) and `IFA_F_DADFAILED`: not the address that others know a Pod by.
const NOT_THE_MAIN_ADDRESS: u32 = 0x01 | 0x08;
/// `RT_SCOPE_UNIVERSE`.
const SCOPE_GLOBAL: u8 = 0;

/// A device of our network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, always positive.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, ...; empty for hardware.
    pub kind: String,
    /// `IFLA_LINK`: for a veth, the ifindex of its other end (in that end's namespace).
    pub peer: u32,
    /// `IFLA_LINK_NETNSID`: the namespace of the other end as ours numbers it; absent when both are in ours.
    pub nsid: Option<u32>,
    /// ifindex of the bridge that it is a port of, or 0.
    pub bridge: u32,
    /// MAC address, zero if it has none.
    pub mac: [u8; 6],
}

/// Reads the payload of `RTM_NEWLINK` or `RTM_DELLINK`. `None` for messages about something else: a bridge tells
/// about its ports in the same message types, with another family.
pub fn parse_link(payload: &[u8]) -> Option<Link> {
    let (header, rest) = payload.split_at_checked(IFINFOMSG)?;
    if *header.first()? != 0 {
        return None;
    }
    let mut link = Link { ifindex: number(header.get(4..8)?)?, ..Link::default() };
    let (mut master, mut is_port) = (0, false);
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = parse_mac(value).unwrap_or_default(),
            IFLA_LINK => link.peer = number(value)?,
            IFLA_MASTER => master = number(value)?,
            // A negative id means that the kernel could not number the namespace.
            IFLA_LINK_NETNSID => link.nsid = number(value).filter(|id| *id <= i32::MAX as u32),
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = text(value),
                        IFLA_INFO_SLAVE_KIND => is_port |= text(value) == "bridge",
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if is_port {
        link.bridge = master;
    }
    Some(link)
}

/// The addresses of a Pod's device that others know it by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The first global primary IPv4 address.
    pub ip4: Option<IpAddr>,
    /// The first global permanent IPv6 address.
    pub ip6: Option<IpAddr>,
}

/// Reads the payload of `RTM_NEWADDR` and keeps the address if it is one that others know the Pod by.
pub fn add_address(found: &mut Addresses, payload: &[u8]) {
    let Some((header, rest)) = payload.split_at_checked(IFADDRMSG) else { return };
    let (mut flags, mut scope) = (0, SCOPE_GLOBAL);
    if let [_, _, header_flags, header_scope, ..] = header {
        (flags, scope) = (u32::from(*header_flags), *header_scope);
    }
    let (mut address, mut local) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            IFA_ADDRESS => address = parse_ip(value).ok(),
            // The own address, where `IFA_ADDRESS` is that of the other end of a point-to-point device.
            IFA_LOCAL => local = parse_ip(value).ok(),
            IFA_FLAGS => flags = number(value).unwrap_or(flags),
            _ => {}
        }
    }
    if scope != SCOPE_GLOBAL || flags & NOT_THE_MAIN_ADDRESS != 0 {
        return;
    }
    match local.or(address) {
        Some(ip @ IpAddr::V4(_)) => found.ip4 = found.ip4.or(Some(ip)),
        Some(ip @ IpAddr::V6(v6)) if v6 != Ipv6Addr::UNSPECIFIED => {
            found.ip6 = found.ip6.or(Some(ip));
        }
        Some(IpAddr::V6(_)) | None => {}
    }
}

/// All devices of our namespace.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn all(client: &mut Client) -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    client.call(&Request::new(RTM_GETLINK, Want::Dump, &ifinfomsg(0)), |_, payload| {
        links.extend(parse_link(payload));
    })?;
    Ok(links)
}

/// One device of our namespace, `None` when it does not exist (any more).
///
/// # Errors
/// When the kernel refuses.
pub fn one(client: &mut Client, ifindex: u32) -> io::Result<Option<Link>> {
    ask(client, &Request::new(RTM_GETLINK, Want::Object, &ifinfomsg(ifindex)))
}

/// One device of another namespace.
///
/// # Errors
/// When the kernel refuses; needs `CAP_NET_ADMIN` over that namespace.
pub fn one_in(client: &mut Client, nsid: u32, ifindex: u32) -> io::Result<Option<Link>> {
    let request = Request::new(RTM_GETLINK, Want::Object, &ifinfomsg(ifindex))
        .attr(IFLA_TARGET_NETNSID, &word32(nsid));
    ask(client, &request)
}

/// The addresses of one device of another namespace.
///
/// # Errors
/// When the kernel refuses; needs `CAP_NET_ADMIN` over that namespace.
pub fn addresses_in(client: &mut Client, nsid: u32, ifindex: u32) -> io::Result<Addresses> {
    let mut header = [0; IFADDRMSG];
    header[4..].copy_from_slice(&word32(ifindex));
    let request =
        Request::new(RTM_GETADDR, Want::Dump, &header).attr(IFA_TARGET_NETNSID, &word32(nsid));
    let mut found = Addresses::default();
    client.call(&request, |_, payload| add_address(&mut found, payload))?;
    Ok(found)
}

/// Whether the device has an address with a network behind it, as the node's uplinks have. The host's end of a Pod's
/// veth has none, or only a host address that the CNI uses as the Pod's gateway.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn has_network(client: &mut Client, ifindex: u32) -> io::Result<bool> {
    let mut found = false;
    let request = Request::new(RTM_GETADDR, Want::Dump, &[0; IFADDRMSG]);
    client.call(&request, |_, payload| found |= is_network(payload, ifindex))?;
    Ok(found)
}

/// Whether the payload of an `RTM_NEWADDR` is about this device and a global address that stands for a network.
fn is_network(payload: &[u8], ifindex: u32) -> bool {
    let Some((header, _)) = payload.split_at_checked(IFADDRMSG) else { return false };
    let [family, prefix, _, scope, device @ ..] = header else { return false };
    let host = if i32::from(*family) == libc::AF_INET { 32 } else { 128 };
    number(device) == Some(ifindex) && *scope == SCOPE_GLOBAL && *prefix < host
}

fn ask(client: &mut Client, request: &Request) -> io::Result<Option<Link>> {
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

fn number(bytes: &[u8]) -> Option<u32> {
    parse_u32(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::{Addresses, Link, add_address, parse_link};
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
        bytes[4..8].copy_from_slice(&word32(9));
        bytes.extend(attrs.concat());
        bytes
    }

    #[test]
    fn links() {
        let info = [attr(1, b"veth\0"), attr(4, b"bridge\0")].concat();
        let bridged = [
            attr(3, b"veth1\0"),
            attr(1, &[2, 0, 0, 0, 0, 1]),
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
            mac: [2, 0, 0, 0, 0, 1],
        };
        let cases: [(&str, Vec<u8>, Option<Link>); 5] = [
            ("a port of a bridge", link_message(0, &bridged), Some(want)),
            ("the bridge's own message", link_message(7, &bridged), None),
            (
                "both ends here",
                link_message(0, &[attr(5, &word32(2))]),
                Some(Link { ifindex: 9, peer: 2, ..Link::default() }),
            ),
            (
                "a namespace that could not be numbered",
                link_message(0, &[attr(37, &word32(u32::MAX))]),
                Some(Link { ifindex: 9, ..Link::default() }),
            ),
            ("too short", vec![0; 8], None),
        ];
        for (name, message, want) in cases {
            assert_eq!(parse_link(&message), want, "{name}");
        }
    }

    fn address_message(scope: u8, flags: u8, attrs: &[Vec<u8>]) -> Vec<u8> {
        [vec![0, 24, flags, scope, 0, 0, 0, 0], attrs.concat()].concat()
    }

    #[test]
    fn an_address_with_a_network_makes_an_uplink() {
        let message = |family: i32, prefix: u8, scope: u8, ifindex: u32| {
            [&[family as u8, prefix, 0, scope], word32(ifindex).as_slice()].concat()
        };
        let cases = [
            ("eth0 of a node", message(libc::AF_INET, 24, 0, 3), true),
            ("the same in IPv6", message(libc::AF_INET6, 64, 0, 3), true),
            ("a gateway for one Pod", message(libc::AF_INET, 32, 0, 3), false),
            ("the same in IPv6", message(libc::AF_INET6, 128, 0, 3), false),
            ("link-local", message(libc::AF_INET6, 64, 253, 3), false),
            ("another device's", message(libc::AF_INET, 24, 0, 4), false),
            ("too short", vec![2, 24], false),
        ];
        for (name, payload, want) in cases {
            assert_eq!(super::is_network(&payload, 3), want, "{name}");
        }
    }

    #[test]
    fn the_addresses_that_others_know_a_pod_by() {
        let v6 = |last: u8| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let messages = [
            address_message(254, 0, &[attr(1, &[127, 0, 0, 1])]),
            address_message(0, 1, &[attr(2, &[10, 1, 0, 9])]),
            address_message(0, 0, &[attr(1, &[10, 1, 0, 1]), attr(2, &[10, 1, 0, 2])]),
            address_message(0, 0, &[attr(2, &[10, 1, 0, 3])]),
            address_message(253, 0, &[attr(1, &v6(1))]),
            address_message(0, 0, &[attr(1, &v6(2)), attr(8, &word32(0x01))]),
            address_message(0, 0, &[attr(1, &v6(3)), attr(8, &word32(0x80))]),
        ];
        let mut found = Addresses::default();
        for message in &messages {
            add_address(&mut found, message);
        }
        assert_eq!(found.ip4.unwrap().to_string(), "10.1.0.2", "its own end, primary, first");
        assert_eq!(found.ip6.unwrap().to_string(), "fd00::3", "permanent and global");
    }
}
