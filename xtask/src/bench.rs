//! `cargo xtask bench`: what a Service costs over its Pod. Every number is a median over paired rounds: in each round
//! the same thing is measured straight on a bed without agents, straight on a bed with agents, and through the
//! ClusterIP, one right after the other, client and server on one CPU; and what policies cost, with and without them
//! in turn; what floods do to others; and how many questions a second are answered through a node port.

mod answers;
mod field;
mod floods;
mod nanos;
mod paths;
mod policies;
mod programming;
mod report;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    args::Args,
    binaries::{self, Binaries},
    command::say,
};

pub(crate) const USAGE: &str = "bench [--json] [--quick] [--rounds N] [--part P]
  --json      print JSON instead of the Markdown tables
  --quick     fewer and shorter rounds, for a first impression only
  --rounds N  rounds of each measurement [default: 7, with --quick 3]
  --part P    only one part: paths, policies, programming, floods or answers; always also measures the nanoseconds per packet";

/// Builds in release mode, measures, prints.
///
/// # Errors
/// When a bed cannot be set, or a measurement fails.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut words = Args::new(args);
    let json = words.flag("--json");
    let quick = words.flag("--quick");
    let rounds = words.value("--rounds")?.map(|n| n.parse()).transpose()?;
    let part = words.value("--part")?;
    let part = part.as_deref();
    if part.is_some_and(|part| {
        !["paths", "policies", "programming", "floods", "answers"].contains(&part)
    }) {
        bail!("{USAGE}");
    }
    let built = words.flag(binaries::BUILT);
    let nanos = words.value(nanos::OPTION)?.map(PathBuf::from);
    words.finish(USAGE)?;
    let nanos = match nanos {
        Some(nanos) if built => nanos,
        _ => {
            binaries::build(true, false)?;
            nanos::build()?
        }
    };
    let mut root_args = args.to_vec();
    root_args.extend([nanos::OPTION.to_owned(), nanos.display().to_string()]);
    if binaries::again_as_root("bench", &root_args)?.is_some() {
        return Ok(());
    }

    let scale = paths::Scale::new(quick, rounds);
    let mut results = report::Results { machine: report::Machine::this()?, ..Default::default() };
    say("nanoseconds per packet of each program");
    results.nanos = nanos::measure(&nanos)?;
    let mut field = field::Field::set(&Binaries::of(true))?;
    if part.is_none_or(|part| part == "paths") {
        for n_services in [1, 1_000, 10_000] {
            field.announce_others(n_services - 1)?;
            results.paths.extend(paths::measure(&mut field, n_services, scale)?);
        }
        field.announce_others(0)?;
    }
    if part.is_none_or(|part| part == "policies") {
        results.policies = policies::measure(&field, 50, scale)?;
    }
    if part.is_none_or(|part| part == "floods") {
        results.floods = floods::measure(&field, quick)?;
    }
    if part.is_none_or(|part| part == "answers") {
        results.answers = answers::measure(&field, quick)?;
    }
    if part.is_none_or(|part| part == "programming") {
        say("programming 10,000 Services");
        results.programming = programming::measure(&mut field, scale)?;
    }
    if json { report::print_json(&results) } else { report::print_markdown(&results) }
}
