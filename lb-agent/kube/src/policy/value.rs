//! A value within an object and its path. What is not as it should be is a [`InvalidValue`] there.
#![forbid(unsafe_code)]

use serde_json::Value;

use crate::field::Findings;
use crate::notation;
use lb_core::cluster::Prefix;

/// A value and its path.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    value: &'a Value,
    path: String,
}

/// What is wrong with a value, and its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InvalidValue {
    path: String,
    message: String,
}

impl InvalidValue {
    /// Adds an issue; `reading` says how the value is treated.
    pub(super) fn tell(self, reading: &str, findings: &mut Findings) {
        findings.add(self.path, format!("{}: {reading}", self.message));
    }
}

impl<'a> At<'a> {
    pub(super) fn new(value: &'a Value, path: impl Into<String>) -> Self {
        Self { value, path: path.into() }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> InvalidValue {
        InvalidValue { path: self.path.clone(), message: message.into() }
    }

    /// A field; `None` when it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(Self { value, path: format!("{}.{key}", self.path) })
    }

    /// A field that must be there.
    pub(super) fn need(&self, key: &str) -> Result<Self, InvalidValue> {
        let absent =
            || InvalidValue { path: format!("{}.{key}", self.path), message: "is missing".into() };
        self.get(key).ok_or_else(absent)
    }

    pub(super) fn fields(&self) -> Result<impl Iterator<Item = (&'a str, Self)>, InvalidValue> {
        let Value::Object(fields) = self.value else { return Err(self.fault("is not an object")) };
        let path = self.path.clone();
        let there = fields.iter().filter(|(_, value)| !value.is_null());
        Ok(there
            .map(move |(key, value)| (key.as_str(), Self { value, path: format!("{path}.{key}") })))
    }

    /// Whether it has fields, and none but these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), InvalidValue> {
        match self.fields()?.find(|(key, _)| !known.contains(key)) {
            Some((_, unknown)) => Err(unknown.fault("is not a known field")),
            None => Ok(()),
        }
    }

    pub(super) fn items(&self) -> Result<Vec<Self>, InvalidValue> {
        let Value::Array(items) = self.value else { return Err(self.fault("is not a list")) };
        let at = |(i, value)| Self { value, path: format!("{}[{i}]", self.path) };
        Ok(items.iter().enumerate().map(at).collect())
    }

    pub(super) fn text(&self) -> Result<&'a str, InvalidValue> {
        self.value.as_str().ok_or_else(|| self.fault("is not a string"))
    }

    pub(super) fn number(&self) -> Result<i64, InvalidValue> {
        self.value.as_i64().ok_or_else(|| self.fault("is not an integer"))
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_string()
    }

    pub(super) fn port(&self) -> Result<u16, InvalidValue> {
        let number = self.number()?;
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        port.ok_or_else(|| self.fault(format!("{number} is not a port")))
    }

    /// The name of a port: it has a letter, or it would be a number.
    pub(super) fn port_name(&self) -> Result<&'a str, InvalidValue> {
        let name = self.text()?;
        let is_name = name.bytes().any(|byte| byte.is_ascii_alphabetic());
        if is_name { Ok(name) } else { Err(self.fault(format!("`{name}` is not a port name"))) }
    }

    pub(super) fn prefix(&self) -> Result<Prefix, InvalidValue> {
        let text = self.text()?;
        notation::prefix(text).map_err(|err| self.fault(format!("`{text}` is {err}")))
    }
}
