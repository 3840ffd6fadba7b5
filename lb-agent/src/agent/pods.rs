//! The Pods' devices: which entry of the map `pods` each has.
//!
//! Pure bookkeeping; the loop does what it says.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use lb_common::addr::Addr;
use lb_common::endpoint::{Pod, flags};

use crate::devices::Veth;
use crate::devices::bridge_netfilter::BridgeNetfilter;
use crate::plan::policy::GroupIds;

/// All Pods' devices, and what is written about them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    written: BTreeMap<u32, Option<Pod>>,
}

impl Pods {
    /// A device appeared.
    pub(super) fn appeared(&mut self, ifindex: u32) {
        self.written.entry(ifindex).or_default();
    }

    /// A device is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.written.remove(&ifindex);
    }

    /// The entry to write for this device, `None` when it is there already.
    pub(super) fn entry(
        &self,
        veth: &Veth,
        netfilter: BridgeNetfilter,
        groups: GroupIds,
    ) -> Option<Pod> {
        let wanted = with_groups(entry(veth, netfilter), groups);
        let written = self.written.get(&veth.ifindex)?;
        (*written != Some(wanted)).then_some(wanted)
    }

    /// The entry with other groups; `None` when none has been written.
    pub(super) fn regrouped(&self, ifindex: u32, groups: GroupIds) -> Option<Pod> {
        let written = self.written.get(&ifindex).copied().flatten()?;
        Some(with_groups(written, groups))
    }

    /// The entry was written.
    pub(super) fn wrote(&mut self, ifindex: u32, pod: Pod) {
        if let Some(written) = self.written.get_mut(&ifindex) {
            *written = Some(pod);
        }
    }
}

fn with_groups(pod: Pod, [ingress, egress, shadow_ingress, shadow_egress]: GroupIds) -> Pod {
    Pod { ingress, egress, shadow_ingress, shadow_egress, ..pod }
}

/// The map's value for a device, without groups.
pub(super) fn entry(veth: &Veth, netfilter: BridgeNetfilter) -> Pod {
    let past = |seen: bool| if seen { 0 } else { veth.bridge };
    let addr = |ip: Option<std::net::IpAddr>| ip.map_or(Addr::NONE, Addr::from_ip);
    Pod {
        ip4: addr(veth.addresses.ip4),
        ip6: addr(veth.addresses.ip6),
        flags: if veth.bridge != 0 { flags::BRIDGED } else { 0 },
        bridge4: past(netfilter.v4),
        bridge6: past(netfilter.v6),
        mac: veth.mac,
        nsid: veth.nsid,
        ..Pod::ZERO
    }
}

#[cfg(test)]
mod tests {
    use lb_common::endpoint::flags;

    use super::{Pods, entry};
    use crate::devices::Veth;
    use crate::devices::addresses::Addresses;
    use crate::devices::bridge_netfilter::BridgeNetfilter;

    const NETFILTER: BridgeNetfilter = BridgeNetfilter { v4: true, v6: false };

    fn veth(bridged: bool, ip: Option<&str>) -> Veth {
        Veth {
            ifindex: 5,
            name: "veth5".to_owned(),
            peer: 2,
            nsid: 3,
            bridge: if bridged { 9 } else { 0 },
            mac: [2; 6],
            addresses: Addresses { ip4: ip.map(|ip| ip.parse().unwrap()), ip6: None },
        }
    }

    #[test]
    fn entries_are_written_when_they_differ() {
        let mut pods = Pods::default();
        assert_eq!(pods.entry(&veth(false, None), NETFILTER, [0; 4]), None, "not known");
        pods.appeared(5);
        let bare = pods.entry(&veth(false, None), NETFILTER, [0; 4]).unwrap();
        pods.wrote(5, bare);
        assert_eq!(pods.entry(&veth(false, None), NETFILTER, [0; 4]), None);
        let full = pods.entry(&veth(true, Some("10.1.0.2")), NETFILTER, [0; 4]).unwrap();
        assert_eq!(full, entry(&veth(true, Some("10.1.0.2")), NETFILTER));
        assert_eq!((full.bridge4, full.bridge6), (0, 9), "past netfilter in IPv6 only");
        assert_eq!(
            (full.flags, full.nsid, full.ip4.to_string().as_str()),
            (flags::BRIDGED, 3, "10.1.0.2")
        );
        pods.wrote(5, full);
        let groups = [1, 2, 3, 4];
        let regrouped = pods.regrouped(5, groups).unwrap();
        assert_eq!(pods.entry(&veth(true, Some("10.1.0.2")), NETFILTER, groups), Some(regrouped));
        assert_eq!((regrouped.ip4, regrouped.ingress, regrouped.shadow_egress), (full.ip4, 1, 4));
        pods.appeared(5);
        assert_eq!(
            pods.entry(&veth(true, Some("10.1.0.2")), NETFILTER, [0; 4]),
            None,
            "the map still has it"
        );
    }
}
