//! What is known of a Pod's device → whether its flows may go past the IP stack; and of other devices → whether flows to Pods of
//! other nodes may leave and come in by them so.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use lb_common::addr::Addr;
use lb_common::config::SettingFlags;
use lb_common::endpoint::Ident;
use lb_common::past::{StackReason, VethReason};
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
    /// What is known of the node's firewall rules.
    judged: Option<JudgedRules>,
    /// Whether the kernel counts what Pods receive past the host's ends of their veths.
    counts: bool,
    /// What devices have beside our programs.
    neighbors: BTreeMap<u32, Neighbors>,
}

/// From this version on, the Pod's end of a veth counts what `bpf_redirect_peer` brings.
const PEER_COUNTS_SINCE: (u32, u32) = (6, 7);

/// What the rules mean to flows between these Pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JudgedRules {
    pub traffic: PodTraffic,
    pub judgement: HostJudgement,
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

    /// The rules of the node were read.
    pub(super) fn judged(&mut self, judged: JudgedRules) {
        self.judged = Some(judged);
    }

    /// What is known of them.
    pub(super) fn judgement(&self) -> Option<&HostJudgement> {
        self.judged.as_ref().map(|judged| &judged.judgement)
    }

    /// What the settings say about it.
    pub(super) fn settings(&self) -> SettingFlags {
        let because = |reason: StackReason| SettingFlags::from_bits(reason.bit());
        let auto = match self.mode {
            PastStack::Off => return because(StackReason::Setting),
            PastStack::Auto => true,
            PastStack::On => false,
        };
        // The rules are judged for packets between the Pods of this node only.
        let past = SettingFlags::LOCAL_PAST | SettingFlags::HOP_PAST.when(!auto);
        let Some(JudgedRules { judgement, loose, .. }) = &self.judged else {
            let is_past = self.former.contains(SettingFlags::LOCAL_PAST);
            return if is_past { self.former } else { because(StackReason::RulesUnread) };
        };
        let reason = match judgement {
            HostJudgement::Rule(_) if auto => StackReason::HostRule,
            HostJudgement::Unknown(_) if auto => StackReason::RulesUnknown,
            HostJudgement::Engine(_) => StackReason::PolicyEngine,
            HostJudgement::Harmless | HostJudgement::Rule(_) | HostJudgement::Unknown(_) => {
                return past;
            }
        };
        // Where netfilter refuses connections that it has not seen begin, those that are past it stay there.
        let kept = past | SettingFlags::KNOWN_PAST_ONLY;
        because(reason) | kept.when(!loose)
    }

    /// The firewall rule because of which flows go through the stack, or empty.
    pub(super) fn host_rule(&self) -> &str {
        match self.judgement() {
            Some(
                HostJudgement::Rule(text)
                | HostJudgement::Engine(text)
                | HostJudgement::Unknown(text),
            ) => text,
            Some(HostJudgement::Harmless) | None => "",
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
        match neighbors::look(ifindex, mechanism) {
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
        if progress.attached.contains(&ifindex) {
            return self.neighbors.get(&ifindex).is_some_and(|found| !found.ingress);
        }
        had && progress.attaching.contains(&ifindex)
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
    use lb_common::past::{StackReason, VethReason};
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
        JudgedRules { traffic: PodTraffic::default(), judgement, loose }
    }

    #[test]
    fn the_mode_and_the_rules_of_the_node_decide_for_all_pods() {
        let rule = || HostJudgement::Rule("ip filter FORWARD: policy drop".to_owned());
        let engine = || HostJudgement::Engine("ip filter cali-FORWARD".to_owned());
        let unknown = || HostJudgement::Unknown("permission denied".to_owned());
        let on = SettingFlags::LOCAL_PAST;
        let kept = on | SettingFlags::KNOWN_PAST_ONLY;
        // Also between nodes.
        let all = on | SettingFlags::HOP_PAST;
        let because = |reason: StackReason| SettingFlags::from_bits(reason.bit());
        let (auto, forced) = (PastStack::Auto, PastStack::On);
        for (mode, former, found, want) in [
            (auto, SettingFlags::NONE, None, because(StackReason::RulesUnread)),
            (auto, on, None, on),
            (forced, SettingFlags::NONE, None, because(StackReason::RulesUnread)),
            (auto, on, Some(judged(HostJudgement::Harmless, true)), on),
            (auto, on, Some(judged(rule(), true)), because(StackReason::HostRule)),
            (auto, on, Some(judged(rule(), false)), because(StackReason::HostRule) | kept),
            (auto, on, Some(judged(unknown(), true)), because(StackReason::RulesUnknown)),
            (forced, on, Some(judged(rule(), true)), all),
            (forced, on, Some(judged(unknown(), true)), all),
            (forced, on, Some(judged(engine(), true)), because(StackReason::PolicyEngine)),
            (PastStack::Off, on, Some(judged(rule(), true)), because(StackReason::Setting)),
        ] {
            let mut past = Past::new(mode, former, "6.18.0");
            past.judged = found;
            assert_eq!(past.settings(), want, "{mode:?} {:?}", past.judged);
        }
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
