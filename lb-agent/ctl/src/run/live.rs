//! `lbctl top` and `lbctl ui`: they run this program again for each answer, with the same tables.

use std::env;

use anyhow::Context as _;
use lb_live::lbctl::Lbctl;

use crate::run::TablePaths;

/// How this program is run for these tables.
pub(super) fn lbctl(place: TablePaths<'_>) -> anyhow::Result<Lbctl> {
    let program = env::current_exe().context("find the file of this program")?;
    let (pins, state) = (place.pin_dir.as_os_str(), place.state_dir.as_os_str());
    let flags = [("--pin-dir", pins), ("--state-dir", state)];
    let flags = flags.into_iter().flat_map(|(name, value)| [name.into(), value.to_owned()]);
    Ok(Lbctl::new(program, flags.collect()))
}
