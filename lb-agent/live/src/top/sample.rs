//! Answers of lbctl → a sample: the numbers of one moment, all nodes together. Pure. Fields that an older lbctl does not print are
//! empty or zero.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::lbctl::CommandOutput;

/// All answers of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopSample {
    /// Seconds of a clock that only moves forward.
    pub at: f64,
    /// The time for people, UTC.
    pub time: String,
    /// Each node, whether it is healthy or not.
    pub nodes: Vec<NodeHealth>,
    /// Issues of objects, each once.
    pub issues: usize,
    /// Counters of the slow path by name, all nodes together.
    pub counters: BTreeMap<String, u64>,
    /// Service ports, by name.
    pub services: Vec<ServiceLoad>,
    /// Reasons of drops.
    pub drops: Vec<DropCount>,
    /// The fullest map of each name.
    pub maps: Vec<MapFill>,
    /// What lbctl remarked: nodes that do not answer.
    pub remarks: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NodeHealth {
    /// Its name, empty when it is not known.
    pub node: String,
    /// `OK`, `DEGRADED`, or `UNKNOWN`.
    pub verdict: String,
    /// What is degraded.
    pub because: String,
}

/// One service port, all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceLoad {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of the port, may be empty.
    pub port_name: String,
    /// The port, if it is known.
    pub port: Option<u16>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Ready endpoints.
    pub ready: u64,
    /// Endpoints of all states.
    pub endpoints: u64,
    /// Live flows.
    pub flows: u64,
    /// `spec.type`.
    pub r#type: String,
    /// Addresses and ports that clients dial.
    pub frontends: Vec<String>,
    /// What is wrong.
    pub issues: Vec<String>,
}

/// One reason in one direction, all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DropCount {
    /// Name of the reason.
    pub reason: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// Packets since the maps were created.
    pub count: u64,
    /// The last packet that was sampled.
    pub example: String,
    /// What to do about it.
    pub what_to_do: String,
}

/// How full a map is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MapFill {
    /// Name of the map.
    pub map: String,
    /// Share in thousandths.
    pub permille: Option<u64>,
}

#[derive(Deserialize)]
struct Rows<T> {
    items: Vec<T>,
}

/// The report of a node, or of a cluster, which has those of its nodes.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StatusDocument {
    #[serde(flatten)]
    health: NodeHealth,
    nodes: Vec<NodeHealth>,
    issues: Vec<Value>,
    counters: Value,
}

impl ServiceLoad {
    /// `namespace/name:port`, the port by its name if it has one.
    pub fn full_name(&self) -> String {
        let port = match (self.port_name.as_str(), self.port) {
            ("", Some(port)) => format!("{port}/{}", self.protocol),
            ("", None) => self.protocol.clone(),
            (name, _) => name.to_owned(),
        };
        format!("{}/{}:{port}", self.namespace, self.name)
    }

    /// The Service as `lbctl explain` takes it.
    pub fn target(&self) -> String {
        let Self { namespace, name, port, protocol, .. } = self;
        let port = port.map(|port| format!(":{port}/{}", protocol.to_lowercase()));
        format!("svc:{namespace}/{name}{}", port.unwrap_or_default())
    }
}

impl DropCount {
    /// What identifies it.
    pub fn key(&self) -> (String, String) {
        (self.reason.clone(), self.direction.clone())
    }
}

/// The commands whose answers make a sample, in the order of [`TopSample::of`].
pub const COMMANDS: [&[&str]; 4] = [
    &["status", "--all", "-o", "json"],
    &["services", "-o", "json"],
    &["drops", "-o", "json"],
    &["maps", "-o", "json"],
];

impl TopSample {
    /// Makes a sample from the answers to [`COMMANDS`] at this time, in seconds and in words.
    pub fn of(at: f64, time: String, answers: &[CommandOutput; 4]) -> Self {
        let [status, services, drops, maps] = answers;
        let mut sample = Self { at, time, ..Self::default() };
        for document in status.documents.iter().filter_map(read::<StatusDocument>) {
            sample.issues += document.issues.len();
            add_counters(&mut sample.counters, &document.counters);
            let is_cluster = !document.nodes.is_empty();
            sample.nodes.extend(if is_cluster { document.nodes } else { vec![document.health] });
        }
        let mut by_name = BTreeMap::<String, ServiceLoad>::new();
        for row in rows::<ServiceLoad>(services) {
            let flows = row.flows;
            by_name.entry(row.full_name()).and_modify(|known| known.flows += flows).or_insert(row);
        }
        sample.services = by_name.into_values().collect();
        let mut by_reason = BTreeMap::<(String, String), DropCount>::new();
        for row in rows::<DropCount>(drops) {
            let count = row.count;
            by_reason.entry(row.key()).and_modify(|known| known.count += count).or_insert(row);
        }
        sample.drops = by_reason.into_values().collect();
        let mut fullest = BTreeMap::<String, MapFill>::new();
        for row in rows::<MapFill>(maps).into_iter().filter(|row| row.permille.is_some()) {
            let permille = row.permille;
            let known = fullest.entry(row.map.clone()).or_insert(row);
            known.permille = known.permille.max(permille);
        }
        sample.maps = fullest.into_values().collect();
        sample.maps.sort_by_key(|map| std::cmp::Reverse(map.permille));
        for answer in answers {
            for remark in &answer.remarks {
                if !sample.remarks.contains(remark) {
                    sample.remarks.push(remark.clone());
                }
            }
        }
        sample
    }
}

/// Adds counters: a list on a node, an object of numbers of a cluster.
fn add_counters(counters: &mut BTreeMap<String, u64>, found: &Value) {
    let pairs = |value: &Value| {
        let name = value.get("counter")?.as_str()?.to_owned();
        Some((name, value.get("count")?.as_u64()?))
    };
    let found: Vec<(String, u64)> = match found {
        Value::Array(list) => list.iter().filter_map(pairs).collect(),
        Value::Object(object) => {
            object.iter().filter_map(|(name, n)| Some((name.clone(), n.as_u64()?))).collect()
        }
        _ => Vec::new(),
    };
    for (name, count) in found {
        *counters.entry(name).or_default() += count;
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

fn rows<T: DeserializeOwned>(answer: &CommandOutput) -> Vec<T> {
    answer.documents.iter().filter_map(read::<Rows<T>>).flat_map(|rows| rows.items).collect()
}
