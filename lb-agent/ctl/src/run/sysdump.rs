//! `lbctl sysdump`: runs all commands and writes what they say.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use crate::Cli;
use crate::run::{self, TablePaths, remark, unix_now};
use crate::sysdump::{DumpDocument, PARTS, Part, SysdumpArgs, create, redact, write};

/// Where the kubelet keeps the logs of containers; in a node debug Pod below `/host`.
const LOGS: [&str; 2] = ["/var/log/pods", "/host/var/log/pods"];
/// Beginnings of the names of the directories of the agent's Pods there.
const AGENT: &str = "kube-system_lb-agent-";
/// Lines of each log.
const LINES: usize = 2000;

/// Writes the archive.
///
/// # Errors
/// When it cannot be written. A command that fails is a file in it that says why.
pub(super) fn sysdump(
    place: TablePaths<'_>,
    args: &SysdumpArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let mut documents: Vec<DumpDocument> =
        PARTS.iter().map(|part| DumpDocument { part: *part, said: said(place, part) }).collect();
    let mut logs = match &args.log {
        Some(path) => given(path)?,
        None => logs(),
    };
    let mut node = place.names().names.node.into_owned();
    if args.redact {
        redact(&mut documents, &mut logs, &mut node);
    }
    let named = || PathBuf::from(format!("lb-sysdump-{node}.tar"));
    let path = args.file.clone().unwrap_or_else(named);
    if path == Path::new("-") {
        write(out, &documents, &logs, unix_now())?;
    } else {
        let show = path.display();
        let file = create(&path).with_context(|| format!("create {show}"))?;
        let mut file = BufWriter::new(file);
        write(&mut file, &documents, &logs, unix_now()).with_context(|| format!("write {show}"))?;
        file.flush().with_context(|| format!("write {show}"))?;
        remark(&format!("wrote {show}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The JSON document of a command, which may have several lines.
fn said(place: TablePaths<'_>, part: &Part) -> Result<serde_json::Value, String> {
    let words = ["lbctl"].into_iter().chain(part.arguments.iter().copied()).chain(["-o", "json"]);
    let mut cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    cli.pin_dir = place.pin_dir.to_owned();
    cli.state_dir = place.state_dir.to_owned();
    let mut text = Vec::new();
    run::run(&cli, &mut text).map_err(|error| format!("{error:#}"))?;
    let mut all = Vec::new();
    for value in serde_json::Deserializer::from_slice(&text).into_iter() {
        all.push(value.map_err(|error| error.to_string())?);
    }
    Ok(match all.len() {
        1 => all.remove(0),
        _ => all.into(),
    })
}

/// The lines of a log that the caller has.
fn given(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin()).context("read the log from standard input")?
    } else {
        fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?
    };
    Ok(text.lines().map(str::to_owned).collect())
}

/// The last lines of the agent's logs, if they can be read here.
fn logs() -> Vec<String> {
    let mut lines = Vec::new();
    for root in LOGS {
        let pods = fs::read_dir(root).into_iter().flatten().flatten();
        let pods = pods.filter(|pod| pod.file_name().to_string_lossy().starts_with(AGENT));
        for pod in pods {
            let containers = fs::read_dir(pod.path()).into_iter().flatten().flatten();
            let files = containers.flat_map(|container| {
                fs::read_dir(container.path()).into_iter().flatten().flatten()
            });
            for file in files.filter(|file| file.path().extension().is_some_and(|end| end == "log"))
            {
                let Ok(text) = fs::read_to_string(file.path()) else { continue };
                let all: Vec<&str> = text.lines().collect();
                lines.push(format!("# {}", file.path().display()));
                let last = all.get(all.len().saturating_sub(LINES)..).unwrap_or_default();
                lines.extend(last.iter().map(|line| (*line).to_owned()));
            }
        }
    }
    lines
}
