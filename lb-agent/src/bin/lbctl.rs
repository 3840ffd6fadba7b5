//! `lbctl`: shows what the agent has programmed on this node.

use std::process::ExitCode;

use lb_ctl::{command_line, entry, run};

fn main() -> ExitCode {
    match command_line::parse(std::env::args_os()) {
        Ok(cli) => entry::run("lbctl", |out| run::run(&cli, out)),
        Err(error) => entry::usage(&error),
    }
}
