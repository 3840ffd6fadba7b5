//! One scrape: what is not pushed by the loop is read now, and everything is written out in the format that the client prefers.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::StatusCode;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::observe::exposition::{TextFormat, prometheus_text};
use crate::observe::http::{Answer, GetRequest};
use crate::observe::metrics::Metrics;
use crate::observe::process::Process;
use lb_core::cluster::Kind;
use lb_kernel::bpf::events::Examples;
use lb_kernel::bpf::read::{self, CounterMap};
use lb_kernel::foreign::MODE;
use lb_kube::Counters;

/// What a scrape reads.
pub(crate) struct Scraper {
    /// The metrics themselves.
    pub metrics: Metrics,
    /// Their names and help texts.
    pub registry: Registry,
    /// Counters of the programs.
    pub counters: CounterMap,
    /// The ring buffer's reader.
    pub examples: watch::Receiver<Examples>,
    /// Counters of the source.
    pub source: Arc<Counters>,
}

/// What answers in kube-proxy's place.
fn mode() -> Answer {
    Answer {
        status: StatusCode::OK,
        content_type: "text/plain; charset=utf-8",
        body: MODE.to_owned(),
        weight: None,
    }
}

impl Scraper {
    /// Answers a request.
    pub(crate) fn answer(&self, request: &GetRequest<'_>) -> Answer {
        match request.path {
            "/metrics" => {}
            // As kube-proxy has it: users and the project's own tests ask which mode is at work.
            "/proxyMode" => return mode(),
            _ => return Answer::not_found(),
        }
        self.refresh();
        let mut body = String::with_capacity(64 * 1024);
        match text::encode(&mut body, &self.registry) {
            Ok(()) => {
                let format = TextFormat::negotiate(&request.accept);
                let body = match format {
                    TextFormat::OpenMetrics => body,
                    TextFormat::Prometheus => prometheus_text(&body),
                };
                let content_type = format.content_type();
                Answer { status: StatusCode::OK, content_type, body, weight: None }
            }
            Err(e) => Answer {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                content_type: "text/plain; charset=utf-8",
                body: format!("{e}\n"),
                weight: None,
            },
        }
    }

    fn refresh(&self) {
        match read::counts(&self.counters) {
            Ok(counts) => self.metrics.set_counts(&counts, self.examples.borrow().read),
            Err(e) => tracing::warn!(map = "counters", err = %e, "cannot read the counters"),
        }
        let ours = &self.metrics.ours;
        for kind in Kind::ALL {
            let labels = [("resource", kind.name())];
            let counters = self.source.of(kind);
            let restarts = ours.watch_restarts.get_or_create(&labels);
            restarts.inner().store(counters.restarts(), Ordering::Relaxed);
            let age = counters.event_age().map_or(0, |age| age.as_secs());
            self.metrics.records.set_event_age(kind, age);
        }
        let process = Process::read();
        self.metrics.process.resident_memory.set(process.resident_bytes);
        self.metrics
            .process
            .cpu_seconds
            .inner()
            .store(process.cpu_seconds.to_bits(), Ordering::Relaxed);
        self.metrics.process.open_fds.set(process.open_fds);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use lb_kube::api_server::ApiRequest;
    use lb_testkit::document::{CheckedDocument, NamedRow};
    use prometheus_client::encoding::text;

    use crate::observe::metrics::Metrics;

    /// All metrics as they are served by an agent with a few policies, with what the loop adds later.
    pub(crate) fn body() -> String {
        let (metrics, registry) = Metrics::register("6.1.0");
        for map in MEASURED_MAPS {
            drop(metrics.ours.map_entries.get_or_create(&[("map", map)]));
            drop(metrics.ours.map_capacity.get_or_create(&[("map", map)]));
        }
        for scope in ["pod", "external"] {
            for proto in ["TCP", "UDP", "other"] {
                let labels = [("scope", scope), ("proto", proto)];
                drop(metrics.ours.flows_active.get_or_create(&labels));
            }
        }
        drop(metrics.outside.external_ips.get_or_create(&[("reason", "")]));
        for policy in ["a", "b", "c", "d", "e"] {
            for direction in ["ingress", "egress"] {
                let values = ["shop", policy, direction, "allow"].map(str::to_owned);
                let labels =
                    ["namespace", "policy", "direction", "outcome"].into_iter().zip(values);
                let labels: Vec<_> = labels.collect();
                drop(metrics.policy.by_policy.get_or_create(&labels.try_into().unwrap()));
            }
        }
        for code in [200, 403, 500] {
            let took = Duration::from_millis(3);
            let host = "10.96.0.1:443";
            metrics.rest_client.observe(&ApiRequest {
                method: "GET",
                host,
                code: Some(code),
                took,
            });
        }
        let mut body = String::new();
        text::encode(&mut body, &registry).unwrap();
        body
    }

    /// Maps whose fill housekeeping reports.
    const MEASURED_MAPS: [&str; 14] = [
        "affinity",
        "ident",
        "groups",
        "peer_bits",
        "port_bits",
        "hits",
        "cidrs",
        "devs",
        "frontends",
        "slots",
        "backends",
        "pods",
        "ct",
        "kept",
    ];

    #[test]
    fn every_metric_is_documented() {
        let body = body();
        let comment = |what: &'static str| {
            let lines = body.lines().filter_map(move |line| line.strip_prefix(what));
            lines.filter_map(|line| line.split_once(' ')).collect::<BTreeMap<_, _>>()
        };
        let help = comment("# HELP ");
        let rows = comment("# TYPE ").into_iter().map(|(name, kind)| {
            let samples = body.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| {
                ["{", " ", "_total{", "_bucket{", "_info{"]
                    .iter()
                    .any(|next| rest.starts_with(next))
            });
            let labels = samples.filter_map(|rest| rest.split_once('{')?.1.split_once('}'));
            let labels: BTreeSet<&str> = labels
                .flat_map(|(labels, _)| labels.split("\","))
                .filter_map(|label| Some(label.split_once('=')?.0))
                .filter(|label| *label != "le")
                .collect();
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let help = help[name].trim_end_matches('.');
            let cells = [kind.to_owned(), labels.join(", "), help.to_owned()];
            NamedRow::new(format!("{name}{suffix}"), cells)
        });
        let mut chapter = CheckedDocument::read("docs/src/metrics.md");
        chapter.compare_list("metrics", rows);
        chapter.finish();
    }

    #[test]
    fn series_are_few_and_there_from_the_start() {
        let body = body();
        let mut by_name = BTreeMap::<&str, usize>::new();
        for line in body.lines().filter(|line| !line.starts_with('#')) {
            let end = line.find(['{', ' ']).unwrap();
            *by_name.entry(&line[..end]).or_default() += 1;
        }
        let total: usize = by_name.values().sum();
        assert!(total <= 700, "{total} series: {by_name:#?}");
        for name in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
            "kubeproxy_network_programming_duration_seconds_bucket",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "kubeproxy_proxy_healthz_total",
            "kubeproxy_proxy_livez_total",
            "rest_client_requests_total",
            "rest_client_request_duration_seconds_bucket",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "lb_build_info",
            "lb_programming_seconds_bucket",
            "lb_drops_total",
            "lb_map_entries",
            "lb_foreign_proxy_present",
        ] {
            assert!(by_name.contains_key(name), "{name} is missing: {by_name:#?}");
        }
        assert_eq!(by_name["kubeproxy_network_programming_duration_seconds_bucket"], 2 * 82);
        assert_eq!(by_name["lb_drops_total"], 2 * lb_common::verdict::DropReason::ALL.len());
        assert!(body.ends_with("# EOF\n"));
    }
}
