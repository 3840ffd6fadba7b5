//! The source ports of masqueraded flows under pressure: who yields one to a new flow, and who keeps it.

use std::net::SocketAddr;

use lb_common::be::Be16;
use lb_common::conntrack::{CtKey, scope};
use lb_common::flow::proto;

use super::source;
use lb_testkit::bed::Bed;
use lb_testkit::node::{Addrs, FAMILIES, Way};

/// A node with few ports. Towards each backend it has them all: every case has a backend of its own.
struct Lab {
    bed: Bed,
    served: u16,
}

/// A frontend with one backend on another node.
struct Service {
    transport: &'static str,
    frontend: String,
    pod: String,
    client: &'static str,
}

/// A flow: its client, and the client as its backend sees it.
struct Flow {
    client: String,
    own: SocketAddr,
}

impl Lab {
    fn new<const PORTS: u32>() -> Self {
        Self { bed: Bed::narrow_node::<PORTS>(), served: 0 }
    }

    fn serve(&mut self, family: &Addrs, transport: &'static str) -> Service {
        self.served += 1;
        let (node_port, port) = (30_000 + self.served, 8_000 + self.served);
        let (frontend, pod) = (family.at(family.node, node_port), family.at(family.far_pod, port));
        let protocol = if transport == "tcp" { proto::TCP } else { proto::UDP };
        let id = self.bed.backend(&pod, protocol);
        self.bed.outside(&frontend, protocol, &[id], &Way::default());
        Service { transport, frontend, pod, client: family.client }
    }

    /// A client sends; `None` when that is dropped.
    fn sends(&self, service: &Service, port: u16, flags: &str) -> Option<Flow> {
        let Service { transport, frontend, pod, client } = service;
        let client = SocketAddr::new(client.parse().unwrap(), port).to_string();
        let outcome = self.bed.arrive(&format!("{client} > {frontend} {transport}{flags}"));
        if outcome == "drop" {
            return None;
        }
        assert!(outcome.contains(&format!(" > {pod} ")), "{outcome}");
        Some(Flow { client, own: source(&outcome) })
    }

    /// The first packet of a flow.
    fn opens(&self, service: &Service, port: u16) -> Option<Flow> {
        self.sends(service, port, if service.transport == "tcp" { " S seq=1" } else { "" })
    }

    /// Whether an answer of the backend reaches the client of the flow.
    fn answers(&self, service: &Service, flow: &Flow, flags: &str) -> bool {
        let Service { transport, frontend, pod, .. } = service;
        let outcome = self.bed.arrive(&format!("{pod} > {} {transport}{flags}", flow.own));
        outcome.starts_with(&format!("redirect {frontend} > {} ", flow.client))
    }

    /// Whether the flow has its port still.
    fn lives(&self, service: &Service, flow: &Flow) -> bool {
        let flags = if service.transport == "tcp" { " A seq=8 ack=2" } else { "" };
        self.answers(service, flow, flags)
    }

    /// A flow of this kind.
    fn open(&self, service: &Service, kind: &str, port: u16) -> Flow {
        let says = |flags| drop(self.sends(service, port, flags).unwrap());
        let hears = |flow: &Flow, flags| assert!(self.answers(service, flow, flags), "{kind}");
        let flow = self.opens(service, port).unwrap();
        match kind {
            "asked" | "half open" => {}
            "answered" => hears(&flow, ""),
            "talks" => {
                hears(&flow, "");
                says("");
            }
            "completed blindly" => {
                hears(&flow, " SA seq=7 ack=2");
                says(" A seq=2 ack=99");
                hears(&flow, " R seq=99");
                hears(&flow, " SA seq=7 ack=2");
            }
            "established" | "closed" => {
                hears(&flow, " SA seq=7 ack=2");
                says(" A seq=2 ack=8");
                if kind == "closed" {
                    hears(&flow, " FA seq=8 ack=2");
                    says(" FA seq=2 ack=9");
                    hears(&flow, " A seq=9 ack=3");
                }
            }
            _ => panic!("{kind}"),
        }
        flow
    }
}

#[test]
fn what_is_over_does_not_use_up_the_ports() {
    let mut lab = Lab::new::<64>();
    let cases = [
        (0, "udp", "answered"),
        (1, "udp", "answered"),
        (0, "tcp", "closed"),
        (1, "tcp", "completed blindly"),
    ];
    for (family, transport, kind) in cases {
        let service = lab.serve(&FAMILIES[family], transport);
        for port in 2_000..3_000 {
            lab.open(&service, kind, port);
        }
        assert_eq!(lab.bed.dropped(), 0, "{transport}");
    }
    let entries = lab.bed.conntrack().len();
    assert!(entries <= 4 * 2 * 64, "both entries of a flow go with its port: {entries}");
}

/// Two ports, two flows: which of them a third one gets the port of.
#[test]
fn who_needs_a_port_least_yields_it() {
    let cases = [
        ("udp", "answered", 0, "talks", 0, true),
        ("udp", "answered", 0, "asked", 0, true),
        ("udp", "asked", 0, "talks", 0, true),
        ("udp", "asked", 4, "asked", 0, true),
        ("udp", "talks", 9, "talks", 0, true),
        ("udp", "talks", 9, "asked", 0, false),
        ("tcp", "closed", 0, "established", 0, true),
        ("tcp", "closed", 0, "half open", 0, true),
        ("tcp", "half open", 0, "established", 9_000, true),
        ("tcp", "closed", 9, "closed", 0, true),
        ("tcp", "completed blindly", 0, "established", 0, true),
        ("tcp", "completed blindly", 0, "half open", 0, true),
    ];
    let mut lab = Lab::new::<2>();
    for (transport, first, age, second, age_of_second, first_yields) in cases {
        let name = format!("{transport}: {first} {age} s ago, {second}");
        let service = lab.serve(&FAMILIES[0], transport);
        lab.bed.counted();
        let one = lab.open(&service, first, 4_001);
        lab.bed.age(age);
        let other = lab.open(&service, second, 4_002);
        lab.bed.age(age_of_second);
        let third = lab.opens(&service, 4_003).unwrap_or_else(|| panic!("{name}: dropped"));
        let (yields, keeps) = if first_yields { (&one, &other) } else { (&other, &one) };
        assert_eq!(third.own, yields.own, "{name}");
        assert!(!lab.lives(&service, yields), "{name}: its port is another's");
        assert!(lab.lives(&service, keeps), "{name}");
        let expired = age_of_second > 0;
        let taken = if expired { "" } else { " port_taken_over+1" };
        assert_eq!(lab.bed.counted(), format!("flow_masqueraded+3{taken}"), "{name}");
    }
}

#[test]
fn live_flows_keep_their_port_and_a_counter_shows_who_came() {
    let mut lab = Lab::new::<2>();
    for (transport, kind, age) in [("udp", "talks", 3), ("tcp", "established", 20_000)] {
        for family in &FAMILIES {
            let service = lab.serve(family, transport);
            let flows = [4_001, 4_002].map(|port| lab.open(&service, kind, port));
            lab.bed.age(age);
            lab.bed.counted();
            assert!(lab.opens(&service, 4_003).is_none());
            assert_eq!(lab.bed.reasons(), "MASQUERADE_EXHAUSTED/in+1", "{kind}");
            assert!(flows.iter().all(|flow| lab.lives(&service, flow)), "{kind}");
        }
    }
}

/// Each entry sees one direction: clients that speak keep their ports, although their backend is silent.
#[test]
fn clients_that_are_answered_no_more_keep_their_ports() {
    let mut lab = Lab::new::<2>();
    let service = lab.serve(&FAMILIES[0], "udp");
    let flows = [4_001, 4_002].map(|port| lab.open(&service, "talks", port));
    for _ in 0..40 {
        lab.bed.age(4);
        for (flow, port) in flows.iter().zip([4_001, 4_002]) {
            assert_eq!(lab.sends(&service, port, "").unwrap().own, flow.own);
        }
    }
    assert!(lab.opens(&service, 4_003).is_none());
    assert!(flows.iter().all(|flow| lab.lives(&service, flow)));
    lab.bed.age(130);
    assert!(lab.opens(&service, 4_003).is_some(), "when they are silent as well");
}

/// What a backend sends keeps the flow for its client as well: it does not choose again when it speaks after minutes.
#[test]
fn a_client_that_only_listens_keeps_its_flow() {
    let mut lab = Lab::new::<2>();
    for family in &FAMILIES {
        let service = lab.serve(family, "udp");
        let flow = lab.open(&service, "talks", 4_001);
        lab.bed.counted();
        for _ in 0..40 {
            lab.bed.age(4);
            assert!(lab.lives(&service, &flow));
        }
        assert_eq!(lab.sends(&service, 4_001, "").unwrap().own, flow.own);
        assert_eq!(lab.bed.counted(), "", "no new flow");
    }
}

/// A reply entry that its client has left behind, since it has another flow now: that flow goes on when the port of the
/// former one is taken.
#[test]
fn a_port_that_a_client_left_behind_is_not_its_present_one() {
    let mut lab = Lab::new::<2>();
    for family in &FAMILIES {
        let service = lab.serve(family, "udp");
        let flow = lab.open(&service, "talks", 4_001);
        let entries = lab.bed.conntrack();
        let own = Be16::new(flow.own.port());
        let reply = entries.iter().find(|(key, _)| {
            key.scope == scope::EXTERNAL_REPLY && key.remote_port == own && {
                service.pod.ends_with(&key.local_port.get().to_string())
            }
        });
        let (key, entry) = reply.unwrap();
        let other = [10_000, 10_001].into_iter().find(|port| *port != flow.own.port()).unwrap();
        lab.bed.put("ct", CtKey { remote_port: Be16::new(other), ..*key }, *entry);
        lab.bed.age(40);
        let present = lab.open(&service, "talks", 4_001);
        let second = lab.opens(&service, 4_002).unwrap();
        assert_ne!(second.own, present.own);
        assert_eq!(lab.sends(&service, 4_001, "").unwrap().own, present.own);
        assert!(lab.lives(&service, &present));
    }
}
