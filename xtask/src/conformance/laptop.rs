//! The checks of `kubectl lb`: it has a kubeconfig and nothing else, and answers for all nodes.

use std::{
    process::{Command, Output},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{
    command::{self, target_dir},
    kubectl::{KUBECTL, shell},
    setup::cargo,
};

use super::{
    Options,
    bed::{Bed, PORT},
    cluster::{NAMESPACE, items, text},
    deploy,
    report::{Report, SOON, within},
};

/// What the command of the option has in place of the binary.
const BINARY: &str = "{kubectl-lb}";
/// The default of the option: with the same `$KUBECONFIG` as the default kubectl.
const PLAIN: &str = "{kubectl-lb}";
/// Where the agents may run, by `deploy/daemonset.yaml`.
const ARCH: &str = "kubernetes.io/arch";

/// Builds `kubectl lb` as for a laptop, and returns the command that runs it.
pub(crate) fn command(report: &mut Report, options: &Options) -> Option<String> {
    let command = match (&options.kubectl_lb, options.target.kubectl == KUBECTL) {
        (Some(command), _) => command.clone(),
        (None, true) => PLAIN.to_owned(),
        (None, false) => {
            eprintln!("not run with --kubectl and without --kubectl-lb: the checks of kubectl lb");
            return None;
        }
    };
    let mut built = None;
    report.check(
        "kubectl lb status, explain and the rest: builds without the node's crates",
        || {
            let path = build()?;
            built = Some(command.replace(BINARY, &path));
            Ok(String::new())
        },
    );
    built
}

/// Runs them all; the one that removes an agent only if they are `ours`.
pub(crate) fn check(bed: &Bed<'_>, report: &mut Report, command: &str, ours: bool) {
    let [first, .., last] = &bed.cluster.nodes[..] else {
        eprintln!("single-node cluster: kubectl lb has nothing to merge");
        return;
    };
    let laptop = Laptop { bed, command, first, last };
    report.check("kubectl lb: status and version name every node", || laptop.status());
    report.check("kubectl lb: a Service is one row, a Pod has its node", || laptop.tables());
    report.check("kubectl lb: explain finds both nodes: delivered, exit 0", || laptop.delivered());
    report.check("kubectl lb: explain, policies and flows of a denied flow, exit 3", || {
        let found = laptop.stopped();
        laptop.allow().and(found)
    });
    if ours {
        report.check("kubectl lb: a node without an agent is one line", || {
            let found = laptop.without_agent();
            laptop.with_agent().and(found)
        });
    }
}

/// Builds the binary as for a laptop and returns its path.
fn build() -> Result<String> {
    let mut build = cargo();
    build.args(["build", "--package", "lb-ctl", "--bin", "kubectl-lb"]);
    build.args(["--no-default-features", "--features", "cluster"]);
    command::run(&mut build)?;
    Ok(target_dir().join("debug/kubectl-lb").to_string_lossy().into_owned())
}

struct Laptop<'a> {
    bed: &'a Bed<'a>,
    command: &'a str,
    first: &'a String,
    last: &'a String,
}

impl Laptop<'_> {
    fn start(&self, args: &[&str]) -> Command {
        shell(self.command, args)
    }

    /// Runs it and wants this exit status.
    fn run(&self, args: &[&str], code: i32) -> Result<Output> {
        let out = self.start(args).output().context("start kubectl-lb")?;
        if out.status.code() != Some(code) {
            bail!(
                "kubectl lb {}: {} instead of {code}: {}{}",
                args.join(" "),
                out.status,
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            );
        }
        Ok(out)
    }

    fn text(&self, args: &[&str], code: i32) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run(args, code)?.stdout).into_owned())
    }

    fn json(&self, args: &[&str], code: i32) -> Result<Value> {
        let text = self.text(&[args, &["--output", "json"]].concat(), code)?;
        serde_json::from_str(&text)
            .with_context(|| format!("kubectl lb {}: {text}", args.join(" ")))
    }

    fn status(&self) -> Result<String> {
        let status = self.text(&["status"], 0)?;
        let versions = self.text(&["version"], 0)?;
        for node in &self.bed.cluster.nodes {
            for found in [&status, &versions] {
                if !found.lines().any(|line| line.split_whitespace().next() == Some(node)) {
                    bail!("no line for {node}: {found}");
                }
            }
        }
        let summary = status.lines().next().unwrap_or_default();
        if !summary.starts_with("OK: ") {
            bail!("{status}");
        }
        Ok(summary.to_owned())
    }

    fn tables(&self) -> Result<String> {
        let nodes = &self.bed.cluster.nodes;
        // Each node learns of the endpoints by itself.
        let rows = within(SOON, || {
            let web = self.text(&["services", "-n", NAMESPACE, "web", "--no-headers"], 0)?;
            let rows: Vec<Vec<&str>> =
                web.lines().map(|line| line.split_whitespace().collect()).collect();
            let is_of_all = |row: &Vec<&str>| row.first() == Some(&"all");
            if rows.is_empty() || !rows.iter().all(is_of_all) {
                bail!("{web}");
            }
            Ok(rows.len())
        })?;
        let services = self.json(&["services", "-n", NAMESPACE, "web"], 0)?;
        if items(&services).count() != rows * nodes.len() {
            bail!("as JSON, each node has its rows: {services}");
        }
        let pods = self.json(&["pods", "-n", NAMESPACE], 0)?;
        for node in nodes {
            let client = format!("client-{node}");
            let row = items(&pods).find(|row| text(row, "/name") == Some(&client));
            if row.and_then(|row| text(row, "/node")) != Some(node) {
                bail!("{client} is not on {node}: {pods}");
            }
        }
        Ok(format!("{} Pods", items(&pods).count()))
    }

    fn ends(&self) -> [String; 2] {
        let [from, to] = [self.first, self.last];
        [format!("{NAMESPACE}/client-{from}"), format!("svc:{NAMESPACE}/at-{to}:{PORT}")]
    }

    fn delivered(&self) -> Result<String> {
        let [src, dst] = &self.ends();
        within(SOON, || {
            let started = Instant::now();
            let text = self.text(&["explain", src, dst], 0)?;
            let seconds = started.elapsed().as_secs_f64();
            let is_seen = text.lines().any(|line| line.contains("socket") && line.contains(" ok "));
            if !text.starts_with("DELIVERED") || !is_seen || text.contains("assumed") {
                bail!("{text}");
            }
            Ok(format!("{seconds:.2} s"))
        })
    }

    /// Denies what enters the last node's client.
    fn stopped(&self) -> Result<String> {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "laptop", "namespace": NAMESPACE },
            "spec": { "podSelector": { "matchLabels": { "client": self.last } }, "policyTypes": ["Ingress"] },
        });
        self.bed.cluster.apply(&[policy])?;
        let [src, dst] = &self.ends();
        let found = within(SOON, || self.json(&["explain", src, dst], 3))?;
        if text(&found, "/code") != Some("DEFAULT_DENY") {
            bail!("{found}");
        }
        // The kernel's tables have the policy first, then the name table that lists it.
        within(SOON, || {
            let list = self.json(&["policy", "list", "-n", NAMESPACE], 0)?;
            if !items(&list).any(|row| text(row, "/name") == Some("laptop")) {
                bail!("{list}");
            }
            Ok(())
        })?;
        let address = self.bed.addresses(&format!("at-{}", self.last))?;
        let address = address.first().context("no address")?;
        let question = super::ask::url(address, PORT);
        let script = format!("curl --silent --max-time 1 {question}/hostname || true");
        self.bed.in_pod(self.first, &script)?;
        within(SOON, || {
            let pod = format!("{NAMESPACE}/client-{}", self.last);
            let flows = self.text(&["flows", "--to", &pod, "-o", "json"], 0)?;
            let lines = flows.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let denied = |flow: &Value| {
                text(flow, "/node") == Some(self.last) && text(flow, "/verdict") == Some("dropped")
            };
            if !lines.into_iter().any(|flow| denied(&flow)) {
                bail!("no denied flow to {pod}: {flows}");
            }
            Ok(String::new())
        })
    }

    fn allow(&self) -> Result<()> {
        let delete = ["delete", "--namespace", NAMESPACE, "networkpolicy", "laptop"];
        self.bed.cluster.run(&[&delete[..], &["--ignore-not-found"]].concat()).map(|_| ())
    }

    /// A node on which the DaemonSet may not run.
    fn without_agent(&self) -> Result<String> {
        let cluster = self.bed.cluster;
        // When the kubelet next writes the node's status, it may put the label back, so the agent may return meanwhile.
        within(3 * SOON, || {
            cluster.run(&["label", "--overwrite", "node", self.last, &format!("{ARCH}=none")])?;
            if let Ok(pod) = deploy::pod_on(cluster, self.last) {
                bail!("{pod} is still there");
            }
            self.is_told_without_agent()
        })
    }

    /// The node is named in one line, and the others answer.
    fn is_told_without_agent(&self) -> Result<String> {
        let out = self.run(&["services", "-n", NAMESPACE, "web"], 0)?;
        let (rows, remarks) =
            (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if remarks.lines().count() != 1 || !remarks.contains(self.last) || rows.lines().count() < 2
        {
            bail!("{remarks}{rows}");
        }
        let status = self.json(&["status"], 2)?;
        let nodes = status.pointer("/nodes").and_then(Value::as_array);
        let node = nodes.into_iter().flatten().find(|one| text(one, "/node") == Some(self.last));
        if node.and_then(|node| text(node, "/verdict")) != Some("UNKNOWN") {
            bail!("{status}");
        }
        // What the other node knows of the flow is an answer.
        let [src, dst] = &self.ends();
        let explained = self.text(&["explain", src, dst], 0)?;
        if !explained.starts_with("DELIVERED") {
            bail!("{explained}");
        }
        Ok(remarks.trim().to_owned())
    }

    fn with_agent(&self) -> Result<()> {
        let arch = self.bed.cluster.json(&["get", "node", self.last])?;
        let arch = text(&arch, "/status/nodeInfo/architecture").unwrap_or("amd64").to_owned();
        let label = format!("{ARCH}={arch}");
        self.bed.cluster.run(&["label", "--overwrite", "node", self.last, &label])?;
        within(2 * SOON, || deploy::pod_on(self.bed.cluster, self.last))?;
        deploy::ready(self.bed.cluster)
    }
}
