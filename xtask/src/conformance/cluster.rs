//! How to reach the cluster: kubectl, a shell in a Pod, a shell on a node. Each may be a command prefix of the
//! caller's, and everything that could hang runs under a timeout.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{command, line, output};

use super::Options;

/// The namespace of everything that the checks make.
pub(crate) const NAMESPACE: &str = "lb-conformance";

/// A cluster, and a node's shell in it.
pub(crate) struct Cluster {
    kubectl: String,
    node_exec: Option<String>,
    outside_exec: Option<String>,
    /// Names of the nodes that are ready, in order.
    pub(crate) nodes: Vec<String>,
}

impl Cluster {
    /// Asks the cluster for its nodes.
    ///
    /// # Errors
    /// When it cannot be reached or has no ready node.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let mut cluster = Self {
            kubectl: options.kubectl.clone(),
            node_exec: options.node_exec.clone(),
            outside_exec: options.outside_exec.clone(),
            nodes: Vec::new(),
        };
        let list = cluster.json(&["get", "nodes"])?;
        for node in items(&list) {
            let mut conditions =
                node.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
            let ready =
                |c: &Value| text(c, "/type") == Some("Ready") && text(c, "/status") == Some("True");
            if conditions.any(ready) {
                cluster.nodes.extend(text(node, "/metadata/name").map(str::to_owned));
            }
        }
        if cluster.nodes.is_empty() {
            bail!("the cluster has no ready node");
        }
        Ok(cluster)
    }

    /// A kubectl command. The prefix is shell text, so that it may quote and set variables.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Command {
        shell(&self.kubectl, args)
    }

    /// kubectl's output.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        output(&mut self.kubectl(args))
            .map_err(|err| err.context(format!("kubectl {}", args.join(" "))))
    }

    /// kubectl's output as JSON.
    ///
    /// # Errors
    /// When it fails, or its output is not JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(&[args, &["--output", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("kubectl {}: invalid JSON", args.join(" ")))
    }

    /// Creates or updates objects.
    ///
    /// # Errors
    /// When the API refuses one.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let mut apply = self.kubectl(&["apply", "--filename", "-"]);
        let mut child = apply
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{}`", line(&apply)))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(list.to_string().as_bytes()).context("write to kubectl apply")?;
        }
        let out = child.wait_with_output().context("wait for kubectl apply")?;
        if !out.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    /// A shell script in a Pod of the checks.
    pub(crate) fn pod_shell(&self, pod: &str, script: &str) -> Command {
        self.kubectl(&["exec", "--namespace", NAMESPACE, pod, "--", "sh", "-c", script])
    }

    /// A shell script on a node, in its network namespace and seeing its processes: as a host process there, or, when
    /// no way to start one is known, in the privileged Pod that [`super::bed::Bed`] puts on each node.
    pub(crate) fn node_shell(&self, node: &str, script: &str) -> Command {
        match &self.node_exec {
            Some(prefix) => shell(&prefix.replace("{node}", node), &["sh", "-c", script]),
            None => self.pod_shell(&format!("host-{node}"), script),
        }
    }

    /// Returns the command for a shell script on a machine outside the cluster that reaches the nodes, if one is known.
    pub(crate) fn outside_shell(&self, script: &str) -> Option<Command> {
        self.outside_exec.as_ref().map(|prefix| shell(prefix, &["sh", "-c", script]))
    }

    /// The second number of the server's version: 36 of 1.36.
    ///
    /// # Errors
    /// When it does not tell.
    pub(crate) fn minor_version(&self) -> Result<u32> {
        let version = self.json(&["version"])?;
        let minor = text(&version, "/serverVersion/minor").unwrap_or_default();
        let digits = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
        digits.parse().with_context(|| format!("{minor:?} is not a valid minor version"))
    }

    /// The addresses by which a node is known in the cluster, IPv4 first.
    ///
    /// # Errors
    /// When it has none, or the API does not answer.
    pub(crate) fn addresses(&self, node: &str) -> Result<Vec<String>> {
        let object = self.json(&["get", "node", node])?;
        let all = object.pointer("/status/addresses").and_then(Value::as_array);
        let internal = all.into_iter().flatten().filter(|a| text(a, "/type") == Some("InternalIP"));
        let mut addresses: Vec<_> =
            internal.filter_map(|a| text(a, "/address").map(str::to_owned)).collect();
        addresses.sort_by_key(|address| address.contains(':'));
        if addresses.is_empty() {
            bail!("{node} has no InternalIP");
        }
        Ok(addresses)
    }
}

fn shell(prefix: &str, args: &[&str]) -> Command {
    let mut shell = command("sh");
    shell.args(["-c", &format!("{prefix} \"$@\""), "sh"]).args(args);
    shell
}

/// The items of a list.
pub(crate) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("items").and_then(Value::as_array).into_iter().flatten()
}

/// The text at a JSON pointer.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}
