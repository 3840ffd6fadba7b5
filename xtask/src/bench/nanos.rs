//! Nanoseconds per packet of each program, by BPF_PROG_TEST_RUN. The agent's test target `nanos` measures, since only
//! the agent's crate knows how to load the programs; it prints a line `PROGRAM CASE NS` for each case.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::{command::output, setup};

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
    built("nanos", &[])
}

/// Builds a test target of the agent.
pub(super) fn built(target: &str, more: &[&str]) -> Result<PathBuf> {
    let mut cargo = setup::cargo();
    cargo.args(["test", "--package", "lb-agent", "--features", "privileged", "--test", target]);
    cargo.args(more);
    cargo.args(["--no-run", "--message-format", "json"]);
    let messages = output(&mut cargo)?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let ours = message.pointer("/target/name")? == target;
        let executable = message.get("executable")?.as_str()?;
        ours.then(|| PathBuf::from(executable))
    });
    executable.with_context(|| format!("cargo built no test target {target}"))
}

/// Runs it.
pub(super) fn measure(binary: &Path) -> Result<Vec<Nanos>> {
    let text = output(&mut Command::new(binary))?;
    let mut all = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [program, case, ns] = words[..] else {
            bail!("{}: {line:?} is not PROGRAM CASE NS", binary.display())
        };
        let ns = ns.parse().with_context(|| format!("{}: {line:?}", binary.display()))?;
        all.push(Nanos { program: program.to_owned(), case: case.to_owned(), ns });
    }
    ensure!(!all.is_empty(), "{} printed nothing", binary.display());
    Ok(all)
}
