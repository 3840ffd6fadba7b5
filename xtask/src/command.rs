//! Runs other programs: says what it runs, and an error names the command.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The build directory, which `$CARGO_TARGET_DIR` may move.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The commit of the work tree, with `-dirty` if files differ from it; `unknown` without git.
pub(crate) fn commit() -> String {
    let mut describe = command("git");
    describe.args(["describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]);
    output(&mut describe).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Removes a directory and all that is in it, if it exists.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

/// A command in the repository's root.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        let plain = !arg.is_empty() && !arg.contains(|c: char| c.is_whitespace() || c == '\'');
        line += &if plain { format!(" {arg}") } else { format!(" '{arg}'") };
    }
    line
}

/// Says a step on stderr, apart from the output of what it runs.
pub(crate) fn say(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1m→ {text}\x1b[0m");
    } else {
        eprintln!("→ {text}");
    }
}

/// Runs a command with this process's standard streams, after saying it.
///
/// # Errors
/// When it cannot be started, or ends with anything but success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    say(&line(command));
    let status = command.status().with_context(|| format!("start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}`: {status}", line(command));
    }
    Ok(())
}

/// Runs a command quietly and returns its standard output.
///
/// # Errors
/// When it cannot be started, or fails; with what it wrote to stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start `{}`", line(command)))?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("`{}`: {}: {}", line(command), out.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Where a program is in `$PATH`, or in the `sbin` directories that a user's `$PATH` often lacks.
pub(crate) fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether this process is root: the owner of its entry in `/proc`.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// What to put before a command that needs root: nothing, or `sudo`.
///
/// # Errors
/// When this is not root and there is no sudo.
pub(crate) fn as_root() -> Result<&'static [&'static str]> {
    if is_root() {
        Ok(&[])
    } else if found("sudo").is_some() {
        Ok(&["sudo"])
    } else {
        bail!("this requires root and sudo is not installed: run it as root")
    }
}
