//! Objects by name.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Name of an object; the namespace is empty for those without one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name within it.
    pub name: Arc<str>,
}

impl Name {
    /// The object `name` in `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Reads `namespace/name`, or `name` of an object without a namespace: the inverse of its text.
    pub fn parse(full: &str) -> Self {
        let (namespace, name) = full.split_once('/').unwrap_or(("", full));
        Self::new(namespace, name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
