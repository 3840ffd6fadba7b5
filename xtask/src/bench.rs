//! `cargo xtask bench`.

pub(crate) const USAGE: &str = "bench";

/// # Errors
/// Always, here.
pub(crate) fn run(_args: &[String]) -> anyhow::Result<()> {
    anyhow::bail!("not in this tree")
}
