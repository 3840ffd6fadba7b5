//! This node's devices → what the maps `ident` and `devs` should say of its addresses. The planner writes them; in `ident`
//! together with what policies say of the same addresses.
//!
//! All of it is computed again each time, from the devices as they are: a few hundred elements.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use lb_common::addr::Addr;
use lb_common::endpoint::{Dev, DevFlags, Ident, IdentFlags};

use lb_core::plan::Actual;
use lb_kernel::devices::addresses::AddressPair as OfDevice;
use lb_kernel::devices::{Devices, reverse_path};

const LOCAL_NODE: Ident = Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO };

/// What the two maps should say of this node.
pub(super) struct NodeAddresses {
    /// What the node's devices say of `ident`.
    ident: BTreeMap<Addr, Ident>,
    /// The node's own addresses when `devs` was computed last.
    named: Box<[Addr]>,
}

impl NodeAddresses {
    /// Takes over what an earlier run left.
    pub(super) fn take_over(actual: &Actual) -> Self {
        let ident = actual.ident.iter().map(|(addr, known)| (*addr, of_device(known))).collect();
        Self { ident, named: Box::default() }
    }

    /// Computes `ident` from what lies behind each of the Pods' devices.
    pub(super) fn claim(&mut self, devices: &Devices, behind: &[Claim]) {
        self.ident = idents(devices.host().reachable(), behind, &self.ident);
    }

    /// What `devs` should say. `node` are the node's own addresses as Kubernetes knows them; `past` says by which devices flows
    /// to and from Pods of other nodes may go past the IP stack.
    pub(super) fn devs(
        &mut self,
        devices: &Devices,
        node: &[Addr],
        past: impl Fn(u32) -> bool,
    ) -> BTreeMap<u32, Dev> {
        self.named = node.into();
        let host: HashSet<Addr> = devices.host().reachable().map(Addr::from_ip).collect();
        let named = node.iter().filter(|addr| host.contains(addr));
        let standing = first(named).or(devices.node_addresses());
        let pod_bridges = devices.pod_bridges();
        let devs = devices.routed().map(|(ifindex, uplink)| {
            let main = devices.host().main(ifindex);
            let flags = DevFlags::PODS.when(pod_bridges.contains(&ifindex))
                | DevFlags::HOP_OK.when(past(ifindex))
                | DevFlags::STRICT.when(reverse_path::is_strict(&uplink.name));
            (ifindex, dev(main.or(standing), uplink.mtu, flags))
        });
        devs.collect()
    }

    /// Whether these are other addresses of the node than those of the last update.
    pub(super) fn is_news(&self, node: &[Addr]) -> bool {
        *self.named != *node
    }

    /// What `ident` should say of this node's devices; policies say the rest.
    pub(super) fn idents(&self) -> &BTreeMap<Addr, Ident> {
        &self.ident
    }
}

/// What an element of `ident` says of a device of this node.
fn of_device(known: &Ident) -> Ident {
    let flags = known.flags.only(IdentFlags::LOCAL_NODE);
    Ident { flags, ifindex: known.ifindex, ..Ident::ZERO }
}

/// Number of a device, which addresses lie behind it, and whether those stay that are written: the agent has just
/// started.
pub(super) type Claim = (u32, (Vec<Addr>, bool));

/// Who has which address. A host's own address is never a Pod's.
fn idents(
    host: impl Iterator<Item = IpAddr>,
    behind: &[Claim],
    written: &BTreeMap<Addr, Ident>,
) -> BTreeMap<Addr, Ident> {
    let mut idents = BTreeMap::new();
    for (ifindex, (_, stay)) in behind {
        let stay = |(_, old): &(&Addr, &Ident)| *stay && old.ifindex == *ifindex;
        idents.extend(written.iter().filter(stay).map(|(addr, old)| (*addr, *old)));
    }
    for (ifindex, (addresses, _)) in behind {
        let ident = Ident { ifindex: *ifindex, ..Ident::ZERO };
        idents.extend(addresses.iter().map(|addr| (*addr, ident)));
    }
    idents.extend(host.map(|ip| (Addr::from_ip(ip), LOCAL_NODE)));
    idents
}

/// The first address of each family.
fn first<'a>(addresses: impl Iterator<Item = &'a Addr>) -> OfDevice {
    addresses.fold(OfDevice::default(), |found, addr| {
        let ip = addr.to_ip();
        found.or(match ip {
            IpAddr::V4(_) => OfDevice { ip4: Some(ip), ip6: None },
            IpAddr::V6(_) => OfDevice { ip4: None, ip6: Some(ip) },
        })
    })
}

fn dev(source: OfDevice, mtu: u32, flags: DevFlags) -> Dev {
    let addr = |ip: Option<IpAddr>| ip.map_or(Addr::NONE, Addr::from_ip);
    Dev { masquerade4: addr(source.ip4), masquerade6: addr(source.ip6), mtu, flags }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Addr, DevFlags, Ident, LOCAL_NODE, OfDevice, dev, first, idents};

    fn addr(text: &str) -> Addr {
        Addr::from_ip(text.parse().unwrap())
    }

    #[test]
    fn who_has_which_address() {
        let of = |ifindex: u32| Ident { ifindex, ..Ident::ZERO };
        let host = ["192.0.2.1", "fe80::1", "10.1.0.1"].map(|ip| ip.parse().unwrap());
        let behind = |ifindex, ips: &[&str], stay| {
            (ifindex, (ips.iter().map(|ip| addr(ip)).collect(), stay))
        };
        let behind = [
            behind(5, &["10.1.0.2", "fd01::2"], false),
            behind(6, &["10.1.0.7"], true),
            behind(7, &[], false),
            behind(8, &["10.1.0.1"], false),
        ];
        let left = [
            (addr("10.1.0.6"), of(6)),
            (addr("10.1.0.9"), of(9)),
            (addr("10.1.0.70"), of(7)),
            (addr("10.1.0.66"), of(5)),
            (addr("192.0.2.77"), LOCAL_NODE),
        ];
        let got = idents(host.into_iter(), &behind, &BTreeMap::from(left));
        let want = [
            ("10.1.0.1", LOCAL_NODE),
            ("10.1.0.2", of(5)),
            ("10.1.0.6", of(6)),
            ("10.1.0.7", of(6)),
            ("192.0.2.1", LOCAL_NODE),
            ("fd01::2", of(5)),
            ("fe80::1", LOCAL_NODE),
        ];
        assert_eq!(got, want.map(|(ip, ident)| (addr(ip), ident)).into());
    }

    #[test]
    fn the_source_of_masqueraded_flows() {
        let node = [addr("2001:db8::1"), addr("192.0.2.1"), addr("192.0.2.2")];
        let main = OfDevice { ip4: Some("198.51.100.1".parse().unwrap()), ip6: None };
        let got = dev(main.or(first(node.iter())), 1450, DevFlags::NONE);
        assert_eq!((got.masquerade4, got.masquerade6), (addr("198.51.100.1"), addr("2001:db8::1")));
        let got = dev(OfDevice::default().or(first(node.iter())), 1450, DevFlags::PODS);
        assert_eq!(
            (got.masquerade4, got.mtu, got.flags),
            (addr("192.0.2.1"), 1450, DevFlags::PODS)
        );
        assert_eq!(dev(OfDevice::default(), 9, DevFlags::NONE).masquerade4, Addr::NONE);
    }
}
