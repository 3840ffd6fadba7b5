//! `cargo xtask test`: the four rings. Pure and scenario tests run as whoever calls; the privileged ones are
//! `[[test]]` targets that require the feature `privileged`, and only their binaries run as root.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    args::Args,
    command::{self, as_root, found, output, say},
    setup::cargo,
};

pub(crate) const USAGE: &str = "test [RING] [-- ARGUMENTS OF THE TEST BINARIES]
  RING   pure (with the scenarios), or the name of a privileged test target: datapath, e2e, … [default: all]";

/// Runs all rings, or one.
///
/// # Errors
/// When a test fails, the ring is unknown, or root is needed and not to be had.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (ours, theirs) = match args.iter().position(|word| word == "--") {
        Some(at) => args.split_at(at),
        None => (args, &[][..]),
    };
    let mut ours = Args::new(ours);
    let ring = ours.positional();
    ours.finish(USAGE)?;
    let privileged = privileged_targets()?;
    match ring.as_deref() {
        Some("pure") => pure(theirs),
        Some(ring) => {
            let (of_ring, others): (Vec<_>, Vec<_>) =
                privileged.into_iter().partition(|target| target.name == ring);
            if of_ring.is_empty() {
                let names: Vec<_> = others.into_iter().map(|target| target.name).collect();
                bail!("unknown ring {ring:?}; the rings are: pure {}", names.join(" "));
            }
            run_privileged(&of_ring, theirs)
        }
        None => {
            // Said before the minutes that the pure ring may take.
            as_root().context("the privileged rings require root (`test pure` does not)")?;
            pure(theirs)?;
            let (modules, others): (Vec<_>, Vec<_>) =
                privileged.into_iter().partition(|target| target.name == MODULES);
            run_privileged(&others, theirs)?;
            match missing_modules() {
                None => run_privileged(&modules, theirs),
                Some(missing) => {
                    say(&format!(
                        "not run here: ring {MODULES} (this kernel has no {missing}); \
                         `cargo xtask verifier --wrap` runs it on another kernel"
                    ));
                    Ok(())
                }
            }
        }
    }
}

/// The ring that needs kernel modules which not every kernel has.
pub(crate) const MODULES: &str = "modules";

/// The first of the ring's modules that the kernel neither has nor can load.
fn missing_modules() -> Option<&'static str> {
    ["sctp", "8021q"].into_iter().find(|name| {
        let loaded = std::path::Path::new("/sys/module").join(name).exists();
        !loaded && output(command::command("modprobe").arg(name)).is_err()
    })
}

fn pure(theirs: &[String]) -> Result<()> {
    let workspace = ["--workspace", "--exclude", "lb-ebpf"];
    if found("cargo-nextest").is_some() && theirs.is_empty() {
        command::run(cargo().args(["nextest", "run"]).args(workspace))?;
        // nextest knows no doc tests.
        return command::run(cargo().args(["test", "--doc"]).args(workspace));
    }
    command::run(cargo().arg("test").args(workspace).arg("--no-fail-fast").args(theirs))
}

/// Runs one privileged ring with these environment variables.
///
/// # Errors
/// When a test fails, or root is needed and not to be had.
pub(crate) fn one(ring: &str, settings: &[(&str, String)], theirs: &[String]) -> Result<()> {
    let targets: Vec<_> =
        privileged_targets()?.into_iter().filter(|target| target.name == ring).collect();
    run_with(&targets, settings, theirs)
}

fn run_privileged(targets: &[Target], theirs: &[String]) -> Result<()> {
    run_with(targets, &[], theirs)
}

fn run_with(targets: &[Target], settings: &[(&str, String)], theirs: &[String]) -> Result<()> {
    let mut test = cargo();
    test.envs(settings.iter().map(|(name, value)| (*name, value)));
    test.args(["test", "--no-fail-fast"]);
    let packages: BTreeSet<&str> = targets.iter().map(|target| target.package.as_str()).collect();
    for package in packages {
        test.args(["--package", package, "--features", &format!("{package}/{FEATURE}")]);
    }
    for target in targets {
        test.args(["--test", &target.name]);
    }
    as_root_runner(&mut test)?;
    command::run(test.args(theirs))
}

/// Lets cargo start the test binaries, and nothing else, through sudo.
fn as_root_runner(test: &mut Command) -> Result<()> {
    let sudo = as_root().context("the privileged rings need root")?;
    if !sudo.is_empty() {
        let host = host_triple()?.to_uppercase().replace('-', "_");
        let path = std::env::var("PATH").unwrap_or_default();
        let runner = format!("{} --preserve-env env PATH={path}", sudo.join(" "));
        test.env(format!("CARGO_TARGET_{host}_RUNNER"), runner);
    }
    Ok(())
}

fn host_triple() -> Result<String> {
    let version = output(cargo().arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`cargo -vV` does not report a host")?.to_owned())
}

/// The feature without which a privileged target is not built.
const FEATURE: &str = "privileged";

/// A `[[test]]` of a package.
struct Target {
    package: String,
    name: String,
}

/// The `[[test]]` targets that require the feature `privileged`.
fn privileged_targets() -> Result<Vec<Target>> {
    let metadata =
        output(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let mut targets = Vec::new();
    let list = |value: &Value, key: &str| -> Vec<Value> {
        value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let name = |value: &Value| value.get("name").and_then(Value::as_str).map(str::to_owned);
    for package in list(&metadata, "packages") {
        for target in list(&package, "targets") {
            let test = list(&target, "kind").iter().any(|kind| kind == "test");
            let privileged = list(&target, "required-features").iter().any(|f| f == FEATURE);
            if let (true, Some(package), Some(name)) =
                (test && privileged, name(&package), name(&target))
            {
                targets.push(Target { package, name });
            }
        }
    }
    Ok(targets)
}
