//! The metrics of requests to the API server, with the names, labels and buckets of client-go, which kube-proxy's dashboards
//! query.
#![forbid(unsafe_code)]

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::add;
use lb_kube::api_server::{ApiRequest, RequestObserver};

/// Status code, method, and host of a request.
type ByCode = [(&'static str, String); 3];
/// Method and host of a request.
type ByVerb = [(&'static str, String); 2];

/// About requests to the API server.
#[derive(Clone, Debug)]
pub(crate) struct RestClientMetrics {
    /// Requests, by status code, method and host.
    requests: Family<ByCode, Counter>,
    /// Time until the response's head, by method and host.
    duration: Family<ByVerb, Histogram>,
}

impl RestClientMetrics {
    pub(super) fn register(root: &mut Registry) -> Self {
        let registry = root.sub_registry_with_prefix("rest_client");
        Self {
            requests: add(
                registry,
                "requests",
                "Requests to the API server by status code, method and host; code `<error>` if there was no response",
                Family::default(),
            ),
            duration: add(
                registry,
                "request_duration_seconds",
                "Time from a request to the API server until the head of the response, by method and host",
                Family::new_with_constructor(duration_histogram as fn() -> Histogram),
            ),
        }
    }

    /// Returns what counts the requests of a client.
    pub(crate) fn observer(&self) -> RequestObserver {
        let metrics = self.clone();
        RequestObserver::new(move |request| metrics.observe(request))
    }

    pub(crate) fn observe(&self, request: &ApiRequest<'_>) {
        let ApiRequest { method, host, code, took } = *request;
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        let (method, host) = (("method", method.to_owned()), ("host", host.to_owned()));
        self.requests.get_or_create(&[("code", code), method.clone(), host.clone()]).inc();
        let labels = [("verb", method.1), host];
        self.duration.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// client-go's buckets.
fn duration_histogram() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}
