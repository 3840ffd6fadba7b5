//! `cargo xtask soak`: the packet tests that search, for longer than the test command does.

use anyhow::Result;
use clap::Args;

use crate::{command::say, test};

/// Options of the task.
#[derive(Args)]
pub(crate) struct Options {
    /// Number of damaged and generated packets that every program gets
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    packets: u64,
    /// Number of packets that are checked against the policies of random clusters
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    judged: u64,
    /// Seed of the random generator [default: from the clock]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Runs the search.
///
/// # Errors
/// When a packet breaks a program, leaves broken, or gets another verdict than the API's text gives.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { packets, judged, seed } = *options;
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    say(&format!("{packets} damaged packets, {judged} policy checks, seed {seed}"));
    let settings = [
        ("LB_MUTANTS", packets.to_string()),
        ("LB_JUDGED", judged.to_string()),
        ("LB_SEED", seed.to_string()),
    ];
    for (module, n) in [("mutants::", packets), ("oracle::", judged)] {
        if n > 0 {
            let words = ["--nocapture", module].map(str::to_owned);
            test::one("datapath", &settings, &words)?;
        }
    }
    Ok(())
}
