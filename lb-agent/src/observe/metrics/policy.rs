//! Metrics about policies: how long they take to be enforced, and what they come to.
#![forbid(unsafe_code)]

use std::sync::atomic::AtomicU64;

use lb_common::policy::tier;
use lb_common::verdict::Outcome;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{MetricLabels, STATES, add, family, fine_histogram, wide_histogram};

/// Label sets of policies; what else there is counts as `_other`.
pub(crate) const SERIES_BY_POLICY: usize = 200;

/// Namespace, policy, direction and outcome of a verdict.
pub(crate) type ByPolicy = [(&'static str, String); 4];

/// Ours about policies.
#[derive(Clone, Debug)]
pub(crate) struct OfPolicies {
    /// One compilation.
    pub compile: Histogram,
    pub last_compile: Gauge<f64, AtomicU64>,
    /// From the arrival of an event to the maps.
    pub enforcement: Histogram,
    /// New flows that policies evaluated.
    pub verdicts: Family<MetricLabels<3>, Counter>,
    /// The same by policy: namespace, policy, direction, outcome.
    pub by_policy: Family<ByPolicy, Counter>,
    /// Policies by state.
    pub policies: Family<MetricLabels<1>, Gauge>,
    /// Whether they are enforced without the Pods of other nodes, though they need those.
    pub lacks_pods: Gauge,
    /// Groups in the tables.
    pub groups: Gauge,
    /// Identities in the tables.
    pub identities: Gauge,
    /// Groups that deny everything since the tables could not take them.
    pub overflowing: Gauge,
    /// Number of the state of the tables.
    pub epoch: Gauge,
}

impl OfPolicies {
    pub(super) fn register(root: &mut Registry) -> Self {
        let registry = root.sub_registry_with_prefix("lb");
        let metrics = Self {
            compile: add(
                registry,
                "policy_compile_seconds",
                "Time to compute the policy maps",
                wide_histogram(),
            ),
            last_compile: add(
                registry,
                "policy_last_compile_seconds",
                "Time of the last computation of the policy maps",
                Gauge::default(),
            ),
            enforcement: add(
                registry,
                "policy_enforcement_seconds",
                "Time from a watch event that affects policies until the maps are written",
                fine_histogram(),
            ),
            verdicts: add(registry, "verdicts", "New flows that policies evaluated", family()),
            by_policy: add(
                registry,
                "policy_verdicts",
                "New flows that a policy decided, by a rule or by isolating the Pod; policy _other: all policies beyond the series limit",
                Family::default(),
            ),
            policies: add(registry, "policies", "Policies", family()),
            lacks_pods: add(
                registry,
                "policy_pods_missing",
                "1 while policies are enforced without the Pods of other nodes, because their list is not available",
                Gauge::default(),
            ),
            groups: add(
                registry,
                "policy_groups",
                "Rule sets that apply to Pods of this node",
                Gauge::default(),
            ),
            identities: add(
                registry,
                "policy_identities",
                "Security identities: classes of addresses that rules distinguish",
                Gauge::default(),
            ),
            overflowing: add(
                registry,
                "policy_groups_overflowing",
                "Rule sets that deny everything because they do not fit in the maps",
                Gauge::default(),
            ),
            epoch: add(
                registry,
                "policy_epoch",
                "Number of the last change to the enforced policies, 0 = no policy has ever existed",
                Gauge::default(),
            ),
        };
        for state in STATES {
            drop(metrics.policies.get_or_create(&[("state", state)]));
        }
        metrics
    }
}

/// Direction, tier and outcome of a verdict. Tier `none`: no rule decided.
pub(super) fn verdict_labels(outcome: Outcome, tier: u8, ingress: bool) -> MetricLabels<3> {
    let tier = match tier {
        tier::ADMIN => "admin",
        tier::NETWORK_POLICY => "network_policy",
        tier::BASELINE => "baseline",
        _ => "none",
    };
    let direction = if ingress { "ingress" } else { "egress" };
    [("direction", direction), ("tier", tier), ("outcome", outcome.name())]
}
