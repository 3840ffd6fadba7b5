//! Policies in the real programs, packet by packet. What the tables say is written by hand here, so that each test
//! shows one behaviour of the programs; that the compiler writes the right tables is shown elsewhere.
//! Numbers in test names (`s42_…`) are those of `SEMANTICS.md`.

use etherparse::{IpNumber, PacketBuilder};
use lb_common::addr::Addr;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey};
use lb_common::endpoint::{Ident, IdentFlags};
use lb_common::flow::proto;
use lb_common::policy::{Group, GroupFlags, tier};
use lb_testkit::bed::{Bed, Verdict, addr, protocol};
use lb_testkit::packet;
use lb_testkit::sample;
use lb_testkit::sample::{EGRESS, INGRESS, OTHER, PEER, POD, SampleDirection, SamplePolicy, at};

/// A bed with a Pod at [`POD`] that is isolated in both directions but for [`PEER`] at TCP 80 and UDP 53.
fn isolated(v4: bool) -> Bed {
    let mut bed = Bed::new();
    for direction in [INGRESS, EGRESS] {
        let policy =
            SamplePolicy::new(direction).allow(PEER, proto::TCP, 80).allow(PEER, proto::UDP, 53);
        policy.put(&mut bed);
    }
    sample::pod(&mut bed, v4);
    sample::epoch(&mut bed, 1);
    bed
}

fn verdict(text: &str) -> Verdict {
    if text == "drop" { Verdict::Drop } else { Verdict::Next }
}

#[test]
fn new_flows_by_peer_protocol_and_port() {
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        let cases = [
            ("tcp", " S", PEER, 80, true),
            ("tcp", " S", PEER, 81, false),
            ("tcp", " S", OTHER, 80, false),
            ("udp", "", PEER, 53, true),
            ("udp", "", PEER, 80, false),
            ("udp", "", OTHER, 53, false),
        ];
        bed.counted();
        for (name, flags, peer, port, allowed) in cases {
            let out = format!("{} > {} {name}{flags}", at(v4, POD, 4000), at(v4, peer, port));
            let inn = format!("{} > {} {name}{flags}", at(v4, peer, 4001), at(v4, POD, port));
            let want = if allowed { Verdict::Next } else { Verdict::Drop };
            assert_eq!(verdict(&bed.leave(&out)), want, "{out}");
            let counted = if allowed { "flow_plain+1" } else { "POLICY_ISOLATED/out+1" };
            assert_eq!(bed.counted(), counted, "{out}");
            assert_eq!(verdict(&bed.enter(&inn)), want, "{inn}");
            let counted = if allowed { "flow_plain+1" } else { "POLICY_ISOLATED/in+1" };
            assert_eq!(bed.counted(), counted, "{inn}");
        }
        assert_eq!(bed.conntrack().len(), 4, "what is denied leaves no entry");
    }
}

#[test]
fn s42_egress_is_judged_after_translation() {
    for v4 in [true, false] {
        for (backend_port, vip_port, allowed) in [(80, 8080, true), (8080, 80, false)] {
            let mut bed = isolated(v4);
            let vip = SERVICE(v4, vip_port);
            bed.service(&vip, proto::TCP, &[&at(v4, PEER, backend_port)]);
            let outcome = bed.leave(&format!("{} > {vip} tcp S", at(v4, POD, 4000)));
            assert_eq!(verdict(&outcome) == Verdict::Next, allowed, "{vip_port} -> {backend_port}");
            assert_eq!(bed.conntrack().len(), if allowed { 2 } else { 0 });
        }
    }
}

#[expect(non_snake_case, reason = "reads like the constants beside it")]
fn SERVICE(v4: bool, port: u16) -> String {
    std::net::SocketAddr::new(addr(v4, 96, 1), port).to_string()
}

#[test]
fn s44_replies_pass_whatever_the_other_direction_says() {
    for v4 in [true, false] {
        for (name, syn, ack) in [("tcp", " S", " SA"), ("udp", "", "")] {
            let mut bed = Bed::new();
            SamplePolicy::new(INGRESS).put(&mut bed);
            SamplePolicy::new(EGRESS).allow(PEER, protocol(name), 80).put(&mut bed);
            sample::pod(&mut bed, v4);
            sample::epoch(&mut bed, 1);
            let (pod, peer) = (at(v4, POD, 4000), at(v4, PEER, 80));
            assert_ne!(bed.leave(&format!("{pod} > {peer} {name}{syn}")), "drop");
            assert_ne!(bed.enter(&format!("{peer} > {pod} {name}{ack}")), "drop", "a reply");
            let other = at(v4, PEER, 81);
            assert_eq!(bed.enter(&format!("{other} > {pod} {name}{syn}")), "drop", "no reply");
        }
    }
}

#[test]
fn s44_flows_older_than_the_policy_are_judged_as_they_were_opened() {
    let (pod, allowed, denied) = (at(true, POD, 4000), at(true, PEER, 80), at(true, OTHER, 80));
    let mut bed = Bed::new();
    sample::pod(&mut bed, true);
    for peer in [&allowed, &denied] {
        assert_ne!(bed.leave(&format!("{pod} > {peer} tcp S")), "drop");
        assert_ne!(bed.enter(&format!("{peer} > {pod} tcp SA")), "drop");
        assert_ne!(bed.leave(&format!("{pod} > {peer} tcp A")), "drop");
    }
    SamplePolicy::new(INGRESS).put(&mut bed);
    SamplePolicy::new(EGRESS).allow(PEER, proto::TCP, 80).put(&mut bed);
    sample::pod(&mut bed, true);
    sample::epoch(&mut bed, 1);
    for (peer, stays) in [(&allowed, true), (&denied, false)] {
        for _ in 0..2 {
            let reply = bed.enter(&format!("{peer} > {pod} tcp A"));
            assert_eq!(reply != "drop", stays, "a reply of {peer}");
            assert_eq!(bed.leave(&format!("{pod} > {peer} tcp A")) != "drop", stays, "to {peer}");
        }
    }
    // The policy goes: what had stopped goes on.
    sample::epoch(&mut bed, 2);
    bed.set("groups", EGRESS.group(), Group::ZERO);
    bed.set("groups", INGRESS.group(), Group::ZERO);
    assert_ne!(bed.leave(&format!("{pod} > {denied} tcp A")), "drop");
}

#[test]
fn s44_a_translated_flow_is_judged_again_by_its_backend() {
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        let (pod, vip) = (at(v4, POD, 4000), SERVICE(v4, 443));
        bed.service(&vip, proto::TCP, &[&at(v4, PEER, 80)]);
        assert_ne!(bed.leave(&format!("{pod} > {vip} tcp S")), "drop");
        assert_ne!(bed.enter(&format!("{} > {pod} tcp SA", at(v4, PEER, 80))), "drop");
        sample::epoch(&mut bed, 2);
        assert_ne!(bed.leave(&format!("{pod} > {vip} tcp A")), "drop", "still allowed");
        assert_ne!(bed.enter(&format!("{} > {pod} tcp A", at(v4, PEER, 80))), "drop");
        SamplePolicy::new(EGRESS).put(&mut bed);
        bed.clear_bits(EGRESS.group());
        sample::epoch(&mut bed, 3);
        assert_eq!(bed.leave(&format!("{pod} > {vip} tcp A")), "drop", "no longer allowed");
        assert_eq!(bed.enter(&format!("{} > {pod} tcp A", at(v4, PEER, 80))), "drop");
    }
}

#[test]
fn s44_a_flow_not_seen_opening_passes_if_both_ends_could_open_it() {
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        let (pod, peer) = (|port| at(v4, POD, port), |port| at(v4, PEER, port));
        bed.reasons();
        for flags in ["A", "PA", "FA", "F", "R", "RA", "SA"] {
            let tcp = format!("tcp {flags}");
            assert_ne!(bed.leave(&format!("{} > {} {tcp}", pod(80), peer(80))), "drop");
            assert_ne!(bed.enter(&format!("{} > {} {tcp}", peer(80), pod(80))), "drop");
            assert_eq!(bed.reasons(), "", "{flags}");
            // The Pod may open the one, the peer the other.
            for (from, to) in [(999, 80), (80, 999)] {
                assert_eq!(bed.leave(&format!("{} > {} {tcp}", pod(from), peer(to))), "drop");
                assert_eq!(bed.reasons(), "NOT_OPENED/out+1", "{flags}");
                assert_eq!(bed.enter(&format!("{} > {} {tcp}", peer(from), pod(to))), "drop");
                assert_eq!(bed.reasons(), "NOT_OPENED/in+1", "{flags}");
            }
        }
        assert_eq!(bed.conntrack().len(), 0);
    }
}

#[test]
fn s45_the_own_node_is_always_let_through() {
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        let node = Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO };
        bed.put("ident", Addr::from_ip(addr(v4, 3, 1)).words().map(|word| word.to_wire()), node);
        let other = Ident { flags: IdentFlags::NODE, ident: OTHER.into(), ..Ident::ZERO };
        bed.put("ident", Addr::from_ip(addr(v4, 3, 2)).words().map(|word| word.to_wire()), other);
        for (host, allowed) in [(1, true), (2, false)] {
            let node = std::net::SocketAddr::new(addr(v4, 3, host), 10250);
            for name in ["tcp S", "udp", "echo"] {
                let inn = bed.enter(&format!("{node} > {} {name}", at(v4, POD, 8080)));
                assert_eq!(inn != "drop", allowed, "{node} {name} in");
                let out = bed.leave(&format!("{} > {node} {name}", at(v4, POD, 4000)));
                assert_eq!(out != "drop", allowed, "{node} {name} out");
            }
        }
    }
}

#[test]
fn s47_a_pod_reaches_itself_unless_a_cluster_policy_says_no() {
    for v4 in [true, false] {
        for (rule, denied) in [
            (None, false),
            (Some((EGRESS, tier::ADMIN)), true),
            (Some((EGRESS, tier::BASELINE)), false),
        ] {
            let mut bed = isolated(v4);
            if let Some((direction, tier)) = rule {
                SamplePolicy::new(direction).deny(tier, POD, proto::TCP, 8080).put(&mut bed);
            }
            let vip = SERVICE(v4, 80);
            bed.service(&vip, proto::TCP, &[&at(v4, POD, 8080)]);
            let outcome = bed.leave(&format!("{} > {vip} tcp S", at(v4, POD, 4000)));
            assert_eq!(outcome == "drop", denied, "{outcome}");
        }
    }
}

#[test]
fn s49_neighbors_are_found_under_a_default_deny() {
    let mut bed = isolated(false);
    let node = Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO };
    bed.put("ident", Addr::from_ip(addr(false, 3, 1)).words().map(|word| word.to_wire()), node);
    bed.reasons();
    let own: std::net::Ipv6Addr = "fd00:1::1".parse().unwrap();
    let icmp6 = |kind: u8, hops: u8, src: &str, dst: &str, size: usize| {
        let [src, dst]: [std::net::Ipv6Addr; 2] = [src, dst].map(|ip| ip.parse().unwrap());
        let eth = PacketBuilder::ethernet2(packet::POD_MAC, packet::GATEWAY_MAC);
        let mut out = Vec::new();
        // A router solicitation has no target.
        let own = if kind == 133 { &[][..] } else { &own.octets() };
        let target = [own, &vec![7; size]].concat();
        let icmp = eth.ipv6(src.octets(), dst.octets(), hops).icmpv6_raw(kind, 0, [0; 4]);
        icmp.write(&mut out, &target).unwrap();
        out
    };
    // Type, hop limit, source, destination, more bytes; whether it leaves the Pod and enters it.
    let cases: [(u8, u8, &str, &str, usize, bool, bool); 20] = [
        (130, 1, "fe80::1", "ff02::1", 0, true, true),
        (131, 1, "fe80::1", "ff02::16", 0, true, true),
        (132, 1, "fe80::1", "ff02::2", 0, true, true),
        (143, 1, "::", "ff02::16", 900, true, true),
        (143, 1, "fe80::1", "fd00:7::1", 0, false, false),
        (143, 255, "fe80::1", "ff02::16", 0, false, false),
        (133, 255, "::", "ff02::2", 0, true, true),
        (134, 255, "fe80::1", "ff02::1", 64, false, true),
        (137, 255, "fe80::1", "fd00:1::1", 24, false, true),
        (135, 255, "::", "ff02::1:ff00:1", 0, true, true),
        (135, 255, "fd00:1::1", "ff02::1:ff00:9", 8, true, true),
        (135, 255, "fd00:1::1", "fe80::2", 8, true, true),
        (135, 255, "fd00:1::1", "fd00:3::1", 8, true, false),
        (135, 64, "fd00:1::1", "ff02::1:ff00:9", 8, false, false),
        (135, 255, "fd00:1::1", "fd00:1::1", 900, false, false),
        // Off the link.
        (135, 255, "fd00:1::1", "fd00:7::1", 8, false, true),
        (136, 255, "fd00:1::1", "fd00:7::1", 8, false, true),
        (136, 255, "fd00:1::1", "ff02::1", 8, true, true),
        (136, 255, "fd00:7::1", "ff02::1", 8, false, true),
        (138, 255, "fd00:1::1", "ff02::1", 8, false, false),
    ];
    for (kind, hops, src, dst, size, leaves, enters) in cases {
        let packet = icmp6(kind, hops, src, dst, size);
        let name = format!("{kind}, {hops} hops, {src} to {dst}, {size}");
        assert_eq!(bed.leave_bytes(&packet).0 == Verdict::Next, leaves, "out: {name}");
        if dst != "fd00:3::1" {
            assert_eq!(bed.enter_bytes(&packet).0 == Verdict::Next, enters, "in: {name}");
        }
    }
    // An advertisement of another's address.
    let mut packet = icmp6(136, 255, "fd00:1::1", "ff02::1", 8);
    packet[14 + 40 + 8 + 15] = 9;
    bed.reasons();
    // No host has it.
    assert_eq!(bed.leave_bytes(&packet).0, Verdict::Next);
    packet[14 + 40 + 8 + 3] = 7;
    packet[14 + 40 + 8 + 15] = 1;
    assert_eq!(bed.leave_bytes(&packet).0, Verdict::Drop);
    assert_eq!(bed.reasons(), "FORGED_NEIGHBOR/out+1");
    let arp = packet::arp([10, 1, 0, 1], [10, 1, 0, 254]);
    assert_eq!(bed.enter_bytes(&arp).0, Verdict::Next, "ARP");
    assert_eq!(bed.leave_bytes(&arp).0, Verdict::Next, "ARP");
}

#[test]
fn icmp_errors_pass_for_known_flows_only() {
    for v4 in [true, false] {
        let bed = isolated(v4);
        let router = addr(v4, 9, 9);
        let (pod, peer) = (at(v4, POD, 4000), at(v4, PEER, 80));
        let known = format!("{pod} > {peer} tcp S len=40");
        let forged = format!("{pod} > {} tcp S len=40", at(v4, OTHER, 80));
        let error = |inner: &str| packet::too_big(router, addr(v4, POD, 1), inner);
        assert_eq!(bed.enter_bytes(&error(&known)).0, Verdict::Drop, "not opened yet");
        assert_ne!(bed.leave(&known), "drop");
        assert_eq!(bed.enter_bytes(&error(&known)).0, Verdict::Next);
        assert_eq!(bed.enter_bytes(&error(&forged)).0, Verdict::Drop, "about no flow of ours");
    }
}

/// A packet of an IP protocol without ports.
fn portless(v4: bool, protocol: u8, (src, dst): (u8, u8)) -> Vec<u8> {
    let eth = PacketBuilder::ethernet2(packet::POD_MAC, packet::GATEWAY_MAC);
    let mut out = Vec::new();
    let (src, dst) = (addr(v4, src, 1), addr(v4, dst, 1));
    match (src, dst) {
        (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => eth
            .ipv4(src.octets(), dst.octets(), 64)
            .write(&mut out, IpNumber(protocol), &[0; 16])
            .unwrap(),
        (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) => eth
            .ipv6(src.octets(), dst.octets(), 64)
            .write(&mut out, IpNumber(protocol), &[0; 16])
            .unwrap(),
        _ => unreachable!("one family"),
    }
    out
}

#[test]
fn other_protocols_need_a_rule_without_ports() {
    const GRE: u8 = 47;
    const ESP: u8 = 50;
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        for protocol in [GRE, ESP, proto::SCTP] {
            let packet = portless(v4, protocol, (PEER, POD));
            assert_eq!(bed.enter_bytes_from(9, &packet), Verdict::Drop, "{protocol}");
        }
        assert_eq!(bed.enter(&format!("{} > {} echo", at(v4, PEER, 9), at(v4, POD, 9))), "drop");
        SamplePolicy::new(INGRESS).allow_all(PEER).put(&mut bed);
        sample::epoch(&mut bed, 2);
        // Its content is unknown.
        let esp = portless(v4, ESP, (PEER, POD));
        assert_eq!(bed.enter_bytes_from(9, &esp), Verdict::Drop);
        for protocol in [GRE, proto::SCTP] {
            let packet = portless(v4, protocol, (PEER, POD));
            assert_eq!(bed.enter_bytes(&packet).0, Verdict::Next, "{protocol}");
            let packet = portless(v4, protocol, (OTHER, POD));
            assert_eq!(bed.enter_bytes(&packet).0, Verdict::Drop, "{protocol} of another");
        }
        assert_ne!(bed.enter(&format!("{} > {} echo", at(v4, PEER, 9), at(v4, POD, 9))), "drop");
    }
}

#[test]
fn multicast_and_broadcast_need_a_rule() {
    let bed = isolated(true);
    for dst in ["224.0.0.251:5353", "255.255.255.255:67", "239.1.2.3:80"] {
        assert_eq!(bed.leave(&format!("10.1.0.1:4000 > {dst} udp")), "drop", "{dst}");
    }
    let bed = isolated(false);
    assert_eq!(bed.leave("[fd00:1::1]:4000 > [ff02::fb]:5353 udp"), "drop");
}

#[test]
fn s34_fragments_share_the_verdict_of_their_first() {
    for (port, allowed) in [(53, true), (54, false)] {
        let bed = isolated(true);
        let whole = packet::build(&format!("10.2.0.1:4000 > 10.1.0.1:{port} udp len=64"));
        let (mut first, mut later) = (whole[..14 + 20 + 40].to_vec(), whole[..14 + 20].to_vec());
        later.extend_from_slice(&whole[14 + 20 + 40..]);
        first[20] = 0x20;
        later[20..22].copy_from_slice(&5_u16.to_be_bytes());
        // Checksums are of no interest to the programs; the length is.
        first[16..18].copy_from_slice(&60_u16.to_be_bytes());
        let len = (later.len() - 14) as u16;
        later[16..18].copy_from_slice(&len.to_be_bytes());
        let want = if allowed { Verdict::Next } else { Verdict::Drop };
        assert_eq!(bed.enter_bytes(&later).0, Verdict::Drop, "a later one alone");
        assert_eq!(bed.enter_bytes(&first).0, want);
        assert_eq!(bed.enter_bytes(&later).0, want);
    }
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    for v4 in [true, false] {
        let mut bed = Bed::new();
        // No policy selects this Pod; there are some elsewhere.
        sample::pod(&mut bed, v4);
        sample::epoch(&mut bed, 1);
        let node = Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO };
        bed.put("ident", Addr::from_ip(addr(v4, 3, 1)).words().map(|word| word.to_wire()), node);
        // A Pod of this node whose device is not known yet: it is not this one, whose Pod is known.
        let here = Ident { flags: IdentFlags::POD | IdentFlags::HERE, ident: 5, ..Ident::ZERO };
        bed.put("ident", Addr::from_ip(addr(v4, 5, 1)).words().map(|word| word.to_wire()), here);
        bed.counted();
        let to = at(v4, PEER, 80);
        for (net, spoofed) in [(POD, false), (OTHER, true), (3, true), (77, false), (5, true)] {
            let from = at(v4, net, 4000);
            let outcome = bed.leave(&format!("{from} > {to} tcp S"));
            assert_eq!(outcome == "drop", spoofed, "{from}");
            let counted = if spoofed { "SPOOFED_SOURCE/out+1" } else { "flow_plain+1" };
            assert_eq!(bed.counted(), counted, "{from}");
        }
    }
}

#[test]
fn a_device_whose_pod_is_not_known_is_pending() {
    for v4 in [true, false] {
        let mut bed = Bed::new();
        let pending = Group { flags: GroupFlags::PENDING, ..Group::ZERO };
        bed.set("groups", INGRESS.group(), pending);
        bed.set("groups", EGRESS.group(), pending);
        sample::idents(&mut bed, v4);
        sample::epoch(&mut bed, 1);
        let out = format!("{} > {} tcp S", at(v4, POD, 4000), at(v4, PEER, 80));
        assert_ne!(bed.leave(&out), "drop", "nothing says that it must wait");
        sample::pending(&mut bed, 2, true);
        bed.counted();
        let out = format!("{} > {} udp", at(v4, POD, 4000), at(v4, PEER, 80));
        let inn = format!("{} > {} udp", at(v4, PEER, 4000), at(v4, POD, 80));
        assert_eq!((bed.leave(&out), bed.enter(&inn)), ("drop".into(), "drop".into()));
        assert_eq!(bed.counted(), "POLICY_PENDING/in+1 POLICY_PENDING/out+1");
        sample::pod(&mut bed, v4);
        sample::epoch(&mut bed, 3);
        let group = Group::ZERO;
        bed.set("groups", INGRESS.group(), group);
        bed.set("groups", EGRESS.group(), group);
        assert_ne!(bed.leave(&out), "drop", "known now, and no policy selects it");
    }
}

#[test]
fn a_client_outside_is_judged_by_its_own_address() {
    for v4 in [true, false] {
        for (net, allowed) in [(PEER, true), (OTHER, false)] {
            let mut bed = isolated(v4);
            // As `dev_in` leaves it, which keeps the client: not judged yet.
            let addr_of = |net: u8| Addr::from_ip(addr(v4, net, 1));
            let key = CtKey {
                local: addr_of(POD),
                remote: addr_of(net),
                local_port: lb_common::be::Be16::new(80),
                remote_port: lb_common::be::Be16::new(4000),
                proto: proto::TCP,
                scope: 0,
                veth: 1,
            };
            let flags = CtFlags::REPLY | CtFlags::EXTERNAL;
            bed.put("ct", key, CtEntry { flags, last_seen: u32::MAX / 2, ..CtEntry::ZERO });
            let outcome = bed.enter(&format!("{} > {} tcp S", at(v4, net, 4000), at(v4, POD, 80)));
            assert_eq!(outcome != "drop", allowed, "{outcome}");
        }
    }
}

#[test]
fn shadow_groups_tell_and_change_nothing() {
    let cases = [
        ("would deny", SamplePolicy::new(EGRESS), false, outcome(2)),
        ("agrees", SamplePolicy::new(EGRESS).allow(PEER, proto::TCP, 80), false, "allow"),
        ("would allow", SamplePolicy::new(EGRESS).allow(PEER, proto::TCP, 80), true, outcome(3)),
        ("agrees to deny", SamplePolicy::new(EGRESS), true, "deny"),
    ];
    for (name, shadow, denied, want) in cases {
        let mut bed = Bed::new();
        if denied {
            SamplePolicy::new(EGRESS).put(&mut bed);
        }
        shadow.put_as(&mut bed, 9);
        sample::shadowed(&mut bed, denied, 9);
        sample::epoch(&mut bed, 1);
        let outcome = bed.leave(&format!("{} > {} tcp S", at(true, POD, 4000), at(true, PEER, 80)));
        assert_eq!(outcome == "drop", denied, "{name}");
        assert_eq!(bed.judged(), [want], "{name}");
    }
}

#[test]
fn who_decided_is_counted_once_a_flow() {
    let bed = isolated(true);
    for (port, packets) in [(4000, 3), (4001, 1)] {
        let syn = format!("{} > {} tcp S", at(true, POD, port), at(true, PEER, 80));
        for _ in 0..packets {
            bed.leave(&syn);
        }
    }
    bed.leave("10.1.0.1:4002 > 10.7.0.1:80 tcp S");
    bed.enter("10.2.0.1:4003 > 10.1.0.1:53 udp");
    let [ingress, egress] = [INGRESS, EGRESS].map(SampleDirection::group);
    assert_eq!(
        bed.hits(),
        [
            format!("{ingress} in allow rule 64: 1"),
            format!("{egress} out allow rule 0: 2"),
            format!("{egress} out deny isolation: 1"),
        ]
    );
    // What is tried counts beside what is enforced, where the two differ.
    let mut bed = Bed::new();
    SamplePolicy::new(EGRESS).allow(PEER, proto::TCP, 80).put(&mut bed);
    SamplePolicy::new(EGRESS).put_as(&mut bed, 9);
    sample::shadowed(&mut bed, true, 9);
    sample::epoch(&mut bed, 1);
    bed.leave("10.1.0.1:4000 > 10.2.0.1:80 tcp S");
    assert_eq!(
        bed.hits(),
        [format!("{egress} out allow rule 0: 1"), "9 out would_deny isolation: 1".to_owned()]
    );
}

/// Name of an outcome by its number.
fn outcome(number: usize) -> &'static str {
    lb_common::verdict::Outcome::ALL[number].name()
}

#[test]
fn without_any_policy_nothing_is_looked_up() {
    let mut bed = isolated(true);
    sample::epoch(&mut bed, 0);
    assert_ne!(bed.leave("10.1.0.1:4000 > 10.7.0.1:81 tcp S"), "drop");
    assert_ne!(bed.leave("10.9.0.1:4000 > 10.7.0.1:81 tcp S"), "drop");
    let _: SampleDirection = INGRESS;
}

#[test]
fn a_noisy_peer_does_not_hide_what_is_denied_to_others() {
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        let (pod, noisy) = (at(v4, POD, 80), addr(v4, OTHER, 1));
        let quiet = addr(v4, OTHER, 9);
        let syn = |bed: &Bed, from: std::net::IpAddr, port: u16| {
            let from = std::net::SocketAddr::new(from, port);
            assert_eq!(bed.enter(&format!("{from} > {pod} tcp S")), "drop");
        };
        bed.events();
        for port in 0..2_000_u16 {
            syn(&bed, noisy, 2_000 + port);
            if port % 400 == 399 {
                syn(&bed, quiet, port);
            }
        }
        let outcome = bed.events();
        assert_eq!(outcome.iter().filter(|src| **src == quiet).count(), 5);
        let n = outcome.iter().filter(|src| **src == noisy).count();
        assert!((1..400).contains(&n), "{n} of the noisy one");
    }
}
