//! The directory is really watched: writes, atomic renames, removals, links as in a mounted ConfigMap.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::run;
use crate::{Counters, Received};
use lb_core::cluster::{Change, Event, Kind};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lb-manifests-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}}}\n"
    )
}

/// The next event about a Service, in short.
async fn next(rx: &mut mpsc::Receiver<Received>) -> String {
    loop {
        let received = timeout(Duration::from_secs(10), rx.recv()).await;
        match received.expect("an event within ten seconds").expect("an open channel").event {
            Event::Service(Change::Applied(name, service)) => {
                return format!("{name} {}", service.cluster_ips[0]);
            }
            Event::Service(Change::Deleted(name)) => return format!("{name} gone"),
            Event::Synced(Kind::Node) => return "synced".to_owned(),
            _ => {}
        }
    }
}

fn start(path: &Path) -> mpsc::Receiver<Received> {
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(run(path.to_owned(), "n1".to_owned(), tx, Arc::default()));
    rx
}

#[tokio::test]
async fn writes_renames_and_removals_are_seen() {
    let scratch = Scratch::new("files");
    let path = |name: &str| scratch.0.join(name);
    fs::write(path("a.yaml"), service("a", "10.96.0.1")).unwrap();
    fs::write(path("ignored.txt"), service("x", "10.96.0.9")).unwrap();
    fs::write(path(".hidden.yaml"), service("y", "10.96.0.9")).unwrap();
    let mut rx = start(&scratch.0);
    assert_eq!(next(&mut rx).await, "default/a 10.96.0.1");
    assert_eq!(next(&mut rx).await, "synced");

    fs::write(path("a.yaml"), service("a", "10.96.0.2")).unwrap();
    assert_eq!(next(&mut rx).await, "default/a 10.96.0.2");
    fs::write(path("new"), service("a", "10.96.0.3")).unwrap();
    fs::rename(path("new"), path("a.yaml")).unwrap();
    assert_eq!(next(&mut rx).await, "default/a 10.96.0.3");
    fs::rename(path("a.yaml"), path("b.yaml")).unwrap();
    fs::write(path("c.json"), r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}, "spec": {"clusterIP": "10.96.0.4", "ports": [{"port": 80}]}}"#).unwrap();
    // Moving `a` to another file does not change it, in whichever order the two files are seen.
    loop {
        match next(&mut rx).await.as_str() {
            "default/c 10.96.0.4" => break,
            "default/a gone" | "default/a 10.96.0.3" => {}
            other => panic!("{other}"),
        }
    }
    fs::remove_file(path("b.yaml")).unwrap();
    assert_eq!(next(&mut rx).await, "default/a gone");
}

#[tokio::test]
async fn a_mounted_config_map_is_seen_to_change() {
    // The kubelet swaps the link `..data`; the files' own links stay as they are.
    let scratch = Scratch::new("links");
    let path = |name: &str| scratch.0.join(name);
    for (version, ip) in [("..1", "10.96.0.1"), ("..2", "10.96.0.2")] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("a.yaml"), service("a", ip)).unwrap();
    }
    std::os::unix::fs::symlink("..1", path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", path("a.yaml")).unwrap();
    let mut rx = start(&scratch.0);
    assert_eq!(next(&mut rx).await, "default/a 10.96.0.1");
    assert_eq!(next(&mut rx).await, "synced");
    std::os::unix::fs::symlink("..2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    assert_eq!(next(&mut rx).await, "default/a 10.96.0.2");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_one_sentence() {
    let (tx, _rx) = mpsc::channel(1);
    let missing = std::env::temp_dir().join("lb-manifests-missing");
    let err =
        run(missing.clone(), "n1".to_owned(), tx, Arc::<Counters>::default()).await.unwrap_err();
    let want = format!("cannot watch the manifest directory {}", missing.display());
    assert_eq!(err.to_string(), want);
}

#[tokio::test]
async fn pods_of_all_nodes_and_policies_are_told() {
    let scratch = Scratch::new("policies");
    let pods = [("a", "{}"), ("b", "{nodeName: ''}"), ("c", "{nodeName: n2}")];
    let pod = |(name, spec)| {
        format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {spec}}}\n")
    };
    let policies = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}}\n\
        ---\n{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: c}, \
        spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}}\n";
    let path = scratch.0.join("a.yaml");
    fs::write(&path, pods.map(pod).concat() + policies).unwrap();
    let mut rx = start(&scratch.0);
    let mut seen = Vec::new();
    while seen.len() < 7 {
        let received = timeout(Duration::from_secs(10), rx.recv()).await;
        match received.expect("an event within ten seconds").expect("an open channel").event {
            Event::Pod(Change::Applied(name, pod)) => seen.push(format!("{name} on {}", pod.node)),
            Event::NetworkPolicy(Change::Applied(name, _)) => seen.push(format!("{name}")),
            Event::ClusterNetworkPolicy(Change::Applied(name, _)) => seen.push(format!("{name}")),
            Event::NetworkPolicy(Change::Deleted(name)) => seen.push(format!("no {name}")),
            Event::ClusterNetworkPolicy(Change::Deleted(name)) => seen.push(format!("no {name}")),
            Event::Synced(Kind::Node) => fs::write(&path, pods.map(pod).concat()).unwrap(),
            Event::Issues(_, issues) => assert_eq!(issues, []),
            _ => {}
        }
    }
    seen[5..].sort();
    let pods = ["default/a on n1", "default/b on n1", "default/c on n2"];
    assert_eq!(seen, [&pods[..], &["default/p", "c", "no c", "no default/p"]].concat());
}
