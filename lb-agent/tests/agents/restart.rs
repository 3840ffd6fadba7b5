//! The agent comes and goes: traffic does not notice.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use testbed::{
    Pod, Shape,
    client::{Connection, Transport, ask},
    load::{Load, Running},
    manifest::pod_of,
    wait,
};

use crate::stage::{SOON, Stage, TRANSPORTS, port_80};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// A Service with a backend on each node, and a client Pod on node a.
fn web(prefix: &str) -> (Stage, [Pod; 2], Pod) {
    let mut stage = Stage::new(prefix, Shape::Routed);
    let (a, b) = (stage.a.clone(), stage.b.clone());
    let pods = [stage.server(&a, "one"), stage.server(&b, "two")];
    let client = a.pod("client").unwrap();
    stage.announce("web", WEB, &[&pods[0], &pods[1]]);
    for netns in [&client.netns, &a.netns] {
        for ip in WEB {
            stage.wait_for(netns, port_80(ip), &["one", "two"]);
        }
    }
    (stage, pods, client)
}

/// New flows and kept ones, over each transport, from the Pod and from the node, 400 requests a second in all.
fn loads(stage: &Stage, client: &Pod) -> Vec<(String, Running)> {
    let mut loads = Vec::new();
    for netns in [&client.netns, &stage.a.netns] {
        for transport in TRANSPORTS {
            for keep_open in [false, true] {
                let load = Load {
                    rate: 50,
                    workers: 2,
                    keep_open,
                    ..Load::new(transport, port_80(WEB[0]))
                };
                let name = format!("{transport:?} from {netns}, kept open: {keep_open}");
                loads.push((name, load.start(netns).unwrap()));
            }
        }
    }
    loads
}

fn no_failures(stage: &Stage, loads: Vec<(String, Running)>) {
    for (name, load) in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failed, 0, "{name}: {report:?}\n{}", stage.logs());
        assert!(report.requests > 50, "{name}: {report:?}");
    }
}

/// SIGKILL under load, a while without agent, and its return: no request fails.
#[test]
fn agent_killed_under_load_fails_no_request() {
    let (mut stage, _, client) = web("ekill");
    let loads = loads(&stage, &client);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(700));
        stage.agents[0].kill().unwrap();
        std::thread::sleep(Duration::from_millis(700));
        stage.agents[0].start().unwrap();
    }
    std::thread::sleep(Duration::from_millis(700));
    no_failures(&stage, loads);
}

/// A graceful end leaves everything in place; the return changes no table and keeps connections.
#[test]
fn s37_restart_changes_no_table_and_keeps_connections() {
    let (mut stage, _, client) = web("erestart");
    let mut connections =
        WEB.map(|ip| client.netns.enter(|| Connection::open(port_80(ip), SOON)).unwrap().unwrap());
    let names = connections.each_mut().map(|connection| connection.ask().unwrap());
    let before = tables(&stage);
    stage.agents[0].stop().unwrap();
    for (connection, name) in connections.iter_mut().zip(&names) {
        assert_eq!(connection.ask().unwrap(), *name, "without an agent");
    }
    assert_eq!(tables(&stage), before, "the end changed a table");
    stage.agents[0].start().unwrap();
    for (connection, name) in connections.iter_mut().zip(&names) {
        assert_eq!(connection.ask().unwrap(), *name, "after the return");
    }
    assert_eq!(tables(&stage), before, "the return changed a table");
}

/// The tables of node a's agent as the kernel has them: frontends, slots and backends.
fn tables(stage: &Stage) -> Vec<String> {
    ["frontends", "slots", "backends"]
        .map(|map| {
            let pin = std::fs::read_dir(&stage.agents[0].pin_dir)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| path.to_string_lossy().contains(&format!("/{map}_v")))
                .unwrap_or_else(|| panic!("map {map} is not pinned"));
            let pin = pin.to_str().unwrap();
            let dump = std::process::Command::new("bpftool")
                .args(["-j", "map", "dump", "pinned", pin])
                .output()
                .expect("bpftool is needed");
            let dump = String::from_utf8(dump.stdout).unwrap();
            assert!(dump.contains("value"), "dump of {pin}: {dump}");
            dump
        })
        .to_vec()
}

/// An endpoint added while the agent is down is served when it is back.
#[test]
fn endpoint_added_while_the_agent_is_down_is_served() {
    let (mut stage, [one, two], client) = web("eadded");
    stage.agents[0].stop().unwrap();
    stage.announce("web", WEB, &[]);
    // Its state of the cluster is what it was: still served.
    stage.ask(&client.netns, Transport::Tcp, port_80(WEB[0]));
    let b = stage.b.clone();
    let three = stage.server(&b, "three");
    stage.announce("web", WEB, &[&three]);
    stage.agents[0].start().unwrap();
    for netns in [&client.netns, &stage.a.netns] {
        for ip in WEB {
            stage.wait_for(netns, port_80(ip), &["three"]);
        }
    }
    drop((one, two));
}

/// Two agents on one node would undo each other's work: the second refuses in a sentence, the first goes on.
#[test]
fn second_agent_refuses() {
    let (mut stage, _, client) = web("esecond");
    let mut command = stage.agents[0].run_command().unwrap();
    let mut second =
        stage.a.netns.spawn(command.stdout(Stdio::null()).stderr(Stdio::piped())).unwrap();
    let ended = wait::until("end of the second agent", SOON, || {
        anyhow::Context::context(second.try_wait()?, "it runs")
    });
    if ended.is_err() {
        second.kill().unwrap();
    }
    let output = second.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(ended.is_ok_and(|(status, _)| !status.success()), "it did not refuse:\n{said}");
    assert!(said.contains("lock") || said.contains("another"), "{said}");
    stage.agents[0].wait_healthy().unwrap();
    stage.ask(&client.netns, Transport::Tcp, port_80(WEB[0]));
}

/// `cleanup` removes pins and state, and with them every effect on traffic.
#[test]
fn cleanup_leaves_nothing() {
    let (mut stage, _, client) = web("eclean");
    stage.agents[0].stop().unwrap();
    stage.agents[0].cleanup().unwrap();
    let agent = &stage.agents[0];
    for dir in [&agent.pin_dir, &agent.state_dir] {
        assert!(!dir.exists(), "{} is still there", dir.display());
    }
    for netns in [&client.netns, &stage.a.netns] {
        for ip in WEB {
            // The kernel detaches a program a little after its link has gone.
            let limit = Duration::from_millis(300);
            wait::until(&format!("{ip} from {netns} is answered no more"), SOON, || {
                let answer = netns.enter(|| ask(Transport::Tcp, port_80(ip), limit))?;
                anyhow::ensure!(answer.is_err(), "answered by {answer:?}");
                Ok(())
            })
            .unwrap();
        }
    }
    // And it can start again from nothing.
    stage.agents[0].start().unwrap();
    stage.wait_for(&client.netns, port_80(WEB[0]), &["one", "two"]);
}

const FROM_PODS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-pods, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: 8080}]}]
";

/// Conntrack gets the capacity that is asked for, a larger and at once a smaller one, also after a kill in between; no
/// connection notices, translated or not. The old maps go in the end.
#[test]
fn conntrack_gets_another_capacity_and_keeps_connections() {
    let (mut stage, [one, _], client) = web("eresize");
    stage.dir.write_text("policy", FROM_PODS).unwrap();
    stage.dir.write("client", &[pod_of(&client)]).unwrap();
    wait::until("a policy that keeps the node's processes of b out", SOON, || {
        let stranger = (one.addresses()[0], 8080).into();
        let answer =
            stage.b.netns.enter(|| ask(Transport::Tcp, stranger, Duration::from_millis(300)))?;
        anyhow::ensure!(answer.is_err(), "answered by {answer:?}");
        Ok(())
    })
    .unwrap();
    let straight = one.addresses().map(|ip| SocketAddr::new(ip, 8080));
    let mut connections: Vec<(Connection, String)> = WEB
        .map(port_80)
        .into_iter()
        .chain(straight)
        .map(|at| {
            let mut connection =
                client.netns.enter(|| Connection::open(at, SOON)).unwrap().unwrap();
            let name = connection.ask().unwrap();
            (connection, name)
        })
        .collect();
    assert_eq!(capacities(&stage), [("ct_v2".to_owned(), 131_072), ("kept_v2".to_owned(), 65_536)]);
    for (ct, kept) in [(300_000, 150_000), (131_072, 65_536), (262_144, 131_072)] {
        stage.agents[0].kill().unwrap();
        stage.agents[0].ct_entries = ct;
        stage.agents[0].start().unwrap();
        let now = capacities(&stage);
        assert!(now.contains(&("ct_v2".to_owned(), ct)), "{now:?}");
        assert!(now.contains(&("kept_v2".to_owned(), kept)), "{now:?}");
        for (connection, name) in &mut connections {
            let answer = connection.ask();
            assert_eq!(
                answer.ok().as_deref(),
                Some(name.as_str()),
                "with {ct} entries\n{}",
                stage.logs()
            );
        }
    }
    wait::until("the old maps are gone", Duration::from_secs(60), || {
        let now = capacities(&stage);
        anyhow::ensure!(now.len() == 2, "{now:?}");
        Ok(())
    })
    .unwrap();
    for (connection, name) in &mut connections {
        assert_eq!(connection.ask().unwrap(), *name, "without the old maps");
    }
    stage.ask(&client.netns, Transport::Tcp, port_80(WEB[0]));
}

/// Names and capacities of the pinned conntrack maps of node a, in the order of names.
fn capacities(stage: &Stage) -> Vec<(String, u32)> {
    let names = std::fs::read_dir(&stage.agents[0].pin_dir).unwrap();
    let mut found: Vec<(String, u32)> = names
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name.starts_with("ct_v") || name.starts_with("kept_v"))
        .map(|(name, pin)| (name, lb_kernel::bpf::maps::pinned_capacity(&pin).unwrap()))
        .collect();
    found.sort();
    found
}
