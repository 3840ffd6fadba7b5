//! `kubectl lb policy suggest`: what all nodes have seen, as one set of policies.

use std::io::Write;

use anyhow::bail;

use crate::PolicySuggestArgs;
use crate::fleet::ask::{FleetQuery, FromNode};
use crate::fleet::remark::remark;
use crate::suggest::{self, NodeEvidence, SuggestOptions};

/// Runs the command.
///
/// # Errors
/// When no node answers, nothing was seen, or the output cannot be written.
pub fn suggest(
    asked: &FleetQuery,
    args: &PolicySuggestArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let span = format!("--for={}s", args.span.as_secs());
    let words = ["policy", "suggest", "--evidence", &span, &args.namespace];
    let words = words.map(str::to_owned).to_vec();
    let answers: Vec<FromNode<NodeEvidence>> = asked.json_or_remark(words, None)?;
    let nodes: Vec<NodeEvidence> = answers.into_iter().map(|answer| answer.answer).collect();
    let options = SuggestOptions { namespace: &args.namespace, enforce: args.enforce };
    let suggestion = suggest::suggest(&options, &nodes);
    suggestion.remarks.iter().for_each(|text| remark(text));
    if suggestion.manifests.is_empty() {
        bail!("{}: no flow of its Pods was seen", args.namespace);
    }
    Ok(write!(out, "{}", suggestion.manifests)?)
}
