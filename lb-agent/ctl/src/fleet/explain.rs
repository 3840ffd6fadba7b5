//! `kubectl lb explain`: the nodes of both ends are asked at once, those of a Service's backends as soon as they are
//! known, and the answer is one trace.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::bail;

use crate::columns::{self, Format};
use crate::explain::combine::{Combined, combine};
use crate::explain::known::KnownPod;
use crate::explain::trace::{Hop, Trace, TraceOutcome};
use crate::explain::{self, Explanation};
use crate::fleet::ask::{FleetQuery, FromNode, NoAnswer, no_answers, report};
use crate::fleet::remark::remark;
use crate::fleet::unready;
use crate::network::protocol_name;
use lb_common::flow::proto;
use lb_core::admin::context::{FlowQuery, Party};
use lb_core::admin::workload::{self, WorkloadKind};
use lb_core::cluster::Name;
use lb_remote::{NodeAgent, RemotePod};

/// Nodes that are asked about one flow.
const MOST: usize = 64;

/// Explains the flow and prints it.
///
/// # Errors
/// One sentence: when an end does not exist, or no node answers.
pub fn explain(
    asked: &FleetQuery,
    wanted: &FlowQuery,
    output: Format,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let mut ends = Ends::default();
    let wanted = FlowQuery {
        src: ends.find(asked, &wanted.src)?,
        dst: ends.find(asked, &wanted.dst)?,
        ..wanted.clone()
    };
    let args = ends.args(&wanted);
    let mut round =
        Round { asked, args, done: BTreeSet::new(), traces: Vec::new(), failed: Vec::new() };
    round.ask(first(asked, &wanted, &ends));
    round
        .failed
        .extend(asked.without_agent().into_iter().filter(|one| ends.nodes.contains(&one.node)));
    // The nodes in the first answers: that of a source that is an address, those of the backends.
    let named: BTreeSet<String> = round.traces.iter().flat_map(nodes_of).collect();
    round.ask(asked.agents.iter().filter(|agent| named.contains(&agent.node)).cloned().collect());
    let Some(Combined { mut trace, stopped_at }) = combine(&round.traces) else {
        return Err(no_answers(&round.failed));
    };
    unready::complete(asked, &mut trace);
    report(&round.failed, asked.agents.len());
    let mut explanation = explain::render(&from_here(trace.clone()));
    if !stopped_at.is_empty() {
        let node = &trace.node;
        let others = stopped_at.join(", ");
        explanation.assumed.push(format!(
            "the client's packets arrive at {node}; they are stopped at {others}: run it with --node {others}"
        ));
    }
    print(&explanation, trace.outcome(), output, out)
}

/// The same path in words for a reader who is on none of the nodes.
fn from_here(mut trace: Trace) -> Trace {
    for hop in &mut trace.hops {
        if let Hop::Source(source) = hop {
            source.here = false;
        }
    }
    trace
}

fn print(
    explanation: &Explanation,
    outcome: TraceOutcome,
    output: Format,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    match output {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            columns::document(out, explanation, output)?
        }
        Format::Rows => columns::json_line(out, explanation)?,
        Format::Name => bail!("an explanation cannot be printed as names"),
        Format::Table | Format::Wide => explain::print(out, explanation)?,
    }
    Ok(ExitCode::from(outcome.exit()))
}

/// Some nodes are asked after others.
struct Round<'a> {
    asked: &'a FleetQuery,
    args: Vec<String>,
    done: BTreeSet<String>,
    traces: Vec<Trace>,
    failed: Vec<NoAnswer>,
}

impl Round<'_> {
    fn ask(&mut self, mut agents: Vec<NodeAgent>) {
        agents.retain(|agent| !self.done.contains(&agent.node));
        agents.truncate(MOST.saturating_sub(self.done.len()));
        self.done.extend(agents.iter().map(|agent| agent.node.clone()));
        let (answers, failed) = self.asked.json_of::<Trace>(&agents, self.args.clone(), None);
        self.traces.extend(
            answers
                .into_iter()
                .map(|FromNode { node, answer, .. }| Trace { node: node.into(), ..answer }),
        );
        self.failed.extend(failed);
    }
}

/// The nodes to ask first: those of both ends. A client outside the cluster may dial any of them, and where neither
/// end is known, any agent knows more.
fn first(asked: &FleetQuery, wanted: &FlowQuery, ends: &Ends) -> Vec<NodeAgent> {
    let known: Vec<NodeAgent> =
        asked.agents.iter().filter(|agent| ends.nodes.contains(&agent.node)).cloned().collect();
    let has_source = ends.source_is_known(wanted);
    let from_outside =
        wanted.src == Party::World || matches!(wanted.src, Party::Ip(_)) && !has_source;
    if from_outside {
        return asked.agents.clone();
    }
    let up = || asked.agents.iter().filter(|agent| agent.down.is_none()).take(1).cloned();
    if known.iter().all(|agent| agent.down.is_some()) {
        return known.iter().cloned().chain(up()).collect();
    }
    known
}

/// The nodes that a trace names: of the source, and of each destination.
fn nodes_of(trace: &Trace) -> Vec<String> {
    let node = |hop: &Hop| match hop {
        Hop::Source(source) => source.end.node.as_deref().map(str::to_owned),
        Hop::Backend(backend) => backend.node.as_deref().map(str::to_owned),
        _ => None,
    };
    let deciding = trace.deciding().into_iter().flatten().map(|node| node.to_string());
    trace.hops.iter().filter_map(node).chain(deciding).collect()
}

/// What the API server says of the two ends.
#[derive(Debug, Default)]
struct Ends {
    pods: Vec<KnownPod>,
    nodes: BTreeSet<String>,
}

impl Ends {
    /// Returns the end, of a workload its first Pod, and notes where it is.
    fn find(&mut self, asked: &FleetQuery, party: &Party) -> anyhow::Result<Party> {
        let found = match party {
            Party::Pod(name) => asked.fleet.pod(&name.namespace, &name.name),
            Party::Workload(kind, name) => return self.workload(asked, *kind, name),
            Party::Ip(ip) => {
                asked.fleet.pods_at(*ip).map(|pods| pods.into_iter().find(|pod| !pod.host_network))
            }
            Party::Node(name) => {
                self.nodes.insert(name.to_string());
                Ok(None)
            }
            Party::Service(_) | Party::World => Ok(None),
        };
        match found {
            Ok(Some(pod)) => self.note(pod),
            Ok(None) => {
                if let Party::Pod(name) = party
                    && let Some(pod) = self.of_workload(asked, name)
                {
                    return Ok(Party::Pod(pod));
                }
                // The agents say whether it exists.
            }
            Err(error) => remark(&format_args!("{error:#}: asking the agents instead")),
        }
        Ok(party.clone())
    }

    /// The first Pod of what has this name, where no Pod has it.
    fn of_workload(&mut self, asked: &FleetQuery, name: &Name) -> Option<Name> {
        let pods = asked.fleet.pods(Some(&name.namespace)).ok()?;
        let pod = pods.into_iter().find(|pod| workload::of_pod(&pod.name) == &*name.name)?;
        let found = Name::new(pod.namespace.as_str(), pod.name.as_str());
        remark(&format_args!("no Pod {name}: taking {found} of the workload with that name"));
        self.note(pod);
        Some(found)
    }

    fn workload(
        &mut self,
        asked: &FleetQuery,
        kind: WorkloadKind,
        name: &Name,
    ) -> anyhow::Result<Party> {
        let whole = Party::Workload(kind, name.clone());
        let pods = match asked.fleet.pods(Some(&name.namespace)) {
            Ok(pods) => pods,
            Err(error) => {
                remark(&format_args!("{error:#}: asking the agents instead"));
                return Ok(whole);
            }
        };
        let Some(pod) = pods.into_iter().find(|pod| kind.has_pod(&name.name, &pod.name)) else {
            bail!("{whole}: no Pod of it in the cluster")
        };
        let found = Name::new(pod.namespace.as_str(), pod.name.as_str());
        self.note(pod);
        Ok(Party::Pod(found))
    }

    fn note(&mut self, pod: RemotePod) {
        if pod.node.is_empty() {
            return;
        }
        self.nodes.insert(pod.node.clone());
        // One of the host network has its node's addresses, which every agent knows.
        if !pod.host_network && !pod.ips.is_empty() {
            let name = Name::new(pod.namespace.as_str(), pod.name.as_str());
            self.pods.push(KnownPod { name, node: pod.node, ips: pod.ips });
        }
    }

    fn source_is_known(&self, wanted: &FlowQuery) -> bool {
        let has = |ip: &IpAddr| self.pods.iter().any(|pod| pod.ips.contains(ip));
        match &wanted.src {
            Party::Ip(ip) => has(ip),
            Party::World => false,
            Party::Pod(_) | Party::Node(_) | Party::Workload(..) | Party::Service(_) => true,
        }
    }

    /// What a node's `lbctl` is called with.
    fn args(&self, wanted: &FlowQuery) -> Vec<String> {
        let FlowQuery { src, dst, protocol, port, port_name } = wanted;
        let mut args: Vec<String> =
            ["policy", "explain", "--output=rows"].map(str::to_owned).to_vec();
        args.push(format!("--from={src}"));
        args.push(format!("--to={dst}"));
        let word = protocol_name(*protocol);
        match (port_name, port) {
            (Some(name), _) => args.push(format!("--port={name}/{word}")),
            (None, Some(port)) => args.push(format!("--port={port}/{word}")),
            (None, None) if *protocol != proto::TCP => args.push(format!("--port={word}")),
            (None, None) => {}
        }
        args.extend(self.pods.iter().map(|pod| format!("--known-pod={pod}")));
        args
    }
}
