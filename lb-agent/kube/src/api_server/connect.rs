//! Where the API server is. It must be found while no Service works on this node: the agent is what makes them work.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use kube::client::ClientBuilder;
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster,
    NamedContext,
};
use kube::{Client, Config};
use tracing::{debug, info};

use super::known;
use super::requests::RequestObserver;
use super::token::TokenLayer;

/// A server that has not answered in this time is passed over.
const PROBE: Duration = Duration::from_secs(2);
/// Name of the API server in the cluster's DNS.
const IN_CLUSTER_NAME: &str = "kubernetes.default.svc";
/// The service account's credentials, as mounted into each Pod.
pub const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API server may be found.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// `--api-server`: URL; no other address is tried then.
    pub api_server: Option<String>,
    /// `--kubeconfig`: address and credentials from this file and nothing else.
    pub kubeconfig: Option<PathBuf>,
    /// `--kubelet-kubeconfig`: only its `server` is used.
    pub kubelet_kubeconfig: PathBuf,
    /// The file of [`super::known`], in `--cache-dir`.
    pub known_servers: PathBuf,
    /// The directory of the service account's credentials: [`ACCOUNT`].
    pub account: PathBuf,
    /// Who gets each request of the client.
    pub requests: RequestObserver,
}

/// A client for an API server that answers without any Service working on this node.
///
/// The explicit kubeconfig if there is one, else with the service account's credentials: the explicit URL; or the
/// in-cluster address if it answers; or the `server` of the kubelet's kubeconfig; or an address that the Service `kubernetes` had
/// when an agent of this node last saw it. An explicit address is not probed: it is the user's word, and the watches try again
/// and again.
///
/// # Errors
/// One sentence naming every address that was tried and why it did not serve.
pub async fn connect(options: &ConnectOptions) -> anyhow::Result<Client> {
    let config = match (&options.kubeconfig, &options.api_server) {
        (Some(path), server) => from_kubeconfig(path, server.as_deref()).await?,
        (None, Some(server)) => {
            account_config(server, &options.account).await.context("--api-server")?
        }
        (None, None) => return find(options).await,
    };
    info!(server = %config.cluster_url, "API server");
    client(config, &options.requests).context("create the API server client")
}

/// A client whose requests are observed. The token is that of its file, which is read for each request.
pub(super) fn client(mut config: Config, requests: &RequestObserver) -> kube::Result<Client> {
    let host = config.cluster_url.authority().map_or_else(String::new, ToString::to_string);
    let observe = requests.layer(&host);
    // A token that is given as such has precedence.
    let file = config.auth_info.token_file.take_if(|_| config.auth_info.token.is_none());
    let builder = ClientBuilder::try_from(config)?;
    Ok(match file {
        Some(file) => {
            builder.with_layer(&TokenLayer::new(file.into())).with_layer(&observe).build()
        }
        None => builder.with_layer(&observe).build(),
    })
}

async fn from_kubeconfig(path: &Path, server: Option<&str>) -> anyhow::Result<Config> {
    let kubeconfig = Kubeconfig::read_from(path)
        .with_context(|| format!("read kubeconfig {}", path.display()))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("use kubeconfig {}", path.display()))?;
    if let Some(server) = server {
        config.cluster_url = url(server)?;
    }
    Ok(config)
}

/// Tries the in-cluster address, then the kubelet's, then those that were known before.
async fn find(options: &ConnectOptions) -> anyhow::Result<Client> {
    let ConnectOptions { kubelet_kubeconfig: kubelet, known_servers, account, requests, .. } =
        options;
    let in_cluster = async {
        let config = Config::incluster_env().context("no in-cluster configuration")?;
        probe(config, "the in-cluster address", requests).await
    };
    let first = match in_cluster.await {
        Ok(client) => return Ok(client),
        Err(err) => err,
    };
    debug!(err = format!("{first:#}"), "the in-cluster address does not work");
    let from_kubelet = async {
        let server = kubelet_server(kubelet)?;
        probe(account_config(&server, account).await?, "the kubelet's kubeconfig", requests).await
    };
    let second = match from_kubelet.await {
        Ok(client) => return Ok(client),
        Err(err) => err,
    };
    debug!(err = format!("{second:#}"), "the kubelet's address does not work");
    from_known(options).await.map_err(|third| {
        anyhow!(
            "no API server: in-cluster: {first:#}; {}: {second:#}; {}: {third:#}; set --api-server",
            kubelet.display(),
            known_servers.display()
        )
    })
}

/// The first of the servers known before that answers.
async fn from_known(options: &ConnectOptions) -> anyhow::Result<Client> {
    let ConnectOptions { known_servers, account, requests, .. } = options;
    let mut failed = Vec::new();
    for server in known::read(known_servers)? {
        let mut config = account_config(&server, account).await?;
        // Each server's certificate has this name, for the clients in Pods; not each has the address that the endpoints tell.
        config.tls_server_name = Some(IN_CLUSTER_NAME.to_owned());
        match probe(config, "the endpoints of the Service kubernetes, as last seen", requests).await
        {
            Ok(client) => return Ok(client),
            Err(err) => failed.push(format!("{err:#}")),
        }
    }
    bail!("{}", failed.join(", "))
}

/// A client of a server that answers, whatever it answers.
async fn probe(
    mut config: Config,
    from: &str,
    requests: &RequestObserver,
) -> anyhow::Result<Client> {
    let server = config.cluster_url.clone();
    let timeouts = (config.connect_timeout, config.read_timeout);
    config.connect_timeout = Some(PROBE);
    let first = client(config.clone(), requests).context("create its client")?;
    match tokio::time::timeout(PROBE, first.apiserver_version()).await {
        Ok(Ok(version)) => debug!(%server, version = version.git_version, "API server answers"),
        // Forbidden is an answer too; the watches will say what they may not do.
        Ok(Err(kube::Error::Api(status))) => {
            debug!(%server, code = status.code, "API server answers with an error status")
        }
        Ok(Err(err)) => return Err(anyhow!(err).context(format!("{server} does not answer"))),
        Err(_) => bail!("{server} does not answer within {PROBE:?}"),
    }
    info!(%server, from, "API server");
    (config.connect_timeout, config.read_timeout) = timeouts;
    client(config, requests).context("create its client")
}

/// The service account's credentials for this server. The files are read again as they are renewed.
async fn account_config(server: &str, account: &Path) -> anyhow::Result<Config> {
    let [token, certificate] = ["token", "ca.crt"].map(|file| account.join(file));
    for file in [&token, &certificate] {
        if !file.exists() {
            bail!("{} is missing: no service account is mounted; use --kubeconfig", file.display());
        }
    }
    url(server)?;
    // As a kubeconfig, so that the client reads and checks the files in its own way.
    let cluster = Cluster {
        server: Some(server.to_owned()),
        certificate_authority: Some(certificate.display().to_string()),
        ..Cluster::default()
    };
    let user = AuthInfo { token_file: Some(token.display().to_string()), ..AuthInfo::default() };
    let name = "account".to_owned();
    let context = Context { cluster: name.clone(), user: Some(name.clone()), ..Context::default() };
    let kubeconfig = Kubeconfig {
        clusters: vec![NamedCluster {
            name: name.clone(),
            cluster: Some(cluster),
            other: Default::default(),
        }],
        auth_infos: vec![NamedAuthInfo {
            name: name.clone(),
            auth_info: Some(user),
            other: Default::default(),
        }],
        contexts: vec![NamedContext {
            name: name.clone(),
            context: Some(context),
            other: Default::default(),
        }],
        current_context: Some(name),
        ..Kubeconfig::default()
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .context("use the service account's credentials")?;
    config.root_cert_file = Some(certificate);
    Ok(config)
}

/// The `server` of the current context, or of the only cluster, of the kubelet's kubeconfig.
fn kubelet_server(path: &Path) -> anyhow::Result<String> {
    let kubeconfig = Kubeconfig::read_from(path).context("cannot read the kubelet's kubeconfig")?;
    let context = kubeconfig.current_context.as_ref().and_then(|current| {
        kubeconfig.contexts.iter().find(|context| &context.name == current)?.context.as_ref()
    });
    let cluster = match context {
        Some(context) => kubeconfig.clusters.iter().find(|it| it.name == context.cluster),
        None => kubeconfig.clusters.first(),
    };
    cluster
        .and_then(|cluster| cluster.cluster.as_ref()?.server.clone())
        .context("the kubelet's kubeconfig has no server")
}

fn url(server: &str) -> anyhow::Result<hyper::Uri> {
    server.parse().with_context(|| format!("`{server}` is not a URL"))
}

#[cfg(test)]
mod tests;
