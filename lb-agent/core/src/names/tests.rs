//! What survives the file, what an older or newer one does, and how large it gets.

use std::borrow::Cow;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{
    BackendName, DropExample, EndpointConditions, ExternalName, ExternalScope, LAYOUT, Names,
    NamesError, Place, PodName, RejectedName, ServiceName, State, Subsystem, read, write,
};

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lb-names-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn large() -> Names<'static> {
    let service = |i: u32| ServiceName {
        id: i + 1,
        namespace: Cow::Borrowed("default"),
        name: Cow::Owned(format!("service-{i:05}")),
        port_name: Cow::Borrowed("http"),
        port: 80,
        frontends: vec![SocketAddr::from(([10, 96, (i >> 8) as u8, i as u8], 80))],
        endpoints: 2,
        ready: 2,
        created: 1_800_000_000,
        ..ServiceName::default()
    };
    let backend = |i: u32| BackendName {
        id: i + 1,
        service_id: i / 2 + 1,
        pod: Cow::Owned(format!("default/service-{:05}-7d4f8b6c9d-x{}", i / 2, i % 2)),
        place: i % 100 + 1,
        ..BackendName::default()
    };
    Names {
        layout: LAYOUT,
        services: (0..10_000).map(service).collect(),
        backends: (0..20_000).map(backend).collect(),
        ..Names::default()
    }
}

#[test]
fn ten_thousand_services_stay_under_three_megabytes() {
    let dir = scratch("large");
    let path = dir.join(super::FILE);
    let names = large();
    write(&path, &names).unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    assert!(bytes < 3_000_000, "{bytes} bytes");
    assert_eq!(read(&path).unwrap(), names);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn everything_survives_the_file() {
    let dir = scratch("all");
    let path = dir.join(super::FILE);
    let names = Names {
        layout: LAYOUT,
        node: Cow::Borrowed("n1"),
        subsystems: vec![Subsystem {
            name: Cow::Borrowed("kube-proxy"),
            state: State::Degraded,
            detail: Cow::Borrowed("its table is here"),
        }],
        services: vec![ServiceName {
            id: 7,
            protocol: 17,
            kind: Cow::Borrowed("NodePort"),
            externals: vec![ExternalName {
                at: "192.0.2.1:30080".parse().unwrap(),
                scope: ExternalScope::NodePort,
            }],
            ..ServiceName::default()
        }],
        backends: vec![BackendName {
            id: 3,
            conditions: EndpointConditions::Gone,
            ..BackendName::default()
        }],
        places: vec![Place { node: Cow::Borrowed("n2"), zone: Cow::Borrowed("z") }],
        rejected: vec![RejectedName {
            service_id: 7,
            endpoint: "[fd01::2]:8080".parse().unwrap(),
            pod: Cow::Borrowed("default/web-1"),
            place: 1,
            conditions: EndpointConditions::NotReady,
            why: Cow::Borrowed("not ready"),
        }],
        pods: vec![PodName { ifindex: 9, iface: Cow::Borrowed("veth9"), ..PodName::default() }],
        drops: vec![DropExample {
            reason: 1,
            ingress: false,
            protocol: 6,
            src: "10.1.0.2:4000".parse().unwrap(),
            dst: "[fd96::1]:80".parse().unwrap(),
            ifindex: 9,
            service_id: 7,
            at: 5,
            group: 7,
            judgement: 0x8002_0000,
        }],
        ..Names::default()
    };
    write(&path, &names).unwrap();
    assert_eq!(read(&path).unwrap(), names);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "the partial file is gone");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn another_layout_is_named_and_a_missing_file_too() {
    let dir = scratch("layout");
    let path = dir.join(super::FILE);
    assert!(matches!(read(&path), Err(NamesError::Io { .. })));
    fs::write(&path, r#"{"layout":2,"services":"moved elsewhere"}"#).unwrap();
    let error = read(&path).unwrap_err().to_string();
    assert!(error.ends_with("names.json has layout 2, this binary reads 1"), "{error}");
    fs::write(&path, r#"{"layout":1,"future":true}"#).unwrap();
    assert_eq!(read(&path).unwrap().layout, 1, "fields of later agents are skipped");
    let later = r#"{"layout":1,"services":[{"ext":[{"at":"192.0.2.1:80","is":"anycast"}]}]}"#;
    fs::write(&path, later).unwrap();
    let scope = read(&path).unwrap().services[0].externals[0].scope;
    assert_eq!(scope, ExternalScope::Other, "a word of later agents");
    fs::remove_dir_all(dir).unwrap();
}
