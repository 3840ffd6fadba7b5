//! The watches against an API server of a few lines: streaming lists, the fallback without them, changes, errors.
#![forbid(unsafe_code)]

mod rotation;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::{WatchContext, WatchedPods, run, watcher};
use crate::policy::ClusterNetworkPolicy;
use crate::{Counters, Received};
use lb_core::cluster::{Change, Event, Kind, Name, PodScope};

/// How the server behaves.
#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Streams,
    /// Refuses `sendInitialEvents`, as with the feature gate off.
    Refuses,
    /// Answers the first request for each list with an internal error.
    Fails,
    /// Knows no ServiceCIDRs, as before Kubernetes 1.33, and no ClusterNetworkPolicies.
    IsOld,
    /// Knows ClusterNetworkPolicies the second time it is asked, and not any more later.
    Extended,
}

const KINDS: [(&str, &str, &str); 8] = [
    ("/api/v1/services", "v1", "Service"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("/api/v1/pods", "v1", "Pod"),
    ("/api/v1/namespaces", "v1", "Namespace"),
    ("/api/v1/nodes", "v1", "Node"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
    ("/apis/networking.k8s.io/v1/networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
    (
        "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
        "policy.networking.k8s.io/v1alpha2",
        "ClusterNetworkPolicy",
    ),
];

/// Its condition has no time, which the API server accepts.
fn service(name: &str, port: u16, version: u16) -> Value {
    let condition = json!({"type": "A", "status": "True", "lastTransitionTime": null, "reason": "R", "message": ""});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": version.to_string()},
        "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": port}]},
        "status": {"conditions": [condition], "loadBalancer": {}},
    })
}

fn pod(name: &str) -> Value {
    let node = if name == "own" { "n1" } else { "n2" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": "4"},
        "spec": {"nodeName": node, "containers": []},
    })
}

/// The Pods of this node are watched; the other end changes that.
fn watched_pods() -> (watch::Sender<PodScope>, WatchedPods) {
    let (sender, scope) = watch::channel(PodScope::Own);
    (sender, WatchedPods { node: "n1".into(), scope })
}

fn policy() -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "p", "resourceVersion": "4"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
    })
}

fn bookmark(api_version: &str, kind: &str) -> Value {
    json!({"type": "BOOKMARK", "object": {
        "apiVersion": api_version, "kind": kind,
        "metadata": {"resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "true"}},
    }})
}

async fn serve(listener: TcpListener, behaviour: Behaviour) {
    let failures = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(answer(stream, behaviour, Arc::clone(&failures)));
    }
}

/// Answers one request, and leaves a watch open.
async fn answer(mut stream: TcpStream, behaviour: Behaviour, failures: Arc<AtomicUsize>) {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let n = stream.read(&mut chunk).await.unwrap();
        if n == 0 {
            return;
        }
        request.extend_from_slice(&chunk[..n]);
    }
    let request = String::from_utf8(request).unwrap();
    let (text, open) = answer_head(&request, behaviour, &failures);
    stream.write_all(text.as_bytes()).await.unwrap();
    if open {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

/// The answer to a request, and whether it is a watch that stays open.
fn answer_head(request: &str, behaviour: Behaviour, failures: &AtomicUsize) -> (String, bool) {
    let target = request.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap();
    let (_, api_version, kind) = *KINDS.iter().find(|(it, _, _)| *it == path).unwrap();
    let mut pods = Vec::new();
    if kind == "Pod" {
        assert!(query.contains("fieldSelector=status.phase%21%3DSucceeded"), "{query}");
        // One Pod of this node, and one of another for those who ask for all.
        let own = query.contains("spec.nodeName%3Dn1");
        let names = if own { &["own"][..] } else { &["own", "other"] };
        pods = names.iter().map(|name| pod(name)).collect();
    }
    if matches!(kind, "Service" | "EndpointSlice") {
        assert!(query.contains("service-proxy-name"), "{query}");
    }
    let watch = query.contains("watch=true");
    let initial = query.contains("sendInitialEvents=true");
    let items: Vec<Value> = match kind {
        "Service" => vec![service("web", 80, 4)],
        "Pod" => pods,
        "ClusterNetworkPolicy" if behaviour == Behaviour::Extended => vec![policy()],
        _ => vec![],
    };
    let status = |code: u16| json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "Invalid", "code": code});
    let lacks = match behaviour {
        Behaviour::IsOld => matches!(kind, "ServiceCIDR" | "ClusterNetworkPolicy"),
        Behaviour::Extended => failures.fetch_add(1, Ordering::SeqCst) != 1,
        Behaviour::Streams | Behaviour::Refuses | Behaviour::Fails => false,
    };
    let (code, body): (u16, Vec<Value>) = if initial && behaviour == Behaviour::Refuses {
        (422, vec![status(422)])
    } else if lacks {
        (404, vec![status(404)])
    } else if behaviour == Behaviour::Fails && failures.fetch_add(1, Ordering::SeqCst) < KINDS.len()
    {
        (500, vec![status(500)])
    } else if initial {
        let added = items.into_iter().map(|item| json!({"type": "ADDED", "object": item}));
        (200, added.chain([bookmark(api_version, kind)]).chain(later(kind)).collect())
    } else if watch {
        (200, later(kind))
    } else {
        let list = json!({"apiVersion": api_version, "kind": format!("{kind}List"), "metadata": {"resourceVersion": "5"}, "items": items});
        (200, vec![list])
    };
    let body: String = body.iter().map(|line| format!("{line}\n")).collect();
    let head =
        format!("HTTP/1.1 {code} X\r\ncontent-type: application/json\r\nconnection: close\r\n");
    let open = watch && code == 200 && behaviour != Behaviour::Extended;
    let framing = if open { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    (format!("{head}{framing}\r\n{body}"), open)
}

/// What happens after the list: the Service goes bad, is mended, and deleted.
fn later(kind: &str) -> Vec<Value> {
    if kind != "Service" {
        return Vec::new();
    }
    vec![
        json!({"type": "MODIFIED", "object": service("web", 0, 6)}),
        json!({"type": "MODIFIED", "object": service("web", 81, 7)}),
        json!({"type": "DELETED", "object": service("web", 81, 8)}),
    ]
}

/// Events about Services, in short, until the Service is deleted; and the kinds that were synced.
async fn events(behaviour: Behaviour) -> (Vec<String>, Vec<Kind>, Arc<Counters>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(serve(listener, behaviour));
    let client = kube::Client::try_from(kube::Config::new(url)).unwrap();
    let (tx, mut rx) = mpsc::channel::<Received>(16);
    let counters = Counters::shared();
    let (_sender, pods) = watched_pods();
    tokio::spawn(run(client, pods, tx, Arc::clone(&counters)));
    let (mut seen, mut synced, mut done) = (Vec::new(), Vec::new(), false);
    while !done || synced.len() < Kind::ALL.len() {
        let received = timeout(Duration::from_secs(20), rx.recv()).await;
        match received.expect("an event in time").expect("an open channel").event {
            Event::Restarted(Kind::Service) => seen.push("restarted".to_owned()),
            Event::Synced(kind) => {
                if kind == Kind::Service {
                    seen.push("synced".to_owned());
                }
                synced.push(kind);
            }
            Event::Service(Change::Applied(name, service)) => {
                let ports: Vec<_> = service.ports.iter().map(|port| port.port).collect();
                seen.push(format!("{name} {ports:?}"));
            }
            Event::Service(Change::Deleted(name)) => {
                assert_eq!(name, Name::new("ns", "web"));
                seen.push("deleted".to_owned());
                done = true;
            }
            Event::Issues(object, issues) => {
                seen.push(format!("{} issues with {object}", issues.len()))
            }
            _ => {}
        }
    }
    synced.sort();
    (seen, synced, counters)
}

const STORY: [&str; 8] = [
    "restarted",
    "ns/web [80]",
    "synced",
    "ns/web []",
    "1 issues with Service ns/web",
    "ns/web [81]",
    "0 issues with Service ns/web",
    "deleted",
];

#[tokio::test]
async fn streaming_lists() {
    let (seen, synced, counters) = events(Behaviour::Streams).await;
    assert_eq!(seen, STORY);
    assert_eq!(synced, Kind::ALL);
    assert_eq!(counters.of(Kind::Service).restarts(), 1);
    assert_eq!(counters.of(Kind::Service).errors(), 0);
    assert!(counters.of(Kind::Service).event_age().is_some());
}

#[tokio::test]
async fn a_server_without_streaming_lists() {
    let (seen, synced, counters) = events(Behaviour::Refuses).await;
    assert_eq!(seen, STORY);
    assert_eq!(synced, Kind::ALL);
    assert_eq!(counters.of(Kind::Service).errors(), 0, "not an error");
}

#[tokio::test]
async fn a_server_that_fails_is_tried_again() {
    let (seen, synced, counters) = events(Behaviour::Fails).await;
    assert_eq!(seen, STORY);
    assert_eq!(synced, Kind::ALL);
    assert!(Kind::ALL.iter().map(|kind| counters.of(*kind).errors()).sum::<u64>() >= 1);
}

#[tokio::test]
async fn a_server_without_a_kind_has_none_of_it() {
    let (seen, synced, counters) = events(Behaviour::IsOld).await;
    assert_eq!(seen, STORY);
    assert_eq!(synced, Kind::ALL);
    assert_eq!(counters.of(Kind::ServiceCidr).errors(), 0, "not an error");
    assert_eq!(counters.of(Kind::ClusterNetworkPolicy).errors(), 0, "not an error");
}

#[tokio::test]
async fn a_kind_that_is_installed_and_removed_while_we_watch() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(serve(listener, Behaviour::Extended));
    let client = kube::Client::try_from(kube::Config::new(url)).unwrap();
    let (tx, mut rx) = mpsc::channel(16);
    let counters = Counters::shared();
    let absent = Duration::from_millis(10);
    let (_sender, pods) = watched_pods();
    let source = WatchContext { client, pods, tx, counters: Arc::clone(&counters), absent };
    let watch = async move {
        source.watch::<ClusterNetworkPolicy>(watcher::Config::default()).await;
    };
    tokio::spawn(watch);
    let mut seen = Vec::new();
    for _ in 0..7 {
        let received = timeout(Duration::from_secs(10), rx.recv()).await;
        seen.push(match received.expect("an event within ten seconds").unwrap().event {
            Event::Restarted(Kind::ClusterNetworkPolicy) => "restarted",
            Event::Synced(Kind::ClusterNetworkPolicy) => "synced",
            Event::ClusterNetworkPolicy(Change::Applied(..)) => "there",
            other => panic!("{other:?}"),
        });
    }
    let list = ["restarted", "there", "synced"];
    assert_eq!(seen, [&["restarted", "synced"][..], &list, &["restarted", "synced"]].concat());
    assert_eq!(counters.of(Kind::ClusterNetworkPolicy).errors(), 1, "it is asked twice");
}

#[tokio::test]
async fn pods_of_other_nodes_are_watched_when_they_are_wanted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(serve(listener, Behaviour::Streams));
    let client = kube::Client::try_from(kube::Config::new(url)).unwrap();
    let (tx, mut rx) = mpsc::channel(16);
    let (sender, pods) = watched_pods();
    tokio::spawn(run(client, pods, tx, Counters::shared()));
    let mut seen = Vec::new();
    while seen.len() < 9 {
        let received = timeout(Duration::from_secs(10), rx.recv()).await;
        match received.expect("an event within ten seconds").unwrap().event {
            Event::Pods(scope) => seen.push(format!("{scope:?}")),
            Event::Restarted(Kind::Pod) => seen.push("restarted".to_owned()),
            Event::Pod(Change::Applied(name, _)) => seen.push(name.to_string()),
            Event::Synced(Kind::Pod) => {
                seen.push("synced".to_owned());
                sender.send(PodScope::All).unwrap();
            }
            _ => {}
        }
    }
    let own = ["Own", "restarted", "ns/own", "synced"];
    assert_eq!(seen, [&own[..], &["All", "restarted", "ns/own", "ns/other", "synced"]].concat());
}
