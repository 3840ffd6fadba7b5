//! From a Service to its frontends outside the cluster, and who keeps one that two Services want.
//!
//! A frontend at an address of a load balancer, of `spec.externalIPs` or of this node belongs to the oldest of the
//! Services that want it (those without a creation time come last), then to the first by name: the outcome does not
//! depend on the order in which they were read. The others get an issue, and their other frontends work. Two ports of
//! one Service that meet, as when the address of a load balancer is the node's own: the first port has it.
//!
//! Whoever may write a Service must not take traffic that is none of its business with it (CVE-2020-8554): an address
//! is not served if it is a Pod's, in a range of Pods, a ClusterIP, in a ServiceCIDR; and one in `spec.externalIPs`
//! also not if it is a node's, the API server's, or neither `--external-ip-cidrs` nor, without that, the version of
//! Kubernetes admits it. That a load balancer has the
//! address of a node is common where the nodes are the load balancer: it has the ports of its Services only. A
//! NodePort or such a port that a process of the host listens on as well is the Service's.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashSet};

use lb_common::addr::Addr;

use super::frontend::{self, protocol_name};
use super::rules::Rules;
use super::{External, Scope, Wildcard};
use crate::cluster::{Cluster, Family, Name, Service, ServicePort};
use crate::issue::{Issue, ObjectRef};

/// The addresses outside the cluster of one Service, and the frontends that it has got there so far.
pub(super) struct Outside<'a> {
    cluster: &'a Cluster,
    rules: &'a Rules,
    name: &'a Name,
    service: &'a Service,
    addrs: Vec<(Addr, Scope)>,
    /// Addresses of this node that have NodePorts.
    node: Vec<Addr>,
    taken: HashSet<(Addr, u16, u8)>,
}

impl<'a> Outside<'a> {
    /// The addresses that the Service may have. Those it may not have become issues.
    pub(super) fn new(
        cluster: &'a Cluster,
        rules: &'a Rules,
        (name, service): (&'a Name, &'a Service),
        issues: &mut Vec<Issue>,
    ) -> Self {
        let mut addrs = Vec::new();
        for (addr, scope) in named(service) {
            if !has_family(service, &addr) {
                continue;
            }
            match refusal(cluster, rules, &addr, scope) {
                Some(reason) => {
                    issues.push(issue(name, field(scope), format!("{addr} {reason}: not served")));
                }
                None => addrs.push((addr, scope)),
            }
        }
        let open = service.ports.iter().any(|port| port.node_port.is_some());
        let node = if open { rules.node_port_addrs(cluster) } else { Vec::new() };
        if open && !node.iter().any(|addr| has_family(service, addr)) {
            let message = "no address of this node matches --node-port-addresses: the NodePort is not \
                           served";
            issues.push(issue(name, field(Scope::NodePort), message.to_owned()));
        }
        Self { cluster, rules, name, service, addrs, node, taken: HashSet::new() }
    }

    /// The frontends of one port in one family, sorted.
    pub(super) fn frontends(
        &mut self,
        port: &ServicePort,
        family: Family,
        issues: &mut Vec<Issue>,
    ) -> Vec<External> {
        // An address that is a load balancer's and this node's with one port number is the former's: of the two only
        // that one is gated by source ranges.
        let addrs = self.addrs.iter().map(|(addr, scope)| (*addr, port.port, *scope));
        let node_port = port.node_port.map(u16::from);
        let node = node_port.iter().flat_map(|number| {
            let local = self.rules.localhost.then(|| frontend::localhost(family));
            let local = local.map(|addr| (addr, *number, Scope::Localhost));
            let node = self.node.iter().map(|addr| (*addr, *number, Scope::NodePort));
            node.chain(local).collect::<Vec<_>>()
        });
        let wanted: Vec<_> = addrs.chain(node).collect();
        let mut frontends: Vec<External> = Vec::new();
        for (addr, number, scope) in wanted {
            let known = |other: &External| (other.addr, other.port) == (addr, number);
            if Family::of(&addr) != family || frontends.iter().any(known) {
                continue;
            }
            if let Some(owner) = self.owner(&addr, number, port.protocol) {
                let issue = self.contested((addr, number, scope), port.protocol, owner);
                if !issues.contains(&issue) {
                    issues.push(issue);
                }
                continue;
            }
            frontends.push(External { addr, port: number, scope });
        }
        self.taken.extend(frontends.iter().map(|f| (f.addr, f.port, port.protocol)));
        frontends.sort_unstable();
        frontends
    }

    /// The addresses that it answers for: the oldest Service that has an address does. Those of nodes are known anyway.
    pub(super) fn wildcards(&self) -> Vec<Wildcard> {
        let cluster = self.cluster;
        let is_node = |addr: &Addr| cluster.nodes().any(|(_, node)| node.addresses.contains(addr));
        // A Service without ports does not claim it.
        let addrs = self.addrs.iter().filter(|_| !self.service.ports.is_empty());
        let addrs = addrs.map(|(addr, _)| *addr);
        let addrs: BTreeSet<Addr> = addrs
            .filter(|addr| !is_node(addr) && !cluster.host_addrs().contains(addr))
            .filter(|addr| {
                let mut others = cluster.address_claimants(addr);
                !others.any(|other| {
                    let older = frontend::is_older(other, (self.name, self.service));
                    older && has_family(other.1, addr) && self.may_have(other.1, addr)
                })
            })
            .collect();
        addrs.into_iter().map(|addr| Wildcard { addr, external: true }).collect()
    }

    /// Whether a Service that names an address may have it.
    fn may_have(&self, service: &Service, addr: &Addr) -> bool {
        let mut named = named(service).filter(|(named, _)| named == addr);
        named.any(|(_, scope)| refusal(self.cluster, self.rules, addr, scope).is_none())
    }

    /// Whose the frontend is, if not the port's that asks.
    fn owner(&self, addr: &Addr, number: u16, protocol: u8) -> Option<&'a Name> {
        let (cluster, own) = (self.cluster, (self.name, self.service));
        let is_rival = |other: &(&Name, &Service)| {
            frontend::is_older(*other, own) && has_family(other.1, addr)
        };
        let port = (number, protocol);
        let by_addr = cluster.external_claimants(*addr, port).filter(is_rival);
        let by_addr = by_addr.filter(|(_, other)| self.may_have(other, addr));
        let by_port = cluster.node_port_claimants(port).filter(is_rival);
        let by_port = by_port.filter(|_| frontend::is_localhost(addr) || self.node_has(addr));
        let older = by_addr.chain(by_port);
        let oldest = older.reduce(|a, b| if frontend::is_older(b, a) { b } else { a });
        let own = self.taken.contains(&(*addr, number, protocol)).then_some(self.name);
        oldest.map(|(name, _)| name).or(own)
    }

    /// Whether NodePorts are served at an address; not only this Service's may be asked for.
    fn node_has(&self, addr: &Addr) -> bool {
        if self.node.is_empty() {
            return self.rules.node_port_addrs(self.cluster).contains(addr);
        }
        self.node.contains(addr)
    }

    fn contested(
        &self,
        (addr, number, scope): (Addr, u16, Scope),
        protocol: u8,
        owner: &Name,
    ) -> Issue {
        let protocol = protocol_name(protocol);
        let what = match scope {
            Scope::NodePort | Scope::Localhost => format!("{number}/{protocol}"),
            Scope::LoadBalancer | Scope::ExternalIp => format!("{addr} port {number}/{protocol}"),
        };
        let whose = if owner == self.name {
            "already belongs to an earlier port".to_owned()
        } else {
            format!("belongs to the older Service {owner}")
        };
        issue(self.name, field(scope), format!("{what} {whose}: not served"))
    }
}

/// The addresses outside the cluster that a Service names; a load balancer's before the same in `spec.externalIPs`.
fn named(service: &Service) -> impl Iterator<Item = (Addr, Scope)> {
    let extra = service.extra.iter();
    extra.flat_map(|extra| {
        let lb = extra.lb_ips.iter().map(|addr| (*addr, Scope::LoadBalancer));
        lb.chain(extra.external_ips.iter().map(|addr| (*addr, Scope::ExternalIp)))
    })
}

/// A family is served only if the Service has a ClusterIP of it, as by kube-proxy.
fn has_family(service: &Service, addr: &Addr) -> bool {
    service.cluster_ips.iter().any(|ip| Family::of(ip) == Family::of(addr))
}

/// Why no Service may have this address outside the cluster.
fn refusal(cluster: &Cluster, rules: &Rules, addr: &Addr, scope: Scope) -> Option<String> {
    let free = scope == Scope::ExternalIp;
    if free && let Some(reason) = rules.refuses_external_ip(cluster, addr) {
        return Some(reason);
    }
    let node_addr = cluster.nodes().find(|(_, node)| node.addresses.contains(addr));
    if let Some((node, _)) = node_addr {
        // The address of a load balancer may be a node's. Then it does not belong to a Pod outside the host network.
        return free.then(|| format!("is an address of node {node}"));
    }
    if cluster.host_addrs().contains(addr) {
        return free.then(|| "is an address of this node".to_owned());
    }
    if let Some(pod) = cluster.pod_at(addr) {
        return Some(format!("is the address of Pod {pod}"));
    }
    let range = |prefixes: &[crate::cluster::Prefix]| prefixes.iter().any(|p| p.contains(addr));
    if let Some((node, _)) = cluster.nodes().find(|(_, node)| range(&node.pod_cidrs)) {
        return Some(format!("is in the range of the Pods of node {node}"));
    }
    if let Some(owner) = cluster.claimants(addr).next() {
        return Some(format!("is the ClusterIP of Service {owner}"));
    }
    if let Some((cidr, _)) = cluster.service_cidrs().find(|(_, prefix)| prefix.contains(addr)) {
        return Some(format!("is in the range of ServiceCIDR {cidr}"));
    }
    (free && cluster.is_api_server(addr)).then(|| "is the address of the API server".to_owned())
}

fn field(scope: Scope) -> &'static str {
    match scope {
        Scope::LoadBalancer => "status.loadBalancer.ingress",
        Scope::ExternalIp => "spec.externalIPs",
        Scope::NodePort | Scope::Localhost => "spec.ports[].nodePort",
    }
}

fn issue(name: &Name, field: &str, message: String) -> Issue {
    Issue::new(ObjectRef::new("Service", name), field, message)
}
