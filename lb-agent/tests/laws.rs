//! Laws of the pure middle, over random histories of a small cluster: what must hold whatever happened before.
//!
//! Every single write is checked by the maps themselves (`scenarios/maps.rs`): each prefix of each plan is sound.
#![cfg(test)]

use std::collections::BTreeMap;
use std::num::NonZeroI64;
use std::time::Duration;

use lb_agent::cluster::{
    Change, Conditions, Endpoint, EndpointSlice, Event, Family, Kind, Name, Pod, Service,
    ServicePort, ServiceType, SlicePort, TrafficPolicy,
};
use lb_agent::plan::Capacity;
use lb_common::addr::Addr;
use lb_common::flow::proto;
use proptest::prelude::*;

use crate::pipeline::Pipeline;

#[path = "scenarios/maps.rs"]
#[allow(dead_code, reason = "shared with the scenarios, which use other parts")]
mod maps;
#[path = "scenarios/pipeline.rs"]
#[allow(dead_code, reason = "shared with the scenarios, which use other parts")]
mod pipeline;

/// Enough for what the histories hold at one time, too little for one that leaks.
const CAPACITY: Capacity =
    Capacity { frontends: 200, slots: 60_000, backends: 600, source_ranges: 200 };

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<Service>),
    Slice(u8, u8, Option<EndpointSlice>),
    Pod(u8, bool),
    Wait(u16),
    Restart,
    Write,
}

/// The objects there are at the end of a history.
#[derive(Clone, Debug, Default)]
struct Objects(BTreeMap<(u8, u8, u8), Event>);

impl Objects {
    fn apply(&mut self, step: &Step) -> Option<Event> {
        let (key, event, there) = match step {
            Step::Service(i, service) => {
                let name = name("s", *i);
                let change = change(name, service.clone());
                ((0, *i, 0), Event::Service(change), service.is_some())
            }
            Step::Slice(i, j, slice) => {
                let name = Name::new("ns", format!("s{i}-{j}"));
                let slice =
                    slice.clone().map(|slice| EndpointSlice { service: name_of(*i), ..slice });
                let there = slice.is_some();
                ((1, *i, *j), Event::Slice(change(name, slice)), there)
            }
            Step::Pod(i, there) => {
                let pod =
                    there.then(|| Pod { ips: [endpoint_addr(*i)].into(), host_network: false });
                ((2, *i, 0), Event::Pod(change(name("p", *i), pod)), *there)
            }
            Step::Wait(_) | Step::Restart | Step::Write => return None,
        };
        if there {
            self.0.insert(key, event.clone());
        } else {
            self.0.remove(&key);
        }
        Some(event)
    }

    fn listed(&self) -> Vec<Event> {
        let restarted = Kind::ALL.into_iter().map(Event::Restarted);
        let synced = Kind::ALL.into_iter().map(Event::Synced);
        restarted.chain(self.0.values().cloned()).chain(synced).collect()
    }
}

fn change<T>(name: Name, object: Option<T>) -> Change<T> {
    match object {
        Some(object) => Change::Applied(name, object),
        None => Change::Deleted(name),
    }
}

fn name(prefix: &str, i: u8) -> Name {
    Name::new("ns", format!("{prefix}{i}"))
}

fn name_of(service: u8) -> std::sync::Arc<str> {
    format!("s{service}").into()
}

fn endpoint_addr(i: u8) -> Addr {
    Addr::from_ip(format!("10.244.1.{}", i + 1).parse().unwrap())
}

fn service() -> impl Strategy<Value = Service> {
    let ips = prop::collection::btree_set(0u8..4, 0..3);
    let ports = prop::collection::btree_map(0usize..3, 80u16..82, 0..3);
    (ips, ports, any::<bool>(), (0i64..4)).prop_map(|(ips, ports, local, created)| {
        let port = |(i, port): (usize, u16)| {
            let (name, protocol) = [("a", proto::TCP), ("b", proto::TCP), ("c", proto::UDP)][i];
            ServicePort {
                name: name.into(),
                protocol,
                port: port + u16::from(i == 1) * 2,
                node_port: None,
            }
        };
        Service {
            service_type: ServiceType::ClusterIp,
            // Two Services may claim one address, as only manifests can do.
            cluster_ips: ips
                .into_iter()
                .map(|i| Addr::from_ip(format!("10.96.0.{}", i + 1).parse().unwrap()))
                .collect(),
            ports: ports.into_iter().map(port).collect(),
            internal_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
            created: NonZeroI64::new(created),
            extra: None,
        }
    })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    let endpoint = (0u8..8, conditions, any::<bool>()).prop_map(|(i, conditions, local)| {
        let (ready, serving, terminating) = conditions;
        Endpoint {
            addr: endpoint_addr(i),
            conditions: Conditions { ready, serving, terminating },
            node: Some(if local { "here" } else { "there" }.into()),
            zone: None,
            pod: None,
            hints: None,
        }
    });
    (prop::collection::vec(endpoint, 0..5), 8080u16..8082).prop_map(|(endpoints, port)| {
        let port = |name: &str, protocol| SlicePort { name: name.into(), protocol, port };
        EndpointSlice {
            service: "".into(),
            family: Family::V4,
            ports: [port("a", proto::TCP), port("b", proto::TCP), port("c", proto::UDP)].into(),
            endpoints: endpoints.into(),
            trigger_ms: None,
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..4, prop::option::weighted(0.8, service())).prop_map(|(i, s)| Step::Service(i, s)),
        6 => (0u8..4, 0u8..2, prop::option::weighted(0.85, slice()))
            .prop_map(|(i, j, s)| Step::Slice(i, j, s)),
        1 => (0u8..8, any::<bool>()).prop_map(|(i, there)| Step::Pod(i, there)),
        4 => (0u16..4000).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        6 => Just(Step::Write),
    ]
}

/// Plays a history and lets it settle.
fn play(steps: &[Step], fail_every: u32) -> (Pipeline, Objects) {
    let mut objects = Objects::default();
    let mut pipeline = Pipeline::new("here", CAPACITY);
    pipeline.tell(objects.listed());
    pipeline.maps.fail_every = fail_every;
    for step in steps {
        pipeline.tell(objects.apply(step));
        match step {
            Step::Wait(ms) => pipeline.advance(Duration::from_millis(u64::from(*ms))),
            Step::Restart => pipeline.restart(objects.listed()),
            Step::Write => drop(pipeline.round()),
            Step::Service(..) | Step::Slice(..) | Step::Pod(..) => {}
        }
    }
    pipeline.settle();
    (pipeline, objects)
}

/// What an agent that starts on empty maps makes of the events.
fn fresh(events: impl IntoIterator<Item = Event>) -> Pipeline {
    let mut pipeline = Pipeline::new("here", CAPACITY);
    pipeline.tell(events);
    pipeline.settle();
    pipeline
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn plan_after_apply_is_empty(steps in prop::collection::vec(step(), 1..60)) {
        let (mut pipeline, _) = play(&steps, 0);
        prop_assert_eq!(pipeline.round(), []);
    }

    #[test]
    fn maps_depend_on_the_cluster_and_not_on_the_path(steps in prop::collection::vec(step(), 1..60)) {
        let (pipeline, objects) = play(&steps, 0);
        prop_assert_eq!(pipeline.maps.traffic(), fresh(objects.listed()).maps.traffic());
    }

    #[test]
    fn failed_writes_come_again(steps in prop::collection::vec(step(), 1..60), every in 2u32..11) {
        let (pipeline, objects) = play(&steps, every);
        prop_assert_eq!(pipeline.maps.traffic(), fresh(objects.listed()).maps.traffic());
        prop_assert_eq!(pipeline.planner.issues().count(), 0);
    }

    #[test]
    fn order_of_events_does_not_matter(
        steps in prop::collection::vec(step(), 1..40),
        seed in prop::collection::vec(any::<u32>(), 64),
    ) {
        let (_, objects) = play(&steps, 0);
        let mut events: Vec<_> = objects.0.values().cloned().zip(seed).collect();
        events.sort_by_key(|(_, random)| *random);
        let synced = Kind::ALL.into_iter().map(Event::Synced);
        let shuffled = fresh(events.into_iter().map(|(event, _)| event).chain(synced));
        prop_assert_eq!(shuffled.maps.traffic(), fresh(objects.listed()).maps.traffic());
    }

    #[test]
    fn restart_with_the_same_cluster_writes_nothing(steps in prop::collection::vec(step(), 1..60)) {
        let (mut pipeline, objects) = play(&steps, 0);
        pipeline.restart(objects.listed());
        prop_assert_eq!(pipeline.round(), []);
    }

    #[test]
    fn restart_after_a_crash_between_two_writes_heals(
        steps in prop::collection::vec(step(), 1..40), more in prop::collection::vec(step(), 1..6),
        crash_after in 1u32..30,
    ) {
        // Every write from the crash on fails: they might as well not have been made.
        let (mut pipeline, mut objects) = play(&steps, 0);
        let events: Vec<_> = more.iter().filter_map(|step| objects.apply(step)).collect();
        pipeline.tell(events);
        pipeline.maps.crash_after(crash_after);
        pipeline.round();
        pipeline.maps.fail_every = 0;
        pipeline.restart(objects.listed());
        pipeline.settle();
        prop_assert_eq!(pipeline.maps.traffic(), fresh(objects.listed()).maps.traffic());
        pipeline.restart(objects.listed());
        prop_assert_eq!(pipeline.round(), []);
    }

    #[test]
    fn nothing_is_left_over_in_the_end(steps in prop::collection::vec(step(), 1..60), every in 0u32..11) {
        let (mut pipeline, objects) = play(&steps, if every == 1 { 0 } else { every });
        let gone = objects.0.into_values().map(|event| match event {
            Event::Service(Change::Applied(name, _)) => Event::Service(Change::Deleted(name)),
            Event::Slice(Change::Applied(name, _)) => Event::Slice(Change::Deleted(name)),
            Event::Pod(Change::Applied(name, _)) => Event::Pod(Change::Deleted(name)),
            other => other,
        });
        pipeline.tell(gone.collect::<Vec<_>>());
        pipeline.settle();
        pipeline.advance(Duration::from_secs(300));
        prop_assert!(pipeline.maps.actual.frontends.is_empty());
        prop_assert_eq!(pipeline.maps.leftover(), []);
        // All slots and all ids can be had again.
        pipeline.maps.fail_every = 0;
        let service = Service {
            service_type: ServiceType::ClusterIp,
            cluster_ips: [Addr::from_ip("10.96.0.9".parse().unwrap())].into(),
            ports: [ServicePort { name: "".into(), protocol: proto::TCP, port: 80, node_port: None }].into(),
            internal_policy: TrafficPolicy::Cluster,
            created: None,
            extra: None,
        };
        let endpoint = |i: u32| Endpoint {
            addr: Addr::from_ip(std::net::Ipv4Addr::from_bits(0x0af5_0000 + i).into()),
            conditions: Conditions { ready: true, serving: true, terminating: false },
            node: None, zone: None, pod: None, hints: None,
        };
        let slice = EndpointSlice {
            service: "all".into(),
            family: Family::V4,
            ports: [SlicePort { name: "".into(), protocol: proto::TCP, port: 80 }].into(),
            endpoints: (0..CAPACITY.backends - 1).map(endpoint).collect(),
            trigger_ms: None,
        };
        let name = Name::new("ns", "all");
        pipeline.tell([
            Event::Service(Change::Applied(name.clone(), service)),
            Event::Slice(Change::Applied(name, slice)),
        ]);
        pipeline.settle();
        prop_assert_eq!(pipeline.planner.issues().count(), 0);
    }
}
