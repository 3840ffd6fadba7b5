//! Network policies with real agents and real sockets: which Pods reach which, what happens to open connections, and that
//! neither a killed agent nor a lost source opens or closes anything.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use testbed::{
    Netns, Pod, Shape,
    client::{Connection, Transport, ask},
    load::Load,
    manifest::{self, node_of, pod_of},
    wait,
};

use crate::stage::{SOON, Stage, TRANSPORTS, port_80, service, ways_to};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// No answer within this time is none: answers take far less.
const DENIED: Duration = Duration::from_millis(400);

const ONLY_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-friends, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {friend: \"yes\"}}}]
    ports: [{port: 8080}, {port: 8080, protocol: UDP}]
";

const DENY_ALL: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: default}
spec: {podSelector: {matchLabels: {app: quiet}}, policyTypes: [Ingress, Egress]}
";

/// A server on node a; a friend and a stranger on each node.
struct Cast {
    stage: Stage,
    web: Pod,
    friends: [Pod; 2],
    strangers: [Pod; 2],
}

impl Cast {
    fn new(prefix: &str, shape: Shape) -> Self {
        let mut stage = Stage::new(prefix, shape);
        let (a, b) = (stage.a.clone(), stage.b.clone());
        let web = stage.server(&a, "web");
        let friends = [a.pod("friend-a").unwrap(), b.pod("friend-b").unwrap()];
        let strangers = [a.pod("stranger-a").unwrap(), b.pod("stranger-b").unwrap()];
        let nodes = [&a, &b].map(node_of);
        stage.dir.write("nodes", &nodes).unwrap();
        let mut objects = vec![service("web", WEB), pod_of(&web).label("app", "web")];
        objects.extend(friends.iter().map(|pod| pod_of(pod).label("friend", "yes")));
        objects.extend(strangers.iter().map(|pod| pod_of(pod).label("friend", "no")));
        stage.dir.write("cast", &objects).unwrap();
        for client in friends.iter().chain(&strangers) {
            for ip in WEB {
                stage.wait_for(&client.netns, port_80(ip), &["web"]);
            }
        }
        Self { stage, web, friends, strangers }
    }

    /// The server, straight and through its Service.
    fn addresses(&self) -> Vec<SocketAddr> {
        ways_to(&self.web, WEB)
    }

    /// Waits until exactly these clients are answered.
    fn expect(&self, what: &str, answered: &dyn Fn(&Pod) -> bool) {
        let clients = self.friends.iter().chain(&self.strangers);
        for client in clients {
            for addr in self.addresses() {
                for transport in TRANSPORTS {
                    let outcome = wait::until(what, SOON, || {
                        let answer = client.netns.enter(|| ask(transport, addr, DENIED))?;
                        anyhow::ensure!(answer.is_ok() == answered(client), "{answer:?}");
                        Ok(())
                    });
                    if let Err(err) = outcome {
                        panic!(
                            "{}: {transport:?} {addr}: {err:#}\n{}",
                            client.name,
                            self.stage.logs()
                        );
                    }
                }
            }
        }
    }

    fn is_friend(&self, client: &Pod) -> bool {
        self.friends.iter().any(|friend| friend.name == client.name)
    }
}

fn by_label(shape: Shape, prefix: &str) {
    let cast = Cast::new(prefix, shape);
    cast.stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    cast.expect("friends only", &|client| cast.is_friend(client));
    // Its own node reaches a Pod whatever policies say (kubelet's probes); another node does not.
    for addr in cast.addresses() {
        for transport in TRANSPORTS {
            cast.stage.ask(&cast.stage.a.netns, transport, addr);
            let other = cast.stage.b.netns.enter(|| ask(transport, addr, DENIED)).unwrap();
            assert!(other.is_err(), "the other node at {addr}: {other:?}");
        }
    }
    cast.stage.dir.remove("policy").unwrap();
    cast.expect("all Pods again", &|_| true);
}

#[test]
fn s45_policies_by_label_on_a_routed_node() {
    by_label(Shape::Routed, "polroute");
}

#[test]
fn s45_policies_by_label_behind_a_bridge() {
    by_label(Shape::Bridge, "polbridge");
}

/// Connections that are open when a policy comes: those it allows lose nothing, the others stop; and go on when
/// it goes.
#[test]
fn s44_open_connections_follow_the_policies() {
    let cast = Cast::new("polopen", Shape::Routed);
    let open = |pod: &Pod, addr| pod.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap();
    let addr = cast.addresses();
    let mut kept: Vec<Connection> =
        cast.friends.iter().flat_map(|pod| addr.iter().map(|addr| open(pod, *addr))).collect();
    let mut stopped: Vec<Connection> =
        cast.strangers.iter().flat_map(|pod| addr.iter().map(|addr| open(pod, *addr))).collect();
    for connection in kept.iter_mut().chain(&mut stopped) {
        assert_eq!(connection.ask().unwrap(), "web");
    }
    cast.stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    cast.expect("friends only", &|client| cast.is_friend(client));
    for _ in 0..3 {
        for connection in &mut kept {
            assert_eq!(connection.ask().unwrap(), "web", "an allowed connection");
        }
    }
    for connection in &mut stopped {
        connection.set_timeout(DENIED).unwrap();
        let answer = connection.ask();
        assert!(answer.is_err(), "a denied connection: {answer:?}");
    }
}

/// A hundred times the agent of the server's node is killed at some moment, and started again: nothing denied is
/// answered, nothing allowed fails, past the stack.
#[test]
fn killed_a_hundred_times_no_verdict_changes() {
    const KILLS: u32 = 100;
    let mut cast = Cast::new("polkill", Shape::Routed);
    cast.stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    cast.expect("friends only", &|client| cast.is_friend(client));
    let addr = SocketAddr::new(cast.web.v4.into(), 8080);
    let mut loads = Vec::new();
    for friend in &cast.friends {
        for transport in TRANSPORTS {
            for keep_open in [false, true] {
                let load = Load {
                    rate: 40,
                    workers: 2,
                    keep_open,
                    duration: Duration::from_secs(300),
                    ..Load::new(transport, addr)
                };
                loads.push((friend.name.clone(), load.start(&friend.netns).unwrap()));
            }
        }
    }
    let (stop, tried, answered) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for stranger in &cast.strangers {
            for transport in TRANSPORTS {
                let (stop, tried, answered) = (&stop, &tried, &answered);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        tried.fetch_add(1, Ordering::Relaxed);
                        if ask_from(&stranger.netns, transport, addr, Duration::from_millis(20)) {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        }
        let agent = &mut cast.stage.agents[0];
        for kill in 0..KILLS {
            // Now and then it gets as far as to do something.
            let alive = Duration::from_millis(if kill % 10 == 0 {
                1500
            } else {
                u64::from(kill * 37 % 400)
            });
            std::thread::sleep(alive);
            agent.kill().unwrap();
            agent.spawn().unwrap();
        }
        agent.wait_healthy().unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    for (name, load) in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failed, 0, "{name}: {report:?}\n{}", cast.stage.logs());
    }
    // The flows of the friend beside the server, and of the one on the other node.
    for path in ["flow_peer", "flow_hop"] {
        let flows = cast.stage.agents[0].metric(&format!("lb_slow_path_total{{path=\"{path}\"}}"));
        assert!(flows.unwrap() > 100.0, "{path}: the load did not go past the stack");
    }
    let (tried, answered) = (tried.into_inner(), answered.into_inner());
    assert!(tried > 400, "{tried} tries only");
    assert_eq!(answered, 0, "of {tried} that are denied");
}

fn ask_from(netns: &Netns, transport: Transport, addr: SocketAddr, limit: Duration) -> bool {
    netns.enter(|| ask(transport, addr, limit)).unwrap().is_ok()
}

/// The source goes away, and comes back: verdicts stay what they were.
#[test]
fn losing_the_source_changes_no_verdict() {
    let cast = Cast::new("pollost", Shape::Routed);
    cast.stage.dir.write_text("policy", ONLY_FRIENDS).unwrap();
    cast.expect("friends only", &|client| cast.is_friend(client));
    let away = cast.stage.dir.path.with_extension("away");
    std::fs::rename(&cast.stage.dir.path, &away).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    cast.expect("friends only, without a source", &|client| cast.is_friend(client));
    std::fs::rename(&away, &cast.stage.dir.path).unwrap();
    cast.expect("friends only, with the source again", &|client| cast.is_friend(client));
}

/// A Pod that a policy isolates is in the API before it has a device, and in it something sends from the first moment
/// on. The API learns the Pod's address much later. The window in which something gets through is measured, from the
/// moment the device is there: containers start 100 ms later at the earliest.
#[test]
fn s46_isolated_from_the_first_packet() {
    let mut stage = Stage::new("polfirst", Shape::Routed);
    let a = stage.a.clone();
    let web = stage.server(&a, "web");
    stage.dir.write("nodes", &[&stage.a, &stage.b].map(node_of)).unwrap();
    stage.dir.write("web", &[service("web", WEB), pod_of(&web).label("app", "web")]).unwrap();
    stage.dir.write_text("policy", DENY_ALL).unwrap();
    stage.wait_for(&a.netns, port_80(WEB[0]), &["web"]);
    let addr = SocketAddr::new(web.v4.into(), 8080);
    let mut windows = Vec::new();
    for i in 0..5 {
        let name = format!("quiet{i}");
        let bare = manifest::pod(&name, &a.name).label("app", "quiet");
        stage.dir.write(&name, &[bare]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        let pod = a.pod(&name).unwrap();
        let connected = begun.elapsed();
        let mut last_answer = None;
        pod.netns
            .enter(|| {
                while begun.elapsed() < connected + Duration::from_millis(400) {
                    if ask(Transport::Udp, addr, Duration::from_millis(3)).is_ok() {
                        last_answer = Some(begun.elapsed());
                    }
                }
            })
            .unwrap();
        if let Some(last) = last_answer {
            windows.push(last);
            assert!(
                last < connected + Duration::from_millis(100),
                "{name}: answered after {last:?}"
            );
        }
        // Its address becomes known: it stays isolated.
        stage.dir.write(&name, &[pod_of(&pod).label("app", "quiet")]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(!ask_from(&pod.netns, Transport::Udp, addr, DENIED), "{name}");
    }
    println!("answered after the device was there: {windows:?} (5 Pods)");
    // A Pod that no policy selects does not wait once it is known.
    let free = a.pod("free").unwrap();
    stage.dir.write("free", &[pod_of(&free)]).unwrap();
    stage.wait_for(&free.netns, port_80(WEB[0]), &["web"]);
}

/// A policy in shadow mode counts what it would do, and does nothing.
#[test]
fn shadow_mode_counts_and_lets_through() {
    let cast = Cast::new("polshadow", Shape::Routed);
    let shadow =
        ONLY_FRIENDS.replace("metadata: {", "metadata: {annotations: {lb-agent.io/mode: shadow}, ");
    cast.stage.dir.write_text("policy", &shadow).unwrap();
    let counted = |outcome: &str| {
        let metrics = cast.stage.agents[0].metrics().unwrap();
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("lb_verdicts_total") && line.contains(outcome));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    wait::until("would_deny is counted", SOON, || {
        cast.expect("all Pods, while it is only tried", &|_| true);
        anyhow::ensure!(counted("would_deny") > 0.0, "none");
        Ok(())
    })
    .unwrap();
    assert!(counted("\"deny\"").abs() < 0.5, "nothing is denied");
}
