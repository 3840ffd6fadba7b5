//! The credentials of a service account are replaced while the agent watches, as the kubelet does it, against a server with TLS that
//! accepts the newest token and has the newest certificate.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::{Behaviour, answer_head, watched_pods};
use crate::api_server::{ConnectOptions, source};
use crate::{Counters, Received};
use lb_core::cluster::{Event, Kind};

/// A directory in the form that the kubelet gives to projected volumes: names are links through one link, which is replaced.
struct Account(PathBuf);

impl Account {
    fn new(token: &str, certificate: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("lb-account-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let account = Self(dir);
        account.write("first", token, certificate);
        for file in ["token", "ca.crt"] {
            symlink(Path::new("..data").join(file), account.0.join(file)).unwrap();
        }
        account
    }

    fn write(&self, version: &str, token: &str, certificate: &str) {
        let version = format!("..{version}");
        let dir = self.0.join(&version);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("token"), token).unwrap();
        fs::write(dir.join("ca.crt"), certificate).unwrap();
        symlink(&version, self.0.join("..data_tmp")).unwrap();
        fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// What the server has and accepts now, and what it saw.
struct Secured {
    tls: Arc<ServerConfig>,
    token: &'static str,
    accepted: usize,
    refused: usize,
}

/// A certificate that is its own issuer, and the server with it.
fn certificate() -> (String, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
    (made.cert.pem(), Arc::new(config))
}

/// Each connection has one request, and ends when `closed` says so.
async fn serve(listener: TcpListener, secured: Arc<Mutex<Secured>>, closed: watch::Receiver<u32>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (secured, mut closed) = (Arc::clone(&secured), closed.clone());
        closed.mark_unchanged();
        let tls = Arc::clone(&secured.lock().unwrap().tls);
        tokio::spawn(async move {
            // A client that does not trust the certificate hangs up.
            let Ok(mut stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            let head = String::from_utf8(head).unwrap();
            let is_valid = {
                let mut secured = secured.lock().unwrap();
                let valid = format!("authorization: Bearer {}\r\n", secured.token);
                let is_valid = head.contains(&valid);
                *(if is_valid { &mut secured.accepted } else { &mut secured.refused }) += 1;
                is_valid
            };
            let reply = |code: u16, body: &str| {
                format!(
                    "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
            };
            let text = if !is_valid {
                reply(401, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":401}"#)
            } else if head.starts_with("GET /version") {
                reply(
                    200,
                    r#"{"major":"1","minor":"36","gitVersion":"v1.36.0","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#,
                )
            } else {
                answer_head(&head, Behaviour::Streams, &Default::default()).0
            };
            drop(stream.write_all(text.as_bytes()).await);
            if is_valid && head.contains("watch=true") {
                drop(closed.changed().await);
            }
            drop(stream.shutdown().await);
        });
    }
}

/// Waits until each kind was listed again.
async fn lists(rx: &mut mpsc::Receiver<Received>) {
    let mut left = Kind::ALL.to_vec();
    while !left.is_empty() {
        let received = timeout(Duration::from_secs(120), rx.recv()).await;
        if let Event::Synced(kind) =
            received.expect("a list in time").expect("an open channel").event
        {
            left.retain(|other| *other != kind);
        }
    }
}

#[tokio::test]
async fn credentials_that_are_replaced_are_used_without_a_restart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let (first, tls) = certificate();
    let account = Account::new("one", &first);
    let secured = Secured { tls, token: "one", accepted: 0, refused: 0 };
    let secured = Arc::new(Mutex::new(secured));
    let (close, closed) = watch::channel(0);
    tokio::spawn(serve(listener, Arc::clone(&secured), closed));
    let (tx, mut rx) = mpsc::channel(64);
    let counters = Counters::shared();
    let (_scope, pods) = watched_pods();
    let options = ConnectOptions {
        api_server: Some(url),
        account: account.0.clone(),
        ..ConnectOptions::default()
    };
    tokio::spawn(source(options, pods, tx, Arc::clone(&counters)));
    lists(&mut rx).await;

    // The token: the server takes the new one only, and ends all watches.
    account.write("second", "two", &first);
    let before = {
        let mut secured = secured.lock().unwrap();
        secured.token = "two";
        secured.accepted
    };
    close.send_modify(|nth| *nth += 1);
    let resumed = async {
        while secured.lock().unwrap().accepted < before + Kind::ALL.len() {
            while rx.try_recv().is_ok() {}
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), resumed).await.expect("all watches are resumed");
    let relisted: u64 = Kind::ALL.iter().map(|kind| counters.of(*kind).restarts()).sum();
    assert_eq!(relisted, Kind::ALL.len() as u64, "a watch that ends is resumed where it was");

    // The certificate and who vouches for it: the watches fail until the server is looked up again.
    let (second, tls) = certificate();
    account.write("third", "three", &second);
    {
        let mut secured = secured.lock().unwrap();
        (secured.tls, secured.token) = (tls, "three");
    }
    close.send_modify(|nth| *nth += 1);
    lists(&mut rx).await;
    assert_eq!(secured.lock().unwrap().refused, 0, "no request had an old token");
}
