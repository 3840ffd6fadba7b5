//! The manifest source: a directory of YAML and JSON files, watched.
//!
//! Any number of documents and `v1` Lists a file; files of its sub-directories are not read. What a file says holds
//! until the file says otherwise: while it cannot be parsed, what it said before goes on holding. Where no
//! EndpointSlice is given for a Service with a selector, slices are derived from the Pods as Kubernetes' own
//! controller would (see `derive`). A Pod without `spec.nodeName` is one of this node: there is no scheduler that would
//! give it to another.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use notify::{RecursiveMode, Watcher};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{Counters, Received};
use lb_core::cluster::{Event, Kind};

pub use self::collect::{CollectedManifests, ManifestPlace, collect};
pub use self::directory::ManifestDirectory;
pub use self::text::{ManifestFault, ReadManifests, ReadObject, read};

mod collect;
mod derive;
mod directory;
mod document;
mod text;

/// Several writes that follow each other within this time are read together.
const QUIET: Duration = Duration::from_millis(2);
/// But no write waits longer than this.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often to check whether the receiver is still there, and whether a removed directory is back.
const IDLE: Duration = Duration::from_millis(500);

/// Watches the directory until the receiver of `tx` is gone.
///
/// # Errors
/// When the directory cannot be read or watched at the start.
pub async fn run(
    directory: PathBuf,
    node: String,
    tx: mpsc::Sender<Received>,
    counters: Arc<Counters>,
) -> anyhow::Result<()> {
    // Files are read by a thread of its own: a large one must not hold up the loop that shares this task's.
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("manifests".to_owned());
    thread
        .spawn(move || {
            let source = ManifestSource { tx, counters };
            // The receiver is only gone when the agent is.
            drop(done.send(source.run(&directory, &node)));
        })
        .context("start the manifest thread")?;
    result.await.context("the manifest thread ended")?
}

struct ManifestSource {
    tx: mpsc::Sender<Received>,
    counters: Arc<Counters>,
}

impl ManifestSource {
    fn run(&self, path: &Path, node: &str) -> anyhow::Result<()> {
        let mut directory = ManifestDirectory::new(path, node);
        let (mut notifications, mut watcher) = watch(path)?;
        for kind in Kind::ALL {
            self.counters.of(kind).count_restart();
            self.send(Event::Restarted(kind));
        }
        let mut tell = |event| self.send(event);
        directory.refresh(&BTreeSet::new(), &mut tell).with_context(|| unreadable(path))?;
        info!(directory = %path.display(), files = directory.n_files(), "manifests read");
        Kind::ALL.into_iter().map(Event::Synced).for_each(&mut tell);
        while !self.tx.is_closed() {
            let Some(names) = changed_files(&notifications) else { continue };
            if !path.is_dir() {
                // Not an empty directory: what it said goes on holding until it is back.
                warn!(directory = %path.display(), "the manifest directory does not exist any more, keeping its last content");
                drop(watcher);
                (notifications, watcher) = self.wait_for(path);
            }
            if let Err(err) = directory.refresh(&names, &mut tell) {
                warn!(err = %err, "{}", unreadable(path));
            }
        }
        Ok(())
    }

    /// Waits until the directory can be watched again.
    fn wait_for(&self, path: &Path) -> (Receiver<Notification>, notify::RecommendedWatcher) {
        loop {
            if let Ok(watched) = watch(path) {
                return watched;
            }
            std::thread::sleep(IDLE);
        }
    }

    fn send(&self, event: Event) {
        for kind in Kind::ALL {
            self.counters.of(kind).count_event();
        }
        // The receiver is gone only when the agent ends. The loop checks for that.
        drop(self.tx.blocking_send(Received::now(event)));
    }
}

type Notification = notify::Result<notify::Event>;

fn unreadable(path: &Path) -> String {
    format!("cannot read the manifest directory {}", path.display())
}

fn watch(path: &Path) -> anyhow::Result<(Receiver<Notification>, notify::RecommendedWatcher)> {
    let (tx, rx) = std::sync::mpsc::channel();
    let context = || format!("cannot watch the manifest directory {}", path.display());
    let mut watcher = notify::recommended_watcher(tx).with_context(context)?;
    watcher.watch(path, RecursiveMode::NonRecursive).with_context(context)?;
    Ok((rx, watcher))
}

/// The names of the files that were written, once it has been quiet for a moment. `None` when nothing happened.
fn changed_files(notifications: &Receiver<Notification>) -> Option<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    let mut begun: Option<Instant> = None;
    loop {
        let wait = begun.map_or(IDLE, |_| QUIET);
        match notifications.recv_timeout(wait) {
            Ok(notification) => {
                if !is_interesting(&notification) {
                    continue;
                }
                let paths = notification.into_iter().flat_map(|event| event.paths);
                names.extend(paths.filter_map(|path| path.file_name().map(ToOwned::to_owned)));
                if begun.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Some(names);
                }
            }
            Err(RecvTimeoutError::Timeout) => return begun.map(|_| names),
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(IDLE);
                return None;
            }
        }
    }
}

/// Whether a file may have other content now. A write counts when the file is closed: before, it may be half done.
fn is_interesting(notification: &Notification) -> bool {
    use notify::EventKind;
    use notify::event::{AccessKind, AccessMode, ModifyKind};
    let Ok(event) = notification else { return true };
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => false,
        EventKind::Modify(_)
        | EventKind::Create(_)
        | EventKind::Remove(_)
        | EventKind::Any
        | EventKind::Other => true,
    }
}

#[cfg(test)]
mod tests;
