//! JSON values as block-style YAML, the form people edit. Strings are quoted as in JSON, which YAML reads alike.

use std::collections::BTreeMap;

use serde_json::Value;

/// `value` as one document, ending with a newline.
pub(super) fn document(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, 0, false);
    out
}

/// Appends `value` at `indent`; `inline` when the cursor already stands behind a list item's dash.
fn write(out: &mut String, value: &Value, indent: usize, inline: bool) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            // In order, as kubectl prints them: a map of this crate keeps the order of insertion if another
            // crate of the build asks serde_json for that.
            let fields: BTreeMap<_, _> = map.iter().collect();
            for (i, (key, value)) in fields.into_iter().enumerate() {
                pad(out, indent, inline && i == 0);
                *out += &plain_key(key);
                *out += ":";
                write_child(out, value, indent);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (i, value) in list.iter().enumerate() {
                pad(out, indent, inline && i == 0);
                *out += "- ";
                write(out, value, indent + 2, true);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            pad(out, indent, inline);
            *out += &value.to_string();
            *out += "\n";
        }
    }
}

/// Appends the value of a key: on the same line, or below it.
fn write_child(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            *out += "\n";
            write(out, value, indent + 2, false);
        }
        // kubectl does not indent lists under their key.
        Value::Array(list) if !list.is_empty() => {
            *out += "\n";
            write(out, value, indent, false);
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            *out += " ";
            write(out, value, 0, true);
        }
    }
}

fn pad(out: &mut String, indent: usize, inline: bool) {
    if !inline {
        out.extend(std::iter::repeat_n(' ', indent));
    }
}

/// Keys are field names and label keys: all but those YAML would read otherwise stand without quotes.
fn plain_key(key: &str) -> String {
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    if plain && key.starts_with(|c: char| c.is_ascii_alphabetic()) {
        key.to_owned()
    } else {
        Value::from(key).to_string()
    }
}
