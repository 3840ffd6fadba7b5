//! Namespaces share the tables of rules: whose policies are programmed when those of all exceed them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lb_common::limits;
use lb_core::cluster::{Action, Peer, Policy, Tier};
use lb_core::model::policy::{Compiler, DesiredPolicies, PolicyDirection, Room};
use lb_core::plan::policy::DesiredTables;
use lb_core::plan::{Actual, Capacity, MapError, MapStore, Planner, Write};
use lb_testkit::objects::{across, addr, allow, block, cluster_policy, network_policy, pod, rule};
use lb_testkit::world::{NODE, World, WorldFlow, ifindex, split};
use proptest::prelude::*;

use super::naive;

/// Maps of the sizes that they really have, unless they are smaller.
struct Sized {
    tables: Actual,
    room: [usize; 3],
}

const REAL: [u32; 3] = [limits::GROUPS - 2, limits::PORT_BITS, limits::PEER_BITS];

impl MapStore for Sized {
    fn apply(&mut self, op: &Write) -> Result<(), MapError> {
        let [_, ports, peers] = self.room;
        let full = match op {
            Write::PutPortBits { len, key, .. } => {
                !self.tables.port_bits.contains_key(&(*len, *key))
                    && self.tables.port_bits.len() >= ports
            }
            Write::PutPeerBits { key, .. } => {
                !self.tables.peer_bits.contains_key(key) && self.tables.peer_bits.len() >= peers
            }
            _ => false,
        };
        if full {
            return Err(MapError { map: "a map", full: true, source: "no room".into() });
        }
        self.tables.record(op);
        Ok(())
    }
}

/// An agent with a world that grows and shrinks.
struct Agent {
    compiler: Compiler,
    planner: Planner,
    store: Sized,
    desired: DesiredPolicies,
    now: Duration,
}

impl Agent {
    fn new([groups, ports, peers]: [u32; 3]) -> Self {
        let room = [groups, ports, peers].map(|n| n as usize);
        Self {
            compiler: Compiler::new(Room::of(groups, ports, peers)),
            planner: Planner::restore(Actual::default(), Capacity::default()),
            store: Sized { tables: Actual::default(), room },
            desired: DesiredPolicies::default(),
            now: Duration::ZERO,
        }
    }

    /// Follows the world, and lets what is out of use go.
    fn follow(&mut self, world: &World) {
        self.desired = self.compiler.compile(&world.cluster().snapshot());
        let there: BTreeSet<u32> = world.veths().iter().map(|veth| veth.ifindex).collect();
        let mut gone: Vec<u32> = self.store.tables.pods.keys().copied().collect();
        gone.retain(|ifindex| !there.contains(ifindex));
        for gone in gone {
            let (plan, now) = (self.planner.plan_gone(gone), self.now);
            self.planner.apply(plan, &mut self.store, &mut || now);
        }
        for _ in 0..100 {
            let now = self.now;
            let (devices, veths) = (world.devices(), world.veths());
            for veth in &veths {
                let plan = self.planner.plan_pod(Some(&self.desired), veth, 0);
                self.planner.apply(plan, &mut self.store, &mut || now);
            }
            let wanted = DesiredTables {
                desired: Some(&self.desired),
                devices: &devices,
                veths: &veths,
                strict: false,
                pickup_until: 0,
            };
            let plan = self.planner.plan_policies(&wanted, now);
            self.planner.apply(plan, &mut self.store, &mut || now);
            let Some(next) = self.planner.policies().next_wakeup() else { break };
            self.now = next.max(now);
        }
        assert_eq!(self.planner.policies().issues(), [], "what is programmed has room");
    }

    /// The policies that are refused.
    fn refused(&self) -> BTreeSet<(String, String)> {
        let issues = self.desired.issues.iter().inspect(|issue| {
            let text = issue.to_string();
            assert!(text.contains("all namespaces together need more than there are"), "{text}");
        });
        let of = |issue: &lb_core::issue::Issue| {
            (issue.object.namespace.clone(), format!("{} {}", issue.object.name, issue.field))
        };
        issues.map(of).collect()
    }

    fn troubled(&self) -> BTreeSet<String> {
        self.refused().into_iter().map(|(namespace, _)| namespace).collect()
    }

    fn is_denied(&self, flow: &WorldFlow) -> bool {
        flow.judge(&self.store.tables).denied()
    }
}

fn flow(subject: &str, direction: PolicyDirection, peer: &str, port: u16) -> WorldFlow {
    let (ifindex, peer) = (ifindex(&split(subject)), addr(peer));
    WorldFlow { ifindex, direction, peer, protocol: 6, port, shadow: false }
}

fn ip(i: u32) -> String {
    std::net::Ipv4Addr::from_bits(0x0a01_0000 + i).to_string()
}

fn all_peers() -> Vec<Peer> {
    vec![block("0.0.0.0/0", &[])]
}

/// `n` Pods of a namespace, each with a policy of its own for one direction or both.
fn crowd(mut world: World, namespace: &str, n: u32, policy: impl Fn(u32) -> Policy) -> World {
    let first = if namespace == "good" { 60_000 } else { 0 };
    for i in 0..n {
        let name = format!("{namespace}/p{i}");
        let of = format!("x={i}");
        world = world.pod(&name, pod(NODE, &[&ip(first + i)], &of, &[]));
        world = world.policy(&name, Policy { subject: network_policy(&of).subject, ..policy(i) });
    }
    world
}

/// What a tenant with a few Pods wants.
fn good(world: World) -> World {
    crowd(world, "good", 5, |i| {
        let ports = [format!("tcp/{}", 80 + i)];
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        let near = block(&format!("198.51.100.{i}/32"), &[]);
        Policy {
            ingress: Some([allow(vec![near], &ports)].into()),
            egress: Some([allow(all_peers(), &["tcp/443"])].into()),
            ..network_policy("")
        }
    })
}

/// What fills each of the tables.
fn attacks() -> [(&'static str, World); 3] {
    let base = || World::default().node(NODE, &["192.0.2.1"], "");
    let one = || Some([rule(Action::Accept, Some(all_peers()), Some(&["tcp/80"]))].into());
    let groups = crowd(base(), "evil", 3_700, |_| Policy {
        ingress: one(),
        egress: one(),
        ..network_policy("")
    });
    let many: Vec<String> = (0..2_000).map(|i| format!("tcp/{}", 1_000 + 2 * i)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let ports = crowd(base(), "evil", 40, |_| Policy {
        ingress: Some([rule(Action::Accept, Some(all_peers()), Some(&many))].into()),
        ..network_policy("")
    });
    let peers = crowd(base(), "evil", 100, |i| {
        let far = |k: u32| block(&format!("172.{}.{}.{}/32", 16 + i, k / 250, k % 250), &[]);
        let many = (0..if i < 2 { 2_000 } else { 0 }).map(|k| allow(vec![far(k)], &["tcp/80"]));
        let last = allow(all_peers(), &["tcp/443"]);
        Policy { ingress: Some(many.chain([last]).collect()), ..network_policy("") }
    });
    [("groups", groups), ("port_bits", ports), ("peer_bits", peers)]
}

#[test]
fn a_tenant_that_fills_a_table_is_cut_off_and_others_are_not() {
    for (table, attack) in attacks() {
        // The other order is much the same, and the law below has it.
        for late in if table == "peer_bits" { vec![true, false] } else { vec![true] } {
            let world = good(attack.clone());
            let mut agent = Agent::new(REAL);
            if late {
                agent.follow(&attack);
                assert_eq!(agent.troubled(), BTreeSet::from(["evil".to_owned()]), "{table}");
            } else {
                agent.follow(&good(World::default().node(NODE, &["192.0.2.1"], "")));
                assert_eq!(agent.refused(), BTreeSet::new(), "{table}");
            }
            agent.follow(&world);
            let refused = agent.refused();
            println!("{table}: {} of {} refused", refused.len(), world.policies.len());
            assert_eq!(agent.troubled(), BTreeSet::from(["evil".to_owned()]), "{table}");
            let text = agent.desired.issues[0].to_string();
            assert!(
                text.contains(&format!(" {table}, and all namespaces together need more")),
                "{text}"
            );
            let some = world.pods.keys().enumerate();
            let some =
                some.filter(|(i, (of, _))| of == "good" || i % (1 + world.pods.len() / 97) == 0);
            for (_, (namespace, name)) in some {
                for direction in [PolicyDirection::Ingress, PolicyDirection::Egress] {
                    let unit = format!("{name} spec.{}", direction.name());
                    let cut = refused.contains(&(namespace.clone(), unit));
                    for (peer, port) in
                        [("198.51.100.3", 83), ("198.51.100.3", 443), ("172.16.0.7", 80)]
                    {
                        let flow = flow(&format!("{namespace}/{name}"), direction, peer, port);
                        let want = cut || naive::denied(&world, &flow);
                        assert_eq!(agent.is_denied(&flow), want, "{table}, {late}: {flow:?} {cut}");
                    }
                }
            }
            // Half of what there is is left to the one that wants more.
            assert!(refused.len() < world.policies.len() * 2 / 3, "{table}: {}", refused.len());
        }
    }
}

#[test]
fn the_cluster_s_policies_go_before_those_of_namespaces() {
    let [_, _, (_, attack)] = attacks();
    let far = |k: u32| block(&format!("203.{}.{}.0/24", k / 250, k % 250), &[]);
    let rules = (0..500).map(|k| rule(Action::Deny, Some(vec![far(k)]), None));
    let all = cluster_policy(Tier::Admin, 1, across("", ""));
    let all = Policy { egress: Some(rules.collect()), ..all };
    let world = good(attack).policy("all", all);
    let mut agent = Agent::new(REAL);
    agent.follow(&world);
    assert_eq!(agent.troubled(), BTreeSet::from(["evil".to_owned()]));
    for subject in ["good/p1", "evil/p0", "evil/p1", "evil/p50"] {
        for (peer, denied) in [("203.0.7.1", true), ("203.9.7.1", subject.starts_with("good"))] {
            let flow = flow(subject, PolicyDirection::Egress, peer, 80);
            assert_eq!(agent.is_denied(&flow), denied, "{subject} {peer}");
        }
    }
}

/// Of a tenant: a namespace, a number of Pods, of peers, of ports, and whether all Pods have the same policy.
type Wish = (usize, u32, u32, u32, bool);

fn wish() -> impl Strategy<Value = Wish> {
    (0usize..4, 1u32..5, 0u32..12, 1u32..8, any::<bool>())
}

fn granted(world: World, namespace: usize, (_, pods, peers, ports, same): &Wish) -> World {
    let name = ["a", "b", "c", "good"][namespace];
    let ports: Vec<String> = (0..*ports).map(|i| format!("tcp/{}", 80 + 2 * i)).collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let mut world = world;
    for i in 0..*pods {
        let far = |k: u32| block(&format!("100.{namespace}.{k}.0/24"), &[]);
        let many = (0..*peers).map(|k| allow(vec![far(k)], &["tcp/80"]));
        let last = allow(all_peers(), &ports);
        let policy = Policy { ingress: Some(many.chain([last]).collect()), ..network_policy("") };
        let at = u32::try_from(namespace).unwrap() * 100 + i;
        let of = if *same { "x=0".to_owned() } else { format!("x={i}") };
        world = world.pod(&format!("{name}/p{i}"), pod(NODE, &[&ip(at)], &of, &[]));
        world = world.policy(
            &format!("{name}/p{i}"),
            Policy { subject: network_policy(&of).subject, ..policy },
        );
    }
    world
}

fn of_wishes<'a>(wishes: impl Iterator<Item = &'a (usize, Wish)>) -> World {
    let base = World::default().node(NODE, &["192.0.2.1"], "");
    wishes.fold(base, |world, (namespace, wish)| granted(world, *namespace, wish))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 1000 }))]

    #[test]
    fn who_is_refused_depends_on_what_is_wanted_alone(
        history in prop::collection::vec(wish(), 1..6), tight in 1u32..5,
    ) {
        // The last wish of a namespace counts.
        let last: BTreeMap<usize, Wish> =
            history.iter().map(|wish| (wish.0, *wish)).collect();
        let room = [8 * tight, 60 * tight, 80 * tight];
        let wishes: Vec<(usize, Wish)> = last.into_iter().collect();
        let world = of_wishes(wishes.iter());
        let mut agent = Agent::new(room);
        for n in 1..=history.len() {
            let so_far: BTreeMap<usize, Wish> =
                history[..n].iter().map(|wish| (wish.0, *wish)).collect();
            agent.follow(&of_wishes(so_far.into_iter().collect::<Vec<_>>().iter()));
        }
        let mut fresh = Agent::new(room);
        fresh.follow(&world);
        prop_assert_eq!(agent.refused(), fresh.refused());
        let refused = fresh.refused();
        let mut peers: Vec<String> = ["198.51.100.3", "10.1.0.0"].map(str::to_owned).into();
        peers.extend((0..4).flat_map(|n| [0, 5, 11].map(|k| format!("100.{n}.{k}.1"))));
        for (namespace, name) in world.pods.keys() {
            let cut = world.policies.iter().any(|((of, policy), content)| {
                let at = (namespace.clone(), name.clone());
                of == namespace
                    && content.subject.pods.matches(&world.pods[&at].labels)
                    && refused.contains(&(of.clone(), format!("{policy} spec.ingress")))
            });
            for peer in &peers {
                for port in [80, 81, 84, 94] {
                    let flow = flow(&format!("{namespace}/{name}"), PolicyDirection::Ingress, peer, port);
                    let want = cut || naive::denied(&world, &flow);
                    for agent in [&agent, &fresh] {
                        prop_assert_eq!(agent.is_denied(&flow), want, "{:?} {}", flow, cut);
                    }
                }
            }
        }
        // Whoever wants no more than an equal part of each table has all of it: what it costs among others included.
        let n = wishes.len() as u32;
        let limit = room.map(|room| (room - room / 8) / n);
        for (namespace, (_, pods, peers, ports, _)) in &wishes {
            let abroad = n * (pods * pods + peers * peers);
            let wants = [*pods, pods * (ports + peers + 1), pods * (peers + 2) + abroad];
            if wants.iter().zip(limit).all(|(wanted, part)| *wanted <= part) {
                let name = ["a", "b", "c", "good"][*namespace];
                prop_assert!(!fresh.troubled().contains(name), "{} {:?}", name, refused);
            }
        }
    }
}
