//! The table as it is written, against what there is to tell.

use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::flow::proto;

use super::{NameTable, TableFacts, head};
use crate::agent::issues::Issues;
use lb_core::cluster::{
    Change, Cluster, Conditions, Dirty, Endpoint, EndpointSlice, Event, Extra, Family, Kind,
    Labels, Name, Service, ServicePort, ServiceType, SlicePort, TrafficPolicy,
};
use lb_core::model::Desired;
use lb_core::names::{ExternalScope, Names, Place, RejectedName};
use lb_core::plan::{Actual, Capacity, Planner};
use lb_kernel::bpf::events::Examples;

fn addr(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

fn service(name: &str, ip: &str, extra: Option<Extra>) -> Event {
    let service = Service {
        service_type: ServiceType::LoadBalancer,
        cluster_ips: [addr(ip)].into(),
        ports: [ServicePort { name: "".into(), protocol: proto::TCP, port: 80, node_port: None }]
            .into(),
        internal_policy: TrafficPolicy::Cluster,
        created: None,
        selector: Labels::default(),
        extra: extra.map(Box::new),
    };
    Event::Service(Change::Applied(Name::new("shop", name), service))
}

/// Endpoints by address, Pod and whether they are ready; on node n2 in zone b.
fn slice(service: &str, endpoints: &[(&str, &str, bool)]) -> Event {
    let endpoint = |(ip, pod, ready): &(&str, &str, bool)| Endpoint {
        addr: addr(ip),
        conditions: Conditions { ready: *ready, serving: *ready, terminating: false },
        node: Some("n2".into()),
        zone: Some("b".into()),
        pod: Some((*pod).into()),
        hints: None,
    };
    let slice = EndpointSlice {
        service: service.into(),
        family: Family::V4,
        ports: [SlicePort { name: "".into(), protocol: proto::TCP, port: 8080 }].into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        trigger_ms: None,
    };
    Event::Slice(Change::Applied(Name::new("shop", format!("{service}-x")), slice))
}

/// The table of a node that has been told these events and has done all writes.
fn written(events: Vec<Event>) -> Names<'static> {
    let mut cluster = Cluster::new("n1");
    let mut dirty = Dirty::default();
    for event in events.into_iter().chain(Kind::ALL.map(Event::Synced)) {
        dirty.merge(cluster.apply(event));
    }
    let mut desired = Desired::default();
    let changed = desired.update(&cluster, &dirty);
    let mut planner = Planner::restore(Actual::default(), Capacity::default());
    let plan = planner.plan(&desired, &changed, &|addr| cluster.is_alive(addr), Duration::ZERO);
    planner.apply(plan, &mut Actual::default(), &mut || Duration::ZERO);
    let (issues, examples) = (Issues::default(), Examples::default());
    let known = TableFacts {
        cluster: &cluster,
        desired: &desired,
        planner: &planner,
        issues: &issues,
        examples: &examples,
    };
    let table = NameTable { head: head(&known, std::iter::empty()), known, former: None };
    serde_json::from_slice(&serde_json::to_vec(&table).unwrap()).unwrap()
}

#[test]
fn rejected_endpoints_and_external_frontends_are_named() {
    let extra = Extra { lb_ips: [addr("198.51.100.1")].into(), ..Extra::default() };
    let names = written(vec![
        service("web", "10.96.0.1", Some(extra)),
        service("api", "10.96.0.2", None),
        slice("web", &[("10.244.1.1", "web-1", true), ("10.244.1.2", "web-2", false)]),
        slice("api", &[("10.244.1.3", "api-1", true)]),
    ]);
    let of = |name: &str| names.services.iter().find(|service| service.name == name).unwrap();
    let (web, api) = (of("web"), of("api"));
    let [external] = &web.externals[..] else { panic!("{web:?}") };
    assert_eq!(external.at, "198.51.100.1:80".parse().unwrap());
    assert_eq!(external.scope, ExternalScope::LoadBalancer);
    assert!(api.externals.is_empty());
    assert_eq!((web.endpoints, web.ready), (2, 1));
    let want = RejectedName {
        service_id: web.id,
        endpoint: "10.244.1.2:8080".parse().unwrap(),
        pod: "shop/web-2".into(),
        place: 1,
        conditions: lb_core::names::EndpointConditions::NotReady,
        why: "not ready".into(),
    };
    assert_ne!(web.id, 0);
    assert_eq!(names.rejected, [want], "none of a Service whose endpoints all serve");
    assert_eq!(names.places, [Place { node: "n2".into(), zone: "b".into() }]);
    assert_eq!(names.backends.len(), 2);
}
