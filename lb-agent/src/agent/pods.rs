//! The Pods' devices: which entry of the map `pods` each has.
//!
//! Pure bookkeeping; the loop does what it says.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use lb_common::addr::Addr;
use lb_common::endpoint::{Pod, flags};

use crate::devices::Veth;
use crate::devices::bridge_netfilter::BridgeNetfilter;

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
    pub(super) fn entry(&self, veth: &Veth, netfilter: BridgeNetfilter) -> Option<Pod> {
        let wanted = entry(veth, netfilter);
        let written = self.written.get(&veth.ifindex)?;
        (*written != Some(wanted)).then_some(wanted)
    }

    /// The entry was written.
    pub(super) fn wrote(&mut self, ifindex: u32, pod: Pod) {
        if let Some(written) = self.written.get_mut(&ifindex) {
            *written = Some(pod);
        }
    }
}

/// The map's value for a device.
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
        assert_eq!(pods.entry(&veth(false, None), NETFILTER), None, "not known");
        pods.appeared(5);
        let bare = pods.entry(&veth(false, None), NETFILTER).unwrap();
        pods.wrote(5, bare);
        assert_eq!(pods.entry(&veth(false, None), NETFILTER), None);
        let full = pods.entry(&veth(true, Some("10.1.0.2")), NETFILTER).unwrap();
        assert_eq!(full, entry(&veth(true, Some("10.1.0.2")), NETFILTER));
        assert_eq!((full.bridge4, full.bridge6), (0, 9), "past netfilter in IPv6 only");
        assert_eq!(
            (full.flags, full.nsid, full.ip4.to_string().as_str()),
            (flags::BRIDGED, 3, "10.1.0.2")
        );
        pods.wrote(5, full);
        pods.appeared(5);
        assert_eq!(
            pods.entry(&veth(true, Some("10.1.0.2")), NETFILTER),
            None,
            "the map still has it"
        );
    }
}
