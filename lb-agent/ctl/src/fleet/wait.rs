//! `kubectl lb wait`: until all nodes have done what an object says.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::columns;
use crate::fleet::ask::{FleetQuery, no_answers};
use crate::wait::{Reached, WaitArgs};

/// Time between two questions.
const PAUSE: Duration = Duration::from_millis(300);

/// Asks all nodes until the last of them is done.
///
/// # Errors
/// When they are not within the time: which nodes, and why.
pub fn wait(
    asked: &FleetQuery,
    args: &WaitArgs,
    forwarded: Vec<String>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let wanted = args.wanted()?;
    let begun = Instant::now();
    loop {
        let (answers, mut missing) = asked.lines(forwarded.clone());
        missing.extend(asked.without_agent());
        if missing.is_empty() {
            columns::line(out, format_args!("{} on {} nodes", Reached(&wanted), answers.len()))?;
            return Ok(ExitCode::SUCCESS);
        }
        if begun.elapsed() >= args.timeout {
            return Err(no_answers(&missing));
        }
        std::thread::sleep(PAUSE);
    }
}
