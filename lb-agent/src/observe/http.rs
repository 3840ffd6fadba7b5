//! A small HTTP/1 server for a few GET paths, hardened against slow and many clients: it shares a thread with the
//! agent's loop.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

/// The whole request head must be there by then.
const HEADERS: Duration = Duration::from_secs(5);
/// No connection lives longer, busy or idle.
const CONNECTION: Duration = Duration::from_secs(120);
/// Connections at a time.
const CONNECTIONS: usize = 64;
/// Between tries to get an address that another process has: kube-proxy's health checks are to find an answer as soon
/// as it is gone.
const RETRY: Duration = Duration::from_millis(500);

/// A GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GetRequest<'a> {
    pub path: &'a str,
    /// All `Accept` headers as one; empty if there is none.
    pub accept: String,
}

/// What is answered to a GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Status code.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: &'static str,
    pub body: String,
    /// `X-Load-Balancing-Endpoint-Weight`: for load balancers that weigh the nodes.
    pub weight: Option<usize>,
}

impl Answer {
    /// For paths that do not exist.
    pub(crate) fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            content_type: "text/plain; charset=utf-8",
            body: "not found\n".to_owned(),
            weight: None,
        }
    }
}

/// Serves without end. `name` is for the log; `answer` gets the request. An address in use is tried again: kube-proxy may still
/// be there.
pub(crate) async fn serve(
    name: &'static str,
    address: SocketAddr,
    answer: impl Fn(&GetRequest<'_>) -> Answer + Send + Sync + 'static,
) -> Infallible {
    let listener = listen(name, address).await;
    serve_on(name, listener, CONNECTIONS, answer).await
}

/// Serves without end on a socket, with a limited number of connections at a time: the oldest one is closed for a new one, so
/// that clients that connect and send nothing do not block others.
pub(crate) async fn serve_on(
    name: &'static str,
    listener: TcpListener,
    connections: usize,
    answer: impl Fn(&GetRequest<'_>) -> Answer + Send + Sync + 'static,
) -> Infallible {
    let answer = Arc::new(answer);
    let mut open = VecDeque::<AbortOnDrop>::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors, most likely: others will be closed.
                warn!(server = name, err = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.0.is_finished());
        if open.len() >= connections {
            drop(open.pop_front());
        }
        let answer = Arc::clone(&answer);
        let connection = tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, answer.as_ref());
                async move { Ok::<_, Infallible>(response) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(8 * 1024);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            // A timeout needs no word: the client was slow or kept the connection idle.
            if let Ok(Err(e)) = tokio::time::timeout(CONNECTION, connection).await {
                debug!(server = name, err = %e, "connection failed");
            }
        });
        open.push_back(AbortOnDrop(connection.abort_handle()));
    }
}

/// A task that ends with this value.
pub(super) struct AbortOnDrop(pub(super) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn listen(name: &'static str, address: SocketAddr) -> TcpListener {
    let mut was_reported = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(server = name, %address, "listening");
                return listener;
            }
            Err(e) if was_reported => {
                debug!(server = name, %address, err = %e, "address still in use, retrying")
            }
            Err(e) => {
                warn!(server = name, %address, err = %e, "cannot listen, retrying; does kube-proxy run on this node?");
                was_reported = true;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn respond(
    request: &Request<Incoming>,
    answer: &impl Fn(&GetRequest<'_>) -> Answer,
) -> Response<Full<Bytes>> {
    let answer = if matches!(*request.method(), Method::GET | Method::HEAD) {
        let accept =
            request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let accept = accept.collect::<Vec<_>>().join(",");
        answer(&GetRequest { path: request.uri().path(), accept })
    } else {
        Answer {
            status: StatusCode::METHOD_NOT_ALLOWED,
            content_type: "text/plain; charset=utf-8",
            body: "only GET is allowed\n".to_owned(),
            weight: None,
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(weight) = answer.weight {
        let name = HeaderName::from_static("x-load-balancing-endpoint-weight");
        headers.insert(name, HeaderValue::from(weight));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use hyper::StatusCode;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::{Answer, serve};

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn answers_get_and_refuses_the_rest() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let server = tokio::spawn(serve("test", address, |request| match request.path {
            "/x" => Answer {
                status: StatusCode::OK,
                content_type: "text/plain",
                body: "here".to_owned(),
                weight: Some(3),
            },
            "/accept" => Answer { body: request.accept.clone(), ..Answer::not_found() },
            _ => Answer::not_found(),
        }));
        for (request, want) in [
            ("GET /x", "HTTP/1.1 200"),
            ("GET /y", "HTTP/1.1 404"),
            ("POST /x", "HTTP/1.1 405"),
            ("nonsense", "HTTP/1.1 400"),
        ] {
            let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = ask(address, &request).await;
            assert!(answer.starts_with(want), "{request}: {answer}");
        }
        let answer = ask(address, "GET /x HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("here"), "{answer}");
        assert!(answer.contains("x-load-balancing-endpoint-weight: 3\r\n"), "{answer}");
        let accept = "GET /accept HTTP/1.0\r\nAccept: a/b;q=0.5\r\nAccept: c/d\r\n\r\n";
        let answer = ask(address, accept).await;
        assert!(answer.ends_with("\r\n\r\na/b;q=0.5,c/d"), "{answer}");
        server.abort();
    }

    #[tokio::test]
    async fn silent_clients_do_not_keep_others_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(super::serve_on("test", listener, 4, |_| Answer::not_found()));
        let mut silent = Vec::new();
        for _ in 0..50 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let asked =
            tokio::time::timeout(Duration::from_secs(2), ask(address, "GET / HTTP/1.0\r\n\r\n"));
        let answer = asked.await.unwrap();
        assert!(answer.contains(" 404 "), "{answer}");
        let mut first = silent.swap_remove(0);
        assert_eq!(first.read(&mut [0; 8]).await.unwrap(), 0, "the oldest one was closed");
        server.abort();
    }
}
