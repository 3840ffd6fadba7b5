//! kube-proxy as a DaemonSet of `kube-system`, taken away and put back as it was.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::super::{
    cluster::{Cluster, items},
    deploy::SYSTEM,
    report::within,
};

const DAEMON_SET: &str = "daemonset/kube-proxy";
const CONFIG_MAP: &str = "configmap/kube-proxy";
const SELECTOR: &str = "k8s-app=kube-proxy";

/// The objects as they were found.
pub(super) struct KubeProxy {
    objects: [Value; 2],
}

impl KubeProxy {
    /// Reads them.
    ///
    /// # Errors
    /// When the cluster has no kube-proxy of that form.
    pub(super) fn read(cluster: &Cluster) -> Result<Self> {
        let read = |object: &str| {
            let object = cluster.json(&["--namespace", SYSTEM, "get", object]);
            object
                .map(own)
                .context("--takeover requires kube-proxy as a DaemonSet with a ConfigMap")
        };
        Ok(Self { objects: [read(CONFIG_MAP)?, read(DAEMON_SET)?] })
    }

    /// Deletes them, as docs/src/takeover.md says, and waits until no Pod is left.
    ///
    /// # Errors
    /// When one stays.
    pub(super) fn delete(cluster: &Cluster) -> Result<()> {
        cluster.run(&["--namespace", SYSTEM, "delete", DAEMON_SET, CONFIG_MAP])?;
        within(Duration::from_secs(60), || {
            let list = cluster.json(&["--namespace", SYSTEM, "get", "pods", "-l", SELECTOR])?;
            match items(&list).count() {
                0 => Ok(()),
                n => bail!("{n} Pods of kube-proxy still exist"),
            }
        })
    }

    /// Puts them back and waits until they run.
    ///
    /// # Errors
    /// When the API refuses them, or a Pod does not start.
    pub(super) fn restore(&self, cluster: &Cluster) -> Result<()> {
        cluster.apply(&self.objects)?;
        cluster.rolled_out(SYSTEM, DAEMON_SET)
    }
}

/// The object without what the server adds.
fn own(mut object: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels"));
    }
    object
}
