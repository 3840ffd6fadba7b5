//! `cargo xtask bench`: what a Service costs over its Pod. Every number is a median over paired rounds: in each round
//! the same thing is measured straight on a bed without agents, straight on a bed with agents, and through the
//! ClusterIP, one right after the other, client and server on one CPU.

mod field;
mod nanos;
mod paths;
mod programming;
mod report;

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    args::Args,
    binaries::{self, Binaries},
    command::say,
};

pub(crate) const USAGE: &str = "bench [--json] [--quick] [--rounds N]
  --json      print JSON instead of the Markdown tables
  --quick     shorter and fewer rounds: a look, not a result
  --rounds N  rounds of each measurement (7; 3 when quick)";

/// Builds in release mode, measures, prints.
///
/// # Errors
/// When a bed cannot be set, or a measurement fails.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut words = Args::new(args);
    let json = words.flag("--json");
    let quick = words.flag("--quick");
    let rounds = words.value("--rounds")?.map(|n| n.parse()).transpose()?;
    let built = words.flag(binaries::BUILT);
    let nanos = words.value(nanos::OPTION)?.map(PathBuf::from);
    words.finish(USAGE)?;
    let nanos = match nanos {
        Some(nanos) if built => nanos,
        _ => {
            binaries::build(true)?;
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
    for (n_services, n_policies) in [(1, 0), (1, 50), (1_000, 0), (10_000, 0)] {
        field.announce_others(n_services - 1)?;
        field.announce_policies(n_policies)?;
        results.paths.extend(paths::measure(&mut field, (n_services, n_policies), scale)?);
    }
    say("programming 10,000 Services");
    results.programming = programming::measure(&mut field, scale)?;
    if json { report::print_json(&results) } else { report::print_markdown(&results) }
}
