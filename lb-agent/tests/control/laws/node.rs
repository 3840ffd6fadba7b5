//! The same laws for all other maps: policies, whose addresses are whose, Pods, devices, MAC addresses and sources.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lb_common::endpoint::{self, Dev, PodEntry, PodFlags};
use lb_core::cluster::{Name, Prefix};
use lb_core::model::policy::{Compiler, DesiredPolicies};
use lb_core::plan::policy::{DesiredTables, PodDevice};
use lb_core::plan::{
    Actual, Capacity, MacTables, MapError, MapStore, Plan, Planner, SourceKey, Write,
};
use lb_testkit::world::World;
use proptest::prelude::*;

use crate::maps::lot;
use crate::policies::naive;
use crate::policies::random::{flows, related};

/// Maps that refuse some writes.
#[derive(Default)]
struct Maps {
    tables: Actual,
    /// One in this number of writes fails; 0 = none.
    fail_every: u32,
    n_writes: u32,
    /// The number of writes until all fail.
    crash_after: Option<u32>,
    /// What Pods may send from before or after the plan that is applied.
    admitted: BTreeSet<SourceKey>,
}

impl Maps {
    /// Checks what packets could do between this write and the next.
    fn check(&self) {
        let Actual { macs, links, pods, pod_sources, .. } = &self.tables;
        for (index, element) in links {
            let mac = element & ((1 << 48) - 1);
            let Some(holder) = macs.get(&mac) else { continue };
            let only = endpoint::link(*holder, mac);
            assert_eq!((*index, *element), only, "another device can send from {mac:x}, too");
        }
        let is_marked = |key: &&SourceKey| {
            pods.get(&key.ifindex).is_some_and(|pod| pod.flags.contains(PodFlags::MORE_SOURCES))
        };
        for key in pod_sources.iter().filter(is_marked) {
            assert!(self.admitted.contains(key), "{key:?} is in no annotation");
        }
    }
}

impl MapStore for Maps {
    fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        self.n_writes += 1;
        let crashed = self.crash_after.is_some_and(|n| self.n_writes > n);
        if crashed || self.fail_every > 0 && lot(self.n_writes).is_multiple_of(self.fail_every) {
            // Both kinds: of a full map, and of a kernel that refuses.
            let full = lot(self.n_writes).is_multiple_of(2);
            return Err(MapError { map: write.map(), full, source: "made to fail".into() });
        }
        self.tables.record(write);
        self.check();
        Ok(())
    }
}

/// What writes, as the agent wires it.
struct Node {
    compiler: Compiler,
    desired: DesiredPolicies,
    planner: Planner,
    maps: Maps,
    now: Duration,
}

impl Node {
    fn new(tables: Actual) -> Self {
        Self {
            compiler: Compiler::default(),
            desired: DesiredPolicies::default(),
            planner: Planner::restore(tables.clone(), Capacity::default()),
            maps: Maps { tables, ..Maps::default() },
            now: Duration::ZERO,
        }
    }

    /// Another agent on the same maps.
    fn restarted(self) -> Self {
        let now = self.now + Duration::from_secs(1);
        let Maps { tables, admitted, .. } = self.maps;
        let mut node = Self { now, ..Self::new(tables) };
        node.maps.admitted = admitted;
        node
    }

    /// The world is another one: devices come and go, policies are compiled, all maps are written once.
    fn follow(&mut self, world: &World) -> Vec<Write> {
        self.desired = self.compiler.compile(&world.cluster().snapshot());
        let veths = veths(world);
        let gone: Vec<u32> = self.planner.actual().pods.keys().copied().collect();
        let mut writes = Vec::new();
        for ifindex in gone.into_iter().filter(|i| veths.iter().all(|veth| veth.ifindex != *i)) {
            let plan = self.planner.plan_gone(ifindex);
            writes.extend(self.apply(plan));
        }
        let left = &self.maps.tables.pods;
        let is_there = |i: &u32| left.contains_key(i) || veths.iter().any(|v| v.ifindex == *i);
        self.maps.admitted.retain(|key| is_there(&key.ifindex));
        for veth in &veths {
            self.planner.appeared(veth.ifindex);
            let plan = self.planner.plan_pod(Some(&self.desired), veth, 7);
            writes.extend(self.apply(plan));
        }
        writes.extend(self.round(world));
        writes
    }

    /// Writes all maps once; returns the writes.
    fn round(&mut self, world: &World) -> Vec<Write> {
        let plan = self.planner.plan_devs(&devs(world));
        let mut writes = self.apply(plan);
        let plan = self.planner.plan_links(&macs(world));
        writes.extend(self.apply(plan));
        let wanted = sources(world);
        self.maps.admitted.extend(wanted.keys());
        let plan = self.planner.plan_pod_sources(wanted);
        writes.extend(self.apply(plan));
        let (devices, veths) = (world.devices(), veths(world));
        let wanted = DesiredTables {
            desired: Some(&self.desired),
            devices: &devices,
            veths: &veths,
            strict: false,
            pickup_until: 7,
        };
        let plan = self.planner.plan_policies(&wanted, self.now);
        writes.extend(self.apply(plan));
        veths.iter().for_each(|veth| self.planner.is_known(veth.ifindex));
        writes
    }

    fn apply(&mut self, plan: Plan) -> Vec<Write> {
        let (writes, now) = (plan.writes.clone(), self.now);
        let applied = self.planner.apply(plan, &mut self.maps, &mut || now);
        assert!(applied.writes + applied.failed.len() <= writes.len());
        assert_eq!(self.planner.actual(), &self.maps.tables, "the planner's idea of the maps");
        writes
    }

    /// Rounds until nothing is left to do, retries included: those advance the clock.
    fn settle(&mut self, world: &World) {
        for _ in 0..1000 {
            let next = [self.planner.policies().next_wakeup(), self.planner.next_devices()];
            let Some(next) = next.into_iter().flatten().min() else { return };
            self.now = self.now.max(next);
            self.round(world);
        }
        panic!("never settles: {:?}", self.planner.policies().issues());
    }

    /// Checks that the maps say what the world says, and hold no more than those of an agent that knows nothing else.
    fn check(&self, world: &World) {
        let tables = &self.maps.tables;
        for flow in [false, true].into_iter().flat_map(|shadow| flows(&[world], shadow)) {
            let got = flow.judge(tables).denied();
            assert_eq!(got, naive::denied(world, &flow), "{flow:?}");
        }
        let mut fresh = Self::new(Actual::default());
        fresh.follow(world);
        fresh.settle(world);
        let fresh = fresh.maps.tables;
        let sizes = |tables: &Actual| {
            let Actual { peer_bits, port_bits, cidrs, .. } = tables;
            (peer_bits.len(), port_bits.len(), cidrs.len())
        };
        assert_eq!(sizes(tables), sizes(&fresh));
        let whose = |tables: &Actual| -> BTreeMap<_, _> {
            let ident = tables.ident.iter();
            ident.map(|(addr, known)| (*addr, (known.flags, known.ifindex))).collect()
        };
        assert_eq!(whose(tables), whose(&fresh));
        assert_eq!(tables.devs, devs(world));
        let MacTables { macs, links } = macs(world);
        assert_eq!((&tables.macs, &tables.links), (&macs, &links));
        let sources: BTreeSet<SourceKey> = sources(world).into_keys().collect();
        assert_eq!(tables.pod_sources, sources);
        let marked =
            tables.pods.iter().filter(|(_, pod)| pod.flags.contains(PodFlags::MORE_SOURCES));
        let wanting: BTreeSet<u32> = sources.iter().map(|key| key.ifindex).collect();
        assert_eq!(marked.map(|(ifindex, _)| *ifindex).collect::<BTreeSet<_>>(), wanting);
        let found: BTreeMap<u32, PodEntry> =
            tables.pods.iter().map(|(ifindex, pod)| (*ifindex, device_part(pod))).collect();
        let want = veths(world).into_iter().map(|veth| (veth.ifindex, veth.device_part));
        assert_eq!(found, want.collect());
        let mut ids: Vec<u32> = tables.pods.values().map(|pod| pod.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), ids.contains(&0)), (tables.pods.len(), false), "numbers of Pods");
        assert_eq!(self.planner.policies().issues(), []);
        assert_eq!(self.planner.node_issues().count(), 0);
    }
}

/// The devices of this node's Pods; what they say changes with the world.
fn veths(world: &World) -> Vec<PodDevice> {
    let nsid = u32::try_from(world.policies.len()).unwrap() % 3;
    let device_part = PodEntry { nsid, ..PodEntry::ZERO };
    world.veths().into_iter().map(|veth| PodDevice { device_part, ..veth }).collect()
}

/// What a device itself says of its element.
fn device_part(pod: &PodEntry) -> PodEntry {
    PodEntry { nsid: pod.nsid, ..PodEntry::ZERO }
}

/// Devices by which packets leave: another number and other sizes in each world.
fn devs(world: &World) -> BTreeMap<u32, Dev> {
    let mtu = 1400 + u32::try_from(world.policies.len()).unwrap();
    let n = u32::try_from(world.pods.len()).unwrap();
    (n % 2..=n).map(|ifindex| (ifindex, Dev { mtu, ..Dev::ZERO })).collect()
}

/// Who has which MAC address: the last one of each world is another device's in the next.
fn macs(world: &World) -> MacTables {
    let mut tables = MacTables::default();
    let shift = u64::try_from(world.policies.len()).unwrap() % 3;
    for (i, veth) in (0_u64..).zip(veths(world)) {
        let mac = 0x0200_0000_0000 | (i + shift);
        tables.macs.insert(mac, veth.ifindex);
        let (index, element) = endpoint::link(veth.ifindex, mac);
        tables.links.insert(index, element);
    }
    tables
}

/// What some of the Pods can send from; other ranges in each world.
fn sources(world: &World) -> BTreeMap<SourceKey, Name> {
    let n = u8::try_from(world.policies.len()).unwrap();
    let wanting = veths(world).into_iter().filter(|veth| veth.ifindex % 3 != u32::from(n % 3));
    let keys = wanting.flat_map(|veth| {
        let ranges = [format!("10.9.{n}.0/24"), "10.9.0.0/16".to_owned(), format!("fd09:{n}::/32")];
        let ranges = ranges.map(|range| range.parse::<Prefix>().unwrap());
        ranges.map(|range| SourceKey { ifindex: veth.ifindex, range })
    });
    keys.map(|key| (key, Name::new("default", "web"))).collect()
}

/// Plays a history, and settles at its end.
fn play(worlds: &[World], fail_every: u32, restart: usize) -> Node {
    let mut node = Node::new(Actual::default());
    node.maps.fail_every = fail_every;
    for (i, world) in worlds.iter().enumerate() {
        if restart > 0 && i % restart == 0 {
            node = node.restarted();
            node.maps.fail_every = fail_every;
        }
        node.now += Duration::from_millis(300);
        node.follow(world);
    }
    node.settle(worlds.last().unwrap());
    node
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 100 } else { 1000 }))]

    #[test]
    fn plan_after_apply_is_empty(worlds in related()) {
        let mut node = play(&worlds, 0, 0);
        let last = worlds.last().unwrap();
        node.check(last);
        prop_assert_eq!(node.follow(last), []);
    }

    #[test]
    fn failed_writes_come_again(worlds in related(), every in 2u32..11, restart in 0usize..3) {
        let mut node = play(&worlds, every, restart);
        node.check(worlds.last().unwrap());
        prop_assert_eq!(node.round(worlds.last().unwrap()), []);
    }

    #[test]
    fn restart_with_the_same_cluster_writes_nothing(worlds in related()) {
        let last = worlds.last().unwrap();
        let mut node = play(&worlds, 0, 0).restarted();
        prop_assert_eq!(node.follow(last), []);
    }

    #[test]
    fn restart_after_a_crash_between_two_writes_heals(worlds in related(), crash_after in 0u32..60) {
        let (last, before) = worlds.split_last().unwrap();
        let mut node = play(before, 0, 0);
        // Every write from the crash on fails: they might as well not have been made.
        node.maps.crash_after = Some(node.maps.n_writes + crash_after);
        node.follow(last);
        let mut node = node.restarted();
        node.follow(last);
        node.settle(last);
        node.check(last);
        let mut node = node.restarted();
        prop_assert_eq!(node.follow(last), []);
    }
}
