//! The server: flows come from the ring buffer, every other response from the loop.
//!
//! It runs beside the loop and never makes it wait: a request is a message with a place for the response, and a client
//! that reads slowly loses flows. Only root may connect; even so, clients, requests and times are bounded.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lb_common::event::outcome;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::admin::Recent;
use lb_core::admin::{Covers, FlowsWanted, REQUEST_BYTES, Request, Response, SOCKET};
use lb_core::build::VERSION;

/// Clients at a time.
const CLIENTS: usize = 16;
/// The request must arrive within this time.
const REQUEST: Duration = Duration::from_secs(5);
/// The loop must respond within this time.
const RESPOND: Duration = Duration::from_secs(10);
/// After this time without a read the client is disconnected.
const READ: Duration = Duration::from_secs(30);
/// Flows that are written at a time.
const BATCH: usize = 64;

/// A request that waits for the loop.
#[derive(Debug)]
pub(crate) struct PendingRequest {
    pub request: Request,
    /// Where the response goes.
    pub response: oneshot::Sender<Response>,
}

/// The server, and where its responses come from.
pub(crate) struct Server {
    /// The last flows.
    pub flows: watch::Receiver<Recent>,
    /// Requests to the loop.
    pub requests: mpsc::Sender<PendingRequest>,
    /// Clients that follow allowed flows, too.
    pub followers: watch::Sender<usize>,
}

impl Server {
    /// Serves clients as long as the agent runs.
    pub(crate) async fn serve(self, listener: UnixListener) -> Infallible {
        serve(listener, Arc::new(self)).await
    }
}

/// Creates the socket, for root only.
///
/// # Errors
/// When the directory cannot be written.
pub(crate) fn bind(state_dir: &Path) -> io::Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    // No client can connect before the socket has its name, and by then it has its mode.
    let unnamed = state_dir.join(format!("{SOCKET}.new"));
    for old in [&unnamed, &path] {
        match fs::remove_file(old) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&unnamed)?;
    fs::set_permissions(&unnamed, fs::Permissions::from_mode(0o600))?;
    fs::rename(&unnamed, &path)?;
    Ok(listener)
}

async fn serve(listener: UnixListener, server: Arc<Server>) -> Infallible {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(err) => {
                // Out of descriptors, most likely: others will be closed.
                warn!(server = "admin", %err, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !is_ours(&stream) {
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let refusal = line(&Response::Error(format!("already serving {CLIENTS} clients")));
            // Fits into the buffer of a new socket, or the client has gone.
            if let Err(err) = stream.try_write(&refusal) {
                debug!(%err, "cannot refuse a client");
            }
            continue;
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            if let Err(err) = client(stream, &server).await {
                debug!(server = "admin", %err, "client disconnected");
            }
            drop(place);
        });
    }
}

/// Whether root is at the other end, or whoever we are.
fn is_ours(stream: &UnixStream) -> bool {
    let uid = stream.peer_cred().map(|peer| peer.uid());
    uid.is_ok_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw())
}

/// Serves one client: one request.
async fn client(stream: UnixStream, server: &Server) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES));
    let mut text = Vec::new();
    timeout(REQUEST, reader.read_until(b'\n', &mut text)).await??;
    let response = match serde_json::from_slice(&text) {
        Ok(Request::Flows(wanted)) => {
            return flows(wanted, reader.into_inner().into_inner(), writer, server).await;
        }
        Ok(request) => respond(request, server).await,
        // Of an lbctl of another version, most likely.
        Err(err) => Response::Error(format!("not a valid request for lb-agent {VERSION}: {err}")),
    };
    write(&mut writer, &line(&response)).await
}

async fn respond(request: Request, server: &Server) -> Response {
    let (response, responded) = oneshot::channel();
    let exchange = async {
        server.requests.send(PendingRequest { request, response }).await.ok()?;
        responded.await.ok()
    };
    match timeout(RESPOND, exchange).await {
        Ok(Some(response)) => response,
        Ok(None) => Response::Error("the agent is shutting down".to_owned()),
        Err(_) => Response::Error("the agent is busy: try again".to_owned()),
    }
}

/// Counts a client that follows allowed flows, as long as it lives.
struct Follower<'a>(&'a watch::Sender<usize>);

impl<'a> Follower<'a> {
    fn new(followers: &'a watch::Sender<usize>) -> Self {
        followers.send_modify(|n| *n += 1);
        Self(followers)
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}

async fn flows(
    wanted: FlowsWanted,
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    server: &Server,
) -> io::Result<()> {
    let _follower = (wanted.follow && wanted.allowed).then(|| Follower::new(&server.followers));
    let mut recent = server.flows.clone();
    let (covers, mut from, past) = {
        let recent = recent.borrow_and_update();
        (covers(&recent), recent.oldest(), recent.next())
    };
    write(&mut writer, &line(&Response::Covers(covers))).await?;
    let mut was_reported = false;
    let mut more = [0];
    loop {
        if !was_reported && from >= past {
            write(&mut writer, &line(&Response::Now)).await?;
            was_reported = true;
            if !wanted.follow {
                return Ok(());
            }
        }
        let batch = recent.borrow_and_update().take(&mut from, BATCH);
        let mut lines = Vec::new();
        if batch.lost > 0 {
            lines.extend(line(&Response::Lost(batch.lost)));
        }
        for flow in &batch.flows {
            if wanted.allowed || flow.outcome != outcome::ALLOWED {
                lines.extend(line(&Response::Flow(Box::new((**flow).clone()))));
            }
        }
        if !lines.is_empty() {
            write(&mut writer, &lines).await?;
        }
        if batch.flows.is_empty() && was_reported {
            tokio::select! {
                changed = recent.changed() => if changed.is_err() { return Ok(()) },
                // A client has nothing more to say: it has gone.
                _ = reader.read(&mut more) => return Ok(()),
            }
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
    timeout(READ, writer.write_all(bytes)).await?
}

fn line(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).unwrap_or_default();
    line.push(b'\n');
    line
}

fn covers(recent: &Recent) -> Covers {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now_ms = u64::try_from(now_ms).unwrap_or_default();
    Covers {
        since_ms: recent.iter().next().map_or(now_ms, |flow| flow.at_ms),
        now_ms,
        flows: recent.next() - recent.oldest(),
        forgotten: recent.oldest(),
        suppressed: recent.iter().map(|flow| u64::from(flow.suppressed)).sum(),
    }
}

#[cfg(test)]
mod tests;
