//! Waiting for the bench's Pods, and what keeps them from running.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::NAMESPACE;
use crate::kubectl::{Kubectl, items, text};

/// How long Pods may take to start.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the other Pods may take to report the same trouble as the first.
const TROUBLE: Duration = Duration::from_secs(2);
/// States of a container that do not end by waiting.
const HOPELESS: [&str; 9] = [
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "StartError",
    "CrashLoopBackOff",
];

/// Waits until all Pods run.
///
/// # Errors
/// When one will never run, or does not in time.
pub(super) fn wait(kubectl: &Kubectl, n: usize, image: &str) -> Result<()> {
    let start = Instant::now();
    let mut troubled: Option<Instant> = None;
    loop {
        let pods = kubectl.json(&["get", "pods", "--namespace", NAMESPACE])?;
        let states: Vec<State> = items(&pods).map(State::of).collect();
        if let Some(trouble) = trouble(&states, image) {
            // The other Pods may be about to report the same about their nodes.
            if troubled.get_or_insert_with(Instant::now).elapsed() > TROUBLE {
                bail!(trouble);
            }
        }
        if states.len() == n && states.iter().all(|state| state.runs) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            let waiting = states.iter().filter(|state| !state.runs);
            let waiting: Vec<_> =
                waiting.map(|s| format!("{} on {} ({})", s.pod, s.node, s.reason)).collect();
            bail!("Pods do not run after {} s: {}", PATIENCE.as_secs(), waiting.join(", "));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// How far a Pod is.
#[derive(Debug)]
struct State {
    pod: String,
    node: String,
    runs: bool,
    /// Why it does not run.
    reason: String,
    message: String,
    failed: bool,
}

impl State {
    fn of(pod: &Value) -> Self {
        let field = |pointer: &str| text(pod, pointer).unwrap_or_default().to_owned();
        let waiting = "/status/containerStatuses/0/state/waiting";
        let phase = field("/status/phase");
        let reason = [format!("{waiting}/reason").as_str(), "/status/reason", "/status/phase"]
            .into_iter()
            .map(field)
            .find(|reason| !reason.is_empty());
        let message = [format!("{waiting}/message").as_str(), "/status/message"]
            .into_iter()
            .map(field)
            .find(|message| !message.is_empty());
        Self {
            pod: field("/metadata/name"),
            node: field("/spec/nodeName"),
            runs: phase == "Running",
            reason: reason.unwrap_or_default(),
            message: message.unwrap_or_default(),
            failed: phase == "Failed" || phase == "Succeeded",
        }
    }
}

/// What is wrong with Pods that will never run, and what to do about it.
fn trouble(states: &[State], image: &str) -> Option<String> {
    let hopeless = |state: &&State| state.failed || HOPELESS.contains(&state.reason.as_str());
    let stuck: Vec<&State> = states.iter().filter(hopeless).collect();
    let first = stuck.first()?;
    let mut nodes: Vec<&str> = stuck.iter().map(|state| state.node.as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let nodes = nodes.join(", ");
    let reason = &first.reason;
    Some(match reason.as_str() {
        "ErrImageNeverPull" => format!(
            "{reason}: the image {image} is not on these nodes: {nodes}; build it by `cargo xtask image --bench` and load \
             target/lb-bench.tar onto every node (in kind: `kind load image-archive target/lb-bench.tar`), or set --load"
        ),
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => {
            format!(
                "{reason}: these nodes cannot pull the image {image}: {nodes}; {}",
                first.message
            )
        }
        _ => format!(
            "the Pod {} on {} does not start: {reason} {}",
            first.pod, first.node, first.message
        ),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{State, trouble};

    fn waiting(name: &str, node: &str, reason: &str) -> Value {
        json!({
            "metadata": { "name": name }, "spec": { "nodeName": node },
            "status": {
                "phase": "Pending",
                "containerStatuses": [{ "state": { "waiting": { "reason": reason, "message": "because" } } }],
            },
        })
    }

    fn said(pods: &[Value]) -> Option<String> {
        trouble(&pods.iter().map(State::of).collect::<Vec<_>>(), "lb-bench:dev")
    }

    #[test]
    fn a_missing_image_is_named_with_its_nodes_and_what_to_do() {
        let starts = waiting("client", "n1", "ContainerCreating");
        assert_eq!(said(std::slice::from_ref(&starts)), None);
        let never = |node: &str| waiting("far", node, "ErrImageNeverPull");
        let text = said(&[starts, never("n3"), never("n2"), never("n2")]).unwrap();
        assert!(text.contains("lb-bench:dev is not on these nodes: n2, n3;"), "{text}");
        assert!(text.contains("cargo xtask image --bench"), "{text}");
        let text = said(&[waiting("far", "n2", "ImagePullBackOff")]).unwrap();
        assert!(text.ends_with("cannot pull the image lb-bench:dev: n2; because"), "{text}");
    }

    #[test]
    fn a_pod_that_a_node_refuses_is_named() {
        let refused = json!({
            "metadata": { "name": "host" }, "spec": { "nodeName": "n1" },
            "status": { "phase": "Failed", "reason": "NodePorts", "message": "port in use" },
        });
        let text = said(&[refused]).unwrap();
        assert_eq!(text, "the Pod host on n1 does not start: NodePorts port in use");
    }
}
