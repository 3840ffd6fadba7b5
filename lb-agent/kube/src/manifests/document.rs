//! The text of a file → its objects, each with its line, and what is wrong with the rest.
#![forbid(unsafe_code)]

use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Watched;
use crate::pod::PodObject;
use crate::policy::{ClusterNetworkPolicy, NetworkPolicy};
use crate::service::ServiceObject;
use crate::service_cidr::ServiceCidrObject;
use lb_core::cluster::{Kind, Name};

/// Version of the ClusterNetworkPolicies that are read.
const POLICY_V1ALPHA2: &str = "policy.networking.k8s.io/v1alpha2";

/// An object of a kind that we use.
#[derive(Debug)]
pub(super) enum Object {
    Service(Box<ServiceObject>),
    Slice(Box<EndpointSlice>),
    Pod(Box<PodObject>),
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    ServiceCidr(Box<ServiceCidrObject>),
    NetworkPolicy(Box<NetworkPolicy>),
    ClusterNetworkPolicy(Box<ClusterNetworkPolicy>),
}

impl Object {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Slice(_) => Kind::EndpointSlice,
            Self::Pod(_) => Kind::Pod,
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
            Self::ClusterNetworkPolicy(_) => Kind::ClusterNetworkPolicy,
        }
    }

    pub(super) fn name(&self) -> Name {
        match self {
            Self::Service(object) => object.name(),
            Self::Slice(object) => object.name(),
            Self::Pod(object) => object.name(),
            Self::Namespace(object) => object.name(),
            Self::Node(object) => object.name(),
            Self::ServiceCidr(object) => object.name(),
            Self::NetworkPolicy(object) => object.name(),
            Self::ClusterNetworkPolicy(object) => object.name(),
        }
    }
}

/// An object, where it stands, and a hash of what it says.
#[derive(Debug)]
pub(super) struct ParsedObject {
    pub(super) line: u64,
    pub(super) hash: u64,
    pub(super) object: Object,
}

/// A document that is not an object, and its position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DocumentError {
    pub(super) line: u64,
    pub(super) field: String,
    pub(super) message: String,
    /// Whether an object may have been lost by it.
    pub(super) lossy: bool,
}

/// Reads YAML, of which JSON is a part. Each object is handed over as soon as it is read: those of a large file would
/// take many times the file's size together.
pub(super) fn parse(text: &str, found: &mut dyn FnMut(ParsedObject)) -> Vec<DocumentError> {
    let mut content = FileContent { found, faults: Vec::new() };
    for (line, document) in documents(text) {
        match yaml::<Value>(document) {
            Ok(Value::Null) => {}
            Ok(value) => {
                let place = Location { line, document: Some(document), path: String::new() };
                content.take(value, &place);
            }
            Err(err) => content.faults.push(broken(line, &err)),
        }
    }
    content.faults
}

/// What is made of a file's content.
struct FileContent<'a> {
    found: &'a mut dyn FnMut(ParsedObject),
    faults: Vec<DocumentError>,
}

/// Where a value stands.
struct Location<'a> {
    line: u64,
    /// The document that is this value and nothing else.
    document: Option<&'a str>,
    /// Its path within a List.
    path: String,
}

impl FileContent<'_> {
    fn take(&mut self, mut value: Value, place: &Location<'_>) {
        let text =
            |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        match (api_version.as_str(), kind.as_str()) {
            ("v1", "Service") => self.object(value, place, Object::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.object(value, place, Object::Slice),
            ("v1", "Pod") => self.object(value, place, Object::Pod),
            ("v1", "Namespace") => self.object(value, place, Object::Namespace),
            ("v1", "Node") => self.object(value, place, Object::Node),
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.object(value, place, Object::ServiceCidr);
            }
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                self.object(value, place, Object::NetworkPolicy);
            }
            (POLICY_V1ALPHA2, "ClusterNetworkPolicy") => {
                self.object(value, place, Object::ClusterNetworkPolicy);
            }
            ("v1" | "discovery.k8s.io/v1" | "networking.k8s.io/v1" | POLICY_V1ALPHA2, list)
                if list.ends_with("List") =>
            {
                let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else {
                    return self.fault(place, "items", "is not a list", true);
                };
                // The items of a ServiceList and its like need not say what they are.
                let item_kind = list.strip_suffix("List").filter(|kind| !kind.is_empty());
                for (i, mut item) in items.into_iter().enumerate() {
                    if let (Some(kind), Value::Object(fields)) = (item_kind, &mut item) {
                        fields.entry("kind").or_insert_with(|| kind.into());
                        fields.entry("apiVersion").or_insert_with(|| api_version.as_str().into());
                    }
                    let path = format!("{}items[{i}].", place.path);
                    self.take(item, &Location { line: place.line, document: None, path });
                }
            }
            ("", _) => self.fault(place, "apiVersion", "is missing: skipped", true),
            (_, "") => self.fault(place, "kind", "is missing: skipped", true),
            (version, kind) => {
                let message = format!("`{kind}` of `{version}` is not used by lb-agent: skipped");
                self.fault(place, "kind", &message, false);
            }
        }
    }

    fn object<K: Watched + DeserializeOwned>(
        &mut self,
        mut value: Value,
        place: &Location<'_>,
        wrap: impl FnOnce(Box<K>) -> Object,
    ) {
        let hash = hash(&value);
        if let Some(Value::Object(meta)) = value.get_mut("metadata")
            && has_namespace(K::KIND)
        {
            meta.entry("namespace").or_insert_with(|| "default".into());
        }
        let object: K = match serde_json::from_value(value) {
            Ok(object) => object,
            Err(err) => return self.mismatch::<K>(place, &err),
        };
        if object.name().name.is_empty() {
            return self.fault(place, "metadata.name", "is missing: skipped", true);
        }
        (self.found)(ParsedObject { line: place.line, hash, object: wrap(Box::new(object)) });
    }

    /// The value is well-formed, but a field has the wrong type: reads the document again to learn the line.
    fn mismatch<K: DeserializeOwned>(&mut self, place: &Location<'_>, err: &serde_json::Error) {
        match place.document.map(yaml::<K>) {
            Some(Err(err)) => self.faults.push(broken(place.line, &err)),
            Some(Ok(_)) | None => self.fault(place, "", &err.to_string(), true),
        }
    }

    fn fault(&mut self, place: &Location<'_>, field: &str, message: &str, lossy: bool) {
        let field = format!("{}{field}", place.path);
        self.faults.push(DocumentError {
            line: place.line,
            field,
            message: message.to_owned(),
            lossy,
        });
    }
}

/// The fault of a document that begins at `line`.
fn broken(line: u64, err: &serde_saphyr::Error) -> DocumentError {
    let offset = err.location().map_or(0, |location| location.line().saturating_sub(1));
    let message = err.without_snippet().to_string();
    let message = message.lines().next().unwrap_or_default();
    // The line it names counts from the start of the document; ours is the file's.
    let message = message.split(" at line ").next().unwrap_or_default().to_owned();
    DocumentError { line: line + offset, field: String::new(), message, lossy: true }
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        // A List may hold a whole cluster.
        budget: serde_saphyr::budget! { max_events: 64_000_000, max_nodes: 32_000_000 },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// The documents of a text and the line each begins at. `---` at the start of a line ends a document wherever it
/// stands (YAML 1.2.2 §9.1.4); parsing them apart keeps a broken one from taking the others along.
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut offset, mut line) = (0, 1, 0, 1);
    for row in text.split_inclusive('\n') {
        let marker = row.strip_prefix("---");
        if marker.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            documents.extend(text.get(start..offset).map(|document| (first_line, document)));
            // What follows on the line of the marker belongs to the document, and so does its number.
            (start, first_line) = (offset + 3, line);
        }
        offset += row.len();
        line += 1;
    }
    documents.extend(text.get(start..).map(|document| (first_line, document)));
    documents.retain(|(_, document)| !document.trim().is_empty());
    documents.into_iter().map(|(line, document)| skip_empty_lines(line, document)).collect()
}

fn skip_empty_lines(mut line: u64, mut document: &str) -> (u64, &str) {
    while let Some((first, rest)) = document.split_once('\n') {
        if !first.trim().is_empty() {
            break;
        }
        (line, document) = (line + 1, rest);
    }
    (line, document)
}

fn has_namespace(kind: Kind) -> bool {
    match kind {
        Kind::Service | Kind::EndpointSlice | Kind::Pod | Kind::NetworkPolicy => true,
        Kind::Namespace | Kind::Node | Kind::ServiceCidr | Kind::ClusterNetworkPolicy => false,
    }
}

fn hash(value: &Value) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
