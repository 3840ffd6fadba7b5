//! An API server of one cluster that changes all the time: streaming lists of a few objects, which come again every half second,
//! changed; it accepts Events.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// Time between two changes of an object.
const CHANGE: Duration = Duration::from_millis(500);
/// Where a Service is.
const SERVICES: &str = "/api/v1/namespaces/default/services/";
/// Changes that a watch sends.
const CHANGES: usize = 8;
/// Versions of objects.
static ROUND: AtomicU64 = AtomicU64::new(6);
/// Which resource has which kind.
const KINDS: [(&str, &str, &str); 7] = [
    ("/api/v1/services", "v1", "Service"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("/api/v1/pods", "v1", "Pod"),
    ("/api/v1/namespaces", "v1", "Namespace"),
    ("/api/v1/nodes", "v1", "Node"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
    ("/apis/networking.k8s.io/v1/networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
];

/// Starts the server in this thread's network namespace; it ends with the process.
pub(crate) fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(|| answer(stream.unwrap()));
        }
    });
    address
}

/// Answers requests until the client goes. A watch is the last one.
fn answer(mut stream: TcpStream) {
    while let Some((line, body)) = request(&mut stream) {
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (code, body) = match method {
            "POST" | "PATCH" => (201, body),
            _ if path.starts_with(SERVICES) => {
                // An Event names the object by its UID.
                let name = path.trim_start_matches(SERVICES);
                let metadata = json!({"name": name, "namespace": "default", "uid": name});
                let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                    "metadata": metadata});
                (200, object.to_string())
            }
            _ if path == "/version" => (200, r#"{"major": "1", "minor": "36"}"#.to_owned()),
            _ => match KINDS.iter().find(|(known, ..)| *known == path) {
                Some((_, version, kind)) if query.contains("watch=true") => {
                    let initial = query.contains("sendInitialEvents=true");
                    return watch(&mut stream, (version, kind), initial);
                }
                _ => {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "message": "no", "reason": "NotFound", "code": 404});
                    (404, status.to_string())
                }
            },
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n"
        );
        if stream.write_all(format!("{head}\r\n{body}").as_bytes()).is_err() {
            return;
        }
    }
}

/// Returns the first line of a request, and its body; `None` if the client is gone.
fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Some((text.lines().next()?.to_owned(), body.to_owned()));
            }
        }
        match stream.read(&mut chunk) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return None,
        }
    }
}

/// Sends the list if it is wanted, and then changes. The client begins again after some.
fn watch(stream: &mut TcpStream, (version, kind): (&str, &str), initial: bool) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
    let mut text = head.to_owned();
    if initial {
        for object in objects(kind, 4) {
            text += &format!("{}\n", json!({"type": "ADDED", "object": object}));
        }
        let bookmark = json!({"type": "BOOKMARK", "object": {"apiVersion": version, "kind": kind,
            "metadata": {"resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "true"}}}});
        text += &format!("{bookmark}\n");
    }
    for _ in 0..CHANGES {
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
        thread::sleep(CHANGE);
        let round = ROUND.fetch_add(1, Relaxed);
        let changed = objects(kind, round).into_iter();
        let changed = changed.map(|object| json!({"type": "MODIFIED", "object": object}));
        text = changed.map(|event| format!("{event}\n")).collect();
    }
}

/// The objects of a kind, as they are in a round.
fn objects(kind: &str, round: u64) -> Vec<Value> {
    let port = 8080 + round % 2;
    let mut objects = match kind {
        "Service" => {
            let service = |name: &str, ip: &str, annotations: Value| {
                json!({"metadata": {"name": name, "annotations": annotations}, "spec": {
                    "clusterIP": ip, "clusterIPs": [ip], "selector": {"app": "web"}, "type": "ClusterIP",
                    "ports": [{"name": "http", "port": port, "targetPort": 8080, "protocol": "TCP"}]}})
            };
            // A value that cannot be read, of another Service now and then: each gets an Event.
            let unreadable = json!({"lb-agent.io/weights": "heavy"});
            let bad = service(&format!("bad{}", round / 128), "10.96.0.2", unreadable);
            vec![service("web", "10.96.0.1", json!({})), bad]
        }
        "EndpointSlice" => {
            let trigger = jiff::Timestamp::now().to_string();
            vec![
                json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
                    "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
                "endpoints": [{"addresses": ["10.9.0.2"], "nodeName": "n1", "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-1"}}]}),
            ]
        }
        "Pod" => vec![
            json!({"metadata": {"name": "web-1", "labels": {"app": "web", "round": round.to_string()}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "podIP": "10.9.0.2", "podIPs": [{"ip": "10.9.0.2"}],
                "conditions": [{"type": "Ready", "status": "True"}]}}),
        ],
        "NetworkPolicy" => vec![json!({"metadata": {"name": "web"}, "spec": {
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": port}]}]}})],
        "Namespace" => vec![json!({"metadata": {"name": "default"}})],
        "Node" => vec![json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.9.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}})],
        "ServiceCIDR" => {
            vec![json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}})]
        }
        _ => Vec::new(),
    };
    let (_, version, _) = KINDS.iter().find(|(_, _, known)| *known == kind).unwrap();
    for object in &mut objects {
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind);
        object["metadata"]["resourceVersion"] = json!(round.to_string());
        if !matches!(kind, "Namespace" | "Node" | "ServiceCIDR") {
            object["metadata"]["namespace"] = json!("default");
        }
    }
    objects
}
