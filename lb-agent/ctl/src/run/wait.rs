//! `lbctl wait`: asks the agent again and again.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::admin::Client;
use crate::columns;
use crate::run::TablePaths;
use crate::wait::{Reached, WaitArgs, obstacle};

/// Time between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until the maps say what the object says.
///
/// # Errors
/// When they do not within the time: why, with the name of the object.
pub(super) fn wait(
    place: TablePaths<'_>,
    args: &WaitArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let wanted = args.wanted()?;
    let client = Client::new(place.state_dir);
    let begun = Instant::now();
    loop {
        let why = match client.progress(&wanted) {
            Ok(progress) => match obstacle(&wanted, &progress) {
                None => {
                    columns::line(out, Reached(&wanted))?;
                    return Ok(ExitCode::SUCCESS);
                }
                Some(why) => why,
            },
            // An agent that restarts is waited for, too.
            Err(error) => format!("{error:#}"),
        };
        if begun.elapsed() >= args.timeout {
            bail!("{why} (waited {} s)", args.timeout.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}
