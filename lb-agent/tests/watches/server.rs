//! The API server: how to reach it, and what it has used so far by its own metrics.

use anyhow::{Context as _, Result};
use hyper::Request;
use kube::Client;
use kube::client::ClientBuilder;
use kube::config::Config;
use std::sync::Arc;

use super::tally::{Counting, Tally};

/// The API server of `$KUBECONFIG`.
pub(crate) struct Server {
    config: Config,
    /// For what is not counted.
    pub(crate) client: Client,
}

/// What it has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu_secs: f64,
    pub(crate) resident: u64,
}

impl Server {
    pub(crate) async fn of_environment() -> Result<Self> {
        let config = Config::infer().await.context("find the cluster of $KUBECONFIG")?;
        let client = Client::try_from(config.clone())?;
        Ok(Self { config, client })
    }

    /// A client with connections of its own.
    pub(crate) fn counted(&self, tally: &Arc<Tally>) -> Result<Client> {
        let builder = ClientBuilder::try_from(self.config.clone())?;
        Ok(builder.with_layer(&Counting(Arc::clone(tally))).build())
    }

    /// What it has used since it started, as it says at `/metrics`.
    pub(crate) async fn usage(&self) -> Result<Usage> {
        let request = Request::get("/metrics").body(Vec::new())?;
        let text = self
            .client
            .request_text(request)
            .await
            .context("read the metrics of the API server")?;
        let value = |name: &str| {
            let line = text
                .lines()
                .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
            let number = line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok());
            number.with_context(|| format!("the API server has no metric {name}"))
        };
        Ok(Usage {
            cpu_secs: value("process_cpu_seconds_total")?,
            resident: value("process_resident_memory_bytes")? as u64,
        })
    }
}
