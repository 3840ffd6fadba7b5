//! What the policies of Pods of other nodes say, by this agent's records: the compiler, the planner and the evaluator of the own
//! tables, for a kernel that is not this one.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::addr::Addr;

use super::tables::{AskedFlow, RecordTables};
use crate::admin::context::{EndKind, FlowContext, FlowEnd, Leg, RecordVerdict};
use crate::cluster::{Cluster, Name, Owner, Pod, Snapshot};
use crate::model::policy::PolicyDirection;

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
        let tables = RecordTables::of(&self.cluster.about(self.subjects));
        for (leg, asked) in context.legs.iter_mut().zip(&self.legs) {
            let Some(asked) = asked else { continue };
            leg.by_record = Some(if asked.is_own_node {
                RecordVerdict::FromOwnNode
            } else {
                verdict(&tables, leg, asked, self.protocol)
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

fn verdict(tables: &RecordTables, leg: &Leg, asked: &AskedLeg, protocol: u8) -> RecordVerdict {
    let flow = AskedFlow { peer: asked.peer, protocol, port: leg.port, own: asked.is_itself };
    let Some((group, shadow)) = tables.groups(&leg.subject, leg.direction) else {
        return RecordVerdict::NotSelected;
    };
    let ask = |group| tables.judge(group, &flow);
    match ask(group) {
        Some(enforced) => {
            let tried = (shadow != 0).then(|| ask(shadow)).flatten();
            RecordVerdict::Judged(enforced, tried)
        }
        None => RecordVerdict::FromOwnNode,
    }
}
