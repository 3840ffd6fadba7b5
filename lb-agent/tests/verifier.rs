//! Loads every program and prints `program verified-instructions`, one line each, sorted by name. `cargo xtask
//! verifier` compares the lines with `verifier.txt`; on another kernel the same binary says whether it loads there.
//!
//! They are loaded twice: as they are, and with flows being counted. Of the second time the programs are printed that are loaded
//! only then; the others are a little longer.

use std::process::ExitCode;

use aya::Ebpf;
use lb_common::config::{Config, Features};
use lb_common::limits;
use lb_kernel::bpf::load::{self, LoadError, LoadOptions};

fn main() -> ExitCode {
    let (plain, counting) = match (loaded(Features::NONE), loaded(Features::ACCOUNTS)) {
        (Ok(plain), Ok(counting)) => (plain, counting),
        (Err(err), _) | (_, Err(err)) => {
            eprintln!("{err}");
            let mut source = std::error::Error::source(&err);
            while let Some(cause) = source {
                eprintln!("{cause}");
                source = cause.source();
            }
            return ExitCode::FAILURE;
        }
    };
    let is_counting = |line: &String| limits::ACCOUNT_PROGRAMS.iter().any(|p| line.starts_with(p));
    let mut lines = lines(&plain);
    lines.retain(|line| !is_counting(line));
    lines.extend(self::lines(&counting).into_iter().filter(is_counting));
    lines.sort();
    for line in lines {
        println!("{line}");
    }
    ExitCode::SUCCESS
}

fn loaded(features: Features) -> Result<Ebpf, LoadError> {
    let config = Config { features, ..Config::ZERO };
    load::load(&LoadOptions { pin_dir: None, config, ct_entries: limits::CT })
}

fn lines(ebpf: &Ebpf) -> Vec<String> {
    let line = |(name, program): (&str, &aya::programs::Program)| {
        let count = program.info().ok().and_then(|info| info.verified_instruction_count());
        // Kernels before 5.16 do not tell.
        format!("{name} {}", count.unwrap_or(0))
    };
    ebpf.programs().map(line).collect()
}
