//! The checks' outcomes: one line each as they end, and the count as the last line.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// By then the cluster has followed a change, on a slow machine as well.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Counts what passed and what failed.
pub(crate) struct Report {
    only: Option<String>,
    passed: usize,
    failed: Vec<String>,
}

impl Report {
    /// Nothing yet; `only` leaves out every check without that word in its name.
    pub(crate) fn new(only: Option<String>) -> Self {
        Self { only, passed: 0, failed: Vec::new() }
    }

    /// Runs a check, which may return what it measured.
    pub(crate) fn check(&mut self, name: &str, check: impl FnOnce() -> Result<String>) {
        if self.only.as_ref().is_some_and(|word| !name.contains(word)) {
            return;
        }
        let start = Instant::now();
        match check() {
            Ok(found) => {
                self.passed += 1;
                let colon = if found.is_empty() { "" } else { ": " };
                println!("ok    {name}{colon}{found} ({:.1} s)", start.elapsed().as_secs_f64());
            }
            Err(err) => {
                self.failed.push(name.to_owned());
                println!("FAIL  {name}: {err:#} ({:.1} s)", start.elapsed().as_secs_f64());
            }
        }
    }

    /// The closing lines.
    ///
    /// # Errors
    /// When a check failed, or none ran.
    pub(crate) fn end(self) -> Result<()> {
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        match (self.passed, self.failed.len()) {
            (0, 0) => bail!("no check has that word in its name"),
            (_, 0) => Ok(()),
            (_, failed) => bail!("{failed} checks failed"),
        }
    }
}

/// Tries until it succeeds or the deadline passes; the last error then.
///
/// # Errors
/// The last attempt's.
pub(crate) fn within<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(err) if Instant::now() >= deadline => {
                return Err(err.context(format!("not within {limit:?}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
