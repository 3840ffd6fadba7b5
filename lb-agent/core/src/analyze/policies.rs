//! Findings about policies: selectors and ports that match nothing, Service ports, peers that are alternatives.
#![forbid(unsafe_code)]

use super::service_ports::ServicePorts;
use super::{Lint, LintFinding, Severity};
use crate::cluster::{
    Cluster, Name, NamedPort, NamespaceRecords as _, Namespaces, Peer, Pod, PodSelector, Policy,
    PortSpec, Rule, Snapshot,
};
use crate::issue::Issue;
use crate::model::policy::{PolicyDirection, object};

/// Findings about one policy among the records. It need not be in force.
pub(crate) fn lint(
    records: &Snapshot,
    services: &ServicePorts,
    (name, policy): (&Name, &Policy),
) -> Vec<LintFinding> {
    let mut findings = Vec::new();
    Linted { records, services, name, policy }.lint(&mut findings);
    findings
}

pub(super) fn findings(cluster: &Cluster) -> Vec<LintFinding> {
    let records = cluster.snapshot();
    let services = ServicePorts::of(cluster, cluster.policies().map(|(_, policy)| policy));
    records
        .policies()
        .flat_map(|(name, policy)| lint(&records, &services, (name, policy)))
        .collect()
}

struct Linted<'a> {
    records: &'a Snapshot,
    services: &'a ServicePorts,
    name: &'a Name,
    policy: &'a Policy,
}

/// A Pod with its name.
type NamedPod<'a> = (&'a Name, &'a Pod);

impl<'a> Linted<'a> {
    fn lint(&self, findings: &mut Vec<LintFinding>) {
        let subjects = self.selected(&self.policy.subject);
        if subjects.is_empty() {
            let field = match self.policy.tier.kind() {
                "NetworkPolicy" => "spec.podSelector",
                _ => "spec.subject",
            };
            let message = "selects no Pod, so the policy has no effect";
            findings.push(self.finding(
                Lint::SelectorMatchesNothing,
                Severity::Warning,
                field,
                message,
            ));
        }
        let lists = [
            (PolicyDirection::Ingress, &self.policy.ingress),
            (PolicyDirection::Egress, &self.policy.egress),
        ];
        for (direction, rules) in lists {
            for (index, rule) in rules.iter().flatten().enumerate() {
                let path = format!("spec.{}[{index}]", direction.name());
                self.rule((direction, &path), rule, (&subjects, findings));
            }
        }
    }

    fn rule(
        &self,
        (direction, path): (PolicyDirection, &str),
        rule: &Rule,
        (subjects, findings): (&[NamedPod<'a>], &mut Vec<LintFinding>),
    ) {
        let list = match direction {
            PolicyDirection::Ingress => "from",
            PolicyDirection::Egress => "to",
        };
        let peers = rule.peers.as_deref().unwrap_or_default();
        for (index, peer) in peers.iter().enumerate() {
            let Peer::Pods(selector) = peer else { continue };
            if self.selected(selector).is_empty() {
                // Pods of other namespaces may come from elsewhere.
                let severity = match selector.namespaces {
                    Namespaces::Own => Severity::Warning,
                    Namespaces::Selected(_) => Severity::Note,
                };
                let field = format!("{path}.{list}[{index}]");
                let message = "selects no Pod, so it allows nothing";
                findings.push(self.finding(
                    Lint::SelectorMatchesNothing,
                    severity,
                    &field,
                    message,
                ));
            }
        }
        if let Some((of_namespace, of_pods)) = alternatives(peers) {
            let field = format!("{path}.{list}");
            let message = format!(
                "[{of_namespace}] selects all Pods of namespaces and [{of_pods}] Pods of this one: either is enough; for Pods \
                 with the labels in those namespaces, put both selectors into one entry"
            );
            findings.push(self.finding(Lint::HintPeerOr, Severity::Warning, &field, &message));
        }
        let of_peers = || -> Vec<NamedPod<'a>> {
            let pods = peers.iter().flat_map(|peer| match peer {
                Peer::Pods(selector) => self.selected(selector),
                Peer::Nodes(_) | Peer::Block { .. } => Vec::new(),
            });
            pods.collect()
        };
        // The port is one of the destination.
        let destinations = match direction {
            PolicyDirection::Ingress => subjects.to_vec(),
            PolicyDirection::Egress => of_peers(),
        };
        if destinations.is_empty() {
            return;
        }
        for (index, port) in rule.ports.iter().flatten().enumerate() {
            let field = format!("{path}.ports[{index}].port");
            match &port.ports {
                PortSpec::Named(wanted) => {
                    let is = |known: &NamedPort| {
                        known.name == *wanted && port.protocol.is_none_or(|p| p == known.protocol)
                    };
                    if !destinations.iter().any(|(_, pod)| pod.ports.iter().any(is)) {
                        let message =
                            format!("no Pod that it is about has a port named {wanted:?}");
                        let (lint, severity) = (Lint::NamedPortUnresolved, Severity::Error);
                        findings.push(self.finding(lint, severity, &field, &message));
                    }
                }
                PortSpec::Range(first, last) if first == last => {
                    let asked = (*first, port.protocol);
                    findings.extend(self.service_port(&field, asked, &destinations));
                }
                PortSpec::Range(..) | PortSpec::All => {}
            }
        }
    }

    /// Whether the port is that of a Service of the Pods, behind which they listen at another one.
    fn service_port(
        &self,
        field: &str,
        asked: (u16, Option<u8>),
        destinations: &[NamedPod<'a>],
    ) -> Option<LintFinding> {
        let addrs = destinations.iter().flat_map(|(_, pod)| pod.ips.iter().copied()).collect();
        let (service, target) = self.services.behind(asked, &addrs)?;
        let message = format!(
            "{} is the port of Service {service}; policies judge the port of its Pods, {target}",
            asked.0
        );
        Some(self.finding(Lint::ServicePortInPolicy, Severity::Error, field, &message))
    }

    fn selected(&self, selector: &PodSelector) -> Vec<NamedPod<'a>> {
        let records: &'a Snapshot = self.records;
        let pods = records.all_pods().filter(|(name, pod)| {
            !pod.host_network && records.selects(self.name, selector, (name, pod))
        });
        pods.collect()
    }

    fn finding(&self, lint: Lint, severity: Severity, field: &str, message: &str) -> LintFinding {
        let object = object(self.name, self.policy.tier);
        LintFinding::new(lint, severity, Issue::new(object, field, message))
    }
}

/// Two peers next to each other of which one only selects namespaces and the other only Pods.
fn alternatives(peers: &[Peer]) -> Option<(usize, usize)> {
    let position = |is: &dyn Fn(&PodSelector) -> bool| {
        peers.iter().position(|peer| matches!(peer, Peer::Pods(selector) if is(selector)))
    };
    let of_namespaces = position(&|selector| {
        let is_all = selector.pods.0.is_empty();
        is_all && matches!(&selector.namespaces, Namespaces::Selected(of) if !of.0.is_empty())
    })?;
    let of_pods = position(&|selector| {
        selector.namespaces == Namespaces::Own && !selector.pods.0.is_empty()
    })?;
    Some((of_namespaces, of_pods))
}
