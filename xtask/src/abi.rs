//! `cargo xtask abi`: the layouts of all map types against `lb-common/tests/layout.txt`, and whether every map whose
//! layout changed got a new version.

use anyhow::Result;
use clap::Args;

use crate::{command, setup::cargo, tidy};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Rewrite the golden file. Raise the map's version in lb-common/src/limits.rs first
    #[arg(long)]
    bless: bool,
}

/// Compares, or rewrites, the golden layouts.
///
/// # Errors
/// When a layout is not the golden one, or changed without a new version.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut test = cargo();
    test.args(["test", "--quiet", "--package", "lb-common", "--test", "layout"]);
    if options.bless {
        test.env("UPDATE_EXPECT", "1");
    }
    command::run(&mut test)?;
    tidy::layout()
}
