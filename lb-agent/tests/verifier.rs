//! Loads every program and prints `program verified-instructions`, one line each, sorted by name. `cargo xtask
//! verifier` compares the lines with `verifier.txt`; on another kernel the same binary says whether it loads there.

use std::process::ExitCode;

use lb_common::config::Config;
use lb_common::limits;
use lb_kernel::bpf::load::{self, LoadOptions};

fn main() -> ExitCode {
    let options = LoadOptions { pin_dir: None, config: Config::ZERO, ct_entries: limits::CT };
    let ebpf = match load::load(&options) {
        Ok(ebpf) => ebpf,
        Err(err) => {
            eprintln!("{err}");
            let mut source = std::error::Error::source(&err);
            while let Some(cause) = source {
                eprintln!("{cause}");
                source = cause.source();
            }
            return ExitCode::FAILURE;
        }
    };
    let mut lines: Vec<String> = ebpf
        .programs()
        .map(|(name, program)| {
            let count = program.info().ok().and_then(|info| info.verified_instruction_count());
            // Kernels before 5.16 do not tell.
            format!("{name} {}", count.unwrap_or(0))
        })
        .collect();
    lines.sort();
    for line in lines {
        println!("{line}");
    }
    ExitCode::SUCCESS
}
