//! A small HTTP/1 server for a few GET paths, hardened against slow and many clients: it shares a thread with the
//! agent's loop.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

/// The whole request head must be there by then.
const HEADERS: Duration = Duration::from_secs(5);
/// No connection lives longer, busy or idle.
const CONNECTION: Duration = Duration::from_secs(120);
/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Between tries to get an address that somebody else has.
const RETRY: Duration = Duration::from_secs(5);

/// What is answered to a GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Body.
    pub body: String,
}

impl Answer {
    /// For paths that do not exist.
    pub fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            content_type: "text/plain; charset=utf-8",
            body: "not found\n".to_owned(),
        }
    }
}

/// Serves for ever. `name` is for the log; `answer` gets the path. An address that is taken is tried again: kube-proxy
/// may still be there.
pub async fn serve(
    name: &'static str,
    address: SocketAddr,
    answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
) -> Infallible {
    let answer = Arc::new(answer);
    let listener = listen(name, address).await;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors, most likely: others will be closed.
                warn!(server = name, err = %e, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
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
            drop(place);
        });
    }
}

async fn listen(name: &'static str, address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(server = name, %address, "listening");
                return listener;
            }
            Err(e) if told => debug!(server = name, %address, err = %e, "address still taken"),
            Err(e) => {
                warn!(server = name, %address, err = %e, "cannot listen, trying again; does kube-proxy run here?");
                told = true;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn respond(request: &Request<Incoming>, answer: &impl Fn(&str) -> Answer) -> Response<Full<Bytes>> {
    let answer = if matches!(*request.method(), Method::GET | Method::HEAD) {
        answer(request.uri().path())
    } else {
        Answer {
            status: StatusCode::METHOD_NOT_ALLOWED,
            content_type: "text/plain; charset=utf-8",
            body: "only GET\n".to_owned(),
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
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
        let server = tokio::spawn(serve("test", address, |path| match path {
            "/x" => Answer {
                status: StatusCode::OK,
                content_type: "text/plain",
                body: "here".to_owned(),
            },
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
        assert!(ask(address, "GET /x HTTP/1.0\r\n\r\n").await.ends_with("here"));
        server.abort();
    }
}
