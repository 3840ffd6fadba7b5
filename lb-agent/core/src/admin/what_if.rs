//! What would happen to flows if policies were changed: the question with the flows that were seen, and the answer.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Remark;
use super::context::RecordJudgement;
use crate::cluster::{Name, Policy};
use crate::model::policy::PolicyDirection;

/// Flows in one request, at most.
pub const FLOWS: usize = 20_000;

/// The question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhatIf {
    /// What is changed.
    pub change: PolicyChange,
    /// Whose verdicts are asked for.
    pub flows: Vec<SeenFlow>,
}

/// A change of policies that is not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyChange {
    /// These policies are added, or replace those of the same name; those with these names are gone.
    Apply {
        /// Name and policy; without a namespace for a ClusterNetworkPolicy.
        put: Vec<(Name, Policy)>,
        /// Names, likewise.
        delete: Vec<Name>,
    },
    /// The policies in shadow mode are enforced.
    EnforceShadow,
}

/// Flows with the same ends, port and protocol: policies judge all of them alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeenFlow {
    /// Who opened it.
    pub src: IpAddr,
    /// Where it goes; behind a Service the backend.
    pub dst: IpAddr,
    /// IP protocol number.
    #[serde(rename = "proto")]
    pub protocol: u8,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
    /// Whether this node's own processes opened it: no policy is about it.
    #[serde(rename = "host", default, skip_serializing_if = "std::ops::Not::not")]
    pub from_host: bool,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhatIfAnswer {
    /// Whether the records are complete. Otherwise labels of Pods of other nodes are missing.
    pub complete: bool,
    /// The verdicts that would change.
    pub changes: Vec<ChangedVerdict>,
    /// Indices of flows that policies of a Pod of this node deny now, and would deny then.
    pub still_denied: Vec<u32>,
    /// Names in the change that are to be gone and are not there.
    pub missing: Vec<Name>,
    /// What of the changed policies could not be compiled, or has no room.
    pub issues: Vec<Remark>,
}

/// A verdict at one Pod of this node that would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedVerdict {
    /// Index of the flow in the question.
    pub flow: u32,
    /// Whether the flow enters the Pod or leaves it.
    pub direction: PolicyDirection,
    /// The Pod.
    pub subject: Name,
    /// Whether it would be denied; otherwise it would be allowed.
    pub denied: bool,
    /// What is said of it now.
    pub now: RecordJudgement,
    /// What would be.
    pub then: RecordJudgement,
}
