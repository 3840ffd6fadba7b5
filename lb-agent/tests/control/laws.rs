//! Laws of the pure middle, over random histories of a small cluster: what must hold whatever happened before.
//!
//! Every single write is checked by the maps themselves (`maps.rs`): each prefix of each plan is sound.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lb_common::config::Settings;
use lb_core::cluster::{Change, Event, Extra, Kind, Name, Service, Weighted};
use lb_core::plan::Capacity;
use lb_testkit::objects::{self, endpoint, nth, service, slice};
use proptest::prelude::*;

use crate::pipeline::Pipeline;
use history::{Objects, Step, step};

mod history;
mod node;
mod shares;

/// A Service with this number of ports and endpoints, of weight 100 except one, needs all slots and all backends.
const PORTS: u32 = 5;
const ENDPOINTS: u32 = 120;
/// Enough for what the histories hold at one time, too little for one that leaks.
const CAPACITY: Capacity = Capacity {
    frontends: 300,
    slots: with_reserve(PORTS * (ENDPOINTS * 100 - 1)),
    backends: with_reserve(PORTS * ENDPOINTS) + 1,
    source_ranges: 200,
};

/// What a table must hold so that so much of it may be wanted for good.
const fn with_reserve(wanted: u32) -> u32 {
    wanted * 8 / 7 + 1
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
            Step::Service(..)
            | Step::Slice(..)
            | Step::Pod(..)
            | Step::Node(_)
            | Step::Host(_)
            | Step::ServiceCidr(_) => {}
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

/// All that the maps say, but for ids and places: what frontends do, their ports, settings. Whatever waits is waited
/// for. The ports of host processes are what backends have that may still drain, and so are none of it.
fn said(pipeline: &mut Pipeline) -> (BTreeMap<String, String>, BTreeSet<u16>, Settings) {
    pipeline.maps.fail_every = 0;
    // As long as a backend rests that was the last with its port.
    pipeline.advance(Duration::from_secs(60));
    let maps = &pipeline.maps;
    assert_eq!(maps.lost_ranges(), BTreeSet::new());
    let [ports, _] = maps.ports().map(|(found, wanted)| {
        assert_eq!(found, wanted, "ports");
        found
    });
    let settings = maps.actual.settings.as_deref().copied().unwrap_or(Settings::ZERO);
    (maps.traffic(), ports, settings)
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
        let (mut pipeline, objects) = play(&steps, 0);
        prop_assert_eq!(said(&mut pipeline), said(&mut fresh(objects.listed())));
    }

    #[test]
    fn failed_writes_come_again(steps in prop::collection::vec(step(), 1..60), every in 2u32..11) {
        let (mut pipeline, objects) = play(&steps, every);
        prop_assert_eq!(said(&mut pipeline), said(&mut fresh(objects.listed())));
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
        let mut shuffled = fresh(events.into_iter().map(|(event, _)| event).chain(synced));
        prop_assert_eq!(said(&mut shuffled), said(&mut fresh(objects.listed())));
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
        prop_assert_eq!(said(&mut pipeline), said(&mut fresh(objects.listed())));
        pipeline.restart(objects.listed());
        prop_assert_eq!(pipeline.round(), []);
    }

    #[test]
    fn nothing_is_left_over_in_the_end(steps in prop::collection::vec(step(), 1..60), every in 3u32..12) {
        // A try whose every other write fails gets nowhere where a removal takes many of them at once.
        let (mut pipeline, objects) = play(&steps, if every == 3 { 0 } else { every });
        let gone = objects.0.into_values().map(|event| match event {
            Event::Service(Change::Applied(name, _)) => Event::Service(Change::Deleted(name)),
            Event::Slice(Change::Applied(name, _)) => Event::Slice(Change::Deleted(name)),
            Event::Pod(Change::Applied(name, _)) => Event::Pod(Change::Deleted(name)),
            Event::Node(Change::Applied(name, _)) => Event::Node(Change::Deleted(name)),
            Event::ServiceCidr(Change::Applied(name, _)) => {
                Event::ServiceCidr(Change::Deleted(name))
            }
            other => other,
        });
        pipeline.tell(gone.collect::<Vec<_>>());
        pipeline.settle();
        pipeline.advance(Duration::from_secs(300));
        prop_assert!(pipeline.maps.actual.frontends.is_empty());
        prop_assert_eq!(pipeline.maps.leftover(), []);
        prop_assert!(pipeline.maps.actual.source_ranges.is_empty());
        prop_assert!(pipeline.maps.actual.frontend_ports.iter().all(|bits| *bits == 0));
        prop_assert!(pipeline.maps.actual.former_ports.iter().all(|bits| *bits == 0));
        prop_assert!(pipeline.maps.actual.host_ports.iter().all(|bits| *bits == 0));
        // All slots and all ids can be had again.
        pipeline.maps.fail_every = 0;
        pipeline.tell(everything());
        pipeline.settle();
        prop_assert_eq!(pipeline.planner.issues().count(), 0);
    }
}

/// A Service that needs all slots and all backends there are.
fn everything() -> [Event; 2] {
    let addr = |i: u32| nth("10.245.0.0", i);
    let ports = || (0u16..).take(PORTS as usize).map(|i| (format!("p{i}"), 80 + i));
    let weights = (0..ENDPOINTS).map(|i| (Weighted::Addr(addr(i)), if i == 0 { 99 } else { 100 }));
    let extra = Extra { weights: weights.collect(), ..Extra::default() };
    let service =
        Service { extra: Some(Box::new(extra)), ..service(objects::addr("10.96.0.9"), ports()) };
    let slice = slice("all", ports(), (0..ENDPOINTS).map(|i| endpoint(addr(i))));
    let name = Name::new("ns", "all");
    [
        Event::Service(Change::Applied(name.clone(), service)),
        Event::Slice(Change::Applied(name, slice)),
    ]
}
