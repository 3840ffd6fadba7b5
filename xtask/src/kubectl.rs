//! kubectl, or a command of the caller that runs it where the cluster can be reached.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    command::{command, line, output},
    setup::{self, Need},
};

/// The command when none is given. It uses `$KUBECONFIG`.
pub(crate) const KUBECTL: &str = "kubectl";

/// How to run kubectl.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    /// Shell text, so that it may quote and set variables.
    prefix: String,
}

impl Kubectl {
    /// Takes the caller's command. The ordinary kubectl must be installed and have a configuration.
    ///
    /// # Errors
    /// When kubectl or its configuration is missing.
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        if prefix == KUBECTL {
            setup::ensure(&[Need::Kubectl])?;
            let home = std::env::var_os("HOME").unwrap_or_default();
            let somewhere = ["KUBECONFIG", "KUBERNETES_SERVICE_HOST"]
                .into_iter()
                .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
            if !somewhere && !Path::new(&home).join(".kube/config").exists() {
                bail!(
                    "no cluster: set KUBECONFIG, or --kubectl to a command that reaches the cluster"
                );
            }
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// A kubectl command.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        shell(&self.prefix, args)
    }

    /// The same as shell text; the arguments must not need quotes.
    pub(crate) fn text(&self, args: &str) -> String {
        format!("{} {args}", self.prefix)
    }

    /// kubectl's output.
    ///
    /// # Errors
    /// When it fails; with what it printed to stderr.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args))
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

    /// Waits until all Pods of a workload are those of its present template, and ready.
    ///
    /// # Errors
    /// When they are not in time, for instance within `20s`.
    pub(crate) fn rolled_out(&self, namespace: &str, workload: &str, limit: &str) -> Result<()> {
        let rollout = ["--namespace", namespace, "rollout", "status", workload, "--timeout", limit];
        self.run(&rollout).map(|_| ())
    }

    /// Gives objects to `kubectl apply`, `kubectl create` or the like.
    ///
    /// # Errors
    /// When the API refuses one.
    pub(crate) fn send(&self, command: &[&str], objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let mut send = self.command(&[command, &["--filename", "-"]].concat());
        let mut child = send
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{}`", line(&send)))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(list.to_string().as_bytes())
                .with_context(|| format!("write to kubectl {}", command.join(" ")))?;
        }
        let out = child
            .wait_with_output()
            .with_context(|| format!("wait for kubectl {}", command.join(" ")))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("kubectl {}: {}", command.join(" "), said.trim());
        }
        Ok(())
    }
}

/// A command by a prefix, which is shell text.
pub(crate) fn shell(prefix: &str, args: &[&str]) -> Command {
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

/// The names of the nodes that are ready, in the order of a list of nodes.
pub(crate) fn ready_nodes(list: &Value) -> Vec<String> {
    let ready = |node: &&Value| {
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|condition| {
            text(condition, "/type") == Some("Ready") && text(condition, "/status") == Some("True")
        })
    };
    let name = |node| text(node, "/metadata/name").map(str::to_owned);
    items(list).filter(ready).filter_map(name).collect()
}

/// The addresses by which a node is known in the cluster, IPv4 first.
pub(crate) fn node_addresses(node: &Value) -> Vec<String> {
    let all = node.pointer("/status/addresses").and_then(Value::as_array);
    let internal = all.into_iter().flatten().filter(|a| text(a, "/type") == Some("InternalIP"));
    let mut addresses: Vec<_> =
        internal.filter_map(|a| text(a, "/address").map(str::to_owned)).collect();
    addresses.sort_by_key(|address| address.contains(':'));
    addresses
}

/// The ClusterIPs of a Service, IPv4 first.
pub(crate) fn cluster_ips(service: &Value) -> Vec<String> {
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    let mut addresses: Vec<_> =
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    addresses.sort_by_key(|address| address.contains(':'));
    addresses
}
