//! `lbctl` beside real agents, real policies and real sockets: what it says of a flow is what happens to it.

mod law;
mod worlds;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use testbed::{
    Agent, Shape,
    agent::as_in_container,
    client::{Transport, ask},
    manifest::{node_of, pod_of},
    wait,
};

use crate::stage::{SOON, Stage, port_80, service};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// No answer within this time is none.
pub(crate) const DENIED: Duration = Duration::from_millis(400);
/// The name table, with its examples of drops, is written every ten seconds at least.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const ONLY_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-friends, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {friend: \"yes\"}}}]
    ports: [{port: 8080}]
";

/// lbctl beside this agent, as in its container.
pub(crate) fn lbctl(agent: &Agent, args: &[&str]) -> Command {
    prepared(as_in_container(env!("CARGO_BIN_EXE_lbctl")), agent, args)
}

/// lbctl as root on this node.
fn node_lbctl(agent: &Agent, args: &[&str]) -> Command {
    prepared(Command::new(env!("CARGO_BIN_EXE_lbctl")), agent, args)
}

fn prepared(mut command: Command, agent: &Agent, args: &[&str]) -> Command {
    command
        .args(args)
        .arg("--pin-dir")
        .arg(&agent.pin_dir)
        .arg("--state-dir")
        .arg(&agent.state_dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end: exit status and what it printed.
pub(crate) fn run(agent: &Agent, args: &[&str]) -> (Option<i32>, String) {
    let child = agent.node.netns.spawn(&mut lbctl(agent, args)).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Runs it until it ends so, and says all of these.
fn expect(stage: &Stage, agent: &Agent, args: &[&str], status: i32, words: &[&str]) {
    let what = format!("lbctl {args:?}: {status} {words:?}");
    let outcome = wait::until(&what, PATIENCE, || {
        let (code, text) = run(agent, args);
        anyhow::ensure!(code == Some(status), "{code:?}: {text}");
        let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
        anyhow::ensure!(missing.is_empty(), "no {missing:?} in: {text}");
        Ok(())
    });
    if let Err(err) = outcome {
        panic!("{err:#}\n{}", stage.logs());
    }
}

#[test]
fn lbctl_says_what_happens_to_flows_and_what_did_it() {
    let mut stage = Stage::new("explain", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let web = stage.server(&a, "web");
    let [friend, stranger] = ["friend", "stranger"].map(|name| a.pod(name).unwrap());
    let far = b.pod("far").unwrap();
    stage.dir.write("nodes", &[&a, &b].map(node_of)).unwrap();
    let objects = [
        service("web", WEB),
        pod_of(&web).label("app", "web"),
        pod_of(&friend).label("friend", "yes"),
        pod_of(&far).label("friend", "yes"),
        pod_of(&stranger).label("friend", "no"),
    ];
    stage.dir.write("cast", &objects).unwrap();
    for client in [&friend, &stranger, &far] {
        stage.wait_for(&client.netns, port_80(WEB[0]), &["web"]);
    }
    let [here, there] = &stage.agents;
    let mode = std::fs::metadata(here.state_dir.join("agent.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Without policies: it depends on who listens.
    let listens = ["DELIVERED", "no policy selects default/web", "a process listens on"];
    expect(&stage, here, &["explain", "stranger", "svc:web:80"], 0, &listens);
    let refuses = ["STOPPED", "BACKEND_REFUSES", "8080"];
    expect(&stage, here, &["explain", "stranger", "web:9"], 3, &refuses);
    let missing = ["default/stringer: no such object in the cluster; similar: default/stranger"];
    expect(&stage, here, &["explain", "stringer", "web:9"], 1, &missing);
    let which = ["default/web: no port given; it has 80/TCP, 80/UDP, 81/TCP"];
    expect(&stage, here, &["explain", "stranger", "svc:web"], 1, &which);

    stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    let stopped =
        ["STOPPED", "STOP  ingress policy", "wants friend=yes", "friend=no", "DENY_INGRESS_PEER"];
    expect(&stage, here, &["explain", "stranger", "svc:web:80"], 3, &stopped);
    let flags = ["policy", "explain", "--from", "stranger", "--to", "web", "--port", "8080/tcp"];
    expect(&stage, here, &flags, 3, &stopped);
    let allowed = ["DELIVERED", "allowed by default/only-friends ingress[0]"];
    expect(&stage, here, &["explain", "friend", "svc:web:80"], 0, &allowed);
    // The agent of the client's node judges for the server's, by its records, and the other way around.
    let record = format!("(by record of {})", a.name);
    let [yes, no] = [&allowed[..], &stopped].map(|words| [words, &[&*record]].concat());
    expect(&stage, there, &["explain", "far", "svc:web:80"], 0, &yes);
    expect(&stage, there, &["explain", "stranger", "svc:web:80"], 3, &no);
    expect(&stage, here, &["explain", "far", "svc:web:80"], 0, &allowed);
    expect(&stage, here, &["policy", "list"], 0, &["only-friends", "enforced"]);
    expect(
        &stage,
        here,
        &["policy", "show", "default/only-friends"],
        0,
        &["ingress[0].from[0]", "friend"],
    );
    expect(&stage, here, &["pods", "web"], 0, &["isolated(1)", "open"]);

    // What it says is what happens to them, and flows and drops name the policy.
    let addr = SocketAddr::new(web.v4.into(), 8080);
    let asked = |pod: &testbed::Pod| pod.netns.enter(|| ask(Transport::Tcp, addr, DENIED)).unwrap();
    assert!(asked(&friend).is_ok());
    assert!(asked(&stranger).is_err());
    let denied = [
        "dropped",
        "default/stranger:",
        "default/web:8080",
        "POLICY_ISOLATED",
        "default/only-friends default-deny",
    ];
    expect(&stage, here, &["flows"], 0, &denied);
    expect(
        &stage,
        here,
        &["flows", "--from", "stranger", "--policy", "default/only-friends"],
        0,
        &denied,
    );
    expect(&stage, here, &["drops"], 0, &["POLICY_ISOLATED", "default/only-friends default-deny"]);
    let (_, none) = run(here, &["flows", "--from", "friend"]);
    assert!(!none.contains("default/friend:"), "{none}");

    // Allowed flows are reported while a client follows them.
    let args = ["flows", "-f", "--verdict", "allowed", "-o", "json"];
    let mut follow = a.netns.spawn(&mut lbctl(here, &args)).unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let outcome = wait::until("the programs report allowed flows", SOON, || {
        let (_, seen) = run(here, &["flows", "--verdict", "allowed"]);
        anyhow::ensure!(asked(&friend).is_ok());
        anyhow::ensure!(seen.contains("default/friend:"), "{seen}");
        Ok(())
    });
    if let Err(err) = outcome {
        panic!("{err:#}\n{}", stage.logs());
    }
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("\"verdict\":\"allowed\"") && line.contains("default/friend"), "{line}");
    assert!(line.contains("\"rule\":\"ingress[0]\""), "{line}");
    follow.kill().unwrap();
    follow.wait().unwrap();

    // A dead agent takes the reasons with it, not the verdict.
    let [here, _] = &mut stage.agents;
    here.kill().unwrap();
    let here = &stage.agents[0];
    let alone = ["STOPPED", "DEFAULT_DENY", "default/only-friends", "no agent answers"];
    expect(&stage, here, &["explain", "stranger", "svc:web:80"], 3, &alone);
    expect(&stage, here, &["flows"], 1, &["no agent answers at"]);
}

/// The kernel is asked for the sockets of Pods whose network namespaces lbctl may not enter.
#[test]
fn lbctl_knows_who_listens_without_entering_the_pod() {
    let mut stage = Stage::new("listens", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    let client = a.pod("client").unwrap();
    stage.dir.write("nodes", &[node_of(&a)]).unwrap();
    let objects = [service("web", WEB), pod_of(&web).label("app", "web"), pod_of(&client)];
    stage.dir.write("cast", &objects).unwrap();
    stage.wait_for(&client.netns, port_80(WEB[0]), &["web"]);
    let here = &stage.agents[0];
    let sockets = web.netns.enter(|| {
        let tcp = ["127.0.0.1:7001", "[::1]:7002", "[::]:7003"];
        let udp = ["127.0.0.1:7001", "0.0.0.0:7004"];
        let tcp = tcp.map(|at| std::net::TcpListener::bind(at).unwrap());
        // What a client uses does not serve.
        let connected = std::net::UdpSocket::bind("0.0.0.0:7005").unwrap();
        connected.connect("127.0.0.1:9").unwrap();
        (tcp, udp.map(|at| std::net::UdpSocket::bind(at).unwrap()), connected)
    });
    let v6 = |port: u16, protocol: &str| format!("[{}]:{port}/{protocol}", web.v6);
    let (open, refused) = ("a process listens on", "BACKEND_REFUSES");
    let loopback = "LISTENS_ON_LOOPBACK";
    for (to, status, word) in [
        ("svc:web:80".to_owned(), 0, open),
        ("web.default.svc.cluster.local:tcp-80".to_owned(), 0, open),
        ("web:8080/tcp".to_owned(), 0, open),
        (v6(8080, "tcp"), 0, open),
        ("web:9/tcp".to_owned(), 3, refused),
        ("web:9/udp".to_owned(), 3, refused),
        (v6(9, "tcp"), 3, refused),
        ("web:7001/tcp".to_owned(), 3, loopback),
        ("web:7001/udp".to_owned(), 3, loopback),
        (v6(7002, "tcp"), 3, loopback),
        ("web:7003/tcp".to_owned(), 0, open),
        (v6(7003, "tcp"), 0, open),
        ("web:7004/udp".to_owned(), 0, open),
        (v6(7004, "udp"), 3, refused),
        ("web:7004/tcp".to_owned(), 3, refused),
        ("web:7005/udp".to_owned(), 3, refused),
    ] {
        expect(&stage, here, &["explain", "client", &to], status, &[word]);
    }
    expect(&stage, here, &["explain", "client", "web:9/tcp"], 3, &["it listens on", "8080"]);
    drop(sockets);
    expect(&stage, here, &["explain", "client", "web:7003/tcp"], 3, &[refused]);
}
