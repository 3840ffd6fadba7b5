//! Completion scripts.

use std::io::{self, Write};

use clap::CommandFactory as _;

use crate::{Cli, Shell};

/// Prints the script of a shell.
///
/// # Errors
/// When the output cannot be written.
pub fn script(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    use clap_complete::Shell as Known;
    let known = match shell {
        Shell::Bash => Known::Bash,
        Shell::Zsh => Known::Zsh,
        Shell::Fish => Known::Fish,
    };
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(known, &mut Cli::command(), "lbctl", &mut script);
    out.write_all(&script)
}
