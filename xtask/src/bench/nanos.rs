//! Nanoseconds per packet of each program, by BPF_PROG_TEST_RUN. The agent's test target `nanos` measures, since only
//! the agent's crate knows how to load the programs; it prints a line `nanos PROGRAM CASE NS` for each case.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::{command::output, setup};

/// Option by which the root half of the task knows the built target.
pub(super) const OPTION: &str = "--nanos-binary";

/// One case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Nanos {
    /// Program of the kernel object.
    pub(super) program: String,
    /// Which packet.
    pub(super) case: String,
    /// Nanoseconds over the empty program.
    pub(super) ns: f64,
}

/// Builds the target and returns where it is.
pub(super) fn build() -> Result<PathBuf> {
    let mut cargo = setup::cargo();
    cargo.args(["test", "--package", "lb-agent", "--features", "privileged", "--test", "nanos"]);
    cargo.args(["--no-run", "--message-format", "json"]);
    let messages = output(&mut cargo)?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let ours = message.pointer("/target/name")? == "nanos";
        let executable = message.get("executable")?.as_str()?;
        ours.then(|| PathBuf::from(executable))
    });
    executable.context("cargo built no test target nanos")
}

/// Runs it.
pub(super) fn measure(binary: &Path) -> Result<Vec<Nanos>> {
    let text = output(Command::new(binary).args(["--nocapture", "--test-threads", "1"]))?;
    let mut all = Vec::new();
    for line in text.lines() {
        let Some(words) = line.trim().strip_prefix("nanos ") else { continue };
        let mut words = words.split_whitespace();
        let (program, case, ns) = (words.next(), words.next(), words.next());
        let ns = ns.and_then(|ns| ns.parse().ok());
        let (Some(program), Some(case), Some(ns)) = (program, case, ns) else { continue };
        all.push(Nanos { program: program.to_owned(), case: case.to_owned(), ns });
    }
    ensure!(!all.is_empty(), "{} printed no line `nanos PROGRAM CASE NS`", binary.display());
    Ok(all)
}
