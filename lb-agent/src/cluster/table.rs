//! All objects of one kind, and which of them a list that is under way has not repeated yet.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::Name;

/// The objects of one kind by name.
#[derive(Debug)]
pub(super) struct Table<T> {
    /// Boxed: the nodes of a tree that grows in order are little more than half full.
    objects: BTreeMap<Name, Box<T>>,
    /// While a list is under way: names that it has not repeated.
    stale: BTreeSet<Name>,
    /// Whether a list is under way.
    listing: bool,
    synced: bool,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), stale: BTreeSet::new(), listing: true, synced: false }
    }
}

impl<T> Table<T> {
    /// Adds or replaces; returns what was there.
    pub(super) fn insert(&mut self, name: Name, object: T) -> Option<T> {
        self.stale.remove(&name);
        self.objects.insert(name, Box::new(object)).map(|old| *old)
    }

    /// Removes; returns what was there.
    pub(super) fn remove(&mut self, name: &Name) -> Option<T> {
        self.stale.remove(name);
        self.objects.remove(name).map(|old| *old)
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

    /// A list begins: everything known waits to be repeated.
    pub(super) fn restarted(&mut self) {
        self.stale = self.objects.keys().cloned().collect();
        self.listing = true;
    }

    /// Packs a tree that has grown in order, as one that is made of a list does, and is little more than half full.
    pub(super) fn pack(&mut self) {
        self.objects = std::mem::take(&mut self.objects).into_iter().collect();
    }

    /// The list is complete: returns the names that it did not repeat, for the caller to remove.
    pub(super) fn synced(&mut self) -> BTreeSet<Name> {
        self.synced = true;
        self.listing = false;
        std::mem::take(&mut self.stale)
    }

    /// Whether a list is under way that may still tell of this object.
    pub(super) fn waits_for(&self, name: &Name) -> bool {
        self.listing && (self.stale.contains(name) || !self.objects.contains_key(name))
    }

    /// Whether a list has ever been complete.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }
}
