//! NetworkPolicy and ClusterNetworkPolicy → record.
//!
//! Their specifications are read by hand (`value`): one field of the wrong type, or one that is not known here because
//! the API server is newer, costs what stands around it and not the object. What cannot be read is an issue and gets
//! its *safe reading*, which never lets pass what the policy might have meant to stop:
//!
//! | unreadable | reading |
//! |---|---|
//! | a peer, a port, a rule of a NetworkPolicy | it matches nothing; the others hold |
//! | an `except`, also one outside of its block | the block matches nothing: what was to be left out is not known |
//! | `podSelector` of a NetworkPolicy | all Pods of the namespace are isolated, and its rules allow nothing |
//! | an entry of `policyTypes` | both directions are isolated |
//! | a peer or a protocol of an Accept rule | the whole rule matches nothing (ClusterNetworkPolicy v1alpha2) |
//! | a peer or a protocol of a Deny or Pass rule, an action | the rule denies everything (ClusterNetworkPolicy v1alpha2) |
//! | subject, tier or priority of a ClusterNetworkPolicy | it is about all Pods, in tier Admin, first of all; its Accept rules match nothing, Pass rules deny |
//! | a priority beyond 0 to 1000 | the nearest of these |
//! | a field of `spec` itself that is not known | ignored |
//! | annotation `lb-agent.io/mode` | enforced |
//!
//! Each rule keeps its index, also if other rules are ignored.
#![forbid(unsafe_code)]

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::field::{self, Findings};
use lb_core::annotation::Annotation;
use lb_core::cluster::{Action, Rule};

pub(super) use self::cluster::ClusterNetworkPolicy;
pub(super) use self::network::NetworkPolicy;

mod cluster;
mod network;
mod selector;
#[cfg(test)]
mod tests;
mod value;

/// What the metadata say of a policy.
#[derive(Clone, Copy, Debug)]
struct Head {
    shadow: bool,
    generation: i64,
    created: i64,
}

fn head(meta: &ObjectMeta, findings: &mut Findings) -> Head {
    let mode = field::value(meta.annotations.as_ref(), Annotation::Mode.key()).map(str::trim);
    let shadow = match mode.unwrap_or("enforce") {
        "shadow" => true,
        "enforce" => false,
        other => {
            let message = format!("`{other}` is not enforce or shadow: the policy is enforced");
            findings.add(Annotation::Mode.field(), message);
            false
        }
    };
    let created = meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    Head { shadow, generation: meta.generation.unwrap_or_default(), created }
}

/// The safe reading of a rule that accepts.
fn accept_nothing(name: Arc<str>) -> Rule {
    Rule { name, action: Action::Accept, peers: Some(Box::default()), ports: Some(Box::default()) }
}

/// The safe reading of a rule that denies or passes on.
fn deny_everything(name: Arc<str>) -> Rule {
    Rule { name, action: Action::Deny, peers: None, ports: None }
}
