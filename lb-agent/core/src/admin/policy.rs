//! A policy with the Pods that it and its rules are about.

use serde::{Deserialize, Serialize};

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct View {
    /// `namespace/name`, or the name of one of the cluster.
    pub name: String,
    /// `NetworkPolicy` or `ClusterNetworkPolicy`.
    pub kind: String,
    /// Its tier.
    pub tier: String,
    /// Its priority in the tier.
    pub priority: u16,
    /// Whether it is only tried.
    pub shadow: bool,
    /// `metadata.generation`.
    pub generation: i64,
    /// The Pods it selects.
    pub subject: Selected,
    /// Its ingress rules; `None` = it says nothing of that direction.
    pub ingress: Option<Vec<Rule>>,
    /// Its egress rules.
    pub egress: Option<Vec<Rule>>,
    /// New flows that no rule allowed, so that isolating the Pod denied them; each policy that isolates it counts them.
    pub default_denied: Denied,
    /// What is wrong with it.
    pub issues: Vec<String>,
}

/// Flows denied in each direction since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Denied {
    /// Into Pods that it selects.
    pub ingress: u64,
    /// Out of them.
    pub egress: u64,
}

/// A selector and what it selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Selected {
    /// Path in `spec`, of a peer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What it says.
    pub wants: String,
    /// Pods (or nodes) that it selects, in the whole cluster.
    pub count: u32,
    /// The first of them.
    pub examples: Vec<String>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// Path in `spec`.
    pub path: String,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// Its name, may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its peers; `None` = everybody.
    pub peers: Option<Vec<Selected>>,
    /// Its ports; `None` = all.
    pub ports: Option<Vec<String>>,
    /// New flows that it decided since the agent's start.
    pub hits: u64,
    /// Path of the rule whose hits have those of this one, too; empty = it has its own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub counted_in: String,
}
