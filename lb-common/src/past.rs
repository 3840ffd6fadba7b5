//! Flows between Pods of one node that go past the host's IP stack and netfilter: their way, and whether it is open.
//!
//! Netfilter must see both directions of a flow or neither. So the way is chosen at the first packet, for both directions, and
//! each packet asks the same predicate ([`is_open`]) of the same two elements. A flow may lose its way at any time, and goes
//! through the stack from then on; it never gets one later.
//!
//! A packet that goes past the stack goes to the host's end of the receiver's veth, or, if nothing there needs to see it, to the
//! Pod's end at once ([`goes_to_peer`]). That is asked of each packet again: the entries of the flow are the same.

use crate::addr::Addr;
use crate::be::Be32;
use crate::config::SettingFlags;
use crate::conntrack::{CtEntry, CtFlags};
use crate::{flags, listed, listed_bits, pod};

pod! {
    /// Element of the array `locals`, by [`crate::endpoint::PodEntry::id`]: a Pod of this node as a packet reaches it past the
    /// IP stack.
    pub struct LocalEnd: 32 {
        /// ifindex of the host's end of its veth; 0 = none has the number.
        pub ifindex: u32,
        /// Raised whenever the number gets another owner.
        pub generation: u32,
        /// Link-layer addresses of a frame for the Pod: the Pod's end, the host's end.
        pub link: [[u8; 6]; 2],
        /// Largest IP packet of the host's end in bytes.
        pub mtu: u32,
        /// What is allowed.
        pub flags: LocalFlags,
        /// Zero.
        pub reserved: u32,
    }
}

flags! {
    /// Flags of a [`LocalEnd`]. The bits from [`StackReason::FIRST_BIT`] and from [`VethReason::FIRST_BIT`] on say why not.
    pub struct LocalFlags: u32 {
        /// Flows of the Pod may go past the IP stack.
        PAST_OK = 1 << 0;
        /// What goes past the IP stack to the Pod may go past the host's end of its veth, too.
        PEER_OK = 1 << 1;
    }
}

listed! {
    /// Why flows go through the host's IP stack. Its bit is in the flags of the settings if it concerns all Pods of the node, and
    /// in those of a [`LocalEnd`] if it concerns one.
    pub enum StackReason {
        Setting = 0: "setting", "`--past-stack off`.", "Nothing, if that is intended.";
        RulesUnread = 1: "rules-unread", "The firewall rules of the node have not been compared with the addresses of its Pods yet.", "Wait; it takes less than a second.";
        RulesUnknown = 2: "rules-unknown", "The firewall rules of the node cannot be read, or they are larger or different than the agent understands.", "See `lbctl status` for the rule. If no rule is about traffic between Pods, set `--past-stack on`.";
        HostRule = 3: "host-rule", "A firewall rule of the node could drop, mark, log, count or change packets between its Pods.", "See `lbctl status` for the rule. If it may be passed by, set `--past-stack on`.";
        PolicyEngine = 4: "policy-engine", "Another program enforces policies between Pods by firewall rules of the node.", "Remove it, if lb is to enforce all policies. `--past-stack on` has no effect on this reason.";
        NotAttached = 5: "not-attached", "The programs are not attached to the device of the Pod yet.", "See `lbctl status`.";
        UnknownMac = 6: "unknown-mac", "The link-layer address of the Pod's end of its veth is not known.", "See `lbctl status`.";
        PortInside = 7: "port-inside", "The Pod's end of its veth is a port of a bridge in the Pod, as with a virtual machine.", "Nothing: frames would go to the bridge instead of the machine.";
        UnequalMtu = 8: "unequal-mtu", "The two ends of the Pod's veth, or the two Pods, have different MTUs.", "Let the CNI plugin set one MTU.";
        OtherPrograms = 9: "other-programs", "Other programs or filters on the Pod's device see what it sends, or it is attached by clsact.", "Nothing: they would no longer see the packets.";
        IsolatedPort = 10: "isolated-port", "The Pod's device is an isolated port of its bridge.", "Nothing: the bridge must not connect it to other isolated ports.";
        VlanBridge = 11: "vlan-bridge", "The Pod's device is a port of a bridge that filters VLANs.", "Nothing: the bridge decides which of its ports are connected.";
        Annotation = 12: "annotation", "The annotation `lb-agent.io/path: stack` of the Pod or of the Service.", "Remove the annotation.";
    }
}

listed_bits! { StackReason from 8 }

impl StackReason {
    /// Whether a firewall rule of the node is the reason.
    pub const fn is_of_a_rule(self) -> bool {
        matches!(self, Self::RulesUnknown | Self::HostRule | Self::PolicyEngine)
    }
}

listed! {
    /// Why what goes past the IP stack to a Pod goes by the host's end of its veth. Its bit is in the flags of its [`LocalEnd`].
    pub enum VethReason {
        OldKernel = 0: "old-kernel", "Before Linux 6.7 the Pod's device does not count what comes past the host's end.", "Update the kernel, if the few percent matter.";
        Qdisc = 1: "qdisc", "The host's end has a queueing discipline, such as the bandwidth limit of a CNI plugin.", "Nothing: packets would not pass it.";
        ProgramsThere = 2: "programs-there", "Other programs or filters at the host's end see what the Pod receives.", "Nothing: they would no longer see the packets.";
        Xdp = 3: "xdp", "The Pod's end has an XDP program.", "Nothing: packets would not pass it.";
    }
}

listed_bits! { VethReason from 28 }

/// The path of a flow, to the Pod that its packets go to. A conntrack entry has it as four words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastWay {
    /// The Pod that the packets go to: its number, and the generation of that.
    pub to: (u32, u32),
    /// The Pod that sends them.
    pub from: (u32, u32),
}

impl PastWay {
    /// As an entry has it. Numbers of Pods are never 0, so it is not `::`.
    pub const fn to_addr(self) -> Addr {
        Addr::v6([
            Be32::from_wire(self.to.0),
            Be32::from_wire(self.to.1),
            Be32::from_wire(self.from.0),
            Be32::from_wire(self.from.1),
        ])
    }

    /// The way in an entry; `None` for one that has another one.
    pub const fn of_addr(addr: &Addr) -> Option<Self> {
        let [to, to_generation, from, from_generation] = addr.words();
        if to.to_wire() == 0 || to.to_wire() & ELSEWHERE != 0 {
            return None;
        }
        Some(Self {
            to: (to.to_wire(), to_generation.to_wire()),
            from: (from.to_wire(), from_generation.to_wire()),
        })
    }

    /// The way in the other direction.
    pub const fn back(self) -> Self {
        Self { to: self.from, from: self.to }
    }
}

/// Marks the first word of a [`crate::hop::HopWay`]. Numbers of Pods are smaller.
pub(crate) const ELSEWHERE: u32 = 1 << 31;

listed! {
    /// Where the packets of a flow go when they leave its Pod, or the program that translates them.
    pub enum FlowPath {
        Stack: "stack", "Through the host's IP stack and netfilter.";
        Veth: "veth", "Past them, to the host's end of the veth of another Pod of the node.";
        Peer: "peer", "Past them, to the other Pod's end of its veth.";
        Bridge: "bridge", "Past them, to a bridge that passes netfilter by.";
        Back: "back", "Past them, back to the Pod that sent them.";
        Hop: "hop", "Past them, to the next hop: another node, or a client outside.";
    }
}

impl FlowPath {
    /// As the entry of the flow has it; `end` finds a Pod by its number, `owner` one that takes packets from outside past the
    /// IP stack by its address.
    pub fn of(
        entry: &CtEntry,
        end: impl Fn(u32) -> Option<LocalEnd>,
        owner: impl Fn(Addr) -> Option<LocalEnd>,
    ) -> Self {
        let is_past = entry.flags.contains(CtFlags::PAST);
        let way = PastWay::of_addr(&entry.way).filter(|_| is_past);
        if entry.flags.contains(CtFlags::HAIRPIN) {
            return Self::Back;
        }
        let to_pod = CtFlags::FORWARD.with(CtFlags::MASQUERADED);
        if entry.flags.contains(CtFlags::EXTERNAL) {
            if entry.flags.contains(CtFlags::TO_HOST) {
                Self::Stack
            } else if entry.flags.only(to_pod) == CtFlags::FORWARD {
                Self::to(owner(entry.nat_addr))
            } else {
                Self::Hop
            }
        } else if let Some(PastWay { to: (to, _), .. }) = way {
            Self::to(end(to))
        } else if !is_past {
            Self::Stack
        } else if entry.way == Addr::NONE {
            Self::Bridge
        } else {
            Self::Hop
        }
    }

    /// Past the stack to a Pod of the node.
    fn to(end: Option<LocalEnd>) -> Self {
        if end.is_some_and(|end| goes_to_peer(&end)) { Self::Peer } else { Self::Veth }
    }
}

/// Whether new flows between two Pods of this node may go past the IP stack.
pub const fn may_open(settings: SettingFlags, to: &LocalEnd, from: &LocalEnd) -> bool {
    node_may_open(settings) && may_go_on(settings, to, from)
}

/// Whether the node allows it, whichever the Pods.
pub const fn node_may_open(settings: SettingFlags) -> bool {
    const ASKED: SettingFlags = SettingFlags::LOCAL_PAST.with(SettingFlags::KNOWN_PAST_ONLY);
    settings.only(ASKED).bits() == SettingFlags::LOCAL_PAST.bits()
}

/// Whether flows between two Pods of this node that have a way may keep it. Equal MTUs: nothing that one can send is too big for
/// the other.
const fn may_go_on(settings: SettingFlags, to: &LocalEnd, from: &LocalEnd) -> bool {
    settings.contains(SettingFlags::LOCAL_PAST)
        && to.flags.contains(LocalFlags::PAST_OK)
        && from.flags.contains(LocalFlags::PAST_OK)
        && to.ifindex != 0
        && from.ifindex != 0
        && to.ifindex != from.ifindex
        && to.mtu == from.mtu
}

/// Whether a flow still has its way: allowed, and both numbers mean the same Pods.
pub const fn is_open(
    settings: SettingFlags,
    way: &PastWay,
    to: &LocalEnd,
    from: &LocalEnd,
) -> bool {
    may_go_on(settings, to, from) && to.generation == way.to.1 && from.generation == way.from.1
}

/// Whether a packet of a flow whose way is open ([`is_open`]) needs not go by the host's end of the receiver's veth.
pub const fn goes_to_peer(to: &LocalEnd) -> bool {
    to.flags.contains(LocalFlags::PEER_OK)
}

/// Why new flows between two different Pods of this node go through the IP stack: the first reason of the node, of the sender, of
/// the receiver; `None` if they may go past it ([`may_open`]).
pub fn obstacle(settings: SettingFlags, to: &LocalEnd, from: &LocalEnd) -> Option<StackReason> {
    if may_open(settings, to, from) {
        return None;
    }
    let is_usable = |end: &LocalEnd| end.ifindex != 0 && end.flags.contains(LocalFlags::PAST_OK);
    let of_end = |end: &LocalEnd| {
        let named = StackReason::among(end.flags.bits()).next();
        named.or((!is_usable(end)).then_some(StackReason::NotAttached))
    };
    let of_node = StackReason::among(settings.bits()).next();
    let of_node = of_node.or((!node_may_open(settings)).then_some(StackReason::RulesUnread));
    of_node.or(of_end(from)).or(of_end(to)).or(Some(StackReason::UnequalMtu))
}

#[cfg(test)]
mod tests {
    use super::{
        Addr, Be32, CtEntry, CtFlags, ELSEWHERE, FlowPath, LocalEnd, LocalFlags, PastWay,
        SettingFlags, StackReason, VethReason, is_open, may_open, obstacle,
    };

    const OK: LocalEnd = LocalEnd {
        ifindex: 5,
        generation: 3,
        mtu: 1500,
        flags: LocalFlags::PAST_OK,
        ..LocalEnd::ZERO
    };
    const OTHER: LocalEnd = LocalEnd { ifindex: 6, generation: 9, ..OK };
    const WAY: PastWay = PastWay { to: (1, 3), from: (2, 9) };
    const POD: Addr = Addr::v4(Be32::new(0x0a01_0002));

    #[test]
    fn a_way_is_an_address_and_back() {
        assert_eq!(PastWay::of_addr(&WAY.to_addr()), Some(WAY));
        assert_eq!(PastWay::of_addr(&Addr::NONE), None);
        assert_eq!(WAY.back().back(), WAY);
        assert_ne!(WAY.back(), WAY);
    }

    #[test]
    fn an_entry_says_which_path_its_flow_takes() {
        let with = |flags, way, end| {
            let nat_addr = POD;
            let entry = CtEntry { flags, way, nat_addr, ..CtEntry::ZERO };
            let owner = |addr| (addr == POD).then_some(end);
            FlowPath::of(&entry, |id| (id == 1).then_some(end), owner)
        };
        let of = |flags, way| with(flags, way, OK);
        let past = CtFlags::PAST;
        let external = CtFlags::EXTERNAL | CtFlags::FORWARD;
        assert_eq!(of(CtFlags::NONE, Addr::NONE), FlowPath::Stack);
        assert_eq!(of(CtFlags::FORWARD | past, WAY.to_addr()), FlowPath::Veth);
        let peer = LocalEnd { flags: LocalFlags::PAST_OK | LocalFlags::PEER_OK, ..OK };
        assert_eq!(with(CtFlags::FORWARD | past, WAY.to_addr(), peer), FlowPath::Peer);
        assert_eq!(with(past, WAY.back().to_addr(), peer), FlowPath::Veth, "not that Pod");
        assert_eq!(with(CtFlags::FORWARD, WAY.to_addr(), peer), FlowPath::Stack, "withdrawn");
        assert_eq!(of(CtFlags::FORWARD, WAY.to_addr()), FlowPath::Stack, "it was withdrawn");
        assert_eq!(of(CtFlags::FORWARD | past, Addr::NONE), FlowPath::Bridge);
        assert_eq!(of(CtFlags::HAIRPIN | CtFlags::FORWARD, WAY.to_addr()), FlowPath::Back);
        let [_, rest @ ..] = WAY.to_addr().words();
        let [a, b, c] = rest;
        let elsewhere = Addr::v6([Be32::from_wire(ELSEWHERE | 2), a, b, c]);
        assert_eq!(of(CtFlags::FORWARD | past, elsewhere), FlowPath::Hop);
        assert_eq!(of(CtFlags::REPLY | past, elsewhere), FlowPath::Hop);
        assert_eq!(of(external | CtFlags::MASQUERADED, WAY.to_addr()), FlowPath::Hop);
        assert_eq!(of(external, WAY.to_addr()), FlowPath::Veth, "a Pod of this node");
        assert_eq!(with(external, Addr::NONE, peer), FlowPath::Peer);
        assert_eq!(of(CtFlags::EXTERNAL | CtFlags::REPLY, WAY.to_addr()), FlowPath::Hop);
        assert_eq!(of(external | CtFlags::TO_HOST, Addr::NONE), FlowPath::Stack);
    }

    #[test]
    fn both_pods_and_the_node_must_allow_it() {
        let on = SettingFlags::LOCAL_PAST;
        let cases = [
            ("both", on, OK, OTHER, true),
            ("off", SettingFlags::NONE, OK, OTHER, false),
            ("the receiver may not", on, LocalEnd { flags: LocalFlags::NONE, ..OK }, OTHER, false),
            ("the sender may not", on, OK, LocalEnd { flags: LocalFlags::NONE, ..OTHER }, false),
            ("the receiver is gone", on, LocalEnd { ifindex: 0, ..OK }, OTHER, false),
            ("the Pod itself", on, OK, OK, false),
            ("a smaller MTU", on, LocalEnd { mtu: 1400, ..OK }, OTHER, false),
        ];
        for (name, settings, to, from, want) in cases {
            assert_eq!(may_open(settings, &to, &from), want, "{name}");
            assert_eq!(may_open(settings, &from, &to), want, "{name}, back");
            assert_eq!(is_open(settings, &WAY, &to, &from), want && to != from, "{name}");
            assert_eq!(obstacle(settings, &to, &from).is_none(), want, "{name}");
        }
    }

    #[test]
    fn what_new_flows_may_not_use_known_ones_keep() {
        let kept = SettingFlags::LOCAL_PAST | SettingFlags::KNOWN_PAST_ONLY;
        assert!(!may_open(kept, &OK, &OTHER));
        assert!(is_open(kept, &WAY, &OK, &OTHER));
    }

    #[test]
    fn the_reason_is_that_of_the_node_then_of_the_sender_then_of_the_receiver() {
        let because = |reason: StackReason| LocalFlags::from_bits(reason.bit());
        let node = |reason: StackReason| SettingFlags::from_bits(reason.bit());
        let on = SettingFlags::LOCAL_PAST;
        let not = |reason| LocalEnd { flags: because(reason), ..OK };
        let (vm, other) = (not(StackReason::PortInside), not(StackReason::OtherPrograms));
        let cases = [
            (node(StackReason::HostRule), OTHER, vm, Some(StackReason::HostRule)),
            (on, other, vm, Some(StackReason::PortInside)),
            (on, vm, OTHER, Some(StackReason::PortInside)),
            (on, LocalEnd::ZERO, OTHER, Some(StackReason::NotAttached)),
            (on, LocalEnd { mtu: 1400, ..OK }, OTHER, Some(StackReason::UnequalMtu)),
            (SettingFlags::NONE, OK, OTHER, Some(StackReason::RulesUnread)),
            (on, OK, OTHER, None),
        ];
        for (settings, to, from, want) in cases {
            assert_eq!(obstacle(settings, &to, &from), want);
        }
        let flags = LocalFlags::PAST_OK.bits() | SettingFlags::KNOWN_PAST_ONLY.bits();
        assert_eq!(StackReason::among(flags).next(), None, "bits of their own");
        let of_stack = StackReason::ALL.into_iter().fold(flags, |bits, one| bits | one.bit());
        assert_eq!(VethReason::among(of_stack | LocalFlags::PEER_OK.bits()).next(), None);
        let of_veth = VethReason::ALL.into_iter().fold(0, |bits, one| bits | one.bit());
        assert_eq!(VethReason::among(of_veth).count(), VethReason::ALL.len());
        assert_eq!(of_veth & (of_stack | LocalFlags::PEER_OK.bits()), 0);
    }

    #[test]
    fn a_number_that_means_another_pod_ends_the_way() {
        let on = SettingFlags::LOCAL_PAST;
        assert!(is_open(on, &WAY, &OK, &OTHER));
        assert!(!is_open(on, &WAY, &LocalEnd { generation: 4, ..OK }, &OTHER));
        assert!(!is_open(on, &WAY, &OK, &LocalEnd { generation: 10, ..OTHER }));
        assert!(!is_open(on, &WAY.back(), &OK, &OTHER));
    }
}
