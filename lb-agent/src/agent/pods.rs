//! The Pods' devices: which are attached, which entry of the map `pods` each has, and when to try again.
//!
//! Pure bookkeeping; the loop does what it says.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_common::addr::Addr;
use lb_common::endpoint::{Pod, flags};

use crate::devices::Veth;
use crate::devices::bridge_netfilter::BridgeNetfilter;

/// First and longest wait before another try.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The attachment is under way.
    Attaching,
    /// Both programs are in place.
    Attached,
    /// It failed, and is tried again then.
    Failed { at: Instant },
}

#[derive(Clone, Debug)]
struct Device {
    since: Instant,
    stage: Stage,
    wait: Duration,
    error: Option<String>,
    written: Option<Pod>,
}

/// All Pods' devices.
#[derive(Debug, Default)]
pub(super) struct Pods {
    devices: BTreeMap<u32, Device>,
}

impl Pods {
    /// A device appeared: it is to be attached to.
    pub(super) fn appeared(&mut self, ifindex: u32, since: Instant) {
        let device = Device {
            since,
            stage: Stage::Attaching,
            wait: RETRY.0,
            error: None,
            written: self.devices.get(&ifindex).and_then(|device| device.written),
        };
        self.devices.insert(ifindex, device);
    }

    /// A device is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.devices.remove(&ifindex);
    }

    /// An attachment came to an end. Returns how long the device was without programs although it had been tried.
    pub(super) fn attached(
        &mut self,
        ifindex: u32,
        result: Result<(), String>,
        now: Instant,
    ) -> Option<Duration> {
        let device = self.devices.get_mut(&ifindex)?;
        match result {
            Ok(()) => {
                device.stage = Stage::Attached;
                device.wait = RETRY.0;
                device.error.take().map(|_| now.duration_since(device.since))
            }
            Err(error) => {
                device.stage = Stage::Failed { at: now + device.wait };
                device.wait = (device.wait * 2).min(RETRY.1);
                device.error = Some(error);
                None
            }
        }
    }

    /// Devices whose attachment is to be tried again now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(u32, Instant)> {
        let mut due = Vec::new();
        for (ifindex, device) in &mut self.devices {
            if matches!(device.stage, Stage::Failed { at } if at <= now) {
                device.stage = Stage::Attaching;
                due.push((*ifindex, device.since));
            }
        }
        due
    }

    /// When something is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.devices
            .values()
            .filter_map(|device| match device.stage {
                Stage::Failed { at } => Some(at),
                Stage::Attaching | Stage::Attached => None,
            })
            .min()
    }

    /// The entry to write for this device, `None` when it is there already.
    pub(super) fn entry(&self, veth: &Veth, netfilter: BridgeNetfilter) -> Option<Pod> {
        let wanted = entry(veth, netfilter);
        let device = self.devices.get(&veth.ifindex)?;
        (device.written != Some(wanted)).then_some(wanted)
    }

    /// The entry was written.
    pub(super) fn wrote(&mut self, ifindex: u32, pod: Pod) {
        if let Some(device) = self.devices.get_mut(&ifindex) {
            device.written = Some(pod);
        }
    }

    /// Devices with both programs in place.
    pub(super) fn n_attached(&self) -> usize {
        self.devices.values().filter(|device| device.stage == Stage::Attached).count()
    }

    /// Devices that could not be attached to, and why.
    pub(super) fn errors(&self) -> impl Iterator<Item = (u32, &str)> {
        self.devices
            .iter()
            .filter_map(|(ifindex, device)| Some((*ifindex, device.error.as_deref()?)))
    }

    /// All devices.
    pub(super) fn count(&self) -> usize {
        self.devices.len()
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
    use std::time::{Duration, Instant};

    use lb_common::endpoint::flags;

    use super::{Pods, entry};
    use crate::devices::Veth;
    use crate::devices::bridge_netfilter::BridgeNetfilter;
    use crate::devices::link::Addresses;

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
        pods.appeared(5, Instant::now());
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
        pods.appeared(5, Instant::now());
        assert_eq!(
            pods.entry(&veth(true, Some("10.1.0.2")), NETFILTER),
            None,
            "the map still has it"
        );
    }

    #[test]
    fn failures_are_tried_again_ever_more_rarely() {
        let start = Instant::now();
        let mut pods = Pods::default();
        pods.appeared(5, start);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert!(pods.take_due(now).is_empty(), "under way");
            assert_eq!(pods.attached(5, Err("no".to_owned()), now), None);
            let due = pods.next_due().unwrap();
            waits.push((due - now).as_millis());
            now = due;
            assert_eq!(pods.take_due(now), [(5, start)]);
        }
        assert_eq!(waits[..3], [50, 100, 200]);
        assert_eq!(waits[11], 30_000);
        assert_eq!(pods.errors().collect::<Vec<_>>(), [(5, "no")]);
        assert_eq!(pods.n_attached(), 0);
        assert_eq!(pods.attached(5, Ok(()), now), Some(now - start));
        assert_eq!((pods.n_attached(), pods.errors().count()), (1, 0));
        assert_eq!(pods.attached(5, Ok(()), now + Duration::from_secs(1)), None, "no gap");
        assert_eq!(pods.attached(6, Ok(()), now), None, "gone meanwhile");
    }
}
