//! What a change of policies would do to flows that were seen: both sets of tables are made of the records, and the evaluator is
//! asked about each flow at each Pod of this node that it leaves or enters.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::addr::Addr;
use lb_common::policy::Judgement;

use super::tables::{AskedFlow, RecordTables};
use crate::admin::Remark;
use crate::admin::context::RecordJudgement;
use crate::admin::what_if::{ChangedVerdict, PolicyChange, SeenFlow, WhatIf, WhatIfAnswer};
use crate::analyze::{self, ServicePorts};
use crate::cluster::{Cluster, Name, Owner, Owners, Policy, Snapshot};
use crate::issue::Issue;
use crate::model::policy::PolicyDirection;

/// A question with the records that it is about: it can be answered beside the agent, which goes on.
pub struct TrialQuestion {
    cluster: Snapshot,
    complete: bool,
    /// Addresses of this node.
    own: BTreeSet<Addr>,
    /// For remarks about the policies that are tried.
    services: ServicePorts,
    asked: WhatIf,
}

impl TrialQuestion {
    /// The question, and the records as they are now.
    pub fn of(cluster: &Cluster, asked: WhatIf) -> Self {
        let named = cluster.this_node().into_iter().flat_map(|node| &node.addresses);
        Self {
            cluster: cluster.snapshot(),
            complete: cluster.synced() && cluster.knows_all_pods(),
            own: cluster.host_addrs().iter().chain(named).copied().collect(),
            services: ServicePorts::of(
                cluster,
                tried(&asked.change).iter().map(|(_, policy)| policy),
            ),
            asked,
        }
    }

    /// Compiles the policies, which takes a while if there are many, and judges all flows.
    pub fn answer(self) -> WhatIfAnswer {
        let Self { cluster, complete, own, services, asked } = self;
        let now = RecordTables::of(&cluster);
        let (changed, missing) = match &asked.change {
            PolicyChange::Apply { put, delete } => {
                let missing = missing(&cluster, delete);
                (Some(cluster.clone().with_policies(put, delete)), missing)
            }
            PolicyChange::EnforceShadow => (None, Vec::new()),
        };
        let then = changed.as_ref().map(RecordTables::of);
        let judges =
            Judges { subjects: subjects(&cluster), own: &own, now: &now, then: then.as_ref() };
        let mut issues = then.as_ref().map(|then| new_issues(&now, then)).unwrap_or_default();
        // Without all Pods, a selector of others seems to select none.
        let linted = if complete { tried(&asked.change) } else { &[] };
        for (name, policy) in linted {
            let findings = analyze::lint(&cluster, &services, (name, policy));
            issues.extend(findings.iter().map(|finding| Remark::from(&finding.issue)));
        }
        let mut answer = WhatIfAnswer { complete, missing, issues, ..WhatIfAnswer::default() };
        for (index, flow) in (0..).zip(&asked.flows) {
            judges.judge((index, flow), &mut answer);
        }
        answer
    }
}

/// Both sets of tables, and which Pods they are about.
struct Judges<'a> {
    /// The Pods of this node by their addresses.
    subjects: HashMap<Addr, Name>,
    own: &'a BTreeSet<Addr>,
    now: &'a RecordTables,
    /// `None` = the policies in shadow mode of the same tables.
    then: Option<&'a RecordTables>,
}

impl Judges<'_> {
    /// Judges a flow where it leaves a Pod of this node and where it enters one.
    fn judge(&self, (index, flow): (u32, &SeenFlow), answer: &mut WhatIfAnswer) {
        let [src, dst] = [flow.src, flow.dst].map(Addr::from_ip);
        // A Pod that is its own backend is asked once, where it leaves.
        let own = src == dst;
        let legs = [(PolicyDirection::Egress, src, dst), (PolicyDirection::Ingress, dst, src)];
        for (direction, at, peer) in legs {
            let is_ingress = direction == PolicyDirection::Ingress;
            let Some(subject) = self.subjects.get(&at) else { continue };
            if is_ingress && (own || flow.from_host) || self.own.contains(&peer) {
                continue;
            }
            let asked = AskedFlow { peer, protocol: flow.protocol, port: flow.port, own };
            let (now, then) = self.verdicts(subject, direction, &asked);
            let [before, denied] = [&now, &then].map(is_denied);
            if before != denied {
                let subject = subject.clone();
                let changed = ChangedVerdict { flow: index, direction, subject, denied, now, then };
                answer.changes.push(changed);
            } else if denied && answer.still_denied.last() != Some(&index) {
                answer.still_denied.push(index);
            }
        }
    }

    fn verdicts(
        &self,
        subject: &Name,
        direction: PolicyDirection,
        asked: &AskedFlow,
    ) -> (RecordJudgement, RecordJudgement) {
        let ask = |tables: &RecordTables, group| tables.judge(group, asked).unwrap_or_default();
        let groups = |tables: &RecordTables| tables.groups(subject, direction).unwrap_or_default();
        let (group, shadow) = groups(self.now);
        let now = ask(self.now, group);
        let then = match self.then {
            Some(then) => ask(then, groups(then).0),
            // Without policies that are tried, what is enforced stays.
            None => ask(self.now, if shadow == 0 { group } else { shadow }),
        };
        (now, then)
    }
}

fn is_denied(judgement: &RecordJudgement) -> bool {
    judgement.no_room || Judgement::from_number(judgement.number).denied()
}

/// The Pods of this node, by addresses that are theirs.
fn subjects(cluster: &Snapshot) -> HashMap<Addr, Name> {
    let owners = Owners::of(cluster);
    let pods = cluster.all_pods().filter(|(name, pod)| cluster.is_subject(name, pod));
    let addrs = pods.flat_map(|(_, pod)| &pod.ips);
    let owned = addrs.filter_map(|addr| match owners.get(addr)? {
        Owner::Pod(name, pod) if cluster.is_subject(name, pod) => Some((*addr, name.clone())),
        Owner::Pod(..) | Owner::Node(..) => None,
    });
    owned.collect()
}

fn missing(cluster: &Snapshot, delete: &[Name]) -> Vec<Name> {
    let known: BTreeMap<&Name, ()> = cluster.policies().map(|(name, _)| (name, ())).collect();
    delete.iter().filter(|name| !known.contains_key(name)).cloned().collect()
}

/// Issues that the change brings.
fn new_issues(now: &RecordTables, then: &RecordTables) -> Vec<Remark> {
    let known: BTreeSet<&Issue> = now.issues().iter().collect();
    let new = then.issues().iter().filter(|issue| !known.contains(issue));
    new.map(Remark::from).collect()
}

/// The policies that are added or replaced.
fn tried(change: &PolicyChange) -> &[(Name, Policy)] {
    match change {
        PolicyChange::Apply { put, .. } => put,
        PolicyChange::EnforceShadow => &[],
    }
}
