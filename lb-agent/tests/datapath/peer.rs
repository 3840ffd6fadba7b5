//! Flows between two Pods of a node that go to the Pod's end of the receiver's veth: the sender's hook is the receiver's, too.

use lb_common::be::Be16;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, UNJUDGED};
use lb_common::endpoint::PodEntry;
use lb_common::flow::{proto, tcp};
use lb_common::past::{LocalEnd, PastWay};
use lb_common::policy::{Group, GroupFlags};
use lb_testkit::bed::{Bed, Verdict, addr};
use lb_testkit::packet;
use lb_testkit::sample::{self, EGRESS, INGRESS, PEER, POD, SamplePolicy, at};

use crate::past::{
    NewFlow, OWN, THERE, WAY, at_peer, bed, each_new_flow, leave, local, of, received, setting,
    to_peers, vip,
};

/// The groups of the peer: into it, out of it, and the shadow of the first.
const INTO: u32 = 21;
const OUT_OF: u32 = 22;
const SHADOW: u32 = 23;

fn peers(v4: bool) -> Bed {
    let mut bed = bed(v4);
    to_peers(&mut bed);
    bed
}

/// The peer has these groups for what enters it, leaves it, and a shadow of the first.
fn groups(bed: &mut Bed, v4: bool, [ingress, egress, shadow_ingress]: [u32; 3]) {
    let (ip4, ip6) = if v4 { (of(v4, PEER), of(!v4, 0)) } else { (of(!v4, 0), of(v4, PEER)) };
    let pod = PodEntry { ip4, ip6, id: 2, ingress, egress, shadow_ingress, ..PodEntry::ZERO };
    bed.put("pods", THERE, pod);
}

#[test]
fn a_packet_has_been_through_both_halves_when_it_goes_to_the_pods_end() {
    each_new_flow(peers, |bed, NewFlow { text, policies, .. }| {
        assert!(bed.counted().contains("flow_peer+1"), "{text}");
        let (_, entry) = at_peer(bed).unwrap();
        assert!(entry.flags.contains(CtFlags::INBOUND | CtFlags::PAST));
        assert_eq!(PastWay::of_addr(&entry.way), Some(WAY.back()));
        assert_eq!(entry.epoch, *policies, "judged");
        assert!(entry.flags.contains(CtFlags::SEEN_IN));
    });
}

#[test]
fn the_receivers_policies_are_asked_and_counted_as_its_own() {
    for v4 in [true, false] {
        for through_service in [false, true] {
            let mut bed = peers(v4);
            groups(&mut bed, v4, [INTO, 0, 0]);
            SamplePolicy::new(INGRESS).allow(POD, proto::TCP, 80).put_as(&mut bed, INTO);
            sample::epoch(&mut bed, 1);
            for (port, allowed) in [(80, true), (81, false)] {
                let target = at(v4, PEER, port);
                let dialed = vip(v4).replace("80", &port.to_string());
                let dialed = if through_service { dialed } else { target.clone() };
                if through_service {
                    bed.service(&dialed, proto::TCP, &[&target]);
                }
                bed.counted();
                bed.event_devices();
                let syn = format!("{} > {dialed} tcp S", at(v4, POD, 4000));
                let told = leave(&bed, &syn);
                let sent = format!("redirect {} > {target} tcp S", at(v4, POD, 4000));
                assert_eq!(told, if allowed { sent } else { "drop".to_owned() });
                let counted = bed.counted();
                assert_eq!(counted.contains("POLICY_ISOLATED/in+1"), !allowed, "{counted}");
                assert!(!counted.contains("/out"), "{counted}");
                let want: &[u32] = if allowed { &[] } else { &[THERE] };
                assert_eq!(bed.event_devices(), want, "the receiver's device");
            }
            let hits =
                [format!("{INTO} in allow rule 0: 1"), format!("{INTO} in deny isolation: 1")];
            assert_eq!(bed.hits(), hits);
            assert_eq!(bed.judged().len(), 2 + 2, "both halves of both flows");
        }
    }
}

#[test]
fn both_halves_must_allow_it() {
    for v4 in [true, false] {
        for (sends, receives) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut bed = peers(v4);
            groups(&mut bed, v4, [INTO, 0, 0]);
            let own = bed.get::<_, PodEntry>("pods", OWN).unwrap();
            bed.put("pods", OWN, PodEntry { egress: EGRESS.group(), ..own });
            for (ident, port, group, allowed) in
                [(PEER, 80, EGRESS.group(), sends), (POD, 80, INTO, receives)]
            {
                let port = if allowed { port } else { port + 1 };
                SamplePolicy::new(EGRESS).allow(ident, proto::TCP, port).put_as(&mut bed, group);
            }
            sample::epoch(&mut bed, 1);
            let syn = format!("{} > {} tcp S", at(v4, POD, 4000), at(v4, PEER, 80));
            let passes = leave(&bed, &syn).starts_with("redirect");
            assert_eq!(passes, sends && receives, "{sends} {receives}");
            let counted = bed.counted();
            assert_eq!(counted.contains("POLICY_ISOLATED/out+1"), !sends, "{counted}");
            assert_eq!(counted.contains("POLICY_ISOLATED/in+1"), sends && !receives, "{counted}");
        }
    }
}

#[test]
fn shadows_tell_and_pods_that_are_not_known_wait() {
    for v4 in [true, false] {
        let syn = format!("{} > {} tcp S", at(v4, POD, 4000), at(v4, PEER, 80));
        let mut bed = peers(v4);
        groups(&mut bed, v4, [0, 0, SHADOW]);
        SamplePolicy::new(INGRESS).put_as(&mut bed, SHADOW);
        sample::epoch(&mut bed, 1);
        assert!(leave(&bed, &syn).starts_with("redirect"), "a shadow drops nothing");
        assert_eq!(bed.hits(), [format!("{SHADOW} in would_deny isolation: 1")]);
        assert_eq!(bed.event_devices(), [THERE]);

        let mut bed = peers(v4);
        groups(&mut bed, v4, [INTO, 0, 0]);
        bed.set("groups", INTO, Group { flags: GroupFlags::PENDING, ..Group::ZERO });
        sample::epoch(&mut bed, 1);
        assert_eq!(leave(&bed, &syn), "drop");
        assert!(bed.counted().contains("POLICY_PENDING/in+1"));
    }
}

/// Whoever speaks first after a change, both halves are asked again, in the direction in which the flow was opened.
#[test]
fn a_change_of_policies_reaches_both_halves_whichever_end_speaks() {
    for v4 in [true, false] {
        let answer = format!("{} > {} tcp A", at(v4, POD, 80), at(v4, PEER, 4000));
        for (name, own, far, want) in [
            ("nothing changed", Some(80), Some(80), None),
            ("the server must not be reached", Some(81), Some(80), Some("POLICY_ISOLATED/in+1")),
            ("the client must not reach it", Some(80), Some(81), Some("POLICY_ISOLATED/out+1")),
            ("no policy of the client", Some(80), None, None),
        ] {
            let mut bed = peers(v4);
            groups(&mut bed, v4, [0, if far.is_some() { OUT_OF } else { 0 }, 0]);
            received(&mut bed, v4, 80);
            let allow = |ident, port| SamplePolicy::new(INGRESS).allow(ident, proto::TCP, port);
            allow(PEER, own.unwrap()).put(&mut bed);
            allow(POD, far.unwrap_or(80)).put_as(&mut bed, OUT_OF);
            sample::epoch(&mut bed, 2);
            bed.counted();
            bed.event_devices();
            let told = leave(&bed, &answer);
            let counted = bed.counted();
            match want {
                None => assert_eq!(told, format!("redirect {answer}"), "{name}: {counted}"),
                Some(reason) => {
                    assert_eq!(told, "drop", "{name}");
                    assert!(counted.contains(reason), "{name}: {counted}");
                    let device = if reason.contains("/in") { OWN } else { THERE };
                    assert_eq!(bed.event_devices(), [device], "{name}");
                    assert_eq!(leave(&bed, &answer), "drop", "{name}: and again");
                }
            }
        }
    }
}

/// Of a flow of the peer to the Pod, at the peer's device.
fn key_at_peer(v4: bool) -> CtKey {
    CtKey {
        local: of(v4, PEER),
        remote: of(v4, POD),
        local_port: Be16::new(4000),
        remote_port: Be16::new(80),
        proto: proto::TCP,
        veth: THERE as u16,
        ..CtKey::ZERO
    }
}

/// The entries of a flow of the peer through a Service to the Pod.
fn served(bed: &mut Bed, v4: bool, port: u16) {
    received(bed, v4, 80);
    let now = bed.stamp();
    let vip = packet_addr(&vip(v4));
    let key = key_at_peer(v4);
    let mapped = CtFlags::PORT_MAPPED.when(port != 4000);
    let both = CtFlags::SEEN_OUT | CtFlags::tcp(tcp::SYN, 0) | mapped;
    let entry = CtEntry {
        nat_addr: vip.0,
        nat_port: vip.1,
        aux_addr: of(v4, PEER),
        aux_port: Be16::new(port),
        last_seen: now,
        flags: both | CtFlags::REPLY,
        ..CtEntry::ZERO
    };
    bed.put("ct", key, entry);
    let forward = CtKey { remote: vip.0, remote_port: vip.1, local_port: Be16::new(port), ..key };
    let entry = CtEntry {
        nat_addr: of(v4, POD),
        nat_port: Be16::new(80),
        aux_addr: lb_common::addr::Addr::NONE,
        aux_port: Be16::new(4000),
        way: WAY.back().to_addr(),
        flags: both | CtFlags::FORWARD | CtFlags::PAST,
        ..entry
    };
    bed.put("ct", forward, entry);
}

fn packet_addr(text: &str) -> (lb_common::addr::Addr, Be16) {
    let addr: std::net::SocketAddr = text.parse().unwrap();
    (lb_common::addr::Addr::from_ip(addr.ip()), Be16::new(addr.port()))
}

#[test]
fn an_answer_of_a_service_shows_its_address_when_it_leaves() {
    for v4 in [true, false] {
        for port in [4000, 5000] {
            let mut bed = peers(v4);
            served(&mut bed, v4, port);
            bed.counted();
            for flags in ["SA", "A", "FA"] {
                let answer = format!("{} > {} tcp {flags}", at(v4, POD, 80), at(v4, PEER, 4000));
                let shown = format!("{} > {} tcp {flags}", vip(v4), at(v4, PEER, port));
                assert_eq!(leave(&bed, &answer), format!("redirect {shown}"));
                assert_eq!(bed.counted(), "");
            }
            // By the host's end, its hook does that.
            bed.set("locals", 2, local(THERE, 4));
            let answer = format!("{} > {} tcp A", at(v4, POD, 80), at(v4, PEER, 4000));
            assert_eq!(leave(&bed, &answer), format!("redirect {answer}"));
            // Through the stack, too: it would take the Service's address for a forgery.
            setting(&mut bed, lb_common::config::SettingFlags::NONE);
            assert_eq!(leave(&bed, &answer), answer);
        }
    }
}

/// Only the programs put on the address that a Pod has dialed.
#[test]
fn no_pod_answers_in_the_name_of_a_service() {
    for v4 in [true, false] {
        let mut bed = peers(v4);
        // The peer has dialed the Pod's address as if it were a Service's, and the Pod answers by itself.
        let key = key_at_peer(v4);
        received(&mut bed, v4, 80);
        let last_seen = bed.stamp();
        let flags = CtFlags::FORWARD | CtFlags::SEEN_OUT;
        let nat_addr = of(v4, 9);
        bed.put("ct", key, CtEntry { nat_addr, last_seen, flags, ..CtEntry::ZERO });
        bed.counted();
        let answer = format!("{} > {} tcp A", at(v4, POD, 80), at(v4, PEER, 4000));
        assert_eq!(leave(&bed, &answer), "drop");
        assert!(bed.counted().contains("SPOOFED_SOURCE/in+1"));
    }
}

/// The receiver's own hook reads them in another way.
#[test]
fn pieces_and_errors_go_by_the_hosts_end() {
    for v4 in [true, false] {
        let mut bed = peers(v4);
        groups(&mut bed, v4, [INTO, 0, 0]);
        SamplePolicy::new(INGRESS).put_as(&mut bed, INTO);
        sample::epoch(&mut bed, 1);
        let (own, peer) = (at(v4, POD, 4000), at(v4, PEER, 80));
        assert_eq!(leave(&bed, &format!("{own} > {peer} udp")), "drop", "by the receiver's policy");
        let error =
            packet::too_big(addr(v4, POD, 1), addr(v4, PEER, 1), &format!("{peer} > {own} udp"));
        bed.counted();
        assert_eq!(bed.leave_bytes(&error).0, Verdict::Redirect, "not asked here");
        assert_eq!(bed.counted(), "");
        if v4 {
            let other = at(v4, POD, 4001);
            let mut first = packet::build(&format!("{other} > {peer} udp len=64"));
            first[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
            assert_eq!(bed.leave_bytes(&first).0, Verdict::Redirect, "not asked here");
            let all = bed.conntrack().into_iter();
            let mut entries = all
                .filter(|(key, _)| key.veth == THERE as u16 && key.remote_port == Be16::new(4001));
            assert_eq!(entries.next().unwrap().1.epoch, UNJUDGED);
        }
    }
}

/// The choice is made again for each packet: the entries are the same.
#[test]
fn what_must_see_packets_at_the_hosts_end_sees_the_next_one() {
    for v4 in [true, false] {
        let mut bed = peers(v4);
        let text = |flags| format!("{} > {} tcp {flags}", at(v4, POD, 4000), at(v4, PEER, 80));
        let received =
            |bed: &Bed| at_peer(bed).unwrap().1.flags.contains(CtFlags::tcp(0, tcp::FIN));
        assert_eq!(leave(&bed, &text("S")), format!("redirect {}", text("S")));
        bed.set("locals", 2, local(THERE, 4));
        assert_eq!(leave(&bed, &text("F")), format!("redirect {}", text("F")));
        assert!(!received(&bed), "the receiver's own hook notes it");
        to_peers(&mut bed);
        assert_eq!(leave(&bed, &text("F")), format!("redirect {}", text("F")));
        assert!(received(&bed));
        bed.set("locals", 2, LocalEnd { generation: 5, ..LocalEnd::ZERO });
        assert_eq!(leave(&bed, &text("A")), text("A"), "the receiver is gone");
    }
}
