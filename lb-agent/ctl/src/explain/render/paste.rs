//! Command lines to paste: how to ask where the answer is.

use std::net::IpAddr;

use crate::explain::trace::Trace;
use crate::network::protocol_name;
use lb_core::admin::context::Party;

/// Asks the agent of another node.
pub(super) fn exec(trace: &Trace, node: &str) -> String {
    format!(
        "kubectl -n kube-system exec \"$(kubectl -n kube-system get pods -l k8s-app=lb-agent \
         --field-selector spec.nodeName={node} -o name)\" -- lbctl {}",
        explain(trace)
    )
}

/// Asks as root of this node, who may enter the network namespaces of Pods, with the agent's image.
pub(super) fn debug(trace: &Trace) -> String {
    let node = if trace.node.is_empty() { "NODE" } else { &*trace.node };
    format!(
        "kubectl debug node/{node} --profile=sysadmin --image=\"$(kubectl -n kube-system get ds lb-agent \
         -o jsonpath='{{.spec.template.spec.containers[0].image}}')\" -- /bin/lbctl \
         --pin-dir /host/sys/fs/bpf/lb --state-dir /host/run/lb {}",
        explain(trace)
    )
}

fn explain(trace: &Trace) -> String {
    let wanted = &trace.wanted;
    let dst = match &wanted.dst {
        Party::Ip(ip @ IpAddr::V6(_)) => format!("[{ip}]"),
        dst => dst.to_string(),
    };
    let protocol = protocol_name(wanted.protocol).to_lowercase();
    let port = wanted.port.unwrap_or_default();
    format!("explain {} {dst}:{port}/{protocol}", wanted.src)
}
