//! Namespace → record.
#![forbid(unsafe_code)]

use k8s_openapi::api::core::v1;

use super::field::{self, Findings};
use super::watched::Watched;
use lb_core::cluster::{Change, Event, Kind, Namespace};

impl Watched for v1::Namespace {
    const KIND: Kind = Kind::Namespace;
    type Record = Namespace;

    fn record(&self, _: &mut Findings) -> Option<Namespace> {
        let terminating = self.metadata.deletion_timestamp.is_some();
        Some(Namespace { labels: field::labels(self.metadata.labels.as_ref()), terminating })
    }

    fn event(change: Change<Namespace>) -> Event {
        Event::Namespace(change)
    }
}
