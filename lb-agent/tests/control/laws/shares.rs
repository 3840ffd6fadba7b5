//! Tenants share tables: whose Services are programmed when the wishes of all exceed them.

use std::collections::BTreeSet;
use std::num::{NonZeroI64, NonZeroU16};
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::flow::proto;
use lb_common::limits;
use lb_common::service::{FrontendKey, MAGLEV_SLOTS, state};
use lb_core::cluster::{
    Algorithm, Change, Cluster, Dirty, Event, Extra, Kind, Name, Node, Pod, ServiceType,
};
use lb_core::model::rules::Rules;
use lb_core::model::{Changed, Desired};
use lb_core::plan::{Actual, Capacity, MapError, MapStore, Planner, Write};
use lb_testkit::objects::{endpoint, nth, service, slice};
use proptest::prelude::*;

/// Maps that obey: what they say is what the planner says they do.
struct Obeying;

impl MapStore for Obeying {
    fn apply(&mut self, _: &Write) -> Result<(), MapError> {
        Ok(())
    }
}

/// A Service to be, with as many endpoints.
#[derive(Clone, Debug)]
struct Wish {
    namespace: &'static str,
    name: String,
    ports: u16,
    endpoints: u32,
    maglev: bool,
    created: i64,
}

fn wish(namespace: &'static str, name: impl ToString, ports: u16, endpoints: u32) -> Wish {
    Wish { namespace, name: name.to_string(), ports, endpoints, maglev: false, created: 1 }
}

impl Wish {
    fn name(&self) -> Name {
        Name::new(self.namespace, self.name.as_str())
    }

    /// Another one for each name.
    fn cluster_ip(&self) -> Addr {
        let text = format!("{}/{}", self.namespace, self.name);
        let hash = text
            .bytes()
            .fold(5381u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
        Addr::from_ip(std::net::Ipv4Addr::from_bits(0x0a60_0000 | hash & 0x000f_ffff).into())
    }

    fn events(&self) -> [Event; 2] {
        let created = self.created.max(1);
        // Maglev is for clients outside the cluster. Ports of their own for all that ask for it.
        let first = 10_000 + u16::try_from(created).unwrap() * 100;
        let ports = |first: u16| (0..self.ports).map(move |i| (format!("p{i}"), first + i));
        let mut service = service(self.cluster_ip(), ports(80));
        service.created = NonZeroI64::new(created);
        if self.maglev {
            service.service_type = ServiceType::NodePort;
            service.extra =
                Some(Box::new(Extra { algorithm: Algorithm::Maglev, ..Extra::default() }));
            for (port, number) in service.ports.iter_mut().zip(first..) {
                port.node_port = NonZeroU16::new(number);
            }
        }
        let endpoints = (0..self.endpoints).map(|i| endpoint(pod_addr(i)));
        let slice = slice(&self.name, ports(80), endpoints);
        let name = self.name();
        [
            Event::Service(Change::Applied(name.clone(), service)),
            Event::Slice(Change::Applied(name, slice)),
        ]
    }

    fn removal(&self) -> [Event; 2] {
        let name = self.name();
        [Event::Service(Change::Deleted(name.clone())), Event::Slice(Change::Deleted(name))]
    }
}

fn pod_addr(i: u32) -> Addr {
    nth("10.244.0.0", i)
}

struct Agent {
    cluster: Cluster,
    desired: Desired,
    planner: Planner,
    dirty: Dirty,
    now: Duration,
}

impl Agent {
    fn new(capacity: Capacity) -> Self {
        let mut agent = Self {
            cluster: Cluster::new("here"),
            desired: Desired::new(Rules::default()),
            planner: Planner::restore(Actual::default(), capacity),
            dirty: Dirty::default(),
            now: Duration::ZERO,
        };
        agent.tell(Kind::ALL.map(Event::Synced));
        let node = Node { addresses: [address("192.0.2.1")].into(), ..Node::default() };
        agent.tell([Event::Node(Change::Applied(Name::new("", "here"), node))]);
        agent
    }

    fn tell(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.dirty.merge(self.cluster.apply(event));
        }
    }

    fn round(&mut self) {
        let changed = self.desired.update(&self.cluster, &std::mem::take(&mut self.dirty));
        self.write(&changed);
    }

    fn write(&mut self, changed: &Changed) {
        let alive = |addr: &_| self.cluster.is_alive(addr);
        let plan = self.planner.plan(&self.desired, changed, &alive, self.now);
        let now = self.now;
        let applied = self.planner.apply(plan, &mut Obeying, &mut || now);
        assert!(applied.failed.is_empty());
    }

    /// Writes what was told, and lets time pass.
    fn advance(&mut self, time: Duration) {
        self.round();
        let end = self.now + time;
        while let Some(at) = self.planner.next_wakeup().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.round();
        }
        self.now = end;
    }

    fn want(&mut self, wishes: &[Wish]) {
        self.tell(wishes.iter().flat_map(Wish::events));
    }

    fn remove(&mut self, wishes: &[Wish]) {
        self.tell(wishes.iter().flat_map(Wish::removal));
    }

    /// Which of the ports of a Service have all its endpoints.
    fn served(&self, wish: &Wish) -> BTreeSet<u16> {
        let actual = self.planner.actual();
        let ports = (0..wish.ports).map(|i| 80 + i);
        let is_served = |port: &u16| {
            let key = FrontendKey::new(wish.cluster_ip(), Be16::new(*port), proto::TCP);
            let Some(frontend) = actual.frontends.get(&key) else { return false };
            let slots = (frontend.base..frontend.base + frontend.n)
                .map(|slot| actual.backends[actual.slots[slot as usize] as usize]);
            let found: BTreeSet<Addr> = slots
                .map(|backend| {
                    assert_eq!(backend.state, state::ACTIVE);
                    assert_eq!(backend.port.get(), *port);
                    backend.addr
                })
                .collect();
            found == (0..wish.endpoints).map(pod_addr).collect()
        };
        ports.filter(is_served).collect()
    }

    fn is_served(&self, wish: &Wish) -> bool {
        self.served(wish).len() == usize::from(wish.ports)
    }

    /// Slots of the tables of a Service's node ports.
    fn tables(&self, wish: &Wish) -> Vec<u32> {
        let actual = self.planner.actual();
        let service = &self.desired.services[&wish.name()];
        let externals = service.ports.iter().flat_map(|port| &port.extra);
        let externals = externals.flat_map(|extra| &extra.externals);
        let keys = externals
            .map(|external| FrontendKey::new(external.addr, Be16::new(external.port), proto::TCP));
        keys.filter_map(|key| Some(actual.frontends.get(&key)?.maglev_n)).collect()
    }

    fn troubled(&self) -> BTreeSet<String> {
        self.planner.issues().map(|issue| issue.object.namespace.clone()).collect()
    }
}

fn address(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

/// What fills tables of the size that they have at first.
fn attacks() -> [(&'static str, Vec<Wish>); 3] {
    // 128 tables of consistent hashing are all slots there are; then as many ports as it takes.
    let mut maglev: Vec<Wish> =
        (0..2).map(|i| Wish { maglev: true, created: i + 1, ..wish("evil", i, 64, 1) }).collect();
    maglev.extend((0..24).map(|i| wish("evil", format!("plain{i}"), 100, 1)));
    let slots = (0..14).map(|i| wish("evil", i, 100, 100)).collect();
    let backends = (0..7).map(|i| wish("evil", i, 100, 100)).collect();
    [("maglev", maglev), ("slots", slots), ("backends", backends)]
}

#[test]
fn whoever_fills_the_tables_pays_for_it() {
    for (what, attack) in attacks() {
        for first in [true, false] {
            let mut agent = Agent::new(FIRST);
            let old = wish("good", "old", 3, 20);
            if first {
                agent.want(std::slice::from_ref(&old));
            }
            agent.advance(Duration::from_secs(1));
            agent.want(&attack);
            agent.advance(Duration::from_secs(1));
            agent.want(std::slice::from_ref(&old));
            let new = Wish { created: 9, ..wish("good", "new", 50, 40) };
            agent.want(std::slice::from_ref(&new));
            // At once, without waiting for anything.
            agent.round();
            assert!(agent.is_served(&old) && agent.is_served(&new), "{what}, {first}");
            assert_eq!(agent.troubled(), ["evil".to_owned()].into(), "{what}, {first}");
            // What is programmed follows its endpoints.
            let grown = Wish { endpoints: 60, ..old.clone() };
            let shrunk = Wish { endpoints: 1, ..new.clone() };
            agent.want(&[grown.clone(), shrunk.clone()]);
            agent.round();
            assert!(agent.is_served(&grown) && agent.is_served(&shrunk), "{what}, {first}");
            agent.advance(Duration::from_secs(60));
            assert_eq!(agent.troubled(), ["evil".to_owned()].into(), "{what}, {first}");
            assert!(attack.iter().any(|wish| agent.is_served(wish)), "{what}: it has its share");

            agent.remove(&attack);
            agent.round();
            assert_eq!(agent.troubled(), BTreeSet::new(), "{what}, {first}");
            let late = Wish { created: 10, ..wish("good", "late", 30, 100) };
            agent.want(std::slice::from_ref(&late));
            agent.round();
            assert!(agent.is_served(&late), "{what}, {first}: at once");
        }
    }
}

#[test]
fn ports_go_before_tables_and_hashing_goes_on_without_them() {
    let [(_, mut attack), ..] = attacks();
    attack.truncate(2);
    for wish in &mut attack {
        wish.endpoints = 5;
    }
    let mut agent = Agent::new(FIRST);
    agent.want(&attack);
    agent.advance(Duration::from_secs(1));
    let tables: Vec<u32> = attack.iter().flat_map(|wish| agent.tables(wish)).collect();
    let with = tables.iter().filter(|n| **n == MAGLEV_SLOTS).count();
    let without = tables.iter().filter(|n| **n == 5).count();
    assert_eq!((tables.len(), with + without), (256, 256), "at the node and at localhost");
    assert!(with > 200 && without > 20, "{with} tables");
    assert!(attack.iter().all(|wish| agent.is_served(wish)), "no port is lost");
    let issues: Vec<_> = agent.planner.issues().collect();
    assert_eq!(issues.len(), 1, "the younger Service has lost some: {issues:?}");
    assert_eq!(
        issues[0].to_string(),
        "Service evil/1: metadata.annotations[lb-agent.io/algorithm]: namespace evil needs more than 131072 of \
         131072 slots, and all namespaces together need more than there are: ports 127, 128, 129 and 14 more have no \
         Maglev table: clients are hashed to the current endpoints, and more of them change endpoints when the \
         endpoints change"
    );
}

#[test]
fn ids_of_services_that_are_gone_are_not_kept_from_others_by_their_pods() {
    let mut agent = Agent::new(FIRST);
    for i in 0..100 {
        let pod = Pod { ips: [pod_addr(i)].into(), node: "there".into(), ..Pod::default() };
        agent.tell([Event::Pod(Change::Applied(Name::new("evil", format!("p{i}")), pod))]);
    }
    // Again and again other Services over the same Pods, which live on.
    for round in 0..5 {
        let attack: Vec<Wish> =
            (0..5).map(|i| wish("evil", format!("{round}-{i}"), 100, 100)).collect();
        agent.want(&attack);
        agent.advance(Duration::from_secs(30));
        assert!(attack.iter().all(|wish| agent.is_served(wish)), "{round}");
        agent.remove(&attack);
        agent.round();
        let good = Wish { created: 3, ..wish("good", round, 4, 100) };
        agent.want(std::slice::from_ref(&good));
        agent.round();
        assert!(agent.is_served(&good), "{round}");
    }
    assert_eq!(agent.troubled(), BTreeSet::new());
}

/// Tables of a few elements.
/// Tables as they are at first: of those that have grown as far as they may, much more would have to be wanted.
const FIRST: Capacity = Capacity {
    frontends: limits::FRONTENDS,
    slots: limits::SLOTS,
    backends: limits::BACKENDS,
    source_ranges: limits::SOURCE_RANGES,
};
const SMALL: Capacity = Capacity { frontends: 400, slots: 200, backends: 121, source_ranges: 8 };

fn random_wish() -> impl Strategy<Value = Wish> {
    (0usize..4, 0u8..5, 1u16..6, 0u32..12, 0i64..3).prop_map(
        |(namespace, name, ports, endpoints, created)| {
            let namespace = ["a", "b", "c", "d"][namespace];
            Wish { created, ..wish(namespace, name, ports, endpoints) }
        },
    )
}

/// What is served in the end.
fn outcome(agent: &mut Agent, wishes: &[&Wish]) -> Vec<(Name, BTreeSet<u16>, BTreeSet<String>)> {
    agent.advance(Duration::from_secs(200));
    let troubled: BTreeSet<String> = agent.planner.issues().map(ToString::to_string).collect();
    let served = wishes.iter().map(|wish| (wish.name(), agent.served(wish), troubled.clone()));
    served.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_admitted_depends_on_the_wishes_alone(
        history in prop::collection::vec((random_wish(), any::<bool>(), 0u64..40), 1..30),
    ) {
        let mut there = std::collections::BTreeMap::new();
        let mut agent = Agent::new(SMALL);
        for (wish, removed, pause) in &history {
            if *removed {
                agent.remove(std::slice::from_ref(wish));
                there.remove(&wish.name());
            } else {
                agent.want(std::slice::from_ref(wish));
                there.insert(wish.name(), wish);
            }
            agent.advance(Duration::from_millis(pause * 100));
        }
        let wishes: Vec<&Wish> = there.into_values().collect();
        let found = outcome(&mut agent, &wishes);
        for reversed in [false, true] {
            let mut fresh = Agent::new(SMALL);
            let mut order = wishes.clone();
            if reversed {
                order.reverse();
            }
            for wish in order {
                fresh.want(std::slice::from_ref(wish));
                if reversed {
                    fresh.round();
                }
            }
            prop_assert_eq!(&outcome(&mut fresh, &wishes), &found);
        }
        // Whoever wants no more than an equal part of each table has all of it.
        let namespaces: BTreeSet<&str> = wishes.iter().map(|wish| wish.namespace).collect();
        for namespace in &namespaces {
            let own = || wishes.iter().filter(|wish| wish.namespace == *namespace);
            let elements: u32 = own().map(|wish| u32::from(wish.ports) * wish.endpoints).sum();
            let frontends: u32 = own().map(|wish| u32::from(wish.ports) + 1).sum();
            let n = namespaces.len() as u32;
            if elements <= 105 / n && frontends <= 350 / n {
                for wish in own() {
                    prop_assert!(agent.is_served(wish), "{wish:?}");
                }
                prop_assert!(!agent.troubled().contains(*namespace));
            }
        }
    }
}
