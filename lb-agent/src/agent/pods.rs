//! The Pods' devices: which entry of the map `pods` each has.
//!
//! Pure bookkeeping; the loop does what it says.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lb_common::addr::Addr;
use lb_common::endpoint::{Pod, flags};
use lb_common::limits;

use lb_core::plan::policy::GroupIds;
use lb_kernel::devices::Veth;
use lb_kernel::devices::bridge_netfilter::BridgeNetfilter;

/// The first address in each family and the MAC address that a Pod is known by.
pub(super) type Face = ([Addr; 2], [u8; 6]);

/// All Pods' devices, and what is written about them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    written: BTreeMap<u32, Option<Pod>>,
    /// Those of which it is known which Pod is behind them.
    known: BTreeSet<u32>,
    /// Those with more sources.
    sources: BTreeSet<u32>,
    ids: Ids,
}

impl Pods {
    /// These devices are there still, and what an earlier run has written of them.
    pub(super) fn take_over(pods: impl IntoIterator<Item = (u32, Pod)>) -> Self {
        let written: BTreeMap<u32, Option<Pod>> =
            pods.into_iter().map(|(ifindex, pod)| (ifindex, Some(pod))).collect();
        let pods = || written.iter().filter_map(|(ifindex, pod)| Some((*ifindex, pod.as_ref()?)));
        let ids = Ids::restore(pods().map(|(ifindex, pod)| (ifindex, pod.id)));
        let sources = pods().filter(|(_, pod)| pod.flags & flags::MORE_SOURCES != 0);
        let sources = sources.map(|(ifindex, _)| ifindex).collect();
        Self { ids, known: BTreeSet::new(), sources, written }
    }

    /// The groups that are written.
    pub(super) fn groups(&self) -> impl Iterator<Item = (u32, GroupIds)> {
        self.written.iter().filter_map(|(ifindex, pod)| {
            let pod = pod.as_ref()?;
            let groups = [pod.ingress, pod.egress, pod.shadow_ingress, pod.shadow_egress];
            Some((*ifindex, groups))
        })
    }

    /// A device appeared.
    pub(super) fn appeared(&mut self, ifindex: u32) {
        self.written.entry(ifindex).or_default();
        self.ids.take(ifindex);
    }

    /// It is known which Pod is behind a device.
    pub(super) fn is_known(&mut self, ifindex: u32) {
        self.known.insert(ifindex);
    }

    /// These devices have more sources than the addresses of their Pods. Returns those of which that is news.
    pub(super) fn have_sources(&mut self, devices: BTreeSet<u32>) -> Vec<u32> {
        let before = std::mem::replace(&mut self.sources, devices);
        self.sources.symmetric_difference(&before).copied().collect()
    }

    /// A device is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.written.remove(&ifindex);
        self.known.remove(&ifindex);
        self.sources.remove(&ifindex);
        self.ids.release(ifindex);
    }

    /// The entry to write for this device, `None` when it is there already. `until` is the stamp until which connections
    /// may be met in mid-flow that are older than the first policy of their Pod, should this be that.
    pub(super) fn entry(
        &self,
        (veth, face): (&Veth, Face),
        netfilter: BridgeNetfilter,
        groups: GroupIds,
        until: u32,
    ) -> Option<Pod> {
        let written = self.written.get(&veth.ifindex)?;
        let id = self.ids.of(veth.ifindex);
        let mut wanted = Pod { id, ..entry((veth, face), netfilter) };
        if self.sources.contains(&veth.ifindex) {
            wanted.flags |= flags::MORE_SOURCES;
        }
        let before = written.as_ref().unwrap_or(&Pod::ZERO);
        let wanted = with_groups(wanted, before, groups, self.until(veth.ifindex, until));
        (*written != Some(wanted)).then_some(wanted)
    }

    /// The entry with other groups; `None` when none has been written.
    pub(super) fn regrouped(&self, ifindex: u32, groups: GroupIds, until: u32) -> Option<Pod> {
        let written = self.written.get(&ifindex).copied().flatten()?;
        Some(with_groups(written, &written, groups, self.until(ifindex, until)))
    }

    /// The entry was written.
    pub(super) fn wrote(&mut self, ifindex: u32, pod: Pod) {
        if let Some(written) = self.written.get_mut(&ifindex) {
            *written = Some(pod);
        }
    }

    /// A Pod that is known only now has been under its policies from its first moment.
    fn until(&self, ifindex: u32, until: u32) -> u32 {
        if self.known.contains(&ifindex) { until } else { 0 }
    }
}

fn with_groups(pod: Pod, before: &Pod, groups: GroupIds, until: u32) -> Pod {
    let [ingress, egress, shadow_ingress, shadow_egress] = groups;
    let first = (before.ingress, before.egress) == (0, 0) && (ingress, egress) != (0, 0);
    let pickup_until = if first { until } else { before.pickup_until };
    Pod { ingress, egress, shadow_ingress, shadow_egress, pickup_until, ..pod }
}

/// The dense numbers of Pods: small, and given away again as late as possible.
#[derive(Debug, Default)]
struct Ids {
    by_device: BTreeMap<u32, u32>,
    /// The greatest number that was ever given away.
    last: u32,
    /// Those given back, the one that has been free for longest first.
    free: VecDeque<u32>,
}

impl Ids {
    fn restore(pods: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut ids = Self::default();
        let mut taken = BTreeSet::new();
        for (ifindex, id) in pods {
            if (1..limits::PODS).contains(&id) && taken.insert(id) {
                ids.by_device.insert(ifindex, id);
            }
        }
        ids.last = taken.last().copied().unwrap_or(0);
        ids.free = (1..ids.last).filter(|id| !taken.contains(id)).collect();
        ids
    }

    /// The device has a number from now on, if there is one left.
    fn take(&mut self, ifindex: u32) {
        if self.by_device.contains_key(&ifindex) {
            return;
        }
        let id = if self.last + 1 < limits::PODS {
            self.last += 1;
            Some(self.last)
        } else {
            self.free.pop_front()
        };
        self.by_device.extend(id.map(|id| (ifindex, id)));
    }

    fn release(&mut self, ifindex: u32) {
        self.free.extend(self.by_device.remove(&ifindex));
    }

    /// The number of a device; 0 = none.
    fn of(&self, ifindex: u32) -> u32 {
        self.by_device.get(&ifindex).copied().unwrap_or(0)
    }
}

/// The map's value for a device, without groups.
fn entry((veth, face): (&Veth, Face), netfilter: BridgeNetfilter) -> Pod {
    let past = |seen: bool| if seen { 0 } else { veth.bridge };
    let ([ip4, ip6], mac) = face;
    Pod {
        ip4,
        ip6,
        flags: if veth.bridge != 0 { flags::BRIDGED } else { 0 },
        bridge4: past(netfilter.v4),
        bridge6: past(netfilter.v6),
        mac,
        nsid: veth.nsid,
        ..Pod::ZERO
    }
}

#[cfg(test)]
mod tests {
    use lb_common::endpoint::{Pod, flags};

    use super::{Addr, Ids, Pods, entry};
    use lb_kernel::devices::Veth;
    use lb_kernel::devices::addresses::Addresses;
    use lb_kernel::devices::bridge_netfilter::BridgeNetfilter;

    const NETFILTER: BridgeNetfilter = BridgeNetfilter { v4: true, v6: false };

    fn face(veth: &Veth) -> super::Face {
        let addr = |ip: Option<std::net::IpAddr>| ip.map_or(Addr::NONE, Addr::from_ip);
        ([addr(veth.addresses.ip4), addr(veth.addresses.ip6)], veth.mac)
    }

    fn veth(bridged: bool, ip: Option<&str>) -> Veth {
        Veth {
            ifindex: 5,
            name: "veth5".to_owned(),
            peer: 2,
            nsid: 3,
            bridge: if bridged { 9 } else { 0 },
            own_mac: [6; 6],
            mac: [2; 6],
            inside: Vec::new(),
            addresses: Addresses { ip4: ip.map(|ip| ip.parse().unwrap()), ip6: None },
        }
    }

    #[test]
    fn entries_are_written_when_they_differ() {
        let mut pods = Pods::default();
        let of =
            |pods: &Pods, veth: &Veth, groups| pods.entry((veth, face(veth)), NETFILTER, groups, 7);
        assert_eq!(of(&pods, &veth(false, None), [0; 4]), None, "not known");
        pods.appeared(5);
        let bare = of(&pods, &veth(false, None), [0; 4]).unwrap();
        pods.wrote(5, bare);
        assert_eq!(of(&pods, &veth(false, None), [0; 4]), None);
        let of_full = veth(true, Some("10.1.0.2"));
        let full = of(&pods, &of_full, [0; 4]).unwrap();
        assert_eq!(full, Pod { id: 1, ..entry((&of_full, face(&of_full)), NETFILTER) });
        assert_eq!((full.bridge4, full.bridge6), (0, 9), "past netfilter in IPv6 only");
        assert_eq!(
            (full.flags, full.nsid, full.ip4.to_string().as_str()),
            (flags::BRIDGED, 3, "10.1.0.2")
        );
        pods.wrote(5, full);
        let groups = [1, 2, 3, 4];
        let regrouped = pods.regrouped(5, groups, 7).unwrap();
        assert_eq!(of(&pods, &veth(true, Some("10.1.0.2")), groups), Some(regrouped));
        assert_eq!((regrouped.ip4, regrouped.ingress, regrouped.shadow_egress), (full.ip4, 1, 4));
        pods.appeared(5);
        assert_eq!(of(&pods, &veth(true, Some("10.1.0.2")), [0; 4]), None, "the map has it");
    }

    #[test]
    fn connections_may_be_older_than_the_first_policy_of_a_pod_that_was_known_without_one() {
        // Whether the Pod was known, its groups in the map and until when, the new groups, the new time.
        let cases = [
            ("the first policy", true, ([0, 0, 0, 0], 0), [3, 0, 0, 0], 7),
            ("the other direction", true, ([0, 0, 0, 0], 0), [0, 3, 0, 0], 7),
            ("under policies from the first moment", false, ([0, 0, 0, 0], 0), [3, 3, 0, 0], 0),
            ("was awaited, is known", true, ([2, 2, 0, 0], 0), [3, 3, 0, 0], 0),
            ("another policy", true, ([3, 0, 0, 0], 5), [4, 4, 0, 0], 5),
            ("one that is only tried", true, ([0, 0, 0, 0], 0), [0, 0, 3, 0], 0),
            ("none any more", true, ([3, 0, 0, 0], 5), [0, 0, 0, 0], 5),
            ("and one again", true, ([0, 0, 0, 0], 5), [3, 0, 0, 0], 7),
        ];
        for (name, known, ([ingress, egress, ..], before), groups, want) in cases {
            let pod = Pod { ingress, egress, pickup_until: before, id: 1, ..Pod::ZERO };
            let mut pods = Pods::take_over([(5, pod)]);
            let of = |pods: &Pods, groups| {
                let veth = veth(false, Some("10.1.0.2"));
                pods.entry((&veth, face(&veth)), NETFILTER, groups, 7).unwrap()
            };
            if known {
                pods.is_known(5);
            }
            let got = pods.regrouped(5, groups, 7).unwrap();
            assert_eq!(got.pickup_until, want, "{name}");
            let got = of(&pods, groups);
            assert_eq!((got.pickup_until, got.id), (want, 1), "{name}, as a whole");
        }
    }

    #[test]
    fn numbers_are_dense_and_given_away_again_as_late_as_possible() {
        let mut ids = Ids::default();
        (10..13).for_each(|ifindex| ids.take(ifindex));
        ids.release(11);
        ids.take(13);
        ids.take(10);
        assert_eq!([10, 11, 12, 13].map(|ifindex| ids.of(ifindex)), [1, 0, 3, 4]);

        // A restart: what the map has; one number twice, or out of range, is given away once.
        let mut ids = Ids::restore([(10, 1), (12, 3), (13, 4), (14, 4), (15, 4096)].into_iter());
        assert_eq!([10, 12, 13, 14, 15].map(|ifindex| ids.of(ifindex)), [1, 3, 4, 0, 0]);
        (100..100 + 4095).for_each(|ifindex| ids.take(ifindex));
        assert_eq!((ids.of(100), ids.of(100 + 4090), ids.of(100 + 4091)), (5, 4095, 2));
        assert_eq!(ids.of(100 + 4092), 0, "all are in use");
        ids.release(12);
        ids.take(14);
        assert_eq!(ids.of(14), 3);
    }
}
