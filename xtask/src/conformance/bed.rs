//! What the checks put into the cluster, all in one namespace: on each node a Pod that is client and server at once,
//! and a privileged one that stands for the node; a Deployment spread over the nodes; Services in front of them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{
    command::{output, say},
    kubectl::cluster_ips,
};

use super::{
    cluster::{Cluster, NAMESPACE, text},
    report::within,
};

/// TCP and UDP port of every Service; netexec listens on others, so the port is translated as well.
pub(crate) const PORT: u16 = 80;
const HTTP: u16 = 8080;
const UDP: u16 = 8081;

/// The cluster with everything in it that the checks use.
pub(crate) struct Bed<'a> {
    pub(crate) cluster: &'a Cluster,
    /// Addresses of the Service `web`: IPv4, then IPv6, as far as the cluster has them.
    pub(crate) web: Vec<String>,
    image: String,
    /// Whether the privileged Pods stand for the nodes although --node-exec reaches those: they lack the programs.
    pods_for_nodes: bool,
}

/// What questions are asked with.
const PROGRAMS: &str = "command -v curl && command -v nc";

impl<'a> Bed<'a> {
    /// Makes everything and waits until the Pods are ready.
    ///
    /// # Errors
    /// When the API refuses something, or the Pods do not start.
    pub(crate) fn make(cluster: &'a Cluster, image: &str) -> Result<Self> {
        remove(cluster)?;
        say(&format!("test Pods in {NAMESPACE} on {}", cluster.nodes.join(" ")));
        let mut bed =
            Bed { cluster, web: Vec::new(), image: image.to_owned(), pods_for_nodes: false };
        // Nodes' shells are privileged, which the namespace must allow where Pod security is enforced.
        let labels = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": NAMESPACE, "labels": labels },
        });
        cluster.apply(&[namespace])?;
        let mut objects = vec![
            bed.deployment("web", 2 * cluster.nodes.len()),
            service("web", &json!({ "app": "web" }), None),
            service("empty", &json!({ "app": "none" }), None),
        ];
        for node in &cluster.nodes {
            objects.push(bed.client(node));
            objects.push(bed.host(node));
            objects.push(service(&format!("at-{node}"), &json!({ "client": node }), None));
        }
        cluster.apply(&objects)?;
        let wait = ["wait", "--namespace", NAMESPACE, "--for", "condition=Ready", "pod"];
        within(Duration::from_secs(60), || {
            cluster.run(
                &[&wait[..], &["--selector", "bed=lb-conformance", "--timeout", "90s"]].concat(),
            )
        })
        .context("the test Pods did not become ready")?;
        bed.pods_for_nodes = cluster.nodes.iter().any(|node| bed.on_node(node, PROGRAMS).is_err());
        if bed.pods_for_nodes {
            say(
                "the nodes have no curl or nc: using Pods on the host network and in the host PID namespace instead",
            );
        }
        bed.web = bed.addresses("web")?;
        if bed.web.len() == 1 {
            say("single-stack cluster: checking only its address family");
        }
        Ok(bed)
    }

    /// The ClusterIPs of a Service, IPv4 first.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn addresses(&self, service: &str) -> Result<Vec<String>> {
        let object = self.cluster.json(&["get", "--namespace", NAMESPACE, "service", service])?;
        let addresses = cluster_ips(&object);
        if addresses.is_empty() {
            bail!("Service {service} has no ClusterIP: {:?}", text(&object, "/spec/clusterIP"));
        }
        Ok(addresses)
    }

    /// A Deployment of servers, spread over the nodes. A stopped server leaves at once, so that only the Service
    /// decides whether a request still finds it.
    pub(crate) fn deployment(&self, name: &str, replicas: usize) -> Value {
        let labels = json!({ "app": name, "bed": "lb-conformance" });
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "tolerations": [{ "operator": "Exists" }],
                        "topologySpreadConstraints": [{
                            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "DoNotSchedule",
                            "labelSelector": { "matchLabels": { "app": name } },
                        }],
                        "containers": [self.server()],
                    },
                },
            },
        })
    }

    fn server(&self) -> Value {
        json!({
            "name": "server", "image": self.image, "imagePullPolicy": "IfNotPresent",
            "args": ["netexec", format!("--http-port={HTTP}"), format!("--udp-port={UDP}")],
            "readinessProbe": { "httpGet": { "path": "/healthz", "port": HTTP }, "periodSeconds": 1 },
        })
    }

    fn client(&self, node: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("client-{node}"), "namespace": NAMESPACE,
                "labels": { "client": node, "role": "client", "bed": "lb-conformance" },
            },
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 1,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [self.server()],
            },
        })
    }

    /// A Pod of the policies' stories, which answers at 8080; the database also at 5432.
    pub(crate) fn tenant(&self, namespace: &str, name: &str, node: &str) -> Value {
        let server = |container: &str, port: u16| {
            json!({
                "name": container, "image": self.image, "imagePullPolicy": "IfNotPresent",
                "args": ["netexec", format!("--http-port={port}"), format!("--udp-port={}", port + 1)],
                "readinessProbe": { "httpGet": { "path": "/healthz", "port": port }, "periodSeconds": 1 },
                "ports": [{ "name": container, "containerPort": port }],
            })
        };
        let mut containers = vec![server("http", HTTP)];
        if name == "db" {
            containers.push(server("sql", 5432));
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "labels": { "app": name } },
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 1,
                "tolerations": [{ "operator": "Exists" }],
                "containers": containers,
            },
        })
    }

    fn host(&self, node: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("host-{node}"), "namespace": NAMESPACE,
                "labels": { "bed": "lb-conformance" },
            },
            "spec": {
                "nodeName": node, "hostNetwork": true, "hostPID": true,
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{
                    "name": "shell", "image": self.image, "imagePullPolicy": "IfNotPresent",
                    "args": ["pause"], "securityContext": { "privileged": true },
                }],
            },
        })
    }

    /// The metrics of a node's agent, as text.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn metrics(&self, node: &str) -> Result<String> {
        let get = "curl --silent --show-error --max-time 5 http://127.0.0.1:10249/metrics";
        self.in_host_pod(node, get)
    }

    /// Runs a script in a node's client Pod.
    ///
    /// # Errors
    /// When it fails; with what it wrote to stderr.
    pub(crate) fn in_pod(&self, node: &str, script: &str) -> Result<String> {
        output(&mut self.cluster.pod_shell(&format!("client-{node}"), script))
            .map_err(|err| short(&err, script))
    }

    /// Runs a script outside the cluster.
    ///
    /// # Errors
    /// When no machine there is known, or it fails; with what it wrote to stderr.
    pub(crate) fn outside(&self, script: &str) -> Result<String> {
        let shell = self.cluster.outside_shell(script);
        output(&mut shell.context("no --outside-exec")?).map_err(|err| short(&err, script))
    }

    /// The NodePorts of a Service: TCP, then UDP.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn node_ports(&self, service: &str) -> Result<(u16, u16)> {
        let object = self.cluster.json(&["get", "--namespace", NAMESPACE, "service", service])?;
        let port = |nth: usize| {
            let port = object.pointer(&format!("/spec/ports/{nth}/nodePort"));
            let port = port.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
            port.with_context(|| format!("Service {service} has no NodePort"))
        };
        Ok((port(0)?, port(1)?))
    }

    /// Runs a script on a node.
    ///
    /// # Errors
    /// When it fails; with what it wrote to stderr.
    pub(crate) fn on_node(&self, node: &str, script: &str) -> Result<String> {
        if self.pods_for_nodes {
            return self.in_host_pod(node, script);
        }
        output(&mut self.cluster.node_shell(node, script)).map_err(|err| short(&err, script))
    }

    /// Runs a script in the privileged Pod on a node, on the node's network.
    ///
    /// # Errors
    /// When it fails; with what it wrote to stderr.
    pub(crate) fn in_host_pod(&self, node: &str, script: &str) -> Result<String> {
        output(&mut self.cluster.pod_shell(&format!("host-{node}"), script))
            .map_err(|err| short(&err, script))
    }

    /// A Service of all servers with a NodePort.
    pub(crate) fn node_port_service(&self, name: &str) -> Value {
        with(service(name, &json!({ "app": "web" }), None), &json!({ "type": "NodePort" }))
    }

    /// Whether Services have addresses of this one's family.
    pub(crate) fn has_family(&self, address: &str) -> bool {
        self.web.iter().any(|own| own.contains(':') == address.contains(':'))
    }
}

/// The error with the script in place of the whole command line, which is mostly prefixes.
fn short(err: &anyhow::Error, script: &str) -> anyhow::Error {
    let text = format!("{err:#}");
    let said = text.rsplit_once("`: ").map_or(text.as_str(), |(_, said)| said);
    anyhow::anyhow!("`{script}`: {said}")
}

/// A Service of TCP 80 and UDP 80, in both families where the cluster has them.
pub(crate) fn service(name: &str, selector: &Value, address: Option<&str>) -> Value {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": selector,
            "ports": [
                { "name": "http", "port": PORT, "targetPort": HTTP, "protocol": "TCP" },
                { "name": "udp", "port": PORT, "targetPort": UDP, "protocol": "UDP" },
            ],
        },
    });
    match address {
        Some(address) => {
            with(service, &json!({ "clusterIP": address, "ipFamilyPolicy": "SingleStack" }))
        }
        None => service,
    }
}

/// The Service with more fields in its spec.
pub(crate) fn with(mut service: Value, fields: &Value) -> Value {
    let spec = service.get_mut("spec").and_then(Value::as_object_mut);
    if let (Some(spec), Some(fields)) = (spec, fields.as_object()) {
        spec.extend(fields.clone());
    }
    service
}

/// Removes the namespace and waits until it is gone.
///
/// # Errors
/// When it stays.
pub(crate) fn remove(cluster: &Cluster) -> Result<()> {
    let delete = ["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout", "90s"];
    cluster.run(&delete).map(|_| ())
}
