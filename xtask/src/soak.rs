//! `cargo xtask soak`: the packet tests that search, for longer than the test command does.

use anyhow::Result;

use crate::{args::Args, command::say, test};

pub(crate) const USAGE: &str = "soak [--packets N] [--seed N]
  --packets N   damaged and invented packets through every program (1000000)
  --seed N      which ones; the time of day without";

/// Runs the search.
///
/// # Errors
/// When a packet breaks a program, or leaves broken.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut args = Args::new(args);
    let packets = args.value("--packets")?.map_or(Ok(1_000_000), |n| n.parse::<u64>())?;
    let seed = args.value("--seed")?.map(|n| n.parse::<u64>()).transpose()?;
    args.finish(USAGE)?;
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    say(&format!("{packets} packets of seed {seed}"));
    let settings = [("LB_MUTANTS", packets.to_string()), ("LB_SEED", seed.to_string())];
    test::one("mutants", &settings, &["--".to_owned(), "--nocapture".to_owned()])
}
