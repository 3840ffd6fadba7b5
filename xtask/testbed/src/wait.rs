//! Waiting for something with a deadline: tests poll, they do not sleep.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Calls `attempt` until it gives a value, every 5 ms at first and then more rarely; after `limit` the last reason
/// becomes the error. Returns the time it took beside the value.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Duration)> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        match attempt() {
            Ok(value) => return Ok((value, start.elapsed())),
            Err(err) if start.elapsed() >= limit => {
                bail!("{what}: not within {} ms: {err:#}", limit.as_millis())
            }
            Err(_) => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
