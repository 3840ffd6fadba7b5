//! The socket with real clients: good ones, slow ones, those who write nonsense, too many.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use lb_common::event::outcome;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{CLIENTS, PendingRequest, Server, bind};
use crate::admin::recent::{CAPACITY, Recent, tests::flow};
use lb_core::admin::{Request, Response, SOCKET};
use lb_core::build::VERSION;

/// A server, and its other ends.
struct Bed {
    dir: PathBuf,
    recent: watch::Sender<Recent>,
    requests: mpsc::Receiver<PendingRequest>,
    followers: watch::Receiver<usize>,
    server: JoinHandle<std::convert::Infallible>,
}

impl Bed {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("lb-socket-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (recent, flows) = watch::channel(Recent::default());
        let (to_loop, requests) = mpsc::channel(1);
        let (count, followers) = watch::channel(0);
        let listener = bind(&dir).unwrap();
        let server =
            tokio::spawn(Server { flows, requests: to_loop, followers: count }.serve(listener));
        Self { dir, recent, requests, followers, server }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.join(SOCKET)).await.unwrap()
    }

    async fn request(&self, request: &str) -> BufReader<UnixStream> {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    fn push(&self, flows: u64, outcome: u8) {
        self.recent.send_modify(|recent| {
            for _ in 0..flows {
                recent.push(flow(recent.next(), outcome));
            }
        });
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.server.abort();
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

async fn response(stream: &mut BufReader<UnixStream>) -> Option<Response> {
    let mut line = String::new();
    let read = timeout(Duration::from_secs(10), stream.read_line(&mut line));
    read.await.unwrap().ok().filter(|n| *n > 0).map(|_| serde_json::from_str(&line).unwrap())
}

/// Numbers of the flows until `end`, and how many were lost.
async fn flows(
    stream: &mut BufReader<UnixStream>,
    end: impl Fn(&Response) -> bool,
) -> (Vec<u64>, u64) {
    let (mut seen, mut lost) = (Vec::new(), 0);
    loop {
        let response = response(stream).await.unwrap();
        let over = end(&response);
        match response {
            Response::Flow(flow) => seen.push(flow.at_ms),
            Response::Lost(n) => lost += n,
            Response::Covers(_) | Response::Now => {}
            other => panic!("{other:?}"),
        }
        if over {
            return (seen, lost);
        }
    }
}

#[tokio::test]
async fn the_last_flows_and_those_to_come() {
    let bed = Bed::new("flows");
    let mode = std::fs::metadata(bed.dir.join(SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    bed.push(2, outcome::DROPPED);
    bed.push(1, outcome::ALLOWED);
    bed.push(1, outcome::WOULD_DENY);
    let mut past = bed.request("{\"flows\":{}}\n").await;
    let Some(Response::Covers(covers)) = response(&mut past).await else { panic!() };
    assert_eq!((covers.flows, covers.forgotten), (4, 0));
    let is_now = |response: &Response| *response == Response::Now;
    assert_eq!(flows(&mut past, is_now).await, (vec![0, 1, 3], 0));
    assert_eq!(response(&mut past).await, None, "that was all");

    let mut all = bed.request("{\"flows\":{\"follow\":true,\"allowed\":true}}\n").await;
    assert_eq!(flows(&mut all, is_now).await, (vec![0, 1, 2, 3], 0));
    assert_eq!(*bed.followers.borrow(), 1);
    bed.push(1, outcome::ALLOWED);
    let is_flow = |response: &Response| matches!(response, Response::Flow(_));
    assert_eq!(flows(&mut all, is_flow).await, (vec![4], 0));
    drop(all);
    let mut followers = bed.followers.clone();
    timeout(Duration::from_secs(10), followers.wait_for(|n| *n == 0)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_slow_client_loses_flows_and_is_told() {
    let bed = Bed::new("slow");
    let mut slow = bed.request("{\"flows\":{\"follow\":true}}\n").await;
    let is_now = |response: &Response| *response == Response::Now;
    assert_eq!(flows(&mut slow, is_now).await, (vec![], 0));
    // It does not read while many times more comes than the buffers hold.
    let rounds = 8;
    for _ in 0..rounds {
        bed.push(CAPACITY as u64, outcome::DROPPED);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let last = rounds * CAPACITY as u64 - 1;
    let is_last =
        |response: &Response| matches!(response, Response::Flow(flow) if flow.at_ms == last);
    let (seen, lost) = flows(&mut slow, is_last).await;
    assert!(lost > 0);
    assert_eq!(seen.len() as u64 + lost, last + 1, "each was told or counted");
    assert!(seen.is_sorted());
}

#[tokio::test]
async fn nonsense_is_answered_and_silence_is_bounded() {
    let bed = Bed::new("nonsense");
    let long = format!("\"{}\"\n", "x".repeat(1 << 20));
    for nonsense in ["\n", "GET / HTTP/1.1\r\n", "{\"delete\":{}}\n", "\0\0\0\n", "[[[[\n", &long] {
        let mut stream = bed.connect().await;
        // The server stops reading what is too long.
        drop(stream.write_all(nonsense.as_bytes()).await);
        let mut text = String::new();
        let read =
            timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await.unwrap();
        let want = format!("{{\"error\":\"not a valid request for lb-agent {VERSION}: ");
        assert!(text.starts_with(&want) || read.is_err(), "{text}");
    }
    // Without an end of line there is no request; its place is free again soon.
    let mut silent = bed.connect().await;
    silent.write_all(b"{\"flows\":").await.unwrap();
    let closed = timeout(Duration::from_secs(10), silent.read(&mut [0; 8])).await.unwrap();
    assert_eq!(closed.unwrap(), 0);
}

#[tokio::test]
async fn too_many_clients_are_refused_and_those_there_stay() {
    let bed = Bed::new("many");
    let mut there = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = bed.request("{\"flows\":{\"follow\":true}}\n").await;
        assert!(matches!(response(&mut client).await, Some(Response::Covers(_))));
        assert_eq!(response(&mut client).await, Some(Response::Now));
        there.push(client);
    }
    let mut refused = BufReader::new(bed.connect().await);
    let want = Response::Error("already serving 16 clients".to_owned());
    assert_eq!(response(&mut refused).await, Some(want));
    bed.push(1, outcome::DROPPED);
    for client in &mut there {
        assert!(matches!(response(client).await, Some(Response::Flow(_))));
    }
    drop(there);
    for _ in 0..1000 {
        let mut next = bed.request("{\"flows\":{}}\n").await;
        if matches!(response(&mut next).await, Some(Response::Covers(_))) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no place became free");
}

#[tokio::test]
async fn requests_reach_the_loop_as_messages() {
    let mut bed = Bed::new("loop");
    let mut client = bed.request("{\"who\":[\"10.0.0.1\"]}\n").await;
    let PendingRequest { request, response: to } = bed.requests.recv().await.unwrap();
    assert_eq!(request, Request::Who(vec!["10.0.0.1".parse().unwrap()]));
    to.send(Response::Who(Vec::new())).unwrap();
    assert_eq!(response(&mut client).await, Some(Response::Who(Vec::new())));
    // A loop that ends responds to no client.
    let mut client = bed.request("{\"who\":[]}\n").await;
    drop(bed.requests.recv().await.unwrap());
    assert_eq!(
        response(&mut client).await,
        Some(Response::Error("the agent is shutting down".to_owned()))
    );
}
