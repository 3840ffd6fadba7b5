//! The lookup of a Service's name, which precedes a connection to it: which flow that is.
//!
//! Applications dial names. A Pod that cannot reach the cluster's DNS times out before it sends a packet to the Service.

use lb_common::flow::proto;

use crate::explain::trace::{Lookup, Trace};
use lb_core::admin::context::{EndKind, FlowContext, FlowQuery, Party};
use lb_core::admin::workload::WorkloadKind;
use lb_core::cluster::Name;

/// Port of name lookups (RFC 1035 §4.2).
const PORT: u16 = 53;
/// Services by which distributions of Kubernetes offer their DNS; the first that exists counts.
const SERVICES: [(&str, &str); 4] = [
    ("kube-system", "kube-dns"),
    ("kube-system", "coredns"),
    ("kube-system", "rke2-coredns-rke2-coredns"),
    ("openshift-dns", "dns-default"),
];
/// NodeLocal DNSCache answers lookups on the node itself (KEP-1024).
const NODE_LOCAL: (&str, &str) = ("kube-system", "node-local-dns");

/// Follows the lookup of the name that a flow is dialed by; `None` where there is none, where the cluster has no DNS of its own, and
/// where a cache on the node answers. `ask` gets the records about a flow, `trace` follows it.
///
/// # Errors
/// Those of `ask`.
pub fn follow(
    (wanted, context): (&FlowQuery, &FlowContext),
    ask: &dyn Fn(&FlowQuery) -> anyhow::Result<FlowContext>,
    trace: &dyn Fn(&FlowQuery, &FlowContext) -> Trace,
) -> anyhow::Result<Option<Lookup>> {
    if !is_needed(wanted, context) || ask(&cache(wanted))?.dst.kind != EndKind::Missing {
        return Ok(None);
    }
    for (namespace, name) in SERVICES {
        let service = Name::new(namespace, name);
        let question = question(wanted, Party::Service(service.clone()));
        let context = ask(&question)?;
        if context.service.is_some() {
            return Ok(Some(Lookup { service, trace: Box::new(trace(&question, &context)) }));
        }
    }
    Ok(None)
}

/// Whether the flow begins with a lookup: a Pod dials a Service by its name.
fn is_needed(wanted: &FlowQuery, context: &FlowContext) -> bool {
    let of_dns = context.service.as_ref().is_some_and(|service| is_dns(&service.name));
    matches!(wanted.dst, Party::Service(_)) && context.src.kind == EndKind::Pod && !of_dns
}

fn is_dns(name: &Name) -> bool {
    SERVICES.contains(&(&*name.namespace, &*name.name))
}

/// If this exists, lookups end on the node.
fn cache(wanted: &FlowQuery) -> FlowQuery {
    let (namespace, name) = NODE_LOCAL;
    question(wanted, Party::Workload(WorkloadKind::DaemonSet, Name::new(namespace, name)))
}

fn question(wanted: &FlowQuery, dst: Party) -> FlowQuery {
    let src = wanted.src.clone();
    FlowQuery { src, dst, protocol: proto::UDP, port: Some(PORT), port_name: None }
}
