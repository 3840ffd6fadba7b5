//! Requests of the page → files, answers of lbctl, and a stream of flows.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::guard::Guard;
use super::page::{FILES, HEADERS};
use super::question::PageQuestion;
use crate::lbctl::{CommandOutput, Followed, FollowedLine, Lbctl};

/// The whole request head must be there by then.
const HEAD: Duration = Duration::from_secs(10);
/// Commands that run at the same time; other requests wait.
const COMMANDS: usize = 6;
/// The largest manifest that is tried, in bytes: more than an object of the API can have.
const MANIFEST: usize = 4 << 20;
/// A stream without flows sends a comment this often, which shows that the page is gone.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Lines of a stream that the page has not read yet.
const UNREAD: usize = 64;

type Body = Either<Full<Bytes>, Channel<Bytes, Infallible>>;

/// What the requests share.
struct Shared {
    guard: Guard,
    lbctl: Lbctl,
    commands: Semaphore,
}

/// Serves without end.
pub(super) async fn serve(listener: TcpListener, guard: Guard, lbctl: Lbctl) -> Result<()> {
    let shared = Arc::new(Shared { guard, lbctl, commands: Semaphore::new(COMMANDS) });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&shared)))),
            // Out of descriptors, most likely: other connections will end.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(&shared, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    // An error is the end of a connection, which the browser shows.
    drop(http.serve_connection(TokioIo::new(stream), service).await);
}

async fn respond(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = match shared.guard.admit(&head) {
        Ok(path) => path,
        Err(refusal) => return text(refusal.status, refusal.reason),
    };
    let file = FILES.iter().find(|file| file.path == path);
    if let Some(file) = file.filter(|_| head.method == Method::GET) {
        return response(StatusCode::OK, file.content_type, file.text);
    }
    let Some(question) = PageQuestion::parse(path, head.uri.query().unwrap_or_default()) else {
        return text(StatusCode::NOT_FOUND, "not found\n");
    };
    match (question, &head.method) {
        (PageQuestion::Once(words), &Method::GET) => answer(shared, &words, None).await,
        (PageQuestion::Follow(words), &Method::GET) => match shared.lbctl.follow(&words) {
            Ok(followed) => stream(followed),
            Err(error) => text(StatusCode::BAD_GATEWAY, &format!("{error:#}\n")),
        },
        (PageQuestion::WithInput(words), &Method::POST) => {
            match Limited::new(body, MANIFEST).collect().await {
                Ok(body) => answer(shared, &words, Some(&body.to_bytes())).await,
                Err(_) => text(StatusCode::PAYLOAD_TOO_LARGE, "the manifest is too large\n"),
            }
        }
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "wrong method for this path\n"),
    }
}

/// Runs a command. What lbctl says is always an answer, also that it failed.
async fn answer(shared: &Shared, words: &[String], input: Option<&[u8]>) -> Response<Body> {
    let Ok(_permit) = shared.commands.acquire().await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the server ends\n");
    };
    let document = match shared.lbctl.run(words, input).await {
        Ok(CommandOutput { code, documents, remarks }) => {
            json!({"code": code, "documents": documents, "remarks": remarks})
        }
        Err(error) => json!({"code": null, "documents": [], "remarks": [format!("{error:#}")]}),
    };
    response(StatusCode::OK, "application/json", document.to_string())
}

/// Sends each line of the command as an event (WHATWG HTML, server-sent events).
fn stream(followed: Followed) -> Response<Body> {
    let (sender, channel) = Channel::new(UNREAD);
    drop(tokio::spawn(send(followed, sender)));
    with_headers(Response::new(Either::Right(channel)), "text/event-stream")
}

/// Sends until the command has ended, or the page is gone.
async fn send(mut followed: Followed, mut sender: Sender<Bytes, Infallible>) {
    let mut last = "lbctl has ended".to_owned();
    loop {
        let (event, is_last) = match tokio::time::timeout(HEARTBEAT, followed.next()).await {
            Ok(Ok(Some(FollowedLine::Row(row)))) => (format!("data: {row}\n\n"), false),
            Ok(Ok(Some(FollowedLine::Remark(remark)))) => {
                let event = event("remark", &remark);
                last = remark;
                (event, false)
            }
            Ok(Ok(None)) => (event("end", &last), true),
            Ok(Err(error)) => (event("end", &format!("{error:#}")), true),
            Err(_) => (":\n\n".to_owned(), false),
        };
        if sender.send_data(event.into()).await.is_err() || is_last {
            return;
        }
    }
}

/// Returns an event whose data is a text.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {}\n\n", json!(data))
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    response(status, "text/plain; charset=utf-8", text.to_owned())
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    with_headers(response, content_type)
}

fn with_headers(mut response: Response<Body>, content_type: &'static str) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
