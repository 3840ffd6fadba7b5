//! `cargo xtask abi`: the layouts of all map types against `lb-common/tests/layout.txt`, and whether every map whose
//! layout changed got a new version.

use anyhow::Result;

use crate::{args::Args, command, setup::cargo, tidy};

pub(crate) const USAGE: &str = "abi [--bless]
  --bless   rewrite the golden file; first raise the map's version in lb-common/src/limits.rs";

/// Compares, or rewrites, the golden layouts.
///
/// # Errors
/// When a layout is not the golden one, or changed without a new version.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut args = Args::new(args);
    let bless = args.flag("--bless");
    args.finish(USAGE)?;
    let mut test = cargo();
    test.args(["test", "--quiet", "--package", "lb-common", "--test", "layout"]);
    if bless {
        test.env("UPDATE_EXPECT", "1");
    }
    command::run(&mut test)?;
    tidy::layout()
}
