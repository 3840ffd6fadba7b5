//! `cargo xtask check`: what a reviewer should not have to look for. Under a minute when warm.

use anyhow::Result;
use clap::Args;

use crate::{
    command::{self, found, say, target_dir},
    setup::{self, Need, cargo},
    tidy,
};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Also run cargo-deny with the advisory database. It is installed if it is missing, which takes minutes
    #[arg(long)]
    deny: bool,
}

/// Runs every check; the first that fails ends it.
///
/// # Errors
/// When a check fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    command::run(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::check()?;
    command::run(
        cargo()
            .args(["clippy", "--quiet", "--workspace", "--exclude", "lb-ebpf", "--all-targets"])
            .args(["--features", "lb-agent/privileged", "--", "--deny", "warnings"]),
    )?;
    // As it is built for laptops, which have none of what a node has.
    command::run(cargo().args([
        "clippy",
        "--quiet",
        "--package",
        "lb-ctl",
        "--no-default-features",
        "--features",
        "cluster",
        "--",
        "--deny",
        "warnings",
    ]))?;
    clippy_object(&[])?;
    clippy_object(&["--features", "trace"])?;
    if options.deny {
        setup::ensure(&[Need::Rust, Need::CargoDeny])?;
        command::run(cargo().args(["deny", "--all-features", "check"]))?;
    } else if found("cargo-deny").is_some() {
        command::run(cargo().args([
            "deny",
            "--all-features",
            "check",
            "bans",
            "licenses",
            "sources",
        ]))?;
    } else {
        say(
            "not checked: licenses and duplicate dependencies (cargo-deny is missing; `check --deny` installs it)",
        );
    }
    say("check: passed");
    Ok(())
}

/// Clippy for the kernel side, built the way `lb-agent/kernel/build.rs` builds it. In a target directory of its own: the
/// variables below would otherwise make cargo rebuild half of the host's dependencies.
fn clippy_object(features: &[&str]) -> Result<()> {
    let arch = std::env::consts::ARCH;
    command::run(
        cargo()
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{arch}\""))
            .args(["clippy", "--quiet", "--package", "lb-ebpf", "--target", "bpfel-unknown-none"])
            .args(features)
            .args(["-Z", "build-std=core", "--target-dir"])
            .arg(target_dir().join("clippy-ebpf"))
            .args(["--", "--deny", "warnings"]),
    )
}
