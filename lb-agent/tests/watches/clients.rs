//! Clients that watch: this agent's own code, and the watches of kube-proxy.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use http_body_util::BodyExt as _;
use hyper::Request;
use kube::Client;
use kube::client::Body;
use lb_core::cluster::{Event, Kind, PodScope};
use lb_kube::Counters;
use lb_kube::api_server::{WatchedPods, run};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::objects::node_name;
use super::server::Server;
use super::tally::{OfKind, Tally};

/// Clients that connect at a time.
const BATCH: usize = 50;
/// The first bytes of a message of a watch in protobuf are its length.
const LENGTH: usize = 4;

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watcher {
    /// The agent, with the Pods of its node.
    Own,
    /// The agent, with all Pods.
    All,
    KubeProxy,
}

impl Watcher {
    pub(crate) const ALL: [Self; 3] = [Self::Own, Self::All, Self::KubeProxy];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Own => "lb, own Pods",
            Self::All => "lb, all Pods",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// Clients that run until this is dropped.
pub(crate) struct Fleet {
    tasks: JoinSet<()>,
    scopes: Vec<watch::Sender<PodScope>>,
}

impl Fleet {
    /// Starts them, in batches. Returns when each has all initial lists.
    pub(crate) async fn start(
        server: &Server,
        watcher: Watcher,
        n: usize,
        tally: &Arc<Tally>,
    ) -> Result<Self> {
        let mut fleet = Self { tasks: JoinSet::new(), scopes: Vec::new() };
        let (ready, mut is_ready) = mpsc::channel(BATCH);
        for batch in (0..n).collect::<Vec<_>>().chunks(BATCH) {
            for i in batch {
                let client = server.counted(tally)?;
                match watcher {
                    Watcher::Own | Watcher::All => fleet.agent(client, *i, watcher, ready.clone()),
                    Watcher::KubeProxy => fleet.kube_proxy(&client, *i, tally, &ready),
                }
            }
            for _ in batch {
                is_ready.recv().await;
            }
        }
        ensure!(fleet.tasks.try_join_next().is_none(), "a client has ended");
        Ok(fleet)
    }

    fn agent(&mut self, client: Client, i: usize, watcher: Watcher, ready: mpsc::Sender<()>) {
        let (sender, scope) = watch::channel(PodScope::Own);
        let (tx, mut received) = mpsc::channel(256);
        let pods = WatchedPods { node: node_name(i).into(), scope };
        self.tasks.spawn(run(client, pods, tx, Counters::shared()));
        let wanted = sender.clone();
        self.scopes.push(sender);
        self.tasks.spawn(async move {
            let (mut synced, mut is_all) = (Vec::new(), watcher == Watcher::Own);
            while let Some(received) = received.recv().await {
                match received.event {
                    Event::Synced(kind) if !synced.contains(&kind) => synced.push(kind),
                    Event::Synced(Kind::Pod) => is_all = true,
                    _ => continue,
                }
                if synced.len() < Kind::ALL.len() {
                    continue;
                }
                if is_all {
                    ready.send(()).await.ok();
                    break;
                }
                wanted.send_replace(PodScope::All);
            }
            while received.recv().await.is_some() {}
        });
    }

    /// The four watches of kube-proxy 1.36: in protobuf, with its selectors.
    fn kube_proxy(
        &mut self,
        client: &Client,
        i: usize,
        tally: &Arc<Tally>,
        ready: &mpsc::Sender<()>,
    ) {
        const OURS: &str = "&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name%2C%21service.kubernetes.io%2Fheadless";
        let node = format!("&fieldSelector=metadata.name%3D{}", node_name(i));
        let watches = [
            ("/api/v1/services", OURS.to_owned()),
            ("/apis/discovery.k8s.io/v1/endpointslices", OURS.to_owned()),
            ("/api/v1/nodes", node),
            ("/apis/networking.k8s.io/v1/servicecidrs", String::new()),
        ];
        let n = watches.len();
        let (listed, mut is_listed) = mpsc::channel(n);
        for (path, selector) in watches {
            let uri = format!(
                "{path}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=480{selector}"
            );
            let (client, tally, listed) = (client.clone(), Arc::clone(tally), listed.clone());
            self.tasks.spawn(async move {
                let of = tally.of(path).unwrap();
                follow(&client, &uri, of, listed)
                    .await
                    .unwrap_or_else(|err| panic!("{uri}: {err:#}"));
            });
        }
        let ready = ready.clone();
        self.tasks.spawn(async move {
            for _ in 0..n {
                is_listed.recv().await;
            }
            ready.send(()).await.ok();
            std::future::pending().await
        });
    }
}

/// Reads a watch in protobuf and counts its messages. Tells when its initial list is complete.
async fn follow(client: &Client, uri: &str, of: &OfKind, listed: mpsc::Sender<()>) -> Result<()> {
    const END: &[u8] = b"k8s.io/initial-events-end";
    let accept = "application/vnd.kubernetes.protobuf;stream=watch";
    let request = Request::get(uri).header("accept", accept).body(Body::empty())?;
    let response = client.send(request).await?;
    ensure!(response.status().is_success(), "{}", response.status());
    let mut body = response.into_body();
    let mut pending: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        pending.extend_from_slice(&data);
        while let Some(head) = pending.first_chunk::<LENGTH>() {
            let end = LENGTH + u32::from_be_bytes(*head) as usize;
            let Some(message) = pending.get(..end) else { break };
            of.events.fetch_add(1, Ordering::Relaxed);
            if message.windows(END.len()).any(|bytes| bytes == END) {
                listed.send(()).await.ok();
            }
            pending.drain(..end);
        }
    }
    Ok(())
}
