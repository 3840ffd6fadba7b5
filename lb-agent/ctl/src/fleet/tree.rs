//! `kubectl lb services --tree`: the trees of all nodes, equal ones once.

use std::io::Write;

use serde::Serialize;
use serde_json::Value;

use crate::columns::{self, Format, Style};
use crate::fleet::ask::{FleetQuery, FromNode};
use crate::fleet::merge::nodes_text;

/// The tree of one node, as JSON.
#[derive(Serialize)]
struct NodeTree {
    node: String,
    services: Value,
}

/// Prints the trees.
///
/// # Errors
/// When no node answers, or the output cannot be written.
pub fn print(
    asked: &FleetQuery,
    args: impl Fn(&[&str]) -> Vec<String>,
    style: &Style,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    match style.output {
        Format::Json | Format::Yaml | Format::JsonPath(_) => {
            let answers: Vec<FromNode<Value>> =
                asked.json_or_remark(args(&["--output=json"]), None)?;
            let tree = |FromNode { node, answer, .. }| NodeTree { node, services: answer };
            let trees: Vec<NodeTree> = answers.into_iter().map(tree).collect();
            columns::document(out, &trees, style.output)
        }
        Format::Name | Format::Rows => {
            anyhow::bail!("--tree can only be printed as text, JSON or YAML")
        }
        Format::Table | Format::Wide => {
            let headers: &[&str] = if style.no_headers { &["--no-headers"] } else { &[] };
            let answers = asked.text_or_remark(args(headers))?;
            let mut texts: Vec<(&str, Vec<&str>)> = Vec::new();
            for answer in &answers {
                match texts.iter_mut().find(|(known, _)| *known == answer.answer) {
                    Some((_, nodes)) => nodes.push(&answer.node),
                    None => texts.push((&answer.answer, vec![&answer.node])),
                }
            }
            for (text, nodes) in texts {
                columns::line(out, format_args!("# {}", nodes_text(&nodes, answers.len(), true)))?;
                out.write_all(text.as_bytes())?;
            }
            Ok(())
        }
    }
}
