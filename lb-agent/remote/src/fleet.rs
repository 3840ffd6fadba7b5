//! One command in the agents of many nodes at once.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use tokio::runtime::Runtime;

use crate::agents::{self, NodeAgent};
use crate::connect::{self, Connection, FleetOptions};
use crate::exec::{self, AgentApi, RemoteCommand, RemoteOutput};
use crate::follow::Follow;
use crate::objects::{self, RemotePod};

/// Commands that run at the same time. Each is a connection through the API server.
const AT_ONCE: usize = 64;
/// Threads that wait for answers.
const THREADS: usize = 2;

/// All agents of a cluster, and the API server.
pub struct Fleet {
    runtime: Runtime,
    place: AgentApi,
    context: String,
    default_namespace: String,
    agents: Vec<NodeAgent>,
    without_agent: Vec<String>,
}

/// The answer of one node.
#[derive(Debug)]
pub struct NodeAnswer {
    /// The node.
    pub node: String,
    /// What its `lbctl` printed, or why that could not be run.
    pub result: anyhow::Result<RemoteOutput>,
}

impl Fleet {
    /// Connects to the cluster and finds its agents, in one round trip to the API server.
    ///
    /// # Errors
    /// One sentence: when there is no usable kubeconfig, the API server does not answer, or there is no agent.
    pub fn connect(options: &FleetOptions) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .build()
            .context("start the threads that ask the nodes")?;
        let namespace = options.agent_namespace.clone();
        let found = runtime.block_on(async {
            let connection = connect::connect(options).await?;
            let client = &connection.client;
            let found = tokio::join!(agents::list(client, &namespace), nodes(client));
            Ok::<_, anyhow::Error>((connection, found))
        })?;
        let (Connection { client, namespace: default_namespace, context }, (agents, nodes)) = found;
        let agents = agents?;
        if agents.is_empty() {
            bail!(
                "no agent in namespace {namespace} of {context} (Pods with the label k8s-app=lb-agent); give --agent-namespace if it is another one"
            );
        }
        let has_agent = |node: &String| agents.iter().any(|agent| agent.node == *node);
        let without_agent = nodes.into_iter().filter(|node| !has_agent(node)).collect();
        let place = AgentApi { client, namespace };
        Ok(Self { runtime, place, context, default_namespace, agents, without_agent })
    }

    /// The agents, by the names of their nodes.
    pub fn agents(&self) -> &[NodeAgent] {
        &self.agents
    }

    /// Linux nodes that have no agent's Pod; none if the user may not list nodes.
    pub fn without_agent(&self) -> &[String] {
        &self.without_agent
    }

    /// The name of the context, or the API server's address.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// The namespace of the agents.
    pub fn agent_namespace(&self) -> &str {
        &self.place.namespace
    }

    /// The namespace of names that have none, as the context has it.
    pub fn default_namespace(&self) -> &str {
        &self.default_namespace
    }

    /// Runs a command on these nodes and returns the answers in the same order.
    pub fn run(&self, command: &RemoteCommand, agents: &[NodeAgent]) -> Vec<NodeAnswer> {
        let place = &self.place;
        let one = |agent: NodeAgent| async move {
            let result = exec::run(place, &agent, command).await;
            NodeAnswer { node: agent.node, result }
        };
        self.each(agents, one)
    }

    /// Asks these nodes at the same time, and returns the answers in the same order.
    fn each<F: Future<Output = NodeAnswer>>(
        &self,
        agents: &[NodeAgent],
        one: impl Fn(NodeAgent) -> F,
    ) -> Vec<NodeAnswer> {
        self.runtime.block_on(
            futures_util::stream::iter(agents.to_vec()).map(one).buffered(AT_ONCE).collect(),
        )
    }

    /// Runs a command on these nodes, each with the last lines of its agent's log by `--log=-`. Where the log cannot be read, or
    /// the node's `lbctl` is older than this flag, the command runs without it, and stderr says so.
    pub fn run_with_log(
        &self,
        command: &RemoteCommand,
        agents: &[NodeAgent],
        lines: i64,
    ) -> Vec<NodeAnswer> {
        let place = &self.place;
        let one = |agent: NodeAgent| async move {
            let result = with_log(place, &agent, command, lines).await;
            NodeAnswer { node: agent.node, result }
        };
        self.each(agents, one)
    }

    /// Runs a command on these nodes that prints lines until it is stopped.
    pub fn follow(&self, command: &RemoteCommand, agents: &[NodeAgent]) -> Follow {
        Follow::start(self.runtime.handle(), &self.place, command, agents)
    }

    /// Returns the Pod, if there is one.
    ///
    /// # Errors
    /// One sentence, when the API server refuses. The same applies to the other requests.
    pub fn pod(&self, namespace: &str, name: &str) -> anyhow::Result<Option<RemotePod>> {
        let found = objects::pod(&self.place.client, namespace, name);
        self.runtime.block_on(found).with_context(|| format!("read Pod {namespace}/{name}"))
    }

    /// Reads some Pods at once, by namespace and name; those that do not exist are left out.
    ///
    /// # Errors
    /// As for [`Self::pod`].
    pub fn pods_named(&self, names: &[(&str, &str)]) -> anyhow::Result<Vec<RemotePod>> {
        let client = &self.place.client;
        let read = names.iter().map(|(namespace, name)| async move {
            let found = objects::pod(client, namespace, name).await;
            found.with_context(|| format!("read Pod {namespace}/{name}"))
        });
        let all = futures_util::future::try_join_all(read);
        Ok(self.runtime.block_on(all)?.into_iter().flatten().collect())
    }

    /// Returns the Pods of a namespace, or of all, by name.
    ///
    /// # Errors
    /// As for [`Self::pod`].
    pub fn pods(&self, namespace: Option<&str>) -> anyhow::Result<Vec<RemotePod>> {
        let found = objects::pods(&self.place.client, namespace);
        self.runtime.block_on(found).context("list Pods")
    }

    /// Returns the Pods that have this address in their status.
    ///
    /// # Errors
    /// As for [`Self::pod`].
    pub fn pods_at(&self, ip: IpAddr) -> anyhow::Result<Vec<RemotePod>> {
        let found = objects::pods_at(&self.place.client, ip);
        self.runtime.block_on(found).with_context(|| format!("find the Pod with address {ip}"))
    }
}

/// Runs a command with the agent's log, or without.
async fn with_log(
    place: &AgentApi,
    agent: &NodeAgent,
    command: &RemoteCommand,
    lines: i64,
) -> anyhow::Result<RemoteOutput> {
    let why = match exec::log(place, agent, lines).await {
        Ok(log) => {
            let mut on_log = command.clone();
            on_log.args.push("--log=-".to_owned());
            on_log.stdin = Some(log.into_bytes());
            let output = exec::run(place, agent, &on_log).await?;
            if output.code == 0 || !output.stderr.contains("--log") {
                return Ok(output);
            }
            "its lbctl is of an older version".to_owned()
        }
        Err(err) => format!("{err:#}"),
    };
    let mut output = exec::run(place, agent, command).await?;
    output.stderr = format!("without the agent's log: {why}\n{}", output.stderr);
    Ok(output)
}

/// The names of the cluster's Linux nodes. Many users may not list nodes, so nothing depends on it.
async fn nodes(client: &kube::Client) -> Vec<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let wanted = ListParams::default().labels("kubernetes.io/os=linux").match_any();
    let Ok(found) = nodes.list_metadata(&wanted).await else { return Vec::new() };
    found.items.into_iter().filter_map(|node| node.metadata.name).collect()
}
