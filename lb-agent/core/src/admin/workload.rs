//! Which Pods belong to a Deployment, a StatefulSet, a DaemonSet or a Job, by their names: the records have no owners.
//!
//! Controllers name Pods after their owner: with a random suffix of five characters (k8s.io/apimachinery, `names.SimpleNameGenerator`),
//! behind the hash of the ReplicaSet for a Deployment, and with an ordinal for a StatefulSet.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The characters of hashes and suffixes: none that could spell a word or look like another (k8s.io/apimachinery, `rand.String`).
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of a suffix.
const SUFFIX: usize = 5;
/// Longest hash of a ReplicaSet, and the shortest that is taken for one in a Pod's name: a word may be shorter.
const HASH: usize = 10;
const HASH_LEAST: usize = 6;

/// What makes Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `batch/v1` Job.
    Job,
}

impl WorkloadKind {
    /// Reads the word for it, as kubectl does.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "deploy" | "deployment" | "deployments" => Self::Deployment,
            "sts" | "statefulset" | "statefulsets" => Self::StatefulSet,
            "ds" | "daemonset" | "daemonsets" => Self::DaemonSet,
            "job" | "jobs" => Self::Job,
            _ => return None,
        })
    }

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deployment => "deploy",
            Self::StatefulSet => "sts",
            Self::DaemonSet => "ds",
            Self::Job => "job",
        }
    }

    /// Whether a Pod of its namespace has the name of one of its Pods.
    pub fn has_pod(self, name: &str, pod: &str) -> bool {
        let Some(rest) = pod.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')) else {
            return false;
        };
        match self {
            Self::Deployment => rest
                .split_once('-')
                .is_some_and(|(hash, suffix)| is_random(hash, 1..=HASH) && is_suffix(suffix)),
            Self::StatefulSet => is_number(rest),
            Self::DaemonSet => is_suffix(rest),
            Self::Job => match rest.split_once('-') {
                Some((index, suffix)) => is_number(index) && is_suffix(suffix),
                None => is_suffix(rest),
            },
        }
    }
}

/// Name of what makes the Pod with this name, as far as the name shows it; the Pod's own if no controller made it.
pub fn of_pod(pod: &str) -> &str {
    let Some((rest, last)) = pod.rsplit_once('-') else { return pod };
    if is_number(last) {
        return rest;
    }
    if !is_suffix(last) {
        return pod;
    }
    match rest.rsplit_once('-') {
        Some((name, hash)) if is_random(hash, HASH_LEAST..=HASH) => name,
        Some(_) | None => rest,
    }
}

fn is_suffix(text: &str) -> bool {
    is_random(text, SUFFIX..=SUFFIX)
}

fn is_random(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::{WorkloadKind, of_pod};

    #[test]
    fn names_of_pods_show_what_makes_them() {
        for (pod, want) in [
            ("web-7d4b9c6f5d-x2x7k", "web"),
            ("web-api-7d4b9c6f5d-x2x7k", "web-api"),
            ("db-0", "db"),
            ("agent-x2x7k", "agent"),
            ("web-db-x2x7k", "web-db"),
            ("web", "web"),
            ("web-api", "web-api"),
        ] {
            assert_eq!(of_pod(pod), want);
        }
    }

    #[test]
    fn pods_are_named_after_what_makes_them() {
        for (kind, name, pod, want) in [
            ("deploy", "web", "web-7d4b9c6f5d-x2x7k", true),
            ("deploy", "web", "web-api-7d4b9c6f5d-x2x7k", false),
            ("deploy", "web-api", "web-api-7d4b9c6f5d-x2x7k", true),
            ("deploy", "web", "web-x2x7k", false),
            ("sts", "db", "db-0", true),
            ("sts", "db", "db-x2x7k", false),
            ("ds", "agent", "agent-x2x7k", true),
            ("ds", "agent", "agent-0", false),
            ("job", "load", "load-x2x7k", true),
            ("job", "load", "load-3-x2x7k", true),
            ("job", "load", "load", false),
        ] {
            let kind = WorkloadKind::parse(kind).unwrap();
            assert_eq!(kind.has_pod(name, pod), want, "{}/{name} {pod}", kind.name());
        }
        assert_eq!(WorkloadKind::parse("svc"), None);
    }
}
