//! `lbctl version`: this binary, the agent, and the layouts of the maps it reads.

use std::borrow::Cow;
use std::io::{self, Write};

use lb_common::limits::MAPS;
use serde::{Deserialize, Serialize};

use crate::columns::{self, NONE};
use lb_core::build;
use lb_core::names::Names;

/// The versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// This binary.
    pub lbctl: Cow<'static, str>,
    /// The commit that it was built from, or `unknown`.
    pub commit: Cow<'static, str>,
    /// The agent that wrote the name table last; `None` when there is no table.
    pub agent: Option<String>,
    /// Maps with the versions of their layouts that this binary reads.
    pub maps: Vec<String>,
}

/// Collects them.
pub fn versions(names: Option<&Names<'_>>) -> Versions {
    Versions {
        lbctl: build::VERSION.into(),
        commit: build::COMMIT.into(),
        agent: names.map(|names| names.agent.version.to_string()),
        maps: MAPS.iter().map(|map| format!("{}_v{}", map.name, map.version)).collect(),
    }
}

/// Prints them for people.
///
/// # Errors
/// When the output cannot be written.
pub fn print(out: &mut dyn Write, versions: &Versions) -> io::Result<()> {
    writeln!(out, "lbctl  {}, commit {}", versions.lbctl, versions.commit)?;
    columns::line(out, format_args!("agent  {}", versions.agent.as_deref().unwrap_or(NONE)))?;
    writeln!(out, "maps   {}", versions.maps.join(" "))
}
