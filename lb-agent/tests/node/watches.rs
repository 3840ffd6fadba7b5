//! Which Pods the agent watches: those of its node, then all when a policy needs them. The API server here has a few lines.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lb_common::addr::Addr;
use lb_common::endpoint::IdentFlags;
use lb_core::admin::context::{FlowQuery, Party};
use lb_core::names::{self, State};
use lb_core::plan::Actual;
use lb_ctl::admin::Client;
use lb_kernel::bpf::store::Maps;
use serde_json::{Value, json};

use crate::node::{Node, in_node};

/// Plural, API version, kind.
const KINDS: [(&str, &str, &str); 8] = [
    ("services", "v1", "Service"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("pods", "v1", "Pod"),
    ("namespaces", "v1", "Namespace"),
    ("nodes", "v1", "Node"),
    ("servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
    ("networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
    ("clusternetworkpolicies", "policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
];

/// A Pod of this node and one of another.
const OWN: (&str, &str, &str) = ("web", "n1", "10.9.0.2");
const OTHER: (&str, &str, &str) = ("client", "n2", "10.9.2.7");

/// Another of this node, which starts later.
const LATE: (&str, &str, &str) = ("late", "n1", "10.9.0.3");

/// What the server was asked for Pods, and what it does.
#[derive(Default)]
struct Told {
    asked: Mutex<Vec<String>>,
    /// Whether there is a policy.
    policy: AtomicBool,
    /// Whether the Pods of all nodes must not be listed.
    refuses: AtomicBool,
    /// Whether the late Pod has started.
    late: AtomicBool,
}

fn node_object(name: &str, number: u8) -> Value {
    json!({
        "metadata": {"name": name, "resourceVersion": "4"},
        "spec": {"podCIDRs": [format!("10.9.{}.0/24", if number == 1 { 0 } else { number })]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}]},
    })
}

fn pod((name, node, ip): (&str, &str, &str)) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "4", "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

/// To the Pod of this node, from the other one.
fn policy() -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "from-client", "resourceVersion": "6"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        },
    })
}

fn answer(stream: TcpStream, told: &Told) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    let (mut first, mut line) = (String::new(), String::new());
    reader.read_line(&mut first).unwrap();
    while reader.read_line(&mut line).unwrap_or(0) > 2 {
        line.clear();
    }
    let target = first.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let plural = path.rsplit('/').next().unwrap_or_default();
    let head = "content-type: application/json\r\nconnection: close\r\n";
    if plural == "version" {
        let version = json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        })
        .to_string();
        let length = version.len();
        let head = format!("HTTP/1.1 200 OK\r\n{head}content-length: {length}\r\n\r\n");
        drop(stream.write_all(format!("{head}{version}").as_bytes()));
        return;
    }
    let Some((_, api_version, kind)) = KINDS.iter().find(|(known, ..)| *known == plural) else {
        drop(write!(stream, "HTTP/1.1 404 X\r\n{head}content-length: 0\r\n\r\n"));
        return;
    };
    let there = || told.policy.load(Ordering::SeqCst);
    let late = || told.late.load(Ordering::SeqCst);
    let own = query.contains("spec.nodeName%3Dn1");
    if *kind == "Pod" {
        told.asked.lock().unwrap().push(query.to_owned());
    }
    if *kind == "Pod" && !own && told.refuses.load(Ordering::SeqCst) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403});
        let status = status.to_string();
        let length = status.len();
        drop(write!(stream, "HTTP/1.1 403 X\r\n{head}content-length: {length}\r\n\r\n{status}"));
        return;
    }
    let objects = match *kind {
        "Node" => vec![node_object("n1", 1), node_object("n2", 2)],
        "Pod" if own => vec![pod(OWN)],
        "Pod" => vec![pod(OWN), pod(OTHER)],
        "NetworkPolicy" if there() => vec![policy()],
        _ => Vec::new(),
    };
    assert!(query.contains("sendInitialEvents=true"), "{target}");
    let listed = !objects.is_empty();
    let line = |how: &str, mut object: Value| {
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        format!("{}\n", json!({"type": how, "object": object}))
    };
    let end = json!({"metadata": {"resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "true"}}});
    let list: String = objects.into_iter().map(|object| line("ADDED", object)).collect();
    let text = format!("HTTP/1.1 200 OK\r\n{head}\r\n{list}{}", line("BOOKMARK", end));
    if stream.write_all(text.as_bytes()).is_err() {
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(90);
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        if *kind == "NetworkPolicy" && !listed && there() {
            drop(stream.write_all(line("ADDED", policy()).as_bytes()));
            std::thread::sleep(Duration::from_secs(90));
        }
        if own && late() {
            drop(stream.write_all(line("ADDED", pod(LATE)).as_bytes()));
            std::thread::sleep(Duration::from_secs(90));
        }
    }
}

/// Serves until the test ends.
fn serve(told: &Arc<Told>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let told = Arc::clone(told);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, told) = (stream.unwrap(), Arc::clone(&told));
            std::thread::spawn(move || answer(stream, &told));
        }
    });
    address
}

fn start(node: &Node, dir: &std::path::Path, cgroup: &std::path::Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    command.arg("run").arg("--pin-dir").arg(node.pin_dir());
    command.arg("--state-dir").arg(dir.join("state"));
    command.arg("--cache-dir").arg(dir.join("cache"));
    command.args(["--node-name", "n1", "--kubeconfig"]).arg(dir.join("kubeconfig"));
    command.arg("--cgroup").arg(cgroup);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn stop(mut child: Child) -> String {
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The directory with the agent's state, and with a kubeconfig for this server.
fn directory(node: &Node, server: SocketAddr) -> PathBuf {
    let dir = std::env::temp_dir().join(node.pin_dir().file_name().unwrap());
    fs::create_dir_all(&dir).unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    fs::write(dir.join("kubeconfig"), kubeconfig.to_string()).unwrap();
    dir
}

/// Whether an address is known as a Pod's.
fn there(actual: &Actual, ip: &str) -> bool {
    let addr = Addr::from_ip(ip.parse().unwrap());
    actual.ident.get(&addr).is_some_and(|known| known.flags.contains(IdentFlags::POD))
}

/// Waits until the maps say so.
fn wait(node: &Node, agent: &mut Option<Child>, what: &str, so: &dyn Fn(&Actual) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let actual = Maps::open(&node.pins()).map(|maps| maps.load().unwrap());
        match actual {
            Ok(actual) if so(&actual) => return,
            _ if Instant::now() < deadline => {}
            other => panic!("{what}: {other:?}\n{}", agent.take().map(stop).unwrap()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn all_pods_are_watched_when_a_policy_needs_them_and_only_then() {
    in_node(|node: &Node| {
        let told = Arc::new(Told::default());
        let server = serve(&told);
        let dir = directory(node, server);
        let cgroup = node.cgroup();
        let mut agent = Some(start(node, &dir, &cgroup));
        let of_others = || {
            let asked = told.asked.lock().unwrap();
            asked.iter().filter(|query| !query.contains("spec.nodeName%3Dn1")).count()
        };
        wait(node, &mut agent, "the Pod of this node, the range of the other node", &|actual| {
            there(actual, OWN.2) && actual.pod_ranges == ["10.9.2.0/24".parse().unwrap()].into()
        });
        assert_eq!(of_others(), 0, "{:?}", told.asked.lock().unwrap());
        let actual = Maps::open(&node.pins()).unwrap().load().unwrap();
        assert!(!there(&actual, OTHER.2) && actual.policy.epoch == 0);

        told.policy.store(true, Ordering::SeqCst);
        wait(node, &mut agent, "the policy with its Pod", &|actual| {
            assert!(actual.policy.epoch == 0 || there(actual, OTHER.2), "not without its Pod");
            actual.policy.epoch != 0 && actual.pod_ranges.is_empty()
        });
        assert_eq!(of_others(), 1);

        // The next agent begins with the Pods of this node again: nothing in force goes meanwhile.
        stop(agent.take().unwrap());
        told.asked.lock().unwrap().clear();
        agent = Some(start(node, &dir, &cgroup));
        let deadline = Instant::now() + Duration::from_secs(60);
        while of_others() == 0 {
            let actual = Maps::open(&node.pins()).unwrap().load().unwrap();
            assert!(there(&actual, OTHER.2) && actual.policy.epoch != 0);
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(told.asked.lock().unwrap().len() > 1, "first those of this node");
        std::thread::sleep(Duration::from_millis(500));
        let actual = Maps::open(&node.pins()).unwrap().load().unwrap();
        assert!(there(&actual, OTHER.2) && actual.policy.epoch != 0);
        stop(agent.take().unwrap());
        fs::remove_dir_all(&dir).unwrap();
    });
}

#[test]
fn a_policy_does_not_wait_without_limit_for_pods_that_are_not_listed() {
    in_node(|node: &Node| {
        let told = Arc::new(Told::default());
        told.refuses.store(true, Ordering::SeqCst);
        let dir = directory(node, serve(&told));
        let mut agent = Some(start(node, &dir, &node.cgroup()));
        wait(node, &mut agent, "the Pod of this node", &|actual| there(actual, OWN.2));
        let issues = || {
            let names = names::read(&dir.join("state").join(names::FILE)).unwrap();
            let of_node = names.issues.iter().filter(|issue| issue.object == "Node n1");
            of_node.map(|issue| issue.message.to_string()).collect::<Vec<_>>()
        };

        let begun = Instant::now();
        told.policy.store(true, Ordering::SeqCst);
        told.late.store(true, Ordering::SeqCst);
        let is_isolated = |actual: &Actual| actual.policy.pending_ingress != 0;
        wait(node, &mut agent, "the policy without the Pods of other nodes", &is_isolated);
        let waited = begun.elapsed();
        assert!(waited > Duration::from_secs(8), "the list may still come: {waited:?}");
        assert!(waited < Duration::from_secs(20), "{waited:?}");
        wait(node, &mut agent, "a Pod that has started meanwhile", &|actual| {
            assert!(!there(actual, OTHER.2) && !actual.pod_ranges.is_empty());
            there(actual, LATE.2)
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while issues().is_empty() {
            assert!(Instant::now() < deadline, "no issue");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(issues()[0].contains("without the Pods of other nodes"), "{:?}", issues());
        let api = || {
            let names = names::read(&dir.join("state").join(names::FILE)).unwrap();
            let of_api = names.subsystems.iter().find(|part| part.name == "api").unwrap();
            (of_api.state, of_api.detail.to_string())
        };
        let (state, detail) = api();
        assert_eq!(state, State::Degraded, "{detail}");
        assert!(detail.contains("the API server refuses Pod: no (403)"), "{detail}");
        // lbctl is told what is known, and that it is not all.
        let [src, dst] = [OWN.2, OTHER.2].map(|ip| Party::Ip(ip.parse().unwrap()));
        let wanted = FlowQuery { src, dst, protocol: 6, port: Some(80), port_name: None };
        let asked = Instant::now();
        let context = Client::new(&dir.join("state")).explain(&wanted).unwrap();
        assert!(!context.complete && context.agent, "{context:?}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());

        told.refuses.store(false, Ordering::SeqCst);
        wait(node, &mut agent, "the Pods of other nodes", &|actual| {
            assert!(is_isolated(actual));
            there(actual, OTHER.2) && actual.pod_ranges.is_empty()
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while !issues().is_empty() || api().0 != State::Ok {
            assert!(Instant::now() < deadline, "{:?} {:?}", issues(), api());
            std::thread::sleep(Duration::from_millis(50));
        }
        stop(agent.take().unwrap());
        fs::remove_dir_all(&dir).unwrap();
    });
}
