//! `cargo xtask demo`.

pub(crate) const USAGE: &str = "demo";

/// # Errors
/// Always, here.
pub(crate) fn run(_args: &[String]) -> anyhow::Result<()> {
    anyhow::bail!("not in this tree")
}
