//! Flows between Pods of different nodes that go past the host's IP stack and netfilter: their way out of this node, and whether
//! it is open.
//!
//! Each node decides by itself, for both directions, at the first packet that it sees of a flow. The other node may send the
//! same flow through its stack. As in [`crate::past`], a flow may lose its way at any time and never gets one later.
//!
//! Flows that another node opens to a Pod of this node go so, too: its own, and those of clients that it masquerades.

use crate::addr::Addr;
use crate::be::Be32;
use crate::config::SettingFlags;
use crate::endpoint::{Dev, DevFlags, Ident, IdentFlags};
use crate::past::{ELSEWHERE, LocalEnd, LocalFlags, StackReason};
use crate::{listed, listed_bits};

/// The path of a flow to a Pod of another node, or of one from another node. A conntrack entry has it as four words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopWay {
    /// ifindex of the device that the packets leave by, and that those of the other Pod come in by.
    pub device: u32,
    /// The next hop's IPv4 address; 0 = the kernel looks it up for each packet.
    pub next4: Be32,
    /// The Pod of this node: its number, and the low half of the generation of that.
    pub pod: (u16, u16),
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// When the routing table was asked last: low half of the stamp ([`crate::conntrack::stamp`]).
    pub asked: u16,
}

impl HopWay {
    /// As an entry has it.
    pub const fn to_addr(self) -> Addr {
        const fn word(high: u16, low: u16) -> Be32 {
            Be32::from_wire((high as u32) << 16 | low as u32)
        }
        Addr::v6([
            Be32::from_wire(ELSEWHERE | self.device),
            self.next4,
            word(self.pod.0, self.mtu),
            word(self.pod.1, self.asked),
        ])
    }

    /// The way in an entry; `None` for one that has none, or one to a Pod of this node.
    pub const fn of_addr(addr: &Addr) -> Option<Self> {
        let [device, next4, id_mtu, generation_asked] = addr.words();
        if device.to_wire() & ELSEWHERE == 0 {
            return None;
        }
        let (id_mtu, generation_asked) = (id_mtu.to_wire(), generation_asked.to_wire());
        Some(Self {
            device: device.to_wire() & !ELSEWHERE,
            next4,
            pod: ((id_mtu >> 16) as u16, (generation_asked >> 16) as u16),
            mtu: id_mtu as u16,
            asked: generation_asked as u16,
        })
    }

    /// Whether the routing table was asked within the stamp `now`.
    pub const fn is_fresh(&self, now: u32) -> bool {
        self.asked == now as u16
    }

    /// Whether both say the same of where packets go.
    pub const fn leads_as(&self, other: &Self) -> bool {
        self.device == other.device
            && self.next4.to_wire() == other.next4.to_wire()
            && self.mtu == other.mtu
    }
}

listed! {
    /// Why flows between Pods of this node and Pods of others go through the IP stack of this node. Its bit is in the flags of the
    /// settings.
    pub enum HopReason {
        RulesUnread = 0: "rules-unread", "The firewall rules of the node have not been compared with the addresses of other nodes and their Pods yet.", "Wait; it takes about a second.";
        RulesUnknown = 1: "rules-unknown", "The firewall rules of the node, its routing rules or its policies of IPsec cannot be read, or they are larger or different than the agent understands.", "See `lbctl status`. If no rule is about traffic between Pods, set `--past-stack on`.";
        HostRule = 2: "host-rule", "A firewall rule of the node could drop, mark, log, count or change packets between its Pods and those of other nodes, or those that other nodes send to its Pods.", "See `lbctl status` for the rule. If it may be passed by, set `--past-stack on`.";
        PolicyEngine = 3: "policy-engine", "Another program enforces policies between Pods by firewall rules of the node.", "Remove it, if lb is to enforce all policies. `--past-stack on` has no effect on this reason.";
        Ipsec = 4: "xfrm", "The node has policies of IPsec (`ip xfrm policy`): packets past the IP stack would not be encrypted.", "Nothing, if that is intended. `--past-stack on` has no effect on this reason.";
        PolicyRouting = 5: "policy-routing", "A rule of the node (`ip rule`) could route packets of Pods by another table than the main one.", "See `lbctl status` for its priority. `--past-stack on` has no effect on this reason.";
    }
}

listed_bits! { HopReason from 26 }

/// Whether an address is that of a Pod of another node.
pub const fn is_elsewhere(known: &Ident) -> bool {
    const NOT: IdentFlags = IdentFlags::LOCAL_NODE.with(IdentFlags::NODE).with(IdentFlags::HERE);
    known.flags.contains(IdentFlags::POD) && !known.flags.intersects(NOT) && known.ifindex == 0
}

/// Whether an address is that of another node: what comes from there may be of clients that the node masquerades.
pub const fn is_other_node(known: &Ident) -> bool {
    known.flags.only(IdentFlags::NODE.with(IdentFlags::LOCAL_NODE)).bits()
        == IdentFlags::NODE.bits()
        && known.ifindex == 0
}

/// Whether new flows of a Pod of this node may leave and come in by the device past the IP stack.
pub const fn may_open(settings: SettingFlags, pod: &LocalEnd, device: &Dev) -> bool {
    !settings.contains(SettingFlags::KNOWN_HOP_ONLY) && may_go_on(settings, pod, device)
}

/// Why new flows between a Pod of this node and Pods of others go through the IP stack, whichever the device; `None` if they may
/// go past it. The first reason of the node, then of the Pod.
pub fn obstacle(settings: SettingFlags, pod: &LocalEnd) -> Option<HopObstacle> {
    let device = Dev { flags: DevFlags::HOP_OK, ..Dev::ZERO };
    if may_open(settings, pod, &device) {
        return None;
    }
    let of_pod = |pod: &LocalEnd| StackReason::among(pod.flags.bits()).next();
    let off = StackReason::Setting.bit();
    Some(match HopReason::among(settings.bits()).next() {
        Some(reason) => HopObstacle::Node(reason),
        None if settings.bits() & off != 0 => HopObstacle::Either(StackReason::Setting),
        None if !settings.contains(SettingFlags::HOP_PAST)
            || settings.contains(SettingFlags::KNOWN_HOP_ONLY) =>
        {
            HopObstacle::Node(HopReason::RulesUnread)
        }
        None => HopObstacle::Either(of_pod(pod).unwrap_or(StackReason::NotAttached)),
    })
}

/// See [`obstacle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopObstacle {
    /// The node, for flows to other nodes.
    Node(HopReason),
    /// The setting, or the Pod, for all its flows.
    Either(StackReason),
}

impl HopObstacle {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node(reason) => reason.name(),
            Self::Either(reason) => reason.name(),
        }
    }
}

/// Whether those that have a way may keep it.
const fn may_go_on(settings: SettingFlags, pod: &LocalEnd, device: &Dev) -> bool {
    settings.contains(SettingFlags::HOP_PAST)
        && pod.flags.contains(LocalFlags::PAST_OK)
        && pod.ifindex != 0
        && device.flags.contains(DevFlags::HOP_OK)
}

/// Whether a flow still has its way: allowed, and the number means the same Pod.
pub const fn is_open(settings: SettingFlags, way: &HopWay, pod: &LocalEnd, device: &Dev) -> bool {
    may_go_on(settings, pod, device) && pod.generation as u16 == way.pod.1
}

#[cfg(test)]
mod tests {
    use super::{
        Addr, Be32, Dev, DevFlags, HopObstacle, HopReason, HopWay, Ident, IdentFlags, LocalEnd,
        LocalFlags, SettingFlags, StackReason, is_elsewhere, is_open, is_other_node, may_open,
        obstacle,
    };
    use crate::past::PastWay;

    const WAY: HopWay = HopWay {
        device: 0x0102_0304,
        next4: Be32::new(0xc000_0201),
        pod: (4095, 7),
        mtu: 1450,
        asked: 0xfffe,
    };

    #[test]
    fn each_reason_has_a_bit_of_its_own() {
        let of_stack = StackReason::ALL.into_iter().fold(0, |bits, one| bits | one.bit());
        let of_hop = HopReason::ALL.into_iter().fold(0, |bits, one| bits | one.bit());
        assert_eq!(of_hop & (of_stack | SettingFlags::KNOWN_HOP_ONLY.bits()), 0);
        assert_eq!(HopReason::among(of_hop).count(), HopReason::ALL.len());
        assert_eq!(HopReason::among(of_stack).next(), None);
        assert_eq!(StackReason::among(of_hop).next(), None);
    }

    #[test]
    fn a_way_is_an_address_and_not_one_to_a_pod_of_this_node() {
        for way in [WAY, HopWay { next4: Be32::new(0), mtu: 0xffff, ..WAY }] {
            assert_eq!(HopWay::of_addr(&way.to_addr()), Some(way));
            assert_eq!(PastWay::of_addr(&way.to_addr()), None);
        }
        let other = PastWay { to: (4095, u32::MAX), from: (1, 9) };
        assert_eq!(HopWay::of_addr(&other.to_addr()), None);
        assert_eq!(HopWay::of_addr(&Addr::NONE), None);
    }

    #[test]
    fn the_routing_table_is_asked_once_a_stamp() {
        assert!(WAY.is_fresh(0x1_fffe));
        assert!(!WAY.is_fresh(0xffff));
        assert!(WAY.leads_as(&HopWay { asked: 0, ..WAY }));
        for other in [
            HopWay { device: 5, ..WAY },
            HopWay { next4: Be32::new(0), ..WAY },
            HopWay { mtu: 1280, ..WAY },
        ] {
            assert!(!WAY.leads_as(&other), "{other:?}");
        }
    }

    #[test]
    fn who_is_elsewhere() {
        let known = |flags| Ident { flags, ..Ident::ZERO };
        assert!(is_elsewhere(&known(IdentFlags::POD)));
        for here in [IdentFlags::HERE, IdentFlags::LOCAL_NODE, IdentFlags::NODE] {
            assert!(!is_elsewhere(&known(IdentFlags::POD | here)), "{here:?}");
        }
        assert!(!is_elsewhere(&known(IdentFlags::NONE)));
        assert!(!is_elsewhere(&Ident { ifindex: 5, ..known(IdentFlags::POD) }));
    }

    #[test]
    fn who_is_another_node() {
        let known = |flags| Ident { flags, ..Ident::ZERO };
        assert!(is_other_node(&known(IdentFlags::NODE)));
        assert!(is_other_node(&known(IdentFlags::NODE | IdentFlags::POD)), "in the host's network");
        assert!(!is_other_node(&known(IdentFlags::NODE | IdentFlags::LOCAL_NODE)));
        assert!(!is_other_node(&known(IdentFlags::POD)));
        assert!(!is_other_node(&Ident { ifindex: 5, ..known(IdentFlags::NODE) }));
    }

    #[test]
    fn the_pod_the_device_and_the_node_must_allow_it() {
        let on = SettingFlags::HOP_PAST;
        let pod = LocalEnd {
            ifindex: 5,
            generation: 0x2_0007,
            flags: LocalFlags::PAST_OK,
            ..LocalEnd::ZERO
        };
        let device = Dev { flags: DevFlags::HOP_OK, ..Dev::ZERO };
        let cases = [
            ("all", on, pod, device, true),
            ("off", SettingFlags::LOCAL_PAST, pod, device, false),
            ("the Pod may not", on, LocalEnd { flags: LocalFlags::NONE, ..pod }, device, false),
            ("the Pod is gone", on, LocalEnd { ifindex: 0, ..pod }, device, false),
            ("the device may not", on, pod, Dev::ZERO, false),
        ];
        for (name, settings, pod, device, want) in cases {
            assert_eq!(may_open(settings, &pod, &device), want, "{name}");
            let of_device = device == Dev::ZERO;
            assert_eq!(obstacle(settings, &pod).is_none(), want || of_device, "{name}");
            assert_eq!(is_open(settings, &WAY, &pod, &device), want, "{name}");
        }
        let other = LocalEnd { generation: 8, ..pod };
        assert!(may_open(on, &other, &device) && !is_open(on, &WAY, &other, &device));
        let known_only = on | SettingFlags::KNOWN_HOP_ONLY;
        assert!(!may_open(known_only, &pod, &device) && is_open(known_only, &WAY, &pod, &device));
    }

    #[test]
    fn the_reason_is_that_of_the_node_then_of_the_pod() {
        let on = SettingFlags::HOP_PAST;
        let pod = LocalEnd { ifindex: 5, flags: LocalFlags::PAST_OK, ..LocalEnd::ZERO };
        let vm = LocalEnd { flags: LocalFlags::from_bits(StackReason::PortInside.bit()), ..pod };
        let ipsec = SettingFlags::from_bits(HopReason::Ipsec.bit());
        let off = SettingFlags::from_bits(StackReason::Setting.bit());
        let known_only = on | SettingFlags::KNOWN_HOP_ONLY;
        let cases = [
            (on, pod, None),
            (ipsec, vm, Some(HopObstacle::Node(HopReason::Ipsec))),
            (off, vm, Some(HopObstacle::Either(StackReason::Setting))),
            (SettingFlags::NONE, pod, Some(HopObstacle::Node(HopReason::RulesUnread))),
            (known_only, pod, Some(HopObstacle::Node(HopReason::RulesUnread))),
            (on, vm, Some(HopObstacle::Either(StackReason::PortInside))),
            (on, LocalEnd::ZERO, Some(HopObstacle::Either(StackReason::NotAttached))),
        ];
        for (settings, pod, want) in cases {
            assert_eq!(obstacle(settings, &pod), want);
        }
    }
}
