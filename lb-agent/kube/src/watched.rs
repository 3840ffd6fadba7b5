//! What a kind of object is to this crate. One file for each kind implements [`Watched`], and `kinds` lists them.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::Resource;
use kube::runtime::watcher;
use serde::de::DeserializeOwned;

use super::field::Findings;
use lb_core::cluster::{Change, Event, Kind, Name};
use lb_core::issue::Issue;

/// A kind of object that is watched: which objects are asked for, and how one becomes a record.
pub(super) trait Watched:
    Resource<DynamicType = (), Scope: ObjectScope>
    + Clone
    + fmt::Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    const KIND: Kind;
    /// HTTP status codes of an API server that lacks the kind: then there are no objects of it.
    const ABSENT: &'static [u16] = &[];
    /// What is kept of an object.
    type Record;

    /// What is kept of this object; `None` if nothing here depends on it.
    fn record(&self, findings: &mut Findings) -> Option<Self::Record>;

    /// The event of such a change.
    fn event(change: Change<Self::Record>) -> Event;

    /// Narrows the watch of all objects down to those of our concern, as far as the API server can.
    fn narrow(all: watcher::Config) -> watcher::Config {
        all
    }

    /// Adds what an API server would have set to the record of a manifest; `node` is this node.
    fn complete(_: &mut Self::Record, _node: &Arc<str>) {}

    fn name(&self) -> Name {
        let meta = self.meta();
        Name::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

/// Where the objects of a kind are.
pub(super) trait ObjectScope {
    /// Whether each is in a namespace.
    const NAMESPACED: bool;
}

impl ObjectScope for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

impl ObjectScope for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

/// The event that this object of this name means, and what is wrong with it.
pub(super) fn read<K: Watched>(object: &K, name: Name) -> (Event, Vec<Issue>) {
    read_with(object, name, |_| {})
}

/// The same for the object of a manifest.
pub(super) fn read_manifest<K: Watched>(
    object: &K,
    name: Name,
    node: &Arc<str>,
) -> (Event, Vec<Issue>) {
    read_with(object, name, |record| K::complete(record, node))
}

fn read_with<K: Watched>(
    object: &K,
    name: Name,
    complete: impl FnOnce(&mut K::Record),
) -> (Event, Vec<Issue>) {
    let mut findings = Findings::new(K::KIND, &name);
    let change = match object.record(&mut findings) {
        Some(mut record) => {
            complete(&mut record);
            Change::Applied(name, record)
        }
        None => Change::Deleted(name),
    };
    (K::event(change), findings.finish())
}
