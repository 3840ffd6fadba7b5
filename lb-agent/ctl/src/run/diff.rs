//! `lbctl diff`: has the agent audit its maps, and repair them if that is wanted.

use std::io::Write;
use std::process::ExitCode;

use crate::admin::Client;
use crate::columns;
use crate::diff::{DiffArgs, rows, summary};
use crate::run::{FOUND_PROBLEMS, TablePaths, remark};

/// Prints what differs. The exit status says whether anything still does.
///
/// # Errors
/// When no agent answers, or the output cannot be written.
pub(super) fn diff(
    place: TablePaths<'_>,
    args: &DiffArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let report = Client::new(place.state_dir).audit(args.repair)?;
    columns::print(out, &rows(&report), &place.names().names.node, &args.style)?;
    remark(&summary(&report));
    let is_clean = report.elements == report.repaired;
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::from(FOUND_PROBLEMS) })
}
