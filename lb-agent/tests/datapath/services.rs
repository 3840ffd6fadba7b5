//! Packets through the real programs: built packet in → verdict, packet out, and exactly which counters changed.
//! The output of one hook is what the next one gets. Numbers in test names (`s15_…`) are those of
//! `SEMANTICS.md`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::config::{self, SettingFlags, Settings};
use lb_common::flow::proto;
use lb_common::service::{Frontend, FrontendFlags, FrontendKey, state};
use lb_testkit::bed::{Bed, Verdict, addr, protocol};
use lb_testkit::packet;

/// The socket address `net.host:port` of a family.
fn at(v4: bool, net: u8, host: u8, port: u16) -> String {
    SocketAddr::new(addr(v4, net, host), port).to_string()
}

#[test]
fn a_flow_to_a_service_is_translated_both_ways() {
    for v4 in [true, false] {
        for name in ["tcp", "udp"] {
            let (pod, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 80));
            let backend = at(v4, 2, 9, 8080);
            let mut bed = Bed::new();
            bed.service(&vip, protocol(name), &[&backend]);
            let (syn, syn_ack, data) = match name {
                "tcp" => (" S seq=1 ack=0 len=0", " SA seq=7 ack=2 len=0", " PA seq=2 ack=8 len=5"),
                _ => ("", "", ""),
            };
            let len = if name == "udp" { " len=9" } else { "" };
            assert_eq!(
                bed.leave(&format!("{pod} > {vip} {name}{syn}{len}")),
                format!("{pod} > {backend} {name}{syn}")
            );
            assert_eq!(bed.counted(), "flow_service+1");
            assert_eq!(
                bed.enter(&format!("{backend} > {pod} {name}{syn_ack}{len}")),
                format!("{vip} > {pod} {name}{syn_ack}")
            );
            assert_eq!(
                bed.leave(&format!("{pod} > {vip} {name}{data}")),
                format!("{pod} > {backend} {name}{data}")
            );
            assert_eq!(bed.counted(), "", "an established flow counts nothing");
            assert_eq!(bed.conntrack().len(), 2, "a forward and a reply entry");
        }
    }
}

#[test]
fn beside_another_proxy_flows_in_mid_flow_are_left_to_it() {
    for v4 in [true, false] {
        let mut bed = Bed::new();
        let (pod, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 80));
        bed.service(&vip, proto::TCP, &[&at(v4, 2, 9, 8080)]);
        let settings = Settings { flags: SettingFlags::OTHER_PROXY, ..Settings::ZERO };
        bed.set("settings", 0, settings);
        let data = format!("{pod} > {vip} tcp A");
        assert_eq!(bed.leave(&data).split(" tcp").next(), data.split(" tcp").next(), "as it came");
        let back = format!("{vip} > {pod} tcp A");
        assert_eq!(bed.enter(&back).split(" tcp").next(), back.split(" tcp").next());
        // A new one is ours, from the same port, too.
        let syn = bed.leave(&format!("{pod} > {vip} tcp S"));
        assert!(syn.contains(&at(v4, 2, 9, 8080)), "{syn}");
    }
}

#[test]
fn a_connection_that_both_ends_have_closed_leaves_nothing() {
    for v4 in [true, false] {
        let bed = Bed::new();
        let (pod, peer) = (at(v4, 1, 1, 4000), at(v4, 2, 9, 80));
        let (out, back) = (format!("{pod} > {peer} tcp"), format!("{peer} > {pod} tcp"));
        bed.leave(&format!("{out} S"));
        bed.enter(&format!("{back} SA"));
        bed.leave(&format!("{out} A"));
        bed.leave(&format!("{out} FA"));
        bed.enter(&format!("{back} A"));
        bed.enter(&format!("{back} FA"));
        assert_eq!(bed.conntrack().len(), 1, "the last packet is yet to come");
        bed.leave(&format!("{out} A"));
        assert_eq!(bed.conntrack().len(), 0);
        // That packet was lost on its way, so the other end closes once more.
        assert_ne!(bed.enter(&format!("{back} FA")), "drop");
        assert_eq!(bed.conntrack().len(), 0, "which opens nothing");
    }
}

#[test]
fn the_same_port_on_both_sides_changes_only_the_address() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:53", proto::UDP, &["10.2.0.9:53"]);
    assert_eq!(
        bed.leave("10.1.0.1:4000 > 10.96.0.1:53 udp len=3"),
        "10.1.0.1:4000 > 10.2.0.9:53 udp"
    );
}

#[test]
fn udp_without_checksum_stays_without() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:53", proto::UDP, &["10.2.0.9:5353"]);
    assert_eq!(
        bed.leave("10.1.0.1:4000 > 10.96.0.1:53 udp0 len=3"),
        "10.1.0.1:4000 > 10.2.0.9:5353 udp0"
    );
    assert_eq!(
        bed.enter("10.2.0.9:5353 > 10.1.0.1:4000 udp0 len=3"),
        "10.96.0.1:53 > 10.1.0.1:4000 udp0"
    );
}

#[test]
fn s01_no_endpoints_refuses_at_once() {
    for v4 in [true, false] {
        let (pod, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 80));
        let mut bed = Bed::new();
        bed.service(&vip, proto::TCP, &[]);
        bed.service(&vip, proto::UDP, &[]);
        bed.counted();
        assert_eq!(
            bed.leave(&format!("{pod} > {vip} tcp S seq=41")),
            format!("redirect back {vip} > {pod} tcp RA seq=0 ack=42 len=0")
        );
        assert_eq!(bed.counted(), "NO_ENDPOINTS/out+1");
        let (pod_ip, vip_ip) = (addr(v4, 1, 1), addr(v4, 96, 1));
        let code = if v4 { "3.3" } else { "1.4" };
        for len in [0, 3, 700] {
            assert_eq!(
                bed.leave(&format!("{pod} > {vip} udp len={len}")),
                format!("redirect back {vip_ip} > {pod_ip} icmp {code} [{pod} > {vip} udp]")
            );
        }
        assert_eq!(bed.counted(), "NO_ENDPOINTS/out+3");
        assert_eq!(bed.conntrack().len(), 0, "a refusal leaves nothing that could outlive it");
    }
}

#[test]
fn s25_an_undefined_port_of_a_cluster_ip_is_refused() {
    for v4 in [true, false] {
        let pod = at(v4, 1, 1, 4000);
        let (vip, other) = (at(v4, 96, 1, 80), at(v4, 96, 1, 81));
        let mut bed = Bed::new();
        bed.service(&vip, proto::TCP, &[&at(v4, 2, 9, 8080)]);
        assert_eq!(
            bed.leave(&format!("{pod} > {other} tcp S seq=9")),
            format!("redirect back {other} > {pod} tcp RA seq=0 ack=10 len=0")
        );
        let code = if v4 { "3.3" } else { "1.4" };
        let (pod_ip, vip_ip) = (addr(v4, 1, 1), addr(v4, 96, 1));
        assert_eq!(
            bed.leave(&format!("{pod} > {vip} udp len=3")),
            format!("redirect back {vip_ip} > {pod_ip} icmp {code} [{pod} > {vip} udp]")
        );
        assert_eq!(bed.counted(), "UNDEFINED_PORT/out+2");
    }
}

#[test]
fn other_ports_of_an_external_address_are_left_alone() {
    for v4 in [true, false] {
        let pod = at(v4, 1, 1, 4000);
        let (known, other) = (at(v4, 9, 1, 80), at(v4, 9, 1, 81));
        let mut bed = Bed::new();
        bed.service(&known, proto::TCP, &[&at(v4, 2, 9, 8080)]);
        let only = Frontend { flags: FrontendFlags::ADDRESS_ONLY, ..Frontend::ZERO };
        bed.put(
            "frontends",
            FrontendKey::wildcard(known.parse::<SocketAddr>().unwrap().ip().into()),
            only,
        );
        let packet = format!("{pod} > {other} tcp S seq=9 ack=0 len=0");
        assert_eq!(bed.leave(&packet), packet);
        let translated = format!("{pod} > {} tcp S seq=9 ack=0 len=0", at(v4, 2, 9, 8080));
        assert_eq!(bed.leave(&format!("{pod} > {known} tcp S seq=9")), translated);
        assert_eq!(bed.counted(), "flow_plain+1 flow_service+1");
    }
}

#[test]
fn a_reset_is_never_answered() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:80", proto::TCP, &[]);
    assert_eq!(bed.leave("10.1.0.1:4000 > 10.96.0.1:80 tcp R"), "drop");
}

#[test]
fn s47_hairpin_goes_round() {
    for v4 in [true, false] {
        let (pod_client, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 80));
        let pod_server = at(v4, 1, 1, 8080);
        let stand_in: std::net::IpAddr =
            if v4 { config::HAIRPIN4.into() } else { config::HAIRPIN6.into() };
        let stand_in = SocketAddr::new(stand_in, 4000).to_string();
        let mut bed = Bed::new();
        bed.service(&vip, proto::TCP, &[&pod_server]);
        assert_eq!(
            bed.leave(&format!("{pod_client} > {vip} tcp S seq=1 ack=0 len=0")),
            format!("redirect back {stand_in} > {pod_server} tcp S seq=1 ack=0 len=0")
        );
        assert_eq!(bed.counted(), "flow_hairpin+1");
        // On its way in again it is left as it is.
        let syn = format!("{stand_in} > {pod_server} tcp S seq=1 ack=0 len=0");
        assert_eq!(bed.enter(&syn), syn);
        assert_eq!(
            bed.leave(&format!("{pod_server} > {stand_in} tcp SA seq=5 ack=2 len=0")),
            format!("redirect back {vip} > {pod_client} tcp SA seq=5 ack=2 len=0")
        );
        let syn_ack = format!("{vip} > {pod_client} tcp SA seq=5 ack=2 len=0");
        assert_eq!(bed.enter_from(1, &syn_ack), syn_ack);
        assert_eq!(bed.enter_from(2, &syn_ack), "drop", "no other host answers for a frontend");
        assert_eq!(bed.counted(), "SPOOFED_SOURCE/in+1");
        assert_eq!(
            bed.leave(&format!("{pod_client} > {vip} tcp PA seq=2 ack=6 len=8")),
            format!("redirect back {stand_in} > {pod_server} tcp PA seq=2 ack=6 len=8")
        );
        assert_eq!(bed.counted(), "");
        assert_eq!(bed.conntrack().len(), 2);
    }
}

#[test]
fn s22_a_syn_on_an_old_tuple_is_a_new_flow() {
    let flow = "10.1.0.1:4000 > 10.96.0.1:80 tcp";
    let old = "10.1.0.1:4000 > 10.2.0.1:8080 tcp";
    let new = "10.1.0.1:4000 > 10.2.0.2:8080 tcp";
    let open = ["< SA seq=9 ack=2", "> A seq=2 ack=10"];
    let cases: [(&str, Vec<&str>, &str); 6] = [
        ("unanswered: a repeated SYN keeps its backend", vec![], old),
        ("established: the endpoint decides", open.to_vec(), old),
        ("one FIN: as before", [&open[..], &["> FA seq=3 ack=10"]].concat(), old),
        ("a reset from elsewhere", [&open[..], &["< R seq=10"]].concat(), old),
        ("both FINs", [&open[..], &["> FA seq=3 ack=10", "< FA seq=10 ack=4"]].concat(), new),
        ("its own reset", [&open[..], &["> R seq=2"]].concat(), new),
    ];
    for (name, steps, want) in cases {
        let mut bed = Bed::new();
        let ids = bed.service("10.96.0.1:80", proto::TCP, &["10.2.0.1:8080"]);
        assert_eq!(bed.leave(&format!("{flow} S")), format!("{old} S seq=1 ack=0 len=0"));
        for step in steps {
            let (direction, flags) = step.split_once(' ').unwrap();
            let outcome = if direction == ">" {
                bed.leave(&format!("{flow} {flags}")).starts_with(old)
            } else {
                let back = "10.96.0.1:80 > 10.1.0.1:4000 tcp";
                bed.enter(&format!("10.2.0.1:8080 > 10.1.0.1:4000 tcp {flags}")).starts_with(back)
            };
            assert!(outcome, "{name}: {step}");
        }
        let replacement = bed.backend("10.2.0.2:8080", proto::TCP);
        bed.frontend("10.96.0.1:80", proto::TCP, &[replacement]);
        bed.set_state(ids[0], state::DRAINING);
        assert_eq!(
            bed.leave(&format!("{flow} S seq=99")),
            format!("{want} S seq=99 ack=0 len=0"),
            "{name}"
        );
    }
}

#[test]
fn s15_udp_leaves_a_backend_that_left() {
    for gone in [state::DRAINING, state::DEAD] {
        let mut bed = Bed::new();
        let ids = bed.service("10.96.0.1:53", proto::UDP, &["10.2.0.1:53"]);
        let query = "10.1.0.1:4000 > 10.96.0.1:53 udp len=3";
        assert_eq!(bed.leave(query), "10.1.0.1:4000 > 10.2.0.1:53 udp");
        let second = bed.backend("10.2.0.2:53", proto::UDP);
        bed.frontend("10.96.0.1:53", proto::UDP, &[second]);
        bed.set_state(ids[0], gone);
        bed.counted();
        assert_eq!(bed.leave(query), "10.1.0.1:4000 > 10.2.0.2:53 udp");
        assert_eq!(bed.counted(), "flow_moved+1 flow_service+1");
        assert_eq!(
            bed.enter("10.2.0.2:53 > 10.1.0.1:4000 udp len=3"),
            "10.96.0.1:53 > 10.1.0.1:4000 udp"
        );
        // The last one leaves, too: refused, not swallowed; and served again when there is one.
        bed.frontend("10.96.0.1:53", proto::UDP, &[]);
        bed.set_state(second, gone);
        assert!(bed.leave(query).contains("icmp 3.3"), "N to 0");
        let third = bed.backend("10.2.0.3:53", proto::UDP);
        bed.frontend("10.96.0.1:53", proto::UDP, &[third]);
        assert_eq!(bed.leave(query), "10.1.0.1:4000 > 10.2.0.3:53 udp", "0 to N");
    }
}

#[test]
fn s15_udp_sent_before_the_service_existed_finds_it() {
    let mut bed = Bed::new();
    let query = "10.1.0.1:4000 > 10.96.0.1:53 udp len=3";
    assert_eq!(bed.leave(query), "10.1.0.1:4000 > 10.96.0.1:53 udp", "no Service yet");
    bed.service("10.96.0.1:53", proto::UDP, &["10.2.0.1:53"]);
    assert_eq!(bed.leave(query), "10.1.0.1:4000 > 10.2.0.1:53 udp");
}

#[test]
fn tcp_keeps_a_draining_backend_and_is_reset_from_a_dead_one() {
    for v4 in [true, false] {
        let (pod, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 80));
        let backend = at(v4, 2, 1, 8080);
        let mut bed = Bed::new();
        let ids = bed.service(&vip, proto::TCP, &[&backend]);
        bed.leave(&format!("{pod} > {vip} tcp S"));
        bed.enter(&format!("{backend} > {pod} tcp SA seq=100 ack=2"));
        bed.set_state(ids[0], state::DRAINING);
        assert_eq!(
            bed.leave(&format!("{pod} > {vip} tcp A seq=2 ack=101")),
            format!("{pod} > {backend} tcp A seq=2 ack=101 len=0")
        );
        bed.set_state(ids[0], state::DEAD);
        bed.counted();
        assert_eq!(
            bed.leave(&format!("{pod} > {vip} tcp PA seq=2 ack=101 len=1400")),
            format!("redirect back {vip} > {pod} tcp R seq=101 ack=0 len=0")
        );
        assert_eq!(bed.counted(), "BACKEND_GONE/out+1");
    }
}

#[test]
fn s20_one_backend_behind_two_addresses() {
    for (name, first, second) in [("tcp", " S", " SA seq=5 ack=2"), ("udp", " len=3", " len=3")] {
        let protocol = protocol(name);
        let mut bed = Bed::new();
        bed.service("10.96.0.1:80", protocol, &["10.2.0.9:8080"]);
        bed.service("10.96.0.2:80", protocol, &["10.2.0.9:8080"]);
        bed.leave(&format!("10.1.0.1:4000 > 10.96.0.1:80 {name}{first}"));
        bed.counted();
        let syn = packet::build(&format!("10.1.0.1:4000 > 10.96.0.2:80 {name}{first}"));
        let (verdict, bytes) = bed.leave_bytes(&syn);
        assert_eq!(verdict, Verdict::Next);
        let port = packet::source_port(&bytes);
        assert_ne!(port, 4000, "the tuple of the first flow is taken");
        assert!(!packet::show(&bytes).contains("BADSUM"));
        assert_eq!(bed.counted(), "flow_service+1 port_mapped+1");
        let outcome = bed.enter(&format!("10.2.0.9:8080 > 10.1.0.1:{port} {name}{second}"));
        assert!(outcome.starts_with(&format!("10.96.0.2:80 > 10.1.0.1:4000 {name}")), "{outcome}");
        assert!(!outcome.contains("BADSUM"), "{outcome}");
        let outcome = bed.enter(&format!("10.2.0.9:8080 > 10.1.0.1:4000 {name}{second}"));
        assert!(outcome.starts_with(&format!("10.96.0.1:80 > 10.1.0.1:4000 {name}")), "{outcome}");
    }
}

/// A Pod uses an eighth of all ports towards a backend through one Service, and the same ports through another one: each flow gets
/// a port, though the tuples of a quarter of them are taken in the end.
#[test]
fn s20_a_port_is_found_while_a_quarter_of_them_is_taken() {
    const FLOWS: u16 = 8064;
    for v4 in [true, false] {
        let mut bed = Bed::with_budget(0);
        let (first, second) = (at(v4, 96, 1, 80), at(v4, 96, 2, 80));
        for vip in [&first, &second] {
            bed.service(vip, proto::UDP, &[&at(v4, 2, 9, 8080)]);
        }
        for vip in [&first, &second] {
            for port in 0..FLOWS {
                let pod = at(v4, 1, 1, 4000 + port);
                bed.leave(&format!("{pod} > {vip} udp len=3"));
            }
        }
        // In an emulated machine, the first flows expire before the last are there.
        let counted = bed.counted();
        let all = format!("flow_service+{} port_mapped+", 2 * u32::from(FLOWS));
        assert!(counted.starts_with(&all), "{counted}");
    }
}

#[test]
fn s20_a_straight_flow_on_a_translated_tuple_gets_a_port_of_its_own() {
    for v4 in [true, false] {
        let (pod, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 80));
        let backend = at(v4, 2, 9, 8080);
        let mut bed = Bed::new();
        bed.service(&vip, proto::TCP, &[&backend]);
        bed.leave(&format!("{pod} > {vip} tcp S"));
        bed.counted();
        let (verdict, bytes) = bed.leave_bytes(&packet::build(&format!("{pod} > {backend} tcp S")));
        assert_eq!(verdict, Verdict::Next);
        let port = packet::source_port(&bytes);
        assert_ne!(port, 4000);
        let mapped = at(v4, 1, 1, port);
        assert_eq!(packet::show(&bytes), format!("{mapped} > {backend} tcp S seq=1 ack=0 len=0"));
        assert_eq!(bed.counted(), "flow_service+1 port_mapped+1");
        assert_eq!(
            bed.enter(&format!("{backend} > {mapped} tcp SA seq=5 ack=2")),
            format!("{backend} > {pod} tcp SA seq=5 ack=2 len=0")
        );
        assert_eq!(
            bed.leave(&format!("{pod} > {backend} tcp A seq=2 ack=6")),
            format!("{mapped} > {backend} tcp A seq=2 ack=6 len=0")
        );
        assert_eq!(
            bed.enter(&format!("{backend} > {pod} tcp SA seq=9 ack=2")),
            format!("{vip} > {pod} tcp SA seq=9 ack=2 len=0")
        );
        assert_eq!(bed.counted(), "");
    }
}

#[test]
fn s44_flows_older_than_the_agent_go_on() {
    let mut bed = Bed::new();
    let out = "10.1.0.1:4000 > 192.0.2.7:443 tcp PA seq=9 ack=9 len=3";
    let reply = "192.0.2.7:443 > 10.1.0.1:4000 tcp A seq=9 ack=12 len=0";
    let inbound = "192.0.2.8:999 > 10.1.0.1:80 tcp A seq=9 ack=12 len=0";
    for (packet, leaves) in [(out, true), (reply, false), (inbound, false)] {
        let got = if leaves { bed.leave(packet) } else { bed.enter(packet) };
        assert_eq!(got, packet, "each by itself");
    }
    assert_eq!((bed.counted().as_str(), bed.conntrack().len()), ("", 0));
    // A table that is new may know less than there is.
    let pickup_until = bed.stamp().wrapping_add(100);
    bed.set("settings", 0, Settings { pickup_until, ..Settings::ZERO });
    assert_eq!(bed.leave(out), out);
    assert_eq!(bed.enter(reply), reply);
    assert_eq!(bed.counted(), "flow_picked_up+1");
    assert_eq!(bed.enter(inbound), inbound);
    assert_eq!(bed.counted(), "flow_picked_up+1");
    for flags in ["R", "RA", "FA", "F"] {
        bed.leave(&format!("10.1.0.1:4001 > 192.0.2.7:443 tcp {flags}"));
    }
    assert_eq!(bed.conntrack().len(), 2, "what ends a connection begins none");
}

#[test]
fn s32_an_unknown_mid_flow_packet_to_a_service_is_reset() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:80", proto::TCP, &["10.2.0.9:8080"]);
    assert_eq!(
        bed.leave("10.1.0.1:4000 > 10.96.0.1:80 tcp A seq=9 ack=77"),
        "redirect back 10.96.0.1:80 > 10.1.0.1:4000 tcp R seq=77 ack=0 len=0"
    );
    assert_eq!(bed.counted(), "UNKNOWN_FLOW/out+1");
}

#[test]
fn flows_without_a_service_pass_unchanged_and_are_tracked() {
    for v4 in [true, false] {
        let (a, b) = (at(v4, 1, 1, 4000), at(v4, 1, 2, 80));
        let mut bed = Bed::new();
        bed.service(&at(v4, 96, 1, 80), proto::TCP, &[&at(v4, 2, 9, 8080)]);
        for text in [format!("{a} > {b} tcp S seq=1 ack=0 len=0"), format!("{a} > {b} udp")] {
            assert_eq!(bed.leave(&text), text);
            assert_eq!(bed.enter(&text), text);
            assert_eq!(bed.counted(), "flow_plain+2", "one at each Pod's end");
        }
        assert!(bed.leave(&format!("{a} > {b} echo")).contains("echo"));
        assert_eq!(bed.counted(), "flow_plain+1");
    }
}

#[test]
fn what_is_not_a_flow_passes_untouched_and_untracked() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:80", proto::TCP, &["10.2.0.9:8080"]);
    let arp = packet::arp([10, 1, 0, 1], [10, 1, 0, 254]);
    let multicast = packet::build("10.1.0.1:1 > 224.0.0.251:5353 udp len=3");
    let multicast6 = packet::build("[fe80::1]:1 > [ff02::fb]:5353 udp len=3");
    let mut neighbour = packet::build("[fe80::1]:1 > [fe80::2]:1 echo len=16");
    neighbour[14 + 40] = 135;
    let short = packet::build("10.1.0.1:1 > 10.96.0.1:80 tcp S")[..14 + 20 + 8].to_vec();
    for bytes in [arp, multicast, multicast6, neighbour] {
        assert_eq!(bed.leave_bytes(&bytes), (Verdict::Next, bytes.clone()));
        assert_eq!(bed.enter_bytes(&bytes), (Verdict::Next, bytes.clone()));
    }
    assert_eq!(bed.counted(), "");
    // Cut off within its transport header.
    assert_eq!(bed.leave_bytes(&short).0, Verdict::Drop);
    assert_eq!(bed.enter_bytes(&short).0, Verdict::Drop);
    assert_eq!(bed.counted(), "UNREADABLE/in+1 UNREADABLE/out+1");
    assert_eq!(bed.conntrack().len(), 0);
}

#[test]
fn ipv4_options_and_ipv6_extension_headers_are_walked() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:53", proto::UDP, &["10.2.0.9:5353"]);
    bed.service("[fd00:96::1]:53", proto::UDP, &["[fd00:2::9]:5353"]);
    // Router alert (RFC 2113) in an IPv4 header of 24 bytes.
    let plain = packet::build("10.1.0.1:4000 > 10.96.0.1:53 udp len=4");
    let mut with_options = [&plain[..34], &[0x94, 0x04, 0, 0], &plain[34..]].concat();
    with_options[14] = 0x46;
    let total = (with_options.len() - 14) as u16;
    with_options[16..18].copy_from_slice(&total.to_be_bytes());
    with_options[24..26].fill(0);
    let sum = with_options[14..38]
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum::<u32>();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    with_options[24..26].copy_from_slice(&sum.to_be_bytes());
    let (_, out) = bed.leave_bytes(&with_options);
    assert_eq!(packet::show(&out), "10.1.0.1:4000 > 10.2.0.9:5353 udp");
    // Destination options of 8 bytes (pad) before UDP.
    let plain = packet::build("[fd00:1::1]:4000 > [fd00:96::1]:53 udp len=4");
    let mut extended = [&plain[..54], &[17, 0, 1, 4, 0, 0, 0, 0], &plain[54..]].concat();
    extended[14 + 6] = 60;
    let payload = (extended.len() - 54) as u16;
    extended[18..20].copy_from_slice(&payload.to_be_bytes());
    let (_, out) = bed.leave_bytes(&extended);
    assert_eq!(packet::show(&out), "[fd00:1::1]:4000 > [fd00:2::9]:5353 udp");
}

#[test]
fn s33_icmp_errors_are_translated_inside_and_outside() {
    for v4 in [true, false] {
        let (pod, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 80));
        let backend = at(v4, 2, 9, 8080);
        let (pod_ip, vip_ip, backend_ip) = (addr(v4, 1, 1), addr(v4, 96, 1), addr(v4, 2, 9));
        let router = addr(v4, 9, 1);
        let kind = if v4 { "3.4" } else { "2.0" };
        let mut bed = Bed::new();
        bed.service(&vip, proto::TCP, &[&backend]);
        bed.leave(&format!("{pod} > {vip} tcp S"));
        bed.counted();
        let sent = format!("{pod} > {backend} tcp A len=1400");
        let show = |(verdict, bytes): (Verdict, Vec<u8>)| {
            assert_eq!(verdict, Verdict::Next);
            packet::show(&bytes)
        };
        // A router on the way cannot pass a packet on: the Pod learns it about the connection it has.
        assert_eq!(
            show(bed.enter_bytes(&packet::too_big(router, pod_ip, &sent))),
            format!("{router} > {pod_ip} icmp {kind} [{pod} > {vip} tcp]")
        );
        // The backend itself answers: it is known to the Pod as the frontend.
        assert_eq!(
            show(bed.enter_bytes(&packet::too_big(backend_ip, pod_ip, &sent))),
            format!("{vip_ip} > {pod_ip} icmp {kind} [{pod} > {vip} tcp]")
        );
        // The Pod complains about a reply, which it knows as the frontend's.
        let reply = format!("{vip} > {pod} tcp A len=1400");
        assert_eq!(
            show(bed.leave_bytes(&packet::too_big(pod_ip, vip_ip, &reply))),
            format!("{pod_ip} > {backend_ip} icmp {kind} [{backend} > {pod} tcp]")
        );
        // About flows that are not translated it passes as it is.
        let other = packet::too_big(router, pod_ip, &format!("{pod} > {} tcp A", at(v4, 3, 3, 9)));
        assert_eq!(bed.enter_bytes(&other), (Verdict::Next, other.clone()));
        assert_eq!(bed.counted(), "");
    }
}

#[test]
fn s33_icmp_errors_of_a_flow_with_a_mapped_port() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:80", proto::UDP, &["10.2.0.9:8080"]);
    bed.service("10.96.0.2:80", proto::UDP, &["10.2.0.9:8080"]);
    bed.leave("10.1.0.1:4000 > 10.96.0.1:80 udp len=3");
    let query = packet::build("10.1.0.1:4000 > 10.96.0.2:80 udp len=3");
    let port = packet::source_port(&bed.leave_bytes(&query).1);
    let sent = format!("10.1.0.1:{port} > 10.2.0.9:8080 udp len=3");
    let (pod, router) = (addr(true, 1, 1), addr(true, 9, 1));
    let (_, bytes) = bed.enter_bytes(&packet::too_big(router, pod, &sent));
    assert_eq!(
        packet::show(&bytes),
        "10.9.0.1 > 10.1.0.1 icmp 3.4 [10.1.0.1:4000 > 10.96.0.2:80 udp]"
    );
}

#[test]
fn s34_fragments_follow_their_first_both_ways() {
    for v4 in [true, false] {
        let (pod, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 53));
        let backend = at(v4, 2, 9, 5353);
        let mut bed = Bed::new();
        bed.service(&vip, proto::UDP, &[&backend]);
        let query = packet::build(&format!("{pod} > {vip} udp len=900"));
        let pieces = packet::in_two(&query, 504, 77).map(|piece| {
            let (verdict, out) = bed.leave_bytes(&piece);
            assert_eq!(verdict, Verdict::Next);
            out
        });
        assert_eq!(packet::show(&packet::whole(pieces)), format!("{pod} > {backend} udp"));
        let answer = packet::build(&format!("{backend} > {pod} udp len=900"));
        let pieces = packet::in_two(&answer, 504, 78).map(|piece| bed.enter_bytes(&piece).1);
        assert_eq!(packet::show(&packet::whole(pieces)), format!("{vip} > {pod} udp"));
        assert_eq!(bed.counted(), "flow_service+1");
        let [_, second] = packet::in_two(&query, 504, 79);
        assert_eq!(bed.leave_bytes(&second).0, Verdict::Drop, "its first one was never seen");
        assert_eq!(bed.counted(), "FRAGMENT_UNKNOWN/out+1");
    }
}

#[test]
fn a_later_fragment_to_a_service_is_dropped_with_its_reason() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:53", proto::UDP, &["10.2.0.9:5353"]);
    let mut fragment = packet::build("10.1.0.1:4000 > 10.96.0.1:53 udp len=64");
    fragment[20..22].copy_from_slice(&185u16.to_be_bytes());
    assert_eq!(bed.leave_bytes(&fragment).0, Verdict::Drop);
    assert_eq!(bed.counted(), "FRAGMENT_UNKNOWN/out+1");
    let mut elsewhere = packet::build("10.1.0.1:4000 > 10.2.0.9:53 udp len=64");
    elsewhere[20..22].copy_from_slice(&185u16.to_be_bytes());
    assert_eq!(bed.leave_bytes(&elsewhere), (Verdict::Next, elsewhere));
}

#[test]
fn backends_are_chosen_evenly() {
    let mut bed = Bed::new();
    bed.service("10.96.0.1:80", proto::TCP, &["10.2.0.1:80", "10.2.0.2:80", "10.2.0.3:80"]);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for port in 1024..4024 {
        let outcome = bed.leave(&format!("10.1.0.1:{port} > 10.96.0.1:80 tcp S"));
        let backend = outcome.split_whitespace().nth(2).unwrap().to_owned();
        *counts.entry(backend).or_default() += 1;
    }
    assert_eq!(counts.len(), 3);
    for (backend, n) in counts {
        // Five standard deviations around 1000.
        assert!((870..=1130).contains(&n), "{backend}: {n}");
    }
}

#[test]
fn an_idle_udp_flow_chooses_again_after_its_timeout() {
    let query = "10.1.0.1:4000 > 10.96.0.1:53 udp len=3";
    let answer = "10.2.0.1:53 > 10.1.0.1:4000 udp len=3";
    for (kind, secs, moves) in [
        ("asked", 20, false),
        ("asked", 40, true),
        ("answered", 20, false),
        ("answered", 40, true),
        ("stream", 100, false),
        ("stream", 130, true),
    ] {
        let mut bed = Bed::new();
        bed.service("10.96.0.1:53", proto::UDP, &["10.2.0.1:53"]);
        bed.leave(query);
        if kind != "asked" {
            bed.enter(answer);
        }
        if kind == "stream" {
            bed.age(3);
            bed.leave(query);
        }
        let second = bed.backend("10.2.0.2:53", proto::UDP);
        bed.frontend("10.96.0.1:53", proto::UDP, &[second]);
        bed.age(secs);
        let want = if moves { "10.2.0.2:53" } else { "10.2.0.1:53" };
        assert_eq!(
            bed.leave(query),
            format!("10.1.0.1:4000 > {want} udp"),
            "{kind}, idle for {secs} s"
        );
    }
}

/// Whether the conntrack table has a flow of this Pod's port.
fn knows(bed: &Bed, port: u16) -> bool {
    bed.conntrack().iter().any(|(key, _)| key.local_port.get() == port)
}

/// Floods the table until it has no flow of this Pod's port: which elements the kernel evicts first depends on the processors that
/// the test runs on.
fn evict(bed: &Bed, port: u16) {
    const FLOODS: usize = 8;
    let gone = (0..FLOODS).any(|_| {
        bed.flood();
        !knows(bed, port)
    });
    assert!(gone, "its entries are evicted");
}

#[test]
fn a_flood_of_flows_does_not_end_a_translated_connection() {
    for v4 in [true, false] {
        let (pod, vip) = (at(v4, 1, 1, 4000), at(v4, 96, 1, 80));
        let backend = at(v4, 2, 9, 8080);
        let mut bed = Bed::small();
        bed.service(&vip, proto::TCP, &[&backend]);
        let out = |bed: &Bed, flags: &str| {
            let outcome = bed.leave(&format!("{pod} > {vip} tcp {flags}"));
            assert!(outcome.starts_with(&format!("{pod} > {backend}")), "{outcome}");
        };
        let back = |bed: &Bed, flags: &str| {
            let outcome = bed.enter(&format!("{backend} > {pod} tcp {flags}"));
            assert!(outcome.starts_with(&format!("{vip} > {pod}")), "{outcome}");
        };
        out(&bed, "S");
        back(&bed, "SA seq=7 ack=2");
        out(&bed, "A seq=2 ack=8");
        let replacement = bed.backend(&at(v4, 2, 10, 8080), proto::TCP);
        bed.frontend(&vip, proto::TCP, &[replacement]);
        bed.counted();
        evict(&bed, 4000);
        out(&bed, "A seq=2 ack=8");
        back(&bed, "A seq=8 ack=2");
        evict(&bed, 4000);
        back(&bed, "A seq=8 ack=2");
        out(&bed, "A seq=2 ack=8");
        assert!(bed.counted().contains("entry_restored+4"));
        // Once it is over nothing keeps it.
        out(&bed, "FA seq=2 ack=8");
        back(&bed, "FA seq=8 ack=3");
        evict(&bed, 4000);
        let outcome = bed.leave(&format!("{pod} > {vip} tcp A seq=3 ack=9"));
        assert!(outcome.starts_with("redirect back"), "reset as unknown: {outcome}");
        // A connection that was never completed is not kept.
        let outcome = bed.leave(&format!("{} > {vip} tcp S", at(v4, 1, 1, 4001)));
        assert!(outcome.contains(&at(v4, 2, 10, 8080)), "{outcome}");
        evict(&bed, 4001);
        bed.counted();
        bed.enter(&format!("{} > {} tcp SA", at(v4, 2, 10, 8080), at(v4, 1, 1, 4001)));
        assert!(!bed.counted().contains("entry_restored"));
    }
}

#[test]
fn a_flood_of_flows_does_not_move_an_exchange_of_datagrams_that_lasts() {
    for v4 in [true, false] {
        let vip = at(v4, 96, 1, 53);
        let backend = at(v4, 2, 9, 5353);
        let mut bed = Bed::small();
        bed.service(&vip, proto::UDP, &[&backend]);
        for (port, times, stays) in [(4000, 4, true), (4001, 1, false)] {
            let pod = at(v4, 1, 1, port);
            for _ in 0..times {
                bed.leave(&format!("{pod} > {vip} udp len=3"));
                bed.enter(&format!("{backend} > {pod} udp len=3"));
                bed.age(5);
            }
            evict(&bed, port);
            let outcome = bed.enter(&format!("{backend} > {pod} udp len=3"));
            assert_eq!(outcome.starts_with(&vip), stays, "{outcome}");
        }
    }
}
