//! The agent in the cluster: `deploy/` as a user would apply it, with the image just built.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    command::{self, command, root, say, target_dir},
    image,
    setup::{self, Need},
};

use super::{
    Target,
    bed::Bed,
    cluster::{Cluster, items, text},
    report::within,
};

/// The DaemonSet and how to select its Pods.
pub(crate) const DAEMON_SET: &str = "daemonset/lb-agent";
pub(crate) const SELECTOR: &str = "k8s-app=lb-agent";
/// Where it is deployed.
pub(crate) const SYSTEM: &str = "kube-system";

/// Builds the image and loads it where `load` says, applies `deploy/`, waits until every agent is ready.
///
/// # Errors
/// When any of that fails; with the agents' last words if they do not become ready.
pub(crate) fn agent(cluster: &Cluster, target: &Target) -> Result<()> {
    let upgrade = cluster.run(&["--namespace", SYSTEM, "get", DAEMON_SET]).is_ok();
    match &target.load {
        Some(load) => {
            if !target.no_build {
                setup::ensure(&[Need::Rust, Need::BpfLinker])?;
                image::run(&image::Options::default())?;
            }
            let tar = target_dir().join(image::ARCHIVE);
            let load = load.replace("{tar}", &tar.to_string_lossy());
            command::run(command("sh").args(["-c", &load])).context("load the image")?;
        }
        None => say("no --load: the nodes must have the image, or be able to pull it"),
    }
    apply(cluster)?;
    // The tag is the same, so only a restart brings the new image.
    if upgrade { restart(cluster) } else { ready(cluster) }
}

/// Applies `deploy/`.
///
/// # Errors
/// When the API refuses an object.
pub(crate) fn apply(cluster: &Cluster) -> Result<()> {
    apply_from(cluster, &root().join("deploy"))
}

/// Applies the `deploy/` of another checkout.
///
/// # Errors
/// When the API refuses an object.
pub(crate) fn apply_from(cluster: &Cluster, dir: &Path) -> Result<()> {
    let dir = dir.to_string_lossy();
    say(&format!("kubectl apply -k {dir}"));
    cluster.run(&["apply", "--kustomize", &dir]).map(|_| ())
}

/// Waits until every agent is ready.
///
/// # Errors
/// When one is not in time; with its state and its log.
pub(crate) fn ready(cluster: &Cluster) -> Result<()> {
    let Err(err) = cluster.rolled_out(SYSTEM, DAEMON_SET) else { return Ok(()) };
    for args in [
        &["--namespace", SYSTEM, "get", "pods", "--selector", SELECTOR, "--output", "wide"][..],
        &["--namespace", SYSTEM, "describe", "pods", "--selector", SELECTOR],
        &["--namespace", SYSTEM, "logs", "--selector", SELECTOR, "--prefix", "--tail", "20"],
    ] {
        match cluster.run(args) {
            Ok(text) => eprintln!("{text}"),
            Err(err) => eprintln!("{err:#}"),
        }
    }
    Err(err.context("the agents did not become ready"))
}

/// Sets a key of the ConfigMap; the agents read it when they next start.
///
/// # Errors
/// When the API refuses it.
pub(crate) fn configure(cluster: &Cluster, key: &str, value: &str) -> Result<()> {
    let daemon_set = cluster.json(&["--namespace", SYSTEM, "get", DAEMON_SET])?;
    let volumes = daemon_set.pointer("/spec/template/spec/volumes").and_then(Value::as_array);
    let name = volumes.into_iter().flatten().find_map(|volume| text(volume, "/configMap/name"));
    let config_map = format!("configmap/{}", name.context("the agents have no settings")?);
    let patch = serde_json::json!({ "data": { key: value } }).to_string();
    let args = ["--namespace", SYSTEM, "patch", &config_map, "--patch", &patch];
    cluster.run(&args).map(|_| ())
}

/// Replaces every agent, one node after the other.
///
/// # Errors
/// When one does not become ready.
pub(crate) fn restart(cluster: &Cluster) -> Result<()> {
    cluster.run(&["--namespace", SYSTEM, "rollout", "restart", DAEMON_SET])?;
    ready(cluster)
}

/// Ends every agent at once and waits until each node has another that runs, ready or not.
///
/// # Errors
/// When a node has none in time.
pub(crate) fn replace(cluster: &Cluster) -> Result<()> {
    let selected = ["--namespace", SYSTEM, "delete", "pods", "--selector", SELECTOR];
    cluster.run(&[&selected[..], &["--timeout", "60s"]].concat())?;
    within(Duration::from_secs(60), || {
        for node in &cluster.nodes {
            let running = "/status/containerStatuses/0/state/running";
            if agent_on(cluster, node)?.pointer(running).is_none() {
                bail!("the agent on {node} is not running");
            }
        }
        Ok(())
    })
}

/// Whether every agent runs for the first time and none is ready.
///
/// # Errors
/// When one is ready, or was started again.
pub(crate) fn unready(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let pod = agent_on(cluster, node)?;
        let status = |field: &str| pod.pointer(&format!("/status/containerStatuses/0/{field}"));
        let (ready, restarts) = (status("ready"), status("restartCount").and_then(Value::as_u64));
        if ready != Some(&Value::Bool(false)) || restarts != Some(0) {
            bail!("the agent on {node}: ready {ready:?}, restarts {restarts:?}");
        }
    }
    Ok(())
}

/// Name of the agent's Pod on a node.
///
/// # Errors
/// When there is none, or the API does not answer.
pub(crate) fn pod_on(cluster: &Cluster, node: &str) -> Result<String> {
    let pod = agent_on(cluster, node)?;
    Ok(text(&pod, "/metadata/name").with_context(|| format!("no agent on {node}"))?.to_owned())
}

/// The agent's Pod on a node.
///
/// # Errors
/// When there is none, or the API does not answer.
pub(crate) fn agent_on(cluster: &Cluster, node: &str) -> Result<Value> {
    let field = format!("spec.nodeName={node}");
    let get = ["--namespace", SYSTEM, "get", "pods", "--selector", SELECTOR];
    let list = cluster.json(&[&get[..], &["--field-selector", &field]].concat())?;
    items(&list).next().cloned().with_context(|| format!("no agent on {node}"))
}

/// Removes the agent, its programs, its maps and its state from every node, as docs/src/operations.md says.
///
/// # Errors
/// When something stays behind.
pub(crate) fn remove(bed: &Bed<'_>) -> Result<String> {
    let cluster = bed.cluster;
    let dir = root().join("deploy");
    let patch = dir.join("cleanup.json");
    let (dir, patch) = (dir.to_string_lossy(), patch.to_string_lossy());
    let options = ["--type", "json", "--patch-file", &patch];
    cluster.run(&[&["--namespace", SYSTEM, "patch", DAEMON_SET][..], &options].concat())?;
    // It ends when every node is clean.
    ready(cluster).context("clean up")?;
    cluster.run(&["delete", "--kustomize", &dir, "--wait", "--ignore-not-found"])?;
    for node in &cluster.nodes {
        // Through PID 1, since the Pod that may stand for the node has a file system of its own.
        let left = bed.on_node(
            node,
            "cd /proc/1/root && ls -A sys/fs/bpf/lb run/lb var/lib/lb 2>/dev/null || true",
        )?;
        let left: Vec<_> =
            left.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
        if !left.is_empty() {
            bail!("{node} still has {left:?}");
        }
    }
    Ok(String::new())
}
