//! A shop: web → cart → orders, clients outside, DNS, and the API server.

use expect_test::{expect, expect_file};
use lb_common::flow::proto;

use super::{NodeEvidence, SuggestOptions, suggest};
use lb_core::admin::peers::{KnownPeers, LabeledPod};
use lb_core::admin::what_if::SeenFlow;
use lb_core::cluster::{Labels, Name};

fn pod(name: &str, ip: &str, labels: &[(&str, &str)]) -> LabeledPod {
    let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    let ips = vec![ip.parse().unwrap()];
    LabeledPod { name: Name::parse(name), ips, labels: Labels::new(labels) }
}

fn flow(src: &str, dst: &str, (protocol, port): (u8, u16)) -> SeenFlow {
    let [src, dst] = [src, dst].map(|ip| ip.parse().unwrap());
    SeenFlow { src, dst, protocol, port, from_host: false }
}

const TCP: u8 = proto::TCP;

/// Both nodes know all Pods, and each has seen its own flows.
fn nodes() -> [NodeEvidence; 2] {
    let hash = ("pod-template-hash", "7d4b9c6f5d");
    let zone = |name| ("topology.kubernetes.io/zone", name);
    let pods = vec![
        pod("shop/web-7d4b9c6f5d-x2x7k", "10.1.0.2", &[("app", "web"), hash, zone("a")]),
        pod("shop/web-7d4b9c6f5d-b4b4b", "10.1.1.2", &[("app", "web"), hash, zone("b")]),
        pod("shop/cart-0", "10.1.0.3", &[("app", "cart"), ("tier", "back")]),
        pod("shop/cart-debug", "10.1.0.9", &[("app", "cart"), ("tier", "debug")]),
        pod("shop/bare", "10.1.0.8", &[]),
        pod("shop/idle-0", "10.1.0.7", &[("app", "idle")]),
        pod(
            "db/orders-0",
            "10.1.1.4",
            &[("app.kubernetes.io/name", "orders"), ("apps.kubernetes.io/pod-index", "0")],
        ),
        pod("kube-system/coredns-x", "10.1.0.53", &[("k8s-app", "kube-dns")]),
    ];
    let dns = Labels::new([("k8s-app".into(), "kube-dns".into())]);
    let peers = KnownPeers {
        pods,
        pod_ranges: ["10.1.0.0/24", "10.1.1.0/24"].map(|range| range.parse().unwrap()).into(),
        dns: Some(("kube-system".into(), dns)),
        complete: true,
    };
    let first = vec![
        flow("203.0.113.5", "10.1.0.2", (TCP, 8080)),
        // A probe of the kubelet, from the node's address on the Pod's device.
        SeenFlow { from_host: true, ..flow("10.1.0.1", "10.1.0.2", (TCP, 8080)) },
        flow("10.1.0.2", "10.1.0.3", (TCP, 8080)),
        flow("10.1.0.2", "10.1.0.53", (proto::UDP, 53)),
        flow("10.1.0.3", "10.1.1.4", (TCP, 5432)),
        flow("10.1.0.3", "10.0.0.1", (TCP, 6443)),
        flow("10.1.0.3", "10.1.1.99", (TCP, 1)),
        flow("10.1.0.3", "192.0.2.9", (proto::ICMP, 0)),
    ];
    let second = vec![
        flow("10.1.1.2", "10.1.0.3", (TCP, 8080)),
        flow("10.1.1.2", "10.1.0.3", (TCP, 9090)),
        flow("10.1.0.3", "10.1.1.4", (TCP, 5432)),
        SeenFlow { from_host: true, ..flow("10.0.0.2", "10.1.1.2", (TCP, 8081)) },
    ];
    [("n1", first), ("n2", second)].map(|(node, flows)| NodeEvidence {
        node: node.to_owned(),
        flows,
        peers: peers.clone(),
    })
}

#[test]
fn one_policy_for_each_workload_by_the_labels_of_its_owner() {
    let wanted = SuggestOptions { namespace: "shop", enforce: false };
    let suggested = suggest(&wanted, &nodes());
    expect_file!["shop.yaml"].assert_eq(&suggested.manifests);
    expect![[r#"
        shop/bare: its Pods have no labels, so no policy can select it
        shop/cart-debug: no flows were seen, so there is no policy for it
        shop/idle: no flows were seen, so there is no policy for it
        flows of 1 addresses are left out, whose Pods are gone or unknown here: 10.1.1.99"#]]
    .assert_eq(&suggested.remarks.join("\n"));
    let enforced = suggest(&SuggestOptions { enforce: true, ..wanted }, &nodes());
    assert!(!enforced.manifests.contains("shadow"));
    let other = suggest(&SuggestOptions { namespace: "db", ..wanted }, &nodes());
    assert_eq!(other.manifests.matches("kind: NetworkPolicy").count(), 1);
}

/// What is suggested is read back without a complaint.
#[test]
fn suggestions_can_be_applied() {
    let wanted = SuggestOptions { namespace: "shop", enforce: false };
    let text = suggest(&wanted, &nodes()).manifests;
    let read = lb_kube::manifests::read(&text, "suggested", "n1");
    assert!(read.faults.is_empty(), "{:?}", read.faults);
    assert_eq!(read.objects.len(), 2);
    assert!(read.objects.iter().all(|object| object.issues.is_empty()), "{:?}", read.objects);
}
