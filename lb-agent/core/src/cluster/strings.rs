//! Strings that repeat in many records (namespaces, nodes, zones, port names), each held once.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;

use super::{Labels, Policy};

/// Fewer strings than this are never searched for unused ones.
const PRUNE_AT: usize = 1024;

/// The set of shared strings.
#[derive(Debug)]
pub(super) struct Strings {
    set: HashSet<Arc<str>>,
    /// Size at which unused strings are removed; twice the size after the last time.
    prune_at: usize,
}

impl Default for Strings {
    fn default() -> Self {
        Self { set: HashSet::new(), prune_at: PRUNE_AT }
    }
}

impl Strings {
    /// Replaces a string by the shared one of the same content.
    pub(super) fn share(&mut self, string: &mut Arc<str>) {
        if let Some(shared) = self.set.get(&**string) {
            *string = Arc::clone(shared);
            return;
        }
        if self.set.len() >= self.prune_at {
            self.set.retain(|shared| Arc::strong_count(shared) > 1);
            self.prune_at = (self.set.len() * 2).max(PRUNE_AT);
        }
        self.set.insert(Arc::clone(string));
    }

    /// The same for an optional string.
    pub(super) fn share_some(&mut self, string: &mut Option<Arc<str>>) {
        if let Some(string) = string {
            self.share(string);
        }
    }

    /// The same for all keys and values.
    pub(super) fn share_labels(&mut self, labels: &mut Labels) {
        labels.strings_mut().for_each(|string| self.share(string));
    }

    /// The same for what selectors and rules are made of.
    pub(super) fn share_policy(&mut self, policy: &mut Policy) {
        policy.for_each_string(&mut |string| self.share(string));
    }
}

#[cfg(test)]
mod tests {
    use super::{PRUNE_AT, Strings};
    use std::sync::Arc;

    #[test]
    fn equal_strings_are_held_once_and_unused_ones_go() {
        let mut strings = Strings::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("zone".into(), "zone".into());
        strings.share(&mut a);
        strings.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for i in 0..10 * PRUNE_AT {
            strings.share(&mut format!("node-{i}").into());
        }
        assert!(strings.set.len() <= 2 * PRUNE_AT);
        assert!(strings.set.contains("zone"));
    }
}
