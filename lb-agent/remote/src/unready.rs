//! The status of a Pod → why it is not ready, since when. Pure.
//!
//! The kubelet sets the conditions of the Pod and the states of its containers; what a probe answered is only in Events. The words
//! are those that `kubectl get pods` shows: the reason of the container that waits or has ended, else of the Pod's condition.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition,
    PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Why a Pod is not ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadiness {
    /// The first container that is not ready, init containers first; empty = it is the Pod itself.
    pub container: String,
    /// One word: `CrashLoopBackOff`, `ImagePullBackOff`, `Unschedulable`. A probe that does not succeed is `Unhealthy`, as in the
    /// kubelet's Events.
    pub reason: String,
    /// What the status says more, may be empty.
    pub message: String,
    /// Since when, in seconds since 1970.
    pub since: Option<i64>,
}

/// Returns why a Pod is not ready; `None` if it is.
pub(crate) fn unreadiness(pod: &Pod) -> Option<Unreadiness> {
    let (spec, status) = (pod.spec.clone().unwrap_or_default(), pod.status.as_ref()?);
    let ready = condition(status, "Ready");
    if ready.is_some_and(|ready| ready.status == "True") {
        return None;
    }
    if let Some(time) = &pod.metadata.deletion_timestamp {
        return Some(of_pod("Terminating", "", Some(time)));
    }
    let since = ready.and_then(|ready| ready.last_transition_time.as_ref());
    let phase = status.phase.as_deref().unwrap_or_default();
    if ["Failed", "Succeeded"].contains(&phase) {
        let reason = status.reason.as_deref().unwrap_or(phase);
        return Some(of_pod(reason, status.message.as_deref().unwrap_or_default(), since));
    }
    let scheduled = condition(status, "PodScheduled").filter(|found| found.status != "True");
    // The node controller sets it, and the states of the containers are those of the past.
    let node_is_gone = ready.filter(|ready| ready.reason.as_deref() == Some("NodeNotReady"));
    if let Some(found) = scheduled.or(node_is_gone) {
        return Some(of_condition(found, phase));
    }
    let init = status.init_container_statuses.iter().flatten();
    let all = init.chain(status.container_statuses.iter().flatten());
    match (all.into_iter().find(|one| !one.ready), ready) {
        (Some(container), _) => Some(of_container(&spec, container, since)),
        (None, Some(ready)) => Some(of_condition(ready, phase)),
        (None, None) => Some(of_pod(phase, "", None)),
    }
}

fn condition<'a>(status: &'a PodStatus, name: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == name)
}

fn of_condition(condition: &PodCondition, phase: &str) -> Unreadiness {
    let reason = condition.reason.as_deref().unwrap_or(phase);
    let message = condition.message.as_deref().unwrap_or_default();
    of_pod(reason, message, condition.last_transition_time.as_ref())
}

fn of_pod(reason: &str, message: &str, since: Option<&Time>) -> Unreadiness {
    Unreadiness {
        container: String::new(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        since: since.map(seconds),
    }
}

fn seconds(time: &Time) -> i64 {
    time.0.as_second()
}

fn of_container(spec: &PodSpec, status: &ContainerStatus, since: Option<&Time>) -> Unreadiness {
    let ContainerStatus { name, started, state, last_state, .. } = status;
    let ended = last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let found = match state.clone().unwrap_or_default() {
        ContainerState { waiting: Some(waiting), .. } => {
            let message = match ended {
                Some(ended) => last_run(ended),
                None => waiting.message.unwrap_or_default(),
            };
            of_pod(waiting.reason.as_deref().unwrap_or("Waiting"), &message, since)
        }
        ContainerState { terminated: Some(ended), .. } => {
            let reason = ended.reason.as_deref().unwrap_or("Terminated");
            of_pod(reason, &exit_status(&ended), ended.finished_at.as_ref())
        }
        ContainerState { running: Some(running), .. } => {
            let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
            let declared = containers.find(|container| container.name == *name);
            let begun = running.started_at.as_ref();
            // Before it was started again, it was another one that was not ready.
            let since = since.max(begun);
            match (declared, started) {
                (Some(Container { startup_probe: Some(_), .. }), Some(false) | None) => {
                    of_pod("Unhealthy", "its startup probe has not succeeded", since)
                }
                (Some(Container { readiness_probe: Some(_), .. }), _) => {
                    of_pod("Unhealthy", "its readiness probe does not succeed", since)
                }
                _ => of_pod("ContainersNotReady", "", since),
            }
        }
        ContainerState { .. } => of_pod("Waiting", "", since),
    };
    Unreadiness { container: name.clone(), ..found }
}

fn last_run(ended: &ContainerStateTerminated) -> String {
    match &ended.reason {
        Some(reason) if reason != "Error" => {
            format!("it last ended with {} ({reason})", exit_status(ended))
        }
        _ => format!("it last ended with {}", exit_status(ended)),
    }
}

fn exit_status(ended: &ContainerStateTerminated) -> String {
    format!("exit status {}", ended.exit_code)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::{Unreadiness, unreadiness};

    /// A Pod of these containers that was last ready at 100 s; `more` is set in its status.
    fn pod(containers: Value, statuses: Value, ready: Value, more: Value) -> Pod {
        let mut conditions = vec![json!({
            "type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:01:40Z",
            "reason": "ContainersNotReady", "message": "containers with unready status: [web]",
        })];
        conditions[0].as_object_mut().unwrap().extend(ready.as_object().unwrap().clone());
        let mut status = json!({ "phase": "Running", "containerStatuses": statuses });
        status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let given = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.extend(given);
        status["conditions"] = conditions.into();
        let object = json!({ "metadata": { "name": "web-1" }, "spec": { "containers": containers }, "status": status });
        serde_json::from_value(object).unwrap()
    }

    fn container(state: Value, last: Value) -> Value {
        json!([
            { "name": "sidecar", "image": "", "imageID": "", "ready": true, "restartCount": 0 },
            { "name": "web", "image": "", "imageID": "", "ready": false, "restartCount": 3,
              "state": state, "lastState": last },
        ])
    }

    #[test]
    fn the_reason_is_what_kubectl_shows() {
        let plain = || json!([{ "name": "web" }]);
        let probed =
            || json!([{ "name": "web", "readinessProbe": { "tcpSocket": { "port": 80 } } }]);
        let running = || json!({ "running": { "startedAt": "1970-01-01T00:03:20Z" } });
        let of = |containers, state, last| {
            unreadiness(&pod(containers, container(state, last), json!({}), json!({})))
        };
        let ended = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled", "finishedAt": "1970-01-01T00:05:00Z" } });
        let cases = [
            (
                of(
                    plain(),
                    json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 5m0s" } }),
                    ended.clone(),
                ),
                ("web", "CrashLoopBackOff", "it last ended with exit status 137 (OOMKilled)", 100),
            ),
            (
                of(
                    plain(),
                    json!({ "waiting": { "reason": "ImagePullBackOff", "message": "Back-off pulling image \"nope\"" } }),
                    json!({}),
                ),
                ("web", "ImagePullBackOff", "Back-off pulling image \"nope\"", 100),
            ),
            (of(plain(), ended, json!({})), ("web", "OOMKilled", "exit status 137", 300)),
            (
                of(probed(), running(), json!({})),
                ("web", "Unhealthy", "its readiness probe does not succeed", 200),
            ),
            (of(plain(), running(), json!({})), ("web", "ContainersNotReady", "", 200)),
        ];
        for (found, (container, reason, message, since)) in cases {
            let (container, reason, message) =
                (container.to_owned(), reason.to_owned(), message.to_owned());
            let want = Unreadiness { container, reason, message, since: Some(since) };
            assert_eq!(found, Some(want));
        }
    }

    #[test]
    fn what_concerns_the_pod_itself_comes_before_its_containers() {
        let waiting =
            || container(json!({ "waiting": { "reason": "ContainerCreating" } }), json!({}));
        let scheduled = json!({ "phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available", "lastTransitionTime": "1970-01-01T00:00:50Z" }] });
        let gates = json!({ "reason": "ReadinessGatesNotReady", "message": "gate a" });
        let gone = json!({ "reason": "NodeNotReady", "message": "" });
        let cases = [
            (
                pod(json!([]), waiting(), json!({}), scheduled),
                ("Unschedulable", "0/3 nodes are available", 50),
            ),
            (
                pod(json!([]), json!([]), gates, json!({})),
                ("ReadinessGatesNotReady", "gate a", 100),
            ),
            (pod(json!([]), waiting(), gone, json!({})), ("NodeNotReady", "", 100)),
            (
                pod(
                    json!([]),
                    waiting(),
                    json!({}),
                    json!({ "phase": "Failed", "reason": "Evicted", "message": "low on memory" }),
                ),
                ("Evicted", "low on memory", 100),
            ),
        ];
        for (pod, (reason, message, since)) in cases {
            let found = unreadiness(&pod).unwrap();
            assert_eq!(
                (
                    found.container.as_str(),
                    found.reason.as_str(),
                    found.message.as_str(),
                    found.since
                ),
                ("", reason, message, Some(since))
            );
        }
        let ready = pod(json!([]), json!([]), json!({ "status": "True" }), json!({}));
        assert_eq!(unreadiness(&ready), None);
    }
}
