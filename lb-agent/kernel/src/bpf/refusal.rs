//! Why the kernel did not take the maps or programs, in one sentence.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::Path;

use aya::EbpfError;
use aya::maps::MapError as AyaError;
use aya::programs::ProgramError;

use crate::bpf::load::LoadError;
use crate::preflight::Machine;

/// A refusal to load, in one sentence.
pub fn explain(error: &LoadError, facts: &Machine, pin_dir: &Path) -> String {
    if let LoadError::Maps(EbpfError::MapError(AyaError::IncompatiblePinnedMap {
        name,
        property,
        expected,
        actual,
    })) = error
    {
        return format!(
            "map {name}: the map pinned in {} has {property} {actual} instead of {expected}; run `lb-agent cleanup` to start over, which ends translated connections",
            pin_dir.display()
        );
    }
    if let Some(suspicion) = facts.suspicion() {
        return format!("{suspicion} ({})", root_cause(error));
    }
    if let LoadError::Program {
        program,
        source: ProgramError::LoadError { io_error, verifier_log },
    } = error
    {
        let log = verifier_log.to_string();
        // Its last words say what was wrong; the statistics come after them.
        let last = log.lines().rev().map(str::trim).find(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.starts_with("verification ")
        });
        return format!("program {program}: {io_error}: {}", last.unwrap_or("no verifier log"));
    }
    format!("{error}: {}", root_cause(error))
}

fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
