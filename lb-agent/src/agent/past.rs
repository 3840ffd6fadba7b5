//! What is known of a Pod's device → whether its flows may go past the IP stack.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use lb_core::plan::{PodPath, StackReason};
use lb_kernel::bpf::attach::Mechanism;
use lb_kernel::bpf::neighbors;
use lb_kernel::devices::Veth;
use tracing::warn;

/// What the agent knows beside the devices themselves.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Whether the setting allows it.
    on: bool,
    /// Devices where ours is the only program that sees what the Pod sends.
    alone: BTreeSet<u32>,
}

impl Past {
    pub(super) fn new(on: bool) -> Self {
        Self { on, alone: BTreeSet::new() }
    }

    /// Asks the kernel which other programs a device has, if that matters. A kernel that does not tell counts as one that has
    /// others.
    pub(super) fn look(&mut self, ifindex: u32, mechanism: Option<Mechanism>) {
        self.alone.remove(&ifindex);
        let Some(mechanism) = mechanism.filter(|_| self.on) else { return };
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

    /// How packets reach the Pods behind these devices; `attached` has those whose programs run.
    pub(super) fn paths(
        &self,
        veths: &[&Veth],
        attached: &BTreeSet<u32>,
    ) -> BTreeMap<u32, PodPath> {
        let path = |veth: &&Veth| {
            let ifindex = veth.ifindex;
            let is_attached = attached.contains(&ifindex);
            let reasons = [
                (!self.on, StackReason::Setting),
                (!is_attached, StackReason::NotAttached),
                (veth.mac == [0; 6], StackReason::UnknownMac),
                (veth.far.is_port, StackReason::PortInside),
                (veth.mtu != veth.far.mtu, StackReason::UnequalMtu),
                (is_attached && !self.alone.contains(&ifindex), StackReason::OtherPrograms),
            ];
            let reasons = reasons.into_iter().filter(|(speaks, _)| *speaks);
            let reasons = reasons.map(|(_, reason)| reason).collect();
            (ifindex, PodPath { link: [veth.mac, veth.own_mac], mtu: veth.mtu, reasons })
        };
        veths.iter().map(path).collect()
    }
}

#[cfg(test)]
mod tests {
    use lb_core::plan::StackReason;
    use lb_kernel::devices::{FarDevice, Veth};

    use super::Past;
    use crate::agent::pods;

    #[test]
    fn each_doubt_sends_the_flows_of_a_pod_through_the_stack() {
        let veth = Veth { far: FarDevice { mtu: 1500, is_port: false }, ..pods::tests::veth() };
        let alone = || Past { on: true, alone: [5].into() };
        let (attached, none) = ([5].into(), [].into());
        let unknown = Veth { mac: [0; 6], ..veth.clone() };
        let port = Veth { far: FarDevice { is_port: true, ..veth.far }, ..veth.clone() };
        let small = Veth { mtu: 1400, ..veth.clone() };
        let cases = [
            (alone(), &veth, &attached, None),
            (Past { on: false, ..alone() }, &veth, &attached, Some(StackReason::Setting)),
            (alone(), &veth, &none, Some(StackReason::NotAttached)),
            (alone(), &unknown, &attached, Some(StackReason::UnknownMac)),
            (alone(), &port, &attached, Some(StackReason::PortInside)),
            (alone(), &small, &attached, Some(StackReason::UnequalMtu)),
            (
                Past { on: true, ..Past::default() },
                &veth,
                &attached,
                Some(StackReason::OtherPrograms),
            ),
        ];
        for (past, veth, attached, want) in cases {
            let path = past.paths(&[veth], attached).remove(&5).unwrap();
            assert_eq!(path.reasons, want.into_iter().collect(), "{want:?}");
            assert_eq!(path.link, [veth.mac, [6; 6]]);
        }
    }
}
