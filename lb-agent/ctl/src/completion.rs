//! Completion scripts.

use std::io::{self, Write};

use crate::Shell;

/// Where kubectl looks for the completions of `kubectl lb`: a program with this name (KEP-2876, kubectl 1.26).
const KUBECTL: &str = "#!/bin/sh
# kubectl runs this as kubectl_complete-lb, in a directory of PATH, with the words after `kubectl lb`.
exec kubectl-lb __complete -- \"$@\"
";

/// Prints the script of a shell for a program of this name.
///
/// # Errors
/// When the output cannot be written.
pub fn script(
    shell: Shell,
    mut command: clap::Command,
    name: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    use clap_complete::Shell as Known;
    let known = match shell {
        Shell::Bash => Known::Bash,
        Shell::Zsh => Known::Zsh,
        Shell::Fish => Known::Fish,
        Shell::Kubectl => return out.write_all(KUBECTL.as_bytes()),
    };
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(known, &mut command, name, &mut script);
    out.write_all(&script)
}
