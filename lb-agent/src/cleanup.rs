//! `lb-agent cleanup`: removes every trace from the kernel and the agent's directories.
//!
//! Removing a pinned link detaches its program. Filters have no pins, so every device is looked at. Connections that
//! were translated end; all else goes on as without us. With `--wait` the process stays and answers the kubelet's probes, so that
//! the rollout of a DaemonSet is complete when every node is clean.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use hyper::StatusCode;
use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::info;

use crate::agent::Stop;
use crate::agent::bindings;
use crate::agent::lock::{self, Lock};
use crate::config::Dirs;
use crate::observe::health::Probe;
use crate::observe::http::{self, Answer, GetRequest};
use lb_core::admin;
use lb_core::names;
use lb_kernel::bpf::attach;
use lb_kernel::bpf::pins::Pins;
use lb_kernel::devices::{link, netlink::NetlinkClient};
use lb_kube::api_server::known;

/// Removes everything of the agent with these directories.
///
/// # Errors
/// When an agent still runs on them, or the kernel refuses.
pub(crate) fn run(dirs: &Dirs) -> anyhow::Result<()> {
    let lock = Lock::take(&dirs.state)?;
    match Pins::existing(&dirs.pins) {
        Some(pins) => {
            let mut client = NetlinkClient::open(NETLINK_ROUTE).context("list network devices")?;
            let links = link::all(&mut client).context("list network devices")?;
            for link in links {
                attach::detach_filters(&pins, link.ifindex)?;
            }
            pins.remove_all()?;
            info!(pins = %dirs.pins.display(), "removed programs and maps");
        }
        None => info!(pins = %dirs.pins.display(), "nothing is pinned"),
    }
    for file in [names::FILE, bindings::FILE, admin::SOCKET, lock::FILE] {
        gone(fs::remove_file(dirs.state.join(file)))
            .with_context(|| format!("remove {}", dirs.state.join(file).display()))?;
    }
    gone(fs::remove_file(dirs.cache.join(known::FILE)))
        .with_context(|| format!("remove {}", dirs.cache.join(known::FILE).display()))?;
    drop(lock);
    remove_dir(&dirs.cache)?;
    remove_dir(&dirs.state)
}

/// Answers the probes of a node that is clean, until a signal arrives.
///
/// # Errors
/// When signals cannot be listened for.
pub(crate) async fn stay(probes: SocketAddr) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    info!("this node is clean, waiting for the signal to end");
    tokio::select! {
        never = http::serve("probes", probes, answer) => match never {},
        _ = stop.recv() => Ok(()),
    }
}

/// The server starts when the node is clean, so each probe succeeds.
fn answer(request: &GetRequest<'_>) -> Answer {
    if Probe::at(request.path).is_none() {
        return Answer::not_found();
    }
    Answer {
        status: StatusCode::OK,
        content_type: "text/plain; charset=utf-8",
        body: "clean\n".to_owned(),
        weight: None,
    }
}

/// Removes a directory that is the agent's alone.
fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(dir) {
        // A mount point (in a container with a read-only root), or the directory has other content.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Ok(())
        }
        other => gone(other).with_context(|| format!("remove {}", dir.display())),
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
