//! Reports each request to the API server to whoever counts them.
#![forbid(unsafe_code)]

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

/// A request to the API server, until the head of its response: a watch goes on after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiRequest<'a> {
    /// The method, such as `GET`.
    pub method: &'a str,
    /// The server's host and port.
    pub host: &'a str,
    /// The status code; `None` if there was no response.
    pub code: Option<u16>,
    /// The time until the head of the response arrived, or the request failed.
    pub took: Duration,
}

/// A function that gets each request. The default one ignores them.
#[derive(Clone)]
pub struct RequestObserver(Arc<dyn Fn(&ApiRequest<'_>) + Send + Sync>);

impl RequestObserver {
    /// An observer of all requests of the clients that get it.
    pub fn new(observe: impl Fn(&ApiRequest<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observe))
    }

    /// The layer for clients of one server. It is the outermost one, where requests do not name their server yet.
    pub(super) fn layer(&self, host: &str) -> ObserverLayer {
        ObserverLayer { observer: self.clone(), host: host.into() }
    }
}

impl Default for RequestObserver {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for RequestObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestObserver").finish_non_exhaustive()
    }
}

/// The observer, with the host and port of the server.
pub(super) struct ObserverLayer {
    observer: RequestObserver,
    host: Arc<str>,
}

impl<S> Layer<S> for ObserverLayer {
    type Service = ObservedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ObservedService { inner, observer: self.observer.clone(), host: Arc::clone(&self.host) }
    }
}

/// A service whose requests are observed.
pub(super) struct ObservedService<S> {
    inner: S,
    observer: RequestObserver,
    host: Arc<str>,
}

impl<S, B, R> Service<Request<B>> for ObservedService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (observer, host) = (self.observer.clone(), Arc::clone(&self.host));
        let method = request.method().clone();
        let sent = Instant::now();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await;
            let code = response.as_ref().ok().map(|response| response.status().as_u16());
            let took = sent.elapsed();
            (observer.0)(&ApiRequest { method: method.as_str(), host: &host, code, took });
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kube::Config;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::RequestObserver;
    use crate::api_server::connect::client;

    #[tokio::test]
    async fn each_request_is_reported_with_its_code() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let observer = RequestObserver::new(move |request| {
            let (method, host) = (request.method.to_owned(), request.host.to_owned());
            record.lock().unwrap().push((method, host, request.code));
        });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let client = client(config, &observer).unwrap();
        let server = tokio::spawn(async move {
            for head in ["200 OK", "403 Forbidden"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let n = stream.read(&mut [0; 4096]).await.unwrap();
                assert!(n > 0);
                let head = format!("HTTP/1.1 {head}\r\nContent-Length: 2\r\nConnection: close\r\n");
                stream.write_all(format!("{head}\r\n{{}}").as_bytes()).await.unwrap();
            }
        });
        client.apiserver_version().await.unwrap();
        client.apiserver_version().await.unwrap_err();
        server.await.unwrap();
        // The listener is gone.
        client.apiserver_version().await.unwrap_err();
        let of = |code| ("GET".to_owned(), address.to_string(), code);
        assert_eq!(*seen.lock().unwrap(), [of(Some(200)), of(Some(403)), of(None)]);
    }
}
