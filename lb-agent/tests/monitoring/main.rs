//! `deploy/monitoring` with a real agent and a real Prometheus: each panel of each board has data, the board of kubernetes-mixin
//! about kube-proxy too, and promtool finds nothing wrong with what the agent serves. Run by `cargo xtask monitoring`. Needs root
//! and BPF.
#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper panics like the test"
)]

mod api;
#[allow(dead_code, reason = "ring `node` uses the rest")]
#[path = "../node/node.rs"]
mod node;
mod prometheus;
mod proxy_board;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Node, in_node};
use crate::prometheus::{Prometheus, get};
use crate::proxy_board::PROXY_BOARD;

/// Panels that stay empty here, and why.
const EMPTY: [(&str, &str); 2] = [
    ("policies: Policies that decide most", "no packet is sent"),
    ("proxy: Goroutines", "the agent is not written in Go"),
];
/// The only finding of promtool: kube-proxy's own name of a gauge.
const LINT: &str = "kubeproxy_sync_proxy_rules_no_local_endpoints_total non-counter metrics should not have \"_total\" suffix";

/// All panels have data by then.
const DEADLINE: Duration = Duration::from_secs(90);
/// Series that an agent may have.
const MOST_SERIES: usize = 700;

#[test]
fn every_panel_has_data_and_promtool_finds_nothing() {
    in_node(|node| {
        let dir = std::env::temp_dir().join(node.pin_dir().file_name().unwrap());
        fs::create_dir_all(&dir).unwrap();
        let dir = Scratch(dir);
        let inside = node.pod("web-1");
        node.routed(&inside, "veth1", &["10.9.0.2/32"]);
        let _agent = agent(node, &dir.0);
        let prometheus = Prometheus::start(&dir.0, "127.0.0.1:10249");
        // A rate begins at the second value: another Pod starts once there is a first one.
        let deadline = Instant::now() + DEADLINE;
        while !prometheus.has_data("lb_programs_attached{hook=\"pod_in\"} == 1") {
            assert!(Instant::now() < deadline, "no data of the first Pod");
            std::thread::sleep(Duration::from_millis(500));
        }
        let late = node.pod("web-2");
        node.routed(&late, "veth2", &["10.9.0.3/32"]);
        let queries = queries();
        // Two passes over conntrack, and enough scrapes for rates.
        let deadline = Instant::now() + DEADLINE;
        let known: BTreeSet<&str> = EMPTY.into_iter().map(|(panel, _)| panel).collect();
        loop {
            // One query of a panel is enough: others may be about what did not happen.
            let is_empty =
                |queries: &[String]| !queries.iter().any(|query| prometheus.has_data(query));
            let empty = queries.iter().filter(|(_, queries)| is_empty(queries));
            let empty: BTreeSet<&str> = empty.map(|(panel, _)| panel.as_str()).collect();
            if empty.is_subset(&known) {
                assert_eq!(empty, known, "these have data by now: take them off the list");
                break;
            }
            assert!(Instant::now() < deadline, "no data: {:#?}", empty.difference(&known));
            std::thread::sleep(Duration::from_secs(2));
        }
        println!("{} of {} panels have data", queries.len() - EMPTY.len(), queries.len());
        lint();
    });
}

/// The directory of the test's files.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Starts the agent with an API server of its own.
fn agent(node: &Node, dir: &Path) -> Process {
    let kubeconfig = dir.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
        api::start()
    );
    fs::write(&kubeconfig, text).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    agent.arg("run").arg("--pin-dir").arg(node.pin_dir());
    agent.arg("--state-dir").arg(dir.join("state")).args(["--node-name", "n1"]);
    agent.arg("--cache-dir").arg(dir.join("cache"));
    agent.arg("--kubeconfig").arg(kubeconfig).arg("--cgroup").arg(node.cgroup());
    Process(agent.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

/// The queries of each panel: of the board of kubernetes-mixin, and of ours.
fn queries() -> BTreeMap<String, Vec<String>> {
    let mut panels = BTreeMap::<String, Vec<String>>::new();
    for (panel, query) in PROXY_BOARD {
        panels.entry(format!("proxy: {panel}")).or_default().push(query.to_owned());
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("deploy/monitoring/dashboards");
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let board: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            let queries = panels.entry(format!("{name}: {}", panel["title"].as_str().unwrap()));
            let queries = queries.or_default();
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                queries.push(query.replace("$__rate_interval", "1m").replace("$node", ".*"));
            }
        }
    }
    assert!(panels.len() > 60, "{}", panels.len());
    panels
}

/// What the agent serves passes `promtool check metrics`, and is little.
fn lint() {
    let response = get("127.0.0.1:10249", "/metrics", "text/plain");
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let n_series = body.lines().filter(|line| !line.starts_with('#')).count();
    println!("{n_series} series");
    assert!(n_series <= MOST_SERIES, "{n_series} series");
    let findings = prometheus::promtool_check_metrics(body);
    assert_eq!(findings.trim(), LINT);
    let accept = "application/openmetrics-text; version=1.0.0";
    let response = get("127.0.0.1:10249", "/metrics", accept);
    assert!(response.contains("content-type: application/openmetrics-text"), "{response}");
    assert!(response.ends_with("# EOF\n"));
}
