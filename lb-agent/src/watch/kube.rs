//! The Kubernetes source: five watches.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Counters, Received};

/// Where the API server may be found.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// `--api-server`: URL, tried before anything else.
    pub api_server: Option<String>,
    /// `--kubeconfig`: address and credentials from this file and nothing else.
    pub kubeconfig: Option<PathBuf>,
    /// `--kubelet-kubeconfig`: only its `server` is used.
    pub kubelet_kubeconfig: PathBuf,
}

/// A client for an API server that answers without any Service working on this node.
///
/// # Errors
/// One sentence naming every address that was tried.
pub async fn connect(_options: &ConnectOptions) -> anyhow::Result<kube::Client> {
    anyhow::bail!("no API server")
}

/// Watches for ever; ends when the receiver of `tx` is gone.
pub async fn run(
    _client: kube::Client,
    _node: String,
    _tx: mpsc::Sender<Received>,
    _counters: Arc<Counters>,
) {
}
