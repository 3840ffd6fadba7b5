//! What is known of a Pod's device → whether its flows may go past the IP stack; and of other devices → whether flows to Pods of
//! other nodes may leave and come in by them so.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use lb_common::addr::Addr;
use lb_common::config::SettingFlags;
use lb_common::endpoint::Ident;
use lb_common::hop::HopReason;
use lb_common::past::{StackReason, VethReason};
use lb_core::host_rules::routing::RoutingDoubt;
use lb_core::host_rules::{HostJudgement, PodTraffic};
use lb_core::plan::{ABOUT_PAST, PodPath};
use lb_kernel::bpf::attach::Mechanism;
use lb_kernel::bpf::neighbors::{self, Neighbors};
use lb_kernel::devices::Veth;
use lb_kernel::preflight;
use tracing::warn;

use crate::config::PastStack;

/// What the agent knows beside the devices themselves.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// What the operator decided.
    mode: PastStack,
    /// What the settings said at the start. It holds until the rules are judged: flows must not lose their way meanwhile.
    former: SettingFlags,
    /// What packets between Pods look like now.
    traffic: PodTraffic,
    /// What is known of the node's firewall rules.
    judged: Option<JudgedRules>,
    /// Whether the kernel counts what Pods receive past the host's ends of their veths.
    counts: bool,
    /// Whether programs of ours count packets beside the others.
    counts_flows: bool,
    /// What devices have beside our programs.
    neighbors: BTreeMap<u32, Neighbors>,
}

/// From this version on, the Pod's end of a veth counts what `bpf_redirect_peer` brings.
const PEER_COUNTS_SINCE: (u32, u32) = (6, 7);

/// What the rules mean to flows between these Pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JudgedRules {
    pub traffic: PodTraffic,
    /// Between Pods of this node.
    pub judgement: HostJudgement,
    /// Between them and Pods of other nodes.
    pub across: HostJudgement,
    /// What else speaks against flows between those.
    pub routing: Option<RoutingDoubt>,
    /// Whether a connection that netfilter sees from its middle on goes on (`nf_conntrack_tcp_loose`).
    pub loose: bool,
}

/// Pods' devices by how far their programs are.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// They run.
    pub attached: BTreeSet<u32>,
    /// They are being attached; those of an earlier agent may run.
    pub attaching: BTreeSet<u32>,
}

/// What is known of a Pod beside its device.
#[derive(Clone, Copy, Debug, Default)]
struct PodReasons {
    is_unread: bool,
    is_annotated: bool,
}

impl Past {
    /// `former` is what the settings say, `kernel` the kernel's release.
    pub(super) fn new(mode: PastStack, former: SettingFlags, kernel: &str) -> Self {
        let counts = preflight::version(kernel).is_some_and(|v| v >= PEER_COUNTS_SINCE);
        Self { mode, former: former.only(ABOUT_PAST), counts, ..Self::default() }
    }

    /// Programs of ours count packets of flows, or none do.
    pub(super) fn counting_flows(self, counts_flows: bool) -> Self {
        Self { counts_flows, ..self }
    }

    /// Whether they do.
    pub(super) fn counts_flows(&self) -> bool {
        self.counts_flows
    }

    /// The rules of the node were read.
    pub(super) fn judged(&mut self, judged: JudgedRules) {
        self.judged = Some(judged);
    }

    /// What is known of them.
    pub(super) fn judged_rules(&self) -> Option<&JudgedRules> {
        self.judged.as_ref()
    }

    /// Packets between Pods look like this now. Those to Pods of other nodes must not go past the stack before they are judged.
    pub(super) fn follow(&mut self, traffic: PodTraffic) {
        self.traffic = traffic;
    }

    /// What the settings say about it.
    pub(super) fn settings(&self) -> SettingFlags {
        let because = |reason: StackReason| SettingFlags::from_bits(reason.bit());
        if self.mode == PastStack::Off {
            return because(StackReason::Setting);
        }
        let Some(judged) = &self.judged else {
            let past = SettingFlags::LOCAL_PAST | SettingFlags::HOP_PAST;
            if self.former.intersects(past) {
                return self.former;
            }
            let of_hop = SettingFlags::from_bits(HopReason::RulesUnread.bit());
            return because(StackReason::RulesUnread) | of_hop;
        };
        self.within(judged) | self.across(judged)
    }

    /// What they say about flows between Pods of this node.
    fn within(&self, judged: &JudgedRules) -> SettingFlags {
        let auto = self.mode == PastStack::Auto;
        let reason = match judged.judgement {
            HostJudgement::Rule(_) if auto => StackReason::HostRule,
            HostJudgement::Unknown(_) if auto => StackReason::RulesUnknown,
            HostJudgement::Engine(_) => StackReason::PolicyEngine,
            HostJudgement::Harmless | HostJudgement::Rule(_) | HostJudgement::Unknown(_) => {
                return SettingFlags::LOCAL_PAST;
            }
        };
        // Where netfilter refuses connections that it has not seen begin, those that are past it stay there.
        let kept = SettingFlags::LOCAL_PAST | SettingFlags::KNOWN_PAST_ONLY;
        SettingFlags::from_bits(reason.bit()) | kept.when(!judged.loose)
    }

    /// What they say about flows to and from Pods of other nodes.
    fn across(&self, judged: &JudgedRules) -> SettingFlags {
        let auto = self.mode == PastStack::Auto;
        let because = |reason: HopReason| SettingFlags::from_bits(reason.bit());
        match judged.routing {
            // Also open ones would be in the clear, or take the wrong route.
            Some(RoutingDoubt::Ipsec) => return because(HopReason::Ipsec),
            Some(RoutingDoubt::Rule(_)) => return because(HopReason::PolicyRouting),
            Some(RoutingDoubt::Unknown(_)) if auto => return because(HopReason::RulesUnknown),
            Some(RoutingDoubt::Unknown(_)) | None => {}
        }
        let kept = SettingFlags::HOP_PAST | SettingFlags::KNOWN_HOP_ONLY;
        let is_engine = matches!(judged.judgement, HostJudgement::Engine(_));
        let reason = match judged.across {
            HostJudgement::Engine(_) => HopReason::PolicyEngine,
            _ if is_engine => HopReason::PolicyEngine,
            HostJudgement::Rule(_) if auto => HopReason::HostRule,
            HostJudgement::Unknown(_) if auto => HopReason::RulesUnknown,
            HostJudgement::Harmless
                if auto && !self.traffic.is_elsewhere_within(&judged.traffic) =>
            {
                return because(HopReason::RulesUnread) | kept;
            }
            HostJudgement::Harmless | HostJudgement::Rule(_) | HostJudgement::Unknown(_) => {
                return SettingFlags::HOP_PAST;
            }
        };
        because(reason) | kept.when(!judged.loose)
    }

    /// The firewall rule because of which flows go through the stack, or empty.
    pub(super) fn host_rule(&self) -> &str {
        self.judged.as_ref().map_or("", |judged| text(&judged.judgement))
    }

    /// The same for flows to and from Pods of other nodes: a firewall rule or a routing rule.
    pub(super) fn hop_rule(&self) -> &str {
        let Some(judged) = &self.judged else { return "" };
        match (&judged.routing, &judged.across) {
            (Some(RoutingDoubt::Ipsec), _) => "",
            (Some(RoutingDoubt::Rule(text) | RoutingDoubt::Unknown(text)), _) => text,
            (None, HostJudgement::Harmless) => match &judged.judgement {
                HostJudgement::Engine(text) => text,
                _ => "",
            },
            (None, across) => text(across),
        }
    }

    /// Whether the rules were judged for all that a Pod sends.
    fn is_covered(&self, veth: &Veth, idents: &BTreeMap<Addr, Ident>) -> bool {
        let Some(JudgedRules { traffic, .. }) = &self.judged else { return false };
        let own = idents.iter().filter(|(_, ident)| ident.ifindex == veth.ifindex);
        let mut devices = traffic.routed.iter().chain(&traffic.ports);
        own.clone().all(|(addr, _)| traffic.addresses.contains(addr))
            && (own.count() == 0 || devices.any(|(index, _)| *index == veth.ifindex))
    }

    /// Asks the kernel what a device has beside our programs. A kernel that does not tell counts as one that has others.
    pub(super) fn look(&mut self, ifindex: u32, mechanism: Option<Mechanism>) {
        self.neighbors.remove(&ifindex);
        let Some(mechanism) = mechanism else { return };
        let ours = if self.counts_flows { 2 } else { 1 };
        match neighbors::look(ifindex, mechanism, ours) {
            Ok(found) => drop(self.neighbors.insert(ifindex, found)),
            Err(err) => {
                warn!(ifindex, %err, "cannot list the programs of a device; its flows go through the IP stack")
            }
        }
    }

    /// A device is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.neighbors.remove(&ifindex);
    }

    /// Whether flows to and from Pods of other nodes may leave and come in by a device, as far as it is about the device. `had`:
    /// it was allowed before, which holds while its programs are being attached again.
    pub(super) fn may_hop(&self, ifindex: u32, progress: &Progress, had: bool) -> bool {
        if !self.is_outward(ifindex, had) {
            return false;
        }
        if progress.attached.contains(&ifindex) {
            return self.neighbors.get(&ifindex).is_some_and(|found| !found.ingress);
        }
        had && progress.attaching.contains(&ifindex)
    }

    /// Whether the rules were judged for flows to and from Pods of other nodes by a device.
    fn is_outward(&self, ifindex: u32, had: bool) -> bool {
        match (&self.judged, self.mode) {
            (_, PastStack::On | PastStack::Off) => true,
            (None, PastStack::Auto) => had,
            (Some(JudgedRules { traffic, .. }), PastStack::Auto) => {
                traffic.outward.iter().any(|(index, _)| *index == ifindex)
            }
        }
    }

    /// How packets reach the Pods behind these devices.
    pub(super) fn paths(
        &self,
        veths: &[&Veth],
        progress: &Progress,
        idents: &BTreeMap<Addr, Ident>,
        annotated: &BTreeSet<u32>,
    ) -> BTreeMap<u32, PodPath> {
        let path = |veth: &&Veth| {
            let reasons = PodReasons {
                is_unread: self.mode != PastStack::Off && !self.is_covered(veth, idents),
                is_annotated: annotated.contains(&veth.ifindex),
            };
            (veth.ifindex, self.path(veth, progress, &reasons))
        };
        veths.iter().map(path).collect()
    }

    fn path(&self, veth: &Veth, progress: &Progress, of_pod: &PodReasons) -> PodPath {
        let ifindex = veth.ifindex;
        let is_attached = progress.attached.contains(&ifindex);
        let others = self.neighbors.get(&ifindex).copied().unwrap_or(Neighbors::UNKNOWN);
        let reasons = [
            (of_pod.is_unread, StackReason::RulesUnread),
            (of_pod.is_annotated, StackReason::Annotation),
            (veth.port.isolated, StackReason::IsolatedPort),
            (veth.port.vlans, StackReason::VlanBridge),
            (!is_attached, StackReason::NotAttached),
            (veth.mac == [0; 6], StackReason::UnknownMac),
            (veth.far.is_port, StackReason::PortInside),
            (veth.mtu != veth.far.mtu, StackReason::UnequalMtu),
            (is_attached && others.ingress, StackReason::OtherPrograms),
        ];
        let by_veth = [
            (!self.counts, VethReason::OldKernel),
            (others.queue, VethReason::Qdisc),
            (others.egress, VethReason::ProgramsThere),
            (veth.far.xdp, VethReason::Xdp),
        ];
        let reasons: BTreeSet<_> = those_that_speak(reasons);
        let is_open = |reason: &StackReason| match reason {
            StackReason::RulesUnread => self.judged.is_none(),
            StackReason::NotAttached => progress.attaching.contains(&ifindex),
            _ => false,
        };
        PodPath {
            link: [veth.mac, veth.own_mac],
            mtu: veth.mtu,
            undecided: !reasons.is_empty() && reasons.iter().all(is_open),
            reasons,
            by_veth: those_that_speak(by_veth),
        }
    }
}

/// The rule that a judgement is about, or empty.
fn text(judgement: &HostJudgement) -> &str {
    match judgement {
        HostJudgement::Rule(text) | HostJudgement::Engine(text) | HostJudgement::Unknown(text) => {
            text
        }
        HostJudgement::Harmless => "",
    }
}

fn those_that_speak<T: Ord, const N: usize>(reasons: [(bool, T); N]) -> BTreeSet<T> {
    let reasons = reasons.into_iter().filter(|(speaks, _)| *speaks);
    reasons.map(|(_, reason)| reason).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_common::addr::Addr;
    use lb_common::config::SettingFlags;
    use lb_common::endpoint::Ident;
    use lb_common::hop::HopReason;
    use lb_common::past::{StackReason, VethReason};
    use lb_core::host_rules::routing::RoutingDoubt;
    use lb_core::host_rules::{HostJudgement, PodTraffic};
    use lb_kernel::devices::{BridgePort, FarDevice, Veth};

    use super::{JudgedRules, Neighbors, Past, PastStack, PodReasons, Progress};
    use crate::agent::pods;

    const NONE: Neighbors = Neighbors { ingress: false, egress: false, queue: false };

    fn far() -> FarDevice {
        FarDevice { mtu: 1500, ..FarDevice::default() }
    }

    fn beside(neighbors: Neighbors) -> Past {
        let neighbors = [(5, neighbors)].into();
        Past { mode: PastStack::On, counts: true, neighbors, ..Past::default() }
    }

    #[test]
    fn each_doubt_sends_packets_by_the_hosts_end() {
        let veth = Veth { far: far(), ..pods::tests::veth() };
        let xdp = Veth { far: FarDevice { xdp: true, ..far() }, ..veth.clone() };
        let cases: [(Past, &Veth, &[VethReason]); 6] = [
            (beside(NONE), &veth, &[]),
            (Past { counts: false, ..beside(NONE) }, &veth, &[VethReason::OldKernel]),
            (beside(Neighbors { queue: true, ..NONE }), &veth, &[VethReason::Qdisc]),
            (beside(Neighbors { egress: true, ..NONE }), &veth, &[VethReason::ProgramsThere]),
            (beside(NONE), &xdp, &[VethReason::Xdp]),
            (
                Past::new(PastStack::On, SettingFlags::NONE, "6.7.0"),
                &veth,
                &[VethReason::Qdisc, VethReason::ProgramsThere],
            ),
        ];
        let attached = Progress { attached: [5].into(), ..Progress::default() };
        for (past, veth, want) in cases {
            let found = past.path(veth, &attached, &PodReasons::default()).by_veth;
            assert_eq!(found, want.iter().copied().collect::<BTreeSet<_>>());
        }
        let counts = |kernel| Past::new(PastStack::On, SettingFlags::NONE, kernel).counts;
        assert_eq!(
            ["6.1.0-56-cloud-amd64", "6.6.90", "6.7.1", "7.0.0", ""].map(counts),
            [false, false, true, true, false]
        );
    }

    #[test]
    fn each_doubt_sends_the_flows_of_a_device_through_the_stack() {
        let attached = Progress { attached: [5].into(), ..Progress::default() };
        let attaching = Progress { attaching: [5].into(), ..Progress::default() };
        let cases = [
            ("alone", beside(NONE), &attached, [true, true]),
            ("a queue there", beside(Neighbors { queue: true, ..NONE }), &attached, [true, true]),
            ("others", beside(Neighbors { ingress: true, ..NONE }), &attached, [false, false]),
            ("not known", Past::default(), &attached, [false, false]),
            ("not attached, or no Ethernet", beside(NONE), &Progress::default(), [false, false]),
            ("the agent has just started", Past::default(), &attaching, [false, true]),
        ];
        for (name, past, progress, want) in cases {
            let may = [false, true].map(|had| past.may_hop(5, progress, had));
            assert_eq!(may, want, "{name}");
        }
    }

    #[test]
    fn each_doubt_sends_the_flows_of_a_pod_through_the_stack() {
        let veth = Veth { far: far(), ..pods::tests::veth() };
        let alone = || beside(NONE);
        let attached = Progress { attached: [5].into(), ..Progress::default() };
        let none = Progress::default();
        let attaching = Progress { attaching: [5].into(), ..Progress::default() };
        let unknown = Veth { mac: [0; 6], ..veth.clone() };
        let port = Veth { far: FarDevice { is_port: true, ..veth.far }, ..veth.clone() };
        let small = Veth { mtu: 1400, ..veth.clone() };
        let isolated = BridgePort { isolated: true, vlans: false };
        let isolated = Veth { port: isolated, ..veth.clone() };
        let vlans = Veth { port: BridgePort { isolated: false, vlans: true }, ..veth.clone() };
        let cases = [
            (alone(), &veth, &attached, None),
            (alone(), &veth, &none, Some(StackReason::NotAttached)),
            (alone(), &veth, &attaching, Some(StackReason::NotAttached)),
            (alone(), &unknown, &attached, Some(StackReason::UnknownMac)),
            (alone(), &port, &attached, Some(StackReason::PortInside)),
            (alone(), &small, &attached, Some(StackReason::UnequalMtu)),
            (alone(), &isolated, &attached, Some(StackReason::IsolatedPort)),
            (alone(), &vlans, &attached, Some(StackReason::VlanBridge)),
            (Past::default(), &veth, &attached, Some(StackReason::OtherPrograms)),
        ];
        for (past, veth, progress, want) in cases {
            let path = past.path(veth, progress, &PodReasons::default());
            assert_eq!(path.reasons, want.into_iter().collect(), "{want:?}");
            assert_eq!(path.link, [veth.mac, [6; 6]]);
            assert_eq!(path.undecided, !progress.attaching.is_empty(), "{want:?}");
        }
    }

    fn judged(judgement: HostJudgement, loose: bool) -> JudgedRules {
        let across = judgement.clone();
        JudgedRules { traffic: PodTraffic::default(), judgement, across, routing: None, loose }
    }

    #[test]
    fn the_mode_and_the_rules_of_the_node_decide_for_all_pods() {
        let rule = || HostJudgement::Rule("ip filter FORWARD: policy drop".to_owned());
        let engine = || HostJudgement::Engine("ip filter cali-FORWARD".to_owned());
        let unknown = || HostJudgement::Unknown("permission denied".to_owned());
        let (on, none) = (SettingFlags::LOCAL_PAST | SettingFlags::HOP_PAST, SettingFlags::NONE);
        let kept = on | SettingFlags::KNOWN_PAST_ONLY | SettingFlags::KNOWN_HOP_ONLY;
        let because = |reason: StackReason, hop: HopReason| {
            SettingFlags::from_bits(reason.bit()) | SettingFlags::from_bits(hop.bit())
        };
        let unread = because(StackReason::RulesUnread, HopReason::RulesUnread);
        let ruled = because(StackReason::HostRule, HopReason::HostRule);
        let unsure = because(StackReason::RulesUnknown, HopReason::RulesUnknown);
        let other = because(StackReason::PolicyEngine, HopReason::PolicyEngine);
        let off = SettingFlags::from_bits(StackReason::Setting.bit());
        let (auto, forced) = (PastStack::Auto, PastStack::On);
        for (mode, former, found, want) in [
            (auto, none, None, unread),
            (auto, on, None, on),
            (auto, SettingFlags::HOP_PAST, None, SettingFlags::HOP_PAST),
            (forced, none, None, unread),
            (auto, on, Some(judged(HostJudgement::Harmless, true)), on),
            (auto, on, Some(judged(rule(), true)), ruled),
            (auto, on, Some(judged(rule(), false)), ruled | kept),
            (auto, on, Some(judged(unknown(), true)), unsure),
            (forced, on, Some(judged(rule(), true)), on),
            (forced, on, Some(judged(unknown(), true)), on),
            (forced, on, Some(judged(engine(), true)), other),
            (PastStack::Off, on, Some(judged(rule(), true)), off),
        ] {
            let mut past = Past::new(mode, former, "6.18.0");
            past.judged = found;
            assert_eq!(past.settings(), want, "{mode:?} {:?}", past.judged);
        }
    }

    #[test]
    fn flows_to_other_nodes_have_reasons_of_their_own() {
        let rule = || HostJudgement::Rule("ip filter FORWARD: rule 1: drop".to_owned());
        let harmless = || judged(HostJudgement::Harmless, true);
        let local = SettingFlags::LOCAL_PAST;
        let because = |hop: HopReason| local | SettingFlags::from_bits(hop.bit());
        let kept = SettingFlags::HOP_PAST | SettingFlags::KNOWN_HOP_ONLY;
        let doubted = |doubt| JudgedRules { routing: Some(doubt), loose: false, ..harmless() };
        let by_rule = || doubted(RoutingDoubt::Rule("ip rule 100".to_owned()));
        let unknown = || doubted(RoutingDoubt::Unknown("permission denied".to_owned()));
        let across = |loose| JudgedRules { across: rule(), loose, ..harmless() };
        let (auto, forced) = (PastStack::Auto, PastStack::On);
        for (mode, found, want, text) in [
            (auto, harmless(), local | SettingFlags::HOP_PAST, ""),
            (auto, across(true), because(HopReason::HostRule), "ip filter FORWARD: rule 1: drop"),
            (
                auto,
                across(false),
                because(HopReason::HostRule) | kept,
                "ip filter FORWARD: rule 1: drop",
            ),
            (auto, doubted(RoutingDoubt::Ipsec), because(HopReason::Ipsec), ""),
            (auto, by_rule(), because(HopReason::PolicyRouting), "ip rule 100"),
            (auto, unknown(), because(HopReason::RulesUnknown), "permission denied"),
            (forced, doubted(RoutingDoubt::Ipsec), because(HopReason::Ipsec), ""),
            (forced, by_rule(), because(HopReason::PolicyRouting), "ip rule 100"),
            (forced, unknown(), local | SettingFlags::HOP_PAST, "permission denied"),
        ] {
            let past = Past { mode, judged: Some(found), ..Past::default() };
            assert_eq!(past.settings(), want, "{mode:?} {:?}", past.judged);
            assert_eq!(past.hop_rule(), text);
        }
        let mut past = Past { judged: Some(harmless()), ..beside(NONE) };
        past.mode = auto;
        past.follow(PodTraffic {
            elsewhere: ["10.1.2.0/24".parse().unwrap()].into(),
            ..PodTraffic::default()
        });
        assert_eq!(past.settings(), because(HopReason::RulesUnread) | kept, "not judged yet");
        let attached = Progress { attached: [5].into(), ..Progress::default() };
        assert!(!past.may_hop(5, &attached, true), "not judged for this device");
        let traffic =
            PodTraffic { outward: [(5, "eth0".to_owned())].into(), ..past.traffic.clone() };
        past.judged = Some(JudgedRules { traffic, ..harmless() });
        assert_eq!(past.settings(), local | SettingFlags::HOP_PAST);
        assert!(past.may_hop(5, &attached, false));
        past.judged = None;
        assert_eq!([true, false].map(|had| past.may_hop(5, &attached, had)), [true, false]);
    }

    #[test]
    fn a_pod_waits_until_the_rules_are_judged_for_its_addresses() {
        let veth = Veth { far: far(), ..pods::tests::veth() };
        let attached = Progress { attached: [5].into(), ..Progress::default() };
        let addr = Addr::from_ip("10.1.0.5".parse().unwrap());
        let idents = [(addr, Ident { ifindex: 5, ..Ident::ZERO })].into();
        let mut past = Past { mode: PastStack::Auto, ..beside(NONE) };
        let unread = |past: &Past| {
            let path = past.paths(&[&veth], &attached, &idents, &[].into()).remove(&5).unwrap();
            (path.reasons.contains(&StackReason::RulesUnread), path.undecided)
        };
        assert_eq!(unread(&past), (true, true), "an earlier run has judged them");
        past.judged = Some(judged(HostJudgement::Harmless, true));
        assert_eq!(unread(&past), (true, false));
        let traffic = PodTraffic {
            addresses: [addr].into(),
            routed: [(5, "veth5".to_owned())].into(),
            ..PodTraffic::default()
        };
        past.judged = Some(JudgedRules { traffic, ..judged(HostJudgement::Harmless, true) });
        assert_eq!(unread(&past), (false, false));
        let paths = past.paths(&[&veth], &attached, &idents, &[5].into());
        assert_eq!(paths[&5].reasons, [StackReason::Annotation].into());
    }
}
