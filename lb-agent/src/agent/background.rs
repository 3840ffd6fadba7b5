//! Threads for slow periodic work: conntrack expiry; for a while, emptying old maps.
#![forbid(unsafe_code)]

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::agent::past::JudgedRules;
use lb_core::plan::Flows;
use lb_kernel::bpf::gc::{self, Gc, Pass};
use lb_kernel::bpf::resize::{self, Resize};
use lb_kernel::foreign::Sign;

/// What threads found.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// A pass over conntrack, when it began, and the flows it saw.
    Expired(Box<Pass>, Instant, Flows),
    /// What is here of kube-proxy.
    Foreign(Vec<Sign>),
    /// What the firewall rules of the node mean to flows between its Pods.
    HostRules(Box<JudgedRules>),
    /// The number of places where kube-proxy's rules were removed, or why they were not.
    TakenOver(Result<usize, String>),
}

/// Starts the thread. It ends with the receiver.
///
/// # Errors
/// When the system has no room for a thread.
pub(super) fn spawn(gc: Gc, interval: Duration, news: mpsc::Sender<News>) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("background".to_owned())
        .spawn(move || run(gc, interval, &news))
        .context("start the conntrack expiry thread")?;
    Ok(())
}

/// Starts a thread that empties maps which were set aside, and ends when they are gone.
///
/// # Errors
/// When the system has no room for a thread.
pub(super) fn spawn_resize(resize: Resize) -> anyhow::Result<()> {
    if resize.is_empty() {
        return Ok(());
    }
    thread::Builder::new()
        .name("resize".to_owned())
        .spawn(move || {
            if let Err(e) = empty(resize) {
                warn!(err = %e, "cannot finish copying the old conntrack table; it stays until the next start of the agent");
            }
        })
        .context("start the thread that copies the conntrack table")?;
    Ok(())
}

fn empty(mut resize: Resize) -> io::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < resize::PERIOD {
        let round = Instant::now();
        resize.copy()?;
        thread::sleep(resize::INTERVAL.max(round.elapsed() * (resize::SHARE - 1)));
    }
    resize.copy()?;
    resize.finish()?;
    info!("the old conntrack table was removed");
    Ok(())
}

/// The usual interval of the passes.
pub(super) const INTERVAL: Duration = gc::INTERVAL;

fn run(mut gc: Gc, interval: Duration, news: &mpsc::Sender<News>) {
    loop {
        let begun = Instant::now();
        match gc.pass() {
            Ok(pass) => {
                if news.blocking_send(News::Expired(Box::new(pass), begun, gc.flows())).is_err() {
                    return;
                }
            }
            Err(e) => warn!(map = "ct", err = %e, "conntrack expiry failed, retrying"),
        }
        thread::sleep(interval);
    }
}
