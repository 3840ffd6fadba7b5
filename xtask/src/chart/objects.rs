//! Objects as YAML, compared by what they ask for.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Objects by kind and name.
pub(super) struct Objects(BTreeMap<(String, String), Value>);

const NAME: &str = "lb-agent";
/// Where helm and kustomize each say that they made an object, which they must not both do.
const MAKERS: [&str; 4] = [
    "helm.sh/chart",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
];
/// The annotation by which the chart restarts the agents. kustomize does so by the name of the ConfigMap.
const CHECKSUM: &str = "checksum/settings";

impl Objects {
    /// Reads a stream of YAML documents.
    pub(super) fn read(text: &str) -> Result<Self> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("parse the YAML")?;
        let mut objects = BTreeMap::new();
        for object in documents.into_iter().filter(|object| !object.is_null()) {
            let part = |pointer| {
                let text = object.pointer(pointer).and_then(Value::as_str);
                text.map(str::to_owned).with_context(|| format!("an object without {pointer}"))
            };
            objects.insert((part("/kind")?, part("/metadata/name")?), object);
        }
        Ok(Self(objects))
    }

    /// A text in an object, whose name may end with a hash.
    pub(super) fn text(&self, kind: &str, name: &str, pointer: &str) -> Option<&str> {
        let mut objects = self.0.iter();
        let found = objects.find(|((of, named), _)| of == kind && without_hash(named) == name);
        found.and_then(|(_, object)| object.pointer(pointer)?.as_str())
    }

    /// Where the alerts say that their runbooks are.
    pub(super) fn runbooks(&self) -> Vec<&str> {
        let rules = self.0.get(&("PrometheusRule".to_owned(), NAME.to_owned()));
        let groups = rules.and_then(|rules| rules.pointer("/spec/groups")?.as_array());
        let alerts =
            groups.into_iter().flatten().filter_map(|group| group.get("rules")?.as_array());
        let place = "/annotations/runbook_url";
        alerts.flatten().filter_map(|rule| rule.pointer(place)?.as_str()).collect()
    }

    fn daemon_set(&self, pointer: &str) -> Result<&str> {
        let daemon_set = self.0.get(&("DaemonSet".to_owned(), NAME.to_owned()));
        let text = daemon_set.and_then(|object| object.pointer(pointer)?.as_str());
        text.with_context(|| format!("the DaemonSet has no {pointer}"))
    }

    /// The agent's image.
    pub(super) fn image(&self) -> Result<&str> {
        self.daemon_set("/spec/template/spec/containers/0/image")
    }

    /// The annotation that changes with the settings.
    pub(super) fn checksum(&self) -> Result<String> {
        let pointer = "/spec/template/metadata/annotations/checksum~1settings";
        self.daemon_set(pointer).map(str::to_owned)
    }

    /// Without what tells the two tools apart.
    fn plain(&self) -> BTreeMap<(String, String), Value> {
        let mut plain = BTreeMap::new();
        for ((kind, name), object) in &self.0 {
            let mut object = object.clone();
            without_makers(&mut object);
            if kind == "DaemonSet" {
                in_order(&mut object);
            }
            plain.insert((kind.clone(), without_hash(name).to_owned()), object);
        }
        plain
    }
}

/// The first difference of two sets of objects, or `None`.
pub(super) fn difference(chart: &Objects, base: &Objects) -> Option<String> {
    let (chart, base) = (chart.plain(), base.plain());
    for key in chart.keys().chain(base.keys()) {
        let (kind, name) = key;
        match (chart.get(key), base.get(key)) {
            (Some(ours), Some(theirs)) => {
                if let Some(text) = at_path(ours, theirs, "") {
                    return Some(format!("{kind} {name}: {text}"));
                }
            }
            (ours, _) => {
                let by = if ours.is_some() { "chart" } else { "base" };
                return Some(format!("{kind} {name}: in the {by} only"));
            }
        }
    }
    None
}

/// The first path at which two values differ, with both.
fn at_path(ours: &Value, theirs: &Value, path: &str) -> Option<String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<_> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.iter().find_map(|key| {
                let path = format!("{path}.{key}");
                at_path(
                    a.get(*key).unwrap_or(&Value::Null),
                    b.get(*key).unwrap_or(&Value::Null),
                    &path,
                )
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(i, (a, b))| at_path(a, b, &format!("{path}[{i}]")))
        }
        _ if ours == theirs => None,
        _ => Some(format!("{path}: {ours} and {theirs}")),
    }
}

/// Removes the marks of the tools, and the hash in the name of the ConfigMap wherever it is.
fn without_makers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| !MAKERS.contains(&key.as_str()) && key != CHECKSUM);
            fields.values_mut().for_each(without_makers);
        }
        Value::Array(list) => list.iter_mut().for_each(without_makers),
        Value::String(text) => *text = without_hash(text).to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The name that kustomize put a hash of ten characters behind.
fn without_hash(name: &str) -> &str {
    match name.strip_prefix(NAME).and_then(|rest| rest.strip_prefix('-')) {
        Some(hash) if hash.len() == 10 && hash.bytes().all(|b| b.is_ascii_alphanumeric()) => NAME,
        _ => name,
    }
}

/// Sorts the lists whose order means nothing, by the names of their elements.
fn in_order(daemon_set: &mut Value) {
    for list in ["containers/0/env", "containers/0/volumeMounts", "volumes"] {
        let list = daemon_set.pointer_mut(&format!("/spec/template/spec/{list}"));
        if let Some(list) = list.and_then(Value::as_array_mut) {
            list.sort_by_key(|element| element.get("name").map(Value::to_string));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Objects, difference};

    fn objects(text: &str) -> Objects {
        Objects::read(text).unwrap()
    }

    #[test]
    fn marks_of_the_tools_do_not_count_and_all_else_does() {
        let chart = objects(
            "kind: ConfigMap\nmetadata: {name: lb-agent, labels: {helm.sh/chart: lb-1, a: b}}\n---\n\
             kind: DaemonSet\nmetadata: {name: lb-agent}\nspec: {template: {metadata: {annotations: {checksum/settings: x}}, \
             spec: {volumes: [{name: b}, {name: a}]}}}\n",
        );
        let base = |volume: &str| {
            objects(&format!(
                "kind: ConfigMap\nmetadata: {{name: lb-agent-htmfd8mtc4, labels: {{a: b}}}}\n---\n\
                 kind: DaemonSet\nmetadata: {{name: lb-agent}}\nspec: {{template: {{metadata: {{annotations: {{}}}}, spec: \
                 {{volumes: [{{name: a}}, {{name: {volume}}}]}}}}}}\n"
            ))
        };
        assert_eq!(difference(&chart, &base("b")), None);
        let text = difference(&chart, &base("c")).unwrap();
        assert!(text.contains("DaemonSet lb-agent: .spec.template.spec.volumes[1].name"), "{text}");
        let more = objects("kind: ConfigMap\nmetadata: {name: lb-agent, labels: {a: b}}\n");
        let text = difference(&more, &base("b")).unwrap();
        assert_eq!(text, "DaemonSet lb-agent: in the base only");
    }
}
