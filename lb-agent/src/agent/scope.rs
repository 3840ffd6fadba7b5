//! Which Pods are watched: those of this node, until something needs all.
//!
//! Policies wait for the Pods that they need, and what is enforced stays until then. A request of lbctl waits, too. Once
//! needed, all Pods are watched until the agent ends: a policy that comes and goes must not cause a list each time.
#![forbid(unsafe_code)]

use std::time::Instant;

use tokio::sync::watch;
use tracing::info;

use crate::admin::PendingRequest;
use crate::agent::Agent;
use lb_core::admin::Request;
use lb_core::cluster::PodScope;
use lb_core::model::policy::needs_all_pods;

/// What is wanted of the source, and who waits for it.
pub(super) struct PodWatch {
    wanted: watch::Sender<PodScope>,
    requests: Vec<PendingRequest>,
    /// Since when policies wait.
    policies: Option<Instant>,
}

impl PodWatch {
    /// At first, the Pods of this node are enough.
    pub(super) fn new() -> (Self, watch::Receiver<PodScope>) {
        let (wanted, scope) = watch::channel(PodScope::Own);
        (Self { wanted, requests: Vec::new(), policies: None }, scope)
    }

    fn want_all(&self, why: &str) {
        let changed = self.wanted.send_if_modified(|scope| {
            let changed = *scope != PodScope::All;
            *scope = PodScope::All;
            changed
        });
        if changed {
            info!(why, "watching the Pods of all nodes");
        }
    }

    /// Whether policies wait for Pods.
    pub(super) fn holds_policies(&self) -> bool {
        self.policies.is_some()
    }
}

impl Agent {
    /// Whether policies can be compiled with the Pods that are known. If not, they will be when all are.
    pub(super) fn has_pods_for_policies(&mut self) -> bool {
        if self.cluster.knows_all_pods() || !needs_all_pods(&self.cluster.snapshot()) {
            return true;
        }
        self.scope.want_all("policies or addresses of Pods need them");
        self.scope.policies.get_or_insert_with(Instant::now);
        false
    }

    /// Keeps a request that is about Pods of other nodes until those are known; returns any other.
    pub(super) fn defer(&mut self, pending: PendingRequest) -> Option<PendingRequest> {
        let is_about_pods = match pending.request {
            Request::Who(_) | Request::Explain(_) | Request::Differences | Request::Policy(_) => {
                true
            }
            Request::Flows(_) | Request::KubeProxy => false,
        };
        // Before the first lists are complete, the answer says so.
        if !is_about_pods || self.cluster.knows_all_pods() || !self.cluster.synced() {
            return Some(pending);
        }
        self.scope.want_all("lbctl asks about Pods");
        self.scope.requests.push(pending);
        None
    }

    /// A list is complete: what has waited for all Pods goes on, if it was that of all Pods.
    pub(super) fn pods_listed(&mut self) {
        if !self.cluster.knows_all_pods() {
            return;
        }
        for pending in std::mem::take(&mut self.scope.requests) {
            self.respond(pending);
        }
        if let Some(since) = self.scope.policies.take() {
            info!(waited = ?since.elapsed(), "the Pods of all nodes are known");
            self.policies.release();
        }
    }
}
