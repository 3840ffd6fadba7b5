//! `cargo xtask soak`: the packet tests that search, for longer than the test command does.

use anyhow::Result;

use crate::{args::Args, command::say, test};

pub(crate) const USAGE: &str = "soak [--packets N] [--judged N] [--seed N]
  --packets N   damaged and generated packets for every program [default: 1000000]
  --judged N    packets checked against the policies of random clusters [default: 2000000]
  --seed N      seed of the random generator [default: from the clock]";

/// Runs the search.
///
/// # Errors
/// When a packet breaks a program, leaves broken, or gets another verdict than the API's text gives.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut args = Args::new(args);
    let packets = args.value("--packets")?.map_or(Ok(1_000_000), |n| n.parse::<u64>())?;
    let judged = args.value("--judged")?.map_or(Ok(2_000_000), |n| n.parse::<u64>())?;
    let seed = args.value("--seed")?.map(|n| n.parse::<u64>()).transpose()?;
    args.finish(USAGE)?;
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
            let words = ["--", "--nocapture", module].map(str::to_owned);
            test::one("datapath", &settings, &words)?;
        }
    }
    Ok(())
}
