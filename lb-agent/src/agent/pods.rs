//! What a Pod's device says of its element of the map `pods`.
#![forbid(unsafe_code)]

use lb_common::addr::Addr;
use lb_common::endpoint::{PodEntry, PodFlags};

use lb_kernel::devices::Veth;
use lb_kernel::devices::bridge_netfilter::BridgeNetfilter;

/// The element, without what the planner knows: number, groups, further sources. The Pod is known by the first address
/// in each family and the MAC address.
pub(super) fn device_part(
    veth: &Veth,
    ([ip4, ip6], mac): ([Addr; 2], [u8; 6]),
    netfilter: BridgeNetfilter,
) -> PodEntry {
    let past = |seen: bool| if seen { 0 } else { veth.bridge };
    PodEntry {
        ip4,
        ip6,
        flags: PodFlags::BRIDGED.when(veth.bridge != 0),
        bridge4: past(netfilter.v4),
        bridge6: past(netfilter.v6),
        mac,
        nsid: veth.nsid,
        ..PodEntry::ZERO
    }
}

#[cfg(test)]
pub(in crate::agent) mod tests {
    use lb_common::endpoint::PodFlags;
    use lb_kernel::devices::addresses::AddressPair;
    use lb_kernel::devices::bridge_netfilter::BridgeNetfilter;
    use lb_kernel::devices::{BridgePort, FarDevice, Veth};

    use super::{Addr, device_part};

    /// A device behind a bridge.
    pub(in crate::agent) fn veth() -> Veth {
        Veth {
            ifindex: 5,
            name: "veth5".to_owned(),
            peer: 2,
            nsid: 3,
            bridge: 9,
            port: BridgePort::default(),
            own_mac: [6; 6],
            mtu: 1500,
            mac: [2; 6],
            far: FarDevice::default(),
            inside: Vec::new(),
            addresses: AddressPair::default(),
        }
    }

    #[test]
    fn a_bridged_device_says_where_packets_pass_netfilter_by() {
        let mut veth = veth();
        let netfilter = BridgeNetfilter { v4: true, v6: false };
        let known = ([Addr::from_ip("10.1.0.2".parse().unwrap()), Addr::NONE], [2; 6]);
        let bridged = device_part(&veth, known, netfilter);
        assert_eq!((bridged.bridge4, bridged.bridge6), (0, 9), "past netfilter in IPv6 only");
        assert_eq!(
            (bridged.flags, bridged.nsid, bridged.ip4.to_string().as_str(), bridged.mac),
            (PodFlags::BRIDGED, 3, "10.1.0.2", [2; 6])
        );
        veth.bridge = 0;
        let routed = device_part(&veth, known, netfilter);
        assert_eq!((routed.flags, routed.bridge4, routed.bridge6), (PodFlags::NONE, 0, 0));
    }
}
