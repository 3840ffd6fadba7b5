//! What a shell and `man` need: completions as kubectl asks for them, man pages.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::fleet::args::FleetCli;

/// Tells kubectl that no files are meant (`ShellCompDirectiveNoFileComp` of cobra).
const NO_FILES: &str = ":4";

/// Prints what may stand in the place of the last word, one a line with its help behind a tab, as cobra's programs do.
///
/// # Errors
/// When the output cannot be written.
pub fn complete(words: &[OsString], out: &mut dyn Write) -> io::Result<()> {
    let args: Vec<OsString> =
        std::iter::once(OsString::from("kubectl-lb")).chain(words.iter().cloned()).collect();
    let at = args.len().saturating_sub(1);
    let found = clap_complete::engine::complete(&mut FleetCli::command(), args, at, None);
    for candidate in found?.iter().filter(|candidate| !candidate.is_hide_set()) {
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.lines().next().unwrap_or_default();
        writeln!(out, "{}\t{help}", candidate.get_value().to_string_lossy())?;
    }
    writeln!(out, "{NO_FILES}")
}

/// Writes a man page for each command.
///
/// # Errors
/// When a file cannot be written; it is named.
pub fn man(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let mut command = FleetCli::command().bin_name("kubectl-lb");
    command.build();
    pages(&command, dir)
}

fn pages(command: &clap::Command, dir: &Path) -> anyhow::Result<()> {
    let page = clap_mangen::Man::new(command.clone());
    let path = dir.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text).context("write a man page")?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    let shown =
        command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help");
    shown.into_iter().try_for_each(|one| pages(one, dir))
}

#[cfg(test)]
mod tests {
    use super::{complete, man};

    fn completed(words: &[&str]) -> String {
        let words: Vec<_> = words.iter().map(Into::into).collect();
        let mut out = Vec::new();
        complete(&words, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_last_word_is_completed() {
        let found = completed(&["back"]);
        assert_eq!(
            found,
            "backends\tList backends: the endpoints that Service traffic is sent to\n:4\n"
        );
        let found = completed(&["services", "-n", "shop", "--sort"]);
        assert!(found.starts_with("--sort-by\t"), "{found}");
        let found = completed(&["services", "-o", ""]);
        assert!(found.contains("yaml\t") && !found.contains("rows"), "{found}");
        assert!(!completed(&[""]).contains("__complete"));
    }

    #[test]
    fn each_command_has_a_page() {
        let dir = std::env::temp_dir().join(format!("lb-man-{}", std::process::id()));
        man(&dir).unwrap();
        for name in ["kubectl-lb.1", "kubectl-lb-explain.1", "kubectl-lb-policy-show.1"] {
            let text = std::fs::read_to_string(dir.join(name)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{name}: {text}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
