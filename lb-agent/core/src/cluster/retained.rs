//! NetworkPolicies that are gone from the API server and yet hold: those of a namespace that is being deleted.
//!
//! What is in such a namespace is deleted in no order, so its policies may be gone while its Pods still run and are
//! still attacked (CVE-2024-7598). They hold until the namespace is gone. Policies and namespaces have different watches,
//! so the deletion of a policy may be reported before that of its namespace. Recently deleted policies are remembered, and
//! are enforced again in that case. A policy that goes while the namespaces are being listed waits for
//! what that list says.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::table::Objects;
use super::{Name, Policy};

/// Policies that went a moment ago and are remembered, at most.
const MOST: usize = 256;

/// The policies that are gone.
#[derive(Debug, Default)]
pub(super) struct Retained {
    /// In force.
    held: Objects<Policy>,
    /// Not in force, but gone only a moment ago, the last at the end; whether they were there at the last
    /// [`Self::pass`] already.
    recent: VecDeque<(bool, Name, Arc<Policy>)>,
}

impl Retained {
    /// Those in force.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &Policy)> {
        self.held.iter().map(|(name, policy)| (name, &**policy))
    }

    /// The same as they are now.
    pub(super) fn snapshot(&self) -> Objects<Policy> {
        Arc::clone(&self.held)
    }

    /// This one is gone, and holds.
    pub(super) fn hold(&mut self, name: Name, policy: Arc<Policy>) {
        Arc::make_mut(&mut self.held).insert(name, policy);
    }

    /// This one is gone, and does not hold.
    pub(super) fn note(&mut self, name: Name, policy: Arc<Policy>) {
        if self.recent.len() == MOST {
            self.recent.pop_front();
        }
        self.recent.push_back((false, name, policy));
    }

    /// This one is there again.
    pub(super) fn forget(&mut self, name: &Name) {
        if self.held.contains_key(name) {
            Arc::make_mut(&mut self.held).remove(name);
        }
        self.recent.retain(|(_, other, _)| other != name);
    }

    /// The namespace is going: returns whether some come into force by that.
    pub(super) fn going(&mut self, namespace: &str) -> bool {
        let before = self.held.len();
        for (old, name, policy) in std::mem::take(&mut self.recent) {
            if *name.namespace == *namespace {
                self.hold(name, policy);
            } else {
                self.recent.push_back((old, name, policy));
            }
        }
        self.held.len() > before
    }

    /// The namespace is there and stays: returns whether some cease to hold by that.
    pub(super) fn stays(&mut self, namespace: &str) -> bool {
        let before = self.held.len();
        let is_of = |name: &Name| *name.namespace == *namespace;
        let of: Vec<Name> = self.held.keys().filter(|name| is_of(name)).cloned().collect();
        for name in of {
            if let Some(policy) = Arc::make_mut(&mut self.held).remove(&name) {
                self.note(name, policy);
            }
        }
        self.held.len() < before
    }

    /// Only these namespaces are left: returns whether some cease to hold by that.
    pub(super) fn retain(&mut self, mut is_there: impl FnMut(&str) -> bool) -> bool {
        let before = self.held.len();
        if self.held.keys().any(|name| !is_there(&name.namespace)) {
            Arc::make_mut(&mut self.held).retain(|name, _| is_there(&name.namespace));
        }
        self.recent.retain(|(_, name, _)| is_there(&name.namespace));
        self.held.len() < before
    }

    /// A while has passed: those that went before the one before are not remembered any longer.
    pub(super) fn pass(&mut self) {
        self.recent.retain(|(old, ..)| !old);
        self.recent.iter_mut().for_each(|(old, ..)| *old = true);
    }
}
