//! Whether the cluster can be measured: reachable, with permissions and ready nodes; and what it consists of.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{NAMESPACE, record::NodeFacts};
use crate::kubectl::{Kubectl, items, node_addresses, ready_nodes, text};

/// What the cluster has.
pub(super) struct Access {
    /// Version of its API server.
    pub(super) version: String,
    /// The client's node, and another one where there are two.
    pub(super) nodes: Vec<Node>,
}

/// A node that is used.
pub(super) struct Node {
    pub(super) facts: NodeFacts,
    /// IPv4 first.
    pub(super) addresses: Vec<String>,
}

/// Everything that the bench does with the API: verb, resource, subresource, and whether it is in the bench's Namespace.
const PERMISSIONS: [(&str, &str, &str, bool); 9] = [
    ("list", "nodes", "", false),
    ("get", "namespaces", "", false),
    ("create", "namespaces", "", false),
    ("delete", "namespaces", "", false),
    ("create", "pods", "", true),
    ("list", "pods", "", true),
    ("create", "pods", "exec", true),
    ("create", "services", "", true),
    ("list", "services", "", true),
];

impl Access {
    /// Asks the cluster.
    ///
    /// # Errors
    /// When it cannot be reached, the user lacks a permission, or a node is missing.
    pub(super) fn check(kubectl: &Kubectl, wanted: &[String]) -> Result<Self> {
        let version = kubectl.json(&["version", "--request-timeout=10s"]);
        let version = version.context("cannot reach the cluster")?;
        let version = text(&version, "/serverVersion/gitVersion").unwrap_or("unknown").to_owned();
        let missing: Vec<String> = PERMISSIONS
            .into_iter()
            .filter_map(|permission| denied(kubectl, permission).transpose())
            .collect::<Result<_>>()?;
        ensure!(
            missing.is_empty(),
            "the user of this kubeconfig lacks these permissions: {}; ask an administrator of the cluster for them",
            missing.join(", ")
        );
        let list = kubectl.json(&["get", "nodes"])?;
        let nodes = choose(&list, wanted)?;
        Ok(Self { version, nodes })
    }
}

/// A permission that the user does not have, as one reads it in a Role.
fn denied(
    kubectl: &Kubectl,
    (verb, resource, sub, inside): (&str, &str, &str, bool),
) -> Result<Option<String>> {
    let mut args = vec!["auth", "can-i", verb, resource];
    let subresource = format!("--subresource={sub}");
    if !sub.is_empty() {
        args.push(&subresource);
    }
    if inside {
        args.extend(["--namespace", NAMESPACE]);
    }
    let out = kubectl.command(&args).stdin(Stdio::null()).output().context("start kubectl")?;
    let (said, trouble) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let name = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
    let scope = if inside { format!(" in the Namespace {NAMESPACE}") } else { String::new() };
    match said.trim() {
        "yes" => Ok(None),
        said if said.starts_with("no") => Ok(Some(format!("{verb} {name}{scope}"))),
        said => bail!("kubectl {}: {said} {}", args.join(" "), trouble.trim()),
    }
}

/// The nodes that were asked for, or the first two that are ready, workers first.
fn choose(list: &Value, wanted: &[String]) -> Result<Vec<Node>> {
    let mut ready = ready_nodes(list);
    ensure!(!ready.is_empty(), "the cluster has no ready node");
    let by_name = |name: &str| items(list).find(|node| text(node, "/metadata/name") == Some(name));
    let controls = |name: &String| {
        let labels = by_name(name).and_then(|node| node.pointer("/metadata/labels"));
        labels.is_some_and(|labels| labels.get("node-role.kubernetes.io/control-plane").is_some())
    };
    ready.sort_by_key(controls);
    for name in wanted {
        ensure!(ready.contains(name), "{name} is not a ready node; these are: {}", ready.join(" "));
    }
    let rest = ready.iter().filter(|name| !wanted.contains(name));
    let chosen = wanted.iter().chain(rest).take(2);
    let node = |name: &String| {
        let node = by_name(name).context("a node has gone")?;
        let fact =
            |name: &str| text(node, &format!("/status/nodeInfo/{name}")).unwrap_or("?").to_owned();
        let facts = NodeFacts {
            name: name.clone(),
            kernel: fact("kernelVersion"),
            kubelet: fact("kubeletVersion"),
            architecture: fact("architecture"),
        };
        Ok(Node { facts, addresses: node_addresses(node) })
    };
    chosen.map(node).collect()
}

/// What serves Services, as far as its DaemonSet shows.
pub(super) fn served_by(kubectl: &Kubectl) -> String {
    let list = kubectl.json(&["get", "daemonsets", "--namespace", "kube-system"]);
    let list = list.unwrap_or_default();
    let mut found = Vec::new();
    for (daemon_set, name) in
        [("lb-agent", "lb"), ("kube-proxy", "kube-proxy"), ("cilium", "cilium")]
    {
        let named = |item: &Value| text(item, "/metadata/name") == Some(daemon_set);
        if !items(&list).any(named) {
            continue;
        }
        let config = ["get", "configmap", "kube-proxy", "--namespace", "kube-system"];
        let mode = match daemon_set {
            "kube-proxy" => kubectl.json(&config).ok().and_then(|config| mode(&config)),
            _ => None,
        };
        found.push(mode.map_or(name.to_owned(), |mode| format!("{name} ({mode})")));
    }
    if found.is_empty() { "cluster".to_owned() } else { found.join(" + ") }
}

/// The mode in kube-proxy's configuration.
fn mode(config_map: &Value) -> Option<String> {
    let config = text(config_map, "/data/config.conf")?;
    let mode = config.lines().find_map(|line| line.strip_prefix("mode:"))?;
    let mode = mode.trim().trim_matches('"');
    // The default on Linux.
    Some(if mode.is_empty() { "iptables".to_owned() } else { mode.to_owned() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{choose, mode};

    fn node(name: &str, ready: &str, labels: &Value) -> Value {
        json!({
            "metadata": { "name": name, "labels": labels },
            "status": {
                "conditions": [{ "type": "Ready", "status": ready }],
                "addresses": [{ "type": "InternalIP", "address": "172.18.0.2" }],
                "nodeInfo": { "kernelVersion": "6.18", "kubeletVersion": "v1.36.3", "architecture": "amd64" },
            },
        })
    }

    #[test]
    fn workers_come_first_and_wanted_nodes_before_them() {
        let control = json!({ "node-role.kubernetes.io/control-plane": "" });
        let list = json!({ "items": [
            node("a", "True", &control), node("b", "False", &json!({})),
            node("c", "True", &json!({})), node("d", "True", &json!({})),
        ]});
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            let nodes = choose(&list, &wanted)?;
            anyhow::Ok(nodes.into_iter().map(|node| node.facts.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["c", "d"]);
        assert_eq!(names(&["a"]).unwrap(), ["a", "c"]);
        assert_eq!(names(&["d", "a"]).unwrap(), ["d", "a"]);
        let refused = names(&["b"]).unwrap_err().to_string();
        assert_eq!(refused, "b is not a ready node; these are: c d a");
        let one = json!({ "items": [node("a", "True", &control)] });
        assert_eq!(choose(&one, &[]).unwrap().len(), 1);
        assert!(choose(&json!({ "items": [] }), &[]).is_err());
    }

    #[test]
    fn the_mode_of_kube_proxy_is_read_from_its_configuration() {
        let config = |text: &str| json!({ "data": { "config.conf": text } });
        assert_eq!(mode(&config("a: 1\nmode: nftables\n")).as_deref(), Some("nftables"));
        assert_eq!(mode(&config("mode: \"\"\n")).as_deref(), Some("iptables"));
        assert_eq!(mode(&json!({})), None);
    }
}
