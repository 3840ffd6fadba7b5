//! How the demo looks: numbered titles, commands as one would type them, counts as bars.

use std::{io::IsTerminal as _, process::Command};

use testbed::load::Report;

/// What the story is written on.
#[derive(Debug, Default)]
pub(crate) struct Paper {
    steps: u32,
}

impl Paper {
    /// Begins a step.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}", bold(&format!("{}. {title}", self.steps)));
    }

    /// A sentence of the story.
    pub(crate) fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// A command's output, as it is.
    pub(crate) fn show(&self, command: &str, output: &str) {
        println!("   {}", bold(&format!("$ {command}")));
        for line in output.lines() {
            println!("   {line}");
        }
    }

    /// A load: who answered how often.
    pub(crate) fn report(&self, what: &str, report: &Report) {
        println!("   {what}");
        let most = report.by_backend.values().max().copied().unwrap_or(1).max(1);
        for (name, n) in &report.by_backend {
            println!("     {name:8} {n:5}  {}", bar(*n, most));
        }
        for (kind, n) in &report.failures {
            println!("     {kind:14} {n:5}  failed");
        }
        let Report { requests, failed, p50_us, p99_us, .. } = report;
        println!("     {requests} requests, {failed} failed, p50 {p50_us} µs, p99 {p99_us} µs");
    }
}

fn bar(n: u64, most: u64) -> String {
    "█".repeat((n * 30 / most) as usize)
}

fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// The command as one would type it.
pub(crate) fn typed(command: &Command) -> String {
    crate::command::line(command)
}
