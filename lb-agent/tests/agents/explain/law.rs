//! The law of `lbctl explain`: it says what a real connection finds. Random worlds on two nodes; each flow is tried with a socket
//! and then explained by the agents of both nodes.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lb_core::admin::progress::{AwaitedObject, ObjectProgress};
use lb_core::cluster::Name;
use lb_ctl::admin::Client;
use serde_json::Value;
use testbed::{
    Agent, Netns, Pod, Shape,
    client::{Transport, ask},
    server::Server,
    wait,
};

use super::worlds::{
    Cast, FlowCase, OF_NODE, ON_LOOPBACK, OPEN, Opener, RandomWorld, is_of_service, marks,
};
use super::{lbctl, node_lbctl};
use crate::stage::{SOON, Stage};

/// Worlds of one run.
const WORLDS: u64 = 200;
/// No answer within this time is none, if an explanation says the same.
const DENIED: Duration = Duration::from_millis(150);
/// No answer within this time is none.
const PATIENCE: Duration = Duration::from_secs(3);
/// Connections to a Service, which may have several backends.
const TRIES: usize = 3;
/// One of this number of explanations is made with the capabilities of the agent's container, which cannot enter Pods.
const IN_CONTAINER: u64 = 4;

/// What `explain -o json` says.
#[derive(Debug)]
struct Said {
    status: Option<i32>,
    document: Value,
}

impl Said {
    fn branches(&self, key: &str) -> u64 {
        self.document["branches"][key].as_u64().unwrap_or_default()
    }

    fn outcome(&self) -> &str {
        self.document["outcome"].as_str().unwrap_or("none")
    }

    fn is_stopped(&self) -> bool {
        self.branches("stopped") > 0
    }

    /// Whether it takes for granted that a process elsewhere listens.
    fn assumes_a_process(&self) -> bool {
        let assumed = self.document["assumed"].as_array().into_iter().flatten();
        assumed.filter_map(Value::as_str).any(|text| text.starts_with("a process "))
    }

    /// Why this cannot be, when a connection ends like this.
    fn contradiction(&self, case: &FlowCase, answered: bool, of_source: bool) -> Option<String> {
        let exit = match self.outcome() {
            "delivered" => 0,
            "stopped" => 3,
            other => return Some(format!("outcome {other}, exit status {:?}", self.status)),
        };
        if self.status != Some(exit) {
            return Some(format!("{}, but exit status {:?}", self.outcome(), self.status));
        }
        if exit == 3 && self.document["code"].is_null() {
            return Some("stopped without a code".to_owned());
        }
        if answered && self.branches("stopped") == self.branches("all") {
            return Some("stopped, but it is answered".to_owned());
        }
        // A reset is remembered by the node of the Pod that got it; a port unreachable is not, and of the node's own
        // processes nothing is.
        let is_seen =
            of_source && case.transport == Transport::Tcp && matches!(case.opener, Opener::Pod(_));
        let excused = self.assumes_a_process() && !is_seen;
        (!answered && !self.is_stopped() && !excused)
            .then(|| "delivered, but it is not answered".to_owned())
    }
}

#[test]
fn what_explain_says_is_what_a_connection_finds() {
    let stage = Stage::new("elaw", Shape::Routed);
    let nodes = [&stage.a, &stage.b];
    let pods: Vec<Pod> =
        [("alpha", nodes[0]), ("beta", nodes[0]), ("gamma", nodes[1]), ("delta", nodes[1])]
            .map(|(name, node)| node.pod(name).unwrap())
            .into();
    let mut servers: Vec<Server> =
        pods.iter().map(|pod| Server::named(&pod.netns, &pod.name, OPEN).unwrap()).collect();
    servers.extend(nodes.map(|node| Server::named(&node.netns, &node.name, OF_NODE).unwrap()));
    let loopback: Vec<_> =
        pods.iter().map(|pod| pod.netns.enter(listen_on_loopback).unwrap()).collect();
    let cast = Cast { nodes, pods: &pods };
    let first: u64 = std::env::var("LB_TEST_SEED").ok().map_or(0, |seed| seed.parse().unwrap());
    let begun = Instant::now();
    let (mut answered, mut flows) = (0, 0);
    let failures = Mutex::new(Vec::new());
    for seed in first..first + WORLDS {
        let world = RandomWorld::new(seed, &cast, &format!("w{seed}"));
        let run = WorldRun { stage: &stage, cast: &cast, world: &world, seed, failures: &failures };
        run.program();
        for outcome in run.flows() {
            flows += 1;
            answered += usize::from(outcome);
        }
    }
    drop(loopback);
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    println!("{WORLDS} worlds, {flows} flows, {answered} answered, {:?}", begun.elapsed());
    // Both must be frequent, or the law says little.
    assert!(answered * 8 > flows && (flows - answered) * 8 > flows, "{answered} of {flows}");
}

fn listen_on_loopback() -> (TcpListener, UdpSocket) {
    let at = (Ipv4Addr::LOCALHOST, ON_LOOPBACK);
    (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())
}

/// One world on the stage.
struct WorldRun<'a> {
    stage: &'a Stage,
    cast: &'a Cast<'a>,
    world: &'a RandomWorld,
    seed: u64,
    failures: &'a Mutex<Vec<String>>,
}

impl WorldRun<'_> {
    /// Gives the world to the agents and waits until their maps say it.
    fn program(&self) {
        let Self { stage, world, seed, .. } = self;
        stage.dir.write_text("world", &world.manifests).unwrap();
        self.await_mark(&format!("w{seed}"));
        // What one reading of the directory finds is told before the next one begins.
        let [service, policy] = marks(&format!("x{seed}"));
        stage.dir.write_text("mark", &format!("{service}\n---\n{policy}\n")).unwrap();
        self.await_mark(&format!("x{seed}"));
    }

    fn await_mark(&self, mark: &str) {
        let name = Name::new("marks", mark);
        for agent in &self.stage.agents {
            let client = Client::new(&agent.state_dir);
            for wanted in
                [AwaitedObject::Service(name.clone()), AwaitedObject::Policy(name.clone(), None)]
            {
                let what = format!("world {}: {wanted:?} on {}", self.seed, agent.node.name);
                let done = wait::until(&what, SOON, || {
                    let progress = client.progress(&wanted)?;
                    anyhow::ensure!(progress == ObjectProgress::Done, "{progress:?}");
                    Ok(())
                });
                if let Err(err) = done {
                    panic!("{err:#}\n{}\n{}", self.world.manifests, self.stage.logs());
                }
            }
        }
    }

    /// Tries all flows at once; which ones are answered.
    fn flows(&self) -> Vec<bool> {
        std::thread::scope(|scope| {
            let started: Vec<_> =
                self.world.flows.iter().map(|case| scope.spawn(|| self.flow(case))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, bool>| thread.join();
            let joined: Vec<_> = started.into_iter().map(join).collect();
            joined
                .into_iter()
                .map(|outcome| outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// Tries a flow and compares what both agents say of it.
    fn flow(&self, case: &FlowCase) -> bool {
        let (netns, here) = match case.opener {
            Opener::Pod(n) => {
                let pod = &self.cast.pods[n];
                (&pod.netns, usize::from(pod.node != self.cast.nodes[0].name))
            }
            Opener::Node(n) => (&self.cast.nodes[n].netns, n),
        };
        // A Service may have several backends.
        let tries = if is_of_service(case.dial.ip()) { TRIES } else { 1 };
        let mut outcomes: Vec<bool> = std::thread::scope(|scope| {
            let dial = |_| scope.spawn(|| is_answered(netns, case, DENIED));
            let dials: Vec<_> = (0..tries).map(dial).collect();
            dials.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let [a, b] = &self.stage.agents;
        let (own, other) = if here == 0 { (a, b) } else { (b, a) };
        let said = [self.explain(own, case), self.explain(other, case)];
        if outcomes.contains(&false) && !said.iter().any(Said::is_stopped) {
            // On a busy machine an answer may take longer.
            outcomes = vec![is_answered(netns, case, PATIENCE)];
        }
        for answered in &outcomes {
            for (said, of_source) in said.iter().zip([true, false]) {
                if let Some(why) = said.contradiction(case, *answered, of_source) {
                    self.fail(case, &why, &said.document);
                }
            }
            if !answered && !said.iter().any(Said::is_stopped) {
                self.fail(case, "not answered, and neither node says why", &said[0].document);
            }
        }
        outcomes.contains(&true)
    }

    fn explain(&self, agent: &Agent, case: &FlowCase) -> Said {
        let args = ["explain", &case.src, &case.dst, "-o", "json"];
        let mut command = match self.seed % IN_CONTAINER {
            0 => lbctl(agent, &args),
            _ => node_lbctl(agent, &args),
        };
        let child = agent.node.netns.spawn(&mut command).unwrap();
        let output = child.wait_with_output().unwrap();
        let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            self.fail(case, &format!("no explanation on {}", agent.node.name), &stderr.into());
            Value::Null
        });
        Said { status: output.status.code(), document }
    }

    /// The others go on: what is common to several failures says more than one of them.
    fn fail(&self, case: &FlowCase, why: &str, document: &Value) {
        let FlowCase { src, dst, .. } = case;
        let mut text = format!("LB_TEST_SEED={}: {src} to {dst}: {why}\n", self.seed);
        let mut failures = self.failures.lock().unwrap();
        match failures.len() {
            0 => {
                let logs = self.stage.logs();
                writeln!(text, "{document:#}\n{}\n{logs}", self.world.manifests).unwrap();
            }
            1..10 => writeln!(text, "{document}").unwrap(),
            _ => {}
        }
        failures.push(text);
    }
}

fn is_answered(netns: &Netns, case: &FlowCase, patience: Duration) -> bool {
    netns.enter(|| ask(case.transport, case.dial, patience)).unwrap().is_ok()
}
