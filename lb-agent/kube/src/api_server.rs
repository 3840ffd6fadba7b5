//! The Kubernetes source: a watch for each kind, whose objects become records at once.
//!
//! Nothing is kept here but the names of objects that had issues. The server's own selectors leave out what is not
//! ours ([`Watched::narrow`]).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::{self, BoxFuture};
use futures_util::{FutureExt as _, StreamExt as _};
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::kinds::{self, Visitor};
use super::watched::{Watched, read};
use super::{Counters, Received};
use lb_core::cluster::{Change, Event, Kind, PodScope, Version};
use lb_core::issue::ObjectRef;

mod connect;
mod events;
pub mod known;
mod pods;
mod requests;
mod taint;
mod token;

pub use self::connect::{ACCOUNT, ConnectOptions, connect};
pub use self::events::{ApiEvents, PodEvent};
pub use self::requests::{ApiRequest, RequestObserver};
pub use self::taint::StartupTaint;

/// Pauses between tries: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// A server that has not said anything for this long during a streaming list does not know how to end one
/// (Kubernetes before 1.27 ignores `sendInitialEvents`).
const STREAMING_SILENCE: Duration = Duration::from_secs(10);
/// The server ends a watch after this many seconds and it is resumed where it was. A connection that died without a
/// word is noticed five seconds later, so this is shorter than usual (kube-proxy: 5 to 10 minutes).
const WATCH_SECS: u32 = 120;
/// After failing for this long, all watches end, so that the address of the server is looked up again: the agent may have
/// reached it through a Service whose backends have changed.
const GIVE_UP: Duration = Duration::from_secs(20);
/// How often to see whether a server knows a kind by now that it lacked: it may have been upgraded, or an extension
/// installed.
const ABSENT: Duration = Duration::from_secs(30);
/// The server has said its version by then.
const ANSWER: Duration = Duration::from_secs(5);

/// Which Pods are watched: at first, those of one node.
#[derive(Clone, Debug)]
pub struct WatchedPods {
    /// This node.
    pub node: Arc<str>,
    /// Which are wanted; may change at any time.
    pub scope: watch::Receiver<PodScope>,
}

/// Connects and watches until the receiver of `tx` is gone.
pub async fn source(
    options: ConnectOptions,
    pods: WatchedPods,
    tx: mpsc::Sender<Received>,
    counters: Arc<Counters>,
) {
    let mut backoff = Backoff::default();
    while !tx.is_closed() {
        match connect(&options).await {
            Ok(client) => {
                // Before any list: what is served depends on it.
                match version(&client).await {
                    Ok(told) => {
                        let event = told.map(|version| Received::now(Event::Server(version)));
                        if let Some(event) = event
                            && tx.send(event).await.is_err()
                        {
                            return;
                        }
                    }
                    Err(err) => {
                        warn!(err = format!("{err:#}"), "no API server answers, retrying");
                        backoff.pause().await;
                        continue;
                    }
                }
                backoff = Backoff::default();
                run(client, pods.clone(), tx.clone(), Arc::clone(&counters)).await;
            }
            Err(err) => {
                warn!(err = format!("{err:#}"), "no API server answers, retrying");
                backoff.pause().await;
            }
        }
    }
}

/// The server's version; `None` when it does not tell, as one that forbids the question.
///
/// # Errors
/// When it does not answer.
async fn version(client: &kube::Client) -> anyhow::Result<Option<Version>> {
    match timeout(ANSWER, client.apiserver_version()).await.context("it is silent")? {
        Ok(info) => Ok(number(&info.major).zip(number(&info.minor))),
        Err(kube::Error::Api(status)) => {
            warn!(code = status.code, "cannot read the API server's version");
            Ok(None)
        }
        Err(err) => Err(err.into()),
    }
}

/// The number at the beginning: hosted servers say `36+`.
fn number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

/// Watches through this client until nothing works any more, or the receiver of `tx` is gone.
pub async fn run(
    client: kube::Client,
    pods: WatchedPods,
    tx: mpsc::Sender<Received>,
    counters: Arc<Counters>,
) {
    let source = WatchContext { client, pods, tx, counters, absent: ABSENT };
    future::select_all(kinds::visit(&&source)).await;
}

/// What the watches share.
#[derive(Clone)]
struct WatchContext {
    client: kube::Client,
    pods: WatchedPods,
    tx: mpsc::Sender<Received>,
    counters: Arc<Counters>,
    /// Pause between questions for a kind that the server lacks.
    absent: Duration,
}

/// Why a stream was left.
enum StreamEnd {
    /// The server cannot do streaming lists.
    NoStreaming,
    /// It has failed for too long.
    GivenUp,
    /// The receiver is gone.
    Closed,
}

/// Watches a kind.
impl<'a> Visitor for &'a WatchContext {
    type Output = BoxFuture<'a, ()>;

    fn visit<K: Watched>(&self) -> Self::Output {
        let source: &'a WatchContext = self;
        let config = K::narrow(watcher::Config::default().timeout(WATCH_SECS));
        match K::KIND {
            Kind::Pod => pods::watch::<K>(source, config).boxed(),
            _ => source.watch::<K>(config).boxed(),
        }
    }
}

impl WatchContext {
    /// Watches one kind until it has failed for too long.
    async fn watch<K: Watched>(&self, config: watcher::Config) {
        let streaming = config.clone().streaming_lists();
        if let StreamEnd::NoStreaming = self.stream::<K>(streaming, true).await {
            info!(kind = K::KIND.name(), "the server has no streaming lists, listing in pages");
            self.stream::<K>(config, false).await;
        }
    }

    async fn stream<K: Watched>(&self, config: watcher::Config, streaming: bool) -> StreamEnd {
        let counters = self.counters.of(K::KIND);
        let mut stream = pin!(watcher(Api::<K>::all(self.client.clone()), config));
        let mut with_issues = BTreeSet::new();
        let mut backoff = Backoff::default();
        let mut listing = false;
        // Whether the server had the kind when it was asked last.
        let mut present = false;
        loop {
            let next = if streaming && listing {
                match timeout(STREAMING_SILENCE, stream.next()).await {
                    Ok(next) => next,
                    Err(_) => return StreamEnd::NoStreaming,
                }
            } else {
                stream.next().await
            };
            // The stream of a watcher never ends.
            let Some(event) = next else { return StreamEnd::GivenUp };
            let event = match event {
                Ok(event) => event,
                Err(err) if streaming && is_unsupported(&err) => return StreamEnd::NoStreaming,
                Err(err) if !present && is_absent::<K>(&err) => {
                    debug!(kind = K::KIND.name(), err = %err, "the API server does not serve this kind, treating it as empty");
                    for event in [Event::Restarted(K::KIND), Event::Synced(K::KIND)] {
                        if self.tx.send(Received::now(event)).await.is_err() {
                            return StreamEnd::Closed;
                        }
                    }
                    sleep(self.absent).await;
                    continue;
                }
                Err(err) => {
                    // That a kind is gone is believed the second time.
                    present &= !is_absent::<K>(&err);
                    counters.count_error();
                    counters.is_refused(refusal(&err));
                    if !is_answer(&err) && backoff.has_failed_for(GIVE_UP) {
                        return StreamEnd::GivenUp;
                    }
                    warn!(kind = K::KIND.name(), err = %err, "watch failed, retrying");
                    backoff.pause().await;
                    continue;
                }
            };
            match event {
                watcher::Event::Init => listing = true,
                watcher::Event::InitDone => (listing, present) = (false, true),
                watcher::Event::Apply(_)
                | watcher::Event::Delete(_)
                | watcher::Event::InitApply(_) => {}
            }
            if matches!(event, watcher::Event::Init) {
                // It only says that a request is about to be made: no proof of success.
                counters.count_restart();
            } else {
                backoff = Backoff::default();
                counters.is_refused(None);
                counters.count_event();
            }
            for event in translate(event, &mut with_issues) {
                if self.tx.send(Received::now(event)).await.is_err() {
                    return StreamEnd::Closed;
                }
            }
        }
    }
}

/// What an event of the watcher means. `with_issues` are the objects whose issues were told and must be cleared.
fn translate<K: Watched>(
    event: watcher::Event<K>,
    with_issues: &mut BTreeSet<ObjectRef>,
) -> Vec<Event> {
    match event {
        watcher::Event::Init => {
            debug!(kind = K::KIND.name(), "list started");
            vec![Event::Restarted(K::KIND)]
        }
        watcher::Event::InitDone => {
            debug!(kind = K::KIND.name(), "list complete");
            vec![Event::Synced(K::KIND)]
        }
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            let (event, told) = read(&object, object.name());
            let cleared = told.is_empty().then(|| ObjectRef::new(K::KIND.name(), &object.name()));
            let mut events = vec![event];
            match (cleared, told.first()) {
                (Some(object), _) if with_issues.remove(&object) => {
                    events.push(Event::Issues(object, Vec::new()));
                }
                (None, Some(first)) => {
                    with_issues.insert(first.object.clone());
                    events.push(Event::Issues(first.object.clone(), told));
                }
                (_, _) => {}
            }
            events
        }
        watcher::Event::Delete(object) => {
            let mut events = vec![K::event(Change::Deleted(object.name()))];
            let object = ObjectRef::new(K::KIND.name(), &object.name());
            if with_issues.remove(&object) {
                events.push(Event::Issues(object, Vec::new()));
            }
            events
        }
    }
}

/// Whether the server refused the request because it knows no streaming lists: `sendInitialEvents` is forbidden
/// unless its feature gate is on (422), or is an unknown combination of parameters (400).
fn is_unsupported(err: &watcher::Error) -> bool {
    match err {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            matches!(status.code, 400 | 422)
        }
        watcher::Error::WatchError(status) => matches!(status.code, 400 | 422),
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

/// Whether the server does not have the kind.
fn is_absent<K: Watched>(err: &watcher::Error) -> bool {
    match err {
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::InitialListFailed(kube::Error::Api(status)) => {
            K::ABSENT.contains(&status.code)
        }
        watcher::Error::WatchError(status) => K::ABSENT.contains(&status.code),
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

/// What the server says if it refuses the kind to this account (401, 403).
fn refusal(err: &watcher::Error) -> Option<String> {
    let status = match err {
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status,
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => return None,
    };
    matches!(status.code, 401 | 403).then(|| format!("{} ({})", status.message, status.code))
}

/// Whether the server said no, as opposed to not being there: another address would say the same.
fn is_answer(err: &watcher::Error) -> bool {
    match err {
        watcher::Error::WatchStartFailed(err)
        | watcher::Error::InitialListFailed(err)
        | watcher::Error::WatchFailed(err) => matches!(err, kube::Error::Api(_)),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => true,
    }
}

/// Exponential pauses with jitter, so that the agents of a cluster do not come back all at once.
#[derive(Debug, Default)]
struct Backoff {
    since: Option<Instant>,
    last: Option<Duration>,
}

impl Backoff {
    async fn pause(&mut self) {
        let (first, most) = BACKOFF;
        self.since.get_or_insert_with(Instant::now);
        let pause = self.last.map_or(first, |last| (last * 2).min(most));
        self.last = Some(pause);
        // A fresh `RandomState` is seeded at random: jitter without another dependency.
        let random = u64::from(RandomState::new().build_hasher().finish() as u32 % 512);
        sleep(pause.mul_f64(0.75 + random as f64 / 1024.0)).await;
    }

    fn has_failed_for(&self, time: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= time)
    }
}

#[cfg(test)]
mod tests;
