//! The story, step by step. Each step says what it shows and fails when it shows anything else.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use testbed::{
    Netns, Pod,
    client::{Connection, Transport, ask},
    load::{Load, Report, Running},
    manifest::{Object, policy},
    wait,
};

use super::{
    paper::{Paper, typed},
    scene::{DNS, IPERF, Scene, WEB},
};

/// How long an expected change may take.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// Connections that are open while a policy is tried.
const OPEN: usize = 6;

/// Tells it all.
///
/// # Errors
/// At the first step that shows anything but what it says.
pub(crate) fn tell(scene: &mut Scene) -> Result<()> {
    let mut paper = Paper::default();
    introduce(scene, &mut paper)?;
    spread(scene, &mut paper)?;
    families_and_udp(scene, &mut paper)?;
    host_process(scene, &mut paper)?;
    leave_under_load(scene, &mut paper)?;
    agent_dies(scene, &mut paper)?;
    without_a_backend(scene, &mut paper)?;
    policies(scene, &mut paper)?;
    throughput(scene, &mut paper)?;
    operators_view(scene, &mut paper)
}

fn introduce(scene: &mut Scene, paper: &mut Paper) -> Result<()> {
    paper.step("Two nodes with three Pods each, all in network namespaces; one agent per node");
    for node in &scene.nodes {
        let pods = [&scene.client].into_iter().chain(&scene.web).chain(&scene.dns);
        let pods: Vec<String> = pods
            .filter(|pod| pod.node == node.name)
            .map(|pod| format!("{} {}", pod.name, pod.v4))
            .collect();
        paper.say(&format!("node {} {}: {}", node.name, node.v4, pods.join(", ")));
    }
    for agent in &mut scene.agents {
        let took = agent.start()?;
        let name = &agent.node.name;
        paper.say(&format!("agent of node {name} is healthy after {} ms", took.as_millis()));
    }
    scene.announce_dns()?;
    scene.announce_web(&everyone(scene))?;
    let written = Instant::now();
    answered(&scene.client.netns, Transport::Tcp, at(WEB[0], 80)?, "")?;
    let took = written.elapsed().as_millis();
    paper.say(&format!(
        "Services web ({}, {}) and dns ({}, {}) created from manifests; first answer after {took} ms",
        WEB[0], WEB[1], DNS[0], DNS[1]
    ));
    for netns in namespaces(scene) {
        for (ips, port, transport) in [(WEB, 80, Transport::Tcp), (DNS, 53, Transport::Udp)] {
            for ip in ips {
                answered(netns, transport, at(ip, port)?, "")?;
            }
        }
    }
    Ok(())
}

fn spread(scene: &Scene, paper: &mut Paper) -> Result<()> {
    paper.step("A ClusterIP distributes connections over its backends on both nodes");
    let report = run(&scene.client.netns, Transport::Tcp, at(WEB[0], 80)?)?;
    paper.report(&format!("Pod client → {}:80, TCP", WEB[0]), &report);
    want_all(&report, &["web-1", "web-2", "web-3"])
}

fn families_and_udp(scene: &Scene, paper: &mut Paper) -> Result<()> {
    paper.step("IPv6 and UDP take the same path");
    let report = run(&scene.client.netns, Transport::Tcp, at(WEB[1], 80)?)?;
    paper.report(&format!("Pod client → [{}]:80, TCP", WEB[1]), &report);
    want_all(&report, &["web-1", "web-2", "web-3"])?;
    for ip in DNS {
        let report = run(&scene.client.netns, Transport::Udp, at(ip, 53)?)?;
        paper.report(&format!("Pod client → {}, UDP", at(ip, 53)?), &report);
        want_all(&report, &["dns-1", "dns-2"])?;
    }
    Ok(())
}

fn host_process(scene: &Scene, paper: &mut Paper) -> Result<()> {
    paper.step("A process of the node itself: translated once, when it connects");
    let node = &scene.nodes[0].netns;
    let report = run(node, Transport::Tcp, at(WEB[0], 80)?)?;
    paper.report(&format!("node a → {}:80, TCP", WEB[0]), &report);
    want_all(&report, &["web-1", "web-2", "web-3"])?;
    let report = run(node, Transport::Udp, at(DNS[0], 53)?)?;
    paper.report(&format!("node a → {}:53, UDP", DNS[0]), &report);
    want_all(&report, &["dns-1", "dns-2"])
}

fn leave_under_load(scene: &Scene, paper: &mut Paper) -> Result<()> {
    paper.step("A backend is removed and added again under load: no request fails");
    let load = start(&scene.client.netns, 400)?;
    std::thread::sleep(Duration::from_secs(2));
    scene.announce_web(&[&scene.web[0], &scene.web[2]])?;
    std::thread::sleep(Duration::from_secs(2));
    let without = run(&scene.client.netns, Transport::Tcp, at(WEB[0], 80)?)?;
    scene.announce_web(&everyone(scene))?;
    std::thread::sleep(Duration::from_secs(1));
    let report = load.stop()?;
    paper.report(
        "Pod client → web at 400 requests a second; web-2 is removed from 2 s to 5 s",
        &report,
    );
    want_all(&report, &["web-1", "web-2", "web-3"])?;
    paper.report("3 s after the start", &without);
    want_all(&without, &["web-1", "web-3"])
}

fn agent_dies(scene: &mut Scene, paper: &mut Paper) -> Result<()> {
    paper.step("The agent is killed under load: the kernel continues, and the restart only writes differences");
    let load = start(&scene.client.netns, 400)?;
    std::thread::sleep(Duration::from_secs(1));
    let agent = &mut scene.agents[0];
    agent.kill()?;
    paper.say("sent SIGKILL to the agent of node a; waiting one second without it …");
    std::thread::sleep(Duration::from_secs(1));
    let took = agent.start()?;
    paper.say(&format!("started again, healthy after {} ms", took.as_millis()));
    std::thread::sleep(Duration::from_secs(1));
    let report = load.stop()?;
    paper.report("Pod client → web at 400 requests a second", &report);
    want_all(&report, &["web-1", "web-2", "web-3"])
}

fn without_a_backend(scene: &Scene, paper: &mut Paper) -> Result<()> {
    paper.step("A Service without endpoints refuses connections at once, and answers when the endpoints are back");
    scene.announce_web(&[])?;
    let addr = at(WEB[0], 80)?;
    for (who, netns) in ["Pod client", "node a"].into_iter().zip(namespaces(scene)) {
        wait::until("refusal", SOON, || {
            match netns.enter(|| ask(Transport::Tcp, addr, SOON))? {
                Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                other => bail!("{other:?}"),
            }
        })?;
        let start = Instant::now();
        let answer = netns.enter(|| ask(Transport::Tcp, addr, SOON))?;
        let took = start.elapsed();
        let Err(err) = answer else { bail!("answered without endpoints: {answer:?}") };
        ensure!(took < Duration::from_millis(500), "refused only after {took:?}");
        paper.say(&format!("{who} → {addr}: {err} after {} µs", took.as_micros()));
    }
    scene.announce_web(&everyone(scene))?;
    for netns in namespaces(scene) {
        answered(netns, Transport::Tcp, addr, "")?;
    }
    Ok(())
}

/// Default deny, the allow, and why: on one screen.
fn policies(scene: &Scene, paper: &mut Paper) -> Result<()> {
    paper.step("A default-deny policy for web, then an allowed client; lbctl explains both");
    scene.announce_client()?;
    let subject = json!({"matchLabels": {"app": "web"}});
    let deny = policy("default-deny", json!({"podSelector": subject}));
    let client = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
    let rule = json!([{"from": client, "ports": [{"port": 80}]}]);
    let allow = policy("allow-client", json!({"podSelector": subject, "ingress": rule}));
    let (addr, limit) = (at(WEB[0], 80)?, Duration::from_millis(300));
    let asked = |limit| scene.client.netns.enter(|| ask(Transport::Tcp, addr, limit));
    try_first(scene, paper, &deny)?;
    scene.manifests.write("policies", std::slice::from_ref(&deny))?;
    wait::until("silence under a default deny", SOON, || match asked(limit)? {
        Err(err) if err.kind() != io::ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("{other:?}"),
    })?;
    paper.say(&format!("NetworkPolicy default-deny: Pod client → {addr}: no answer"));
    explain(scene, paper, "STOPPED", "default-deny isolates")?;
    scene.manifests.write("policies", &[deny, allow])?;
    answered(&scene.client.netns, Transport::Tcp, addr, "")?;
    let answer = asked(SOON)?.context("an allowed request")?;
    paper.say(&format!("and NetworkPolicy allow-client: Pod client → {addr}: {answer} answers"));
    explain(scene, paper, "DELIVERED", "allowed by default/allow-client")?;
    let opened = opened(scene)?;
    let suggested = scene.agents[0].lbctl(&["policy", "suggest", "default"])?;
    drop(opened);
    ensure!(suggested.contains("name: suggested-web"), "{suggested}");
    let (first, _) = suggested.split_once("\n---").unwrap_or((&suggested, ""));
    paper.show("lbctl policy suggest default   # the first of them", first);
    scene.manifests.remove("policies")
}

/// What the policy would do, before it is applied: to connections that are open, since one that ended leaves conntrack at once.
fn try_first(scene: &Scene, paper: &mut Paper, policy: &Object) -> Result<()> {
    let agent = &scene.agents[0];
    let file = agent.state_dir.join("default-deny.yaml");
    fs::write(&file, policy.to_yaml()).with_context(|| file.display().to_string())?;
    let name = file.display().to_string();
    let mut opened = opened(scene)?;
    let (outcome, _) = wait::until("a trial that finds the client's flows", SOON, || {
        let outcome = agent.lbctl(&["policy", "try", "-f", &name])?;
        // Those to a web Pod of the other node are judged there.
        let denied = !outcome.contains(" 0 would be denied") && outcome.contains("default/client");
        ensure!(denied, "{outcome}");
        Ok(outcome)
    })?;
    paper.say(&format!("the client keeps {OPEN} connections open; would they survive?"));
    paper.show("lbctl policy try -f default-deny.yaml", &outcome);
    for connection in &mut opened {
        connection.ask().context("a connection that a trial must not touch")?;
    }
    Ok(())
}

/// Connections of the client to web. What has ended, conntrack does not have.
fn opened(scene: &Scene) -> Result<Vec<Connection>> {
    let addr = at(WEB[0], 80)?;
    let open = || scene.client.netns.enter(|| Connection::open(addr, SOON))?.context("connect");
    (0..OPEN).map(|_| open()).collect()
}

fn explain(scene: &Scene, paper: &mut Paper, verdict: &str, because: &str) -> Result<()> {
    let words = "policy explain --from client --to web-1 --port 80/tcp";
    // The names of policies follow them within a second.
    let (outcome, _) = wait::until("an explanation with names", SOON, || {
        let outcome = scene.agents[0].lbctl(&words.split(' ').collect::<Vec<_>>())?;
        ensure!(outcome.starts_with(verdict) && outcome.contains(because), "{outcome}");
        Ok(outcome)
    })?;
    paper.show(&format!("lbctl {words}"), &outcome);
    Ok(())
}

fn throughput(scene: &Scene, paper: &mut Paper) -> Result<()> {
    paper.step("iperf3 from the Pod client, directly to a Pod and through the ClusterIP");
    let one = &scene.web[2];
    scene.announce_web(&[one])?;
    answered(&scene.client.netns, Transport::Tcp, at(WEB[0], 80)?, &one.name)?;
    for (what, ip) in
        [("directly to web-3", one.v4.to_string()), ("through the ClusterIP", WEB[0].to_owned())]
    {
        let gbit = iperf(&scene.client.netns, &ip)?;
        paper.say(&format!("{what:22} {ip:12} {gbit:6.2} Gbit/s"));
    }
    paper.say("(one run each, not pinned to CPUs: use `cargo xtask bench` for real measurements)");
    scene.announce_web(&everyone(scene))
}

fn operators_view(scene: &Scene, paper: &mut Paper) -> Result<()> {
    paper.step("What the operator sees on node a: lbctl reads the pinned maps");
    // The last step brought two backends back: their Service and its names are there in a moment.
    wait::until("three backends in lbctl services", SOON, || {
        let services = scene.agents[0].lbctl(&["services"])?;
        ensure!(services.contains(" 3/3 "), "{services}");
        Ok(())
    })?;
    for command in ["status", "services", "backends", "drops"] {
        paper.show(&format!("lbctl {command}"), &scene.agents[0].lbctl(&[command])?);
    }
    Ok(())
}

fn everyone(scene: &Scene) -> Vec<&Pod> {
    scene.web.iter().collect()
}

fn namespaces(scene: &Scene) -> [&Netns; 2] {
    [&scene.client.netns, &scene.nodes[0].netns]
}

pub(super) fn at(ip: &str, port: u16) -> Result<SocketAddr> {
    let ip: IpAddr = ip.parse().with_context(|| format!("address {ip}"))?;
    Ok((ip, port).into())
}

/// Waits for an answer; from `name`, if that is not empty.
pub(super) fn answered(
    netns: &Netns,
    transport: Transport,
    addr: SocketAddr,
    name: &str,
) -> Result<()> {
    wait::until(&format!("answer of {addr} to {netns}"), SOON, || {
        // A question from before the Service was there is lost: not much patience for it.
        let answer = netns.enter(|| ask(transport, addr, Duration::from_millis(20)))??;
        ensure!(name.is_empty() || answer == name, "answered by {answer}");
        Ok(())
    })
    .map(drop)
}

/// One second of 300 new flows.
fn run(netns: &Netns, transport: Transport, addr: SocketAddr) -> Result<Report> {
    let duration = Duration::from_secs(1);
    Load { rate: 300, duration, ..Load::new(transport, addr) }.start(netns)?.wait()
}

fn start(netns: &Netns, rate: u32) -> Result<Running> {
    Load { rate, ..Load::new(Transport::Tcp, at(WEB[0], 80)?) }.start(netns)
}

/// Exactly these answered, and no request failed.
fn want_all(report: &Report, names: &[&str]) -> Result<()> {
    let answered: Vec<&str> = report.by_backend.keys().map(String::as_str).collect();
    ensure!(report.failed == 0, "{} requests failed: {:?}", report.failed, report.failures);
    ensure!(answered == names, "answered by {answered:?}, not by {names:?}");
    Ok(())
}

fn iperf(netns: &Netns, ip: &str) -> Result<f64> {
    let mut command = Command::new("iperf3");
    command.args(["--client", ip, "--port", &IPERF.to_string(), "--time", "3", "--json"]);
    let shown = typed(&command);
    let output: Value = serde_json::from_str(&netns.output(&mut command)?).context("iperf3")?;
    let bits = output.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.with_context(|| format!("{shown}: no result"))? / 1e9)
}
