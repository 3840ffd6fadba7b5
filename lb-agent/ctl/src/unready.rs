//! A Pod that is not ready, in words: which container, why, since when, and what to look at. The reasons are those of the Pod's
//! status, as `kubectl get pods` shows them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cell::age;
use lb_core::cluster::Name;

/// A Pod that is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadyPod {
    /// The Pod.
    pub pod: Name,
    /// The container that is not ready; empty = it is the Pod itself.
    pub container: String,
    /// One word: `CrashLoopBackOff`, `Unschedulable`.
    pub reason: String,
    /// What the status says more, may be empty.
    pub message: String,
    /// For how many seconds, if known.
    pub seconds: Option<u64>,
}

/// Why it is not ready, without its name: `container web: CrashLoopBackOff for 5m (it last ended with exit status 1)`.
impl fmt::Display for UnreadyPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.container.is_empty() {
            write!(f, "container {}: ", self.container)?;
        }
        f.write_str(&self.reason)?;
        if let Some(seconds) = self.seconds {
            write!(f, " for {}", age(seconds))?;
        }
        match self.message.as_str() {
            "" => Ok(()),
            message => write!(f, " ({})", message.trim_end_matches('.')),
        }
    }
}

impl UnreadyPod {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        let Self { pod, container, reason, .. } = self;
        let Name { namespace, name } = pod;
        match reason.as_str() {
            "CrashLoopBackOff" | "Error" | "OOMKilled" | "Completed" => format!(
                "find out why container {container} of Pod {pod} ends: `kubectl -n {namespace} logs {name} -c {container} --previous`"
            ),
            "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" => {
                format!(
                    "correct the image of container {container} of Pod {pod}, or the credentials for its registry"
                )
            }
            "Unhealthy" => format!(
                "check the probe of container {container} of Pod {pod}, and what it answered: `kubectl -n {namespace} describe pod {name}`"
            ),
            _ if container.is_empty() => see_events(pod),
            _ => look_at(pod),
        }
    }
}

/// What to do about a Pod none of whose containers is known to be at fault.
pub fn see_events(pod: &Name) -> String {
    let Name { namespace, name } = pod;
    format!("check the Events of Pod {pod}: `kubectl -n {namespace} describe pod {name}`")
}

/// What to do about a Pod whose reason is not known here.
pub fn look_at(pod: &Name) -> String {
    let Name { namespace, name } = pod;
    format!(
        "check the readiness probes and the Events of Pod {pod}: `kubectl -n {namespace} describe pod {name}`"
    )
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use lb_core::cluster::Name;

    use super::UnreadyPod;

    #[test]
    fn the_words_name_the_container_the_reason_and_its_age() {
        let of = |container: &str, reason: &str, message: &str, seconds| UnreadyPod {
            pod: Name::parse("shop/web-1"),
            container: container.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            seconds,
        };
        let lines: Vec<String> = [
            of("web", "CrashLoopBackOff", "it last ended with exit status 1", Some(300)),
            of("web", "ImagePullBackOff", "Back-off pulling image \"nope\"", None),
            of("web", "Unhealthy", "its readiness probe does not succeed", Some(42)),
            of("", "Unschedulable", "0/3 nodes are available.", Some(7200)),
        ]
        .iter()
        .map(|pod| format!("{pod}\n  {}\n", pod.remedy()))
        .collect();
        expect![[r#"
            container web: CrashLoopBackOff for 5m (it last ended with exit status 1)
              find out why container web of Pod shop/web-1 ends: `kubectl -n shop logs web-1 -c web --previous`
            container web: ImagePullBackOff (Back-off pulling image "nope")
              correct the image of container web of Pod shop/web-1, or the credentials for its registry
            container web: Unhealthy for 42s (its readiness probe does not succeed)
              check the probe of container web of Pod shop/web-1, and what it answered: `kubectl -n shop describe pod web-1`
            Unschedulable for 120m (0/3 nodes are available)
              check the Events of Pod shop/web-1: `kubectl -n shop describe pod web-1`
        "#]]
        .assert_eq(&lines.concat());
    }
}
