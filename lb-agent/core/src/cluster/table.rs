//! All objects of one kind, and which of them a list that is under way has not repeated yet.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Name;

/// Objects by name: shared with those who look at them as they were at one time, and copied (the names, not what they
/// name) when they change before those are done.
pub(super) type Objects<T> = Arc<BTreeMap<Name, Arc<T>>>;

/// What the tables of all kinds have in common: the list that fills them.
pub(super) trait Listing {
    /// A list begins: everything known waits to be repeated.
    fn restarted(&mut self);

    /// The list is complete: returns the names that it did not repeat, for the caller to remove.
    fn synced(&mut self) -> BTreeSet<Name>;

    /// Whether a list has ever been complete.
    fn is_synced(&self) -> bool;

    /// Packs a tree that has grown in order, as one that is made of a list does, and is little more than half full.
    fn pack(&mut self);
}

/// The objects of one kind by name.
#[derive(Debug)]
pub(super) struct ObjectTable<T> {
    objects: Objects<T>,
    /// While a list is under way: names that it has not repeated.
    stale: BTreeSet<Name>,
    /// Whether a list is under way.
    listing: bool,
    synced: bool,
}

impl<T> Default for ObjectTable<T> {
    fn default() -> Self {
        Self { objects: Objects::default(), stale: BTreeSet::new(), listing: true, synced: false }
    }
}

impl<T> ObjectTable<T> {
    /// An object is as it was: only the list's progress matters.
    pub(super) fn repeated(&mut self, name: &Name) {
        self.stale.remove(name);
    }

    /// All objects as they are now.
    pub(super) fn snapshot(&self) -> Objects<T> {
        Arc::clone(&self.objects)
    }

    /// Adds or replaces; returns what was there.
    pub(super) fn insert(&mut self, name: Name, object: T) -> Option<Arc<T>> {
        self.stale.remove(&name);
        Arc::make_mut(&mut self.objects).insert(name, Arc::new(object))
    }

    /// Removes; returns what was there.
    pub(super) fn remove(&mut self, name: &Name) -> Option<Arc<T>> {
        self.stale.remove(name);
        if !self.objects.contains_key(name) {
            return None;
        }
        Arc::make_mut(&mut self.objects).remove(name)
    }

    pub(super) fn get(&self, name: &Name) -> Option<&T> {
        self.objects.get(name).map(|object| &**object)
    }

    /// The key itself, so that other records can share its strings.
    pub(super) fn key(&self, name: &Name) -> Option<&Name> {
        self.objects.get_key_value(name).map(|(key, _)| key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Name, &T)> {
        self.objects.iter().map(|(name, object)| (name, &**object))
    }

    /// Returns whether a list is in progress that may still contain this object.
    pub(super) fn waits_for(&self, name: &Name) -> bool {
        self.listing && (self.stale.contains(name) || !self.objects.contains_key(name))
    }
}

impl<T> Listing for ObjectTable<T> {
    fn restarted(&mut self) {
        self.stale = self.objects.keys().cloned().collect();
        self.listing = true;
    }

    fn synced(&mut self) -> BTreeSet<Name> {
        self.synced = true;
        self.listing = false;
        std::mem::take(&mut self.stale)
    }

    fn is_synced(&self) -> bool {
        self.synced
    }

    fn pack(&mut self) {
        let packed = self.objects.iter().map(|(name, object)| (name.clone(), Arc::clone(object)));
        self.objects = Arc::new(packed.collect());
    }
}
