//! Starts what only reads: the servers of health, metrics and the admin protocol, and the reader of the ring buffer.
#![forbid(unsafe_code)]

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tracing::{error, warn};

use crate::admin::{self, PendingRequest, Recent, Server};
use crate::agent::denials::DenialEvents;
use crate::agent::flows::{FlowNames, FlowSinks};
use crate::agent::unix_now;
use crate::config::AgentConfig;
use crate::flow_log::FlowLog;
use crate::observe::Status;
use crate::observe::health::{self, Moment, Probe};
use crate::observe::http::{self, Answer};
use crate::observe::metrics::Metrics;
use crate::observe::scrape::Scraper;
use lb_kernel::bpf::dialed::DialedFrontends;
use lb_kernel::bpf::events::{self, Examples, ObservedFlow, Sinks};
use lb_kernel::bpf::maps::Traces;
use lb_kube::Counters;
use lb_kube::api_server::ApiEvents;

/// Requests that may wait for the loop.
const REQUESTS: usize = 4;
/// Batches of flows that may wait for the loop; more of them wait in the ring buffer.
const BATCHES: usize = 16;

/// What the servers tell the loop.
pub(super) struct Servers {
    /// Dropped packets.
    pub examples: watch::Receiver<Examples>,
    /// Requests of lbctl.
    pub requests: mpsc::Receiver<PendingRequest>,
    /// Clients that follow allowed flows.
    pub followers: watch::Receiver<usize>,
    /// Flows as the programs report them.
    pub observed: mpsc::Receiver<Vec<ObservedFlow>>,
    /// Where they go once they have names.
    pub flows: FlowNames,
}

/// What they read, and where they write.
pub(super) struct ServerFacts {
    /// The metrics, with their names and help texts.
    pub metrics: (Metrics, Registry),
    pub traces: Traces,
    pub source: Arc<Counters>,
    pub status: watch::Receiver<Arc<Status>>,
    pub api_events: ApiEvents,
}

/// Starts them; they end with the runtime.
///
/// # Errors
/// When the flow log cannot be opened.
pub(super) fn spawn(cfg: &AgentConfig, from: ServerFacts) -> anyhow::Result<Servers> {
    let ServerFacts { metrics: (metrics, registry), traces, source, status, api_events } = from;
    metrics.process.start_time.set(unix_now().as_secs_f64());
    let (publish, examples) = watch::channel(Examples::default());
    let (recent, flows) = watch::channel(Recent::default());
    let Traces { ct, counters, events } = traces;
    let log = |log| FlowLog::spawn(log, &cfg.node_name, metrics.flow_log.clone());
    let log = cfg.flow_log.as_ref().map(log).transpose()?;
    let denials = DenialEvents::spawn(api_events);
    let names = FlowNames::new(DialedFrontends::new(ct), FlowSinks { recent, log, denials });
    let (to_names, observed) = mpsc::channel(BATCHES);
    tokio::spawn(async move {
        if let Err(err) = events::run(events, Sinks { examples: publish, flows: to_names }).await {
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
    tokio::spawn(http::serve("metrics", cfg.metrics, move |request| scraper.answer(request)));
    // The same twice: where kube-proxy would answer, and where it never holds the port, for the kubelet.
    for (name, address) in [("healthz", cfg.healthz), ("probes", cfg.probes)] {
        let (status, counted) = (status.clone(), metrics.clone());
        tokio::spawn(http::serve(name, address, move |request| {
            probe(request.path, &status, &counted)
        }));
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
    Ok(Servers { examples, requests, followers, observed, flows: names })
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
