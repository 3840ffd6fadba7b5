//! What of the cluster's objects does something else here than under kube-proxy, object by object: for those who are
//! about to change. What does not work at all is an issue, and stands in the name table.
//!
//! The rows "differs" of the table in docs/src/services.md, as far as objects show them. IPVS schedulers are not in objects.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lb_common::addr::Addr;
use lb_common::flow::proto;

use crate::admin::Remark;
use crate::cluster::{
    Cluster, Name, NamespaceRecords as _, Peer, Pod, Policy, Rule, Service, Tier, TrafficPolicy,
};
use crate::issue::ObjectRef;
use crate::model::rules::{self, NodePortAddresses, Rules};

/// Addresses that a remark lists.
const MOST: usize = 4;

/// What is to be known of these objects.
pub fn differences(cluster: &Cluster, rules: &Rules) -> Vec<Remark> {
    let mut remarks: Vec<Remark> = node_ports(cluster, rules).into_iter().collect();
    let isolated = isolated(cluster);
    for (name, service) in cluster.services() {
        remarks.extend(sctp(name, service));
        remarks.extend(proxied(name, service));
        remarks.extend(isolated.get(name).map(|found| client_address(name, found)));
    }
    remarks
}

fn remark(object: ObjectRef, field: impl Into<String>, message: String) -> Remark {
    Remark { object: object.to_string(), field: field.into(), message }
}

fn of_service(name: &Name, field: impl Into<String>, message: String) -> Remark {
    remark(ObjectRef::new("Service", name), field, message)
}

/// kube-proxy serves NodePorts at all addresses of the node unless it is told otherwise.
fn node_ports(cluster: &Cluster, rules: &Rules) -> Option<Remark> {
    let is_open = |service: &Service| service.ports.iter().any(|port| port.node_port.is_some());
    let n = cluster.services().filter(|(_, service)| is_open(service)).count();
    if n == 0 || !matches!(rules.node_ports, NodePortAddresses::Primary) {
        return None;
    }
    let served = rules.node_port_addrs(cluster);
    let mut others = rules::addrs_of_node(cluster);
    others.retain(|addr| !served.contains(addr));
    if others.is_empty() {
        return None;
    }
    let message = format!(
        "{n} Services have NodePorts, which are served at {} only; kube-proxy also serves them at {} unless it was given --nodeport-addresses",
        list(&served),
        list(&others)
    );
    let node = ObjectRef::new("Node", &Name::new("", cluster.node_name()));
    Some(remark(node, "--node-port-addresses", message))
}

fn list(addrs: &[Addr]) -> String {
    let named: Vec<String> = addrs.iter().take(MOST).map(Addr::to_string).collect();
    match addrs.len().saturating_sub(MOST) {
        0 if named.is_empty() => "no address".to_owned(),
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn sctp(name: &Name, service: &Service) -> Option<Remark> {
    let port = service.ports.iter().find(|port| port.protocol == proto::SCTP)?;
    let message = format!(
        "port {} is SCTP: it is served to Pods and external clients, but not to host processes and Pods on the host network",
        port.port
    );
    Some(of_service(name, "spec.ports[].protocol", message))
}

fn proxied(name: &Name, service: &Service) -> Option<Remark> {
    let extra = service.extra.as_ref().filter(|extra| extra.proxied)?;
    let message = if extra.lb_ips.is_empty() {
        "is Proxy: clients in the cluster reach the load balancer itself; kube-proxy before 1.29 sends them directly to the Pods"
    } else {
        "is Proxy for some addresses: there, clients in the cluster reach the load balancer itself; kube-proxy before 1.29 sends them directly to the Pods"
    };
    Some(of_service(name, "status.loadBalancer.ingress[].ipMode", message.to_owned()))
}

/// A Pod behind a Service that clients outside reach, and who isolates it.
struct Isolated<'a> {
    pod: Name,
    policy: &'a Name,
    /// Of a rule that admits addresses of nodes: how kube-proxy's clients look.
    nodes: Option<String>,
}

fn client_address(name: &Name, found: &Isolated<'_>) -> Remark {
    let Isolated { pod, policy, nodes } = found;
    let nodes = nodes.as_ref().map_or_else(String::new, |path| {
        format!(" (the ipBlock for nodes in {path} no longer matches them)")
    });
    let message = format!(
        "is Cluster, and NetworkPolicy {policy} isolates Pod {pod} behind it: policies see an external client by its own address if the Pod is on the node that the client contacted, and as that node otherwise; with kube-proxy every external client appears as a node. Allow the clients' addresses{nodes}"
    );
    of_service(name, "spec.externalTrafficPolicy", message)
}

/// Returns the Services that clients outside reach, with the traffic policy Cluster, and that have a Pod that does not admit
/// all clients: one such Pod for each Service.
fn isolated(cluster: &Cluster) -> BTreeMap<&Name, Isolated<'_>> {
    let exposed = |service: &Service| {
        let local = service.extra.as_ref().map(|extra| extra.external_policy);
        let outside = service.external_addrs().next().is_some()
            || service.ports.iter().any(|port| port.node_port.is_some());
        outside && local != Some(TrafficPolicy::Local)
    };
    let exposed: Vec<&Name> =
        cluster.services().filter(|(_, service)| exposed(service)).map(|(name, _)| name).collect();
    let network: Vec<(&Name, &Policy)> =
        cluster.policies().filter(|(_, policy)| policy.tier == Tier::NetworkPolicy).collect();
    let mut found = BTreeMap::new();
    if exposed.is_empty() || network.is_empty() {
        return found;
    }
    let mut known: HashMap<Name, Option<(&Name, Option<String>)>> = HashMap::new();
    for service in exposed {
        let slices = cluster.slices_of(service);
        let pods = slices.flat_map(|(_, slice)| &slice.endpoints);
        for pod in pods.filter_map(|endpoint| endpoint.pod) {
            let name = Name::new(Arc::clone(&service.namespace), pod);
            let Some(pod) = cluster.pod(&name) else { continue };
            let judged = known
                .entry(name.clone())
                .or_insert_with(|| isolating(cluster, (&name, pod), &network));
            if let Some((policy, nodes)) = judged {
                let nodes = nodes.clone();
                found.insert(service, Isolated { pod: name, policy, nodes });
                break;
            }
        }
    }
    found
}

/// Returns the first policy that isolates a Pod in ingress, if no rule of any policy admits all clients to it.
fn isolating<'a>(
    cluster: &Cluster,
    pod: (&Name, &Pod),
    policies: &[(&'a Name, &'a Policy)],
) -> Option<(&'a Name, Option<String>)> {
    if pod.1.host_network {
        return None;
    }
    let about = policies.iter().filter(|(name, policy)| {
        !policy.shadow && policy.ingress.is_some() && cluster.selects(name, &policy.subject, pod)
    });
    let mut first = None;
    let mut nodes = None;
    for (name, policy) in about {
        for (i, rule) in policy.ingress.iter().flatten().enumerate() {
            if admits_all_peers(rule) {
                return None;
            }
            nodes = nodes.or_else(|| block_of_nodes(cluster, rule, i));
        }
        first = first.or(Some(*name));
    }
    first.map(|policy| (policy, nodes))
}

fn admits_all_peers(rule: &Rule) -> bool {
    let Some(peers) = &rule.peers else { return true };
    peers.iter().any(|peer| match peer {
        Peer::Block { prefix, .. } => prefix.is_all(),
        Peer::Pods(_) | Peer::Nodes(_) => false,
    })
}

/// Where a rule has a block that holds an address of a node.
fn block_of_nodes(cluster: &Cluster, rule: &Rule, index: usize) -> Option<String> {
    let holds = |peer: &Peer| match peer {
        Peer::Block { prefix, excepts } => {
            let mut addrs = cluster.nodes().flat_map(|(_, node)| &node.addresses);
            addrs.any(|addr| prefix.contains(addr) && !excepts.iter().any(|e| e.contains(addr)))
        }
        Peer::Pods(_) | Peer::Nodes(_) => false,
    };
    let at = rule.peers.iter().flatten().position(holds)?;
    Some(format!("ingress[{index}].from[{at}]"))
}

#[cfg(test)]
mod tests;
