//! Nodes that are drained, and one that boots: no pin, no state of the agent, and no configuration of the kubelet that names the API
//! server.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    chaos::unrest::WEB,
    conformance::{
        ask::url,
        bed::{Bed, PORT},
        cluster::{NAMESPACE, text},
        deploy::{self, SYSTEM, agent_on, pod_on},
        faults::KILL,
        report::within,
    },
};

/// An agent that has to try three sources of the server's address, on a busy machine, has its programs by then.
const BOOTED: Duration = Duration::from_secs(90);
/// What is left of an agent's node after a boot, except for /var/lib/lb: nothing. Through PID 1, since the Pod that may stand for the node has a
/// file system of its own.
const FORGET: &str = "cd /proc/1/root && mv etc/kubernetes/kubelet.conf etc/kubernetes/kubelet.conf.away && \
    rm -rf sys/fs/bpf/lb/* run/lb/*";
/// Puts back what was there. The container runtime made a directory in place of the file.
const REMEMBER: &str = "cd /proc/1/root/etc/kubernetes && rmdir kubelet.conf 2>/dev/null; mv kubelet.conf.away kubelet.conf";
/// What the agent logs when it finds the server by its own file.
const LAST_SOURCE: &str = "the endpoints of the Service kubernetes, as last seen";

/// Drains a node: the servers on it go, and the agent stays. New servers may come: they tolerate every taint.
pub(super) fn drain(bed: &Bed<'_>) -> Result<String> {
    let cluster = bed.cluster;
    let node = cluster.nodes.last().context("no node")?;
    let uid = |pod| text(&pod, "/metadata/uid").map(str::to_owned);
    let before = uid(agent_on(cluster, node)?);
    // The clients and what the checks need there are Pods without a controller.
    let selector = format!("app={WEB}");
    let drain =
        ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout", "150s"];
    let on_node = format!("spec.nodeName={node}");
    let servers = || -> Result<BTreeSet<String>> {
        let get = ["get", "pods", "--namespace", NAMESPACE, "--selector", &selector];
        let which = ["--field-selector", &on_node, "--output", "name"];
        let names = cluster.run(&[&get[..], &which].concat())?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    };
    let there = servers()?;
    ensure!(!there.is_empty(), "no server on {node}");
    let drained = cluster.run(&[&drain[..], &["--pod-selector", &selector]].concat());
    let left = servers();
    let after = agent_on(cluster, node).map(uid);
    cluster.run(&["uncordon", node])?;
    drained?;
    let left = left?;
    let left: Vec<_> = there.intersection(&left).collect();
    ensure!(left.is_empty(), "left on {node}: {left:?}");
    ensure!(after? == before && before.is_some(), "the agent on {node} was replaced");
    cluster.rolled_out(NAMESPACE, &format!("deployment/{WEB}"))?;
    Ok(node.clone())
}

/// Takes from a node what a boot takes, and the kubelet's configuration; the agent finds the API server by what it wrote down.
pub(super) fn boot(bed: &Bed<'_>) -> Result<String> {
    let node = bed.cluster.nodes.last().context("no node")?;
    let known = bed.on_node(node, "cat /proc/1/root/var/lib/lb/api-servers")?;
    ensure!(!known.trim().is_empty(), "the agent on {node} has written no server down");
    bed.on_node(node, &format!("{FORGET} && {{ {KILL}; }}"))?;
    let begun = Instant::now();
    let booted = within(BOOTED, || served(bed, node));
    let took = begun.elapsed();
    let source = source(bed, node);
    bed.on_node(node, REMEMBER)?;
    booted?;
    ensure!(source?.contains(LAST_SOURCE), "the agent on {node} has another source of the address");
    deploy::ready(bed.cluster)?;
    let known: Vec<&str> = known.split_whitespace().collect();
    Ok(format!("{node} serves after {:.1} s, by {}", took.as_secs_f64(), known.join(" ")))
}

/// Whether a Pod on the node reaches a Service.
fn served(bed: &Bed<'_>, node: &str) -> Result<String> {
    let address = bed.web.first().context("no address")?;
    let curl = "curl --globoff --silent --show-error --max-time 1";
    bed.in_pod(node, &format!("{curl} {}/hostname", url(address, PORT)))
}

/// What the agent said about the server that it found.
fn source(bed: &Bed<'_>, node: &str) -> Result<String> {
    let pod = pod_on(bed.cluster, node)?;
    let log = bed.cluster.run(&["logs", "--namespace", SYSTEM, &pod])?;
    let line = log.lines().find(|line| line.contains("API server") && line.contains("from="));
    Ok(line.with_context(|| format!("{node}: no source of the address in {log}"))?.to_owned())
}

/// The sum of a metric's samples on a node whose labels contain this text.
///
/// # Errors
/// When the agent does not answer, or a sample is not a number.
pub(super) fn metric(bed: &Bed<'_>, node: &str, name: &str, label: &str) -> Result<f64> {
    sum(&bed.metrics(node)?, name, label)
}

fn sum(text: &str, name: &str, label: &str) -> Result<f64> {
    let mut sum = 0.0;
    let mut found = false;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' '])) else {
            continue;
        };
        found = true;
        let Some((labels, value)) = rest.rsplit_once(' ') else { bail!("{line:?} has no value") };
        if labels.contains(label) {
            sum += value.parse::<f64>().with_context(|| line.to_owned())?;
        }
    }
    ensure!(found, "there is no metric {name}");
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn samples_are_added() {
        let text =
            "# TYPE a counter\na{code=\"200\"} 3\na{code=\"401\"} 1\na_more{code=\"200\"} 9\nb 2\n";
        assert_eq!(sum(text, "a", "").unwrap(), 4.0);
        assert_eq!(sum(text, "a", "code=\"401\"").unwrap(), 1.0);
        assert_eq!(sum(text, "b", "").unwrap(), 2.0);
        assert!(sum(text, "c", "").is_err());
    }
}
