//! Findings about Services: selectors and ports without Pods, and Pods that policies admit no client to.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use lb_common::addr::Addr;
use lb_common::policy::Judgement;

use super::{Lint, LintFinding, Severity, list, service_object};
use crate::admin::query::{AskedFlow, RecordTables, WORLD};
use crate::cluster::{Cluster, Name, Owner, Owners, Pod, Service};
use crate::issue::Issue;
use crate::model::policy::PolicyDirection;

pub(super) fn findings(cluster: &Cluster) -> Vec<LintFinding> {
    let mut findings = Vec::new();
    for (name, service) in cluster.services() {
        // Its endpoints are made by hand.
        if service.selector.iter().next().is_none() {
            continue;
        }
        let selected = selected(cluster, name, service);
        if selected.is_empty() {
            let message = "selects no Pod, so the Service has no endpoints";
            let issue = Issue::new(service_object(name), "spec.selector", message);
            findings.push(LintFinding::new(Lint::SelectorMatchesNothing, Severity::Warning, issue));
            continue;
        }
        findings.extend(ports_without_targets(cluster, (name, service), &selected));
    }
    findings.extend(without_clients(cluster));
    findings
}

fn selected<'a>(cluster: &'a Cluster, name: &Name, service: &Service) -> Vec<(&'a Name, &'a Pod)> {
    let matches =
        |pod: &Pod| service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    let of_namespace = |of: &Name| of.namespace == name.namespace;
    cluster.all_pods().filter(|(of, pod)| of_namespace(of) && matches(pod)).collect()
}

/// Ports whose target has a name that no selected Pod has: there is an endpoint for each number.
fn ports_without_targets(
    cluster: &Cluster,
    (name, service): (&Name, &Service),
    selected: &[(&Name, &Pod)],
) -> Vec<LintFinding> {
    let slices: Vec<_> = cluster.slices_of(name).collect();
    let has_target = |port: &crate::cluster::ServicePort| {
        let mut ports = slices.iter().flat_map(|(_, slice)| &slice.ports);
        ports.any(|known| known.name == port.name && known.protocol == port.protocol)
    };
    if !selected.iter().any(|(_, pod)| !pod.ips.is_empty()) {
        return Vec::new();
    }
    let without = service.ports.iter().enumerate().filter(|(_, port)| !has_target(port));
    let finding = |(index, _): (usize, _)| {
        let names: Vec<&Name> = selected.iter().map(|(name, _)| *name).collect();
        let message =
            format!("no selected Pod has a container port with this name: {}", list(&names));
        let field = format!("spec.ports[{index}].targetPort");
        let issue = Issue::new(service_object(name), field, message);
        LintFinding::new(Lint::NamedPortUnresolved, Severity::Error, issue)
    };
    without.map(finding).collect()
}

/// Services at whose Pods policies deny every Pod that is known, and clients outside.
fn without_clients(cluster: &Cluster) -> Vec<LintFinding> {
    let subjects: BTreeSet<Name> = cluster.all_pods().map(|(name, _)| name.clone()).collect();
    if cluster.policies().next().is_none() || subjects.is_empty() {
        return Vec::new();
    }
    let tables = RecordTables::of(&cluster.snapshot().about(subjects));
    let outside = WORLD.iter().filter_map(|ip| Some(Addr::from_ip(ip.parse().ok()?)));
    let pods = cluster.all_pods().flat_map(|(_, pod)| pod.ips.iter().copied());
    let clients: BTreeSet<Addr> = outside.chain(pods).collect();
    let snapshot = cluster.snapshot();
    let owners = Owners::of(&snapshot);
    let mut findings = Vec::new();
    for (name, _) in cluster.services() {
        let mut denied = Vec::new();
        let mut is_admitted = false;
        for (_, slice) in cluster.slices_of(name) {
            for (endpoint, port) in
                slice.endpoints.iter().flat_map(|it| slice.ports.iter().map(move |port| (it, port)))
            {
                let Some(Owner::Pod(subject, _)) = owners.get(&endpoint.addr) else { continue };
                let admits = |client: &Addr| {
                    let (peer, protocol) = (*client, port.protocol);
                    let flow = AskedFlow { peer, protocol, port: port.port, own: false };
                    let groups = tables.groups(subject, PolicyDirection::Ingress);
                    let judged = groups.and_then(|(group, _)| tables.judge(group, &flow));
                    judged
                        .is_none_or(|it| !it.no_room && !Judgement::from_number(it.number).denied())
                };
                let mut others = clients.iter().filter(|client| **client != endpoint.addr);
                if others.any(admits) {
                    is_admitted = true;
                } else {
                    denied.push(subject);
                }
            }
        }
        if !is_admitted && !denied.is_empty() {
            denied.sort();
            denied.dedup();
            let message =
                format!("policies admit no known Pod and no client outside to {}", list(&denied));
            let issue = Issue::new(service_object(name), "spec.selector", message);
            findings.push(LintFinding::new(Lint::ServiceWithoutClients, Severity::Warning, issue));
        }
    }
    findings
}
