//! What is known of a Pod's device → whether its flows may go past the IP stack.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use lb_common::config::SettingFlags;
use lb_common::past::StackReason;
use lb_core::plan::PodPath;
use lb_kernel::bpf::attach::Mechanism;
use lb_kernel::bpf::neighbors;
use lb_kernel::devices::Veth;
use tracing::warn;

use crate::config::PastStack;

/// What the agent knows beside the devices themselves.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// What the operator decided.
    mode: PastStack,
    /// Devices where ours is the only program that sees what the Pod sends.
    alone: BTreeSet<u32>,
}

/// Pods' devices by how far their programs are.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// They run.
    pub attached: BTreeSet<u32>,
    /// They are being attached; those of an earlier agent may run.
    pub attaching: BTreeSet<u32>,
}

impl Past {
    pub(super) fn new(mode: PastStack) -> Self {
        Self { mode, alone: BTreeSet::new() }
    }

    /// What the settings say about it.
    pub(super) fn settings(&self) -> SettingFlags {
        match self.mode {
            PastStack::On => SettingFlags::LOCAL_PAST,
            PastStack::Auto | PastStack::Off => SettingFlags::from_bits(StackReason::Setting.bit()),
        }
    }

    /// The firewall rule because of which flows go through the stack, or empty.
    pub(super) fn host_rule(&self) -> &str {
        ""
    }

    /// Asks the kernel which other programs a device has. A kernel that does not tell counts as one that has others.
    pub(super) fn look(&mut self, ifindex: u32, mechanism: Option<Mechanism>) {
        self.alone.remove(&ifindex);
        let Some(mechanism) = mechanism else { return };
        match neighbors::is_alone_at_ingress(ifindex, mechanism) {
            Ok(true) => drop(self.alone.insert(ifindex)),
            Ok(false) => {}
            Err(err) => {
                warn!(ifindex, %err, "cannot list the programs of a device; the flows of its Pod go through the IP stack")
            }
        }
    }

    /// A device is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.alone.remove(&ifindex);
    }

    /// How packets reach the Pods behind these devices.
    pub(super) fn paths(&self, veths: &[&Veth], progress: &Progress) -> BTreeMap<u32, PodPath> {
        veths.iter().map(|veth| (veth.ifindex, self.path(veth, progress))).collect()
    }

    fn path(&self, veth: &Veth, progress: &Progress) -> PodPath {
        let ifindex = veth.ifindex;
        let is_attached = progress.attached.contains(&ifindex);
        let reasons = [
            (!is_attached, StackReason::NotAttached),
            (veth.mac == [0; 6], StackReason::UnknownMac),
            (veth.far.is_port, StackReason::PortInside),
            (veth.mtu != veth.far.mtu, StackReason::UnequalMtu),
            (is_attached && !self.alone.contains(&ifindex), StackReason::OtherPrograms),
        ];
        let reasons = reasons.into_iter().filter(|(speaks, _)| *speaks);
        let reasons: BTreeSet<_> = reasons.map(|(_, reason)| reason).collect();
        let is_attaching = progress.attaching.contains(&ifindex);
        PodPath {
            link: [veth.mac, veth.own_mac],
            mtu: veth.mtu,
            undecided: is_attaching && reasons.iter().eq(&[StackReason::NotAttached]),
            reasons,
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::past::StackReason;
    use lb_kernel::devices::{FarDevice, Veth};

    use super::{Past, PastStack, Progress};
    use crate::agent::pods;

    #[test]
    fn each_doubt_sends_the_flows_of_a_pod_through_the_stack() {
        let veth = Veth { far: FarDevice { mtu: 1500, is_port: false }, ..pods::tests::veth() };
        let alone = || Past { mode: PastStack::On, alone: [5].into() };
        let attached = Progress { attached: [5].into(), ..Progress::default() };
        let none = Progress::default();
        let attaching = Progress { attaching: [5].into(), ..Progress::default() };
        let unknown = Veth { mac: [0; 6], ..veth.clone() };
        let port = Veth { far: FarDevice { is_port: true, ..veth.far }, ..veth.clone() };
        let small = Veth { mtu: 1400, ..veth.clone() };
        let cases = [
            (alone(), &veth, &attached, None),
            (alone(), &veth, &none, Some(StackReason::NotAttached)),
            (alone(), &veth, &attaching, Some(StackReason::NotAttached)),
            (alone(), &unknown, &attached, Some(StackReason::UnknownMac)),
            (alone(), &port, &attached, Some(StackReason::PortInside)),
            (alone(), &small, &attached, Some(StackReason::UnequalMtu)),
            (Past::default(), &veth, &attached, Some(StackReason::OtherPrograms)),
        ];
        for (past, veth, progress, want) in cases {
            let path = past.path(veth, progress);
            assert_eq!(path.reasons, want.into_iter().collect(), "{want:?}");
            assert_eq!(path.link, [veth.mac, [6; 6]]);
            assert_eq!(path.undecided, !progress.attaching.is_empty(), "{want:?}");
        }
    }
}
