//! Namespace → record.
#![forbid(unsafe_code)]

use k8s_openapi::api::core::v1;

use super::Watched;
use super::field::Findings;
use crate::cluster::{Change, Event, Kind, Namespace};

impl Watched for v1::Namespace {
    const KIND: Kind = Kind::Namespace;
    type Record = Namespace;

    fn record(&self, _: &mut Findings) -> Option<Namespace> {
        let labels = self.metadata.labels.iter().flatten();
        let labels = labels.map(|(key, value)| (key.as_str().into(), value.as_str().into()));
        Some(Namespace { labels: labels.collect() })
    }

    fn event(change: Change<Namespace>) -> Event {
        Event::Namespace(change)
    }
}
