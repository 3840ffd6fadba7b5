//! What a machine of its own is needed for: its wall clock is set. Real agents, real sockets, two nodes, Services and policies;
//! `cargo xtask verifier --wrap` runs it on other kernels.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime, clock_settime};
use testbed::{
    Agent, Bed, Node, Pod, Shape,
    client::{Connection, Transport, ask},
    manifest::{Directory, node_of, pod_of},
    server::Server,
    wait,
};

use crate::stage::{ONLY_FRIENDS, TRANSPORTS, port_80, service, ways_to};

/// Long enough for an emulated machine that shares its CPUs: there, the verifier alone needs a minute.
const SOON: Duration = Duration::from_secs(180);
/// For one question there.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is not answered within this time is denied: a friend who asks at the same address is answered before and after.
const DENIED: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const STICKY: [&str; 2] = ["10.96.0.11", "fd96::11"];

/// The wall clock, which goes on from where it was once this is dropped.
struct Clock {
    wall: Duration,
    since: Instant,
}

impl Clock {
    /// # Panics
    /// On a machine with a network, which has clients.
    fn of_own_machine() -> Self {
        let devices = std::fs::read_dir("/sys/class/net").unwrap();
        let others: Vec<_> = devices
            .map(|device| device.unwrap().path())
            .filter(|path| !path.ends_with("lo") && is_up(path))
            .collect();
        assert!(
            others.is_empty(),
            "this test sets the wall clock, and the machine has {others:?}: run it in one without a network"
        );
        Self { wall: clock_gettime(ClockId::CLOCK_REALTIME).unwrap().into(), since: Instant::now() }
    }

    /// What it would be by now.
    fn right(&self) -> Duration {
        self.wall + self.since.elapsed()
    }

    fn set(to: Duration) {
        clock_settime(ClockId::CLOCK_REALTIME, to.into()).unwrap();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        Self::set(self.right());
    }
}

fn is_up(device: &Path) -> bool {
    let flags = std::fs::read_to_string(device.join("flags")).unwrap();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    flags & libc::IFF_UP as u32 != 0
}

/// On node b three servers; on node a a friend and a stranger, which only the first server knows apart. The Service of the two others
/// keeps its clients.
struct Cast {
    // Dropped in this order.
    agents: Vec<Agent>,
    _servers: Vec<Server>,
    dir: Directory,
    web: Pod,
    friend: Pod,
    stranger: Pod,
    _bed: Bed,
}

impl Cast {
    fn new(prefix: &str) -> Self {
        let bed = Bed::new(prefix).unwrap();
        let dir = bed.manifests().unwrap();
        let [a, b] = ["a", "b"].map(|name| bed.node(name, Shape::Routed).unwrap());
        let [web, one, two] = ["web", "one", "two"].map(|name| b.pod(name).unwrap());
        let (friend, stranger) = (a.pod("friend").unwrap(), a.pod("stranger").unwrap());
        let servers = [&web, &one, &two]
            .map(|pod| Server::named(&pod.netns, &pod.name, 8080).unwrap())
            .into();
        let objects = [
            node_of(&a),
            node_of(&b),
            service("web", WEB),
            service("sticky", STICKY).set(&["spec", "sessionAffinity"], "ClientIP".into()),
            pod_of(&web).label("app", "web"),
            pod_of(&one).label("app", "sticky"),
            pod_of(&two).label("app", "sticky"),
            pod_of(&friend).label("friend", "yes"),
            pod_of(&stranger).label("friend", "no"),
        ];
        dir.write("cast", &objects).unwrap();
        dir.write_text("policy", ONLY_FRIENDS).unwrap();
        let start = |node: &Node| {
            let mut agent = Agent::new(node, Path::new(env!("CARGO_BIN_EXE_lb-agent")), &dir.path);
            agent.spawn().unwrap();
            agent
        };
        let agents = vec![start(&a), start(&b)];
        Self { agents, _servers: servers, dir, web, friend, stranger, _bed: bed }
    }

    /// The server that the policy is about, straight and through its Service.
    fn addresses(&self) -> Vec<SocketAddr> {
        ways_to(&self.web, WEB)
    }

    /// Waits until the server answers this client at all addresses, or at none of them.
    fn expect(&self, what: &str, client: &Pod, answered: bool) {
        let patience = if answered { PATIENCE } else { DENIED };
        for addr in self.addresses() {
            for transport in TRANSPORTS {
                let outcome = wait::until(what, SOON, || {
                    let answer = client.netns.enter(|| ask(transport, addr, patience))?;
                    anyhow::ensure!(answer.is_ok() == answered, "{answer:?}");
                    Ok(())
                });
                if let Err(err) = outcome {
                    panic!("{}: {transport:?} {addr}: {err:#}\n{}", client.name, self.logs());
                }
            }
        }
    }

    /// Who answers this client at both addresses of the Service that keeps it.
    fn kept_by(&self, client: &Pod) -> Vec<String> {
        let answer = |ip| {
            let answered = wait::until("the backend that a client keeps", SOON, || {
                Ok(client.netns.enter(|| ask(Transport::Tcp, port_80(ip), PATIENCE))??)
            });
            let (name, _) = answered
                .unwrap_or_else(|err| panic!("{}: {ip}: {err:#}\n{}", client.name, self.logs()));
            name
        };
        STICKY.map(answer).into()
    }

    fn logs(&self) -> String {
        let of = |agent: &Agent| format!("--- {}\n{}\n", agent.node.name, agent.log_tail());
        self.agents.iter().map(of).collect()
    }
}

/// A clock that was wrong at the start is set by a year, that of a virtual machine after a snapshot goes back by two: connections
/// that are open go on, a client keeps its backend, new connections are judged as before, and changes are applied.
#[test]
fn a_wall_clock_that_is_set_changes_no_connection_and_no_verdict() {
    let clock = Clock::of_own_machine();
    let cast = Cast::new("clock");
    cast.expect("the friend", &cast.friend, true);
    cast.expect("the stranger", &cast.stranger, false);
    let open = |addr: SocketAddr| {
        cast.friend.netns.enter(|| Connection::open(addr, SOON)).unwrap().unwrap()
    };
    let mut connections: Vec<_> = cast.addresses().into_iter().map(open).collect();
    let kept_by = [&cast.friend, &cast.stranger].map(|client| cast.kept_by(client));
    let right = || clock.right();
    let settings: [(&str, &dyn Fn() -> Duration); 3] = [
        ("forward", &|| right() + YEAR),
        ("back", &|| right() - 2 * YEAR),
        ("right again", &right),
    ];
    for (step, time) in settings {
        Clock::set(time());
        for connection in &mut connections {
            let peer = connection.peer().unwrap();
            let answer = connection.ask();
            assert_eq!(answer.ok().as_deref(), Some("web"), "{step}: {peer}\n{}", cast.logs());
        }
        let still = [&cast.friend, &cast.stranger].map(|client| cast.kept_by(client));
        assert_eq!(still, kept_by, "{step}");
        cast.expect(step, &cast.friend, true);
        cast.expect(step, &cast.stranger, false);
        cast.dir.remove("policy").unwrap();
        cast.expect(step, &cast.stranger, true);
        cast.dir.write_text("policy", ONLY_FRIENDS).unwrap();
        cast.expect(step, &cast.stranger, false);
        cast.expect(step, &cast.friend, true);
        for agent in &cast.agents {
            let status = agent.lbctl(&["status"]);
            assert!(status.is_ok(), "{step}: {status:?}\n{}", cast.logs());
        }
    }
}
