//! kubeconfig → API client, by kubectl's rules.

use std::path::PathBuf;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Where the cluster is and where its agents are.
#[derive(Clone, Debug, Default)]
pub struct FleetOptions {
    /// The kubeconfig; `None` = the files of the variable `KUBECONFIG`, or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; `None` = its current one. The same applies to `cluster` and `user`.
    pub context: Option<String>,
    /// The cluster in it.
    pub cluster: Option<String>,
    /// The user in it.
    pub user: Option<String>,
    /// Namespace of the agents.
    pub agent_namespace: String,
}

/// An API server and who asks it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// Namespace of names that have none, as the context has it.
    pub(crate) namespace: String,
    /// Name of the context, or the server's address.
    pub(crate) context: String,
}

/// Reads the kubeconfig and makes a client of it. Nothing is sent yet.
///
/// # Errors
/// One sentence with the file, when there is none or it cannot be used.
pub(crate) async fn connect(options: &FleetOptions) -> anyhow::Result<Connection> {
    let FleetOptions { kubeconfig, context, cluster, user, .. } = options;
    let found = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path)
            .with_context(|| format!("read kubeconfig {}", path.display())),
        None => Kubeconfig::read()
            .context("no kubeconfig: give --kubeconfig, or set KUBECONFIG, or make ~/.kube/config"),
    };
    let asked = [context, cluster, user].iter().any(|word| word.is_some());
    let (config, name) = match found {
        Ok(file) => {
            let name = context.clone().or_else(|| file.current_context.clone());
            let wanted = KubeConfigOptions {
                context: context.clone(),
                cluster: cluster.clone(),
                user: user.clone(),
            };
            let config = Config::from_custom_kubeconfig(file, &wanted).await;
            (config.context("use the kubeconfig")?, name)
        }
        // In a Pod, as kubectl does there.
        Err(error) if kubeconfig.is_none() && !asked => match Config::incluster() {
            Ok(config) => (config, None),
            Err(_no_account) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let context = name.unwrap_or_else(|| config.cluster_url.to_string());
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config).context("create the API server client")?;
    Ok(Connection { client, namespace, context })
}

/// Returns what is wrong with a request in one sentence.
pub(crate) fn explained(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        error => anyhow::Error::new(error),
    }
}
