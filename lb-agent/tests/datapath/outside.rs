//! Traffic from outside through the real programs, packet by packet, on a node with a routing table of its own. Numbers
//! in test names (`s27_…`) are those of `SEMANTICS.md`.

mod flows;
mod lifetimes;
mod peer;
mod pieces;
mod ports;
mod ways;

use std::collections::BTreeSet;

use lb_common::flow::proto;
use lb_common::service::{
    Affinity, AffinityKey, Frontend, FrontendFlags, FrontendKey, MAGLEV_SLOTS, state,
};
use lb_testkit::bed::{Bed, Verdict, outcome, protocol};
use lb_testkit::node::{Addrs, FAMILIES, FAR_MTU, Way};
use lb_testkit::objects::addr;
use lb_testkit::packet;

/// The TTL or hop limit of a packet.
fn ttl(bytes: &[u8]) -> u8 {
    if bytes[14] >> 4 == 4 { bytes[14 + 8] } else { bytes[14 + 7] }
}

/// The source of the packet that `text` shows, after `redirect`.
pub(super) fn source(text: &str) -> std::net::SocketAddr {
    text.trim_start_matches("redirect ").split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_pod_of_this_node_sees_the_client_itself() {
    for family in &FAMILIES {
        for name in ["tcp", "udp"] {
            let (syn, ack) = if name == "tcp" {
                (" S seq=1 ack=0 len=0", " SA seq=7 ack=2 len=0")
            } else {
                ("", "")
            };
            let mut bed = Bed::node();
            let (client, frontend) =
                (family.at(family.client, 4000), family.at(family.node, 30080));
            let pod = family.at(family.pod, 8080);
            let id = bed.backend(&pod, protocol(name));
            bed.outside(&frontend, protocol(name), &[id], &Way::default());
            let request = packet::build(&format!("{client} > {frontend} {name}{syn}"));
            let (verdict, out) = bed.run("dev_in", &request);
            assert_eq!(outcome(verdict, &out), format!("redirect {client} > {pod} {name}{syn}"));
            assert_eq!(ttl(&out), 63, "we are a router");
            assert_eq!(bed.counted(), "flow_external+1");
            // Through the Pod's veth as it is.
            assert_eq!(
                bed.enter(&format!("{client} > {pod} {name}{syn}")),
                format!("{client} > {pod} {name}{syn}")
            );
            let answer = packet::build(&format!("{pod} > {client} {name}{ack}"));
            let (verdict, out) = bed.leave_bytes(&answer);
            assert_eq!(
                outcome(verdict, &out),
                format!("redirect {frontend} > {client} {name}{ack}")
            );
            assert_eq!(ttl(&out), 63);
            assert_eq!(bed.counted(), "");
            assert_eq!(bed.conntrack().len(), 2, "a forward and a reply entry");
        }
    }
}

#[test]
fn a_backend_on_another_node_sees_an_address_and_port_of_this_one() {
    for family in &FAMILIES {
        for name in ["tcp", "udp"] {
            let (syn, ack) = if name == "tcp" {
                (" S seq=1 ack=0 len=0", " SA seq=7 ack=2 len=0")
            } else {
                ("", "")
            };
            let mut bed = Bed::node();
            let (client, frontend) = (family.at(family.client, 4000), family.at(family.lb, 80));
            let pod = family.at(family.far_pod, 8080);
            let id = bed.backend(&pod, protocol(name));
            bed.outside(&frontend, protocol(name), &[id], &Way::default());
            let out = bed.arrive(&format!("{client} > {frontend} {name}{syn}"));
            let own = source(&out);
            assert_eq!(out, format!("redirect {own} > {pod} {name}{syn}"));
            assert!(own.ip().to_string().ends_with(if family.v4() { "192.0.3.1" } else { "3::1" }));
            assert!(lb_common::config::MASQUERADE_PORTS.contains(&own.port()), "s23: {own}");
            assert_eq!(bed.counted(), "flow_masqueraded+1");
            assert_eq!(
                bed.arrive(&format!("{pod} > {own} {name}{ack}")),
                format!("redirect {frontend} > {client} {name}{ack}")
            );
            let again = bed.arrive(&format!("{client} > {frontend} {name}{syn}"));
            assert_eq!(source(&again), own, "the same flow keeps its port");
            assert_eq!(bed.counted(), "");
            // Packets of other hosts are not taken for answers.
            let stranger = format!("{} > {own} {name}{ack}", family.at(family.client, 8080));
            assert_eq!(bed.arrive(&stranger), stranger);
        }
    }
}

#[test]
fn a_process_of_this_host_sees_the_client_and_answers_as_the_frontend() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.lb, 443));
        let host = family.at(family.node, 6443);
        let id = bed.backend(&host, proto::TCP);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        bed.add_port("host_ports", 6443);
        let syn = "tcp S seq=1 ack=0 len=0";
        assert_eq!(
            bed.arrive(&format!("{client} > {frontend} {syn}")),
            format!("{client} > {host} {syn}")
        );
        assert_eq!(bed.counted(), "flow_to_host+1");
        let ack = "tcp SA seq=5 ack=2 len=0";
        assert_eq!(
            bed.depart(&format!("{host} > {client} {ack}")),
            format!("{frontend} > {client} {ack}")
        );
        let other = format!("{host} > {} {ack}", family.at(family.client, 4001));
        assert_eq!(bed.depart(&other), other, "a client that dialled the node itself");
        // The same where the device has no link layer.
        let bytes = packet::build(&format!("{host} > {client} {ack}"));
        let (verdict, out) = bed.run("dev_out_l3", &bytes);
        assert_eq!(
            (verdict, out),
            (Verdict::Next, bytes),
            "no network header at offset 0: not touched"
        );
    }
}

#[test]
fn s20_two_frontends_one_backend_and_one_client_port() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let client = family.at(family.client, 4000);
        let frontends = [family.at(family.node, 30080), family.at(family.lb, 80)];
        let pod = family.at(family.pod, 8080);
        let id = bed.backend(&pod, proto::TCP);
        let syn = "tcp S seq=1 ack=0 len=0";
        let seen = frontends.clone().map(|frontend| {
            bed.outside(&frontend, proto::TCP, &[id], &Way::default());
            source(&bed.arrive(&format!("{client} > {frontend} {syn}")))
        });
        assert_eq!(seen[0].to_string(), client);
        assert_eq!(seen[0].ip(), seen[1].ip(), "the client's address is kept");
        assert_ne!(seen[0].port(), seen[1].port());
        let ack = "tcp SA seq=5 ack=2 len=0";
        for (seen, frontend) in seen.iter().zip(&frontends) {
            assert_eq!(
                bed.leave(&format!("{pod} > {seen} {ack}")),
                format!("redirect {frontend} > {client} {ack}")
            );
        }
    }
}

#[test]
fn a_straight_connection_from_a_port_that_went_through_a_service_before() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30080));
        let pod = family.at(family.pod, 8080);
        let id = bed.backend(&pod, proto::TCP);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        let through =
            |bed: &Bed, flags: &str| bed.arrive(&format!("{client} > {frontend} tcp {flags}"));
        let straight = format!("{client} > {pod} tcp");
        let answer = format!("{pod} > {client} tcp SA seq=5 ack=2 len=0");
        for (flags, back) in
            [("S", "SA seq=5 ack=2"), ("A seq=2 ack=6", "A"), ("FA seq=2 ack=6", "FA")]
        {
            assert!(through(&bed, flags).starts_with("redirect"));
            bed.enter(&format!("{straight} {flags}"));
            let outcome = bed.leave(&format!("{pod} > {client} tcp {back}"));
            assert!(outcome.starts_with(&format!("redirect {frontend}")), "{outcome}");
        }
        let syn = format!("{straight} S seq=1 ack=0 len=0");
        assert_eq!(bed.enter(&syn), syn);
        assert_eq!(bed.leave(&answer), answer, "only the Pod's own answer");
        // And the other way round: the straight connection is alive, so the Service's gets another port.
        bed.enter(&format!("{straight} A seq=2 ack=6"));
        let seen = source(&through(&bed, "S seq=70"));
        assert_eq!((seen.ip().to_string(), seen.port() == 4000), (family.client.to_owned(), false));
    }
}

/// At the Pod the two are one: nothing there tells a straight SYN from one that came through the Service. It has to wait,
/// and the connection that is alive does not notice.
#[test]
fn a_straight_connection_from_a_port_in_use_through_a_service_disturbs_no_other() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30080));
        let pod = family.at(family.pod, 8080);
        let id = bed.backend(&pod, proto::TCP);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        let (request, answer) = (format!("{client} > {pod} tcp"), format!("{pod} > {client} tcp"));
        let goes_on = |bed: &mut Bed, flags: &str| {
            let seen = bed.arrive(&format!("{client} > {frontend} tcp {flags}"));
            assert_eq!(seen, format!("redirect {request} {flags}"));
            bed.enter(&format!("{request} {flags}"));
            let (verdict, out) = bed.leave_bytes(&packet::build(&format!("{answer} {flags}")));
            assert_eq!(
                outcome(verdict, &out),
                format!("redirect {frontend} > {client} tcp {flags}")
            );
        };
        goes_on(&mut bed, "S seq=1 ack=0 len=0");
        goes_on(&mut bed, "A seq=2 ack=6 len=0");
        let syn = format!("{request} S seq=900 ack=0 len=0");
        assert_eq!(bed.enter(&syn), syn);
        goes_on(&mut bed, "A seq=2 ack=6 len=8");
        goes_on(&mut bed, "FA seq=10 ack=6 len=0");
        // Over: the next straight one is the Pod's own.
        bed.enter(&syn);
        let own = format!("{answer} SA seq=5 ack=901 len=0");
        assert_eq!(bed.leave(&own), own);
    }
}

#[test]
fn s02_external_local_without_an_endpoint_here_drops_and_without_any_refuses() {
    let local = FrontendFlags::EXTERNAL_LOCAL;
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let client = family.at(family.client, 4000);
        let [elsewhere, nowhere, gone] =
            [30080, 30081, 30082].map(|port| family.at(family.node, port));
        let id = bed.backend(&family.at(family.far_pod, 8080), proto::TCP);
        bed.outside(&elsewhere, proto::TCP, &[id], &Way { flags: local, ..Way::default() });
        bed.outside(&nowhere, proto::TCP, &[], &Way { flags: local, ..Way::default() });
        let flags = FrontendFlags::ELSEWHERE;
        bed.outside(&gone, proto::TCP, &[], &Way { flags, ..Way::default() });
        assert_eq!(bed.arrive(&format!("{client} > {elsewhere} tcp S")), "drop");
        assert_eq!(bed.arrive(&format!("{client} > {gone} tcp S")), "drop");
        assert_eq!(bed.counted(), "NO_LOCAL_ENDPOINTS/in+2");
        assert_eq!(
            bed.arrive(&format!("{client} > {nowhere} tcp S seq=8")),
            format!("redirect back {nowhere} > {client} tcp RA seq=0 ack=9 len=0")
        );
        assert_eq!(bed.counted(), "NO_ENDPOINTS/in+1");
        // s03: in the cluster all endpoints are used, whatever the external policy.
        let pod = family.at(family.pod, 4000);
        let outcome = bed.leave(&format!("{pod} > {elsewhere} tcp S"));
        assert!(outcome.contains(family.far_pod), "{outcome}");
    }
}

#[test]
fn s04_external_local_uses_the_local_list_only() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let frontend = family.at(family.node, 30080);
        let far = bed.backend(&family.at(family.far_pod, 8080), proto::TCP);
        let near = bed.backend(&family.at(family.pod, 8080), proto::TCP);
        let flags = FrontendFlags::EXTERNAL_LOCAL;
        let way = Way { flags, local: vec![near], ..Way::default() };
        bed.outside(&frontend, proto::TCP, &[far, near], &way);
        for port in 4000..4040 {
            let outcome =
                bed.arrive(&format!("{} > {frontend} tcp S", family.at(family.client, port)));
            assert!(outcome.contains(family.pod), "{outcome}");
        }
    }
}

#[test]
fn s27_source_ranges_gate_clients_of_every_kind() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let frontend = family.at(family.lb, 80);
        let id = bed.backend(&family.at(family.pod, 8080), proto::TCP);
        let flags = FrontendFlags::SOURCE_RANGES;
        let service = bed.outside(&frontend, proto::TCP, &[id], &Way { flags, ..Way::default() });
        let syn = |client: &str| format!("{} > {frontend} tcp S", family.at(client, 4000));
        assert_eq!(bed.arrive(&syn(family.client)), "drop");
        assert_eq!(bed.leave(&syn(family.other_pod)), "drop");
        assert_eq!(bed.counted(), "SOURCE_RANGE/in+1 SOURCE_RANGE/out+1");
        let net = if family.v4() { "203.0.113.0" } else { "2001:db8:5::" };
        bed.source_range(service + 1, addr(net), 0);
        assert_eq!(bed.arrive(&syn(family.client)), "drop", "another Service's range");
        bed.source_range(service, addr(net), if family.v4() { 24 } else { 48 });
        assert!(bed.arrive(&syn(family.client)).starts_with("redirect"));
        assert_eq!(bed.leave(&syn(family.other_pod)), "drop");
    }
}

#[test]
fn s26_a_load_balancer_address_is_ours_at_its_ports_only() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let id = bed.backend(&family.at(family.pod, 8080), proto::TCP);
        bed.outside(&family.at(family.lb, 80), proto::TCP, &[id], &Way::default());
        bed.add_port("frontend_ports", 81);
        let client = family.at(family.client, 4000);
        for packet in [
            format!("{client} > {} tcp S seq=1 ack=0 len=0", family.at(family.lb, 81)),
            format!("{client} > {} udp", family.at(family.lb, 80)),
        ] {
            assert_eq!(bed.arrive(&packet), packet);
        }
        let echo = packet::build(&format!("{client} > {} echo", family.at(family.lb, 1)));
        assert_eq!(bed.run("dev_in", &echo), (Verdict::Next, echo));
        assert_eq!(bed.counted(), "");
    }
}

#[test]
fn s25_addresses_of_the_service_range() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let vip = if family.v4() { "10.96.0.1" } else { "fd00:96::1" };
        bed.service(&family.at(vip, 80), proto::TCP, &[&family.at(family.pod, 8080)]);
        for port in [80, 81] {
            bed.add_port("frontend_ports", port);
        }
        let (client, pod) = (family.at(family.client, 4000), family.at(family.other_pod, 4000));
        let (undefined, unallocated) = (family.at(vip, 81), family.at(family.unallocated, 81));
        assert_eq!(bed.arrive(&format!("{client} > {unallocated} tcp S")), "drop");
        assert_eq!(bed.leave(&format!("{pod} > {unallocated} tcp S")), "drop");
        assert_eq!(bed.counted(), "UNALLOCATED_IP/in+1 UNALLOCATED_IP/out+1");
        assert_eq!(
            bed.arrive(&format!("{client} > {undefined} tcp S seq=1")),
            format!("redirect back {undefined} > {client} tcp RA seq=0 ack=2 len=0")
        );
        // An external address in the range: packets to its other ports pass.
        let only = Frontend { flags: FrontendFlags::ADDRESS_ONLY, ..Frontend::ZERO };
        let lb: std::net::SocketAddr = unallocated.parse().unwrap();
        bed.put("frontends", FrontendKey::wildcard(lb.ip().into()), only);
        for packet in
            [&client, &pod].map(|from| format!("{from} > {unallocated} tcp S seq=1 ack=0 len=0"))
        {
            let arrives = packet.starts_with(&client);
            assert_eq!(if arrives { bed.arrive(&packet) } else { bed.leave(&packet) }, packet);
        }
        // From outside a ClusterIP works like any frontend with the cluster's endpoints.
        let outcome = bed.arrive(&format!("{client} > {} tcp S", family.at(vip, 80)));
        assert!(
            outcome.starts_with(&format!("redirect {client} > {}", family.at(family.pod, 8080)))
        );
    }
}

#[test]
fn s11_s12_affinity_holds_until_its_time_is_over_or_its_backend_leaves() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let frontends = [family.at(family.node, 30080), family.at(family.node, 30081)];
        let pods: Vec<String> = (0..8).map(|i| family.at(family.far_pod, 8080 + i)).collect();
        let ids: Vec<u32> = pods.iter().map(|pod| bed.backend(pod, proto::TCP)).collect();
        let way = || Way { affinity_secs: 10, ..Way::default() };
        let service = bed.outside(&frontends[0], proto::TCP, &ids, &way());
        bed.outside(&frontends[1], proto::TCP, &ids, &way());
        let mut port = 4000;
        let mut target = |bed: &mut Bed, frontend: &str, program: &str, client: &str| {
            port += 1;
            let syn = packet::build(&format!("{} > {frontend} tcp S", family.at(client, port)));
            let (verdict, out) = bed.run(program, &syn);
            let text = outcome(verdict, &out);
            text.split(" > ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
        };
        let first = target(&mut bed, &frontends[0], "dev_in", family.client);
        for _ in 0..20 {
            assert_eq!(target(&mut bed, &frontends[0], "dev_in", family.client), first);
        }
        assert!(bed.counted().contains("affinity_hit+20"));
        // Another service port has affinities of its own; so has another client; a Pod's is the same at its veth.
        let others: BTreeSet<String> = (0..30)
            .map(|i| {
                let client = if family.v4() {
                    format!("203.0.113.{}", 50 + i)
                } else {
                    format!("2001:db8:5::{i}:5")
                };
                target(&mut bed, &frontends[1], "dev_in", &client)
            })
            .collect();
        assert!(others.len() > 2, "{others:?}");
        let of_pod = target(&mut bed, &frontends[0], "pod_out", family.other_pod);
        for _ in 0..20 {
            assert_eq!(target(&mut bed, &frontends[0], "pod_out", family.other_pod), of_pod);
        }
        // The limit is exact: an affinity that is eleven seconds old is none, and the choice is random again.
        let key = AffinityKey { client: addr(family.client), service_id: service };
        let known: Affinity = bed.get("affinity", key).unwrap();
        let hz = 1_000_000_000
            / nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
                .unwrap()
                .tv_nsec();
        let aged =
            |secs: u32| Affinity { last: known.last.wrapping_sub(secs * hz as u32), ..known };
        bed.put("affinity", key, aged(8));
        assert_eq!(target(&mut bed, &frontends[0], "dev_in", family.client), first);
        let fresh: BTreeSet<String> = (0..30)
            .map(|_| {
                bed.put("affinity", key, aged(11));
                target(&mut bed, &frontends[0], "dev_in", family.client)
            })
            .collect();
        assert!(fresh.len() > 2, "{fresh:?}");
        // A backend that drains takes no new flow of any client.
        bed.put("affinity", key, known);
        bed.set_state(known.backend_id, state::DRAINING);
        let rest: Vec<u32> = ids.iter().copied().filter(|id| *id != known.backend_id).collect();
        bed.outside(&frontends[0], proto::TCP, &rest, &way());
        assert_ne!(target(&mut bed, &frontends[0], "dev_in", family.client), first);
    }
}

#[test]
fn s13_affinity_under_external_local_stays_local() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let frontend = family.at(family.node, 30080);
        let far = bed.backend(&family.at(family.far_pod, 8080), proto::TCP);
        let near = bed.backend(&family.at(family.pod, 8080), proto::TCP);
        let flags = FrontendFlags::EXTERNAL_LOCAL;
        let way = Way { flags, local: vec![near], affinity_secs: 100, ..Way::default() };
        let service_id = bed.outside(&frontend, proto::TCP, &[far, near], &way);
        let key = AffinityKey { client: addr(family.client), service_id };
        let far = Affinity { backend_id: far, backend_gen: 1, ..Affinity::ZERO };
        let syn = format!("{} > {frontend} tcp S", family.at(family.client, 4000));
        // It had the far one while the policy was Cluster. The clock's start is recent enough.
        bed.put("affinity", key, Affinity { last: u32::MAX / 2, ..far });
        assert!(bed.arrive(&syn).contains(family.pod));
    }
}

#[test]
fn maglev_gives_every_node_the_same_backend_for_a_flow() {
    for family in &FAMILIES {
        let choices = [(); 2].map(|()| {
            let mut bed = Bed::node();
            let frontend = family.at(family.lb, 80);
            let ids: Vec<u32> = (0..5)
                .map(|i| bed.backend(&family.at(family.far_pod, 8080 + i), proto::UDP))
                .collect();
            let maglev = (0..MAGLEV_SLOTS as usize).map(|i| ids[i * 7 % 5]).collect();
            bed.outside(&frontend, proto::UDP, &ids, &Way { maglev, ..Way::default() });
            let to = |port| {
                let outcome =
                    bed.arrive(&format!("{} > {frontend} udp", family.at(family.client, port)));
                outcome.split(" > ").nth(1).unwrap().to_owned()
            };
            (5000..5040).map(to).collect::<Vec<_>>()
        });
        assert_eq!(choices[0], choices[1]);
        assert_eq!(choices[0].iter().collect::<BTreeSet<_>>().len(), 5, "all backends are used");
    }
}

#[test]
fn least_connections_prefers_the_idle_backend_and_notices_the_end_of_connections() {
    let family = &FAMILIES[0];
    let mut bed = Bed::node();
    let frontend = family.at(family.node, 30080);
    let [busy, idle] =
        [8080, 8081].map(|port| bed.backend(&family.at(family.far_pod, port), proto::TCP));
    let flags = FrontendFlags::LEAST_CONNECTIONS;
    bed.outside(&frontend, proto::TCP, &[busy, idle], &Way { flags, ..Way::default() });
    bed.set("loads", busy, 1000_u32);
    let n = 40;
    let chosen = (0..n).filter(|i| {
        let outcome =
            bed.arrive(&format!("{} > {frontend} tcp S", family.at(family.client, 4000 + i)));
        outcome.contains(":8081 ")
    });
    let chosen = chosen.count();
    // Of two looks both meet the busy one in a quarter of the cases.
    assert!((20..n as usize).contains(&chosen), "{chosen} of {n}");
    assert_eq!(bed.at::<u32>("loads", idle), chosen as u32);
    let load = bed.at::<u32>("loads", busy) + bed.at::<u32>("loads", idle);
    assert_eq!(load, 1000 + u32::from(n));
    for flags in ["FA seq=2 ack=1", "A seq=3 ack=2", "R seq=3"] {
        bed.arrive(&format!("{} > {frontend} tcp {flags}", family.at(family.client, 4000)));
    }
    let load = bed.at::<u32>("loads", busy) + bed.at::<u32>("loads", idle);
    assert_eq!(load, 1000 + u32::from(n) - 1, "a connection ends once");
}

#[test]
fn s15_udp_from_outside_leaves_a_backend_that_left() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30053));
        let [old, new] = [family.at(family.pod, 53), family.at(family.other_pod, 53)];
        let ids = [&old, &new].map(|pod| bed.backend(pod, proto::UDP));
        bed.outside(&frontend, proto::UDP, &ids[..1], &Way::default());
        let packet = format!("{client} > {frontend} udp");
        assert_eq!(bed.arrive(&packet), format!("redirect {client} > {old} udp"));
        bed.outside(&frontend, proto::UDP, &ids[1..], &Way::default());
        assert_eq!(bed.arrive(&packet), format!("redirect {client} > {old} udp"), "still alive");
        bed.set_state(ids[0], state::DRAINING);
        assert_eq!(bed.arrive(&packet), format!("redirect {client} > {new} udp"));
        assert_eq!(bed.counted(), "flow_external+2 flow_moved+1");
    }
}

#[test]
fn s32_mid_flow_packets_to_a_frontend_are_reset() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.lb, 80));
        let id = bed.backend(&family.at(family.pod, 8080), proto::TCP);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        assert_eq!(
            bed.arrive(&format!("{client} > {frontend} tcp A seq=5 ack=77")),
            format!("redirect back {frontend} > {client} tcp R seq=77 ack=0 len=0")
        );
        bed.arrive(&format!("{client} > {frontend} tcp S"));
        bed.set_state(id, state::DEAD);
        assert_eq!(
            bed.arrive(&format!("{client} > {frontend} tcp A seq=5 ack=78")),
            format!("redirect back {frontend} > {client} tcp R seq=78 ack=0 len=0")
        );
        assert_eq!(bed.counted(), "BACKEND_GONE/in+1 UNKNOWN_FLOW/in+1 flow_external+1");
    }
}

#[test]
fn s23_a_host_process_whose_port_is_a_node_port_hears_its_answers() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let id = bed.backend(&family.at(family.pod, 8080), proto::TCP);
        bed.outside(&family.at(family.node, 40000), proto::TCP, &[id], &Way::default());
        let own = family.at(family.node, 40000);
        for flags in ["SA seq=7 ack=2 len=0", "A seq=8 ack=2 len=0", "R seq=8 ack=0 len=0"] {
            let answer = format!("{} > {own} tcp {flags}", family.at(family.client, 443));
            assert_eq!(bed.arrive(&answer), answer);
        }
        assert_eq!(bed.counted(), "");
    }
}

#[test]
fn s23_a_host_process_may_have_the_port_of_a_masqueraded_flow_that_is_over() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30080));
        let pod = family.at(family.far_pod, 8080);
        let id = bed.backend(&pod, proto::TCP);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        let own = source(&bed.arrive(&format!("{client} > {frontend} tcp S")));
        let ours =
            |flags: &str| bed.arrive(&format!("{pod} > {own} tcp {flags}")).contains(&client);
        let client_says = |flags: &str| {
            assert!(bed.arrive(&format!("{client} > {frontend} tcp {flags}")).contains(&pod))
        };
        assert!(ours("SA seq=7 ack=2"));
        client_says("A seq=2 ack=8");
        assert!(ours("FA seq=8 ack=2"));
        assert!(ours("SA seq=7 ack=2"), "one side alone may be forged");
        assert!(ours("FA seq=8 ack=2"));
        client_says("FA seq=2 ack=9");
        assert!(ours("A seq=9 ack=3"));
        assert!(!ours("SA seq=70 ack=20"), "the answer to a connection of the host itself");
    }
}

#[test]
fn forged_sources_and_loopback_go_nowhere() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let id = bed.backend(&family.at(family.pod, 8080), proto::TCP);
        let frontend = family.at(family.node, 30080);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        for forged in [family.node, family.pod] {
            for (flags, to) in [("S", &frontend), ("A", &family.at(family.node, 22))] {
                let packet = format!("{} > {to} tcp {flags}", family.at(forged, 4000));
                assert_eq!(bed.arrive(&packet), "drop", "{packet}");
                assert_eq!(bed.counted(), "SPOOFED_SOURCE/in+1");
                // Nor when the rest of it says nothing: ESP.
                let mut hidden = packet::build(&packet);
                hidden[if family.v4() { 23 } else { 20 }] = 50;
                assert_eq!(bed.run("dev_in", &hidden).0, Verdict::Drop, "{packet}");
                assert_eq!(bed.counted(), "SPOOFED_SOURCE/in+1");
            }
        }
        // What this node cannot read may be for it, from others.
        let ours = format!("{} > {}", family.at(family.client, 4000), family.at(family.node, 22));
        let mut hidden = packet::build(&format!("{ours} tcp S"));
        hidden[if family.v4() { 23 } else { 20 }] = 50;
        assert_eq!(bed.run("dev_in", &hidden).0, Verdict::Next);
        let loopback = family.at(if family.v4() { "127.0.0.1" } else { "::1" }, 30080);
        let flags = FrontendFlags::SOCKET_ONLY;
        bed.outside(&loopback, proto::TCP, &[id], &Way { flags, ..Way::default() });
        let syn = "tcp S seq=1 ack=0 len=0";
        for packet in [
            format!("{} > {loopback} {syn}", family.at(family.client, 4000)),
            format!("{} > {loopback} {syn}", family.at(family.other_pod, 4000)),
        ] {
            assert_eq!(bed.arrive(&packet), "drop");
            assert_eq!(bed.leave(&packet), "drop");
            assert_eq!(bed.counted(), "BAD_ADDRESS/in+1 BAD_ADDRESS/out+1");
        }
    }
}

#[test]
fn too_big_and_expired_packets_are_answered() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30053));
        let id = bed.backend(&family.at(family.far_pod, 53), proto::UDP);
        bed.outside(&frontend, proto::UDP, &[id], &Way::default());
        let (from, to, quote) =
            (family.node, family.client, format!("[{client} > {frontend} udp]"));
        let [big, expired] = if family.v4() { ["3.4", "11.0"] } else { ["2.0", "3.0"] };
        let headers = if family.v4() { 28 } else { 48 };
        let packet = |len| packet::build(&format!("{client} > {frontend} udp len={len}"));
        let (verdict, out) = bed.run("dev_in", &packet(usize::from(FAR_MTU) - headers + 1));
        assert_eq!(
            outcome(verdict, &out),
            format!("redirect back {from} > {to} icmp {big} {quote}")
        );
        let mtu = if family.v4() { &out[14 + 26..14 + 28] } else { &out[14 + 46..14 + 48] };
        assert_eq!(mtu, FAR_MTU.to_be_bytes());
        assert!(
            error_after(&bed, &packet(usize::from(FAR_MTU) - headers)).contains(family.far_pod),
            "fits"
        );
        let mut last = packet(4);
        set_ttl(&mut last, 1);
        assert_eq!(
            error_after(&bed, &last),
            format!("redirect back {from} > {to} icmp {expired} {quote}")
        );
        assert_eq!(bed.counted(), "TOO_BIG/in+1 TTL_EXCEEDED/in+1 flow_masqueraded+1");
    }
}

fn error_after(bed: &Bed, bytes: &[u8]) -> String {
    let (verdict, out) = bed.run("dev_in", bytes);
    outcome(verdict, &out)
}

fn set_ttl(bytes: &mut [u8], ttl: u8) {
    if bytes[14] >> 4 != 4 {
        bytes[14 + 7] = ttl;
        return;
    }
    bytes[14 + 8] = ttl;
    bytes[14 + 10..14 + 12].fill(0);
    let sum: u32 =
        bytes[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    bytes[14 + 10..14 + 12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_pod_s_answer_that_cannot_go_on_is_left_to_the_stack() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30053));
        let pod = family.at(family.pod, 53);
        let id = bed.backend(&pod, proto::UDP);
        bed.outside(&frontend, proto::UDP, &[id], &Way::default());
        bed.arrive(&format!("{client} > {frontend} udp"));
        let big = packet::build(&format!("{pod} > {client} udp len=1600"));
        assert_eq!(bed.leave_bytes(&big), (Verdict::Next, big));
        let mut last = packet::build(&format!("{pod} > {client} udp len=16"));
        set_ttl(&mut last, 1);
        assert_eq!(bed.leave_bytes(&last), (Verdict::Next, last));
    }
}

/// The addresses of an ICMP error as [`packet::too_big`] wants them.
fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

#[test]
fn s33_errors_about_flows_from_outside_are_translated_on_every_path() {
    for family in &FAMILIES {
        let kind = if family.v4() { "icmp 3.4" } else { "icmp 2.0" };
        let Addrs { client, node, pod, far_pod, .. } = *family;
        let mut bed = Bed::node();
        let client_at = family.at(client, 4000);
        let router = if family.v4() { "198.18.0.1" } else { "2001:db8:18::1" };

        // A Pod of this node: an error from the client's side about the answer, and one by the Pod about a request.
        let near = family.at(node, 30053);
        let id = bed.backend(&family.at(pod, 53), proto::UDP);
        bed.outside(&near, proto::UDP, &[id], &Way::default());
        bed.arrive(&format!("{client_at} > {near} udp"));
        let (verdict, out) = bed.run(
            "dev_in",
            &packet::too_big(ip(router), ip(node), &format!("{near} > {client_at} udp len=20")),
        );
        assert_eq!(
            outcome(verdict, &out),
            format!("redirect {router} > {pod} {kind} [{} > {client_at} udp]", family.at(pod, 53))
        );
        let quote = format!("{client_at} > {} udp len=20", family.at(pod, 53));
        let (verdict, out) = bed.leave_bytes(&packet::too_big(ip(pod), ip(client), &quote));
        assert_eq!(
            outcome(verdict, &out),
            format!("redirect {node} > {client} {kind} [{client_at} > {near} udp]")
        );

        // Another node: an error on the way to the backend, and one on the way back to the client.
        let far = family.at(family.lb, 5353);
        let id = bed.backend(&family.at(far_pod, 53), proto::UDP);
        bed.outside(&far, proto::UDP, &[id], &Way::default());
        let own = source(&bed.arrive(&format!("{client_at} > {far} udp")));
        let quote = format!("{own} > {} udp len=20", family.at(far_pod, 53));
        let (verdict, out) = bed.run("dev_in", &packet::too_big(ip(router), own.ip(), &quote));
        assert_eq!(
            outcome(verdict, &out),
            format!("redirect {router} > {client} {kind} [{client_at} > {far} udp]")
        );
        let (verdict, out) = bed.run("dev_in", &packet::too_big(ip(far_pod), own.ip(), &quote));
        assert_eq!(
            outcome(verdict, &out),
            format!("redirect {} > {client} {kind} [{client_at} > {far} udp]", family.lb),
            "the backend itself is the frontend to the client"
        );
        let (verdict, out) = bed.run(
            "dev_in",
            &packet::too_big(ip(router), ip(family.lb), &format!("{far} > {client_at} udp len=20")),
        );
        assert_eq!(
            outcome(verdict, &out),
            format!(
                "redirect {router} > {far_pod} {kind} [{} > {own} udp]",
                family.at(far_pod, 53)
            )
        );

        // A process of this host.
        let host = family.at(node, 6053);
        let frontend = family.at(family.lb, 53);
        let id = bed.backend(&host, proto::UDP);
        bed.outside(&frontend, proto::UDP, &[id], &Way::default());
        bed.add_port("host_ports", 6053);
        bed.arrive(&format!("{client_at} > {frontend} udp"));
        let (verdict, out) = bed.run(
            "dev_in",
            &packet::too_big(
                ip(router),
                ip(family.lb),
                &format!("{frontend} > {client_at} udp len=20"),
            ),
        );
        assert_eq!(
            outcome(verdict, &out),
            format!("{router} > {node} {kind} [{host} > {client_at} udp]")
        );
        let (verdict, out) = bed.run(
            "dev_out",
            &packet::too_big(ip(node), ip(client), &format!("{client_at} > {host} udp len=20")),
        );
        assert_eq!(
            outcome(verdict, &out),
            format!("{} > {client} {kind} [{client_at} > {frontend} udp]", family.lb)
        );
    }
}

#[test]
fn a_device_without_link_layer_gives_its_packets_one() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.node, 30080));
        let pod = family.at(family.pod, 8080);
        let id = bed.backend(&pod, proto::TCP);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        // A test run always has a link layer, so the header that the program adds comes before it: what the program
        // reads behind its own is an Ethernet header, and no IP.
        let bytes = packet::build(&format!("{client} > {frontend} tcp S"));
        let (verdict, out) = bed.run("dev_in_l3", &bytes);
        assert_eq!(verdict, Verdict::Next);
        assert_eq!(out[14..], bytes[..], "only pushed down");
    }
}

#[test]
fn what_cannot_be_read_passes_a_device_whatever_came_before() {
    let mut bed = Bed::node();
    for family in &FAMILIES {
        let mut bytes = packet::build(&format!(
            "{} > {} udp",
            family.at(family.client, 1),
            family.at(family.node, 2)
        ));
        // No version of IP.
        bytes[14] = 0x05;
        for before in &FAMILIES {
            let flow =
                format!("{} > {} udp", before.at(before.client, 1), before.at(before.node, 2));
            for _ in 0..20 {
                bed.arrive(&flow);
                assert_eq!(
                    bed.run("dev_in", &bytes),
                    (Verdict::Next, bytes.clone()),
                    "after {flow}"
                );
            }
        }
    }
    assert_eq!(bed.counted(), "");
}

/// CRC32c by its definition (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// An SCTP packet with `n` bytes of chunks, and its checksum.
fn sctp(from: &str, to: &str, len: usize) -> Vec<u8> {
    let [from, to] = [from, to].map(|at| at.parse::<std::net::SocketAddr>().unwrap());
    let mut body = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    body.extend([0, 0, 0, 7, 0, 0, 0, 0]);
    body.extend((0..len).map(|i| (i * 31) as u8));
    let crc = crc32c(&body);
    body[8..12].copy_from_slice(&crc.to_le_bytes());
    let eth = etherparse::PacketBuilder::ethernet2(packet::POD_MAC, packet::GATEWAY_MAC);
    let ip = match (from.ip(), to.ip()) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            eth.ipv4(from.octets(), to.octets(), 64)
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            eth.ipv6(from.octets(), to.octets(), 64)
        }
        _ => panic!("two families"),
    };
    let mut out = Vec::new();
    ip.write(&mut out, etherparse::IpNumber::SCTP, &body).unwrap();
    out
}

#[test]
fn sctp_ports_change_with_their_checksum() {
    for family in &FAMILIES {
        let l4 = if family.v4() { 34 } else { 54 };
        let mut bed = Bed::node();
        let vip = if family.v4() { "10.96.0.5" } else { "fd00:96::5" };
        let (pod, far) = (family.at(family.pod, 4000), family.at(family.far_pod, 3868));
        let vip = family.at(vip, 80);
        bed.service(&vip, proto::SCTP, &[&far]);
        for len in [4, 16, 100, 1300] {
            let (verdict, mut out) = bed.leave_bytes(&sctp(&pod, &vip, len));
            assert_eq!(verdict, Verdict::Next);
            assert_eq!(out, sctp(&pod, &far, len), "len {len}");
            // The answer, short enough to be padded on its way.
            out = sctp(&far, &pod, len);
            let unpadded = out.len();
            out.resize(unpadded.max(60), 0);
            let (_, shown) = bed.enter_bytes(&out);
            assert_eq!(shown[..unpadded], sctp(&vip, &pod, len)[..], "len {len}");
        }
        // A checksum that the device is to compute stays 0.
        let mut raw = sctp(&pod, &vip, 16);
        raw[l4 + 8..l4 + 12].fill(0);
        let (_, out) = bed.leave_bytes(&raw);
        assert_eq!(out[l4 + 8..l4 + 12], [0; 4]);
        assert_eq!(out[l4 + 2..l4 + 4], 3868_u16.to_be_bytes());
    }
}

#[test]
fn connections_that_are_never_completed_do_not_take_the_masquerade_from_others() {
    let family = &FAMILIES[0];
    let mut bed = Bed::node();
    let frontend = family.at(family.node, 30080);
    let pod = family.at(family.far_pod, 8080);
    let id = bed.backend(&pod, proto::TCP);
    bed.outside(&frontend, proto::TCP, &[id], &Way::default());
    let answers = |bed: &Bed, client: &str, own: std::net::SocketAddr| {
        let outcome = bed.arrive(&format!("{pod} > {own} tcp SA seq=7 ack=2 len=0"));
        assert_eq!(outcome, format!("redirect {frontend} > {client} tcp SA seq=7 ack=2 len=0"));
    };
    let opens = |bed: &Bed, client: &str| {
        let own = source(&bed.arrive(&format!("{client} > {frontend} tcp S seq=1 ack=0 len=0")));
        answers(bed, client, own);
        own
    };
    let established = family.at(family.client, 4000);
    let own = opens(&bed, &established);
    let ack = format!("{established} > {frontend} tcp A seq=2 ack=8 len=0");
    assert!(bed.arrive(&ack).starts_with(&format!("redirect {own}")));
    // More clients than there are ports, none of which answers.
    let n = lb_common::config::MASQUERADE_PORTS.len() as u32 + 5_000;
    for i in 0..n {
        let spoofed = format!("198.18.{}.{}:5000", i >> 8, i & 0xff);
        opens(&bed, &spoofed);
    }
    assert_eq!(bed.dropped(), 0);
    let real = family.at(family.client, 4001);
    let second = opens(&bed, &real);
    let ack2 = format!("{real} > {frontend} tcp A seq=2 ack=8 len=0");
    assert!(bed.arrive(&ack2).starts_with(&format!("redirect {second}")));
    for i in 0..5_000_u32 {
        opens(&bed, &format!("198.19.{}.{}:5000", i >> 8, i & 0xff));
    }
    // What is established keeps its tuple, the rest is gone after a minute.
    assert!(bed.arrive(&ack).starts_with(&format!("redirect {own}")));
    assert!(bed.arrive(&ack2).starts_with(&format!("redirect {second}")));
    let replies = bed.conntrack().iter().filter(|(key, _)| key.scope == 3).count();
    assert!(replies <= lb_common::config::MASQUERADE_PORTS.len(), "{replies}");
    let entries = bed.conntrack();
    let lives = |(key, entry): &&(lb_common::conntrack::CtKey, lb_common::conntrack::CtEntry)| {
        lb_common::conntrack::timeout_secs(key.proto, entry.flags) > 60
    };
    let living = entries.iter().filter(lives);
    assert_eq!(living.count(), 4, "both entries of both connections");
}

#[test]
fn a_forged_syn_or_reset_does_not_end_a_connection_from_outside() {
    for family in &FAMILIES {
        for far in [false, true] {
            let mut bed = Bed::node();
            let (client, frontend) =
                (family.at(family.client, 4000), family.at(family.node, 30080));
            let pods = [8080, 8081]
                .map(|port| family.at(if far { family.far_pod } else { family.pod }, port));
            let ids = pods.clone().map(|pod| bed.backend(&pod, proto::TCP));
            bed.outside(&frontend, proto::TCP, &ids[..1], &Way::default());
            let says =
                |bed: &Bed, flags: &str| bed.arrive(&format!("{client} > {frontend} tcp {flags}"));
            let own = source(&says(&bed, "S seq=1"));
            let back = |bed: &Bed, flags: &str| {
                let answer = format!("{} > {own} tcp {flags}", pods[0]);
                if far { bed.arrive(&answer) } else { bed.leave(&answer) }
            };
            assert!(back(&bed, "SA seq=7 ack=2").contains(&client));
            assert!(says(&bed, "A seq=2 ack=8").contains(&pods[0]));
            // Every new connection goes elsewhere.
            bed.outside(&frontend, proto::TCP, &ids[1..], &Way::default());
            for forged in ["S seq=900", "R seq=5", "SR seq=5", "S seq=901", "FA seq=6 ack=7"] {
                let outcome = says(&bed, forged);
                assert!(outcome.contains(&pods[0]), "{forged} is passed on: {outcome}");
                bed.age(1800);
                assert!(says(&bed, "A seq=2 ack=8").contains(&pods[0]), "after {forged}");
                assert!(back(&bed, "A seq=8 ack=2").contains(&client), "after {forged}");
            }
            let dead = bed.conntrack().into_iter().filter(|(key, entry)| {
                lb_common::conntrack::timeout_secs(key.proto, entry.flags) < 3600
            });
            assert_eq!(dead.collect::<Vec<_>>(), [], "nothing that the next pass would remove");
            // Both ends say that it is over: the next one is another.
            says(&bed, "FA seq=2 ack=8");
            back(&bed, "FA seq=8 ack=3");
            assert!(says(&bed, "S seq=70").contains(&pods[1]));
        }
    }
}

#[test]
fn a_flood_of_flows_does_not_end_a_connection_from_outside() {
    for family in &FAMILIES {
        for far in [false, true] {
            let mut bed = Bed::small_node();
            let (client, frontend) =
                (family.at(family.client, 4000), family.at(family.node, 30080));
            let pod = family.at(if far { family.far_pod } else { family.pod }, 8080);
            let id = bed.backend(&pod, proto::TCP);
            bed.outside(&frontend, proto::TCP, &[id], &Way::default());
            let says = |bed: &Bed, flags: &str| {
                let outcome = bed.arrive(&format!("{client} > {frontend} tcp {flags}"));
                assert!(outcome.contains(&pod), "{outcome}");
                outcome
            };
            let own = source(&says(&bed, "S seq=1"));
            let back = |bed: &Bed, flags: &str| {
                let answer = format!("{pod} > {own} tcp {flags}");
                let outcome = if far { bed.arrive(&answer) } else { bed.leave(&answer) };
                assert!(
                    outcome.starts_with(&format!("redirect {frontend} > {client}")),
                    "{outcome}"
                );
            };
            back(&bed, "SA seq=7 ack=2");
            says(&bed, "A seq=2 ack=8");
            let other = bed.backend(&family.at(family.far_pod, 8081), proto::TCP);
            bed.outside(&frontend, proto::TCP, &[other], &Way::default());
            let evicted = |bed: &Bed| {
                bed.flood();
                bed.conntrack().iter().all(|(key, _)| key.remote_port.get() != own.port())
            };
            assert!(evicted(&bed));
            assert_eq!(source(&says(&bed, "A seq=2 ack=8")), own);
            back(&bed, "A seq=8 ack=2");
            assert!(evicted(&bed));
            back(&bed, "A seq=8 ack=2");
            assert_eq!(source(&says(&bed, "A seq=2 ack=8")), own);
            // Others get what is left: not the tuple of a connection that lives.
            assert!(evicted(&bed));
            let again = bed.arrive(&format!("{client} > {frontend} tcp S seq=99"));
            assert!(again.contains(&pod), "its endpoint decides: {again}");
        }
    }
}
