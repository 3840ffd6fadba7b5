//! Policy tables that are made of records and are in no kernel: the compiler, the planner and the evaluator of the agent's own
//! tables, for Pods of other nodes, and for policies that are not applied.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::endpoint::PodEntry;
use lb_common::policy::{self, GroupFlags, Judgement, Question, identify};

use crate::admin::context::RecordJudgement;
use crate::cluster::{Name, Snapshot};
use crate::issue::Issue;
use crate::model::policy::{Compiler, PolicyDirection};
use crate::plan::policy::{Behind, DesiredTables, PodDevice};
use crate::plan::{Actual, Capacity, Planner, groups};

/// Tables of a node that all subjects of a snapshot would run on.
pub(crate) struct RecordTables {
    planner: Planner,
    /// ifindex of each.
    pods: BTreeMap<Name, u32>,
    issues: Vec<Issue>,
}

/// A flow at one Pod.
pub(crate) struct AskedFlow {
    /// The other end as the Pod's node sees it.
    pub(crate) peer: Addr,
    pub(crate) protocol: u8,
    /// Destination port; 0 for protocols without ports.
    pub(crate) port: u16,
    /// Whether it is the Pod itself, through a Service.
    pub(crate) own: bool,
}

impl RecordTables {
    pub(crate) fn of(cluster: &Snapshot) -> Self {
        let desired = Compiler::default().compile(cluster);
        let veths: Vec<PodDevice> = (1..)
            .zip(&desired.pods)
            .map(|(ifindex, (name, pod))| PodDevice {
                ifindex,
                behind: Behind::Pod(name.clone(), pod.uid),
                device_part: PodEntry::ZERO,
            })
            .collect();
        let mut planner = Planner::restore(Actual::default(), Capacity::default());
        for veth in &veths {
            planner.appeared(veth.ifindex);
        }
        let wanted = DesiredTables {
            desired: Some(&desired),
            devices: &BTreeMap::new(),
            veths: &veths,
            strict: false,
            pickup_until: 0,
        };
        let plan = planner.plan_policies(&wanted, Duration::ZERO);
        // Maps that take every write; the planner keeps what it wrote itself.
        planner.apply(plan, &mut Actual::default(), &mut || Duration::ZERO);
        let mut issues = desired.issues;
        issues.extend(planner.policies().issues());
        let pods = (1..).zip(desired.pods.into_keys()).map(|(ifindex, name)| (name, ifindex));
        Self { planner, pods: pods.collect(), issues }
    }

    /// What could not be compiled, or has no room.
    pub(crate) fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// The groups of a Pod in a direction: what is enforced, and that with what is tried; 0 = none. `None` without either.
    pub(crate) fn groups(&self, subject: &Name, direction: PolicyDirection) -> Option<(u32, u32)> {
        let tables = self.planner.actual();
        let pod = self.pods.get(subject).and_then(|ifindex| tables.pods.get(ifindex));
        let [ingress, egress, shadow_ingress, shadow_egress] = pod.map_or([0; 4], groups);
        let (group, shadow) = match direction {
            PolicyDirection::Ingress => (ingress, shadow_ingress),
            PolicyDirection::Egress => (egress, shadow_egress),
        };
        (tables.policy.epoch != 0 && (group, shadow) != (0, 0)).then_some((group, shadow))
    }

    /// What the policies of a group say; `None` for flows of the Pod's own node, which none are about.
    pub(crate) fn judge(&self, group: u32, flow: &AskedFlow) -> Option<RecordJudgement> {
        let tables = self.planner.actual();
        let ident = identify(tables, &flow.peer)?;
        if group == 0 {
            return Some(RecordJudgement::default());
        }
        let (proto, port, own) = (flow.protocol, Be16::new(flow.port), flow.own);
        let question = Question { group, ident, proto, port, own, port_unknown: false };
        let judgement = policy::judge(tables, &question);
        let written = judgement.rule().and_then(|rule| self.planner.policies().source(group, rule));
        let rule = written.map(|rule| {
            let others = u32::try_from(rule.others.len()).unwrap_or(u32::MAX);
            (rule.direction, rule.index, others)
        });
        let policies = match written {
            Some(rule) => vec![rule.policy.clone()],
            None if judgement.denied() => self.isolating(group),
            None => Vec::new(),
        };
        let flags = tables.groups.get(&group).map_or(GroupFlags::NONE, |group| group.flags);
        Some(RecordJudgement {
            number: Judgement::number(judgement),
            selected: true,
            no_room: flags.contains(GroupFlags::OVERFLOW),
            policies,
            rule,
        })
    }

    fn isolating(&self, group: u32) -> Vec<Name> {
        let rules = self.planner.policies().group(group);
        rules.map(|rules| rules.isolating.to_vec()).unwrap_or_default()
    }
}
