//! `cargo xtask verifier`: every program through this kernel's verifier, or through another kernel's by a command
//! prefix that boots it. The test binary prints one line a program, `NAME INSNS`; more than a tenth over the golden
//! file fails, for the verifier's budget is shared with what is added later.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    command::{self, as_root, command, line, root, say},
    setup::cargo,
    test,
};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Run this, datapath::services, agents::modules and agents::machine through a command, for example one that boots another kernel
    #[arg(long, value_name = "COMMAND")]
    wrap: Option<String>,
    /// Rewrite the golden file, lb-agent/tests/verifier.txt
    #[arg(long)]
    bless: bool,
}

const GOLDEN: &str = "lb-agent/tests/verifier.txt";

/// Loads every program and compares.
///
/// # Errors
/// When a program is refused, or grew by more than a tenth, or a packet test fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { wrap, bless } = options;
    let prefix: Vec<String> = match wrap {
        Some(words) => words.split_whitespace().map(str::to_owned).collect(),
        None => as_root()?.iter().map(|word| (*word).to_owned()).collect(),
    };
    let found = verified(&mut prefixed(&prefix, &test_binary("verifier")?))?;
    let path = root().join(GOLDEN);
    if *bless {
        let text: String = found.iter().map(|(name, insns)| format!("{name} {insns}\n")).collect();
        std::fs::write(&path, text).with_context(|| format!("write {GOLDEN}"))?;
        say(&format!("wrote {GOLDEN}"));
    }
    let golden = std::fs::read_to_string(&path)
        .with_context(|| format!("read {GOLDEN} (`cargo xtask verifier --bless` writes it)"))?;
    // Another kernel's verifier counts otherwise: there the comparison is for reading, and loading is the test.
    let verdict = compare(&parse(&golden)?, &found, wrap.is_none());
    if wrap.is_some() {
        // Not all of them: an emulated machine verifies programs for minutes.
        command::run(prefixed(&prefix, &test_binary("datapath")?).arg("services::"))?;
        // Stock kernels have what a development machine's may lack.
        command::run(
            prefixed(&prefix, &test_binary("agents")?).args([test::MODULES, test::MACHINE]),
        )?;
    }
    verdict
}

/// Builds a privileged test of the agent and returns its executable.
fn test_binary(name: &str) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "--package", "lb-agent", "--features", "privileged", "--test", name]);
    build.args(["--no-run", "--message-format=json-render-diagnostics"]).stderr(Stdio::inherit());
    say(&line(&build));
    let out = build.stdin(Stdio::null()).output().context("start cargo")?;
    if !out.status.success() {
        bail!("the test binary {name} does not build");
    }
    for message in String::from_utf8_lossy(&out.stdout).lines() {
        let message: Value = serde_json::from_str(message).context("cargo's messages")?;
        let ours = message.pointer("/target/name").is_some_and(|target| target == name)
            && message.pointer("/profile/test").is_some_and(|test| test == true);
        if let Some(executable) = message.get("executable").and_then(Value::as_str) {
            if ours {
                return Ok(PathBuf::from(executable));
            }
        }
    }
    bail!("cargo built no executable for the test {name}")
}

fn prefixed(prefix: &[String], executable: &Path) -> Command {
    let mut run = match prefix.split_first() {
        Some((first, rest)) => {
            let mut run = command(first);
            run.args(rest).arg(executable);
            run
        }
        None => command(&executable.to_string_lossy()),
    };
    // One thread: the programs' lines do not mix, and an emulated machine has little memory.
    run.args(["--test-threads=1", "--nocapture"]);
    run
}

fn verified(run: &mut Command) -> Result<BTreeMap<String, u64>> {
    say(&line(run));
    let out = run
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start `{}`", line(run)))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!("a program was refused ({}):\n{text}", out.status);
    }
    let found = parse(&text)?;
    if found.is_empty() {
        bail!("the verifier test printed no programs:\n{text}");
    }
    Ok(found)
}

/// The lines `NAME INSNS`; libtest's own lines have other shapes.
fn parse(text: &str) -> Result<BTreeMap<String, u64>> {
    let mut programs = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [name, insns] = words[..] {
            if let Ok(insns) = insns.parse() {
                if programs.insert(name.to_owned(), insns).is_some() {
                    bail!("program {name} is listed twice");
                }
            }
        }
    }
    Ok(programs)
}

/// Prints the comparison. A program that is missing or unknown fails; one that grew fails when `growth` counts.
fn compare(
    golden: &BTreeMap<String, u64>,
    found: &BTreeMap<String, u64>,
    growth: bool,
) -> Result<()> {
    let mut bad = Vec::new();
    println!("{:16} {:>8} {:>8} {:>7}", "PROGRAM", "GOLDEN", "NOW", "CHANGE");
    for (name, &now) in found {
        let Some(&then) = golden.get(name) else {
            println!("{name:16} {:>8} {now:>8}", "-");
            bad.push(format!("{name} is not in the golden file"));
            continue;
        };
        let percent = (now as f64 / then.max(1) as f64 - 1.0) * 100.0;
        println!("{name:16} {then:>8} {now:>8} {percent:>+6.1}%");
        if growth && now * 10 > then * 11 {
            bad.push(format!("{name} grew from {then} to {now} verified instructions"));
        }
    }
    let gone = golden.keys().filter(|name| !found.contains_key(*name));
    bad.extend(gone.map(|name| format!("{name} was not loaded")));
    if bad.is_empty() {
        return Ok(());
    }
    bail!("{}; if that is intended: cargo xtask verifier --bless", bad.join("; "))
}

#[cfg(test)]
mod tests {
    use super::{compare, parse};

    #[test]
    fn lines_of_the_test_runner_are_not_programs() {
        let text = "\nrunning 1 test\npod_out 1200\ntest all ... ok\n\ntest result: ok. 1 passed\n";
        let programs = parse(text).unwrap();
        assert_eq!(programs.into_iter().collect::<Vec<_>>(), [("pod_out".to_owned(), 1200)]);
    }

    #[test]
    fn a_tenth_more_passes_and_anything_beyond_fails() {
        let golden = parse("a 100\nb 200").unwrap();
        for (now, good) in [
            ("a 110\nb 100", true),
            ("a 111\nb 200", false),
            ("a 100", false),
            ("a 100\nb 200\nc 1", false),
        ] {
            assert_eq!(compare(&golden, &parse(now).unwrap(), true).is_ok(), good, "{now}");
        }
    }
}
