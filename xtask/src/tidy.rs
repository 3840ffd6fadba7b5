//! House rules that no compiler knows: `cargo xtask check` runs them, and so does `cargo test -p xtask`. Each file of
//! `tidy/` is a family of rules from the repository's text to complaints; nothing here runs or builds anything.

mod architecture;
mod attacks;
mod items;
mod language;
mod links;
mod modules;
mod names;
mod release;
mod sources;
mod versions;
mod walls;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::command::{root, say};

/// A source file: its path from the repository's root, with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

#[cfg(test)]
impl Source {
    /// Files of a test by path and text.
    fn of(files: &[(&str, &str)]) -> Vec<Self> {
        let source =
            |(path, text): &(&str, &str)| Self { path: (*path).into(), text: (*text).into() };
        files.iter().map(source).collect()
    }
}

/// Beyond these, a file or a function usually has two reasons to change. A hint, never a failure.
const FILE_LINES: usize = 300;

/// Runs every rule.
///
/// # Errors
/// When a rule is broken; all complaints at once.
pub(crate) fn check() -> Result<()> {
    say("tidy");
    let sources = read_files(root(), ".rs")?;
    for source in sources.iter().filter(|source| source.text.lines().count() > FILE_LINES) {
        eprintln!("hint: {}: {} lines", source.path, source.text.lines().count());
    }
    let mut complaints = sources::check(&sources);
    complaints.extend(modules::check(&sources));
    complaints.extend(items::check(&sources));
    complaints.extend(walls::check(root())?);
    complaints.extend(toolchains(&sources));
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md"));
    complaints
        .extend(architecture::check(&sources, &architecture.context("read ARCHITECTURE.md")?));
    let documents = read_files(root(), ".md")?;
    complaints.extend(language::check(&documents));
    complaints.extend(language::check(&sources));
    let manifests = read_files(root(), ".yaml")?;
    complaints.extend(language::check(&manifests));
    complaints.extend(links::check(&documents, is_there));
    complaints.extend(names::documents(&documents));
    complaints.extend(names::pictures(&read_files(root(), ".svg")?, &documents, &sources));
    let versioned = read_files(root(), "Cargo.toml")?;
    complaints.extend(release::check(&[&versioned, &manifests], &documents));
    let settings = read_files(root(), ".env")?;
    for files in [&sources, &manifests, &settings] {
        complaints.extend(names::places(&documents, files));
    }
    let threats = std::fs::read_to_string(root().join("THREATMODEL.md"));
    complaints.extend(attacks::check(&sources, &threats.context("read THREATMODEL.md")?));
    complaints.extend(versions::check()?);
    end(&complaints)
}

/// The rule on map layouts and versions alone.
///
/// # Errors
/// When a layout changed without a new version.
pub(crate) fn layout() -> Result<()> {
    end(&versions::check()?)
}

/// Checks the links of all documents, and the names in them.
///
/// # Errors
/// When a link leads nowhere, or nothing has such a name.
pub(crate) fn documents() -> Result<()> {
    let documents = read_files(root(), ".md")?;
    let mut complaints = links::check(&documents, is_there);
    complaints.extend(names::documents(&documents));
    end(&complaints)
}

fn is_there(path: &Path) -> bool {
    root().join(path).exists()
}

fn end(complaints: &[String]) -> Result<()> {
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("tidy has {} complaints:\n  {}", complaints.len(), complaints.join("\n  "))
}

/// Reads every file of the repository whose name ends so, in a stable order.
fn read_files(root: &Path, ending: &str) -> Result<Vec<Source>> {
    let mut dirs = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                // Build directories carry cargo's tag, wherever $CARGO_TARGET_DIR put them.
                if !name.starts_with('.') && !entry.path().join("CACHEDIR.TAG").exists() {
                    dirs.push(entry.path());
                }
            } else if name.ends_with(ending) {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    let read = |file: PathBuf| {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        Ok(Source { path, text })
    };
    files.into_iter().map(read).collect()
}

/// The kernel object is built by the toolchain that `setup` installs.
fn toolchains(sources: &[Source]) -> Vec<String> {
    let build = "lb-agent/kernel/build.rs";
    let line = format!("const TOOLCHAIN: &str = \"{}\";", crate::setup::TOOLCHAIN);
    let text =
        sources.iter().find(|source| source.path == build).map(|source| source.text.as_str());
    if text.is_some_and(|text| text.contains(&line)) {
        return Vec::new();
    }
    vec![format!("{build}: must have the toolchain of xtask/src/setup.rs: `{line}`")]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_house_is_tidy() {
        if let Err(err) = super::check() {
            panic!("{err:#}");
        }
    }
}
