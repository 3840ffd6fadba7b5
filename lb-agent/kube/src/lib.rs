//! The two sources of facts behind one interface: a stream of [`Received`] events.
//!
//! `api_server` watches an API server, `manifests` a directory. Each kind has one file that turns its objects into
//! records at once, so that nothing of Kubernetes' types is kept.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ::kube::Resource;

use self::field::Findings;
use lb_core::cluster::{Change, Event, Kind, Name};
use lb_core::issue::Issue;

mod field;
mod meta;
mod namespace;
mod node;
mod notation;
mod pod;
mod policy;
mod service;
mod service_cidr;
mod slice;

pub mod api_server;
pub mod manifests;

#[cfg(test)]
mod tests;

/// A kind of object that is watched: how it becomes a record.
trait Watched: Resource<DynamicType = ()> {
    /// Its kind.
    const KIND: Kind;
    /// Status codes of a server without it: then there are no objects of this kind.
    const ABSENT: &'static [u16] = &[];
    /// What is kept of it.
    type Record;

    /// What is kept of this one; `None` when it is not of our concern.
    fn record(&self, findings: &mut Findings) -> Option<Self::Record>;

    /// The event of such a change.
    fn event(change: Change<Self::Record>) -> Event;

    /// Its name.
    fn name(&self) -> Name {
        let meta = self.meta();
        Name::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

/// An event and when it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// What was told.
    pub event: Event,
    /// When: the programming latency is measured from here.
    pub at: Instant,
}

impl Received {
    /// An event that arrives now.
    pub fn now(event: Event) -> Self {
        Self { event, at: Instant::now() }
    }
}

/// What the metrics say about the sources; shared with whoever serves them.
#[derive(Debug, Default)]
pub struct Counters {
    kinds: [KindCounters; Kind::ALL.len()],
}

/// Counters of one kind.
#[derive(Debug, Default)]
pub struct KindCounters {
    restarts: AtomicU64,
    errors: AtomicU64,
    last_event_secs: AtomicU64,
}

impl Counters {
    /// A new set, to be shared.
    pub fn shared() -> Arc<Self> {
        Arc::default()
    }

    /// Those of one kind.
    pub fn of(&self, kind: Kind) -> &KindCounters {
        let [service, slice, pod, namespace, node, service_cidr, network_policy, cluster_policy] =
            &self.kinds;
        match kind {
            Kind::Service => service,
            Kind::EndpointSlice => slice,
            Kind::Pod => pod,
            Kind::Namespace => namespace,
            Kind::Node => node,
            Kind::ServiceCidr => service_cidr,
            Kind::NetworkPolicy => network_policy,
            Kind::ClusterNetworkPolicy => cluster_policy,
        }
    }
}

impl KindCounters {
    /// How often a list began.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// How often the source failed and was tried again.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// When the last event arrived, in seconds since 1970; 0 = never.
    pub fn last_event_secs(&self) -> u64 {
        self.last_event_secs.load(Ordering::Relaxed)
    }

    fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn count_event(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_event_secs.store(now.as_secs(), Ordering::Relaxed);
    }
}

/// The event that this object of this name means, and what is wrong with it.
fn read<K: Watched>(object: &K, name: Name) -> (Event, Vec<Issue>) {
    let mut findings = Findings::new(K::KIND, &name);
    let change = match object.record(&mut findings) {
        Some(record) => Change::Applied(name, record),
        None => Change::Deleted(name),
    };
    (K::event(change), findings.finish())
}
