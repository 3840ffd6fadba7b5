//! The pinned Prometheus and promtool, whose paths `cargo xtask monitoring` gives.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Process;

const ADDRESS: &str = "127.0.0.1:9090";

/// A Prometheus that scrapes one agent each second, with the labels that `podmonitor.yaml` gives.
pub(crate) struct Prometheus {
    _process: Process,
}

impl Prometheus {
    pub(crate) fn start(dir: &Path, target: &str) -> Self {
        let config = dir.join("prometheus.yaml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: kube-proxy\n    static_configs:\n      \
             - {{targets: ['{target}'], labels: {{namespace: kube-system, pod: lb-agent-1, container: lb-agent, node: n1}}}}\n"
        );
        fs::write(&config, text).unwrap();
        let mut prometheus = Command::new(program("LB_PROMETHEUS"));
        prometheus.arg(format!("--config.file={}", config.display()));
        prometheus.arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()));
        prometheus.arg(format!("--web.listen-address={ADDRESS}"));
        prometheus.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process(prometheus.spawn().unwrap());
        Self { _process: process }
    }

    /// Whether a query has a value that is a number.
    pub(crate) fn has_data(&self, query: &str) -> bool {
        let query: String =
            query.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
        let response = get(ADDRESS, &format!("/api/v1/query?query={query}"), "*/*");
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        if head.contains(" 503 ") {
            // It is starting.
            return false;
        }
        let answer: Value = serde_json::from_str(body).unwrap();
        assert_eq!(answer["status"], "success", "{answer}");
        let series = answer["data"]["result"].as_array().unwrap();
        series.iter().any(|series| series["value"][1].as_str().unwrap() != "NaN")
    }
}

/// Returns the response to a GET, once something listens.
pub(crate) fn get(address: &str, path: &str, accept: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(err) => assert!(Instant::now() < deadline, "{address}: {err}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\nAccept: {accept}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Returns the findings of `promtool check metrics`.
pub(crate) fn promtool_check_metrics(text: &str) -> String {
    let mut promtool = Command::new(program("LB_PROMTOOL"));
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

fn program(variable: &str) -> PathBuf {
    std::env::var_os(variable).expect("this test is run by `cargo xtask monitoring`").into()
}
