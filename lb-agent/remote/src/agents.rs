//! Pods of the DaemonSet → the agent of each node.

use std::collections::BTreeMap;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::api::ListParams;
use kube::{Api, Client};

use crate::connect::explained;

/// Label of the agents' Pods, as in deploy/daemonset.yaml.
const SELECTOR: &str = "k8s-app=lb-agent";
/// Container of the agent in its Pod.
pub(crate) const CONTAINER: &str = "lb-agent";

/// The agent of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAgent {
    /// The node.
    pub node: String,
    /// Its Pod.
    pub pod: String,
    /// Why no command can run in it; `None` = its container runs.
    pub down: Option<String>,
}

/// Returns the agents by the names of their nodes.
///
/// # Errors
/// One sentence, when the Pods cannot be listed.
pub(crate) async fn list(client: &Client, namespace: &str) -> anyhow::Result<Vec<NodeAgent>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // From the server's cache, as kubectl's informers do: a second old at most, and no load on etcd.
    let wanted = ListParams::default().labels(SELECTOR).match_any();
    let pods = pods.list(&wanted).await.map_err(explained);
    let pods = pods.with_context(|| format!("list the agents in namespace {namespace}"))?;
    Ok(of_pods(&pods.items))
}

/// Returns one agent a node: where a Pod is replaced by another one, the one that runs.
fn of_pods(pods: &[Pod]) -> Vec<NodeAgent> {
    let mut agents: BTreeMap<String, NodeAgent> = BTreeMap::new();
    for agent in pods.iter().filter_map(agent) {
        match agents.get(&agent.node) {
            Some(known) if known.down.is_none() || agent.down.is_some() => {}
            Some(_) | None => {
                agents.insert(agent.node.clone(), agent);
            }
        }
    }
    agents.into_values().collect()
}

/// The agent of a Pod that has a node and has not ended.
fn agent(pod: &Pod) -> Option<NodeAgent> {
    let node = pod.spec.as_ref()?.node_name.clone().filter(|node| !node.is_empty())?;
    let status = pod.status.as_ref()?;
    let phase = status.phase.as_deref().unwrap_or("Unknown");
    if ["Succeeded", "Failed"].contains(&phase) {
        return None;
    }
    let containers = status.container_statuses.iter().flatten();
    let state = containers.into_iter().find(|one| one.name == CONTAINER)?.state.clone();
    let down = state.map_or_else(|| Some(phase.to_owned()), not_running);
    Some(NodeAgent { node, pod: pod.metadata.name.clone()?, down })
}

/// Why the container does not run.
fn not_running(state: ContainerState) -> Option<String> {
    if state.running.is_some() {
        return None;
    }
    let waiting = state.waiting.and_then(|waiting| waiting.reason);
    let ended = state.terminated.map(|ended| {
        ended.reason.unwrap_or_else(|| format!("ended with exit status {}", ended.exit_code))
    });
    Some(waiting.or(ended).unwrap_or_else(|| "not started".to_owned()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateWaiting, ContainerStatus, Pod,
        PodSpec, PodStatus,
    };

    use super::of_pods;

    fn pod(node: &str, name: &str, phase: &str, waits: Option<&str>) -> Pod {
        let state = ContainerState {
            running: waits.is_none().then(ContainerStateRunning::default),
            waiting: waits.map(|reason| ContainerStateWaiting {
                reason: Some(reason.to_owned()),
                ..ContainerStateWaiting::default()
            }),
            terminated: None,
        };
        let status = ContainerStatus {
            name: "lb-agent".to_owned(),
            state: Some(state),
            ..ContainerStatus::default()
        };
        let mut pod = Pod {
            spec: Some(PodSpec { node_name: Some(node.to_owned()), ..PodSpec::default() }),
            status: Some(PodStatus {
                phase: Some(phase.to_owned()),
                container_statuses: Some(vec![status]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        pod.metadata.name = Some(name.to_owned());
        pod
    }

    #[test]
    fn one_agent_a_node_and_the_one_that_runs() {
        let pods = [
            pod("n2", "old", "Running", None),
            pod("n2", "new", "Pending", Some("ContainerCreating")),
            pod("n1", "crashing", "Running", Some("CrashLoopBackOff")),
            pod("n3", "evicted", "Failed", None),
            pod("n3", "there", "Running", None),
            pod("", "unscheduled", "Pending", Some("ContainerCreating")),
        ];
        let found = of_pods(&pods);
        let found: Vec<_> = found
            .iter()
            .map(|agent| (agent.node.as_str(), agent.pod.as_str(), agent.down.as_deref()))
            .collect();
        assert_eq!(
            found,
            [
                ("n1", "crashing", Some("CrashLoopBackOff")),
                ("n2", "old", None),
                ("n3", "there", None)
            ]
        );
    }
}
