//! Packets of other nodes that go from the device that they come in by to the Pod's end of its veth: that device's hook is the
//! Pod's, too.

use lb_common::addr::Addr;
use lb_common::be::{Be16, Be32};
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, UNJUDGED};
use lb_common::endpoint::{DevFlags, Ident, IdentFlags, PodEntry};
use lb_common::flow::{proto, tcp};
use lb_common::hop::HopWay;
use lb_common::past::{LocalEnd, LocalFlags};
use lb_common::policy::{Group, GroupFlags};
use lb_testkit::bed::{Bed, Verdict};
use lb_testkit::node::{Addrs, FAMILIES, sh};
use lb_testkit::objects::addr;
use lb_testkit::packet;
use lb_testkit::sample::{self, INGRESS, SamplePolicy};

use crate::hop::{FAR, LINK, POD, VIP, allow, arrive, arrive_bytes, key_of, receiving, set, ways};

/// The Pod's device, which test runs do not come in by, and the one that they do.
const THERE: u32 = 6;
const BY: u32 = 1;
/// The groups of the Pod: into it, the one after a change, and a shadow.
const INTO: u32 = 21;
const CHANGED: u32 = 22;
const SHADOW: u32 = 23;
/// Largest packet of the Pod and of the way to the other nodes.
const MTU: u32 = 1400;
/// Number of the policies in force.
const POLICIES: u32 = 7;

fn local(flags: LocalFlags) -> LocalEnd {
    let (_, generation) = POD;
    let generation = generation.into();
    LocalEnd { ifindex: THERE, generation, link: LINK, mtu: MTU, flags, ..LocalEnd::ZERO }
}

/// What comes for the Pod from other nodes may go to its end of its veth.
fn to_peer(bed: &mut Bed) {
    bed.set("locals", POD.0.into(), local(LocalFlags::PAST_OK | LocalFlags::PEER_OK));
}

/// It goes to the host's end.
fn to_host_end(bed: &mut Bed) {
    bed.set("locals", POD.0.into(), local(LocalFlags::PAST_OK));
}

fn groups(bed: &mut Bed, [ingress, shadow_ingress]: [u32; 2]) {
    let [v4, v6] = &FAMILIES;
    let (ip4, ip6) = (addr(v4.pod), addr(v6.pod));
    let id = POD.0.into();
    bed.put("pods", THERE, PodEntry { ip4, ip6, id, ingress, shadow_ingress, ..PodEntry::ZERO });
}

/// A node that a Pod of another one sends to.
fn bed() -> Bed {
    let mut bed = receiving();
    for family in &FAMILIES {
        let flags = IdentFlags::POD | IdentFlags::HERE;
        let ident = Ident { ident: 9, flags, ifindex: THERE, ..Ident::ZERO };
        bed.put("ident", key_of(family.pod), ident);
    }
    groups(&mut bed, [INTO, 0]);
    to_peer(&mut bed);
    bed.counted();
    bed.event_devices();
    bed
}

/// Its Pod lets in what is for port 80 alone, since it was asked last.
fn isolated() -> Bed {
    let mut bed = bed();
    for protocol in [proto::TCP, proto::UDP] {
        SamplePolicy::new(INGRESS).allow(FAR, protocol, 80).put_as(&mut bed, INTO);
    }
    sample::epoch(&mut bed, POLICIES);
    bed
}

/// From a Pod of another node to a port of the Pod.
fn ends(family: &Addrs, port: u16) -> String {
    format!("{} > {}", family.at(family.far_pod, 4000), family.at(family.pod, port))
}

fn entry(bed: &Bed) -> CtEntry {
    let [(key, entry)] = bed.conntrack().try_into().unwrap();
    assert_eq!(u32::from(key.veth), THERE);
    entry
}

#[test]
fn a_packet_has_been_through_both_hooks_when_it_goes_to_the_pods_end() {
    for family in &FAMILIES {
        for (name, flags) in [("tcp", " S"), ("udp", "")] {
            for policies in [0, POLICIES] {
                let mut bed = isolated();
                sample::epoch(&mut bed, policies);
                let text = format!("{} {name}{flags}", ends(family, 80));
                assert_eq!(arrive(&bed, &text), format!("redirect {text}"));
                let found = entry(&bed);
                assert!(found.flags.contains(CtFlags::INBOUND | CtFlags::PAST | CtFlags::SEEN_IN));
                assert_eq!(found.epoch, policies, "judged");
                let [way] = ways(&bed).try_into().unwrap();
                assert_eq!((way.device, way.pod), (BY, POD));
                let counted = bed.counted();
                assert!(counted.contains("flow_hop+1"), "{counted}");
                assert!(!counted.contains("flow_plain"), "{counted}");
                let text = text.replace(" S", " A");
                assert_eq!(arrive(&bed, &text), format!("redirect {text}"));
                assert_eq!(bed.counted(), "", "{text}");
            }
        }
    }
}

#[test]
fn the_pods_policies_are_asked_and_counted_as_at_its_device() {
    for family in &FAMILIES {
        let mut bed = isolated();
        for (port, allowed) in [(80, true), (81, false)] {
            for again in [false, true] {
                let syn = format!("{} tcp S", ends(family, port));
                let told = arrive(&bed, &syn);
                assert_eq!(told, if allowed { format!("redirect {syn}") } else { "drop".into() });
                let counted = bed.counted();
                assert_eq!(counted.contains("POLICY_ISOLATED/in+1"), !allowed, "{counted}");
                assert!(!counted.contains("/out"), "{counted}");
                let want: &[u32] = if allowed { &[] } else { &[THERE] };
                assert_eq!(bed.event_devices(), want, "the Pod's device; again: {again}");
            }
        }
        let hits = [format!("{INTO} in allow rule 0: 1"), format!("{INTO} in deny isolation: 2")];
        assert_eq!(bed.hits(), hits);
    }
}

#[test]
fn shadows_tell_and_pods_that_are_not_known_wait() {
    for family in &FAMILIES {
        let syn = format!("{} tcp S", ends(family, 80));
        let mut bed = isolated();
        groups(&mut bed, [0, SHADOW]);
        SamplePolicy::new(INGRESS).put_as(&mut bed, SHADOW);
        assert!(arrive(&bed, &syn).starts_with("redirect"), "a shadow drops nothing");
        assert_eq!(bed.hits(), [format!("{SHADOW} in would_deny isolation: 1")]);
        assert_eq!(bed.event_devices(), [THERE]);

        let mut bed = isolated();
        bed.set("groups", INTO, Group { flags: GroupFlags::PENDING, ..Group::ZERO });
        assert_eq!(arrive(&bed, &syn), "drop");
        assert!(bed.counted().contains("POLICY_PENDING/in+1"));
    }
}

#[test]
fn a_change_of_policies_reaches_a_flow_at_its_next_packet() {
    for family in &FAMILIES {
        for (allowed, want) in [(80, true), (81, false)] {
            let mut bed = isolated();
            assert!(arrive(&bed, &format!("{} tcp S", ends(family, 80))).starts_with("redirect"));
            SamplePolicy::new(INGRESS).allow(FAR, proto::TCP, allowed).put_as(&mut bed, CHANGED);
            groups(&mut bed, [CHANGED, 0]);
            sample::epoch(&mut bed, POLICIES + 1);
            bed.counted();
            let ack = format!("{} tcp A", ends(family, 80));
            for _ in 0..2 {
                assert_eq!(arrive(&bed, &ack) != "drop", want);
            }
            assert_eq!(bed.counted().contains("POLICY_ISOLATED/in+2"), !want);
        }
    }
}

/// The Pod's flow through a Service to one on another node, which got another source port or its own.
fn dialed(bed: &mut Bed, family: &Addrs, port: u16) {
    let last_seen = bed.stamp();
    let vip: std::net::SocketAddr = VIP[usize::from(!family.v4())].parse().unwrap();
    let (nat_addr, nat_port) = (Addr::from_ip(vip.ip()), Be16::new(vip.port()));
    let way =
        HopWay { device: BY, next4: Be32::new(0), pod: POD, mtu: 1400, asked: last_seen as u16 };
    let key = CtKey {
        local: addr(family.pod),
        remote: addr(family.far_pod),
        local_port: Be16::new(port),
        remote_port: Be16::new(8080),
        proto: proto::TCP,
        veth: THERE as u16,
        ..CtKey::ZERO
    };
    let flags = CtFlags::SEEN_OUT
        | CtFlags::PAST
        | CtFlags::tcp(tcp::SYN, 0)
        | CtFlags::PORT_MAPPED.when(port != 4000);
    let reply = CtEntry {
        nat_addr,
        nat_port,
        aux_addr: addr(family.pod),
        aux_port: Be16::new(4000),
        last_seen,
        way: way.to_addr(),
        flags: flags | CtFlags::REPLY,
        ..CtEntry::ZERO
    };
    bed.put("ct", key, reply);
    let forward =
        CtKey { remote: nat_addr, remote_port: nat_port, local_port: Be16::new(4000), ..key };
    let entry = CtEntry {
        nat_addr: key.remote,
        nat_port: key.remote_port,
        aux_port: key.local_port,
        flags: flags | CtFlags::FORWARD,
        ..reply
    };
    bed.put("ct", forward, entry);
    bed.counted();
}

#[test]
fn an_answer_of_a_service_shows_its_address() {
    for family in &FAMILIES {
        for port in [4000, 5000] {
            let mut bed = bed();
            dialed(&mut bed, family, port);
            let from = family.at(family.far_pod, 8080);
            let vip = VIP[usize::from(!family.v4())];
            for flags in ["SA", "A", "FA"] {
                let answer = format!("{from} > {} tcp {flags}", family.at(family.pod, port));
                let shown = format!("{vip} > {} tcp {flags}", family.at(family.pod, 4000));
                assert_eq!(arrive(&bed, &answer), format!("redirect {shown}"));
                assert_eq!(bed.counted(), "");
            }
            // By the host's end, its hook does that; through the stack, too.
            to_host_end(&mut bed);
            let answer = format!("{from} > {} tcp A", family.at(family.pod, port));
            assert_eq!(arrive(&bed, &answer), format!("redirect {answer}"));
            set(&mut bed, false);
            assert_eq!(arrive(&bed, &answer), answer);
        }
    }
}

/// The Pod's own hook reads them in another way.
#[test]
fn pieces_and_errors_go_by_the_hosts_end() {
    for family in &FAMILIES {
        let mut bed = isolated();
        assert_eq!(arrive(&bed, &format!("{} udp", ends(family, 81))), "drop", "by its policy");
        let syn = format!("{} udp", ends(family, 80));
        assert!(arrive(&bed, &syn).starts_with("redirect"));
        bed.counted();
        // A router tells the Pod about its answers.
        let back =
            format!("{} > {} udp", family.at(family.pod, 80), family.at(family.far_pod, 4000));
        let ip = |text: &str| text.parse().unwrap();
        let error = packet::too_big(ip(family.client), ip(family.pod), &back);
        assert!(arrive_bytes(&bed, error).starts_with("redirect"), "not asked here");
        let whole =
            packet::build(&format!("{} udp len=64", ends(family, 81).replace(":4000", ":4001")));
        let [mut first, mut rest] = packet::in_two(&whole, 32, 7);
        for piece in [&mut first, &mut rest] {
            piece[..6].fill(0);
            assert_eq!(bed.run("dev_in", piece).0, Verdict::Redirect, "not asked here");
        }
        assert!(!bed.counted().contains("POLICY"));
        let mut entries = bed.conntrack().into_iter();
        let of_first = entries.find(|(key, _)| key.remote_port == Be16::new(4001));
        assert_eq!(of_first.unwrap().1.epoch, UNJUDGED);
    }
}

/// The choice is made again for each packet: the entries are the same.
#[test]
fn what_must_see_packets_at_the_hosts_end_sees_the_next_one() {
    for family in &FAMILIES {
        let mut bed = bed();
        let text = |flags| format!("{} tcp {flags}", ends(family, 80));
        let received = |bed: &Bed| entry(bed).flags.contains(CtFlags::tcp(0, tcp::FIN));
        assert_eq!(arrive(&bed, &text("S")), format!("redirect {}", text("S")));
        to_host_end(&mut bed);
        assert_eq!(arrive(&bed, &text("F")), format!("redirect {}", text("F")));
        assert!(!received(&bed), "the Pod's own hook notes it");
        to_peer(&mut bed);
        assert_eq!(arrive(&bed, &text("F")), format!("redirect {}", text("F")));
        assert!(received(&bed));
        let too_big = LocalEnd { mtu: 39, ..local(LocalFlags::PAST_OK | LocalFlags::PEER_OK) };
        bed.set("locals", POD.0.into(), too_big);
        assert_eq!(arrive(&bed, &text("A")), text("A"), "the stack tells its sender");
        bed.set(
            "locals",
            POD.0.into(),
            LocalEnd { generation: 9, ..local(LocalFlags::PAST_OK | LocalFlags::PEER_OK) },
        );
        assert_eq!(arrive(&bed, &text("A")), text("A"), "the number is another Pod's");
    }
}

/// Nothing but the Pod itself sends what comes back to it, and no Pod elsewhere answers in the name of a Service.
#[test]
fn what_the_pod_would_refuse_is_refused_here() {
    for family in &FAMILIES {
        let mut bed = isolated();
        dialed(&mut bed, family, 4000);
        sample::epoch(&mut bed, 0);
        let vip = VIP[usize::from(!family.v4())];
        let forged = format!("{vip} > {} tcp SA", family.at(family.pod, 4000));
        assert!(!arrive(&bed, &forged).starts_with("redirect"), "pod_in drops it");
        // A packet that opens another flow on ports of a running one, which belongs to the Pod's side.
        sample::epoch(&mut bed, POLICIES);
        let reset = format!("{} tcp R", ends(family, 81));
        assert_eq!(arrive(&bed, &reset), reset, "no entry: the stack's");
    }
}

/// The address of a node that the Pods of the other node are reached by is that node's, too.
fn nodes(bed: &mut Bed, flags: IdentFlags) {
    for family in &FAMILIES {
        bed.put("ident", key_of(family.far_pod), Ident { ident: FAR.into(), flags, ..Ident::ZERO });
    }
}

/// What a node masquerades comes from its address: the answers go where the question came from.
#[test]
fn what_another_node_sends_to_a_pod_is_judged_and_goes_past_the_stack() {
    for family in &FAMILIES {
        for (name, flags) in [("tcp", " S"), ("udp", "")] {
            let mut bed = isolated();
            nodes(&mut bed, IdentFlags::NODE);
            let text = format!("{} {name}{flags}", ends(family, 80));
            assert_eq!(arrive(&bed, &text), format!("redirect {text}"));
            assert!(bed.counted().contains("flow_hop+1"));
            let found = entry(&bed);
            assert!(found.flags.contains(CtFlags::INBOUND | CtFlags::PAST | CtFlags::SEEN_IN));
            assert!(!found.flags.contains(CtFlags::FROM_HOST), "it is not this node");
            assert_eq!((found.epoch, ways(&bed).len()), (POLICIES, 1));
            let text = format!("{} {name}{flags}", ends(family, 81));
            assert_eq!(arrive(&bed, &text), "drop", "the policy does not name the node for this");
            assert!(bed.counted().contains("POLICY_ISOLATED/in+1"));
            assert_eq!(bed.event_devices(), [THERE]);
        }
    }
}

#[test]
fn what_other_nodes_send_otherwise_is_left_to_the_stack() {
    type Change = fn(&mut Bed);
    let cases: [(&str, &str, Change); 6] = [
        ("it is off", "S", |bed| set(bed, false)),
        ("not a node", "S", |bed| nodes(bed, IdentFlags::NONE)),
        ("the beginning was not seen", "A", |_| ()),
        ("a reset", "R", |_| ()),
        ("the way back leads elsewhere", "S", |_| {
            sh("ip route replace 10.2.0.0/24 via 192.0.3.2
                ip -6 route del fd00:2::/64 dev lo
                ip -6 route add fd00:2::/64 via 2001:db8:3::2");
        }),
        ("the Pod's answers may be too big for their way", "S", |bed| {
            let flags = LocalFlags::PAST_OK | LocalFlags::PEER_OK;
            bed.set("locals", POD.0.into(), LocalEnd { mtu: MTU + 1, ..local(flags) });
        }),
    ];
    for family in &FAMILIES {
        for (name, flags, change) in cases {
            let mut bed = bed();
            nodes(&mut bed, IdentFlags::NODE);
            change(&mut bed);
            let text = format!("{} tcp {flags}", ends(family, 80));
            assert_eq!(arrive(&bed, &text), text, "{name}");
            assert_eq!(ways(&bed), [], "{name}");
        }
        // Only what may be masqueraded needs that.
        let mut bed = bed();
        let flags = LocalFlags::PAST_OK | LocalFlags::PEER_OK;
        bed.set("locals", POD.0.into(), LocalEnd { mtu: MTU + 1, ..local(flags) });
        assert!(arrive(&bed, &format!("{} tcp S", ends(family, 80))).starts_with("redirect"));
        // A packet in the name of this node is forged.
        nodes(&mut bed, IdentFlags::NODE | IdentFlags::LOCAL_NODE);
        assert_eq!(arrive(&bed, &format!("{} tcp S", ends(family, 80))), "drop");
    }
}

/// Netfilter may masquerade what it takes for the Pod's own flow. So the answers to a node go on past the stack until a question
/// has gone through it.
#[test]
fn a_flow_of_a_node_loses_its_way_at_a_packet_that_comes_in() {
    type Change = fn(&mut Bed, bool);
    let changes: [(&str, Change); 3] = [
        ("the setting", set),
        ("the Pod", |bed, may| {
            let flags = LocalFlags::PAST_OK.when(may);
            bed.set("locals", POD.0.into(), LocalEnd { ifindex: BY, ..local(flags) });
        }),
        ("the device", |bed, may| allow(bed, "lo", DevFlags::HOP_OK.when(may))),
    ];
    for family in &FAMILIES {
        for (node, (name, change)) in
            [true, false].into_iter().flat_map(|node| changes.map(|change| (node, change)))
        {
            let mut bed = receiving();
            bed.set("locals", POD.0.into(), LocalEnd { ifindex: BY, ..local(LocalFlags::PAST_OK) });
            if node {
                nodes(&mut bed, IdentFlags::NODE);
            }
            let (far, own) = (family.at(family.far_pod, 4000), family.at(family.pod, 80));
            let question = |flags| format!("{far} > {own} tcp {flags}");
            let answer = |flags| format!("{own} > {far} tcp {flags}");
            let leave = |bed: &Bed, text: &str| crate::hop::short(&bed.leave(text));
            assert_eq!(arrive(&bed, &question("S")), format!("redirect {}", question("S")));
            assert_eq!(leave(&bed, &answer("SA")), format!("redirect {}", answer("SA")));
            assert_eq!(arrive(&bed, &question("A")), format!("redirect {}", question("A")));
            change(&mut bed, false);
            let told = leave(&bed, &answer("A"));
            assert_eq!(told.starts_with("redirect"), node, "{name}: {told}");
            assert_eq!(ways(&bed).len(), usize::from(node), "{name}");
            assert_eq!(arrive(&bed, &question("A")), question("A"), "{name}");
            bed.enter_from(BY, &question("A"));
            assert_eq!(ways(&bed), [], "{name}");
            assert_eq!(leave(&bed, &answer("A")), answer("A"), "netfilter knows it now");
            change(&mut bed, true);
            assert_eq!(leave(&bed, &answer("A")), answer("A"));
            assert_eq!(arrive(&bed, &question("A")), question("A"));
        }
    }
}
