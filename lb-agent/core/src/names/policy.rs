//! What the numbers in the policy maps are called.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyName<'a> {
    /// Namespace; empty of a `ClusterNetworkPolicy`.
    #[serde(rename = "ns", skip_serializing_if = "str::is_empty")]
    pub namespace: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// `Admin`, `NetworkPolicy` or `Baseline`.
    pub tier: Cow<'a, str>,
    /// Priority within the tier.
    #[serde(rename = "prio", skip_serializing_if = "is_zero_u16")]
    pub priority: u16,
    /// `metadata.generation` of what the tables say.
    #[serde(rename = "gen")]
    pub generation: i64,
    /// Whether it is only tried.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// Pods of this node that it selects.
    pub subjects: u32,
    /// Its rules, of both directions.
    pub rules: u32,
    /// New flows that it decided.
    #[serde(rename = "h", skip_serializing_if = "is_zero_u64")]
    pub hits: u64,
    /// When the last of them was counted, in seconds since 1970; 0 = never, or before the agent's start.
    #[serde(rename = "hl", skip_serializing_if = "is_zero_u64")]
    pub last_hit: u64,
    /// `metadata.creationTimestamp`, 0 = not known.
    #[serde(rename = "c", skip_serializing_if = "is_zero_u64")]
    pub created: u64,
}

/// A group of rules: what is enforced in one direction on some Pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupName<'a> {
    /// Index of its first element in the map `groups`, which Pods and events have.
    pub id: u32,
    /// The policies in it.
    pub policies: Vec<PolicyRef<'a>>,
    pub rules: Vec<RuleName>,
    /// Of rules that stand for others, too: their numbers, and how many others.
    #[serde(rename = "others", skip_serializing_if = "Vec::is_empty")]
    pub alike: Vec<(u32, u32)>,
    /// The `NetworkPolicy` objects that isolate: positions in `policies`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub isolating: Vec<u32>,
    /// Whether there is no room for what it should say, so that it denies everything.
    #[serde(rename = "full", skip_serializing_if = "std::ops::Not::not")]
    pub no_room: bool,
}

/// A policy by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyRef<'a> {
    /// Namespace; empty of a `ClusterNetworkPolicy`.
    #[serde(rename = "ns", skip_serializing_if = "str::is_empty")]
    pub namespace: Cow<'a, str>,
    pub name: Cow<'a, str>,
    /// `Admin`, `NetworkPolicy` or `Baseline`.
    pub tier: Cow<'a, str>,
}

/// A bit of a group: where its rule is written. In the file it is a list of four numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u8, u32)", into = "(u32, u32, u8, u32)")]
pub struct RuleName {
    /// Its number, as in [`lb_common::policy::Judgement::rule`].
    pub number: u32,
    /// The policy: position in [`GroupName::policies`].
    pub policy: u32,
    /// Whether it is in `spec.ingress`; else in `spec.egress`.
    pub ingress: bool,
    /// At which index there. A rule with named ports may have several bits.
    pub index: u32,
}

impl From<(u32, u32, u8, u32)> for RuleName {
    fn from((number, policy, ingress, index): (u32, u32, u8, u32)) -> Self {
        Self { number, policy, ingress: ingress != 0, index }
    }
}

impl From<RuleName> for (u32, u32, u8, u32) {
    fn from(rule: RuleName) -> Self {
        (rule.number, rule.policy, u8::from(rule.ingress), rule.index)
    }
}

/// An identity: some of the Pods that have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdentName<'a> {
    pub id: u32,
    /// `namespace/name` of Pods, a few.
    pub pods: Vec<Cow<'a, str>>,
}

fn is_zero_u64(value: &u64) -> bool {
    *value == 0
}

fn is_zero_u16(value: &u16) -> bool {
    *value == 0
}
