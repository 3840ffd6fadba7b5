//! Objects in, records and issues out. What a record makes of the maps is shown by the scenarios.
#![forbid(unsafe_code)]

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_common::addr::Addr;
use serde_json::{Value, json};

use super::{Watched, read};
use crate::cluster::{self, Change, Conditions, Event, Name};

/// Issues as one text each.
fn issues<K: Watched + serde::de::DeserializeOwned>(object: Value) -> Vec<String> {
    let object: K = serde_json::from_value(object).unwrap();
    read(&object, object.name()).1.iter().map(ToString::to_string).collect()
}

fn event<K: Watched + serde::de::DeserializeOwned>(object: Value) -> Event {
    let object: K = serde_json::from_value(object).unwrap();
    let (event, issues) = read(&object, object.name());
    assert_eq!(issues, []);
    event
}

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

fn slice(endpoint: Value) -> Value {
    json!({
        "metadata": {
            "namespace": "ns", "name": "a", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2024-01-01T00:00:01.5Z"},
        },
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [endpoint],
    })
}

#[test]
fn semantics_07_absent_conditions() {
    let cases = [
        ("none", json!(null), (true, true, false)),
        ("empty", json!({}), (true, true, false)),
        ("ready", json!({"ready": true}), (true, true, false)),
        ("not ready", json!({"ready": false}), (false, true, false)),
        (
            "leaves",
            json!({"ready": false, "serving": true, "terminating": true}),
            (false, true, true),
        ),
        (
            "leaves, serving unknown",
            json!({"ready": false, "terminating": true}),
            (false, true, true),
        ),
        ("serving alone", json!({"serving": false}), (true, false, false)),
        ("terminating alone", json!({"terminating": true}), (true, true, true)),
    ];
    for (name, given, (ready, serving, terminating)) in cases {
        let endpoint = json!({"addresses": ["10.244.1.1"], "conditions": given});
        let Event::Slice(Change::Applied(_, slice)) = event::<EndpointSlice>(slice(endpoint))
        else {
            panic!("{name}: no slice");
        };
        let want = Conditions { ready, serving, terminating };
        assert_eq!(slice.endpoints[0].conditions, want, "{name}");
    }
}

#[test]
fn slices_keep_where_their_endpoints_are_and_when_they_changed() {
    let endpoint = json!({
        "addresses": ["10.244.1.1"], "nodeName": "n1", "zone": "z",
        "targetRef": {"kind": "Pod", "name": "web-1"},
    });
    let Event::Slice(Change::Applied(name, slice)) = event::<EndpointSlice>(slice(endpoint)) else {
        panic!("no slice");
    };
    assert_eq!((name, &*slice.service), (Name::new("ns", "a"), "web"));
    assert_eq!(slice.trigger_ms, Some(1_704_067_201_500));
    let endpoint = &slice.endpoints[0];
    let place = [&endpoint.node, &endpoint.zone, &endpoint.pod].map(|s| s.as_deref().unwrap());
    assert_eq!(place, ["n1", "z", "web-1"]);
}

#[test]
fn endpoints_of_this_very_host_are_refused() {
    // CVE-2021-25737.
    for (ip, what) in [
        ("127.0.0.1", "a loopback"),
        ("169.254.169.254", "a link-local"),
        ("0.0.0.0", "an unspecified"),
        ("224.0.0.1", "a multicast"),
        ("255.255.255.255", "a broadcast"),
    ] {
        let issues = issues::<EndpointSlice>(slice(json!({"addresses": [ip]})));
        let want = format!(
            "EndpointSlice ns/a: endpoints[0].addresses[0]: {ip} is {what} address: left out"
        );
        assert_eq!(issues, [want]);
    }
    for ip in ["::1", "fe80::1", "::", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"] {
        let mut object = slice(json!({"addresses": [ip]}));
        object["addressType"] = json!("IPv6");
        assert_eq!(issues::<EndpointSlice>(object).len(), 1, "{ip}");
    }
}

#[test]
fn issues_with_one_object_are_bounded() {
    let mut object = slice(json!(null));
    object["endpoints"] = (0..1000).map(|_| json!({"addresses": ["x"]})).collect();
    let issues = issues::<EndpointSlice>(object);
    assert_eq!(issues.len(), 17);
    assert_eq!(issues[16], "EndpointSlice ns/a: 984 more of its fields are wrong");
}

#[test]
fn pods_that_have_finished_have_no_address() {
    for (phase, gone) in
        [("Running", false), ("Pending", false), ("Succeeded", true), ("Failed", true)]
    {
        let pod = json!({
            "metadata": {"namespace": "ns", "name": "p"}, "spec": {"hostNetwork": true, "containers": []},
            "status": {"phase": phase, "podIPs": [{"ip": "10.244.1.1"}, {"ip": "fd44::1"}]},
        });
        let name = Name::new("ns", "p");
        let record =
            cluster::Pod { ips: [addr("10.244.1.1"), addr("fd44::1")].into(), host_network: true };
        let want = if gone { Change::Deleted(name) } else { Change::Applied(name, record) };
        assert_eq!(event::<Pod>(pod), Event::Pod(want), "{phase}");
    }
}

#[test]
fn nodes_and_namespaces() {
    let node = json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "InternalIP", "address": "172.31.0.11"},
        ]},
    });
    let record = cluster::Node {
        addresses: [addr("172.31.0.11"), addr("203.0.113.1")].into(),
        pod_cidrs: ["10.244.1.0/24".parse().unwrap()].into(),
        zone: Some("z".into()),
        deleting: true,
    };
    assert_eq!(event::<Node>(node), Event::Node(Change::Applied(Name::new("", "n1"), record)));

    let namespace = json!({"metadata": {"name": "ns", "labels": {"b": "2", "a": "1"}}});
    let labels = [("a".into(), "1".into()), ("b".into(), "2".into())].into();
    let change = Change::Applied(Name::new("", "ns"), cluster::Namespace { labels });
    assert_eq!(event::<Namespace>(namespace), Event::Namespace(change));
}
