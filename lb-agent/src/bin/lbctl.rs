//! `lbctl`: shows what the agent has programmed on this node.

use std::process::ExitCode;

use clap::Parser as _;
use lb_ctl::{Cli, entry, run};

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => entry::run("lbctl", |out| run::run(&cli, out)),
        Err(error) => entry::usage(&error),
    }
}
