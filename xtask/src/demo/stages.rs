//! The story of `demo --trace`: what the programs do with each packet of one connection, as they log it themselves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use testbed::{
    client::{Transport, ask},
    manifest::policy,
    wait,
};

use super::{
    paper::Paper,
    scene::{Scene, WEB},
    story::{SOON, answered, at},
};

/// How each of the programs' lines begins, behind time and level.
const MARK: &str = "packet: ";

/// Tells it.
///
/// # Errors
/// When a connection comes to another end, or the programs do not log what they must have done.
pub(super) fn tell(scene: &mut Scene) -> Result<()> {
    let mut paper = Paper::default();
    paper.step("Two nodes; their agents have programs that log a line for each stage of a packet");
    for agent in &mut scene.agents {
        agent.start()?;
    }
    let far = &scene.web[2];
    scene.announce_web(&[far])?;
    scene.announce_client()?;
    let addr = at(WEB[0], 80)?;
    answered(&scene.client.netns, Transport::Tcp, addr, &far.name)?;

    paper.step("Pod client connects to the Service, whose backend is on the other node");
    let connect = || {
        let name = scene.client.netns.enter(|| ask(Transport::Tcp, addr, SOON))??;
        ensure!(name == far.name, "answered by {name}");
        Ok(())
    };
    // Both directions go past the stack: to the backend's node, and to the client's end of its veth.
    let stages = [
        "pod_out at",
        "conntrack: no entry",
        "service: backend",
        "verdict: to the next hop, past the stack",
        "dev_in at",
        "verdict: to the other end of that Pod's veth, past the stack",
    ];
    // The Service is served before the agents have read what could be in the way: firewall rules, routes, the other node's Pods.
    // A connection keeps the path that its first packet took, so each try is a new one.
    let mut lines = Vec::new();
    wait::until("a connection past the stack", SOON, || {
        lines = logged(scene, connect)?;
        has_stages(&lines, &stages)
    })?;
    paper.show("grep packet: agent.log", &lines.join("\n"));

    paper.step("The same, isolated by a policy");
    let subject =
        json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]});
    scene.manifests.write("policies", &[policy("isolate-client", subject)])?;
    let refused = || -> Result<()> {
        let limit = Duration::from_millis(300);
        let answer = scene.client.netns.enter(|| ask(Transport::Tcp, addr, limit))?;
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    };
    wait::until("isolation", SOON, refused)?;
    let lines = logged(scene, refused)?;
    has_stages(&lines, &["policy: refused", "dropped: POLICY_ISOLATED", "verdict: drop"])?;
    paper.show("grep packet: agent.log", &lines.join("\n"));
    scene.manifests.remove("policies")
}

/// Fails if one of these is in none of the lines.
fn has_stages(lines: &[String], stages: &[&str]) -> Result<()> {
    for stage in stages {
        ensure!(
            lines.iter().any(|line| line.contains(stage)),
            "no line with {stage:?}: {lines:#?}"
        );
    }
    Ok(())
}

/// What the programs of the client's node log about it.
fn logged(scene: &Scene, act: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let before = log_at_rest(scene)?.len();
    act()?;
    let log = log_at_rest(scene)?;
    let news = log.get(before..).unwrap_or_default();
    Ok(news.lines().filter_map(|line| Some(line.split_once(MARK)?.1.to_owned())).collect())
}

/// The log of the client's node, once it has not grown for half a second: the agent fetches the programs' lines and writes them.
fn log_at_rest(scene: &Scene) -> Result<String> {
    let read = || scene.agents[0].log().context("read the agent's log");
    let mut log = read()?;
    let (at_rest, _) = wait::until("rest in the agent's log", SOON, || {
        std::thread::sleep(Duration::from_millis(500));
        let earlier = std::mem::replace(&mut log, read()?);
        ensure!(log.len() == earlier.len(), "it grows");
        Ok(log.clone())
    })?;
    Ok(at_rest)
}
