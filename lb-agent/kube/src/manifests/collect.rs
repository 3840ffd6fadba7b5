//! Manifests as they are in a repository, before any cluster has seen them → the events of a cluster that has applied them.
//!
//! What an API server and its controllers would add is made up here, as far as findings depend on it: a Pod for each
//! workload, addresses of Pods and Services, EndpointSlices.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use serde_json::{Value, json};

use super::derive::Derive;
use super::document::{self, ParsedObject};
use super::text::ManifestFault;
use lb_core::cluster::{Event, Kind, Name};
use lb_core::issue::{Issue, ObjectRef};

/// Where a manifest is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestPlace {
    /// The file, as the caller names it.
    pub file: String,
    /// The line where the document begins, from 1.
    pub line: u64,
}

/// What a set of manifests says.
#[derive(Debug, Default)]
pub struct CollectedManifests {
    /// What a source would report.
    pub events: Vec<Event>,
    /// What is wrong with fields.
    pub issues: Vec<Issue>,
    /// Documents that cannot be read.
    pub faults: Vec<ManifestFault>,
    /// Objects of a kind and name that are there already, and the place of the first.
    pub duplicates: Vec<(ObjectRef, ManifestPlace, ManifestPlace)>,
    /// Where each object is.
    pub places: BTreeMap<(Kind, Name), ManifestPlace>,
}

/// Reads manifests, each a file's name and its text.
pub fn collect(files: &[(String, String)]) -> CollectedManifests {
    let mut collector = Collector::default();
    for (file, text) in files {
        collector.file(file, text);
    }
    let Collector { mut collected, mut derive, .. } = collector;
    derive.flush(&mut |event| collected.events.push(event));
    collected
}

#[derive(Default)]
struct Collector {
    collected: CollectedManifests,
    derive: Derive,
    /// Numbers of the addresses that were given out.
    given: u32,
}

impl Collector {
    fn file(&mut self, file: &str, text: &str) {
        let mut found = Vec::new();
        let faults = document::parse(text, &mut |object| found.push(object));
        self.collected.faults.extend(faults.into_iter().map(|fault| {
            let issue = Issue::new(ObjectRef::file(file, fault.line), fault.field, fault.message);
            ManifestFault { issue, lossy: fault.lossy }
        }));
        // These are read again, with what the API server would add.
        found.retain(|it| !matches!(it.object.kind(), Kind::Pod | Kind::Service));
        for object in found {
            self.object(file, &object);
        }
        for (line, value) in document::values(text) {
            self.value(file, line, value);
        }
    }

    /// A document, or an item of a list.
    fn value(&mut self, file: &str, line: u64, mut value: Value) {
        if let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) {
            items.into_iter().for_each(|item| self.value(file, line, item));
            return;
        }
        let Some(complete) = self.complete(value) else { return };
        let mut found = Vec::new();
        // What is wrong with it was said when the text was read.
        document::parse(&complete.to_string(), &mut |object| found.push(object));
        for object in found {
            self.object(file, &ParsedObject { line, ..object });
        }
    }

    fn object(&mut self, file: &str, found: &ParsedObject) {
        let (kind, name) = (found.object.kind(), found.object.name());
        let place = ManifestPlace { file: file.to_owned(), line: found.line };
        match self.collected.places.entry((kind, name.clone())) {
            Entry::Vacant(entry) => drop(entry.insert(place)),
            Entry::Occupied(first) => {
                let object = ObjectRef::new(kind.name(), &name);
                self.collected.duplicates.push((object, place, first.get().clone()));
                return;
            }
        }
        self.derive.put(&*found.object, &name);
        let (event, issues) = found.object.read(name, &Arc::from(""));
        self.collected.events.push(event);
        self.collected.issues.extend(issues);
    }

    /// The Pod or Service that it is, or the Pod of the workload that it is, with addresses.
    fn complete(&mut self, value: Value) -> Option<Value> {
        let text =
            |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match (text("apiVersion").as_str(), text("kind").as_str()) {
            ("v1", "Service") => Some(self.service(value)),
            ("v1", "Pod") => Some(self.pod(value)),
            ("v1", "ReplicationController")
            | ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
            | ("batch/v1", "Job") => self.of_template(&value, "/spec/template"),
            ("batch/v1", "CronJob") => self.of_template(&value, "/spec/jobTemplate/spec/template"),
            _ => None,
        }
    }

    fn of_template(&mut self, workload: &Value, template: &str) -> Option<Value> {
        let template = workload.pointer(template)?;
        let metadata = workload.get("metadata")?;
        let of = |key: &str| template.pointer(&format!("/metadata/{key}")).cloned();
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": metadata.get("name"),
                "namespace": metadata.get("namespace").and_then(Value::as_str).unwrap_or("default"),
                "labels": of("labels"),
                "annotations": of("annotations"),
            },
            "spec": template.get("spec"),
        });
        Some(self.pod(pod))
    }

    fn pod(&mut self, mut pod: Value) -> Value {
        let on_host = pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true);
        let has_address = pod.pointer("/status/podIP").or(pod.pointer("/status/podIPs")).is_some();
        if !on_host
            && !has_address
            && let Some(fields) = pod.as_object_mut()
        {
            let [v4, v6] = self.addresses(18);
            let status = json!({"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}]});
            fields.insert("status".to_owned(), status);
        }
        pod
    }

    fn service(&mut self, mut service: Value) -> Value {
        let text = |key: &str| service.pointer(key).and_then(Value::as_str).unwrap_or_default();
        let is_other = text("/spec/type") == "ExternalName" || !text("/spec/clusterIP").is_empty();
        if !is_other && let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
            let [v4, _] = self.addresses(19);
            spec.insert("clusterIP".to_owned(), v4.clone().into());
            spec.insert("clusterIPs".to_owned(), json!([v4]));
        }
        service
    }

    /// Addresses of ranges for measurements (RFC 2544, RFC 5180), which no cluster uses.
    fn addresses(&mut self, second: u8) -> [String; 2] {
        self.given += 1;
        let [_, _, c, d] = self.given.to_be_bytes();
        [format!("198.{second}.{c}.{d}"), format!("2001:2::{second:x}:{:x}", self.given)]
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Name, collect};
    use lb_core::cluster::{Change, Event};

    const SHOP: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
";

    #[test]
    fn workloads_have_a_pod_and_services_an_address() {
        let files =
            [("a.yaml".to_owned(), SHOP.to_owned()), ("b.yaml".to_owned(), SHOP.to_owned())];
        let collected = collect(&files);
        assert!(collected.faults.iter().all(|fault| !fault.lossy), "{:?}", collected.faults);
        assert!(collected.issues.is_empty(), "{:?}", collected.issues);
        let pods: Vec<_> = collected
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Pod(Change::Applied(name, pod)) => Some((name.to_string(), pod.ips.len())),
                _ => None,
            })
            .collect();
        assert_eq!(pods, [("shop/web".to_owned(), 2)]);
        let slices = collected.events.iter().filter(|event| matches!(event, Event::Slice(_)));
        assert!(slices.count() >= 1);
        let place = &collected.places[&(Kind::Service, Name::new("shop", "web"))];
        assert_eq!((place.file.as_str(), place.line), ("a.yaml", 10));
        assert_eq!(collected.duplicates.len(), 2, "the Pod and the Service of the second file");
    }
}
