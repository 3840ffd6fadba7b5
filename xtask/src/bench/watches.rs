//! `cargo xtask bench watches`: what the watches of many agents cost the API server of `$KUBECONFIG`. The agent's test target
//! `watches` measures, with the agent's own code, and prints the report.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::nanos;
use crate::{
    command::{line, say},
    kubectl,
};

/// Options of `bench watches`.
#[derive(Args)]
pub(crate) struct Options {
    /// Number of agents, each of a Node of its own
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    agents: u32,
    /// A command that runs the measuring program where the API server can be reached
    #[arg(long, value_name = "COMMAND", default_value = "")]
    by: String,
}

/// Builds the target in release mode, and measures.
///
/// # Errors
/// When the target cannot be built or fails.
pub(super) fn run(options: &Options) -> Result<()> {
    let binary = nanos::built("watches", &["--release"])?;
    say(
        "watches of the API server: up to ten minutes. The objects of the measurement are removed in any case",
    );
    let prefix = format!("{} {}", options.by, binary.display());
    let mut run = kubectl::shell(prefix.trim(), &[&options.agents.to_string()]);
    let status = run.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("start `{}`", line(&run)))?;
    ensure!(status.success(), "`{}` failed: {status}", line(&run));
    Ok(())
}
