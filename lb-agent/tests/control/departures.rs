//! When the programs for packets that leave the node are attached: the loop follows `Planner::watches_departures` after each
//! plan and after its writes, so each change of it attaches and detaches at every device.

use lb_common::addr::Addr;
use lb_core::cluster::{Change, Event, Kind, Name, Node};
use lb_core::plan::Capacity;
use lb_testkit::objects::{addr, endpoint, service, slice};

use crate::pipeline::Pipeline;

const HOST: &str = "192.0.2.1";

/// A Service with one endpoint.
pub(crate) fn events(name: &str, cluster_ip: &str, backend: Addr) -> [Event; 2] {
    let of = Name::new("default", name);
    let service = service(addr(cluster_ip), [("http", 80)]);
    let slice = slice(name, [("http", 80)], [endpoint(backend)]);
    [Event::Service(Change::Applied(of.clone(), service)), Event::Slice(Change::Applied(of, slice))]
}

/// Pods behind one Service, all written.
pub(crate) fn pipeline() -> Pipeline {
    let mut pipeline = Pipeline::new("here", Capacity::default());
    pipeline.tell(Kind::ALL.map(Event::Synced));
    let node = Node { addresses: [addr(HOST)].into(), ..Node::default() };
    pipeline.tell([Event::Node(Change::Applied(Name::new("", "here"), node))]);
    pipeline.tell([Event::Host([addr(HOST)].into())]);
    pipeline.tell(events("pods", "10.96.0.1", addr("10.244.0.1")));
    pipeline.settle();
    assert!(!pipeline.planner.watches_departures(), "no backend is a process of this host");
    pipeline
}

#[test]
fn departures_are_watched_while_the_write_of_a_host_backend_fails() {
    let mut pipeline = pipeline();
    pipeline.maps.fail_every = 1;
    pipeline.tell(events("api", "10.96.0.2", addr(HOST)));
    pipeline.round();
    for retry in 0..10 {
        assert!(pipeline.planner.watches_departures(), "retry {retry}");
        assert!(pipeline.planner.is_stalled(), "retry {retry}");
        assert!(pipeline.maps.actual.host_ports.iter().all(|ports| *ports == 0), "not written");
        // A change of another Service, while the next try is still to come.
        pipeline.tell(events("pods", "10.96.0.1", addr(&format!("10.244.0.{}", 2 + retry))));
        pipeline.round();
        assert!(pipeline.planner.watches_departures(), "before retry {}", retry + 1);
        pipeline.maps.now = pipeline.planner.next_wakeup().unwrap().max(pipeline.maps.now);
        pipeline.round();
    }
    pipeline.maps.fail_every = 0;
    pipeline.settle();
    assert!(pipeline.planner.watches_departures(), "written");
}

#[test]
fn departures_are_not_watched_for_a_host_backend_that_is_no_longer_wanted() {
    let mut pipeline = pipeline();
    pipeline.maps.fail_every = 1;
    pipeline.tell(events("api", "10.96.0.2", addr(HOST)));
    pipeline.round();
    assert!(pipeline.planner.watches_departures());
    let name = Name::new("default", "api");
    pipeline.tell([Event::Slice(Change::Deleted(name.clone()))]);
    pipeline.round();
    assert!(!pipeline.planner.watches_departures(), "it was never written");
    pipeline.tell([Event::Service(Change::Deleted(name))]);
    pipeline.maps.fail_every = 0;
    pipeline.settle();
    assert!(!pipeline.planner.watches_departures());
}
