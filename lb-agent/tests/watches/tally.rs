//! What the clients receive: requests, events and bytes by kind of object, counted where the client reads bodies.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Bytes;
use hyper::{Request, Response};
use kube::client::Body;

/// Kinds by the last part of their path.
pub(crate) const KINDS: [&str; 8] = [
    "services",
    "endpointslices",
    "pods",
    "namespaces",
    "nodes",
    "servicecidrs",
    "networkpolicies",
    "clusternetworkpolicies",
];

/// Counts of one kind.
#[derive(Debug, Default)]
pub(crate) struct OfKind {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) events: AtomicU64,
}

/// Counts of all clients.
#[derive(Debug, Default)]
pub(crate) struct Tally([OfKind; KINDS.len()]);

impl Tally {
    pub(crate) fn shared() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The counts of each kind: requests, events, bytes.
    pub(crate) fn counts(&self) -> [[u64; 3]; KINDS.len()] {
        self.0.each_ref().map(|of| {
            [&of.requests, &of.events, &of.bytes].map(|count| count.load(Ordering::Relaxed))
        })
    }

    pub(crate) fn clear(&self) {
        for of in &self.0 {
            for count in [&of.requests, &of.events, &of.bytes] {
                count.store(0, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn of(&self, path: &str) -> Option<&OfKind> {
        let plural = path.rsplit('/').next()?;
        let at = KINDS.iter().position(|known| *known == plural)?;
        self.0.get(at)
    }

    /// Waits until nothing has arrived for a while. Returns false at the deadline. Bookmarks are small and arrive at any time.
    pub(crate) async fn settled(&self, quiet: Duration, deadline: Instant) -> bool {
        let sum = || self.counts().iter().map(|[.., bytes]| bytes).sum::<u64>();
        let (mut last, mut since) = (sum(), Instant::now());
        while since.elapsed() < quiet {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = sum();
            if now.abs_diff(last) > 64 * 1024 {
                (last, since) = (now, Instant::now());
            }
        }
        true
    }
}

/// Counts what passes the client that it is laid around.
#[derive(Clone)]
pub(crate) struct Counting(pub(crate) Arc<Tally>);

impl<S> tower_layer::Layer<S> for Counting {
    type Service = CountingService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountingService { inner, tally: Arc::clone(&self.0) }
    }
}

/// A client whose answers are counted.
pub(crate) struct CountingService<S> {
    inner: S,
    tally: Arc<Tally>,
}

impl<S, B> tower_service::Service<Request<Body>> for CountingService<S>
where
    S: tower_service::Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
{
    type Response = Response<UnsyncBoxBody<Bytes, B::Error>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let tally = Arc::clone(&self.tally);
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            if let Some(of) = tally.of(&path) {
                of.requests.fetch_add(1, Ordering::Relaxed);
            }
            let is_json =
                response.headers().get("content-type").is_none_or(|of| of == "application/json");
            Ok(response.map(|body| {
                body.map_frame(move |frame| {
                    if let (Some(of), Some(data)) = (tally.of(&path), frame.data_ref()) {
                        of.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                        let lines = if is_json {
                            data.iter().filter(|byte| **byte == b'\n').count()
                        } else {
                            0
                        };
                        of.events.fetch_add(lines as u64, Ordering::Relaxed);
                    }
                    frame
                })
                .boxed_unsync()
            }))
        })
    }
}
