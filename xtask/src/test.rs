//! `cargo xtask test`: the rings. Unit tests and ring `control` run as whoever calls; the privileged ones are `[[test]]`
//! targets that require the feature `privileged`, and only their binaries run as root.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    command::{self, as_root, found, output, say},
    setup::cargo,
};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Which tests: `pure` (unit tests and control) or a test target such as control, datapath, node, agents [default: all]
    ring: Option<String>,
    /// Arguments for the test binaries, for example the name of a test
    #[arg(last = true, value_name = "ARGUMENTS")]
    theirs: Vec<String>,
}

/// Runs all rings, or one.
///
/// # Errors
/// When a test fails, the ring is unknown, or root is needed and not available.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { ring, theirs } = options;
    let targets = targets()?;
    match ring.as_deref() {
        Some("pure") => pure(&targets, theirs),
        Some(ring) => {
            let (of_ring, others): (Vec<_>, Vec<_>) =
                targets.into_iter().partition(|target| target.name == ring);
            if of_ring.is_empty() {
                let names: Vec<_> = others.into_iter().map(|target| target.name).collect();
                bail!("unknown ring {ring:?}; the rings are: pure {}", names.join(" "));
            }
            let mut words = theirs.to_vec();
            if ring == AGENTS {
                let elsewhere = elsewhere();
                words.extend(skips(&elsewhere));
                announce(&elsewhere);
            }
            command::run(&mut ring_command(&of_ring, &words)?)
        }
        None => all(&targets, theirs),
    }
}

/// Runs the pure rings, then the privileged ones.
fn all(targets: &[Target], theirs: &[String]) -> Result<()> {
    // Said before the minutes that the pure ring may take.
    as_root().context("the privileged rings require root (`test pure` does not)")?;
    command::run(
        test_command(targets).args(["--lib", "--bins"]).args(names(targets)).arg("--no-run"),
    )?;
    pure(targets, theirs)?;
    let privileged = targets.iter().filter(|target| target.privileged).cloned();
    let (agents, others): (Vec<_>, Vec<_>) = privileged.partition(|target| target.name == AGENTS);
    let mut words = theirs.to_vec();
    // They wait half of the time: for agents, timers, and what must not arrive.
    if !words.iter().any(|word| word.starts_with("--test-threads")) {
        let cpus = std::thread::available_parallelism().context("count the CPUs")?;
        words.push(format!("--test-threads={}", 2 * cpus.get()));
    }
    let elsewhere = elsewhere();
    words.extend(skips(&elsewhere));
    // One after the other: beside each other, tests that give real agents and real traffic a time run out of it.
    let here = command::run(&mut ring_command(&others, theirs)?);
    let there = command::run(&mut ring_command(&agents, &words)?);
    announce(&elsewhere);
    here.and(there)
}

/// The ring with real agents.
const AGENTS: &str = "agents";

/// The tests that need kernel modules which not every kernel has: a module of ring `agents`.
pub(crate) const MODULES: &str = "modules::";

/// The tests that change the whole machine: another one.
pub(crate) const MACHINE: &str = "machine::";

/// What of ring `agents` is not run on this machine, and why.
fn elsewhere() -> Vec<(&'static str, String)> {
    let mut elsewhere = vec![(MACHINE, "it sets the wall clock".to_owned())];
    if let Some(missing) = missing_modules() {
        elsewhere.push((MODULES, format!("this kernel has no {missing}")));
    }
    elsewhere
}

/// The arguments that leave them out.
fn skips(elsewhere: &[(&'static str, String)]) -> impl Iterator<Item = String> {
    elsewhere.iter().flat_map(|(module, _)| ["--skip".to_owned(), (*module).to_owned()])
}

fn announce(elsewhere: &[(&'static str, String)]) {
    for (module, why) in elsewhere {
        say(&format!(
            "not run here: agents::{module} ({why}); `cargo xtask verifier --wrap` runs it on another kernel"
        ));
    }
}

/// The first of these modules that the kernel neither has nor can load.
fn missing_modules() -> Option<&'static str> {
    ["sctp", "8021q"].into_iter().find(|name| {
        let loaded = std::path::Path::new("/sys/module").join(name).exists();
        !loaded && output(command::command("modprobe").arg(name)).is_err()
    })
}

/// Runs unit tests, the test targets that need no privileges, and doc tests.
fn pure(targets: &[Target], theirs: &[String]) -> Result<()> {
    let pure: Vec<_> = targets.iter().filter(|target| !target.privileged).cloned().collect();
    if found("cargo-nextest").is_some() && theirs.is_empty() {
        let mut nextest = cargo();
        nextest.args(["nextest", "run"]).args(WORKSPACE).args(features(targets));
        command::run(nextest.args(["--lib", "--bins"]).args(names(&pure)))?;
    } else {
        let mut test = test_command(targets);
        command::run(test.args(["--lib", "--bins"]).args(names(&pure)).arg("--").args(theirs))?;
    }
    // Neither nextest nor a selection of targets includes them.
    command::run(cargo().args(["test", "--doc"]).args(WORKSPACE).args(features(targets)))
}

/// Runs tests of one privileged ring with these environment variables.
///
/// # Errors
/// When a test fails, or root is needed and not available.
pub(crate) fn one(ring: &str, settings: &[(&str, String)], theirs: &[String]) -> Result<()> {
    let targets: Vec<_> = targets()?.into_iter().filter(|target| target.name == ring).collect();
    let mut test = ring_command(&targets, theirs)?;
    command::run(test.envs(settings.iter().map(|(name, value)| (*name, value))))
}

/// Runs a test target of the agent that is left out of the rings (`test = false`), with these environment variables.
///
/// # Errors
/// When a test fails, or root is needed and not available.
pub(crate) fn apart(target: &str, settings: &[(&str, String)]) -> Result<()> {
    let mut test = cargo();
    test.args(["test", "--package", "lb-agent", "--features", FEATURE, "--test", target]);
    as_root_runner(&mut test)?;
    test.args(["--", "--nocapture"]);
    command::run(test.envs(settings.iter().map(|(name, value)| (*name, value))))
}

/// Every crate but the programs', which only build for the kernel.
const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "lb-ebpf"];

/// All rings are built with the same features and from the same packages: nothing is built twice.
fn test_command(targets: &[Target]) -> Command {
    let mut test = cargo();
    test.args(["test", "--no-fail-fast"]).args(WORKSPACE).args(features(targets));
    test
}

/// Some test targets, as root if they need it.
fn ring_command(of_ring: &[Target], theirs: &[String]) -> Result<Command> {
    let mut test = test_command(&targets()?);
    test.args(names(of_ring));
    if of_ring.iter().any(|target| target.privileged) {
        as_root_runner(&mut test)?;
    }
    test.arg("--").args(theirs);
    Ok(test)
}

fn features(targets: &[Target]) -> Vec<String> {
    let packages: BTreeSet<&str> =
        targets.iter().filter(|t| t.privileged).map(|t| t.package.as_str()).collect();
    packages
        .into_iter()
        .flat_map(|package| ["--features".to_owned(), format!("{package}/{FEATURE}")])
        .collect()
}

fn names(targets: &[Target]) -> Vec<&str> {
    targets.iter().flat_map(|target| ["--test", &target.name]).collect()
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
#[derive(Clone)]
struct Target {
    package: String,
    name: String,
    privileged: bool,
}

/// Every test target of the workspace.
fn targets() -> Result<Vec<Target>> {
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
            // `test = false` is for what only measures.
            let is_run = target.get("test").and_then(Value::as_bool).unwrap_or_default();
            let test = is_run && list(&target, "kind").iter().any(|kind| kind == "test");
            let privileged = list(&target, "required-features").iter().any(|f| f == FEATURE);
            if let (true, Some(package), Some(name)) = (test, name(&package), name(&target)) {
                targets.push(Target { package, name, privileged });
            }
        }
    }
    Ok(targets)
}
