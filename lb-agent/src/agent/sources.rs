//! What Pods may send from beside their own addresses: annotations → what the map `pod_sources` should say. The planner
//! writes it. Another's address is never a source, whatever an annotation says: the programs ask that first.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use lb_core::annotation::Annotation;
use lb_core::cluster::{Name, Pod, Prefix};
use lb_core::issue::{Issue, ObjectRef};
use lb_core::plan::SourceKey;

/// What annotations may admit, and what is wrong with them.
#[derive(Debug)]
pub(super) struct Sources {
    /// `--allowed-source-cidrs`.
    allowed: Box<[Prefix]>,
    issues: Vec<Issue>,
}

impl Sources {
    pub(super) fn new(allowed: Box<[Prefix]>) -> Self {
        Self { allowed, issues: Vec::new() }
    }

    /// Returns what the annotations of these Pods admit, by their devices.
    pub(super) fn want(&mut self, pods: &[(u32, &Name, &Pod)]) -> BTreeMap<SourceKey, Name> {
        self.issues.clear();
        let mut wanted = BTreeMap::new();
        for (ifindex, name, pod) in pods {
            for range in pod.sources.iter().flatten() {
                if is_allowed(&self.allowed, range) {
                    let key = SourceKey { ifindex: *ifindex, range: *range };
                    wanted.insert(key, (*name).clone());
                } else {
                    let message = format!("{range} is not within --allowed-source-cidrs: ignored");
                    let field = Annotation::AllowedSources.field();
                    self.issues.push(Issue::new(ObjectRef::new("Pod", name), field, message));
                }
            }
        }
        wanted
    }

    /// What is wrong with annotations.
    pub(super) fn issues(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }
}

/// Whether a range is within one that the operator allows: who may annotate Pods is not who says which addresses they
/// have.
fn is_allowed(allowed: &[Prefix], range: &Prefix) -> bool {
    allowed.iter().any(|allowed| allowed.covers(range))
}

#[cfg(test)]
mod tests {
    use super::is_allowed;
    use lb_core::cluster::Prefix;

    #[test]
    fn what_the_operator_does_not_allow_is_not_admitted() {
        let range = |text: &str| text.parse::<Prefix>().unwrap();
        let allowed = [range("10.0.0.0/8"), range("fd00:8::/32")];
        for (text, want) in [
            ("10.244.0.0/16", true),
            ("10.0.0.0/8", true),
            ("fd00:8:7::/48", true),
            ("0.0.0.0/0", false),
            ("192.0.2.1/32", false),
            ("::/0", false),
        ] {
            assert_eq!(is_allowed(&allowed, &range(text)), want, "{text}");
            assert!(!is_allowed(&[], &range(text)), "{text}: nothing is, by default");
        }
    }
}
