//! Strings that repeat in many records (namespaces, nodes, zones, port names), each held once.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use super::endpoints::EndpointPlace;
use super::{Labels, Policy};

/// Fewer strings than this are never searched for unused ones.
const PRUNE_AT: usize = 1024;

/// The set of shared strings.
#[derive(Debug)]
pub(super) struct Strings {
    set: HashSet<Arc<str>>,
    /// Nodes with their zones, made of strings in the set.
    places: HashSet<Arc<EndpointPlace>>,
    /// Size at which unused strings are removed; twice the size after the last time.
    prune_at: usize,
    prune_places_at: usize,
}

impl Default for Strings {
    fn default() -> Self {
        Self {
            set: HashSet::new(),
            places: HashSet::new(),
            prune_at: PRUNE_AT,
            prune_places_at: PRUNE_AT,
        }
    }
}

impl Strings {
    /// Replaces a string by the shared one of the same content.
    pub(super) fn share(&mut self, string: &mut Arc<str>) {
        if let Some(shared) = self.set.get(&**string) {
            *string = Arc::clone(shared);
            return;
        }
        prune(&mut self.set, &mut self.prune_at);
        self.set.insert(Arc::clone(string));
    }

    /// Replaces a place by the shared one of the same content.
    pub(super) fn share_place(&mut self, place: &mut Arc<EndpointPlace>) {
        if let Some(shared) = self.places.get(place) {
            *place = Arc::clone(shared);
            return;
        }
        prune(&mut self.places, &mut self.prune_places_at);
        let EndpointPlace { node, zone } = Arc::make_mut(place);
        self.share_some(node);
        self.share_some(zone);
        self.places.insert(Arc::clone(place));
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

/// Removes what nothing else refers to, if the set has grown.
fn prune<T: Eq + Hash + ?Sized>(set: &mut HashSet<Arc<T>>, prune_at: &mut usize) {
    if set.len() >= *prune_at {
        set.retain(|shared| Arc::strong_count(shared) > 1);
        *prune_at = (set.len() * 2).max(PRUNE_AT);
    }
}

#[cfg(test)]
mod tests {
    use super::{EndpointPlace, PRUNE_AT, Strings};
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

    #[test]
    fn equal_places_are_held_once_and_unused_ones_go() {
        let mut strings = Strings::default();
        let place = |i: usize| {
            let node = Some(format!("node-{i}").into());
            Arc::new(EndpointPlace { node, zone: Some("zone".into()) })
        };
        let (mut a, mut b) = (place(1), place(1));
        strings.share_place(&mut a);
        strings.share_place(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for i in 0..10 * PRUNE_AT {
            strings.share_place(&mut place(i + 2));
        }
        assert!(strings.places.len() <= 2 * PRUNE_AT && strings.places.contains(&a));
        assert!(strings.set.len() <= 4 * PRUNE_AT, "nor do their names stay");
    }
}
