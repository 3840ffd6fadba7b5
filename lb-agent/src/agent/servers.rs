//! Starts what only reads: the servers of health, metrics and the admin protocol, and the reader of the ring buffer.
#![forbid(unsafe_code)]

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::{error, warn};

use crate::admin::{self, PendingRequest, Server};
use crate::agent::unix_now;
use crate::config::AgentConfig;
use crate::observe::Status;
use crate::observe::health::{self, Moment, Probe};
use crate::observe::http::{self, Answer};
use crate::observe::metrics::Metrics;
use crate::observe::scrape::Scraper;
use lb_kernel::bpf::events::{self, Examples, Sinks};
use lb_kernel::bpf::flows::Recent;
use lb_kernel::bpf::maps::Traces;
use lb_kernel::preflight::Machine;
use lb_kube::Counters;

/// Requests that may wait for the loop.
const REQUESTS: usize = 4;

/// What the servers tell the loop.
pub(super) struct Servers {
    pub metrics: Metrics,
    /// Dropped packets.
    pub examples: watch::Receiver<Examples>,
    /// Requests of lbctl.
    pub requests: mpsc::Receiver<PendingRequest>,
    /// Clients that follow allowed flows.
    pub followers: watch::Receiver<usize>,
}

/// Starts them; they end with the runtime.
pub(super) fn spawn(
    cfg: &AgentConfig,
    facts: &Machine,
    traces: Traces,
    source: Arc<Counters>,
    status: watch::Receiver<Arc<Status>>,
) -> Servers {
    let (metrics, registry) = Metrics::register(&facts.kernel);
    metrics.process.start_time.set(unix_now().as_secs_f64());
    let (publish, examples) = watch::channel(Examples::default());
    let (recent, flows) = watch::channel(Recent::default());
    let Traces { ct: _, counters, events } = traces;
    tokio::spawn(async move {
        if let Err(err) = events::run(events, Sinks { examples: publish, recent }).await {
            error!(%err, "events of dropped packets and flows are no longer read");
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
    // The same twice: where kube-proxy would answer, and where it never holds the port, for the kubelet.
    for (name, address) in [("healthz", cfg.healthz), ("probes", cfg.probes)] {
        let (status, counted) = (status.clone(), metrics.clone());
        tokio::spawn(http::serve(name, address, move |path| probe(path, &status, &counted)));
    }
    let (to_loop, requests) = mpsc::channel(REQUESTS);
    let (count, followers) = watch::channel(0);
    match admin::bind(&cfg.dirs.state) {
        Ok(listener) => {
            let server = Server { flows, requests: to_loop, followers: count };
            tokio::spawn(server.serve(listener));
        }
        Err(err) => {
            warn!(%err, "cannot create the agent socket: `lbctl flows` and detailed `lbctl explain` will not work")
        }
    }
    Servers { metrics, examples, requests, followers }
}

fn probe(path: &str, status: &watch::Receiver<Arc<Status>>, counted: &Metrics) -> Answer {
    let Some(probe) = Probe::at(path) else { return Answer::not_found() };
    let status = Arc::clone(&status.borrow());
    let (code, body) = health::answer(probe, &status, Moment::now());
    // kube-proxy has no counter of the third.
    let family = match probe {
        Probe::Healthz => Some(&counted.kube_proxy.healthz),
        Probe::Livez => Some(&counted.kube_proxy.livez),
        Probe::Readyz => None,
    };
    let labels = [("code", if code.is_success() { "200" } else { "503" })];
    if let Some(family) = family {
        family.get_or_create(&labels).inc();
    }
    Answer { status: code, content_type: "application/json", body, weight: None }
}
