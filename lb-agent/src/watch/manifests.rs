//! The manifest source: a directory of YAML files.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Counters, Received};

/// Watches the directory for ever; ends when the receiver of `tx` is gone.
///
/// # Errors
/// When the directory cannot be watched.
pub async fn run(
    _directory: PathBuf,
    _node: String,
    _tx: mpsc::Sender<Received>,
    _counters: Arc<Counters>,
) -> anyhow::Result<()> {
    Ok(())
}
