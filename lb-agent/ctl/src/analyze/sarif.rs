//! Findings as SARIF 2.1.0 (OASIS), which code review tools read.

use serde_json::{Value, json};

use super::{FindingRow, documented};
use lb_core::analyze::Lint;

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// The document.
pub(super) fn document(rows: &[FindingRow]) -> Value {
    let rules: Vec<Value> = Lint::ALL.into_iter().map(rule).collect();
    let results: Vec<Value> = rows.iter().map(result).collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": {
                "driver": {
                    "name": "lbctl analyze",
                    "version": lb_core::build::VERSION,
                    "rules": rules,
                },
            },
            "results": results,
        }],
    })
}

fn rule(lint: Lint) -> Value {
    json!({
        "id": lint.name(),
        "shortDescription": {"text": lint.meaning()},
        "help": {"text": format!("{}. See {}.", lint.meaning(), documented(lint))},
    })
}

fn result(row: &FindingRow) -> Value {
    let subject = [&row.object, &row.field];
    let subject: Vec<&str> =
        subject.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    let text = match subject.as_slice() {
        [] => row.message.clone(),
        parts => format!("{}: {}", parts.join(": "), row.message),
    };
    let rule = Lint::ALL.into_iter().position(|lint| lint == row.lint);
    let place = json!({
        "physicalLocation": {
            "artifactLocation": {"uri": row.file},
            "region": {"startLine": row.line.max(1)},
        },
    });
    let places: Vec<Value> = (!row.file.is_empty()).then_some(place).into_iter().collect();
    json!({
        "ruleId": row.code,
        "ruleIndex": rule,
        "level": row.severity,
        "message": {"text": text},
        "locations": places,
    })
}
