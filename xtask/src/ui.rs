//! `cargo xtask ui`: the page of `lbctl ui` in a real browser, with answers recorded on a cluster.

use anyhow::Result;
use clap::Args;

use crate::{
    command::{self, say, target_dir},
    setup::cargo,
};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave pictures of all views in target/ui
    #[arg(long)]
    shots: bool,
}

/// Runs the test, which fails on an error of a script, a request to another server, a missing row, or too little contrast.
///
/// # Errors
/// When the test fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut test = cargo();
    test.args(["test", "--package", "lb-live", "--features", "browser", "--test", "browser"]);
    let shots = target_dir().join("ui");
    if options.shots {
        std::fs::create_dir_all(&shots)?;
        test.env("LB_SHOTS", &shots);
    }
    command::run(&mut test)?;
    if options.shots {
        say(&format!("the pictures are in {}", shots.display()));
    }
    Ok(())
}
