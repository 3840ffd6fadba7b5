//! Tokens of ten minutes, the shortest that Kubernetes gives: the kubelet replaces them in the agents' Pods, and the first ones expire.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::{
    command::say,
    conformance::{
        bed::Bed,
        deploy::{self, DAEMON_SET, SYSTEM, agent_on},
    },
};

use super::nodes::metric;

/// `expirationSeconds`, at least 600 (the API's validation of projected tokens).
const LIFE: Duration = Duration::from_secs(600);
/// The API server's watches of two minutes are asked for again by then.
const AFTER: Duration = Duration::from_secs(130);
/// Where a Pod has its account's credentials.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Agents with such tokens.
pub(super) struct ShortTokens {
    issued: Instant,
    /// The agents' Pods, by node.
    uids: Vec<Option<String>>,
}

impl ShortTokens {
    /// Gives the agents such tokens, by a volume in place of the one that is added to every Pod.
    ///
    /// # Errors
    /// When the agents do not become ready with it.
    pub(super) fn issue(bed: &Bed<'_>) -> Result<Self> {
        let token = json!({ "serviceAccountToken": { "path": "token", "expirationSeconds": LIFE.as_secs() } });
        let items = json!([{ "key": "ca.crt", "path": "ca.crt" }]);
        let ca = json!({ "configMap": { "name": "kube-root-ca.crt", "items": items } });
        let field =
            json!({ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } });
        let namespace = json!({ "downwardAPI": { "items": [field] } });
        let volume =
            json!({ "name": "short-token", "projected": { "sources": [token, ca, namespace] } });
        let mount = json!({ "name": "short-token", "mountPath": MOUNT, "readOnly": true });
        let patch = json!([
            { "op": "add", "path": "/spec/template/spec/volumes/-", "value": volume },
            { "op": "add", "path": "/spec/template/spec/containers/0/volumeMounts/-", "value": mount },
        ])
        .to_string();
        let args =
            ["--namespace", SYSTEM, "patch", DAEMON_SET, "--type", "json", "--patch", &patch];
        bed.cluster.run(&args)?;
        deploy::ready(bed.cluster)?;
        Ok(Self { issued: Instant::now(), uids: uids(bed)? })
    }

    /// Waits until the first tokens have expired and all watches were asked for again since, and looks at the agents.
    ///
    /// # Errors
    /// When an agent was restarted, or had a token refused.
    pub(super) fn check(&self, bed: &Bed<'_>) -> Result<String> {
        let due = self.issued + LIFE + AFTER;
        let left = due.saturating_duration_since(Instant::now());
        say(&format!("waiting {} s until the first tokens have expired", left.as_secs()));
        thread::sleep(left);
        ensure!(uids(bed)? == self.uids, "an agent was replaced");
        let mut requests = 0.0;
        for node in &bed.cluster.nodes {
            let pod = agent_on(bed.cluster, node)?;
            let restarts = pod.pointer("/status/containerStatuses/0/restartCount");
            ensure!(restarts == Some(&json!(0)), "{node}: {restarts:?} restarts");
            let refused = metric(bed, node, "rest_client_requests_total", "code=\"401\"")?;
            if refused > 0.0 {
                bail!("{node}: {refused} requests had a token that was refused");
            }
            requests += metric(bed, node, "rest_client_requests_total", "code=\"200\"")?;
        }
        Ok(format!("{requests} requests, none with a token that had expired"))
    }
}

fn uids(bed: &Bed<'_>) -> Result<Vec<Option<String>>> {
    let uid = |node: &String| -> Result<Option<String>> {
        let pod = agent_on(bed.cluster, node).with_context(|| node.clone())?;
        Ok(pod.pointer("/metadata/uid").and_then(|uid| uid.as_str()).map(str::to_owned))
    };
    bed.cluster.nodes.iter().map(uid).collect()
}
