//! `lbctl analyze`: what is wrong with manifests, without a cluster, a kernel or privileges: for CI.

mod sarif;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::columns::{self, Cell, Column, Format, Row, Style};
use lb_core::analyze::{self, Lint, LintFinding, Severity};
use lb_core::cluster::{Kind, Name};
use lb_core::issue::{Issue, ObjectRef};
use lb_kube::manifests::{self, CollectedManifests, ManifestPlace};

/// Exit status of a check that found problems.
const FOUND_PROBLEMS: u8 = 2;

/// Flags of `analyze`.
#[derive(Clone, Debug, clap::Args)]
pub struct AnalyzeArgs {
    /// File or directory with manifests, or - for standard input; directories are searched for .yaml, .yml and .json files
    #[arg(short, long, required = true, value_name = "PATH")]
    pub file: Vec<PathBuf>,
    /// Exit with 2 only if there is a finding of this severity or a worse one
    #[arg(long, value_enum, default_value_t, value_name = "SEVERITY")]
    pub fail_on: FailOn,
    /// Print a SARIF 2.1.0 document instead
    #[arg(long, conflicts_with = "output")]
    pub sarif: bool,
    /// How to print the findings
    #[command(flatten)]
    pub style: Style,
}

/// Where the documentation is about a kind of finding.
pub(crate) fn documented(lint: Lint) -> String {
    format!("docs/src/analyze.md#{}", lint.name().to_lowercase().replace('_', "-"))
}

/// From which severity on findings are a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FailOn {
    /// Notes, too.
    Note,
    /// Warnings and errors.
    #[default]
    Warning,
    /// Errors only.
    Error,
}

impl FailOn {
    const fn severity(self) -> Severity {
        match self {
            Self::Note => Severity::Note,
            Self::Warning => Severity::Warning,
            Self::Error => Severity::Error,
        }
    }
}

/// A finding and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingRow {
    /// `error`, `warning` or `note`.
    pub severity: &'static str,
    /// What it is, one of a fixed list.
    pub code: &'static str,
    /// The file; empty if no manifest is to blame.
    pub file: String,
    /// The line where the document begins.
    pub line: u64,
    /// Kind and name.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// One sentence.
    pub message: String,
    #[serde(skip)]
    lint: Lint,
}

impl Row for FindingRow {
    const NOUN: &'static str = "findings";
    const COLUMNS: &'static [Column] = &[
        Column::new("SEVERITY"),
        Column::new("CODE"),
        Column::new("PLACE"),
        Column::new("OBJECT"),
        Column::new("FIELD"),
        Column::new("MESSAGE"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let text = |text: &str| Cell::Text(text.to_owned());
        let place = match self.file.as_str() {
            "" => String::new(),
            file => format!("{file}:{}", self.line),
        };
        vec![
            text(self.severity),
            text(self.code),
            Cell::Text(place),
            text(&self.object),
            text(&self.field),
            text(&self.message),
        ]
    }

    fn name(&self) -> Option<String> {
        None
    }
}

/// Runs the command.
///
/// # Errors
/// When a file cannot be read, or nothing can be written.
pub fn run(args: &AnalyzeArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for path in &args.file {
        read(path, &mut files)?;
    }
    if files.is_empty() {
        let paths: Vec<String> = args.file.iter().map(|path| path.display().to_string()).collect();
        bail!("no .yaml, .yml or .json file in {}", paths.join(", "));
    }
    let (rows, severities) = rows(&files);
    if args.sarif {
        columns::document(out, &sarif::document(&rows), Format::Json)?;
    } else {
        match args.style.output {
            Format::Name => bail!("findings cannot be printed as names"),
            _ => columns::print(out, &rows, "", &args.style)?,
        }
    }
    let fails = severities.iter().any(|severity| *severity >= args.fail_on.severity());
    Ok(if fails { ExitCode::from(FOUND_PROBLEMS) } else { ExitCode::SUCCESS })
}

/// Adds a file, or all of a directory, in the order of their names.
fn read(path: &Path, files: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("read standard input")?;
        files.push(("standard input".to_owned(), text));
        return Ok(());
    }
    let context = || path.display().to_string();
    if path.is_dir() {
        let entries = fs::read_dir(path).with_context(context)?;
        let mut paths = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<PathBuf>>>()
            .with_context(context)?;
        paths.sort();
        for path in paths {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.is_some_and(|name| name.starts_with('.')) {
                continue;
            }
            let extension = path.extension().and_then(|extension| extension.to_str());
            if path.is_dir() || matches!(extension, Some("yaml" | "yml" | "json")) {
                read(&path, files)?;
            }
        }
        return Ok(());
    }
    files.push((context(), fs::read_to_string(path).with_context(context)?));
    Ok(())
}

/// The findings of manifests, the worst first, and how bad each is.
pub fn rows(files: &[(String, String)]) -> (Vec<FindingRow>, Vec<Severity>) {
    let collected = manifests::collect(files);
    let mut findings = of_manifests(&collected);
    let CollectedManifests { events, places, .. } = collected;
    findings.extend(analyze::findings(&analyze::cluster(events)));
    let mut placed: Vec<(LintFinding, Option<ManifestPlace>)> =
        findings.into_iter().map(|finding| place(finding, &places)).collect();
    placed.sort_by(|(a, at_a), (b, at_b)| {
        b.severity.cmp(&a.severity).then(at_a.cmp(at_b)).then(a.issue.cmp(&b.issue))
    });
    let severities = placed.iter().map(|(finding, _)| finding.severity).collect();
    (placed.into_iter().map(row).collect(), severities)
}

/// What reading them has found.
fn of_manifests(collected: &CollectedManifests) -> Vec<LintFinding> {
    let faults = collected.faults.iter().filter(|fault| fault.lossy);
    let unreadable = faults.map(|fault| LintFinding {
        lint: Lint::UnreadableManifest,
        severity: Severity::Error,
        issue: fault.issue.clone(),
    });
    let duplicates = collected.duplicates.iter().map(|(object, at, first)| {
        let message = format!("{object} is also defined at {}:{}", first.file, first.line);
        let issue = Issue::new(ObjectRef::file(&at.file, at.line), "metadata.name", message);
        LintFinding { lint: Lint::DuplicateObject, severity: Severity::Warning, issue }
    });
    let fields = collected.issues.iter().cloned().map(analyze::invalid_field);
    unreadable.chain(duplicates).chain(fields).collect()
}

/// The place of a finding: that of its object.
fn place(
    finding: LintFinding,
    places: &BTreeMap<(Kind, Name), ManifestPlace>,
) -> (LintFinding, Option<ManifestPlace>) {
    let ObjectRef { kind, namespace, name } = &finding.issue.object;
    if kind == "File" {
        let place = name.rsplit_once(':').and_then(|(file, line)| {
            Some(ManifestPlace { file: file.to_owned(), line: line.parse().ok()? })
        });
        return (finding, place);
    }
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind);
    let key = kind.map(|kind| (kind, Name::new(namespace.as_str(), name.as_str())));
    let place = key.and_then(|key| places.get(&key)).cloned();
    (finding, place)
}

fn row((finding, place): (LintFinding, Option<ManifestPlace>)) -> FindingRow {
    let LintFinding { lint, severity, issue } = finding;
    let ManifestPlace { file, line } =
        place.unwrap_or(ManifestPlace { file: String::new(), line: 0 });
    FindingRow {
        severity: severity.name(),
        code: lint.name(),
        file,
        line,
        object: if issue.object.kind == "File" { String::new() } else { issue.object.to_string() },
        field: issue.field,
        message: issue.message,
        lint,
    }
}

#[cfg(test)]
mod tests;
