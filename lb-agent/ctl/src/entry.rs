//! The end of a program: results and errors → exit status, as kubectl does.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use lb_core::escape::Escaped;

/// Runs a program that prints to standard output, and reports its error with its name.
pub fn run(
    name: &str,
    program: impl FnOnce(&mut dyn Write) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = program(&mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    match result {
        Ok(code) => code,
        // `lbctl ct | head` is not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", Escaped(format_args!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Help goes to standard output; mistakes exit with 1 as kubectl's do, since 2 means that a check found problems.
pub fn usage(error: &clap::Error) -> ExitCode {
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
