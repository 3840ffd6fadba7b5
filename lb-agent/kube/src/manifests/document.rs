//! The text of a file → its objects, each with its line, and what is wrong with the rest.
#![forbid(unsafe_code)]

use std::any::Any;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::{self, Visitor};
use crate::watched::{ObjectScope, Watched, read_manifest};
use lb_core::cluster::{Change, Event, Kind, Name};
use lb_core::issue::Issue;

/// An object of a kind that is watched.
pub(super) trait Object: Any {
    fn kind(&self) -> Kind;

    fn name(&self) -> Name;

    /// The event that it means under this name, and what is wrong with it.
    fn read(&self, name: Name, node: &Arc<str>) -> (Event, Vec<Issue>);
}

impl<K: Watched> Object for K {
    fn kind(&self) -> Kind {
        K::KIND
    }

    fn name(&self) -> Name {
        Watched::name(self)
    }

    fn read(&self, name: Name, node: &Arc<str>) -> (Event, Vec<Issue>) {
        read_manifest(self, name, node)
    }
}

/// A kind as manifests have it.
struct ManifestKind {
    /// `kind` of its manifests.
    name: String,
    /// `apiVersion` of its manifests.
    api_version: String,
    /// Whether each object is in a namespace.
    namespaced: bool,
    /// Makes an object of a value.
    object: fn(Value) -> Result<Box<dyn Object>, serde_json::Error>,
    /// What is wrong with a document that is not such an object.
    mismatch: fn(&str) -> Result<(), serde_saphyr::Error>,
}

/// Says how manifests of a kind are read.
struct Manifests;

impl Visitor for Manifests {
    type Output = ManifestKind;

    fn visit<K: Watched>(&self) -> ManifestKind {
        ManifestKind {
            name: K::kind(&()).into_owned(),
            api_version: K::api_version(&()).into_owned(),
            namespaced: <K::Scope as ObjectScope>::NAMESPACED,
            object: |value| Ok(Box::new(serde_json::from_value::<K>(value)?)),
            mismatch: |text| yaml::<K>(text).map(drop),
        }
    }
}

/// Says that an object is gone, if it is of the visited kind.
struct Deletion<'a>(Kind, &'a Name);

impl Visitor for Deletion<'_> {
    type Output = Option<Event>;

    fn visit<K: Watched>(&self) -> Option<Event> {
        let Self(kind, name) = self;
        (*kind == K::KIND).then(|| K::event(Change::Deleted((*name).clone())))
    }
}

/// The event that an object is gone.
pub(super) fn deletion(kind: Kind, name: &Name) -> Option<Event> {
    kinds::visit(&Deletion(kind, name)).into_iter().flatten().next()
}

/// An object, where it stands, and a hash of what it says.
pub(super) struct ParsedObject {
    pub(super) line: u64,
    pub(super) hash: u64,
    pub(super) object: Box<dyn Object>,
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
    let mut content = FileContent { kinds: &kinds::visit(&Manifests), found, faults: Vec::new() };
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

/// The documents that are YAML, whatever they are, and the line each begins at.
pub(super) fn values(text: &str) -> impl Iterator<Item = (u64, Value)> {
    let values = documents(text).into_iter();
    values.filter_map(|(line, document)| Some((line, yaml(document).ok()?)))
}

/// What is made of a file's content.
struct FileContent<'a> {
    kinds: &'a [ManifestKind],
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
        let kinds = self.kinds;
        let mut of_version = kinds.iter().filter(|it| it.api_version == api_version).peekable();
        let is_used = api_version == "v1" || of_version.peek().is_some();
        if let Some(kind) = of_version.find(|it| it.name == kind) {
            return self.object(value, place, kind);
        }
        match (api_version.as_str(), kind.as_str()) {
            (_, list) if is_used && list.ends_with("List") => {
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

    fn object(&mut self, mut value: Value, place: &Location<'_>, kind: &ManifestKind) {
        let hash = hash(&value);
        if let Some(Value::Object(meta)) = value.get_mut("metadata")
            && kind.namespaced
        {
            meta.entry("namespace").or_insert_with(|| "default".into());
        }
        let object = match (kind.object)(value) {
            Ok(object) => object,
            Err(err) => return self.mismatch(place, kind, &err),
        };
        if object.name().name.is_empty() {
            return self.fault(place, "metadata.name", "is missing: skipped", true);
        }
        (self.found)(ParsedObject { line: place.line, hash, object });
    }

    /// The value is well-formed, but a field has the wrong type: reads the document again to learn the line.
    fn mismatch(&mut self, place: &Location<'_>, kind: &ManifestKind, err: &serde_json::Error) {
        match place.document.map(kind.mismatch) {
            Some(Err(err)) => self.faults.push(broken(place.line, &err)),
            Some(Ok(())) | None => self.fault(place, "", &err.to_string(), true),
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

fn hash(value: &Value) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
