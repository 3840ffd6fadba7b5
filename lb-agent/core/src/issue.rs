//! Issues: what is wrong with an object that a user wrote, or why it could not be programmed.
//!
//! An issue never stops anything but the part of the object that it names. It is shown by `lbctl status`, counted
//! in a metric and logged once.
#![forbid(unsafe_code)]

use std::fmt;

use serde::Serialize;

use crate::object::Name;

/// The object an issue is about. Files of the manifest source have kind `File` and the name `path:line`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectRef {
    /// Kind as in a manifest: `Service`, `EndpointSlice`, …; or `File`.
    pub kind: String,
    /// Namespace; empty for objects without one.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

impl ObjectRef {
    /// The object of this kind with this name.
    pub fn new(kind: &str, name: &Name) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
        }
    }

    /// A place in a manifest file.
    pub fn file(path: &str, line: u64) -> Self {
        Self { kind: "File".to_owned(), namespace: String::new(), name: format!("{path}:{line}") }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// One thing that is wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Issue {
    /// The object.
    pub object: ObjectRef,
    /// Path of the field as in `kubectl explain`, e.g. `spec.ports[0].port`; empty when no field is to blame.
    pub field: String,
    /// What is wrong and what happens therefore: lower case, no final dot.
    pub message: String,
}

impl Issue {
    /// An issue with a field of an object.
    pub fn new(object: ObjectRef, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { object, field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.message)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Issue, ObjectRef};
    use crate::cluster::Name;

    #[test]
    fn issues_name_object_and_field() {
        let service = ObjectRef::new("Service", &Name::new("default", "web"));
        let node = ObjectRef::new("Node", &Name::new("", "n1"));
        for (issue, want) in [
            (
                Issue::new(service, "spec.ports[0].port", "0 is not a port"),
                "Service default/web: spec.ports[0].port: 0 is not a port",
            ),
            (Issue::new(node, "", "not found"), "Node n1: not found"),
            (
                Issue::new(ObjectRef::file("a.yaml", 7), "", "no such kind"),
                "File a.yaml:7: no such kind",
            ),
        ] {
            assert_eq!(issue.to_string(), want);
        }
    }
}
