//! A thread for slow periodic work: conntrack expiry, and the search for kube-proxy.
#![forbid(unsafe_code)]

use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tracing::warn;

use crate::bpf::gc::{self, Gc, Pass};
use crate::observe::foreign::{self, Foreign};

/// Every how many expiry passes kube-proxy is searched for; the first time at once.
const FOREIGN_EVERY: u32 = 2;

/// What the thread found.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// A pass over conntrack.
    Expired(Pass),
    /// Whether kube-proxy is there.
    Foreign(Option<Foreign>),
}

/// Starts the thread. It ends with the receiver.
///
/// # Errors
/// When the system has no room for a thread.
pub(super) fn spawn(gc: Gc, interval: Duration, news: mpsc::Sender<News>) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("background".to_owned())
        .spawn(move || run(gc, interval, &news))
        .context("start the thread for conntrack expiry")?;
    Ok(())
}

/// The usual interval of the passes.
pub(super) const INTERVAL: Duration = gc::INTERVAL;

fn run(mut gc: Gc, interval: Duration, news: &mpsc::Sender<News>) {
    for round in 0_u32.. {
        if round % FOREIGN_EVERY == 0
            && news.blocking_send(News::Foreign(foreign::detect())).is_err()
        {
            return;
        }
        match gc.pass() {
            Ok(pass) => {
                if news.blocking_send(News::Expired(pass)).is_err() {
                    return;
                }
            }
            Err(e) => warn!(map = "ct", err = %e, "conntrack expiry failed, trying again"),
        }
        thread::sleep(interval);
    }
}
