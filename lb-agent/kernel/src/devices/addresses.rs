//! What a netlink message says about an address; the addresses behind a Pod's veth, and those of this host.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use libc::{
    IFA_ADDRESS, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_SECONDARY, IFA_FLAGS, IFA_LOCAL,
    RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RTM_GETADDR,
};
use netlink_packet_core::parse_ip;

use super::link::number;
use super::netlink::{NetlinkClient, NetlinkRequest, Want, attributes, word32};

/// Length of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;

/// Of include/uapi/linux/if_addr.h; libc lacks it.
const IFA_TARGET_NETNSID: u16 = 10;

/// `IFA_F_SECONDARY` (for IPv6 `IFA_F_TEMPORARY`) and `IFA_F_DADFAILED`: not the address that others know a Pod by.
const NOT_THE_MAIN_ADDRESS: u32 = IFA_F_SECONDARY | IFA_F_DADFAILED;
/// Addresses of a Pod's namespace that are looked at.
const MOST_INSIDE: usize = 256;

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device.
    pub ifindex: u32,
    /// The device's own end, where it is point-to-point.
    pub ip: IpAddr,
    /// Length of its network's prefix in bits.
    pub prefix: u8,
    scope: u8,
    flags: u32,
}

impl Address {
    /// Reads the payload of `RTM_NEWADDR` or `RTM_DELADDR`.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (header, rest) = payload.split_at_checked(IFADDRMSG)?;
        let [_, prefix, flags, scope, device @ ..] = header else { return None };
        let mut flags = u32::from(*flags);
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
        let ip = local.or(address).filter(|ip| *ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
        Some(Self { ifindex: number(device)?, ip, prefix: *prefix, scope: *scope, flags })
    }

    /// Whether others know the device by it: global, primary (of IPv6: permanent) and not a duplicate.
    fn is_main(&self) -> bool {
        self.scope == RT_SCOPE_UNIVERSE && self.flags & NOT_THE_MAIN_ADDRESS == 0
    }

    fn inside(&self) -> Option<PodAddress> {
        let is_known = self.flags & IFA_F_DADFAILED == 0 && self.scope < RT_SCOPE_LINK;
        let Self { ifindex: device, ip, .. } = *self;
        is_known.then(|| PodAddress { device, ip, main: self.is_main() })
    }

    /// Whether it stands for a network, as the addresses of the node's uplinks do.
    fn has_network(&self) -> bool {
        let host = if self.ip.is_ipv4() { 32 } else { 128 };
        self.scope == RT_SCOPE_UNIVERSE && self.prefix < host
    }
}

/// One address in each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressPair {
    /// The first global primary IPv4 address.
    pub ip4: Option<IpAddr>,
    /// The first global permanent IPv6 address.
    pub ip6: Option<IpAddr>,
}

impl AddressPair {
    /// Keeps an address if it is one that others know the device by, and the first of its family.
    fn add(&mut self, address: &Address) {
        if address.is_main() {
            let place = if address.ip.is_ipv4() { &mut self.ip4 } else { &mut self.ip6 };
            *place = place.or(Some(address.ip));
        }
    }

    /// What is missing here is taken from there.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { ip4: self.ip4.or(other.ip4), ip6: self.ip6.or(other.ip6) }
    }
}

/// An address in a Pod's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// ifindex of the device, in that namespace.
    pub device: u32,
    /// The address.
    pub ip: IpAddr,
    /// Whether others know the device by it.
    pub main: bool,
}

impl AddressPair {
    /// The first main address in each family of one of the devices.
    pub fn of(device: u32, inside: &[PodAddress]) -> Self {
        let main = inside.iter().filter(|address| address.main && address.device == device);
        main.fold(Self::default(), |found, PodAddress { ip, .. }| {
            found.or(match ip {
                IpAddr::V4(_) => Self { ip4: Some(*ip), ip6: None },
                IpAddr::V6(_) => Self { ip4: None, ip6: Some(*ip) },
            })
        })
    }
}

/// The addresses of all devices of another namespace, in the kernel's order, but for those that are good within it
/// only. Whoever is in there may add as many as he likes: the first ones count.
///
/// # Errors
/// When the kernel refuses; needs `CAP_NET_ADMIN` over that namespace.
pub fn inside(client: &mut NetlinkClient, nsid: u32) -> io::Result<Vec<PodAddress>> {
    let request = NetlinkRequest::new(RTM_GETADDR, Want::Dump, &[0; IFADDRMSG])
        .attr(IFA_TARGET_NETNSID, &word32(nsid));
    let mut found = Vec::new();
    client.call(&request, |_, payload| {
        if found.len() < MOST_INSIDE
            && let Some(address) = Address::parse(payload)
        {
            found.extend(address.inside());
        }
    })?;
    Ok(found)
}

/// All addresses of our namespace, in the kernel's order.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn all(client: &mut NetlinkClient) -> io::Result<Vec<Address>> {
    let mut found = Vec::new();
    let request = NetlinkRequest::new(RTM_GETADDR, Want::Dump, &[0; IFADDRMSG]);
    client.call(&request, |_, payload| found.extend(Address::parse(payload)))?;
    Ok(found)
}

/// The addresses of this host.
#[derive(Debug, Default)]
pub struct HostAddresses {
    /// By device, address and prefix; with the order in which the kernel told them.
    list: BTreeMap<(u32, IpAddr, u8), (u64, Address)>,
    arrived: u64,
}

impl HostAddresses {
    /// An address exists as described. `true` when that is news.
    pub(super) fn put(&mut self, address: Address) -> bool {
        let key = (address.ifindex, address.ip, address.prefix);
        if let Some((_, known)) = self.list.get_mut(&key) {
            let news = *known != address;
            *known = address;
            return news;
        }
        self.arrived += 1;
        self.list.insert(key, (self.arrived, address));
        true
    }

    /// An address is gone. `true` when it was known.
    pub(super) fn remove(&mut self, address: &Address) -> bool {
        self.list.remove(&(address.ifindex, address.ip, address.prefix)).is_some()
    }

    /// These are all addresses. Returns the devices whose addresses are others than before.
    pub(super) fn replace(&mut self, all: Vec<Address>) -> BTreeSet<u32> {
        let former = std::mem::take(&mut self.list);
        self.arrived = 0;
        for address in all {
            self.put(address);
        }
        let differs = |(key, (_, address)): (&(u32, IpAddr, u8), &(u64, Address)),
                       other: &BTreeMap<_, (u64, Address)>| {
            other.get(key).is_none_or(|(_, known)| known != address).then_some(key.0)
        };
        let mut changed: BTreeSet<u32> =
            former.iter().filter_map(|entry| differs(entry, &self.list)).collect();
        changed.extend(self.list.iter().filter_map(|entry| differs(entry, &former)));
        changed
    }

    /// Whether the device has an address with a network behind it, as the node's uplinks have. The host's end of a
    /// Pod's veth has none, or only a host address that the CNI uses as the Pod's gateway.
    pub fn has_network(&self, ifindex: u32) -> bool {
        self.of(ifindex).any(|(_, address)| address.has_network())
    }

    /// The addresses that others know a device by: its first in IPv4, as the kernel chooses sources; in IPv6 the
    /// lowest, since the kernel has no order of its own there, and not a deprecated one if there is another.
    pub fn main(&self, ifindex: u32) -> AddressPair {
        let mut main: Vec<_> = self.of(ifindex).filter(|(_, address)| address.is_main()).collect();
        main.sort_by_key(|(arrived, address)| {
            let arrived = if address.ip.is_ipv4() { *arrived } else { 0 };
            (address.flags & IFA_F_DEPRECATED, arrived, address.ip)
        });
        let mut found = AddressPair::default();
        for (_, address) in main {
            found.add(address);
        }
        found
    }

    /// Every address at which the host can be reached by others: of all devices and scopes, but not the loopback's.
    pub fn reachable(&self) -> impl Iterator<Item = IpAddr> {
        self.list
            .values()
            .map(|(_, address)| address)
            .filter(|address| address.flags & IFA_F_DADFAILED == 0)
            .map(|address| address.ip)
            .filter(|ip| !ip.is_loopback())
    }

    fn of(&self, ifindex: u32) -> impl Iterator<Item = &(u64, Address)> {
        // IPv4 sorts before IPv6.
        let first = (ifindex, IpAddr::from([0; 4]), 0);
        let last = (ifindex, IpAddr::from([0xff; 16]), u8::MAX);
        self.list.range(first..=last).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Address, AddressPair, HostAddresses};
    use crate::devices::netlink::word32;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_le_bytes().to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(scope: u8, flags: u8, attrs: &[Vec<u8>]) -> Vec<u8> {
        [vec![0, 24, flags, scope, 3, 0, 0, 0], attrs.concat()].concat()
    }

    #[test]
    fn the_addresses_that_others_know_a_pod_by() {
        let v6 = |last: u8| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let messages = [
            message(254, 0, &[attr(1, &[127, 0, 0, 1])]),
            message(0, 1, &[attr(2, &[10, 1, 0, 9])]),
            message(0, 0, &[attr(1, &[10, 1, 0, 1]), attr(2, &[10, 1, 0, 2])]),
            message(0, 0, &[attr(2, &[10, 1, 0, 3])]),
            message(253, 0, &[attr(1, &v6(1))]),
            message(0, 0, &[attr(1, &v6(2)), attr(8, &word32(0x01))]),
            message(0, 0, &[attr(1, &v6(3)), attr(8, &word32(0x80))]),
        ];
        let mut found = AddressPair::default();
        for message in &messages {
            found.add(&Address::parse(message).unwrap());
        }
        assert_eq!(found.ip4.unwrap().to_string(), "10.1.0.2", "its own end, primary, first");
        assert_eq!(found.ip6.unwrap().to_string(), "fd00::3", "permanent and global");
        let inside: Vec<_> =
            messages.iter().filter_map(|message| Address::parse(message)?.inside()).collect();
        let shown: Vec<_> = inside.iter().map(|of| (of.ip.to_string(), of.main)).collect();
        let want = [
            ("10.1.0.9", false),
            ("10.1.0.2", true),
            ("10.1.0.3", true),
            ("fd00::2", false),
            ("fd00::3", true),
        ];
        assert_eq!(shown, want.map(|(ip, main)| (ip.to_owned(), main)));
        assert_eq!(AddressPair::of(3, &inside), found);
        assert_eq!(AddressPair::of(4, &inside), AddressPair::default(), "another device's");
        assert_eq!(Address::parse(&[2, 24]), None, "too short");
        assert_eq!(Address::parse(&message(0, 0, &[])), None, "without an address");
    }

    fn address(ifindex: u32, ip: &str, prefix: u8, scope: u8, flags: u32) -> Address {
        Address { ifindex, ip: ip.parse().unwrap(), prefix, scope, flags }
    }

    #[test]
    fn an_address_with_a_network_makes_an_uplink() {
        let cases = [
            ("eth0 of a node", address(3, "192.0.2.1", 24, 0, 0), true),
            ("the same in IPv6", address(3, "2001:db8::1", 64, 0, 0), true),
            ("a gateway for one Pod", address(3, "192.0.2.1", 32, 0, 0), false),
            ("the same in IPv6", address(3, "2001:db8::1", 128, 0, 0), false),
            ("link-local", address(3, "fe80::1", 64, 253, 0), false),
            ("another device's", address(4, "192.0.2.1", 24, 0, 0), false),
        ];
        for (name, address, want) in cases {
            let mut host = HostAddresses::default();
            host.put(address);
            assert_eq!(host.has_network(3), want, "{name}");
        }
    }

    #[test]
    fn the_main_address_of_a_device() {
        let mut host = HostAddresses::default();
        for address in [
            address(3, "192.0.2.9", 24, 0, 0),
            address(3, "192.0.2.1", 24, 0, 1),
            address(3, "198.51.100.1", 24, 0, 0),
            address(3, "169.254.0.1", 16, 253, 0),
            address(3, "2001:db8::1", 64, 0, 0x20),
            address(3, "2001:db8::9", 64, 0, 0),
            address(3, "2001:db8::5", 64, 0, 0),
            address(3, "2001:db8::2", 64, 0, 8),
            address(3, "fe80::1", 64, 253, 0),
            address(4, "203.0.113.1", 24, 0, 0),
        ] {
            assert!(host.put(address));
        }
        let shown = |addresses: AddressPair| {
            [addresses.ip4, addresses.ip6].map(|ip| ip.map(|ip: IpAddr| ip.to_string()))
        };
        let text = |ip: &str| Some(ip.to_owned());
        assert_eq!(shown(host.main(3)), [text("192.0.2.9"), text("2001:db8::5")]);
        assert_eq!(shown(host.main(4)), [text("203.0.113.1"), None]);
        assert_eq!(shown(host.main(5)), [None, None]);
        assert_eq!(host.reachable().count(), 9, "all but the duplicate");

        // The primary goes, the secondary is promoted: the same address with other flags.
        assert!(host.remove(&address(3, "192.0.2.9", 24, 0, 0)));
        assert!(!host.remove(&address(3, "192.0.2.9", 24, 0, 0)), "said again");
        assert!(host.put(address(3, "192.0.2.1", 24, 0, 0)));
        assert_eq!(shown(host.main(3)), [text("192.0.2.1"), text("2001:db8::5")]);
    }

    #[test]
    fn the_loopback_is_not_an_address_of_the_node_but_others_on_lo_are() {
        let mut host = HostAddresses::default();
        for ip in ["127.0.0.1", "::1", "203.0.113.7"] {
            host.put(address(1, ip, 32, 254, 0));
        }
        assert_eq!(host.reachable().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["203.0.113.7"]);
    }

    #[test]
    fn a_new_list_tells_whose_addresses_changed() {
        let mut host = HostAddresses::default();
        let [a, b, c] = [(3, "192.0.2.1"), (4, "192.0.2.2"), (5, "192.0.2.3")]
            .map(|(ifindex, ip)| address(ifindex, ip, 24, 0, 0));
        assert_eq!(host.replace(vec![a, b]), [3, 4].into());
        assert_eq!(host.replace(vec![a, Address { flags: 1, ..b }, c]), [4, 5].into());
        assert_eq!(host.replace(vec![c]), [3, 4].into());
        assert_eq!(host.replace(vec![c]), [].into());
    }
}
