//! Objects in, records and issues out. What a record makes of the maps is shown by the scenarios.
#![forbid(unsafe_code)]

use std::num::{NonZeroU16, NonZeroU32};

use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_common::addr::Addr;
use serde_json::{Value, json};

use super::Counters;
use super::pod::PodObject;
use super::service::ServiceObject;
use super::service_cidr::ServiceCidrObject;
use super::watched::{Watched, read};
use lb_core::cluster::{
    self, Algorithm, Change, Conditions, Event, Extra, Hints, Kind, Labels, Name, NamedPort,
    TrafficPolicy, Weighted,
};

/// Issues as one text each.
fn issues<K: Watched>(object: Value) -> Vec<String> {
    let object: K = serde_json::from_value(object).unwrap();
    read(&object, object.name()).1.iter().map(ToString::to_string).collect()
}

fn event<K: Watched>(object: Value) -> Event {
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
fn s07_absent_conditions() {
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
        assert_eq!(slice.endpoints.iter().next().unwrap().conditions, want, "{name}");
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
    let endpoint = slice.endpoints.iter().next().unwrap();
    let place =
        [endpoint.node.map(|node| &**node), endpoint.zone.map(|zone| &**zone), endpoint.pod];
    let place = place.map(Option::unwrap);
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
            "EndpointSlice ns/a: endpoints[0].addresses[0]: {ip} is {what} address: ignored"
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
    assert_eq!(issues[16], "EndpointSlice ns/a: 984 more of its fields are invalid");
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
        let ips = [addr("10.244.1.1"), addr("fd44::1")].into();
        let record = cluster::Pod { ips, host_network: true, ..cluster::Pod::default() };
        let want = if gone { Change::Deleted(name) } else { Change::Applied(name, record) };
        assert_eq!(event::<PodObject>(pod), Event::Pod(want), "{phase}");
    }
}

#[test]
fn a_kube_proxy_is_known_by_label_or_image_on_the_hosts_network_only() {
    let labels = |key: &str| json!({key: "kube-proxy"});
    for (name, host_network, labels, image, want) in [
        ("kubeadm's", true, labels("k8s-app"), "x", true),
        ("a static Pod", true, labels("component"), "x", true),
        ("by image", true, json!({}), "eks.example/eks/kube-proxy:v1.36.3-minimal", true),
        (
            "by image and architecture",
            true,
            json!({}),
            "gke.gcr.io/kube-proxy-amd64@sha256:1",
            true,
        ),
        ("another image", true, json!({}), "example/kube-proxyless:1", false),
        ("another path", true, json!({}), "example/kube-proxy/exporter:1", false),
        ("a Pod like others", false, labels("k8s-app"), "registry.k8s.io/kube-proxy:v1", false),
        ("another label", true, labels("app"), "x", false),
    ] {
        let pod = json!({
            "metadata": {"namespace": "ns", "name": "p", "labels": labels},
            "spec": {"hostNetwork": host_network, "containers": [{"image": image}]},
        });
        let Event::Pod(Change::Applied(_, record)) = event::<PodObject>(pod) else {
            panic!("{name}: no Pod");
        };
        assert_eq!(record.kube_proxy, want, "{name}");
    }
}

#[test]
fn what_policies_want_of_a_pod_is_kept() {
    let port = |name: Value, number: u16| json!({"name": name, "containerPort": number});
    let pod = json!({
        "metadata": {"namespace": "ns", "name": "p", "labels": {"app": "web"},
            "uid": "a", "creationTimestamp": "2023-12-31T23:59:59Z",
            "annotations": {"lb-agent.io/allowed-sources": "fd00:8::1/64, 10.8.0.7, 10.8.0.7/32,10.9.0.0/33",
                            "lb-agent.io/path": " stack"},
            "deletionTimestamp": "2024-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]},
        "spec": {
            "nodeName": "n2",
            "containers": [{"name": "a", "ports": [port(json!("http"), 80), port(json!(null), 81)]},
                           {"ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [{"restartPolicy": "Always", "ports": [port(json!("metrics"), 9090)]},
                               {"ports": [port(json!("once"), 1)]}],
        },
    });
    let ports = [("http", 6, 80), ("dns", 17, 53), ("metrics", 6, 9090)];
    let want = cluster::Pod {
        uid: 0xaf63_dc4c_8601_ec8c,
        created: std::num::NonZeroI64::new(1_704_067_199),
        deleting: true,
        sources: Some(["10.8.0.7/32", "fd00:8::/64"].map(|text| text.parse().unwrap()).into()),
        by_stack: true,
        node: "n2".into(),
        labels: Labels::new([("app".into(), "web".into())]),
        ports: ports
            .map(|(name, protocol, port)| NamedPort { name: name.into(), protocol, port })
            .into(),
        ..cluster::Pod::default()
    };
    let change = Change::Applied(Name::new("ns", "p"), want);
    let object: PodObject = serde_json::from_value(pod).unwrap();
    let (event, issues) = read(&object, object.name());
    assert_eq!(event, Event::Pod(change), "one that terminates, without an address");
    let issues: Vec<_> = issues.iter().map(ToString::to_string).collect();
    assert_eq!(
        issues,
        [
            "Pod ns/p: metadata.annotations[lb-agent.io/allowed-sources]: `10.9.0.0/33` is not a CIDR like 10.8.0.0/24: ignored"
        ]
    );
}

#[test]
fn nodes_and_namespaces() {
    let node = json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"},
            "creationTimestamp": "1970-01-01T00:01:00Z",
            "annotations": {"projectcalico.org/IPv4VXLANTunnelAddr": "10.244.1.64"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "InternalIP", "address": "172.31.0.11"},
        ], "conditions": [
            {"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "Unknown"},
        ]},
    });
    let record = cluster::Node {
        addresses: [addr("172.31.0.11"), addr("203.0.113.1")].into(),
        tunnels: [addr("10.244.1.64")].into(),
        pod_cidrs: ["10.244.1.0/24".parse().unwrap()].into(),
        zone: Some("z".into()),
        created: std::num::NonZeroI64::new(60),
        lost: true,
        deleting: true,
        labels: Labels::new([("topology.kubernetes.io/zone".into(), "z".into())]),
    };
    assert_eq!(event::<Node>(node), Event::Node(Change::Applied(Name::new("", "n1"), record)));

    let namespace = json!({"metadata": {"name": "ns", "labels": {"b": "2", "a": "1"}}});
    let labels = Labels::new([("b".into(), "2".into()), ("a".into(), "1".into())]);
    let change =
        Change::Applied(Name::new("", "ns"), cluster::Namespace { labels, terminating: false });
    assert_eq!(event::<Namespace>(namespace), Event::Namespace(change));
}

/// Parses the rare fields of a Service with this `spec`, `status` and annotations.
fn extra(annotations: Value, spec: Value, status: Value) -> (Option<Extra>, Vec<String>) {
    let object = json!({
        "metadata": {"namespace": "ns", "name": "web", "annotations": annotations},
        "spec": spec, "status": status,
    });
    let service: ServiceObject = serde_json::from_value(object).unwrap();
    let (event, issues) = read(&service, service.name());
    let Event::Service(Change::Applied(_, record)) = event else { panic!("no Service") };
    (record.extra.map(|extra| *extra), issues.iter().map(ToString::to_string).collect())
}

#[test]
fn plain_services_have_nothing_extra() {
    for spec in [
        json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
        json!({"clusterIP": "10.96.0.1", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}),
        // What is left over of another type.
        json!({"clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
               "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Cluster"}),
    ] {
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        assert_eq!(extra(json!({}), spec.clone(), status), (None, vec![]), "{spec}");
    }
}

#[test]
fn every_field_of_a_service_is_kept() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000, "externalIPs": ["192.0.2.2", "192.0.2.1", "192.0.2.1"],
        "loadBalancerSourceRanges": ["10.1.2.3/8", " 2001:db8::/32"], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}},
    });
    let annotations = json!({
        "lb-agent.io/algorithm": "maglev", "lb-agent.io/weights": "web-0=100, 10.244.1.1=1,",
        "lb-agent.io/path": "stack",
    });
    let ingress = json!([
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"},
        {"ip": "203.0.113.3", "ipMode": "Proxy"}, {"hostname": "lb.example"},
    ]);
    let want = Extra {
        external_policy: TrafficPolicy::Local,
        lb_ips: [addr("203.0.113.1"), addr("203.0.113.2")].into(),
        proxied: true,
        external_ips: [addr("192.0.2.1"), addr("192.0.2.2")].into(),
        source_ranges: Some(["10.0.0.0/8", "2001:db8::/32"].map(|p| p.parse().unwrap()).into()),
        affinity_secs: NonZeroU32::new(86_400),
        health_port: NonZeroU16::new(31_000),
        algorithm: Algorithm::Maglev,
        by_stack: true,
        weights: [(Weighted::Addr(addr("10.244.1.1")), 1), (Weighted::Pod("web-0".into()), 100)]
            .into(),
    };
    let status = json!({"loadBalancer": {"ingress": ingress}});
    assert_eq!(extra(annotations, spec, status), (Some(want), vec![]));
}

#[test]
fn a_path_that_is_not_known_is_an_issue_of_its_object() {
    let annotations = json!({"lb-agent.io/path": "host"});
    let want = "metadata.annotations[lb-agent.io/path]: `host` is not stack: ignored";
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let (found, issues) = extra(annotations.clone(), spec, json!({}));
    assert_eq!((found, issues), (None, vec![format!("Service ns/web: {want}")]));
    let pod = json!({"metadata": {"namespace": "ns", "name": "p", "annotations": annotations}});
    let object: PodObject = serde_json::from_value(pod).unwrap();
    let (_, issues) = read(&object, object.name());
    assert_eq!(
        issues.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("Pod ns/p: {want}")]
    );
}

#[test]
fn bad_fields_of_a_service_are_issues_of_it() {
    let cases = [
        (
            json!({"sessionAffinity": "Cookie"}),
            "spec.sessionAffinity: `Cookie` is not a session affinity: using None",
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not between 1 and 86400: using 10800",
        ),
        (
            json!({"externalTrafficPolicy": "Near"}),
            "spec.externalTrafficPolicy: `Near` is not a traffic policy: using Cluster",
        ),
        (
            json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 70000}),
            "spec.healthCheckNodePort: 70000 is not a port: ignored",
        ),
        (
            json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "all"]}),
            "spec.loadBalancerSourceRanges[1]: `all` is not a CIDR like 10.0.0.0/8: ignored",
        ),
        (
            json!({"externalIPs": ["192.0.2.300"]}),
            "spec.externalIPs[0]: `192.0.2.300` is not an IP address: ignored",
        ),
        (
            json!({"ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30080}]}),
            "spec.ports[1].nodePort: 30080 appears twice with the same protocol: ignored",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 65536}]}),
            "spec.ports[0].nodePort: 65536 is not a port: ignored",
        ),
    ];
    for (mut spec, want) in cases {
        spec["type"] = json!("LoadBalancer");
        spec["clusterIP"] = json!("10.96.0.1");
        let (_, issues) = extra(json!({}), spec, json!({}));
        assert_eq!(issues, [format!("Service ns/web: {want}")]);
    }
    let ingress = json!([{"ip": "127.0.0.1"}, {"ip": "203.0.113.1", "ipMode": "Direct"}]);
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1"});
    let (extra, issues) = extra(json!({}), spec, json!({"loadBalancer": {"ingress": ingress}}));
    assert_eq!((extra, issues.len()), (None, 2));
}

#[test]
fn hints_of_endpoints_are_kept() {
    for (hints, want) in [
        (json!(null), None),
        (json!({}), None),
        (json!({"forZones": []}), None),
        (json!({"forZones": [{"name": "a"}, {"name": "b"}]}), Some((vec!["a", "b"], vec![]))),
        (json!({"forNodes": [{"name": "n1"}]}), Some((vec![], vec!["n1"]))),
    ] {
        let object = slice(json!({"addresses": ["10.244.1.1"], "hints": hints}));
        let Event::Slice(Change::Applied(_, slice)) = event::<EndpointSlice>(object) else {
            panic!("no slice");
        };
        let all = |names: Vec<&str>| names.into_iter().map(Into::into).collect();
        let want = want.map(|(zones, nodes)| Hints { zones: all(zones), nodes: all(nodes) });
        assert_eq!(slice.endpoints.iter().next().unwrap().hints, want.as_ref());
    }
}

/// What an object with `old` addresses says is what the one with `new` ones does.
fn alike<K: Watched>(object: impl Fn(&str, &str, &str) -> Value) {
    let old = event::<K>(object("010.096.000.010", "010.244.001.003/032", "fd00::00010"));
    let new = event::<K>(object("10.96.0.10", "10.244.1.3/32", "fd00::10"));
    assert_eq!(format!("{old:?}"), format!("{new:?}"));
    assert!(format!("{new:?}").contains("10.96.0.10") || format!("{new:?}").contains("10.244.1.3"));
}

#[test]
fn old_notations_of_addresses_are_read_in_every_field() {
    alike::<ServiceObject>(|ip, range, v6| {
        json!({
            "metadata": {"namespace": "ns", "name": "web"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": ip, "clusterIPs": [ip, v6],
                "externalIPs": [ip, v6], "loadBalancerSourceRanges": [range],
                "ports": [{"port": 80}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": ip}]}},
        })
    });
    alike::<EndpointSlice>(|ip, _, _| slice(json!({"addresses": [ip]})));
    alike::<PodObject>(|ip, _, v6| {
        json!({
            "metadata": {"namespace": "ns", "name": "p", "uid": "u"}, "spec": {"nodeName": "n"},
            "status": {"podIP": ip, "podIPs": [{"ip": ip}, {"ip": v6}]},
        })
    });
    alike::<Node>(|ip, range, _| {
        json!({
            "metadata": {"name": "n"}, "spec": {"podCIDR": range, "podCIDRs": [range]},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
        })
    });
    alike::<ServiceCidrObject>(
        |_, range, _| json!({"metadata": {"name": "c"}, "spec": {"cidrs": [range]}}),
    );
    // Our own annotations are read strictly.
    let pod = json!({
        "metadata": {
            "namespace": "ns", "name": "p", "uid": "u",
            "annotations": {"lb-agent.io/allowed-sources": "010.8.0.0/24"},
        },
        "spec": {"nodeName": "n"}, "status": {},
    });
    assert_eq!(issues::<PodObject>(pod).len(), 1);
}

/// The API server accepts a condition without a time, and one object that cannot be read stops the watch of all.
#[test]
fn conditions_without_a_time_cost_no_object() {
    fn check<K: Watched>(mut object: Value) {
        let want = event::<K>(object.clone());
        let condition = json!({"type": "A", "status": "True", "lastTransitionTime": null});
        object["status"]["conditions"] = json!([condition, {"type": "B", "status": "True"}]);
        assert_eq!(format!("{:?}", event::<K>(object)), format!("{want:?}"));
    }
    let meta = json!({"namespace": "ns", "name": "web", "uid": "u"});
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    check::<ServiceObject>(json!({"metadata": meta, "spec": spec, "status": status}));
    let spec = json!({"cidrs": ["10.96.0.0/16"]});
    check::<ServiceCidrObject>(json!({"metadata": {"name": "c"}, "spec": spec}));
    let status = json!({"podIP": "10.244.1.1"});
    check::<PodObject>(json!({"metadata": meta, "spec": {"nodeName": "n"}, "status": status}));
    let status = json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]});
    check::<Node>(json!({"metadata": {"name": "n"}, "status": status}));
    check::<Namespace>(json!({"metadata": {"name": "ns"}}));
}

#[test]
fn each_kind_has_its_own_counters() {
    let counters = Counters::shared();
    for (i, kind) in (1..).zip(Kind::ALL) {
        (0..i).for_each(|_| counters.of(kind).count_restart());
    }
    let counts = Kind::ALL.map(|kind| counters.of(kind).restarts());
    assert_eq!(counts.to_vec(), (1..=counts.len() as u64).collect::<Vec<_>>());
}
