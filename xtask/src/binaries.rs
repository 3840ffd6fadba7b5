//! The agent and the traffic program, built for the tasks that run them, which need root afterwards.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    command::{self, as_root, is_root, target_dir},
    setup,
};

/// Which half of a task this process is. A task that needs root builds as the caller and starts itself again as root.
#[derive(Args)]
pub(crate) struct Stage {
    /// The binaries are there: this is the half that runs as root
    #[arg(long, hide = true)]
    pub(crate) built: bool,
}

/// Binaries of one profile.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    /// `lb-agent`; `lbctl` lies beside it.
    pub(crate) agent: PathBuf,
    /// The testbed's `traffic`.
    pub(crate) traffic: PathBuf,
}

impl Binaries {
    /// Where cargo puts them.
    pub(crate) fn of(release: bool) -> Self {
        let dir = target_dir().join(if release { "release" } else { "debug" });
        Self { agent: dir.join("lb-agent"), traffic: dir.join("traffic") }
    }
}

/// Feature of `lb-agent` whose programs log a line for each stage of a packet.
pub(crate) const TRACE: [&str; 2] = ["--features", "lb-agent/trace"];

/// Builds the binaries as whoever calls; with `trace` those whose programs log each stage of a packet.
///
/// # Errors
/// When cargo does not succeed.
pub(crate) fn build(release: bool, trace: bool) -> Result<()> {
    let mut cargo = setup::cargo();
    cargo.args(["build", "--package", "lb-agent", "--package", "testbed", "--bins"]);
    if release {
        cargo.arg("--release");
    }
    if trace {
        cargo.args(TRACE);
    }
    command::run(&mut cargo)
}

/// Runs this task again as root, its binaries built, with more words. `None` when this process is root already.
///
/// # Errors
/// When there is no way to become root, or the task fails there.
pub(crate) fn again_as_root(more: &[&str]) -> Result<Option<()>> {
    if is_root() {
        return Ok(None);
    }
    let this = std::env::current_exe().context("find this program")?;
    let (sudo, rest) = as_root()?.split_first().context("as_root gives a program")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut again = command::command(sudo);
    again.args(rest).args(["--preserve-env", "env", &format!("PATH={path}")]);
    again.arg(this).args(std::env::args_os().skip(1)).arg("--built").args(more);
    command::run(&mut again).map(Some)
}
