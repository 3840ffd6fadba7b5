//! `kubectl lb policy try`: each node judges what its own Pods send and receive.

use std::fs;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::PolicyTryArgs;
use crate::fleet::ask::{FleetQuery, FromNode};
use crate::fleet::remark::remark;
use crate::trial::{self, TrialReport};

/// Exit status of a check that found problems.
const FOUND_PROBLEMS: u8 = 2;

/// Runs the command.
///
/// # Errors
/// When a file cannot be read, no node answers, or the output cannot be written.
pub fn try_policies(
    asked: &FleetQuery,
    args: &PolicyTryArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    if args.file.is_empty() && args.delete.is_empty() {
        bail!("nothing to try: give policies with -f FILE, or names with --delete");
    }
    let mut manifests = String::new();
    for file in &args.file {
        manifests.push_str("---\n");
        manifests.push_str(&read(file)?);
        manifests.push('\n');
    }
    let mut words = ["policy", "try", "--output=rows"].map(str::to_owned).to_vec();
    words.push(format!("--for={}s", args.span.as_secs()));
    if !args.file.is_empty() {
        words.push("--file=-".to_owned());
    }
    words.extend(args.delete.iter().map(|name| format!("--delete={name}")));
    if args.enforce {
        words.push("--enforce".to_owned());
    }
    let answers: Vec<FromNode<TrialReport>> =
        asked.json_or_remark(words, Some(manifests.into_bytes()))?;
    let reports = answers.into_iter().map(|FromNode { node, answer, .. }| {
        let node = if answer.node.is_empty() { node } else { answer.node.clone() };
        TrialReport { node, ..answer }
    });
    let Some(whole) = trial::together(reports.collect()) else { return Ok(ExitCode::SUCCESS) };
    for issue in &whole.issues {
        remark(&trial::remark_line(issue));
    }
    trial::print_as(out, &whole, &args.style)?;
    Ok(if whole.breaks() { ExitCode::from(FOUND_PROBLEMS) } else { ExitCode::SUCCESS })
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("read standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| file.display().to_string())
}
