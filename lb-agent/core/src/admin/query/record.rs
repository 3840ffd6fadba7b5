//! What the policies of Pods of other nodes say, by this agent's records: the compiler, the planner and the evaluator of the own
//! tables, for a kernel that is not this one.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::endpoint::PodEntry;
use lb_common::policy::{self, GroupFlags, Judgement, Question, identify};

use crate::admin::context::{EndKind, FlowContext, FlowEnd, Leg, RecordJudgement, RecordVerdict};
use crate::cluster::{Cluster, Name, Owner, Pod, Snapshot};
use crate::model::policy::{Compiler, PolicyDirection};
use crate::plan::policy::{Behind, DesiredTables, PodDevice};
use crate::plan::{Actual, Capacity, Planner, groups};

/// What is to be judged, and with what: it can be done beside the records, which go on.
pub struct RecordQuestions {
    cluster: Snapshot,
    protocol: u8,
    /// For each leg of the flow; `None` = this node's own maps say it, or the records do not suffice.
    legs: Vec<Option<AskedLeg>>,
    subjects: BTreeSet<Name>,
}

/// One question.
struct AskedLeg {
    /// The other end as the Pod's node sees it.
    peer: Addr,
    /// Whether it is that node itself.
    is_own_node: bool,
    /// Whether it is the Pod itself, through a Service.
    is_itself: bool,
}

impl RecordQuestions {
    /// Those about the Pods of other nodes that a flow leaves or enters.
    pub(super) fn of(cluster: &Cluster, protocol: u8, context: &FlowContext) -> Self {
        let complete = cluster.synced() && cluster.knows_all_pods();
        let is_elsewhere = |pod: &&Pod| !pod.node.is_empty() && !cluster.is_own(pod);
        let through = context.service.is_some();
        let ask = |leg: &Leg| {
            let pod = cluster.pod(&leg.subject).filter(is_elsewhere).filter(|_| complete)?;
            let peer = seen_as(cluster, &context.src, through, leg)?;
            let is_own_node = match cluster.owner(&peer) {
                Some(Owner::Node(name, _)) => *name.name == *pod.node,
                Some(Owner::Pod(..)) | None => false,
            };
            let is_itself = through && pod.ips.contains(&Addr::from_ip(leg.peer));
            Some(AskedLeg { peer, is_own_node, is_itself })
        };
        let legs: Vec<Option<AskedLeg>> = context.legs.iter().map(ask).collect();
        let asked = context.legs.iter().zip(&legs).filter(|(_, asked)| asked.is_some());
        let subjects = asked.map(|(leg, _)| leg.subject.clone()).collect();
        Self { cluster: cluster.snapshot(), protocol, legs, subjects }
    }

    /// Adds the verdicts to the flow that this was made of. It compiles the policies, which takes a while if there are many.
    pub fn answer(self, context: &mut FlowContext) {
        if self.subjects.is_empty() {
            return;
        }
        let tables = RecordTables::of(self.cluster, self.subjects);
        for (leg, asked) in context.legs.iter_mut().zip(&self.legs) {
            let Some(asked) = asked else { continue };
            leg.by_record = Some(if asked.is_own_node {
                RecordVerdict::FromOwnNode
            } else {
                tables.verdict(leg, asked, self.protocol)
            });
        }
    }
}

/// The other end as the Pod's node sees it: clients outside reach a Service's Pods on other nodes by the address of this one. `None`
/// if that is not known.
fn seen_as(cluster: &Cluster, src: &FlowEnd, through: bool, leg: &Leg) -> Option<Addr> {
    let is_client = leg.direction == PolicyDirection::Ingress && src.kind == EndKind::Outside;
    if !is_client || !through {
        return Some(Addr::from_ip(leg.peer));
    }
    let of_family = |ip: &IpAddr| ip.is_ipv4() == leg.peer.is_ipv4();
    let addrs = cluster.this_node()?.addresses.iter().map(|addr| addr.to_ip());
    addrs.filter(of_family).map(Addr::from_ip).next()
}

/// Tables of a node that all these Pods would run on.
struct RecordTables {
    planner: Planner,
    /// ifindex of each.
    pods: BTreeMap<Name, u32>,
}

impl RecordTables {
    fn of(cluster: Snapshot, subjects: BTreeSet<Name>) -> Self {
        let desired = Compiler::default().compile(&cluster.about(subjects));
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
        let pods = (1..).zip(desired.pods.into_keys()).map(|(ifindex, name)| (name, ifindex));
        Self { planner, pods: pods.collect() }
    }

    fn verdict(&self, leg: &Leg, asked: &AskedLeg, proto: u8) -> RecordVerdict {
        let tables = self.planner.actual();
        let pod = self.pods.get(&leg.subject).and_then(|ifindex| tables.pods.get(ifindex));
        let [ingress, egress, shadow_ingress, shadow_egress] = pod.map_or([0; 4], groups);
        let (group, shadow) = match leg.direction {
            PolicyDirection::Ingress => (ingress, shadow_ingress),
            PolicyDirection::Egress => (egress, shadow_egress),
        };
        if tables.policy.epoch == 0 || (group, shadow) == (0, 0) {
            return RecordVerdict::NotSelected;
        }
        let Some(ident) = identify(tables, &asked.peer) else { return RecordVerdict::FromOwnNode };
        let ask = |group| {
            let (port, own) = (Be16::new(leg.port), asked.is_itself);
            let question = Question { group, ident, proto, port, own, port_unknown: false };
            self.judgement(&question)
        };
        RecordVerdict::Judged(ask(group), (shadow != 0).then(|| ask(shadow)))
    }

    fn judgement(&self, question: &Question) -> RecordJudgement {
        let group = question.group;
        if group == 0 {
            return RecordJudgement::default();
        }
        let tables = self.planner.actual();
        let judgement = policy::judge(tables, question);
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
        RecordJudgement {
            number: Judgement::number(judgement),
            selected: true,
            no_room: flags.contains(GroupFlags::OVERFLOW),
            policies,
            rule,
        }
    }

    fn isolating(&self, group: u32) -> Vec<Name> {
        let mut groups = self.planner.policies().groups();
        let found = groups.find(|(head, _)| *head == group);
        found.map(|(_, rules)| rules.isolating.to_vec()).unwrap_or_default()
    }
}
