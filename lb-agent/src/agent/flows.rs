//! Flows that the programs report, in numbers → records of evidence, with the names of this moment; and who gets them.
//!
//! The records say who an address belongs to now, a few milliseconds after the packet: later, it may be another Pod's. What was
//! looked up is kept until a Pod or a node changes that could have the address.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::event::{FlowEvent, outcome};
use lb_common::flow::Flow;
use lb_common::policy::{Judgement, PolicyLookup as _};
use tokio::sync::watch;

use crate::admin::Recent;
use crate::agent::Agent;
use crate::agent::denials::DenialEvents;
use crate::flow_log::FlowLog;
use lb_core::admin::{FlowDecision, FlowOwner, FlowRecord};
use lb_core::cluster::{Change, Cluster, Event, Kind, Owner, Owners};
use lb_core::model::Desired;
use lb_core::model::policy::RuleSet;
use lb_core::plan::Planner;
use lb_kernel::bpf::dialed::DialedFrontends;
use lb_kernel::bpf::events::ObservedFlow;

/// Addresses whose owners are remembered.
const OWNERS: usize = 4096;
/// The shortest time between two looks at all Services.
const LOOK: Duration = Duration::from_millis(200);

/// Joins flows with names, and passes them on.
pub(super) struct FlowNames {
    dialed: DialedFrontends,
    owners: HashMap<Addr, FlowOwner>,
    services: ServiceWords,
    recent: watch::Sender<Recent>,
    log: Option<FlowLog>,
    denials: DenialEvents,
}

/// Who gets the records.
pub(super) struct FlowSinks {
    /// `lbctl flows`.
    pub(super) recent: watch::Sender<Recent>,
    /// The flow log, if there is one.
    pub(super) log: Option<FlowLog>,
    /// Events on Pods.
    pub(super) denials: DenialEvents,
}

impl FlowNames {
    pub(super) fn new(dialed: DialedFrontends, sinks: FlowSinks) -> Self {
        let FlowSinks { recent, log, denials } = sinks;
        let (owners, services) = (HashMap::new(), ServiceWords::default());
        Self { dialed, owners, services, recent, log, denials }
    }

    /// Whether the flow log wants the programs to report allowed flows.
    pub(super) fn logs_allowed(&self) -> bool {
        self.log.as_ref().is_some_and(FlowLog::wants_allowed)
    }

    /// An event is about to change the records: forgets the owners that it may concern.
    pub(super) fn forget(&mut self, event: &Event) {
        if self.owners.is_empty() {
            return;
        }
        match event {
            Event::Pod(Change::Applied(name, pod)) => {
                self.owners.retain(|addr, owner| {
                    !pod.ips.contains(addr) && owner.pod().is_none_or(|known| known != name)
                });
            }
            Event::Pod(Change::Deleted(name)) => {
                self.owners.retain(|_, owner| owner.pod().is_none_or(|known| known != name));
            }
            Event::Node(_)
            | Event::Host(_)
            | Event::Synced(Kind::Pod | Kind::Node)
            | Event::Pods(_) => self.owners.clear(),
            Event::Service(_)
            | Event::Slice(_)
            | Event::Namespace(_)
            | Event::ServiceCidr(_)
            | Event::NetworkPolicy(_)
            | Event::ClusterNetworkPolicy(_)
            | Event::Tunnels(_)
            | Event::OtherProxy
            | Event::Server(_)
            | Event::Restarted(_)
            | Event::Synced(_)
            | Event::Issues(..) => {}
        }
    }

    /// Services got other ids, or others have them.
    pub(super) fn services_changed(&mut self) {
        self.services.outdated = true;
    }

    /// Finds the owners of all these addresses that are not remembered.
    fn find_owners(&mut self, cluster: &Cluster, addrs: impl Iterator<Item = Addr>) {
        if self.owners.len() > OWNERS {
            self.owners.clear();
        }
        let unknown: HashSet<Addr> = addrs.filter(|addr| !self.owners.contains_key(addr)).collect();
        if unknown.is_empty() {
            return;
        }
        let owners = Owners::of_some(cluster, |addr| unknown.contains(addr));
        let owner = |addr: &Addr| match owners.get(addr) {
            Some(Owner::Pod(name, pod)) => FlowOwner::Pod(name.clone(), pod.uuid),
            Some(Owner::Node(name, _)) => FlowOwner::Node(Arc::clone(&name.name)),
            None if cluster.host_addrs().contains(addr) => {
                FlowOwner::Node(cluster.node_name().into())
            }
            None => FlowOwner::Unknown,
        };
        let found: Vec<_> = unknown.iter().map(|addr| (*addr, owner(addr))).collect();
        self.owners.extend(found);
    }
}

impl Agent {
    /// Reporting begins as the flow log needs it: whoever followed flows has gone with the agent before.
    pub(super) fn begin_flows(&mut self) {
        self.report_allowed(self.flows.logs_allowed());
        if self.flows.log.is_some() {
            self.scope.want_all("the flow log names Pods");
        }
    }

    /// The programs report flows: names them, and passes them on.
    pub(super) fn observed(&mut self, flows: &[ObservedFlow]) {
        let addrs = flows.iter().flat_map(|flow| [flow.event.src, flow.event.dst]);
        self.flows.find_owners(&self.cluster, addrs);
        let records: Vec<Arc<FlowRecord>> =
            flows.iter().filter_map(|flow| self.record(flow)).map(Arc::new).collect();
        for record in &records {
            self.flows.denials.take(record);
            if let Some(log) = &self.flows.log {
                log.take(record);
            }
        }
        self.flows.recent.send_modify(|recent| {
            records.iter().for_each(|record| recent.push(Arc::clone(record)));
        });
    }

    /// The record of a flow; `None` where another one says more of the same flow.
    fn record(&mut self, flow: &ObservedFlow) -> Option<FlowRecord> {
        let ObservedFlow { event, at_ms } = flow;
        if self.is_judged_where_it_enters(event) {
            return None;
        }
        let owner = |addr: &Addr| self.flows.owners.get(addr).cloned().unwrap_or_default();
        let socket = |addr: Addr, port: Be16| SocketAddr::new(addr.to_ip(), port.get());
        let (src_owner, dst_owner) = (owner(&event.src), owner(&event.dst));
        Some(FlowRecord {
            at_ms: *at_ms,
            src: socket(event.src, event.sport),
            dst: socket(event.dst, event.dport),
            protocol: event.proto,
            reason: event.reason,
            ingress: event.ingress != 0,
            outcome: event.outcome,
            ifindex: event.ifindex,
            suppressed: event.suppressed,
            group: event.group,
            judgement: event.judgement,
            ident: event.ident,
            src_owner,
            dst_owner,
            via: self.via(event),
            decision: self.decision(event.group, Judgement::from_number(event.judgement)),
        })
    }

    /// Whether a flow between two Pods of this node is reported where it enters the other one, too: where it leaves, no policy
    /// had anything to say.
    fn is_judged_where_it_enters(&self, event: &FlowEvent) -> bool {
        event.outcome == outcome::ALLOWED
            && event.ingress == 0
            && event.group == 0
            && self.veth_of(&event.dst) != 0
    }

    /// ifindex of the veth of the Pod of this node that has the address; 0 = none has.
    fn veth_of(&self, addr: &Addr) -> u32 {
        self.planner.actual().ident(addr).map_or(0, |known| known.ifindex)
    }

    /// The Service that the client dialed, in words.
    fn via(&mut self, event: &FlowEvent) -> Arc<str> {
        let id = if event.service_id != 0 { Some(event.service_id) } else { self.dialed(event) };
        let Some(id) = id.filter(|id| *id != 0) else { return "".into() };
        self.flows.services.word(id, &self.desired, &self.planner)
    }

    /// Id of the service port by conntrack, where the program does not say it: at the receiver, and at the packet after a
    /// change of policies.
    fn dialed(&self, event: &FlowEvent) -> Option<u32> {
        let FlowEvent { src, dst, sport, dport, proto, .. } = *event;
        let flow = Flow { src, dst, sport, dport, proto };
        let veths = if event.ingress == 0 {
            [event.ifindex, self.veth_of(&dst)]
        } else {
            [self.veth_of(&src), event.ifindex]
        };
        let frontend = self.flows.dialed.frontend(&flow, veths)?;
        let frontends = &self.planner.actual().frontends;
        frontends.get(&frontend).map(|frontend| frontend.service_id)
    }

    fn decision(&self, group: u32, judgement: Judgement) -> Option<FlowDecision> {
        if group == 0 {
            return None;
        }
        let live = self.planner.policies().group(group).map(|rules| &**rules);
        let rules: &RuleSet = live.or_else(|| self.policies.named_group(group))?;
        let Some(number) = judgement.rule() else {
            let policies = rules.isolating.to_vec();
            return judgement.denied().then_some(FlowDecision { policies, rule: None });
        };
        let source = rules.source(number)?;
        let others = u32::try_from(source.others.len()).unwrap_or(u32::MAX);
        let rule = Some((source.direction, source.index, others));
        Some(FlowDecision { policies: vec![source.policy.clone()], rule })
    }
}

/// What the ids of service ports are called.
#[derive(Debug, Default)]
struct ServiceWords {
    words: HashMap<u32, Arc<str>>,
    /// Whether ids may have changed since the last look.
    outdated: bool,
    looked: Option<Instant>,
}

impl ServiceWords {
    /// `namespace/name:port`, or `#id` if no Service has had the id.
    fn word(&mut self, id: u32, desired: &Desired, planner: &Planner) -> Arc<str> {
        let is_due = self.looked.is_none_or(|at| at.elapsed() > LOOK);
        if is_due && (self.outdated || !self.words.contains_key(&id)) {
            self.look(desired, planner);
        }
        self.words.get(&id).map_or_else(|| format!("#{id}").into(), Arc::clone)
    }

    /// Reads the names of all ids in use. Those of Services that are gone stay until their ids are used again.
    fn look(&mut self, desired: &Desired, planner: &Planner) {
        let ports = desired.services.keys().flat_map(|name| {
            planner.port_ids(name).map(move |ids| {
                let word = match &**ids.port_name {
                    "" => format!("{name}:{}", ids.port),
                    port => format!("{name}:{port}"),
                };
                (ids.service_id, Arc::from(word))
            })
        });
        self.words.extend(ports);
        self.outdated = false;
        self.looked = Some(Instant::now());
    }
}
