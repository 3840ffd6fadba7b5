//! Which Pods are watched: those of this node, until something needs all.
//!
//! Policies wait for the Pods that they need, and what is enforced stays until then. A request of lbctl waits a few seconds. Once
//! needed, all Pods are watched until the agent ends: a policy that comes and goes must not cause a list each time.
//!
//! A list that does not come must not leave a policy without effect. So the wait is limited, and then policies are
//! compiled with the Pods that are known: a peer that is not known is denied what only the labels of a Pod can allow.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::admin::PendingRequest;
use crate::agent::Agent;
use lb_core::admin::Request;
use lb_core::cluster::{Name, PodScope};
use lb_core::issue::{Issue, ObjectRef};
use lb_core::model::policy::needs_all_pods;

/// How long policies wait for Pods.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// After the last Pod that was listed.
    silence: Duration,
    /// In any case.
    total: Duration,
}

/// If what is enforced is known: only policies that need more than before have no effect meanwhile.
const PATIENCE: Patience =
    Patience { silence: Duration::from_secs(10), total: Duration::from_secs(60) };
/// After a restart. What the earlier run left may allow flows by the labels of Pods of other nodes, which would be denied.
const PATIENCE_AFTER_RESTART: Patience =
    Patience { silence: Duration::from_secs(60), total: Duration::from_secs(300) };

/// How long a request of lbctl waits for Pods. Then it is answered from what is known.
const PATIENCE_OF_REQUESTS: Duration = Duration::from_secs(3);

/// What is wanted of the source, and who waits for it.
pub(super) struct PodWatch {
    wanted: watch::Sender<PodScope>,
    /// With the time until which they wait, in order.
    requests: Vec<(Instant, PendingRequest)>,
    policies: Option<PolicyWait>,
}

/// Policies wait, or have waited for too long.
#[derive(Debug)]
struct PolicyWait {
    since: Instant,
    /// When the last Pod of another node was told.
    last: Instant,
    patience: Patience,
    is_over: bool,
}

impl PolicyWait {
    fn begin(now: Instant, patience: Patience) -> Self {
        Self { since: now, last: now, patience, is_over: false }
    }

    fn deadline(&self) -> Instant {
        (self.last + self.patience.silence).min(self.since + self.patience.total)
    }
}

impl PodWatch {
    /// At first, the Pods of this node are enough.
    pub(super) fn new() -> (Self, watch::Receiver<PodScope>) {
        let (wanted, scope) = watch::channel(PodScope::Own);
        (Self { wanted, requests: Vec::new(), policies: None }, scope)
    }

    pub(super) fn want_all(&self, why: &str) {
        let changed = self.wanted.send_if_modified(|scope| {
            let changed = *scope != PodScope::All;
            *scope = PodScope::All;
            changed
        });
        if changed {
            info!(why, "watching the Pods of all nodes");
        }
    }

    /// Until when policies wait for Pods, if they do.
    pub(super) fn holds_policies_until(&self) -> Option<Instant> {
        self.policies.as_ref().filter(|wait| !wait.is_over).map(PolicyWait::deadline)
    }

    /// Until when the first request waits for Pods, if one does.
    pub(super) fn holds_requests_until(&self) -> Option<Instant> {
        self.requests.first().map(|(until, _)| *until)
    }

    /// A Pod of another node was told: the list makes progress.
    pub(super) fn heard_of_pod(&mut self, at: Instant) {
        if let Some(wait) = &mut self.policies {
            wait.last = wait.last.max(at);
        }
    }

    /// Whether policies are enforced without the Pods that they need.
    pub(super) fn lacks_pods(&self) -> bool {
        self.policies.as_ref().is_some_and(|wait| wait.is_over)
    }

    /// That they are.
    pub(super) fn issue(&self, node: &str) -> Option<Issue> {
        self.lacks_pods().then(|| {
            let node = ObjectRef::new("Node", &Name::new("", node));
            let message = "the list of the Pods of all nodes is not available: policies are enforced \
                           without the Pods of other nodes, and do not allow flows by their labels; the agent's log says \
                           why the watch of Pods fails";
            Issue::new(node, "", message)
        })
    }
}

impl Agent {
    /// Whether policies can be compiled with the Pods that are known. If not, they will be when all are.
    pub(super) fn has_pods_for_policies(&mut self) -> bool {
        if self.cluster.knows_all_pods() || !needs_all_pods(&self.cluster.snapshot()) {
            self.scope.policies = None;
            return true;
        }
        self.scope.want_all("policies or addresses of Pods need them");
        let is_restart =
            self.policies.desired().is_none() && self.planner.actual().policy.epoch != 0;
        let patience = if is_restart { PATIENCE_AFTER_RESTART } else { PATIENCE };
        let now = Instant::now();
        let wait = self.scope.policies.get_or_insert_with(|| PolicyWait::begin(now, patience));
        if !wait.is_over && wait.deadline() <= now {
            wait.is_over = true;
            warn!(waited = ?wait.since.elapsed(), "enforcing policies without the Pods of other nodes, whose list is not available");
        }
        wait.is_over
    }

    /// Keeps a request that is about Pods of other nodes until those are known; returns any other.
    pub(super) fn defer(&mut self, pending: PendingRequest) -> Option<PendingRequest> {
        let is_about_pods = match pending.request {
            Request::Who(_)
            | Request::Explain(_)
            | Request::Differences
            | Request::Policy(_)
            | Request::WhatIf(_)
            | Request::Peers(_) => true,
            Request::Flows(_)
            | Request::KubeProxy
            | Request::Progress(_)
            | Request::Audit { .. } => false,
        };
        // Before the first lists are complete, the answer says so.
        if !is_about_pods || self.cluster.knows_all_pods() || !self.cluster.synced() {
            return Some(pending);
        }
        self.scope.want_all("lbctl asks about Pods");
        self.scope.requests.push((Instant::now() + PATIENCE_OF_REQUESTS, pending));
        None
    }

    /// Answers the requests that have waited for too long.
    pub(super) fn answer_overdue(&mut self, now: Instant) {
        let n = self.scope.requests.iter().take_while(|(until, _)| *until <= now).count();
        let overdue: Vec<_> = self.scope.requests.drain(..n).collect();
        for (_, pending) in overdue {
            self.respond(pending);
        }
    }

    /// A list is complete: what has waited for all Pods goes on, if it was that of all Pods.
    pub(super) fn pods_listed(&mut self) {
        if !self.cluster.knows_all_pods() {
            return;
        }
        for (_, pending) in std::mem::take(&mut self.scope.requests) {
            self.respond(pending);
        }
        if let Some(wait) = self.scope.policies.take() {
            info!(waited = ?wait.since.elapsed(), "the Pods of all nodes are known");
            self.policies.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{PATIENCE, PATIENCE_AFTER_RESTART, PolicyWait};

    #[test]
    fn a_list_is_awaited_while_it_makes_progress_but_not_without_limit() {
        let start = Instant::now();
        for patience in [PATIENCE, PATIENCE_AFTER_RESTART] {
            let mut wait = PolicyWait::begin(start, patience);
            assert_eq!(wait.deadline(), start + patience.silence);
            wait.last = start + Duration::from_secs(7);
            assert_eq!(wait.deadline(), wait.last + patience.silence);
            wait.last = start + patience.total;
            assert_eq!(wait.deadline(), start + patience.total);
        }
    }
}
