//! The objects of the measurement: made, changed, removed. All are in one Namespace or have its name as a label.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hyper::{Method, Request};
use serde_json::{Value, json};

use super::server::Server;

/// The Namespace, the label, and the beginning of Nodes' names.
const NAME: &str = "lb-bench-watches";
/// Requests at a time.
const AT_ONCE: usize = 16;
/// Pods of each Node.
const PODS: usize = 3;
/// Services, and the endpoints in the slice of each.
const SERVICES: (usize, usize) = (100, 50);
/// How long the control plane may take to notice that no kubelet runs the Nodes.
const NOTICED: Duration = Duration::from_secs(90);

/// What changes in each measurement.
pub(crate) struct Churn {
    /// Pods that start and end: created, scheduled, running, ready, deleted.
    pub(crate) pods: usize,
    /// Slices of which an endpoint changes.
    pub(crate) slices: usize,
    /// Nodes whose status is written though nothing has changed.
    pub(crate) nodes: usize,
}

pub(crate) const CHURN: Churn = Churn { pods: 20, slices: 40, nodes: 100 };

/// The objects for this number of clients.
pub(crate) struct Objects<'a> {
    server: &'a Server,
    nodes: usize,
    /// Writes of Nodes' statuses so far: one that says the same again changes nothing.
    heartbeats: AtomicU32,
}

/// The name of a client's Node.
pub(crate) fn node_name(i: usize) -> String {
    format!("{NAME}-{i:04}")
}

impl<'a> Objects<'a> {
    pub(crate) fn new(server: &'a Server, nodes: usize) -> Self {
        Self { server, nodes, heartbeats: AtomicU32::new(0) }
    }

    /// Makes all of them. Waits until the control plane has noticed that the Nodes are not ready.
    pub(crate) async fn make(&self) -> Result<()> {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME}});
        self.send(Method::POST, "/api/v1/namespaces", &namespace).await?;
        each(0..self.nodes, |i| self.post("/api/v1/nodes", node(i))).await?;
        let began = tokio::time::Instant::now();
        each(0..SERVICES.0, |i| async move {
            self.post(&in_namespace("", "services"), service(i)).await?;
            self.post(&in_namespace("discovery.k8s.io", "endpointslices"), slice(i, 0)).await
        })
        .await?;
        each(0..PODS * self.nodes, |i| self.start_pod(i % self.nodes, format!("pod-{i}"))).await?;
        while began.elapsed() < NOTICED && self.count_ready().await? > 0 {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        // Taints and the conditions of Pods follow.
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(())
    }

    /// Changes what changes in each measurement.
    pub(crate) async fn churn(&self) -> Result<()> {
        each(0..CHURN.nodes, |i| async move {
            let path = format!("/api/v1/nodes/{}/status", node_name(i % self.nodes));
            let n = self.heartbeats.fetch_add(1, Ordering::Relaxed);
            let now = format!("2026-01-01T{:02}:{:02}:{:02}Z", n / 3600, n / 60 % 60, n % 60);
            let conditions = json!({"status": {"conditions": [{"type": "MemoryPressure", "status": "False", "lastHeartbeatTime": now}]}});
            self.send(Method::PATCH, &path, &conditions).await
        })
        .await?;
        for ready in [1, 0] {
            each(0..CHURN.slices / 2, |i| async move {
                let path =
                    format!("{}/slice-{i}", in_namespace("discovery.k8s.io", "endpointslices"));
                self.send(Method::PUT, &path, &slice(i, ready)).await
            })
            .await?;
        }
        each(0..CHURN.pods, |i| async move {
            let name = format!("churn-{i}");
            self.start_pod(i % self.nodes, name.clone()).await?;
            let path = format!("{}/{name}?gracePeriodSeconds=0", in_namespace("", "pods"));
            self.send(Method::DELETE, &path, &Value::Null).await
        })
        .await
    }

    /// Removes all, whether or not it is there.
    pub(crate) async fn remove(&self) -> Result<()> {
        let pods = format!("{}?gracePeriodSeconds=0", in_namespace("", "pods"));
        let nodes = format!("/api/v1/nodes?labelSelector={NAME}");
        let namespace = format!("/api/v1/namespaces/{NAME}");
        for path in [&pods, &nodes, &namespace] {
            match self.send(Method::DELETE, path, &Value::Null).await {
                Err(err) if !is_absent(&err) => return Err(err),
                Ok(()) | Err(_) => {}
            }
        }
        for _ in 0..300 {
            match self.send(Method::GET, &namespace, &Value::Null).await {
                Err(err) if is_absent(&err) => return Ok(()),
                Ok(()) | Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        anyhow::bail!("the Namespace {NAME} is still there")
    }

    /// A Pod that is created bound to its Node, and then runs.
    async fn start_pod(&self, node: usize, name: String) -> Result<()> {
        self.post(&in_namespace("", "pods"), pod(node, &name)).await?;
        let path = format!("{}/{name}/status", in_namespace("", "pods"));
        for status in [
            json!({"phase": "Pending", "conditions": [condition("PodScheduled", "True")]}),
            running(node, &name),
        ] {
            self.send(Method::PATCH, &path, &json!({ "status": status })).await?;
        }
        Ok(())
    }

    async fn count_ready(&self) -> Result<usize> {
        let path = format!("/api/v1/nodes?labelSelector={NAME}");
        let list: Value = self.server.client.request(Request::get(path).body(Vec::new())?).await?;
        let is_ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            conditions.clone().any(|of| of["type"] == "Ready" && of["status"] == "True")
        };
        Ok(list["items"].as_array().into_iter().flatten().filter(is_ready).count())
    }

    async fn post(&self, path: &str, object: Value) -> Result<()> {
        self.send(Method::POST, path, &object).await
    }

    async fn send(&self, method: Method, path: &str, object: &Value) -> Result<()> {
        let kind = if method == Method::PATCH {
            "application/strategic-merge-patch+json"
        } else {
            "application/json"
        };
        let body = if object.is_null() { Vec::new() } else { serde_json::to_vec(object)? };
        let request =
            Request::builder().method(&method).uri(path).header("content-type", kind).body(body)?;
        self.server
            .client
            .request_text(request)
            .await
            .map(drop)
            .with_context(|| format!("{method} {path}"))
    }
}

fn is_absent(err: &anyhow::Error) -> bool {
    matches!(err.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404)
}

/// Does something for each, several at a time.
async fn each<F: Future<Output = Result<()>>>(
    range: std::ops::Range<usize>,
    step: impl Fn(usize) -> F,
) -> Result<()> {
    stream::iter(range).map(step).buffer_unordered(AT_ONCE).try_collect().await
}

fn in_namespace(group: &str, plural: &str) -> String {
    let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
    format!("{root}/namespaces/{NAME}/{plural}")
}

fn condition(kind: &str, status: &str) -> Value {
    let at = "2026-01-01T00:00:00Z";
    json!({"type": kind, "status": status, "reason": "KubeletHasSufficientResources", "message": "kubelet has sufficient resources available", "lastHeartbeatTime": at, "lastTransitionTime": at})
}

/// As large as a kubelet's: its status has up to fifty images with their names.
fn node(i: usize) -> Value {
    let image = |k: usize| {
        let name = format!("registry.example.com/team-{}/service-{k}", k % 7);
        json!({"names": [format!("{name}@sha256:{:064x}", k * 7919), format!("{name}:v1.{k}.0")], "sizeBytes": 52_428_800 + k})
    };
    let conditions =
        ["MemoryPressure", "DiskPressure", "PIDPressure"].map(|kind| condition(kind, "False"));
    let conditions: Vec<Value> =
        conditions.into_iter().chain([condition("Ready", "True")]).collect();
    let resources = json!({"cpu": "16", "memory": "65536Mi", "pods": "110", "ephemeral-storage": "102400Mi", "hugepages-2Mi": "0"});
    let range = format!("10.{}.{}.0/24", 128 + i / 256, i % 256);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(i), "labels": {
            NAME: "", "kubernetes.io/hostname": node_name(i), "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "node.kubernetes.io/instance-type": "m6i.4xlarge", "topology.kubernetes.io/zone": format!("zone-{}", i % 3),
            "topology.kubernetes.io/region": "region-1",
        }},
        "spec": {
            "podCIDR": range, "podCIDRs": [range], "unschedulable": true,
            "providerID": format!("example:///zone-{}/i-{:017x}", i % 3, i * 104_729),
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": format!("198.18.{}.{}", i / 250, i % 250 + 1)},
                {"type": "Hostname", "address": node_name(i)},
            ],
            "capacity": resources, "allocatable": resources, "conditions": conditions,
            "images": (0..50).map(image).collect::<Vec<_>>(),
            "nodeInfo": {
                "architecture": "amd64", "bootID": format!("{i:032x}"), "containerRuntimeVersion": "containerd://2.2.9",
                "kernelVersion": "6.12.0", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3", "machineID": format!("{i:032x}"),
                "operatingSystem": "linux", "osImage": "Debian GNU/Linux 13 (trixie)", "systemUUID": format!("{i:032x}"),
            },
        },
    })
}

fn pod(node: usize, name: &str) -> Value {
    let variables: Vec<Value> = (0..10)
        .map(|k| json!({"name": format!("SETTING_{k}"), "value": format!("value-{k}")}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAME, "labels": {
            "app.kubernetes.io/name": "service", "app.kubernetes.io/instance": "service-1", "pod-template-hash": "5d8f7c9b4",
        }},
        "spec": {
            "nodeName": node_name(node), "tolerations": [{"operator": "Exists"}], "automountServiceAccountToken": false,
            "containers": [{
                "name": "main", "image": "registry.example.com/team-1/service-1:v1.2.3", "env": variables,
                "ports": [{"name": "http", "containerPort": 8080}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
            }],
        },
    })
}

fn running(node: usize, name: &str) -> Value {
    let number =
        name.bytes().fold(7usize, |sum, byte| sum * 31 % 200 + usize::from(byte) % 7) % 250 + 2;
    let ip = format!("10.{}.{}.{number}", 128 + node / 256, node % 256);
    let started = "2026-01-01T00:00:00Z";
    let is_true = |kind| json!({"type": kind, "status": "True", "lastTransitionTime": started});
    let conditions = ["Initialized", "Ready", "ContainersReady"].map(is_true);
    json!({
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": started,
        "conditions": conditions,
        "containerStatuses": [{
            "name": "main", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.example.com/team-1/service-1:v1.2.3",
            "imageID": format!("registry.example.com/team-1/service-1@sha256:{:064x}", 7919),
            "containerID": format!("containerd://{:064x}", node + 1), "state": {"running": {"startedAt": started}},
        }],
    })
}

fn service(i: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("service-{i}"), "namespace": NAME, "labels": {"app.kubernetes.io/name": format!("service-{i}")}},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    })
}

/// A slice whose first endpoint is ready or not.
fn slice(i: usize, unready: usize) -> Value {
    let endpoint = |k: usize| {
        let ready = k >= unready;
        json!({
            "addresses": [format!("10.{}.{}.{}", 128 + k % 4, i, k + 2)], "nodeName": node_name(k), "zone": format!("zone-{}", k % 3),
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": NAME, "name": format!("service-{i}-5d8f7c9b4-{k:05}"), "uid": format!("00000000-0000-4000-8000-{k:012}")},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("slice-{i}"), "namespace": NAME, "labels": {
            "kubernetes.io/service-name": format!("service-{i}"), "endpointslice.kubernetes.io/managed-by": "lb-bench",
        }},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..SERVICES.1).map(endpoint).collect::<Vec<_>>(),
    })
}
