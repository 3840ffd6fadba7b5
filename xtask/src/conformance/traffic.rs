//! Pods of the small image that makes loads, and their Service.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testbed::load::Report;

use crate::{command::output, image};

use super::{
    cluster::{Cluster, NAMESPACE},
    report::within,
};

/// The first port of the Service, and how many there are by each of TCP and UDP. A client has 28,000 source ports towards each, and
/// each of TCP is in use for a minute after its connection.
pub(crate) const PORT: u16 = 8080;
pub(crate) const PORTS: u16 = 32;
/// The server's port, for all of them.
const TARGET: u16 = 8080;
/// Pods have started by then.
pub(crate) const STARTED: Duration = Duration::from_secs(90);

/// A Service of the servers with this label, with all ports.
pub(crate) fn service(name: &str) -> Value {
    let port = |(protocol, port): (&str, u16)| {
        let name = format!("{}-{port}", protocol.to_lowercase());
        json!({ "name": name, "protocol": protocol, "port": port, "targetPort": TARGET })
    };
    let ports = ["TCP", "UDP"]
        .into_iter()
        .flat_map(|protocol| (PORT..PORT + PORTS).map(move |port| (protocol, port)));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": { "app": name },
            "ports": ports.map(port).collect::<Vec<_>>(),
        },
    })
}

/// A server of the Service on a node.
pub(crate) fn server(node: &str, service: &str) -> Value {
    let name = format!("server-{node}");
    pod(&name, node, service, &["serve", &name, &TARGET.to_string()])
}

/// A Pod from which loads run.
pub(crate) fn client(name: &str, node: &str) -> Value {
    pod(name, node, "load", &["idle"])
}

fn pod(name: &str, node: &str, app: &str, args: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "labels": { "app": app, "bed": "traffic" },
        },
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{
                "name": "traffic", "image": image::BENCH_TAG, "imagePullPolicy": "Never",
                "args": args,
            }],
        },
    })
}

/// Waits for all of these Pods.
///
/// # Errors
/// When they do not start.
pub(crate) fn started(cluster: &Cluster) -> Result<()> {
    let wait = ["wait", "--namespace", NAMESPACE, "--for", "condition=Ready", "pod"];
    let which = ["--selector", "bed=traffic", "--timeout", "60s"];
    within(STARTED, || cluster.run(&[&wait[..], &which].concat()).map(|_| ())).with_context(|| {
        format!(
            "the Pods of {} do not run; is the image on the nodes? See `cargo xtask image --bench`",
            image::BENCH_TAG
        )
    })
}

/// A command of the traffic program in one of these Pods.
pub(crate) fn traffic(cluster: &Cluster, pod: &str, args: &[&str]) -> Command {
    let exec = ["exec", "--namespace", NAMESPACE, pod, "--", "/bin/traffic"];
    cluster.kubectl(&[&exec[..], args].concat())
}

/// Runs a load in one of these Pods, with its rate in new flows a second, by `tcp` or `udp` to each port of the Service.
///
/// # Errors
/// When it does not run, or its report cannot be read.
pub(crate) fn load(
    cluster: &Cluster,
    pod: &str,
    (transport, at): (&str, &str),
    (rate, seconds): (usize, u64),
) -> Result<Report> {
    let [rate, seconds, ports] = [rate.to_string(), seconds.to_string(), PORTS.to_string()];
    report(cluster, pod, &["load", transport, at, &rate, &seconds, &ports])
}

/// What a command of the traffic program in one of these Pods reports.
///
/// # Errors
/// When it does not run, or its report cannot be read.
pub(crate) fn report<T: DeserializeOwned>(
    cluster: &Cluster,
    pod: &str,
    args: &[&str],
) -> Result<T> {
    let text = output(traffic(cluster, pod, args).stdin(Stdio::null()))?;
    serde_json::from_str(&text).with_context(|| format!("{pod} reports {text:?}"))
}
