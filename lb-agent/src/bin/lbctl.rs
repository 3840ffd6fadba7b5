//! `lbctl`: shows what the agent has programmed on this node.

use std::io::{self, BufWriter, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use lb_core::escape::Escaped;
use lb_ctl::{Cli, run};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let result = run::run(&cli, &mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    match result {
        Ok(code) => code,
        // `lbctl ct | head` is not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbctl: {}", Escaped(format_args!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Help goes to standard output; mistakes exit with 1 as kubectl's do, since 2 means that a check found problems.
fn explain(error: &clap::Error) -> ExitCode {
    let printed = error.print().is_ok();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion if printed => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
