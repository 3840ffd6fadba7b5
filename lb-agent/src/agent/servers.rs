//! Starts what only reads: the servers of health and metrics, and the reader of the ring buffer.
#![forbid(unsafe_code)]

use std::sync::Arc;

use tokio::sync::watch;
use tracing::error;

use crate::agent::unix_now;
use crate::bpf::events::{self, Examples};
use crate::bpf::maps::Traces;
use crate::config::Config;
use crate::observe::Status;
use crate::observe::health::{self, Moment, Probe};
use crate::observe::http::{self, Answer};
use crate::observe::metrics::Metrics;
use crate::observe::scrape::Scraper;
use crate::preflight::Facts;
use crate::watch::Counters;

/// Starts them; they end with the runtime.
pub(super) fn spawn(
    cfg: &Config,
    facts: &Facts,
    traces: Traces,
    source: Arc<Counters>,
    status: watch::Receiver<Arc<Status>>,
) -> (Metrics, watch::Receiver<Examples>) {
    let (metrics, registry) = Metrics::register(&facts.kernel);
    metrics.process.start_time.set(unix_now().as_secs_f64());
    let (publish, examples) = watch::channel(Examples::default());
    let Traces { ct: _, counters, events } = traces;
    tokio::spawn(async move {
        if let Err(err) = events::run(events, publish).await {
            error!(%err, "examples of dropped packets are no longer read");
        }
    });
    let scraper = Scraper {
        metrics: metrics.clone(),
        registry,
        counters,
        examples: examples.clone(),
        source,
    };
    tokio::spawn(http::serve("metrics", cfg.metrics, move |path| scraper.answer(path)));
    let counted = metrics.clone();
    tokio::spawn(http::serve("healthz", cfg.healthz, move |path| {
        let Some(probe) = Probe::at(path) else { return Answer::not_found() };
        let status = Arc::clone(&status.borrow());
        let (code, body) = health::answer(probe, &status, Moment::now());
        let family = match probe {
            Probe::Healthz => &counted.kube_proxy.healthz,
            Probe::Livez => &counted.kube_proxy.livez,
        };
        family.get_or_create(&[("code", if code.is_success() { "200" } else { "503" })]).inc();
        Answer { status: code, content_type: "application/json", body, weight: None }
    }));
    (metrics, examples)
}
