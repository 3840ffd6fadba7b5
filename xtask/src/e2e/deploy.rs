//! The agent in the cluster: `deploy/` as a user would apply it, with the image just built.

use anyhow::{Context as _, Result};

use crate::{
    command::{self, command, root, say, target_dir},
    image,
    setup::{self, Need},
};

use super::cluster::{Cluster, items, text};

/// The DaemonSet and how to select its Pods.
pub(crate) const DAEMON_SET: &str = "daemonset/lb-agent";
pub(crate) const SELECTOR: &str = "k8s-app=lb-agent";
/// Where it is deployed.
pub(crate) const SYSTEM: &str = "kube-system";

/// Builds the image and loads it where `load` says, applies `deploy/`, waits until every agent is ready.
///
/// # Errors
/// When any of that fails; with the agents' last words if they do not become ready.
pub(crate) fn agent(cluster: &Cluster, load: Option<&str>) -> Result<()> {
    let dir = root().join("deploy");
    let dir = dir.to_string_lossy();
    let upgrade = cluster.run(&["--namespace", SYSTEM, "get", DAEMON_SET]).is_ok();
    match load {
        Some(load) => {
            setup::ensure(&[Need::Rust, Need::BpfLinker])?;
            image::run(&[])?;
            let tar = target_dir().join(image::ARCHIVE);
            let load = load.replace("{tar}", &tar.to_string_lossy());
            command::run(command("sh").args(["-c", &load])).context("load the image")?;
        }
        None => say("no --load: the nodes must have the image, or be able to pull it"),
    }
    say(&format!("kubectl apply -k {dir}"));
    cluster.run(&["apply", "--kustomize", &dir])?;
    if upgrade {
        // The tag is the same, so only a restart brings the new image.
        cluster.run(&["--namespace", SYSTEM, "rollout", "restart", DAEMON_SET])?;
    }
    ready(cluster)
}

/// Waits until every agent is ready.
///
/// # Errors
/// When one is not in time; with its state and its log.
pub(crate) fn ready(cluster: &Cluster) -> Result<()> {
    let rollout = ["--namespace", SYSTEM, "rollout", "status", DAEMON_SET, "--timeout", "120s"];
    let Err(err) = cluster.run(&rollout) else { return Ok(()) };
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
    Err(err.context("the agents do not become ready"))
}

/// The agent's Pod on a node.
///
/// # Errors
/// When there is none, or the API does not answer.
pub(crate) fn pod_on(cluster: &Cluster, node: &str) -> Result<String> {
    let field = format!("spec.nodeName={node}");
    let list = cluster.json(&[
        "--namespace",
        SYSTEM,
        "get",
        "pods",
        "--selector",
        SELECTOR,
        "--field-selector",
        &field,
    ])?;
    let name = items(&list).find_map(|pod| text(pod, "/metadata/name"));
    Ok(name.with_context(|| format!("no agent on {node}"))?.to_owned())
}

/// Removes the agent, its programs and its maps from the cluster.
///
/// # Errors
/// When something stays behind.
pub(crate) fn remove(cluster: &Cluster) -> Result<()> {
    let dir = root().join("deploy");
    say("removing the agent");
    cluster.run(&[
        "delete",
        "--kustomize",
        &dir.to_string_lossy(),
        "--wait",
        "--ignore-not-found",
    ])?;
    Ok(())
}
