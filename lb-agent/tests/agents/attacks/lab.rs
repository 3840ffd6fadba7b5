//! The laboratory: who attacks, who is attacked, and how to tell that a frame did not arrive.
//!
//! ```text
//! node a: mallory (may send to UDP port 7 only)   web (lets in friend, and UDP port 7)   friend   stranger
//! node b: far                                     outside: client
//! ```
//! All frames of a volley, and an honest one behind them, are sent from one CPU, so that they stay in order on their
//! way: when the honest one has arrived, nothing before it is still to come.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use testbed::{
    Agent, Netns, Node, Pod, Shape,
    frame::{Ip, Link, Mac},
    manifest::{node_of, pod_of},
    measure, raw,
    raw::Port,
    wait,
};

use crate::stage::{Stage, service};

/// Nothing that is expected takes longer, even on a machine with other work.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A Pod that all Pods may send to: what arrives there shows that the path works.
pub(crate) const OPEN_PORT: u16 = 7;
/// IPv4 and IPv6, as indices into pairs of addresses.
pub(crate) const FAMILIES: [usize; 2] = [0, 1];
/// Addresses of the Service `web`.
pub(crate) const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// Mallory may send to the open port only, and only friends and the open port reach web.
pub(crate) const ISOLATED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: mallory, namespace: default}
spec:
  podSelector: {matchLabels: {role: mallory}}
  policyTypes: [Egress]
  egress: [{ports: [{port: 7, protocol: UDP}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {role: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: friend}}}]
  - ports: [{port: 7, protocol: UDP}]
";

/// A place from where frames are sent and where they arrive.
pub(crate) struct Station {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) port: Port,
    pub(crate) ips: [IpAddr; 2],
    /// Its node, if it is a Pod.
    node: Option<String>,
    /// Next hop of what it sends.
    via: Mac,
}

impl Station {
    /// Its address of a family, with a port.
    pub(crate) fn at(&self, family: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.ips[family], port)
    }
}

/// Frames that belong together, and bytes by which their arrival is known.
#[derive(Debug)]
pub(crate) struct Shot {
    what: String,
    pub(crate) frames: Vec<Vec<u8>>,
    needle: Vec<u8>,
}

impl Shot {
    /// If one of `frames` carries it, whatever was put around it or taken off.
    pub(crate) fn is_in(&self, frames: &[Vec<u8>]) -> bool {
        let carries = |frame: &Vec<u8>| frame.windows(self.needle.len()).any(|w| w == self.needle);
        frames.iter().any(carries)
    }
}

/// Whose drops are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    NodeA,
    NodeB,
}

pub(crate) struct Lab {
    pub(crate) shape: Shape,
    pub(crate) mallory: Station,
    pub(crate) web: Station,
    pub(crate) friend: Station,
    pub(crate) stranger: Station,
    pub(crate) far: Station,
    pub(crate) client: Station,
    marks: Cell<u32>,
    pub(crate) stage: Stage,
}

/// The laboratory of each shape under [`ISOLATED`], for one test after the other.
static ROUTED: Mutex<Option<Lab>> = Mutex::new(None);
static BRIDGED: Mutex<Option<Lab>> = Mutex::new(None);

/// A laboratory that tests share. A test that changes policies, Pods or agents makes its own.
pub(crate) struct Shared(MutexGuard<'static, Option<Lab>>);

impl Shared {
    /// Waits for the laboratory of this shape. A test that failed may have left anything in it: then it is built again.
    pub(crate) fn isolated(shape: Shape) -> Self {
        let (place, prefix) = match shape {
            Shape::Routed => (&ROUTED, "atkroute"),
            Shape::Bridge => (&BRIDGED, "atkbridge"),
        };
        let mut lab = place.lock().unwrap_or_else(|poisoned| {
            place.clear_poison();
            let mut lab = PoisonError::into_inner(poisoned);
            *lab = None;
            lab
        });
        lab.get_or_insert_with(|| Lab::new(prefix, shape, ISOLATED));
        Self(lab)
    }
}

impl std::ops::Deref for Shared {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.0.as_ref().expect("it was made when it was taken")
    }
}

impl Lab {
    /// Nodes of a shape under `policies`; returns when these hold.
    pub(crate) fn new(prefix: &str, shape: Shape, policies: &str) -> Self {
        let mut stage = Stage::new(prefix, shape);
        // Before it has Pods: their devices take the default.
        for node in [&stage.a, &stage.b] {
            weaken(node);
        }
        let (a, b) = (stage.a.clone(), stage.b.clone());
        let [web, friend] = ["web", "friend"].map(|name| stage.server(&a, name));
        let far = stage.server(&b, "far");
        let [mallory, stranger] = ["mallory", "stranger"].map(|name| a.pod(name).unwrap());
        stage.dir.write("nodes", &[node_of(&a), node_of(&b)]).unwrap();
        let pods = [&web, &friend, &far, &mallory, &stranger];
        let mut objects = vec![service("web", WEB)];
        objects.extend(pods.map(|pod| {
            let app = if pod.name == "web" { "web" } else { "none" };
            pod_of(pod).label("role", &pod.name).label("app", app)
        }));
        stage.dir.write("cast", &objects).unwrap();
        let client = stage.bed.outsider("client").unwrap();
        let client = Station {
            name: "client".into(),
            port: Port::open(&client, "eth0").unwrap(),
            ips: ["172.31.0.200", "fd31::200"].map(|ip| ip.parse().unwrap()),
            node: None,
            via: raw::mac(&a.netns, "eth0").unwrap(),
            netns: client,
        };
        let lab = Self {
            shape,
            mallory: station(&a, &mallory, shape),
            web: station(&a, &web, shape),
            friend: station(&a, &friend, shape),
            stranger: station(&a, &stranger, shape),
            far: station(&b, &far, shape),
            client,
            marks: Cell::new(0),
            stage,
        };
        for pod in [&lab.mallory, &lab.stranger] {
            for family in FAMILIES {
                lab.stage.wait_for(&pod.netns, lab.far.at(family, 8080), &["far"]);
            }
        }
        lab.enforce(policies);
        lab
    }

    /// Replaces the policies, and waits until what they isolate is isolated.
    pub(crate) fn enforce(&self, policies: &str) {
        self.stage.dir.write_text("policies", policies).unwrap();
        let open = |from: &Station, to: &Station| {
            let limit = Duration::from_millis(100);
            from.netns
                .enter(|| std::net::TcpStream::connect_timeout(&to.at(0, 8080), limit).is_ok())
        };
        let isolated = |role: &str| policies.contains(&format!("{{role: {role}}}}}\n"));
        wait::until("the policies hold", PATIENCE, || {
            for (role, from, to) in
                [("mallory", &self.mallory, &self.far), ("web", &self.stranger, &self.web)]
            {
                anyhow::ensure!(open(from, to)? != isolated(role), "{role}");
            }
            Ok(())
        })
        .unwrap();
    }

    /// The link by which frames go from one to the other.
    pub(crate) fn link(&self, from: &Station, to: &Station) -> Link {
        let neighbours = self.shape == Shape::Bridge && from.node.is_some() && from.node == to.node;
        let dst = if neighbours || (from.node.is_none() && to.node.is_none()) {
            to.port.mac
        } else if from.node.is_none() && to.node.as_deref() == Some("b") {
            raw::mac(&self.stage.b.netns, "eth0").unwrap()
        } else {
            from.via
        };
        Link { src: from.port.mac, dst }
    }

    /// 8 bytes that stand in no other frame: no more, so that a piece of a datagram has room for them.
    fn mark(&self) -> Vec<u8> {
        self.marks.set(self.marks.get() + 1);
        format!("<m{:05}>", self.marks.get()).into_bytes()
    }

    /// A shot that is known by a mark, which `make` puts into its frames.
    pub(crate) fn shot(
        &self,
        what: impl Into<String>,
        make: impl FnOnce(&[u8]) -> Vec<Vec<u8>>,
    ) -> Shot {
        let needle = self.mark();
        Shot { what: what.into(), frames: make(&needle), needle }
    }

    /// An honest datagram to the open port.
    pub(crate) fn honest(&self, from: &Station, to: &Station, family: usize) -> Shot {
        let link = self.link(from, to);
        let (src, dst) = (from.at(family, 4007), to.at(family, OPEN_PORT));
        self.shot("honest", |mark| vec![link.frame(&Ip::udp(src, dst, mark))])
    }

    /// What of these arrives: their names.
    pub(crate) fn arriving(
        &self,
        from: &Station,
        to: &Station,
        family: usize,
        shots: &[Shot],
    ) -> Vec<String> {
        self.fire(from, to, &[self.honest(from, to, family)], &[]);
        self.fire(from, to, &[self.honest(from, to, family)], shots)
    }

    /// Sends `shots`, then `last`, waits for that to arrive, and tells which of the others did.
    fn fire(&self, from: &Station, to: &Station, last: &[Shot], shots: &[Shot]) -> Vec<String> {
        to.port.received().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                measure::pin(measure::last_cpu().unwrap()).unwrap();
                for frame in shots.iter().chain(last).flat_map(|shot| &shot.frames) {
                    from.port.send(frame).unwrap();
                }
            });
        });
        let mut frames = Vec::new();
        let what = format!("what {} sends honestly to {}", from.name, to.name);
        let arrived = wait::until(&what, PATIENCE, || {
            frames.extend(to.port.received()?);
            anyhow::ensure!(last.iter().all(|shot| shot.is_in(&frames)), "not there");
            Ok(())
        });
        if let Err(err) = arrived {
            panic!("{err:#}\n{}", self.stage.logs());
        }
        shots.iter().filter(|shot| shot.is_in(&frames)).map(|shot| shot.what.clone()).collect()
    }

    /// All of these arrive.
    pub(crate) fn passes(&self, from: &Station, to: &Station, family: usize, shots: &[Shot]) {
        let names: Vec<String> = shots.iter().map(|shot| shot.what.clone()).collect();
        let arrived = self.arriving(from, to, family, shots);
        assert_eq!(arrived, names, "{} to {}\n{}", from.name, to.name, self.stage.logs());
    }

    /// None of these arrives.
    pub(crate) fn stops(&self, from: &Station, to: &Station, family: usize, shots: &[Shot]) {
        let arrived = self.arriving(from, to, family, shots);
        let none: Vec<String> = Vec::new();
        assert_eq!(arrived, none, "{} to {}\n{}", from.name, to.name, self.stage.logs());
    }

    /// None of these arrives, and each frame was dropped for `reason` by the agent's programs on `at`.
    pub(crate) fn drops(
        &self,
        at: At,
        reason: &str,
        (from, to, family): (&Station, &Station, usize),
        shots: &[Shot],
    ) {
        let before = self.dropped(at, reason);
        self.stops(from, to, family, shots);
        let n = self.dropped(at, reason) - before;
        let sent: usize = shots.iter().map(|shot| shot.frames.len()).sum();
        assert!(
            n >= sent as u64,
            "{n} of {sent} frames from {} to {} dropped for {reason}\n{}",
            from.name,
            to.name,
            self.stage.logs()
        );
    }

    /// Packets that were dropped for this reason, in both directions.
    pub(crate) fn dropped(&self, at: At, reason: &str) -> u64 {
        let rows: Value =
            serde_json::from_str(&self.agent(at).lbctl(&["drops", "-o", "json"]).unwrap()).unwrap();
        let rows = rows.as_array().or_else(|| rows["items"].as_array()).expect("a list of drops");
        let of = rows.iter().filter(|row| row["reason"] == reason);
        of.map(|row| row["count"].as_u64().unwrap()).sum()
    }

    pub(crate) fn agent(&self, at: At) -> &Agent {
        &self.stage.agents[at as usize]
    }
}

/// Takes away what a host may have of its own against forgeries: what stops one must be the programs.
fn weaken(node: &Node) {
    node.netns.nft("delete table inet firewall\n").unwrap();
    for device in ["all", "default", "eth0"] {
        node.netns.sysctl(&[(&format!("net/ipv4/conf/{device}/rp_filter"), "0")]).unwrap();
    }
}

fn station(node: &Node, pod: &Pod, shape: Shape) -> Station {
    let gateway = if shape == Shape::Bridge { "cni0" } else { &pod.device };
    Station {
        name: pod.name.clone(),
        netns: pod.netns.clone(),
        port: Port::open(&pod.netns, "eth0").unwrap(),
        ips: pod.addresses(),
        node: Some(node.name.clone()),
        via: raw::mac(&node.netns, gateway).unwrap(),
    }
}
