//! Whose the link-layer addresses on this node's bridges are: devices → what the maps `macs` and `links` should say. The
//! planner writes them.
//!
//! A bridge learns from each frame behind which port its sender is, so a frame in another's name takes away what is for
//! the other. An address is its Pod's since the Pod was found behind its device, whatever is changed inside; of two Pods
//! the one that had it before keeps it, then the one whose device is older has it. Neighbor tables are not
//! used: a Pod can change them with forged packets.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use lb_common::endpoint::{link, mac_number};

use lb_core::cluster::Name;
use lb_core::issue::{Issue, ObjectRef};
use lb_core::plan::MacTables;

/// Value of `macs` for an address of this node.
const NODE: u32 = 0;

/// The far end of a Pod's device.
#[derive(Clone, Copy, Debug)]
pub(super) struct FarEnd<'a> {
    /// The host's end.
    pub(super) ifindex: u32,
    /// Whether the host's end is a port of a bridge.
    pub(super) bridged: bool,
    /// Its link-layer address; zero until known.
    pub(super) mac: [u8; 6],
    /// The Pod that was found behind it, and since when the device is there, in seconds since 1970.
    pub(super) pod: Option<(&'a Name, i64)>,
}

/// What is wrong with Pods' MAC addresses.
#[derive(Debug, Default)]
pub(super) struct MacOwners {
    issues: Vec<Issue>,
}

impl MacOwners {
    /// Returns what the maps should say. `node` are the MAC addresses of this node's own devices, `held` is what `macs` says.
    pub(super) fn want(
        &mut self,
        ends: &[FarEnd<'_>],
        node: impl Iterator<Item = [u8; 6]>,
        held: &BTreeMap<u64, u32>,
    ) -> MacTables {
        let (tables, issues) = wanted(ends, node, held);
        self.issues = issues;
        tables
    }

    /// Pods that have another's address.
    pub(super) fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }
}

fn wanted(
    ends: &[FarEnd<'_>],
    node: impl Iterator<Item = [u8; 6]>,
    held: &BTreeMap<u64, u32>,
) -> (MacTables, Vec<Issue>) {
    let mut wanted = MacTables::default();
    let mut issues = Vec::new();
    if ends.iter().any(|end| end.bridged) {
        let node = node.filter(|mac| *mac != [0; 6]);
        wanted.macs.extend(node.map(|mac| (mac_number(mac), NODE)));
    }
    let known = |end: &&FarEnd<'_>| end.mac != [0; 6];
    let mut found: Vec<(i64, &FarEnd<'_>, &Name)> = ends
        .iter()
        .filter(|end| end.bridged)
        .filter(known)
        .filter_map(|end| end.pod.map(|(name, since)| (since, end, name)))
        .collect();
    let is_new = |end: &FarEnd<'_>| held.get(&mac_number(end.mac)) != Some(&end.ifindex);
    found.sort_unstable_by_key(|(since, end, _)| (is_new(end), *since, end.ifindex));
    let mut names: HashMap<u32, &Name> = HashMap::new();
    for (_, end, name) in found {
        names.insert(end.ifindex, name);
        let holder = *wanted.macs.entry(mac_number(end.mac)).or_insert(end.ifindex);
        if holder != end.ifindex {
            let of = names.get(&holder).map_or("this node".to_owned(), |of| format!("Pod {of}"));
            let message = format!(
                "has the MAC address {} that {of} had first: frames it sends from that address are dropped",
                end.mac.map(|byte| format!("{byte:02x}")).join(":"),
            );
            issues.push(Issue::new(ObjectRef::new("Pod", name), "status.podIPs", message));
        }
    }
    for end in ends.iter().filter(known) {
        let mac = mac_number(end.mac);
        let holder = wanted.macs.get(&mac);
        if !end.bridged || holder.is_none_or(|holder| *holder == end.ifindex) {
            let (index, element) = link(end.ifindex, mac);
            wanted.links.insert(index, element);
        }
    }
    (wanted, issues)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::endpoint::{link, mac_number};
    use lb_common::limits;

    use super::{FarEnd, NODE, wanted};
    use lb_core::cluster::Name;

    fn mac(last: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, last]
    }

    #[test]
    fn an_address_is_that_of_the_pod_whose_device_is_older() {
        let [web, thief, routed] =
            ["web", "thief", "routed"].map(|name| Name::new("default", name));
        let end = |ifindex, last, pod| FarEnd { ifindex, bridged: true, mac: mac(last), pod };
        let ends = [
            end(5, 1, Some((&thief, 20))),
            end(6, 1, Some((&web, 10))),
            // A device without a Pod, with the address of a Pod; and with one of its own.
            end(7, 1, None),
            end(8, 8, None),
            // One of the node; not known yet.
            end(9, 99, Some((&thief, 30))),
            end(10, 0, Some((&thief, 30))),
            // Without a bridge, no device learns from frames.
            FarEnd { bridged: false, ..end(11, 1, Some((&routed, 1))) },
            // Where another device has the place, this one is looked up.
            end(limits::LINKS + 8, 7, Some((&routed, 40))),
        ];
        let ends =
            ends.map(|end| if end.mac == mac(0) { FarEnd { mac: [0; 6], ..end } } else { end });
        let node = || [mac(99), [0; 6], mac(98)].into_iter();
        let (got, issues) = wanted(&ends, node(), &BTreeMap::new());
        let macs = [(mac(1), 6), (mac(7), limits::LINKS + 8), (mac(98), NODE), (mac(99), NODE)];
        assert_eq!(got.macs, macs.map(|(mac, holder)| (mac_number(mac), holder)).into());
        let links = [link(6, mac_number(mac(1))), link(11, mac_number(mac(1)))];
        let last = link(limits::LINKS + 8, mac_number(mac(7)));
        assert_eq!(got.links, [links[0], last, links[1]].into());
        assert_ne!(last, link(8, mac_number(mac(7))), "the element names the device");
        let issues: Vec<String> = issues.iter().map(ToString::to_string).collect();
        assert_eq!(
            issues,
            [
                "Pod default/thief: status.podIPs: has the MAC address 02:00:00:00:00:01 that Pod default/web had first: frames it sends from that address are dropped",
                "Pod default/thief: status.podIPs: has the MAC address 02:00:00:00:00:63 that this node had first: frames it sends from that address are dropped",
            ]
        );
        // A Pod that was found behind an older device later has changed it meanwhile.
        let held = [(mac_number(mac(1)), 5)].into();
        assert_eq!(
            wanted(&ends, node(), &held).0.macs[&mac_number(mac(1))],
            5,
            "who had it keeps it"
        );
        assert!(wanted(&ends[6..7], node(), &held).0.macs.is_empty(), "no bridge");
    }
}
