//! What a cluster's watches cost its API server: the watches of this agent, with the Pods of its own node and with all, and
//! those of kube-proxy, by hundreds of clients in this one process. Prints a report for docs/src/performance.md.
//!
//! The objects are the tool's own: Nodes that no kubelet runs, Pods bound to them, Services with endpoints. They are removed
//! in any case. It uses the cluster of `$KUBECONFIG`, which should not be one that others use.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper panics like the test"
)]

mod clients;
mod objects;
mod report;
mod server;
mod tally;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::clients::{Fleet, Watcher};
use self::objects::{CHURN, Objects};
use self::report::{Measured, Step};
use self::server::Server;
use self::tally::Tally;

/// Clients, and the Nodes they are of.
const MOST_CLIENTS: usize = 1000;
/// Connections of a client, and those of the tool.
const CONNECTIONS: (u64, u64) = (8, 64);
/// The measurement as a whole.
const MOST_TIME: Duration = Duration::from_secs(540);
/// Nothing was received for this long: all has arrived.
const QUIET: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let clients = std::env::args().nth(1).context("run by `cargo xtask bench watches`")?;
    let clients: usize = clients.parse().context("number of clients")?;
    ensure!((1..=MOST_CLIENTS).contains(&clients), "1 to {MOST_CLIENTS} clients");
    let (per_client, own) = CONNECTIONS;
    let files = per_client * clients as u64 + own;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(files <= hard, "{files} connections, but only {hard} files may be open (ulimit -n)");
    setrlimit(Resource::RLIMIT_NOFILE, files, hard)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::of_environment().await?;
        let objects = Objects::new(&server, clients);
        // What an earlier run has left, because it was killed.
        objects.remove().await?;
        let interrupted = tokio::signal::ctrl_c();
        let mut all = Vec::new();
        let measuring = measure(&server, &objects, clients, &mut all);
        let measured = tokio::select! {
            measured = tokio::time::timeout(MOST_TIME, measuring) => {
                measured.context("it took longer than nine minutes: try fewer agents").flatten()
            }
            _ = interrupted => Err(anyhow::anyhow!("interrupted")),
        };
        eprintln!("removing the objects");
        let removed = objects.remove().await;
        print!("{}", report::text(clients, &all));
        measured.and(removed)
    })
}

/// Makes the objects, then measures each kind of client.
async fn measure(
    server: &Server,
    objects: &Objects<'_>,
    clients: usize,
    all: &mut Vec<Measured>,
) -> Result<()> {
    eprintln!("making {clients} Nodes, their Pods, and Services");
    objects.make().await?;
    for watcher in Watcher::ALL {
        eprintln!("{clients} clients: {}", watcher.name());
        let tally = Tally::shared();
        let before = server.usage().await?;
        let fleet = Fleet::start(server, watcher, clients, &tally).await?;
        let connected = tally.settled(QUIET, Instant::now() + MOST_TIME).await;
        let after = server.usage().await?;
        let lists = Step::new(&tally, &before, &after);
        tally.clear();
        objects.churn().await?;
        let churned = tally.settled(QUIET, Instant::now() + MOST_TIME).await;
        let last = server.usage().await?;
        let changes = Step::new(&tally, &after, &last);
        ensure!(connected && churned, "the clients still receive something");
        drop(fleet);
        all.push(Measured { watcher, lists, changes });
        // Its connections are closed, and what they held is free.
        tokio::time::sleep(QUIET).await;
    }
    eprintln!(
        "{} Pods, {} endpoints, {} Nodes changed in each",
        CHURN.pods, CHURN.slices, CHURN.nodes
    );
    Ok(())
}
