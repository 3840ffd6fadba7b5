//! `lbctl policy suggest`: NetworkPolicies of a namespace that allow what was seen: at most one for each workload, by the labels
//! that its owner gives to its Pods, and addresses only for what is outside the cluster.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

mod manifest;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::addr::Addr;
use lb_common::flow::proto;
use serde::{Deserialize, Serialize};

use self::manifest::{PeerSpec, PolicySpec, PortList, RuleSpec};
use self::workloads::{Workload, Workloads};
use lb_core::admin::peers::{KnownPeers, LabeledPod};
use lb_core::admin::what_if::SeenFlow;
use lb_core::cluster::{Family, Labels, Prefix};
use lb_core::model::policy::PolicyDirection;

/// What one node has seen, and who that was.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeEvidence {
    /// The node.
    pub node: String,
    /// Flows that were allowed.
    pub flows: Vec<SeenFlow>,
    pub peers: KnownPeers,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestion {
    /// YAML documents that can be applied.
    pub manifests: String,
    /// What they do not cover.
    pub remarks: Vec<String>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct SuggestOptions<'a> {
    pub namespace: &'a str,
    /// Whether the policies are to be enforced when they are applied; otherwise they are in shadow mode.
    pub enforce: bool,
}

/// Policies for a namespace, from what the nodes have seen.
pub fn suggest(wanted: &SuggestOptions<'_>, nodes: &[NodeEvidence]) -> Suggestion {
    let pods: BTreeSet<&LabeledPod> = nodes.iter().flat_map(|node| &node.peers.pods).collect();
    let ranges: BTreeSet<Prefix> =
        nodes.iter().flat_map(|node| node.peers.pod_ranges.iter().copied()).collect();
    let dns = nodes.iter().find_map(|node| node.peers.dns.clone());
    let workloads = Workloads::of(pods.into_iter());
    let mut remarks = Vec::new();
    let mut seen: BTreeMap<&Workload, SeenRules> = BTreeMap::new();
    let mut gone = BTreeSet::new();
    let flows: BTreeSet<&SeenFlow> = nodes.iter().flat_map(|node| &node.flows).collect();
    for flow in flows {
        let ends = [flow.src, flow.dst].map(|ip| FlowSide::of(ip, &workloads, &ranges));
        let [src, dst] = &ends;
        // A node's address on the device of a Pod may be one of the Pods' range.
        let known_src = flow.from_host.then_some(flow.src);
        gone.extend(
            [flow.src, flow.dst]
                .into_iter()
                .zip(&ends)
                .filter(|(ip, _)| known_src != Some(*ip))
                .filter_map(|(ip, end)| matches!(end, FlowSide::Gone).then_some(ip)),
        );
        let port = (flow.protocol, flow.port);
        if let (FlowSide::Workload(workload), Some(peer)) = (src, dst.peer()) {
            seen.entry(workload).or_default().egress.add(peer, port, flow.dst);
        }
        // Whatever a policy says, a node reaches its own Pods.
        if let (FlowSide::Workload(workload), Some(peer), false) = (dst, src.peer(), flow.from_host)
        {
            seen.entry(workload).or_default().ingress.add(peer, port, flow.src);
        }
    }
    let mut manifests = String::new();
    for workload in workloads.of_namespace(wanted.namespace) {
        if workload.selector.iter().next().is_none() {
            remarks
                .push(format!("{workload}: its Pods have no labels, so no policy can select it"));
            continue;
        }
        let Some(rules) = seen.get(workload) else {
            remarks.push(format!("{workload}: no flows were seen, so there is no policy for it"));
            continue;
        };
        let spec = policy(workload, rules, &ranges, dns.as_ref());
        manifests.push_str(&manifest::document(&spec, wanted.enforce));
    }
    if !gone.is_empty() {
        let list: Vec<String> = gone.iter().take(5).map(ToString::to_string).collect();
        remarks.push(format!(
            "flows of {} addresses are left out, whose Pods are gone or unknown here: {}",
            gone.len(),
            list.join(", ")
        ));
    }
    Suggestion { manifests, remarks }
}

/// An end of a flow.
enum FlowSide<'a> {
    Workload(&'a Workload),
    /// A client or server outside the Pods' network: hosts, nodes, the API server.
    World(Family),
    /// An address of a Pod that is not known.
    Gone,
}

impl<'a> FlowSide<'a> {
    fn of(ip: IpAddr, workloads: &'a Workloads, ranges: &BTreeSet<Prefix>) -> Self {
        let addr = Addr::from_ip(ip);
        match workloads.at(ip) {
            Some(workload) => Self::Workload(workload),
            None if ranges.iter().any(|range| range.contains(&addr)) => Self::Gone,
            None => Self::World(Family::of(&addr)),
        }
    }

    fn peer(&self) -> Option<SeenPeer<'a>> {
        match self {
            Self::Workload(workload) => Some(SeenPeer::Workload(workload)),
            Self::World(family) => Some(SeenPeer::World(*family)),
            Self::Gone => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SeenPeer<'a> {
    Workload(&'a Workload),
    World(Family),
}

/// What one workload was seen to do.
#[derive(Debug, Default)]
struct SeenRules<'a> {
    ingress: SeenList<'a>,
    egress: SeenList<'a>,
}

/// Protocol and port.
type SeenPort = (u8, u16);

/// The ports by peer, and the addresses of what is outside.
#[derive(Debug, Default)]
struct SeenList<'a> {
    ports: BTreeMap<SeenPeer<'a>, BTreeSet<SeenPort>>,
    outside: BTreeSet<IpAddr>,
}

impl<'a> SeenList<'a> {
    fn add(&mut self, peer: SeenPeer<'a>, port: SeenPort, ip: IpAddr) {
        // NetworkPolicy has no rules for other protocols; what it cannot name, an isolated Pod is denied.
        if !matches!(port.0, proto::TCP | proto::UDP | proto::SCTP) {
            return;
        }
        self.ports.entry(peer).or_default().insert(port);
        if matches!(peer, SeenPeer::World(_)) {
            self.outside.insert(ip);
        }
    }

    /// Peers with the same ports share a rule.
    fn rules(
        &self,
        workload: &Workload,
        ranges: &BTreeSet<Prefix>,
        direction: PolicyDirection,
    ) -> Vec<RuleSpec> {
        let mut by_ports: BTreeMap<&BTreeSet<SeenPort>, Vec<PeerSpec>> = BTreeMap::new();
        for (peer, ports) in &self.ports {
            let specs = by_ports.entry(ports).or_default();
            match peer {
                SeenPeer::Workload(peer) => specs.push(PeerSpec::workload(peer, workload)),
                SeenPeer::World(family) => specs.push(PeerSpec::world(*family, ranges)),
            }
        }
        let rules = by_ports.into_iter().map(|(ports, peers)| {
            RuleSpec::new(peers, PortList::of(ports.iter().copied()), direction)
        });
        rules.collect()
    }
}

fn policy(
    workload: &Workload,
    seen: &SeenRules<'_>,
    ranges: &BTreeSet<Prefix>,
    dns: Option<&(std::sync::Arc<str>, Labels)>,
) -> PolicySpec {
    let mut egress = seen.egress.rules(workload, ranges, PolicyDirection::Egress);
    // Answers of DNS are kept by clients for longer than conntrack keeps the flow.
    let ports = PortList::of([(proto::UDP, 53), (proto::TCP, 53)]);
    let dns = RuleSpec::new(vec![PeerSpec::dns(dns)], ports, PolicyDirection::Egress);
    egress.retain(|rule| !dns.covers(rule));
    egress.push(dns);
    let ingress = seen.ingress.rules(workload, ranges, PolicyDirection::Ingress);
    let outside = seen.ingress.outside.iter().chain(&seen.egress.outside);
    PolicySpec {
        namespace: workload.namespace.to_string(),
        name: format!("suggested-{}", workload.name),
        selector: workload.selector.clone(),
        ingress,
        egress,
        outside: outside.map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests;
