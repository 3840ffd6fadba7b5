//! The checks of what a Service promises while nothing goes wrong: DNS, every path to a ClusterIP, both protocols and
//! families, hairpin, refusal, scaling.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    ask::{self, Shell, family, url},
    bed::{Bed, PORT},
    cluster::NAMESPACE,
    report::{Report, SOON, within},
};

/// Runs them all.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report) {
    dns(bed, report);
    let nodes = &bed.cluster.nodes;
    for address in &bed.web {
        let family = family(address);
        for node in nodes {
            report.check(&format!("ClusterIP {family} from a Pod on {node}"), || {
                every_backend(bed, address, 2 * nodes.len(), &|script| bed.in_pod(node, script))
            });
            report.check(&format!("ClusterIP {family} UDP from a Pod on {node}"), || {
                udp(address, &|script| bed.in_pod(node, script))
            });
            report.check(&format!("ClusterIP {family} from the host {node}"), || {
                every_backend(bed, address, 2 * nodes.len(), &|script| bed.on_node(node, script))
            });
            report.check(&format!("ClusterIP {family} UDP from the host {node}"), || {
                udp(address, &|script| bed.on_node(node, script))
            });
        }
    }
    paths(bed, report);
    refusal(bed, report);
    report.check("scale to 0 and back", || scale(bed));
}

/// CoreDNS needs the API's own Service to become ready, so it shows that the agent came up without one.
fn dns(bed: &Bed<'_>, report: &mut Report) {
    report.check("CoreDNS becomes ready", || {
        let args = ["--namespace", "kube-system", "wait", "--for", "condition=Ready", "pod"];
        let select = ["--selector", "k8s-app=kube-dns", "--timeout", "120s"];
        bed.cluster.run(&[&args[..], &select].concat()).map(|_| String::new())
    });
    for node in &bed.cluster.nodes {
        for (protocol, flag) in [("UDP", "+notcp"), ("TCP", "+tcp")] {
            report.check(&format!("a Service's name over {protocol} from a Pod on {node}"), || {
                // The first address is of the cluster's first family.
                let want = bed.web.first().context("the Service has no address")?;
                let kind = if family(want) == "IPv4" { "A" } else { "AAAA" };
                let script = format!(
                    "dig +short +search +time=2 +tries=1 {flag} web.{NAMESPACE}.svc {kind}"
                );
                within(SOON, || match bed.in_pod(node, &script)? {
                    answer if answer.trim() == want => Ok(String::new()),
                    answer => bail!("{:?} instead of {want}", answer.trim()),
                })
            });
        }
    }
}

/// New connections until every backend has answered: same node and across.
fn every_backend(
    bed: &Bed<'_>,
    address: &str,
    n_backends: usize,
    shell: Shell<'_>,
) -> Result<String> {
    // A backend is missed by 64 random choices among 4 once in 10^8.
    let n = 16 * n_backends;
    within(SOON, || {
        let names = ask::servers(address, PORT, n, shell)?;
        if names.len() != n_backends {
            bail!("{} of {n_backends} backends answered {n} requests: {names:?}", names.len());
        }
        Ok(())
    })?;
    let n_nodes = bed.cluster.nodes.len();
    Ok(format!("{n} requests over {n_backends} backends on {n_nodes} nodes"))
}

fn udp(address: &str, shell: Shell<'_>) -> Result<String> {
    let script = format!("echo hostname | nc -u -w 1 -W 1 {address} {PORT}");
    within(SOON, || match shell(&script)? {
        answer if answer.starts_with("web-") => Ok(String::new()),
        answer => bail!("answered {answer:?}"),
    })
}

/// From each node's Pod to the one Pod on each node: a Pod reaching itself is the hairpin.
fn paths(bed: &Bed<'_>, report: &mut Report) {
    for from in &bed.cluster.nodes {
        for to in &bed.cluster.nodes {
            let name = match from == to {
                true => format!("hairpin of the Pod on {from}"),
                false => format!("one backend, from {from} to {to}"),
            };
            report.check(&name, || {
                let addresses = bed.addresses(&format!("at-{to}"))?;
                for address in &addresses {
                    let curl = format!(
                        "curl --globoff --silent --show-error --max-time 3 {}/hostname",
                        url(address, PORT)
                    );
                    within(SOON, || match bed.in_pod(from, &curl)? {
                        answer if answer.trim() == format!("client-{to}") => Ok(()),
                        answer => bail!("{answer:?} answered"),
                    })
                    .with_context(|| family(address))?;
                    let udp = format!("echo hostname | nc -u -w 1 -W 1 {address} {PORT}");
                    within(SOON, || match bed.in_pod(from, &udp)? {
                        answer if answer.trim() == format!("client-{to}") => Ok(()),
                        answer => bail!("{answer:?} answered"),
                    })
                    .with_context(|| format!("{} UDP", family(address)))?;
                }
                Ok(format!("TCP and UDP, {} families", addresses.len()))
            });
        }
    }
}

fn refusal(bed: &Bed<'_>, report: &mut Report) {
    let Some(node) = bed.cluster.nodes.first() else { return };
    for (what, service, port) in
        [("without endpoints", "empty", PORT), ("at an undefined port", "web", 81)]
    {
        for (place, host) in [("a Pod", false), ("the host", true)] {
            report.check(&format!("a Service {what} refuses {place}"), || {
                let addresses = bed.addresses(service)?;
                for address in &addresses {
                    let refused = within(SOON, || refused(bed, node, host, address, port));
                    refused.with_context(|| family(address))?;
                }
                Ok(format!("{} families", addresses.len()))
            });
        }
    }
}

fn refused(bed: &Bed<'_>, node: &str, host: bool, address: &str, port: u16) -> Result<()> {
    ask::refused(address, port, &|script| match host {
        true => bed.on_node(node, script),
        false => bed.in_pod(node, script),
    })
}

fn scale(bed: &Bed<'_>) -> Result<String> {
    let Some(node) = bed.cluster.nodes.first() else { bail!("no node") };
    let Some(address) = bed.web.first() else { bail!("no address") };
    let scale = |n: usize| {
        let replicas = format!("--replicas={n}");
        bed.cluster.run(&["scale", "--namespace", NAMESPACE, "deployment/web", &replicas])
    };
    let n = 2 * bed.cluster.nodes.len();
    scale(0)?;
    within(Duration::from_secs(60), || match endpoints(bed, "web")? {
        0 => Ok(()),
        n => bail!("{n} endpoints are left"),
    })?;
    within(SOON, || refused(bed, node, false, address, PORT)).context("at 0")?;
    scale(n)?;
    within(Duration::from_secs(60), || match endpoints(bed, "web")? {
        ready if ready == n => Ok(()),
        ready => bail!("{ready} of {n} endpoints are ready"),
    })?;
    every_backend(bed, address, n, &|script| bed.in_pod(node, script)).context("back")
}

/// Ready endpoints of a Service's IPv4 slices, or of its only family.
pub(crate) fn endpoints(bed: &Bed<'_>, service: &str) -> Result<usize> {
    let selector = format!("kubernetes.io/service-name={service}");
    let list = bed.cluster.json(&[
        "get",
        "--namespace",
        NAMESPACE,
        "endpointslices",
        "--selector",
        &selector,
    ])?;
    let mut by_family = [0, 0];
    for slice in super::cluster::items(&list) {
        let v6 = super::cluster::text(slice, "/addressType") == Some("IPv6");
        let all = slice.get("endpoints").and_then(Value::as_array).into_iter().flatten();
        let ready =
            |e: &&Value| e.pointer("/conditions/ready").and_then(Value::as_bool) == Some(true);
        if let Some(n) = by_family.get_mut(usize::from(v6)) {
            *n += all.filter(ready).count();
        }
    }
    Ok(by_family.into_iter().max().unwrap_or(0))
}
