//! How to reach the cluster: kubectl, a shell in a Pod, a shell on a node. Each may be a command prefix of the
//! caller's, and everything that could hang runs under a timeout.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::kubectl::{Kubectl, node_addresses, ready_nodes, shell};
pub(crate) use crate::kubectl::{items, text};

use super::Target;

/// The namespace of everything that the checks make.
pub(crate) const NAMESPACE: &str = "lb-conformance";

/// A cluster, and a node's shell in it.
pub(crate) struct Cluster {
    kubectl: Kubectl,
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
    pub(crate) fn new(target: &Target, outside_exec: Option<String>) -> Result<Self> {
        let mut cluster = Self {
            kubectl: Kubectl::new(&target.kubectl)?,
            node_exec: target.node_exec.clone(),
            outside_exec,
            nodes: Vec::new(),
        };
        cluster.nodes = ready_nodes(&cluster.json(&["get", "nodes"])?);
        if cluster.nodes.is_empty() {
            bail!("the cluster has no ready node");
        }
        Ok(cluster)
    }

    /// The same for what needs several nodes.
    ///
    /// # Errors
    /// When it has one only.
    pub(crate) fn of_nodes(target: &Target) -> Result<Self> {
        let cluster = Self::new(target, None)?;
        if cluster.nodes.len() < 2 {
            bail!("the cluster has one ready node; two at least are needed");
        }
        Ok(cluster)
    }

    /// A kubectl command.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Command {
        self.kubectl.command(args)
    }

    /// kubectl's output.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        self.kubectl.run(args)
    }

    /// kubectl's output as JSON.
    ///
    /// # Errors
    /// When it fails, or its output is not JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value> {
        self.kubectl.json(args)
    }

    /// Waits until all Pods of a workload are those of its present template, and ready.
    ///
    /// # Errors
    /// When they are not within two minutes.
    pub(crate) fn rolled_out(&self, namespace: &str, workload: &str) -> Result<()> {
        self.kubectl.rolled_out(namespace, workload, "120s")
    }

    /// Creates or updates objects.
    ///
    /// # Errors
    /// When the API refuses one.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        self.send(&["apply"], objects)
    }

    /// Gives objects to a kubectl command that reads them.
    ///
    /// # Errors
    /// When the API refuses one.
    pub(crate) fn send(&self, command: &[&str], objects: &[Value]) -> Result<()> {
        self.kubectl.send(command, objects)
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
        let addresses = node_addresses(&self.json(&["get", "node", node])?);
        if addresses.is_empty() {
            bail!("{node} has no InternalIP");
        }
        Ok(addresses)
    }
}
