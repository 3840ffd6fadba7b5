//! Flows as evidence, with real agents and sockets: names stay those of the moment, VIA and ends are right, the flow log has all of
//! it; and what a trial of a policy says is what applying the policy does.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    time::Duration,
};

use lb_ctl::trial::{TrialReport, together};
use serde_json::Value;
use testbed::{
    Agent, Pod, Shape,
    client::{Connection, Transport, ask},
    manifest::{node_of, pod_of},
    wait,
};

use crate::explain::{DENIED, ONLY_FRIENDS, lbctl, run};
use crate::stage::{SOON, Stage, port_80, service};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const UID: &str = "0f0e1d2c-3b4a-4958-8677-a0b1c2d3e4f5";

/// The flows that the agent keeps and that this filter takes.
fn flows(agent: &Agent, filter: &[&str]) -> Vec<Value> {
    let args = [&["flows", "-o", "json"], filter].concat();
    let child = agent.node.netns.spawn(&mut lbctl(agent, &args)).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn until<T>(stage: &Stage, what: &str, look: impl FnMut() -> anyhow::Result<T>) -> T {
    match wait::until(what, 4 * SOON, look) {
        Ok((found, _)) => found,
        Err(err) => panic!("{err:#}\n{}", stage.logs()),
    }
}

fn asked(pod: &Pod, addr: SocketAddr) -> bool {
    pod.netns.enter(|| ask(Transport::Tcp, addr, DENIED)).unwrap().is_ok()
}

/// A server on node a; a friend and a stranger beside it.
struct Cast {
    stage: Stage,
    web: Pod,
    friend: Pod,
    stranger: Pod,
}

impl Cast {
    fn new(prefix: &str, arguments: &[&str]) -> Self {
        let mut stage = Stage::with_arguments(prefix, Shape::Routed, |_| (), arguments);
        let (a, b) = (stage.a.clone(), stage.b.clone());
        let web = stage.server(&a, "web");
        let [friend, stranger] = ["friend", "stranger"].map(|name| a.pod(name).unwrap());
        stage.dir.write("nodes", &[&a, &b].map(node_of)).unwrap();
        stage.dir.write("web", &[service("web", WEB), pod_of(&web).label("app", "web")]).unwrap();
        stage.dir.write("friend", &[pod_of(&friend).label("friend", "yes")]).unwrap();
        let uid = Value::from(UID);
        let manifest = pod_of(&stranger).label("friend", "no").set(&["metadata", "uid"], uid);
        stage.dir.write("stranger", &[manifest]).unwrap();
        for client in [&friend, &stranger] {
            stage.wait_for(&client.netns, port_80(WEB[0]), &["web"]);
        }
        Self { stage, web, friend, stranger }
    }
}

/// What is deleted is still named, and what gets its address is not.
#[test]
fn flows_keep_the_names_of_their_moment() {
    let cast = Cast::new("evidence", &[]);
    let Cast { stage, friend, stranger, .. } = &cast;
    let here = &stage.agents[0];
    stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    until(stage, "the stranger is denied", || {
        anyhow::ensure!(!asked(stranger, port_80(WEB[0])));
        anyhow::ensure!(asked(friend, port_80(WEB[0])));
        Ok(())
    });
    let denied = |name: &str| {
        let all = flows(here, &["--from", name, "--verdict", "dropped"]);
        all.into_iter().find(|flow| flow["reason"] == "POLICY_ISOLATED")
    };
    let before = until(stage, "the denial is shown", || {
        denied("default/stranger").ok_or_else(|| anyhow::anyhow!("no flow"))
    });
    assert_eq!(before["src"]["uid"], UID, "{before}");
    assert_eq!(before["dst"]["name"], "default/web", "{before}");
    assert_eq!(before["via"], "default/web:tcp-80", "{before}");
    assert_eq!(before["by"]["policies"][0], "default/only-friends", "{before}");

    // Everything goes, and another Pod gets the address.
    for name in ["policy", "web", "stranger"] {
        stage.dir.remove(name).unwrap();
    }
    let mut successor = pod_of(stranger).label("friend", "yes");
    successor = successor.set(&["metadata", "name"], Value::from("successor"));
    stage.dir.write("successor", &[successor]).unwrap();
    let mut successor_is_known = || {
        let (code, text) = run(here, &["explain", "successor", "friend:1"]);
        anyhow::ensure!(code != Some(1), "{text}");
        Ok(())
    };
    until(stage, "the successor is known", &mut successor_is_known);
    let after = denied("default/stranger").unwrap();
    assert_eq!(after, before, "a record is what it was");
    let by_policy = ["--from", "default/successor", "--policy", "default/only-friends"];
    assert!(flows(here, &by_policy).is_empty());
}

/// The policies change while connections are open: each is judged again at its next packet, which may be an answer.
#[test]
fn allowed_flows_have_their_service_and_two_ends() {
    let cast = Cast::new("via", &[]);
    let Cast { stage, web, friend, .. } = &cast;
    let here = &stage.agents[0];
    let through = port_80(WEB[0]);
    let open = |addr| friend.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let egress = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: default}
spec: {podSelector: {matchLabels: {friend: \"yes\"}}, policyTypes: [Egress], egress: [{}]}
";
    stage.dir.write_text("policy", &format!("{ONLY_FRIENDS}{egress}")).unwrap();
    let args = ["flows", "-f", "--verdict", "allowed", "-o", "json"];
    let mut follow = here.node.netns.spawn(&mut lbctl(here, &args)).unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let (told, seen) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let flow: Value = serde_json::from_str(&line).unwrap();
            if told.send(flow).is_err() {
                return;
            }
        }
    });
    let mut open_flows = [through, SocketAddr::new(web.v4.into(), 8080)].map(open);
    let mut all: Vec<Value> = Vec::new();
    let mut round = 0;
    until(stage, "the ends of both directions are reported with their Service", || {
        // Another epoch each time: the open connections are judged again, at a packet of either end.
        round += 1;
        let more = ONLY_FRIENDS.replace("only-friends", &format!("again-{round}"));
        stage.dir.write_text("more", &more).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        for connection in &mut open_flows {
            connection.ask().unwrap();
        }
        assert!(asked(friend, port_80(WEB[0])));
        all.extend(seen.try_iter());
        let is = |flow: &Value, direction: &str| {
            flow["direction"] == direction
                && flow["src"]["name"] == "default/friend"
                && flow["dst"]["name"] == "default/web"
                && flow["via"] == "default/web:tcp-80"
        };
        for direction in ["ingress", "egress"] {
            anyhow::ensure!(all.iter().any(|flow| is(flow, direction)), "no {direction}: {all:?}");
        }
        anyhow::ensure!(round >= 5);
        Ok(())
    });
    follow.kill().unwrap();
    follow.wait().unwrap();
    reader.join().unwrap();
    for flow in &all {
        assert_ne!(flow["src"]["address"], flow["dst"]["address"], "{flow}");
        // The server opened nothing.
        assert_ne!(flow["src"]["name"], "default/web", "{flow}");
    }
}

/// The stream for audit has the same records, on the disk.
#[test]
fn the_flow_log_has_every_record_with_its_names() {
    let path = std::env::temp_dir().join(format!("lb-flow-log-e2e-{}.jsonl", std::process::id()));
    let flag = format!("file:{}", path.display());
    let cast = Cast::new("flowlog", &["--flow-log", &flag]);
    let Cast { stage, stranger, .. } = &cast;
    stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    let line = until(stage, "the denial is in the flow log", || {
        asked(stranger, port_80(WEB[0]));
        let text = std::fs::read_to_string(&path)?;
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut denied = lines.filter(|line| line["reason"] == "POLICY_ISOLATED");
        denied.next().ok_or_else(|| anyhow::anyhow!("{text}"))
    });
    std::fs::remove_file(&path).unwrap();
    assert_eq!(line["node"], stage.a.name.as_str(), "{line}");
    assert_eq!(
        (&line["src"]["name"], &line["src"]["uid"]),
        (&"default/stranger".into(), &UID.into())
    );
    assert_eq!(line["verdict"], "dropped", "{line}");
}

/// A policy is tried twice, then applied: what it would deny is denied, and no more.
#[test]
fn a_trial_says_what_applying_the_policy_does() {
    let cast = Cast::new("trial", &[]);
    let Cast { stage, web, friend, stranger } = &cast;
    let here = &stage.agents[0];
    let straight = SocketAddr::new(web.v4.into(), 8080);
    let through = port_80(WEB[0]);
    let open = |pod: &Pod, addr| pod.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let mut kept = [straight, through].map(|addr| open(friend, addr));
    let mut lost = [straight, through, through].map(|addr| open(stranger, addr));
    let dir = std::env::temp_dir().join(format!("lb-trial-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("policy.yaml");
    std::fs::write(&file, ONLY_FRIENDS).unwrap();
    let file = file.to_str().unwrap();
    let trial = |args: &[&str]| {
        let all = [&["policy", "try", "-o", "json"], args].concat();
        let child = here.node.netns.spawn(&mut lbctl(here, &all)).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let trial: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{error}"));
        (output.status.code(), trial)
    };
    // Beside the three that are open: questions of the stage, over connections that are closed and not forgotten yet; and by UDP,
    // which the policy does not allow friends either.
    let strangers = |trial: &Value, protocol: &str| -> u64 {
        let rows = trial["items"].as_array().unwrap().iter();
        let counts = rows.map(|row| {
            let is_friend = row["src"]["name"] == "default/friend" && row["protocol"] == "UDP";
            assert!(is_friend || row["src"]["name"] == "default/stranger", "{row}");
            assert_eq!(row["dst"]["name"], "default/web", "{row}");
            assert_eq!((&row["change"], &row["port"]), (&"denied".into(), &8080.into()), "{row}");
            assert_eq!(row["by"]["policies"][0], "default/only-friends", "{row}");
            if row["protocol"] == protocol && !is_friend {
                row["count"].as_u64().unwrap()
            } else {
                0
            }
        });
        counts.sum()
    };
    for _ in 0..2 {
        let (code, tried) = trial(&["-f", file]);
        assert!(code == Some(2) && strangers(&tried, "TCP") >= 3, "{code:?} {tried}");
        assert!(tried["flows"].as_u64().unwrap() >= 5, "{tried}");
        assert_eq!(tried["complete"], true);
    }
    for connection in kept.iter_mut().chain(&mut lost) {
        // Nothing is applied.
        connection.ask().unwrap();
    }
    let (code, text) = run(here, &["policy", "try", "-f", file]);
    assert!(
        code == Some(2) && text.contains("live flows on ") && text.contains("denied"),
        "{text}"
    );

    stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    until(stage, "the policy is applied", || {
        anyhow::ensure!(!asked(stranger, straight));
        Ok(())
    });
    for connection in &mut kept {
        connection.ask().unwrap();
    }
    for connection in &mut lost {
        connection.set_timeout(DENIED).unwrap();
        connection.ask().unwrap_err();
    }
    // What was denied since then would be allowed without the policy; nothing that is live would break.
    let (code, tried) = trial(&["--delete", "default/only-friends"]);
    assert_eq!((code, &tried["denied"]), (Some(0), &0.into()), "{tried}");
    assert!(tried["allowed"].as_u64().unwrap() > 0, "{tried}");
    let (code, text) = run(here, &["policy", "try", "--delete", "default/only-fiends"]);
    assert!(code == Some(1) && text.contains("no such policy"), "{text}");

    // In shadow mode it is only reported what it would do.
    let shadow = ONLY_FRIENDS.replace(
        "namespace: default}",
        "namespace: default, annotations: {lb-agent.io/mode: shadow}}",
    );
    stage.dir.write_text("policy", &shadow).unwrap();
    let _open = open(stranger, through);
    until(stage, "the shadow report has the stranger", || {
        assert!(asked(stranger, straight));
        let (_, text) = run(here, &["shadow", "report"]);
        for word in ["default/stranger", "8080", "allowed", "denied", "default/only-friends"] {
            anyhow::ensure!(text.contains(word), "{text}");
        }
        let friends = text.lines().filter(|line| line.contains("default/friend"));
        anyhow::ensure!(friends.into_iter().all(|line| line.contains("UDP")), "{text}");
        Ok(())
    });
    let (_, text) = run(here, &["flows", "--by", "pair", "--port", "8080"]);
    for word in ["default/friend", "default/stranger", "default/web:tcp-80", "allowed"] {
        assert!(text.contains(word), "{text}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// The node of the server denies; through which Service the client came, only the client's node knows.
#[test]
fn a_trial_on_two_nodes_names_the_service_that_the_client_dialed() {
    let mut stage = Stage::new("trial2", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let web = stage.server(&b, "web");
    let [dialer, direct] = ["dialer", "direct"].map(|name| a.pod(name).unwrap());
    stage.dir.write("nodes", &[&a, &b].map(node_of)).unwrap();
    let clients = [&dialer, &direct].map(|pod| pod_of(pod).label("friend", "no"));
    let mut objects = vec![service("web", WEB), pod_of(&web).label("app", "web")];
    objects.extend(clients);
    stage.dir.write("cast", &objects).unwrap();
    let (through, straight) = (port_80(WEB[0]), SocketAddr::new(web.v4.into(), 8080));
    stage.wait_for(&dialer.netns, through, &["web"]);
    stage.wait_for(&direct.netns, straight, &["web"]);
    let open = |pod: &Pod, addr| pod.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let _live = [open(&dialer, through), open(&direct, straight)];
    let file = std::env::temp_dir().join(format!("lb-trial2-{}.yaml", std::process::id()));
    std::fs::write(&file, ONLY_FRIENDS).unwrap();
    // What each node answers a laptop.
    let answers = stage.agents.each_ref().map(|agent| {
        let args = ["policy", "try", "-o", "rows", "-f", file.to_str().unwrap()];
        let child = agent.node.netns.spawn(&mut lbctl(agent, &args)).unwrap();
        let output = child.wait_with_output().unwrap();
        serde_json::from_slice::<TrialReport>(&output.stdout)
            .unwrap_or_else(|err| panic!("{err}: {output:?}"))
    });
    std::fs::remove_file(&file).unwrap();
    let via = |report: &TrialReport, client: &str| -> Vec<String> {
        let rows = serde_json::to_value(report).unwrap();
        let rows = rows["items"].as_array().unwrap().clone();
        let own = rows.into_iter().filter(|row| {
            row["src"]["name"] == client && row["change"] == "denied" && row["protocol"] == "TCP"
        });
        own.map(|row| row["via"].as_str().unwrap().to_owned()).collect()
    };
    let server = &answers[1];
    assert_eq!(via(server, "default/dialer"), [""], "{server:?}");
    let whole = together(answers.to_vec()).unwrap();
    assert_eq!(via(&whole, "default/dialer"), ["default/web:tcp-80"], "{whole:?}");
    assert_eq!(via(&whole, "default/direct"), [""], "{whole:?}");
    assert!(whole.breaks());
}

/// A shop: what is seen becomes policies, which deny nothing in shadow mode, and with which the shop works when they are enforced.
#[test]
fn suggested_policies_allow_what_was_seen_and_nothing_else() {
    let mut stage = Stage::new("suggest", Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let [web, orders] = [("web", &a), ("orders", &b)].map(|(name, node)| stage.server(node, name));
    let [client, stranger] = ["client-0", "stranger-0"].map(|name| a.pod(name).unwrap());
    stage.dir.write("nodes", &[&a, &b].map(node_of)).unwrap();
    let objects = [
        service("web", WEB),
        pod_of(&web).label("app", "web").label("tier", "front"),
        pod_of(&orders).label("app", "orders"),
        pod_of(&client).label("app", "client"),
        pod_of(&stranger).label("app", "stranger"),
    ];
    stage.dir.write("shop", &objects).unwrap();
    let through = port_80(WEB[0]);
    let straight = SocketAddr::new(orders.v4.into(), 8080);
    stage.wait_for(&client.netns, through, &["web"]);
    stage.wait_for(&web.netns, straight, &["orders"]);
    let open = |pod: &Pod, addr| pod.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let mut shop = [open(&client, through), open(&web, straight)];

    // Each node has seen the flows of its own Pods.
    let suggestion = |agent: &Agent| {
        let args = ["policy", "suggest", "default"];
        let child = agent.node.netns.spawn(&mut lbctl(agent, &args)).unwrap();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let here = suggestion(&stage.agents[0]);
    for word in
        ["suggested-web", "suggested-client", "suggested-orders", "lb-agent.io/mode: shadow"]
    {
        assert!(here.contains(word), "{word}: {here}");
    }
    assert!(!here.contains("suggested-stranger"), "it was not seen: {here}");
    assert!(!here.contains("cidr"), "no client outside was seen: {here}");
    stage.dir.write_text("policies", &here).unwrap();
    let listed = |state: &str| {
        until(&stage, &format!("the policies are in {state}"), || {
            for agent in &stage.agents {
                let (_, text) = run(agent, &["policy", "list", "-n", "default"]);
                let rows = text.lines().filter(|line| line.contains("suggested-"));
                anyhow::ensure!(rows.filter(|line| line.contains(state)).count() == 3, "{text}");
            }
            Ok(())
        });
    };
    listed("shadow");
    for connection in &mut shop {
        connection.ask().unwrap();
    }
    assert!(asked(&client, through) && asked(&web, straight));
    for agent in &stage.agents {
        let (code, text) = run(agent, &["shadow", "report"]);
        assert!(code == Some(0) && !text.contains("denied"), "{text}");
    }

    stage.dir.write_text("policies", &here.replace("mode: shadow", "mode: enforce")).unwrap();
    listed("enforced");
    for connection in &mut shop {
        connection.ask().unwrap();
    }
    assert!(asked(&client, through) && asked(&web, straight));
    until(&stage, "the stranger is denied", || {
        anyhow::ensure!(!asked(&stranger, straight));
        Ok(())
    });
}
