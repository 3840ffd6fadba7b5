//! Random histories of a small cluster: what happens, and the objects there are at the end.

use std::collections::BTreeMap;
use std::num::{NonZeroI64, NonZeroU16, NonZeroU32};

use lb_common::addr::Addr;
use lb_common::flow::proto;
use lb_core::cluster::{
    Algorithm, Change, Conditions, Endpoint, EndpointSlice, Event, Extra, Family, Hints, Kind,
    Labels, Name, Node, Pod, Prefix, Service, ServiceCidr, ServicePort, ServiceType, SlicePort,
    TrafficPolicy, Weighted,
};
use lb_testkit::objects::addr;
use proptest::prelude::*;

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Service(u8, Option<Service>),
    Slice(u8, u8, Option<EndpointSlice>),
    Pod(u8, bool),
    /// This node.
    Node(Option<Node>),
    /// The addresses of this host.
    Host(Vec<Addr>),
    ServiceCidr(Option<ServiceCidr>),
    Wait(u16),
    Restart,
    Write,
}

/// The objects there are at the end of a history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects(pub(crate) BTreeMap<(u8, u8, u8), Event>);

impl Objects {
    pub(crate) fn apply(&mut self, step: &Step) -> Option<Event> {
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
                let pod = there.then(|| Pod {
                    ips: [endpoint_addr(*i)].into(),
                    node: "here".into(),
                    ..Pod::default()
                });
                ((2, *i, 0), Event::Pod(change(name("p", *i), pod)), *there)
            }
            Step::Node(node) => {
                let change = change(Name::new("", "here"), node.clone());
                ((3, 0, 0), Event::Node(change), node.is_some())
            }
            Step::Host(addrs) => ((4, 0, 0), Event::Host(addrs.clone().into()), true),
            Step::ServiceCidr(cidr) => {
                let change = change(Name::new("", "kubernetes"), cidr.clone());
                ((5, 0, 0), Event::ServiceCidr(change), cidr.is_some())
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

    pub(crate) fn listed(&self) -> Vec<Event> {
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

/// The last is a process of this host.
fn endpoint_addr(i: u8) -> Addr {
    if i == 8 { addr("172.31.0.1") } else { addr(&format!("10.244.1.{}", i + 1)) }
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// Some of these, sorted.
fn some<T: Clone + Ord + std::fmt::Debug + 'static>(
    all: &[T],
    most: usize,
) -> impl Strategy<Value = Box<[T]>> + use<T> {
    let all = all.to_vec();
    prop::collection::btree_set(prop::sample::select(all), 0..=most)
        .prop_map(|some| some.into_iter().collect())
}

fn service() -> impl Strategy<Value = Service> {
    // Two Services may claim one address, as only manifests can do.
    let ips = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "fd96::1", "fd96::2"].map(addr);
    let ports =
        prop::collection::btree_map(0usize..4, (80u16..82, prop::option::of(0u16..2)), 0..3);
    let types = [ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer];
    let types = prop::sample::select(types.to_vec());
    let extra = prop::option::weighted(0.7, extra());
    (some(&ips, 3), ports, any::<bool>(), 0i64..4, types, extra).prop_map(
        |(cluster_ips, ports, local, created, service_type, extra)| {
            let port = |(i, (port, node_port)): (usize, (u16, Option<u16>))| {
                let (name, protocol) =
                    [("a", proto::TCP), ("b", proto::TCP), ("c", proto::UDP), ("d", proto::SCTP)]
                        [i];
                let open = service_type != ServiceType::ClusterIp;
                // `a` and `b` of one Service must differ in both.
                let node_port = node_port.filter(|_| open).map(|n| 30_080 + n + u16::from(i == 1));
                ServicePort {
                    name: name.into(),
                    protocol,
                    port: port + u16::from(i == 1) * 2,
                    node_port: node_port.and_then(NonZeroU16::new),
                }
            };
            let mut ports: Vec<ServicePort> = ports.into_iter().map(port).collect();
            ports.dedup_by(|b, a| b.protocol == a.protocol && b.node_port == a.node_port);
            let extra = extra.map(|mut extra| {
                if service_type != ServiceType::LoadBalancer {
                    extra.lb_ips = Box::default();
                    extra.source_ranges = None;
                }
                Box::new(extra)
            });
            Service {
                service_type,
                cluster_ips,
                ports: ports.into(),
                internal_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
                created: NonZeroI64::new(created),
                selector: Labels::default(),
                extra,
            }
        },
    )
}

fn extra() -> impl Strategy<Value = Extra> {
    let lb = ["203.0.113.1", "203.0.113.2", "172.31.0.1", "10.96.0.1", "2001:db8::7"].map(addr);
    let ips = ["192.0.2.1", "192.0.2.130", "198.18.0.1", "203.0.113.1", "2001:db8::1"].map(addr);
    let ranges = ["10.0.0.0/8", "172.31.0.0/16", "0.0.0.0/0", "2001:db8::/32"].map(prefix);
    let algorithms = prop_oneof![
        16 => Just(Algorithm::Random),
        1 => Just(Algorithm::Maglev),
        3 => Just(Algorithm::LeastConnections),
    ];
    let weights = [(Weighted::Addr(endpoint_addr(1)), 2), (Weighted::Addr(endpoint_addr(2)), 5)];
    (
        any::<bool>(),
        some(&lb, 2),
        some(&ips, 2),
        prop::option::of(some(&ranges, 2)),
        prop::option::of(10u32..12),
        algorithms,
        (some(&weights, 2), any::<bool>()),
    )
        .prop_map(
            |(
                local,
                lb_ips,
                external_ips,
                source_ranges,
                affinity,
                algorithm,
                (weights, by_stack),
            )| Extra {
                external_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
                lb_ips,
                proxied: false,
                external_ips,
                source_ranges,
                affinity_secs: affinity.and_then(NonZeroU32::new),
                health_port: None,
                algorithm,
                by_stack,
                weights,
            },
        )
}

fn node() -> impl Strategy<Value = Node> {
    let addresses = ["172.31.0.1", "172.31.0.2", "2001:db8:31::1"].map(addr);
    let zone = prop::option::of(prop::sample::select(vec!["x", "y"]));
    (some(&addresses, 2), zone).prop_map(|(addresses, zone)| Node {
        addresses,
        pod_cidrs: [prefix("10.244.1.0/24")].into(),
        zone: zone.map(Into::into),
        ..Node::default()
    })
}

/// An endpoint as it is drawn: number, conditions, whether it is here, hints for a zone and a node.
type Drawn = (u8, (bool, bool, bool), bool, (Option<bool>, Option<bool>));

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    let hints = (prop::option::of(any::<bool>()), prop::option::of(any::<bool>()));
    let endpoint = (0u8..9, conditions, any::<bool>(), hints);
    let family = prop::bool::weighted(0.8);
    (prop::collection::vec(endpoint, 0..5), 8080u16..8082, family).prop_map(
        |(endpoints, port, v4)| {
            let endpoint = |(i, (ready, serving, terminating), local, (zone, node)): Drawn| {
                let hint = |one: Option<bool>, [yes, no]: [&str; 2]| {
                    one.map(|is| if is { yes } else { no }.into()).into_iter().collect()
                };
                let hints =
                    Hints { zones: hint(zone, ["x", "y"]), nodes: hint(node, ["here", "there"]) };
                Endpoint {
                    addr: if v4 { endpoint_addr(i) } else { addr(&format!("fd44::{}", i + 1)) },
                    conditions: Conditions { ready, serving, terminating },
                    node: Some(if local { "here" } else { "there" }.into()),
                    zone: None,
                    pod: None,
                    hints: (hints != Hints::default()).then(|| Box::new(hints)),
                }
            };
            let port = |name: &str, protocol| SlicePort { name: name.into(), protocol, port };
            EndpointSlice {
                service: "".into(),
                family: if v4 { Family::V4 } else { Family::V6 },
                ports: [
                    port("a", proto::TCP),
                    port("b", proto::TCP),
                    port("c", proto::UDP),
                    port("d", proto::SCTP),
                ]
                .into(),
                endpoints: endpoints.into_iter().map(endpoint).collect(),
                trigger_ms: None,
            }
        },
    )
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..4, prop::option::weighted(0.8, service())).prop_map(|(i, s)| Step::Service(i, s)),
        6 => (0u8..4, 0u8..2, prop::option::weighted(0.85, slice()))
            .prop_map(|(i, j, s)| Step::Slice(i, j, s)),
        1 => (0u8..8, any::<bool>()).prop_map(|(i, there)| Step::Pod(i, there)),
        1 => prop::option::weighted(0.9, node()).prop_map(Step::Node),
        1 => some(&["172.31.0.1", "172.31.0.3"].map(addr), 2).prop_map(|it| Step::Host(it.into())),
        1 => prop::option::of(some(&["10.96.0.0/16", "192.0.2.128/25"].map(prefix), 2))
            .prop_map(|it| Step::ServiceCidr(it.map(|prefixes| ServiceCidr { prefixes }))),
        4 => (0u16..4000).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        6 => Just(Step::Write),
    ]
}
