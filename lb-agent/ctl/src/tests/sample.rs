//! The node that the tables of the tests show.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::SettingFlags;
use lb_common::endpoint::PodEntry;
use lb_common::flow::proto;
use lb_common::past::{LocalEnd, LocalFlags, StackReason};
use lb_common::service::{Backend, Frontend, FrontendKey, state};
use lb_common::verdict::DropReason;

use crate::fields::Fields;
use crate::frontend::FrontendSlots;
use crate::past::PastTables;
use crate::snapshot::{FlowCount, TableSnapshot};
use lb_core::names::{
    AgentInfo, BackendName, DropExample, EndpointConditions, IssueLine, LAYOUT, Names, Place,
    PodName, ServiceName, State, Subsystem,
};

pub(super) const NOW: u64 = 1_800_000_000;
pub(super) const HOUR: u64 = 3600;

pub(super) fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().unwrap())
}

pub(super) fn frontend(
    at: &str,
    protocol: u8,
    service_id: u32,
    backend_ids: &[u32],
) -> FrontendSlots {
    let at: SocketAddr = at.parse().unwrap();
    let n = backend_ids.len() as u32;
    FrontendSlots {
        key: FrontendKey::new(at.ip().into(), Be16::new(at.port()), protocol),
        frontend: Frontend { service_id, n, ..Frontend::ZERO },
        backend_ids: backend_ids.to_vec(),
        local_ids: Vec::new(),
    }
}

pub(super) fn backend(at: &str, protocol: u8, state: u8) -> Backend {
    let at: SocketAddr = at.parse().unwrap();
    Backend {
        addr: at.ip().into(),
        port: Be16::new(at.port()),
        proto: protocol,
        state,
        generation: 1,
        ..Backend::ZERO
    }
}

/// Service default/web on two nodes and both families (one backend draining), kube-system/dns without endpoints, a
/// service port without a name; Pods client and web-1 of this node.
pub(super) fn snapshot() -> TableSnapshot {
    let wildcard = FrontendSlots {
        key: FrontendKey::wildcard(addr("10.96.0.10")),
        frontend: Frontend::ZERO,
        backend_ids: Vec::new(),
        local_ids: Vec::new(),
    };
    let pod = |ip4: &str, ip6: &str, last: u8| PodEntry {
        ip4: addr(ip4),
        ip6: addr(ip6),
        mac: [2, 0, 0, 0, 0, last],
        id: last.into(),
        ..PodEntry::ZERO
    };
    let end = |ifindex, flags| LocalEnd { ifindex, mtu: 1500, flags, ..LocalEnd::ZERO };
    TableSnapshot {
        service_cidrs: Vec::new(),
        frontends: vec![
            wildcard,
            frontend("10.96.0.10:80", proto::TCP, 1, &[1, 2]),
            frontend("[fd96::10]:80", proto::TCP, 1, &[3]),
            frontend("10.96.0.53:53", proto::UDP, 2, &[]),
            frontend("10.96.0.99:443", proto::TCP, 9, &[5]),
        ],
        backends: [
            (1, backend("10.1.0.3:8080", proto::TCP, state::ACTIVE)),
            (2, backend("10.1.1.3:8080", proto::TCP, state::ACTIVE)),
            (3, backend("[fd01::3]:8080", proto::TCP, state::ACTIVE)),
            (4, backend("10.1.1.4:8080", proto::TCP, state::DRAINING)),
            (5, backend("10.1.1.9:6443", proto::TCP, state::ACTIVE)),
        ]
        .into(),
        pods: [(11, pod("10.1.0.2", "fd01::2", 2)), (12, pod("10.1.0.3", "fd01::3", 3))].into(),
        hooks: [(11, vec!["pod_in".to_owned(), "pod_out".to_owned()])].into(),
        ifaces: [(11, "veth11".to_owned())].into(),
        flows: [
            (1, FlowCount { active: 3, inactive: 1 }),
            (4, FlowCount { active: 1, inactive: 0 }),
        ]
        .into(),
        n_slots: 4,
        fields: Fields::default(),
        past: PastTables {
            settings: SettingFlags::LOCAL_PAST,
            ends: [
                (2, end(11, LocalFlags::PAST_OK)),
                (3, end(12, LocalFlags::from_bits(StackReason::OtherPrograms.bit()))),
            ]
            .into(),
        },
    }
}

pub(super) fn names() -> Names<'static> {
    let text = Cow::Borrowed;
    let backend = |id, service_id, pod, place| BackendName {
        id,
        service_id,
        pod: text(pod),
        place,
        ..BackendName::default()
    };
    let pod = |ifindex, iface, name| PodName {
        ifindex,
        iface: text(iface),
        namespace: text("default"),
        name: text(name),
        created: NOW - 99 * HOUR,
    };
    Names {
        layout: LAYOUT,
        node: text("n1"),
        agent: AgentInfo {
            version: text(env!("CARGO_PKG_VERSION")),
            pid: 1,
            started: NOW - HOUR,
            written: NOW - 20,
            synced: NOW - 30,
        },
        subsystems: vec![Subsystem {
            name: text("api"),
            state: State::Ok,
            detail: text("https://10.0.0.1:6443, 5 kinds listed"),
        }],
        issues: vec![IssueLine {
            object: text("EndpointSlice default/web-x7"),
            field: text("endpoints[2].addresses[0]"),
            message: text("\"::zz\" is not an IP address"),
            service: text("default/web"),
            since: NOW - 300,
        }],
        services: vec![
            ServiceName {
                id: 1,
                namespace: text("default"),
                name: text("web"),
                port_name: text("http"),
                port: 80,
                frontends: vec!["10.96.0.10:80".parse().unwrap(), "[fd96::10]:80".parse().unwrap()],
                endpoints: 4,
                ready: 3,
                created: NOW - 2 * HOUR,
                ..ServiceName::default()
            },
            ServiceName {
                id: 2,
                namespace: text("kube-system"),
                name: text("dns"),
                port: 53,
                protocol: proto::UDP,
                frontends: vec!["10.96.0.53:53".parse().unwrap(), "[fd96::53]:53".parse().unwrap()],
                ..ServiceName::default()
            },
        ],
        backends: vec![
            backend(1, 1, "default/web-1", 1),
            BackendName {
                conditions: EndpointConditions::Serving,
                ..backend(2, 1, "default/web-2", 2)
            },
            backend(3, 1, "default/web-1", 1),
            backend(4, 1, "default/web-3", 2),
        ],
        places: vec![
            Place { node: text("n1"), zone: text("a") },
            Place { node: text("n2"), zone: text("") },
        ],
        pods: vec![pod(11, "veth-old", "client"), pod(12, "veth12", "web-1")],
        drops: vec![DropExample {
            reason: DropReason::NoEndpoints as u8,
            ingress: false,
            protocol: proto::UDP,
            src: "10.1.0.2:40000".parse().unwrap(),
            dst: "10.96.0.53:53".parse().unwrap(),
            ifindex: 11,
            service_id: 2,
            at: NOW - 7,
            group: 0,
            judgement: 0,
        }],
        ..Names::default()
    }
}
