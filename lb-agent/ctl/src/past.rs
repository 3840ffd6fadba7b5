//! Whether flows between Pods of this node go past its IP stack, by the maps and the predicate of the programs.

use std::collections::HashMap;

use lb_common::config::SettingFlags;
use lb_common::endpoint::PodEntry;
use lb_common::hop::{self, HopObstacle};
use lb_common::past::{self, LocalEnd, StackReason, VethReason};

/// What the maps say about it.
#[derive(Clone, Debug, Default)]
pub struct PastTables {
    /// Of the node.
    pub settings: SettingFlags,
    /// Pods, by their number in the maps.
    pub ends: HashMap<u32, LocalEnd>,
}

impl PastTables {
    /// Why flows of a Pod go through the IP stack, first the reasons of the node; none if new flows may go past it.
    pub fn reasons(&self, pod: &PodEntry) -> Vec<StackReason> {
        let end = self.end(pod);
        let bits = self.settings.bits() | end.flags.bits();
        let named: Vec<_> = StackReason::among(bits).collect();
        if named.is_empty() {
            // The same Pod at another device: nothing but its own and the node's reasons speak against it.
            let other = LocalEnd { ifindex: end.ifindex.wrapping_add(1), ..end };
            return past::obstacle(self.settings, &other, &end).into_iter().collect();
        }
        named
    }

    /// Why what goes past the IP stack to a Pod goes by the host's end of its veth; none if it needs not.
    pub fn by_veth(&self, pod: &PodEntry) -> Vec<VethReason> {
        VethReason::among(self.end(pod).flags.bits()).collect()
    }

    /// Why new flows from one Pod to another go through the IP stack; `None` if they go past it.
    pub fn obstacle(&self, to: &PodEntry, from: &PodEntry) -> Option<StackReason> {
        past::obstacle(self.settings, &self.end(to), &self.end(from))
    }

    /// Why new flows between a Pod and Pods of other nodes go through the IP stack, unless the device by which they leave is the
    /// reason; `None` if they go past it.
    pub fn obstacle_across(&self, pod: &PodEntry) -> Option<HopObstacle> {
        hop::obstacle(self.settings, &self.end(pod))
    }

    fn end(&self, pod: &PodEntry) -> LocalEnd {
        self.ends.get(&pod.id).filter(|_| pod.id != 0).copied().unwrap_or(LocalEnd::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::past::LocalFlags;

    use super::{
        HopObstacle, LocalEnd, PastTables, PodEntry, SettingFlags, StackReason, VethReason,
    };

    #[test]
    fn all_reasons_of_node_and_pod_are_listed() {
        let end = |flags| LocalEnd { ifindex: 5, mtu: 1500, flags, ..LocalEnd::ZERO };
        let port = LocalFlags::from_bits(StackReason::PortInside.bit());
        let limited = LocalFlags::from_bits(VethReason::Qdisc.bit());
        let mut tables = PastTables {
            settings: SettingFlags::LOCAL_PAST,
            ends: [(1, end(LocalFlags::PAST_OK | limited)), (2, end(port))].into(),
        };
        let pod = |id| PodEntry { id, ..PodEntry::ZERO };
        assert_eq!(tables.reasons(&pod(1)), []);
        assert_eq!(tables.by_veth(&pod(1)), [VethReason::Qdisc]);
        assert_eq!(tables.by_veth(&pod(2)), []);
        assert_eq!(tables.reasons(&pod(2)), [StackReason::PortInside]);
        assert_eq!(tables.reasons(&pod(0)), [StackReason::NotAttached]);
        assert_eq!(tables.obstacle(&pod(1), &pod(2)), Some(StackReason::PortInside));
        assert_eq!(
            tables.obstacle_across(&pod(1)).map(HopObstacle::name),
            Some("rules-unread"),
            "only those of the node may go past the stack"
        );
        tables.settings |= SettingFlags::HOP_PAST;
        assert_eq!(tables.obstacle_across(&pod(1)), None);
        assert_eq!(tables.obstacle_across(&pod(2)).map(HopObstacle::name), Some("port-inside"));
        tables.settings = SettingFlags::from_bits(StackReason::HostRule.bit());
        assert_eq!(tables.reasons(&pod(1)), [StackReason::HostRule]);
        assert_eq!(tables.reasons(&pod(2)), [StackReason::HostRule, StackReason::PortInside]);
    }
}
