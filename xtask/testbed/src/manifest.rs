//! Kubernetes objects as small builders, and the directory of manifests that an agent watches.
//!
//! ```no_run
//! # fn f(dir: testbed::manifest::Directory, pod: testbed::Pod) -> anyhow::Result<()> {
//! use testbed::manifest::{pod_of, service};
//! dir.write("web", &[service("web").selector("app", "web").tcp(80).ip("10.96.0.10"), pod_of(&pod).label("app", "web")])
//! # }
//! ```

mod yaml;

use std::{
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::{node::Node, pod::Pod};

/// One Kubernetes object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    value: Value,
}

/// A Service of the namespace `default`, without ports.
pub fn service(name: &str) -> Object {
    Object::new("v1", "Service", name).set(&["spec", "type"], json!("ClusterIP"))
}

/// A ready Pod of the namespace `default` on `node`, without addresses.
pub fn pod(name: &str, node: &str) -> Object {
    Object::new("v1", "Pod", name)
        .set(&["spec", "nodeName"], json!(node))
        .set(&["status", "phase"], json!("Running"))
        .set(&["status", "conditions"], json!([{"type": "Ready", "status": "True"}]))
}

/// A NetworkPolicy of the namespace `default`.
pub fn policy(name: &str, spec: Value) -> Object {
    Object::new("networking.k8s.io/v1", "NetworkPolicy", name).set(&["spec"], spec)
}

/// The object of a Pod of the bed: ready, with both addresses.
pub fn pod_of(pod_in_bed: &Pod) -> Object {
    let [v4, v6] = pod_in_bed.addresses().map(|ip| ip.to_string());
    pod(&pod_in_bed.name, &pod_in_bed.node).ip(&v4).ip(&v6)
}

/// The object of a node of the bed, with its addresses.
pub fn node_of(node: &Node) -> Object {
    let value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}});
    let mut object = Object { value };
    for address in [node.v4.to_string(), node.v6.to_string()] {
        let entry = json!({"type": "InternalIP", "address": address});
        object = object.push(&["status", "addresses"], entry);
    }
    object
}

/// An EndpointSlice of `service_name` with ready endpoints at `addresses`, which are of one family.
pub fn slice(name: &str, service_name: &str, addresses: &[IpAddr]) -> Object {
    let family = if addresses.iter().any(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
        .collect();
    Object::new("discovery.k8s.io/v1", "EndpointSlice", name)
        .label("kubernetes.io/service-name", service_name)
        .set(&["addressType"], json!(family))
        .set(&["endpoints"], endpoints.into())
}

impl Object {
    fn new(api_version: &str, kind: &str, name: &str) -> Self {
        let metadata = json!({"name": name, "namespace": "default"});
        Self { value: json!({"apiVersion": api_version, "kind": kind, "metadata": metadata}) }
    }

    /// Adds a label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.set(&["metadata", "labels", key], json!(value))
    }

    /// Sets an annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.set(&["metadata", "annotations", key], json!(value))
    }

    /// Adds a label that a Service's Pods must have.
    pub fn selector(self, key: &str, value: &str) -> Self {
        self.set(&["spec", "selector", key], json!(value))
    }

    /// Adds a TCP port whose target is the same number.
    pub fn tcp(self, port: u16) -> Self {
        self.port("TCP", port, json!(port))
    }

    /// Adds a UDP port whose target is the same number.
    pub fn udp(self, port: u16) -> Self {
        self.port("UDP", port, json!(port))
    }

    /// Adds a Service port; `target` is a number or a name.
    pub fn port(self, protocol: &str, port: u16, target: Value) -> Self {
        let name = format!("{}-{port}", protocol.to_lowercase());
        let port = json!({"name": name, "protocol": protocol, "port": port, "targetPort": target});
        self.push(&["spec", "ports"], port)
    }

    /// Adds a port to an EndpointSlice: `target` is where the endpoints listen for the Service's `port`.
    pub fn slice_port(self, protocol: &str, port: u16, target: u16) -> Self {
        let name = format!("{}-{port}", protocol.to_lowercase());
        self.push(&["ports"], json!({"name": name, "protocol": protocol, "port": target}))
    }

    /// Adds an address: a ClusterIP to a Service, a Pod IP to a Pod. The first one is the primary.
    pub fn ip(self, ip: &str) -> Self {
        let of_service = self.value.get("kind") == Some(&json!("Service"));
        let (primary, all): (&[&str], &[&str]) = if of_service {
            (&["spec", "clusterIP"], &["spec", "clusterIPs"])
        } else {
            (&["status", "podIP"], &["status", "podIPs"])
        };
        let entry = if of_service { json!(ip) } else { json!({"ip": ip}) };
        let first = primary.iter().try_fold(&self.value, |value, key| value.get(key)).is_none();
        let object = if first { self.set(primary, json!(ip)) } else { self };
        if !of_service {
            return object.push(all, entry);
        }
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        object.push(all, entry).push(&["spec", "ipFamilies"], json!(family))
    }

    /// Makes the Pod not ready.
    pub fn not_ready(self) -> Self {
        let condition = json!([{"type": "Ready", "status": "False"}]);
        self.set(&["status", "conditions"], condition)
    }

    /// Sets any field by its path; missing parents appear.
    pub fn set(mut self, path: &[&str], value: Value) -> Self {
        *field(&mut self.value, path) = value;
        self
    }

    /// Appends to a list by its path.
    pub fn push(mut self, path: &[&str], value: Value) -> Self {
        match field(&mut self.value, path) {
            Value::Array(list) => list.push(value),
            other => *other = json!([value]),
        }
        self
    }

    /// The object as one YAML document.
    pub fn to_yaml(&self) -> String {
        yaml::document(&self.value)
    }
}

/// The field at `path`, made if it is not there.
fn field<'v>(value: &'v mut Value, path: &[&str]) -> &'v mut Value {
    let Some((key, rest)) = path.split_first() else { return value };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => field(map.entry((*key).to_owned()).or_insert(Value::Null), rest),
        // An object since the line above; the compiler cannot know.
        other => other,
    }
}

/// A directory that an agent watches.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Its path.
    pub path: PathBuf,
}

impl Directory {
    /// Makes the directory, with parents.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Replaces the file `name.yaml` by these objects at once: a reader sees the old file or the new one.
    pub fn write(&self, name: &str, objects: &[Object]) -> anyhow::Result<()> {
        let documents: Vec<String> = objects.iter().map(Object::to_yaml).collect();
        self.write_text(name, &documents.join("---\n"))
    }

    /// Replaces the file `name.yaml` by `text`, whatever that is.
    pub fn write_text(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path.join(format!("{name}.yaml"));
        // Beside the directory, not in it: the agent must not see half a file.
        let mut temporary = self.path.as_os_str().to_owned();
        temporary.push(format!(".{name}.new"));
        let mut file = std::fs::File::create(&temporary).context("create a manifest")?;
        file.write_all(text.as_bytes()).context("write a manifest")?;
        std::fs::rename(&temporary, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Removes the file `name.yaml`.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path.join(format!("{name}.yaml"));
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::{pod, service};

    #[test]
    fn objects_read_like_kubectl_output() {
        let web = service("web").selector("app", "web").tcp(80).ip("10.96.0.10").ip("fd96::10");
        assert_eq!(
            web.to_yaml(),
            r#"apiVersion: "v1"
kind: "Service"
metadata:
  name: "web"
  namespace: "default"
spec:
  clusterIP: "10.96.0.10"
  clusterIPs:
  - "10.96.0.10"
  - "fd96::10"
  ipFamilies:
  - "IPv4"
  - "IPv6"
  ports:
  - name: "tcp-80"
    port: 80
    protocol: "TCP"
    targetPort: 80
  selector:
    app: "web"
  type: "ClusterIP"
"#
        );
        let pod = pod("a", "n1").label("app", "web").ip("10.244.1.2").to_yaml();
        assert!(
            pod.contains("  podIP: \"10.244.1.2\"\n  podIPs:\n  - ip: \"10.244.1.2\"\n"),
            "{pod}"
        );
    }
}
