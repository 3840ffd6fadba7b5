//! What large clusters and the most expensive objects cost, in writes, time and memory. The figures are printed:
//! `cargo test --release --test control scale -- --nocapture`.
//!
//! Each test runs in a process of its own, since the memory that it measures is that of the process.

mod policies;
mod services;
mod worst;

use std::process::Command;

/// Set in the process that measures.
const ALONE: &str = "LB_TEST_ALONE";

/// Runs a test of this module by starting this binary again for it alone; within that process, runs `test`.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", &format!("scale::{name}")]).env(ALONE, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "no test scale::{name}: {text}");
}

/// A figure of this process in KiB (`/proc/self/status`, proc_pid_status(5)).
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What this process has written to memory, in KiB: without the pages of its executable, which differ from build to build.
fn resident() -> u64 {
    memory("RssAnon:")
}
