//! A policy with the Pods that it and its rules select, as records.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Remark;
use crate::cluster::{Action, Name, Peer, PodSelector, PortMatch, Tier};

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// Its name; without a namespace for a ClusterNetworkPolicy.
    pub name: Name,
    /// Its tier, which also tells its kind.
    pub tier: Tier,
    /// Its priority in the tier.
    pub priority: u16,
    /// Whether it is evaluated without being enforced.
    pub shadow: bool,
    /// `metadata.generation`.
    pub generation: i64,
    /// The Pods that it selects.
    pub subject: (PodSelector, Selected),
    /// Its ingress rules; `None` = it does not apply to that direction.
    pub ingress: Option<Vec<RuleView>>,
    /// Its egress rules, likewise.
    pub egress: Option<Vec<RuleView>>,
    /// New flows that no rule allowed, so that isolating the Pod denied them; each policy that isolates it counts them.
    pub default_denied: DeniedFlows,
    /// What is wrong with it.
    pub issues: Vec<Remark>,
}

/// Flows denied in each direction since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedFlows {
    /// Into Pods that it selects.
    pub ingress: u64,
    /// Out of them.
    pub egress: u64,
}

/// What a selector selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selected {
    /// Pods (or nodes) in the whole cluster.
    pub count: u32,
    /// The first of them.
    pub examples: Vec<Name>,
}

/// A rule, at the same index as in the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// What it does.
    pub action: Action,
    /// Its name, may be empty.
    pub name: Arc<str>,
    /// Its peers; `None` = all.
    pub peers: Option<Vec<(Peer, Selected)>>,
    /// Its ports; `None` = all.
    pub ports: Option<Vec<PortMatch>>,
    /// New flows that it decided since the agent's start.
    pub hits: u64,
    /// Index of the rule whose hits include those of this one; `None` = it has its own.
    pub counted_in: Option<u32>,
}
