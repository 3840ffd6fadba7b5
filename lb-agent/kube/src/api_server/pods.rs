//! The watch of Pods: of this node, then of all nodes once those are wanted.
//!
//! The Pods of this node are watched until the list of all is complete, since the server may refuse that list: a Pod that
//! starts here must be known. The two watches do not know of each other. So nothing about this node's is passed on from the
//! first Pod of the other list on, or an old state of a Pod would count as listed.
#![forbid(unsafe_code)]

use futures_util::FutureExt as _;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tracing::info;

use super::{Received, WatchContext, Watched};
use lb_core::cluster::{Event, Kind, PodScope};

/// Events of one of the watches that wait for being passed on.
const BUFFER: usize = 16;

/// Watches the Pods that are wanted until a watch has failed for too long.
pub(super) async fn watch<K: Watched>(context: &WatchContext, all: watcher::Config) {
    follow::<K>(context, all).await;
}

/// Until one of the watches ends or the receiver is gone.
async fn follow<K: Watched>(context: &WatchContext, all: watcher::Config) -> Option<()> {
    let mut wanted = context.pods.scope.clone();
    let (own_context, mut own_said) = apart(context);
    let mut own = own_context.watch::<K>(of_node(all.clone(), &context.pods.node)).boxed();
    if *wanted.borrow_and_update() == PodScope::Own {
        begin(context, PodScope::Own).await?;
    }
    while *wanted.borrow() == PodScope::Own {
        tokio::select! {
            () = &mut own => return None,
            Some(said) = own_said.recv() => context.tx.send(said).await.ok()?,
            Ok(()) = wanted.changed() => {}
        }
    }
    begin(context, PodScope::All).await?;
    let (all_context, mut all_said) = apart(context);
    let mut all = all_context.watch::<K>(all).boxed();
    let (mut restarted, mut is_listing) = (None, false);
    loop {
        tokio::select! {
            () = &mut own => return None,
            () = &mut all => return None,
            Some(said) = own_said.recv(), if !is_listing => {
                if matches!(said.event, Event::Pod(_) | Event::Issues(..)) {
                    context.tx.send(said).await.ok()?;
                }
            }
            Some(said) = all_said.recv() => {
                is_listing = !matches!(said.event, Event::Restarted(_));
                if !is_listing {
                    // A request is about to be made. The list begins with what comes next.
                    restarted = Some(said);
                    continue;
                }
                if let Some(restarted) = restarted.take() {
                    context.tx.send(restarted).await.ok()?;
                }
                let is_complete = said.event == Event::Synced(Kind::Pod);
                context.tx.send(said).await.ok()?;
                if is_complete {
                    break;
                }
            }
        }
    }
    drop(own);
    loop {
        tokio::select! {
            () = &mut all => return None,
            Some(said) = all_said.recv() => context.tx.send(said).await.ok()?,
        }
    }
}

async fn begin(context: &WatchContext, scope: PodScope) -> Option<()> {
    let scope_name = match scope {
        PodScope::All => "all nodes",
        PodScope::Own => "this node",
    };
    info!(of = scope_name, "watching Pods");
    context.tx.send(Received::now(Event::Pods(scope))).await.ok()
}

/// The same, but what its watches say has to be passed on.
fn apart(context: &WatchContext) -> (WatchContext, mpsc::Receiver<Received>) {
    let (tx, said) = mpsc::channel(BUFFER);
    (WatchContext { tx, ..context.clone() }, said)
}

/// Only the Pods of this node.
fn of_node(mut config: watcher::Config, node: &str) -> watcher::Config {
    let more = config.field_selector.map(|fields| format!("{fields},")).unwrap_or_default();
    config.field_selector = Some(format!("{more}spec.nodeName={node}"));
    config
}
