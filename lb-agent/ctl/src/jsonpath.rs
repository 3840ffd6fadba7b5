//! A template in kubectl's JSONPath syntax and a JSON value → text, as `kubectl get -o jsonpath=…` prints it. It knows
//! nothing of what the value is about.
//!
//! The paths between braces are translated to those of RFC 9535: kubectl's have no `$`, their names may contain `-`, and
//! characters in them may be escaped. Keys that a value does not have print nothing, as for kubectl. In contrast to
//! kubectl's, an index outside a list also prints nothing, and integers are compared with fractions.

use std::io::{self, Write};

use jsonpath_rust::parser::errors::JsonPathError;
use jsonpath_rust::parser::model::JpQuery;
use jsonpath_rust::parser::parse_json_path;
use jsonpath_rust::query::js_path_process;
use lb_core::escape::Escaped;
use serde_json::Value;

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError(String);

impl std::error::Error for TemplateError {}

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A template: text, paths in braces, and ranges of both.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    parts: Vec<TemplatePart>,
}

#[derive(Clone, Debug, PartialEq)]
enum TemplatePart {
    Text(String),
    /// The values of a path, separated by blanks.
    Values(JpQuery),
    /// The parts, for each value of a path.
    Range(JpQuery, Vec<Self>),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// When braces, quotes or ranges do not end, or what is between braces is neither a path nor a quoted text.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        if !source.contains('{') {
            return Err(TemplateError(format!(
                "no path in braces, like {{.items[*].name}}: {source}"
            )));
        }
        let mut open: Vec<(JpQuery, Vec<TemplatePart>)> = Vec::new();
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some((text, after)) = rest.split_once('{') {
            if !text.is_empty() {
                parts.push(TemplatePart::Text(text.to_owned()));
            }
            let length = unquoted(after, '}')
                .ok_or_else(|| TemplateError(format!("the brace does not end: {{{after}")))?;
            let (action, tail) = after.split_at(length);
            rest = tail.strip_prefix('}').unwrap_or(tail);
            let action = action.trim();
            if let Some(path) = action.strip_prefix("range ") {
                open.push((query(path.trim())?, std::mem::take(&mut parts)));
            } else if action == "end" {
                let Some((path, before)) = open.pop() else {
                    return Err(TemplateError("{end} without {range}".to_owned()));
                };
                let body = std::mem::replace(&mut parts, before);
                parts.push(TemplatePart::Range(path, body));
            } else if action.starts_with(['"', '\'']) {
                parts.push(TemplatePart::Text(unquote(action)?));
            } else {
                parts.push(TemplatePart::Values(query(action)?));
            }
        }
        if !open.is_empty() {
            return Err(TemplateError("{range} without {end}".to_owned()));
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Text(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// Prints the template with the values of its paths.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn print(&self, out: &mut dyn Write, value: &Value) -> io::Result<()> {
        print(out, &self.parts, value)
    }
}

fn print(out: &mut dyn Write, parts: &[TemplatePart], value: &Value) -> io::Result<()> {
    // A path that is read selects values; it cannot fail.
    let values = |path| js_path_process::<Value>(path, value).unwrap_or_default();
    for part in parts {
        match part {
            TemplatePart::Text(text) => out.write_all(text.as_bytes())?,
            TemplatePart::Range(path, parts) => {
                values(path).into_iter().try_for_each(|found| print(out, parts, found.val))?;
            }
            TemplatePart::Values(path) => {
                for (i, found) in values(path).into_iter().enumerate() {
                    out.write_all(if i == 0 { b"" } else { b" " })?;
                    match found.val {
                        Value::String(text) => write!(out, "{}", Escaped(text))?,
                        other => {
                            serde_json::to_writer(&mut *out, other).map_err(io::Error::from)?
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Where a character is that is not between quotes.
fn unquoted(text: &str, wanted: char) -> Option<usize> {
    let mut quote = None;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            _ if is_escaped => is_escaped = false,
            _ if c == '\\' => is_escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == wanted => return Some(at),
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None => {}
        }
    }
    None
}

/// The text between quotes, with the escapes that mean one character.
fn unquote(text: &str) -> Result<String, TemplateError> {
    let wrong = || TemplateError(format!("not one quoted text: {{{text}}}"));
    let mut chars = text.chars();
    let quote = chars.next().ok_or_else(wrong)?;
    let mut plain = String::new();
    loop {
        match chars.next().ok_or_else(wrong)? {
            '\\' => plain.push(match chars.next().ok_or_else(wrong)? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                c @ ('\\' | '"' | '\'') => c,
                c => return Err(TemplateError(format!("unknown escape \\{c}: {{{text}}}"))),
            }),
            c if c == quote => break,
            c => plain.push(c),
        }
    }
    if chars.next().is_some() { Err(wrong()) } else { Ok(plain) }
}

/// Reads a path of kubectl's.
fn query(path: &str) -> Result<JpQuery, TemplateError> {
    let wrong =
        |why: &str| TemplateError(format!("{{{path}}} is not a JSONPath expression: {why}"));
    let relative = path.strip_prefix(['$', '@']).unwrap_or(path);
    if !relative.is_empty() && !relative.starts_with(['.', '[']) {
        return Err(wrong("it must begin with . or ["));
    }
    // The value itself.
    let relative = if relative == "." { "" } else { relative };
    parse_json_path(&format!("${}", with_quoted_names(relative))).map_err(|error| match error {
        JsonPathError::PestError(error) => wrong(&error.variant.message()),
        error => wrong(&error.to_string()),
    })
}

/// Writes each name behind a dot between brackets and quotes, where RFC 9535 allows all characters.
fn with_quoted_names(path: &str) -> String {
    let mut quoted = String::new();
    let mut chars = path.chars().peekable();
    let mut quote = None;
    let mut is_number = false;
    while let Some(c) = chars.next() {
        let was_number = std::mem::replace(&mut is_number, quote.is_none() && c.is_ascii_digit());
        match quote {
            Some(open) => {
                match c {
                    // RFC 9535 only escapes what has to be.
                    '\\' if chars.peek().is_some_and(|c| !matches!(c, '\\' | '"' | '\'')) => {}
                    '\\' => quoted.extend([c].into_iter().chain(chars.next())),
                    c => quoted.push(c),
                }
                if c == open {
                    quote = None;
                }
                continue;
            }
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None => {}
        }
        if c != '.' || was_number {
            quoted.push(c);
            continue;
        }
        let is_deep = chars.next_if_eq(&'.').is_some();
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| is_of_name(*c)) {
            match c {
                '\\' => name.extend(chars.next()),
                c => name.push(c),
            }
        }
        quoted.push_str(if is_deep { ".." } else { "" });
        match name.is_empty() {
            // `.*` and `..[`, or a mistake that the parser finds.
            true if !is_deep => quoted.push('.'),
            true => {}
            false => {
                let name = name.replace('\\', "\\\\").replace('\'', "\\'");
                quoted.push_str("['");
                quoted.push_str(&name);
                quoted.push_str("']");
            }
        }
    }
    quoted
}

/// Whether kubectl takes it as a part of a name.
const fn is_of_name(c: char) -> bool {
    !matches!(
        c,
        '.' | '['
            | ']'
            | '('
            | ')'
            | '*'
            | '\''
            | '"'
            | '='
            | '!'
            | '<'
            | '>'
            | '&'
            | '|'
            | ','
            | ' '
            | '$'
            | '@'
            | '?'
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Template;

    fn value() -> Value {
        json!({
            "node": "n1",
            "items": [
                { "name": "shop/web", "flows": 7, "ready": true, "ports": [80, 443],
                  "labels": { "app.example.com/part-of": "a", "up-since": null } },
                { "name": "shop/cart", "flows": 1.5, "ready": false, "ports": [],
                  "labels": { "app.example.com/part-of": "it's" } },
            ],
        })
    }

    fn printed(template: &str) -> String {
        let mut out = Vec::new();
        match Template::parse(template) {
            Ok(template) => template.print(&mut out, &value()).unwrap(),
            Err(error) => return format!("error: {error}"),
        }
        String::from_utf8(out).unwrap()
    }

    /// What kubectl 1.32 prints for these templates and this object.
    #[test]
    fn a_template_prints_what_kubectl_prints() {
        let cases = [
            ("{.node}", "n1"),
            ("{$.node} {@.node}", "n1 n1"),
            ("{.items[*].name}", "shop/web shop/cart"),
            ("{.items[*].flows}", "7 1.5"),
            ("{.items[0].ready}", "true"),
            ("{.items[-1].name}", "shop/cart"),
            ("{.items[0:1].name}", "shop/web"),
            ("{.items[0,1].name}", "shop/web shop/cart"),
            ("{.items[*]['name', 'ready']}", "shop/web shop/cart true false"),
            ("{.items[0].ports}", "[80,443]"),
            ("{.items[*].ports[*]}", "80 443"),
            ("{..name}", "shop/web shop/cart"),
            ("{.items[*].labels.app\\.example\\.com/part-of}", "a it's"),
            ("{.items[*].labels['app\\.example\\.com/part-of']}", "a it's"),
            ("{.items[?(@.flows>5)].name}", "shop/web"),
            ("{@.items[0].labels.up-since}", "null"),
            ("{ .items[0].up-since }", ""),
            ("{.items[?(@.name==\"shop/cart\")].flows}", "1.5"),
            ("{.items[?(@.labels.up-since)].name}", "shop/web"),
            ("{.items[?(@.name=='a}b')].flows}", ""),
            ("{.missing}", ""),
            ("nodes: {.node}{\"\\n\"}", "nodes: n1\n"),
            (
                "{range .items[*]}{.name}{'\\t'}{.flows}{\"\\n\"}{end}on {.node}",
                "shop/web\t7\nshop/cart\t1.5\non n1",
            ),
            ("{range .items[*]}{range .ports[*]}{@},{end};{end}", "80,443,;;"),
        ];
        for (template, want) in cases {
            assert_eq!(printed(template), want, "{template}");
        }
    }

    #[test]
    fn where_kubectl_fails_there_is_an_answer() {
        let cases = [
            ("{.items[7].name}", ""),
            ("{.items[?(@.flows>1.5)].name}", "shop/web"),
            ("{.items[0][\"name\"]}", "shop/web"),
        ];
        for (template, want) in cases {
            assert_eq!(printed(template), want, "{template}");
        }
        let whole = value().to_string();
        for template in ["{}", "{@}", "{.}"] {
            assert_eq!(printed(template), whole, "{template}");
        }
    }

    #[test]
    fn a_mistake_is_named() {
        let cases = [
            (".items", "error: no path in braces, like {.items[*].name}: .items"),
            ("{.items", "error: the brace does not end: {.items"),
            ("{.a}{end}", "error: {end} without {range}"),
            ("{range .items[*]}{.a}", "error: {range} without {end}"),
            ("{\"a}", "error: the brace does not end: {\"a}"),
            ("{\"a\"b}", "error: not one quoted text: {\"a\"b}"),
            ("{\"\\q\"}", "error: unknown escape \\q: {\"\\q\"}"),
            ("{items}", "error: {items} is not a JSONPath expression: it must begin with . or ["),
        ];
        for (template, want) in cases {
            assert_eq!(printed(template), want, "{template}");
        }
        for template in ["{.items[}", "{.items[a]}", "{.items[?(@.a=~1)]}", "{.items..}"] {
            let error = printed(template);
            assert!(error.starts_with("error: {"), "{template}: {error}");
            assert!(error.contains("is not a JSONPath expression: "), "{template}: {error}");
        }
    }

    #[test]
    fn what_others_wrote_controls_no_terminal() {
        let mut out = Vec::new();
        let value = json!({ "name": "a\u{1b}[2J\nb" });
        Template::parse("{.name}{\"\\n\"}").unwrap().print(&mut out, &value).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a\\x1b[2J\\nb\n");
    }
}
