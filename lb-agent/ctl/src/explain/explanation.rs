//! The answer for people and scripts: words, and stable keys in JSON and YAML.
#![expect(missing_docs, reason = "a field without a comment is what its name says")]

use std::io::{self, Write};

use serde::{Serialize, Serializer};

use crate::columns;
use crate::explain::code::Code;
use crate::explain::trace::{HopState, Tally, TraceOutcome};

impl TraceOutcome {
    /// Exit status.
    pub const fn exit(self) -> u8 {
        match self {
            Self::Delivered => 0,
            Self::Stopped => 3,
            Self::CannotTell => 4,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Delivered => "DELIVERED",
            Self::Stopped => "STOPPED",
            Self::CannotTell => "CANNOT TELL",
        }
    }
}

impl Serialize for TraceOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Delivered => "delivered",
            Self::Stopped => "stopped",
            Self::CannotTell => "cannot-tell",
        })
    }
}

impl HopState {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Stop => "STOP",
            Self::Unknown => "?",
        }
    }
}

impl Serialize for HopState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Ok => "ok",
            Self::Stop => "stop",
            Self::Unknown => "unknown",
        })
    }
}

/// One step of the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Whether the flow passes.
    pub state: HopState,
    /// Which step it is.
    pub what: &'static str,
    /// The same in words.
    pub text: String,
}

/// The rule that came closest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nearest {
    pub policy: String,
    /// Its path in `spec`, down to the peer or port that does not match.
    pub path: String,
    /// What that wants.
    pub wants: String,
    /// What the flow has instead.
    pub has: String,
}

/// A cause, or something worth knowing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub code: Option<Code>,
    /// The object to look at: `NetworkPolicy db/access`.
    pub object: String,
    /// Path of the field in it, or empty.
    pub path: String,
    /// What happens, a few words for the first line.
    pub headline: String,
    /// Why, sentences.
    pub because: Vec<String>,
    /// What to change, sentences.
    pub to_fix: Vec<String>,
    /// The rule that came closest.
    pub nearest: Option<Nearest>,
    /// What in the maps says so.
    pub evidence: Vec<String>,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What happens to the flow.
    pub outcome: TraceOutcome,
    pub verdict: String,
    /// How many backends there are, for how many of them the flow is stopped, and for how many of the others that is unknown.
    pub branches: Tally,
    pub steps: Vec<Step>,
    /// The first cause, or the first thing worth knowing.
    #[serde(flatten)]
    pub finding: Finding,
    /// Other causes and things worth knowing.
    pub also: Vec<Finding>,
    /// What was taken for granted, and where to check it.
    pub assumed: Vec<String>,
    /// The lookup of the destination's name, if that is followed.
    pub lookup: Option<LookupResult>,
}

/// The lookup of a name, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LookupResult {
    /// The Service of the cluster's DNS: `kube-system/kube-dns`.
    pub service: String,
    pub outcome: TraceOutcome,
    pub code: Option<Code>,
}

/// Prints it for people.
///
/// # Errors
/// When the output cannot be written.
pub fn print(out: &mut dyn Write, explanation: &Explanation) -> io::Result<()> {
    let Explanation { outcome, verdict, steps, finding, also, assumed, .. } = explanation;
    columns::line(out, format_args!("{}: {verdict}", outcome.word()))?;
    let lines: Vec<Vec<String>> = steps
        .iter()
        .enumerate()
        .map(|(i, step)| {
            let state = step.state.word();
            vec![(i + 1).to_string(), state.to_owned(), step.what.to_owned(), step.text.clone()]
        })
        .collect();
    columns::align(out, &lines, "  ")?;
    let findings = || std::iter::once(finding).chain(also);
    let gather = |part: fn(&Finding) -> &[String]| {
        let mut all: Vec<&String> = Vec::new();
        for line in findings().flat_map(part) {
            if !all.contains(&line) {
                all.push(line);
            }
        }
        all.into_iter().cloned().collect::<Vec<_>>()
    };
    block(out, "because", &gather(|finding| &finding.because))?;
    block(out, "to fix", &gather(|finding| &finding.to_fix))?;
    block(out, "assumed", assumed)?;
    if let Some(code) = finding.code {
        writeln!(out, "code: {}", code.name())?;
    }
    Ok(())
}

fn block(out: &mut dyn Write, name: &str, lines: &[String]) -> io::Result<()> {
    match lines {
        [] => Ok(()),
        [line] => columns::line(out, format_args!("{name}: {line}")),
        lines => {
            writeln!(out, "{name}:")?;
            lines.iter().try_for_each(|line| columns::line(out, format_args!("  {line}")))
        }
    }
}
