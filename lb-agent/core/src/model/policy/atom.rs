//! Atoms: the distinct descriptions of peers that rules in use have, numbered.
//!
//! A number is never given to another atom, so that sets of numbers can be compared with those of earlier times.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use super::area::{Area, Edge};
use crate::cluster::{Name, Namespaces, PodSelector, Selector};

/// Number of an atom.
pub type AtomId = u32;

/// What an address may satisfy or not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Atom {
    /// It is that of such a Pod.
    Pods(NamespaceScope, Selector),
    /// It is that of such a node.
    Nodes(Selector),
    /// It is one of these.
    Within(Area),
    /// It is one of these, and not known to be that of a Pod or a node.
    Unknown(Area),
    /// It satisfies another atom, if one is given, and is that of a Pod where a port's name means this number.
    Named(NamedPortMeaning),
}

/// Where a Pod is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum NamespaceScope {
    /// In this namespace.
    One(Arc<str>),
    /// In one with such labels.
    Selected(Selector),
}

/// What a port's name means in the Pods that satisfy an atom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NamedPortMeaning {
    pub(super) of: Option<AtomId>,
    pub(super) name: Arc<str>,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// All atoms in use.
#[derive(Debug, Default)]
pub(super) struct Atoms {
    ids: HashMap<Atom, AtomId>,
    /// Those of the last time, while it is not known whether they are still in use.
    former: HashMap<Atom, AtomId>,
    /// Those of this time's first attempt, if it is not the only one: what has no room keeps its numbers, or each
    /// compilation would give others away.
    wanted: HashMap<Atom, AtomId>,
    last: AtomId,
}

impl Atoms {
    /// Another compilation begins: what it does not ask for is forgotten at its end.
    pub(super) fn begin(&mut self) {
        self.former = std::mem::take(&mut self.ids);
    }

    /// The same compilation begins again, with less.
    pub(super) fn begin_again(&mut self) {
        if self.wanted.is_empty() {
            self.wanted = self.ids.clone();
        }
        self.former = std::mem::take(&mut self.ids);
    }

    /// The compilation is over.
    pub(super) fn end(&mut self) {
        self.former = HashMap::new();
        for (atom, id) in std::mem::take(&mut self.wanted) {
            self.ids.entry(atom).or_insert(id);
        }
    }

    pub(super) fn intern(&mut self, atom: Atom) -> AtomId {
        if let Some(id) = self.ids.get(&atom) {
            return *id;
        }
        let id = self.former.get(&atom).copied().unwrap_or_else(|| {
            self.last += 1;
            self.last
        });
        self.ids.insert(atom, id);
        id
    }

    /// The atom of Pods in a policy.
    pub(super) fn pods(&mut self, policy: &Name, peer: &PodSelector) -> AtomId {
        let PodSelector { namespaces, pods } = peer;
        let scope = match namespaces {
            Namespaces::Own => NamespaceScope::One(Arc::clone(&policy.namespace)),
            Namespaces::Selected(selector) => NamespaceScope::Selected(selector.clone()),
        };
        self.intern(Atom::Pods(scope, pods.clone()))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Atom, AtomId)> {
        self.ids.iter().map(|(atom, id)| (atom, *id))
    }

    /// Sets of addresses.
    pub(super) fn areas(&self) -> impl Iterator<Item = (AtomId, &[Edge])> {
        self.iter().filter_map(|(atom, id)| match atom {
            Atom::Within(area) | Atom::Unknown(area) => Some((id, area.edges())),
            Atom::Pods(..) | Atom::Nodes(_) | Atom::Named(_) => None,
        })
    }
}
