//! The kinds that are watched: the only list of them in this crate.
#![forbid(unsafe_code)]

use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::pod::PodObject;
use super::policy::{ClusterNetworkPolicy, NetworkPolicy};
use super::service::ServiceObject;
use super::service_cidr::ServiceCidrObject;
use super::watched::Watched;
use lb_core::cluster::Kind;

/// Does something for one kind.
pub(super) trait Visitor {
    /// What it returns for each.
    type Output;

    /// Does it for this one.
    fn visit<K: Watched>(&self) -> Self::Output;
}

/// Does something for each kind, in the order of [`Kind::ALL`].
pub(super) fn visit<V: Visitor>(visitor: &V) -> [V::Output; Kind::ALL.len()] {
    [
        visitor.visit::<ServiceObject>(),
        visitor.visit::<EndpointSlice>(),
        visitor.visit::<PodObject>(),
        visitor.visit::<Namespace>(),
        visitor.visit::<Node>(),
        visitor.visit::<ServiceCidrObject>(),
        visitor.visit::<NetworkPolicy>(),
        visitor.visit::<ClusterNetworkPolicy>(),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::{Kind, Visitor, Watched, visit};

    /// Kind, group and plural.
    struct Names;

    impl Visitor for Names {
        type Output = (Kind, String, String, String);

        fn visit<K: Watched>(&self) -> Self::Output {
            let [kind, group, plural] = [K::kind(&()), K::group(&()), K::plural(&())];
            (K::KIND, kind.into(), group.into(), plural.into())
        }
    }

    #[test]
    fn each_kind_is_listed_once_under_its_own_name() {
        let kinds = visit(&Names);
        assert_eq!(kinds.each_ref().map(|(kind, ..)| *kind), Kind::ALL);
        for (kind, name, ..) in &kinds {
            assert_eq!(kind.name(), name);
        }
    }

    #[test]
    fn the_cluster_role_allows_to_watch_each_kind() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/rbac.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let documents =
            text.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
        let roles = documents.filter(|document| document["kind"] == "ClusterRole");
        let rules: Vec<Value> =
            roles.flat_map(|role| role["rules"].as_array().unwrap().clone()).collect();
        let has = |rule: &Value, field: &str, wanted: &str| {
            rule[field].as_array().unwrap().iter().any(|value| value == wanted)
        };
        for (kind, _, group, plural) in visit(&Names) {
            for verb in ["get", "list", "watch"] {
                let allowed = rules.iter().any(|rule| {
                    has(rule, "apiGroups", &group)
                        && has(rule, "resources", &plural)
                        && has(rule, "verbs", verb)
                });
                assert!(allowed, "{kind:?}: {verb} {plural} of group `{group}`");
            }
        }
        // Nothing beyond: what is not watched is not read.
        let watched: BTreeSet<String> =
            visit(&Names).into_iter().map(|(.., plural)| plural).collect();
        for rule in rules.iter().filter(|rule| has(rule, "verbs", "list")) {
            for resource in rule["resources"].as_array().unwrap() {
                assert!(watched.contains(resource.as_str().unwrap()), "{resource}");
            }
        }
    }
}
