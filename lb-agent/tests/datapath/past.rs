//! Flows between two Pods of a node that go past the host's IP stack: each end by itself, packet by packet.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::{SettingFlags, Settings};
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, UNJUDGED};
use lb_common::endpoint::{Ident, IdentFlags, PodEntry};
use lb_common::flow::proto;
use lb_common::past::{LocalEnd, LocalFlags, PastWay};
use lb_common::service::{Frontend, FrontendFlags, FrontendKey};
use lb_testkit::bed::{Bed, Verdict, addr};
use lb_testkit::packet;
use lb_testkit::sample::{self, INGRESS, PEER, POD, SamplePolicy, at};

/// The devices of the Pod and of its peer. Programs run at the first.
pub(crate) const OWN: u32 = 1;
pub(crate) const THERE: u32 = 6;
/// What frames for the peer show.
pub(crate) const LINK: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 6], [2, 0, 0, 0, 6, 6]];
/// The way from the Pod to the peer, by numbers and generations.
pub(crate) const WAY: PastWay = PastWay { to: (2, 4), from: (1, 3) };

pub(crate) fn setting(bed: &mut Bed, flags: SettingFlags) {
    bed.set("settings", 0, Settings { flags, ..Settings::ZERO });
}

pub(crate) fn local(ifindex: u32, generation: u32) -> LocalEnd {
    let flags = LocalFlags::PAST_OK;
    LocalEnd { ifindex, generation, link: LINK, mtu: 1500, flags, ..LocalEnd::ZERO }
}

pub(crate) fn of(v4: bool, net: u8) -> Addr {
    Addr::from_ip(addr(v4, net, 1))
}

/// Two Pods of this node, whose flows may go past the stack.
pub(crate) fn bed(v4: bool) -> Bed {
    let mut bed = Bed::new();
    setting(&mut bed, SettingFlags::LOCAL_PAST);
    sample::idents(&mut bed, v4);
    for (net, ifindex, id) in [(POD, OWN, 1), (PEER, THERE, 2)] {
        let ident = Ident { ident: net.into(), flags: IdentFlags::POD, ifindex, ..Ident::ZERO };
        bed.put("ident", of(v4, net).words().map(|word| word.to_wire()), ident);
        let (ip4, ip6) = if v4 { (of(v4, net), Addr::NONE) } else { (Addr::NONE, of(v4, net)) };
        let ingress = if net == POD { INGRESS.group() } else { 0 };
        bed.put("pods", ifindex, PodEntry { ip4, ip6, id, ingress, ..PodEntry::ZERO });
    }
    bed.set("locals", 1, local(OWN, 3));
    bed.set("locals", 2, local(THERE, 4));
    bed.counted();
    bed
}

pub(crate) fn vip(v4: bool) -> String {
    std::net::SocketAddr::new(addr(v4, 96, 1), 80).to_string()
}

/// What happens to a packet that leaves the Pod, without the numbers of TCP.
pub(crate) fn leave(bed: &Bed, text: &str) -> String {
    short(&bed.leave(text))
}

pub(crate) fn short(told: &str) -> String {
    told.split(" seq=").next().unwrap().to_owned()
}

/// The entry at the peer's device.
pub(crate) fn at_peer(bed: &Bed) -> Option<(CtKey, CtEntry)> {
    bed.conntrack().into_iter().find(|(key, _)| key.veth == THERE as u16)
}

/// A flow whose first packet has left the Pod for the peer.
pub(crate) struct NewFlow {
    pub(crate) v4: bool,
    /// That packet.
    pub(crate) text: String,
    pub(crate) through_service: bool,
    /// Number of the policies in force.
    pub(crate) policies: u32,
}

/// The first packet of each kind of flow leaves in a bed of its own, as `bed` makes it, and goes to the peer past the stack.
pub(crate) fn each_new_flow(bed: fn(bool) -> Bed, check: impl Fn(&mut Bed, &NewFlow)) {
    for v4 in [true, false] {
        for (proto_name, flags, protocol) in [("tcp", " S", proto::TCP), ("udp", "", proto::UDP)] {
            for through_service in [false, true] {
                for policies in [0, 7] {
                    let mut bed = bed(v4);
                    sample::epoch(&mut bed, policies);
                    let target = at(v4, PEER, 80);
                    let dialed = if through_service { vip(v4) } else { target.clone() };
                    if through_service {
                        bed.service(&dialed, protocol, &[&target]);
                    }
                    bed.counted();
                    let text = format!("{} > {dialed} {proto_name}{flags}", at(v4, POD, 4000));
                    let (verdict, bytes) = bed.leave_bytes(&packet::build(&text));
                    assert_eq!(verdict, Verdict::Redirect, "{text}");
                    assert_eq!(bytes[..12], LINK.concat()[..], "{text}");
                    let shown = format!("{} > {target} {proto_name}{flags}", at(v4, POD, 4000));
                    assert_eq!(short(&packet::show(&bytes)), shown);
                    check(&mut bed, &NewFlow { v4, text, through_service, policies });
                }
            }
        }
    }
}

#[test]
fn a_new_flow_goes_to_the_other_pod_whose_entry_stands_before() {
    each_new_flow(bed, |bed, NewFlow { v4, text, through_service, policies }| {
        let counted = if *through_service {
            "flow_service+1 flow_veth+1"
        } else {
            "flow_plain+1 flow_veth+1"
        };
        assert!(bed.counted().contains(counted), "{text}");
        let (key, entry) = at_peer(bed).unwrap();
        assert_eq!((key.local, key.remote), (of(*v4, PEER), of(*v4, POD)));
        assert!(entry.flags.contains(CtFlags::INBOUND | CtFlags::PAST));
        assert_eq!(PastWay::of_addr(&entry.way), Some(WAY.back()));
        assert_eq!(entry.epoch, if *policies == 0 { 0 } else { UNJUDGED });
        // What follows takes the same way.
        let text = text.replace(" S", " A");
        assert_eq!(bed.leave_bytes(&packet::build(&text)).0, Verdict::Redirect);
        assert_eq!(bed.counted(), "");
    });
}

#[test]
fn what_may_not_go_past_the_stack_goes_through_it() {
    type Change = fn(&mut Bed, bool);
    let (node, pod, none) = (" flow_stack_node+1", " flow_stack_pod+1", "");
    let cases: [(&str, &str, Change); 9] = [
        ("it is off", node, |bed, _| setting(bed, SettingFlags::NONE)),
        ("only what has a way keeps it", node, |bed, _| {
            setting(bed, SettingFlags::LOCAL_PAST | SettingFlags::KNOWN_PAST_ONLY);
        }),
        ("the sender may not", pod, |bed, _| {
            bed.set("locals", 1, LocalEnd { flags: LocalFlags::NONE, ..local(OWN, 3) });
        }),
        ("the receiver may not", pod, |bed, _| {
            bed.set("locals", 2, LocalEnd { flags: LocalFlags::NONE, ..local(THERE, 4) });
        }),
        ("another MTU", pod, |bed, _| {
            bed.set("locals", 2, LocalEnd { mtu: 1400, ..local(THERE, 4) });
        }),
        ("the receiver has no number", pod, |bed, _| bed.set("locals", 2, LocalEnd::ZERO)),
        ("not a Pod of this node", none, |bed, v4| {
            let ident = Ident { ident: PEER.into(), flags: IdentFlags::POD, ..Ident::ZERO };
            bed.put("ident", of(v4, PEER).words().map(|word| word.to_wire()), ident);
        }),
        ("the receiver's device is unknown", none, |bed, _| {
            bed.remove::<u32, PodEntry>("pods", THERE)
        }),
        ("the source is not the Pod's own", pod, |bed, v4| {
            let (ip4, ip6) = if v4 { (of(v4, 9), Addr::NONE) } else { (Addr::NONE, of(v4, 9)) };
            bed.put("pods", OWN, PodEntry { ip4, ip6, id: 1, ..PodEntry::ZERO });
        }),
    ];
    for v4 in [true, false] {
        let (own, peer) = (at(v4, POD, 4000), at(v4, PEER, 80));
        for (name, counted, change) in cases {
            let mut bed = bed(v4);
            change(&mut bed, v4);
            let text = format!("{own} > {peer} tcp S");
            assert_eq!(leave(&bed, &text), text, "{name}");
            assert_eq!(bed.counted(), format!("flow_plain+1{counted}"), "{name}");
            assert_eq!(at_peer(&bed), None, "{name}");
        }
        // The beginning of the connection was not seen.
        let bed = bed(v4);
        let text = format!("{own} > {peer} tcp A");
        assert_eq!(leave(&bed, &text), text);
        assert_eq!(at_peer(&bed), None);
    }
}

/// The annotation of the Service.
#[test]
fn a_flow_to_a_service_that_wants_it_goes_through_the_stack() {
    for v4 in [true, false] {
        let mut bed = bed(v4);
        let (dialed, target) = (vip(v4), at(v4, PEER, 80));
        bed.service(&dialed, proto::TCP, &[&target]);
        let ip = Addr::from_ip(addr(v4, 96, 1));
        let key = FrontendKey::new(ip, Be16::new(80), proto::TCP);
        let frontend: Frontend = bed.get("frontends", key).unwrap();
        bed.put("frontends", key, Frontend { flags: FrontendFlags::BY_STACK, ..frontend });
        bed.counted();
        let own = at(v4, POD, 4000);
        assert_eq!(
            leave(&bed, &format!("{own} > {dialed} tcp S")),
            format!("{own} > {target} tcp S")
        );
        assert_eq!(bed.counted(), "flow_service+1 flow_stack_service+1");
        assert_eq!(at_peer(&bed), None);
        // The same Pod by itself.
        let text = format!("{} > {target} tcp S", at(v4, POD, 4001));
        assert_eq!(leave(&bed, &text), format!("redirect {text}"));
    }
}

/// Where netfilter would refuse what it has not seen begin.
#[test]
fn a_known_flow_keeps_its_way_when_new_ones_get_none() {
    for v4 in [true, false] {
        let mut bed = bed(v4);
        let text =
            |port, flags| format!("{} > {} tcp {flags}", at(v4, POD, port), at(v4, PEER, 80));
        assert_eq!(leave(&bed, &text(4000, "S")), format!("redirect {}", text(4000, "S")));
        setting(&mut bed, SettingFlags::LOCAL_PAST | SettingFlags::KNOWN_PAST_ONLY);
        assert_eq!(leave(&bed, &text(4000, "A")), format!("redirect {}", text(4000, "A")));
        assert_eq!(leave(&bed, &text(4001, "S")), text(4001, "S"));
    }
}

/// What goes to them may go to the Pods' ends of their veths.
pub(crate) fn to_peers(bed: &mut Bed) {
    for (id, end) in [(1, local(OWN, 3)), (2, local(THERE, 4))] {
        let flags = LocalFlags::PAST_OK | LocalFlags::PEER_OK;
        bed.set("locals", id, LocalEnd { flags, ..end });
    }
}

/// A flow that has lost its way does not get it back: netfilter has seen a part of it.
#[test]
fn a_way_ends_at_once_and_does_not_come_back() {
    type Change = fn(&mut Bed);
    let cases: [(&str, Change); 4] = [
        ("turned off", |bed| setting(bed, SettingFlags::NONE)),
        ("the receiver may not any more", |bed| {
            bed.set("locals", 2, LocalEnd { flags: LocalFlags::NONE, ..local(THERE, 4) });
        }),
        ("the receiver is gone", |bed| {
            bed.set("locals", 2, LocalEnd { generation: 5, ..LocalEnd::ZERO })
        }),
        ("its number is another Pod's", |bed| bed.set("locals", 2, local(7, 5))),
    ];
    for v4 in [true, false] {
        for (through_service, peers) in [(false, false), (false, true), (true, false), (true, true)]
        {
            for (name, change) in cases {
                let mut bed = bed(v4);
                if peers {
                    to_peers(&mut bed);
                }
                let target = at(v4, PEER, 80);
                let dialed = if through_service { vip(v4) } else { target.clone() };
                if through_service {
                    bed.service(&dialed, proto::TCP, &[&target]);
                }
                let text = |flags| format!("{} > {dialed} tcp {flags}", at(v4, POD, 4000));
                let sent = |flags| format!("{} > {target} tcp {flags}", at(v4, POD, 4000));
                assert_eq!(leave(&bed, &text("S")), format!("redirect {}", sent("S")));
                change(&mut bed);
                assert_eq!(leave(&bed, &text("A")), sent("A"), "{name}: translated anyway");
                setting(&mut bed, SettingFlags::LOCAL_PAST);
                bed.set("locals", 2, local(THERE, 4));
                assert_eq!(leave(&bed, &text("A")), sent("A"), "{name}: netfilter knows it now");
            }
        }
    }
}

#[test]
fn a_flow_whose_receiver_has_no_entry_any_more_goes_through_the_stack() {
    for v4 in [true, false] {
        for through_service in [false, true] {
            let mut bed = bed(v4);
            let target = at(v4, PEER, 80);
            let dialed = if through_service { vip(v4) } else { target.clone() };
            if through_service {
                bed.service(&dialed, proto::UDP, &[&target]);
            }
            let text = format!("{} > {dialed} udp", at(v4, POD, 4000));
            assert!(bed.leave(&text).starts_with("redirect"));
            bed.age(3);
            assert!(bed.leave(&text).starts_with("redirect"), "looked after, and fine");
            bed.age(3);
            let (key, _) = at_peer(&bed).unwrap();
            bed.forget(key);
            assert!(!bed.leave(&text).starts_with("redirect"), "its answers would be half a flow");
        }
    }
}

/// Its answers come past the stack, so the questions must go on so.
#[test]
fn the_entry_that_the_first_answer_makes_leads_past_the_stack_as_the_lost_one_did() {
    for v4 in [true, false] {
        for (name, past) in [("past the stack", true), ("through it", false)] {
            let mut bed = bed(v4);
            let target = at(v4, PEER, 80);
            bed.service(&vip(v4), proto::TCP, &[&target]);
            if !past {
                setting(&mut bed, SettingFlags::NONE);
            }
            let text = |flags| format!("{} > {} tcp {flags}", at(v4, POD, 4000), vip(v4));
            leave(&bed, &text("S"));
            let forward = |bed: &Bed| {
                let mut entries = bed.conntrack().into_iter();
                entries.find(|(_, entry)| entry.flags.contains(CtFlags::FORWARD))
            };
            let (key, written) = forward(&bed).unwrap();
            bed.forget(key);
            let answer = format!("{target} > {} tcp SA", at(v4, POD, 4000));
            let shown = format!("{} > {} tcp SA", vip(v4), at(v4, POD, 4000));
            assert_eq!(short(&bed.enter_from(THERE, &answer)), shown, "{name}");
            let (again, entry) = forward(&bed).unwrap();
            assert_eq!((again, entry.way), (key, written.way), "{name}");
            assert_eq!(entry.flags.contains(CtFlags::PAST), past, "{name}");
            assert_eq!(leave(&bed, &text("A")).starts_with("redirect"), past, "{name}");
        }
    }
}

/// An entry that the receiver has of another flow stays, and so does its way.
#[test]
fn an_entry_of_the_receiver_that_lives_is_not_replaced() {
    for v4 in [true, false] {
        let mut bed = bed(v4);
        let text = format!("{} > {} tcp S", at(v4, POD, 4000), at(v4, PEER, 80));
        assert!(bed.leave(&text).starts_with("redirect"));
        let (key, entry) = at_peer(&bed).unwrap();
        for (name, old, redirected) in [
            ("of this flow", entry, true),
            (
                "through the stack",
                CtEntry { flags: entry.flags.without(CtFlags::PAST), ..entry },
                false,
            ),
            ("of another Pod", CtEntry { way: WAY.to_addr(), ..entry }, false),
        ] {
            let own: Vec<CtKey> = bed.conntrack().into_iter().map(|(key, _)| key).collect();
            own.into_iter().for_each(|key| bed.forget(key));
            bed.put("ct", key, old);
            assert_eq!(bed.leave(&text).starts_with("redirect"), redirected, "{name}");
            assert_eq!(at_peer(&bed).unwrap().1.way, old.way, "{name}");
        }
    }
}

/// The Pod as the receiver: both entries as the peer's hook has written them.
pub(crate) fn received(bed: &mut Bed, v4: bool, port: u16) {
    let key = CtKey {
        local: of(v4, POD),
        remote: of(v4, PEER),
        local_port: Be16::new(port),
        remote_port: Be16::new(4000),
        proto: proto::TCP,
        veth: OWN as u16,
        ..CtKey::ZERO
    };
    let syn = CtFlags::tcp(0, lb_common::flow::tcp::SYN);
    let stamp = bed.stamp();
    let entry = CtEntry {
        way: WAY.to_addr(),
        epoch: UNJUDGED,
        last_seen: stamp,
        flags: CtFlags::INBOUND | CtFlags::PAST | CtFlags::SEEN_IN | syn,
        ..CtEntry::ZERO
    };
    bed.put("ct", key, entry);
    let peers = CtKey {
        local: key.remote,
        remote: key.local,
        local_port: key.remote_port,
        remote_port: key.local_port,
        veth: THERE as u16,
        ..key
    };
    let flags = CtFlags::PAST | CtFlags::SEEN_OUT | CtFlags::tcp(lb_common::flow::tcp::SYN, 0);
    bed.put("ct", peers, CtEntry { way: WAY.back().to_addr(), flags, ..entry });
}

#[test]
fn the_receiver_s_policies_judge_a_flow_that_comes_past_the_stack() {
    for v4 in [true, false] {
        let mut bed = bed(v4);
        SamplePolicy::new(INGRESS).allow(PEER, proto::TCP, 80).put(&mut bed);
        sample::epoch(&mut bed, 1);
        for (port, allowed) in [(80, true), (81, false)] {
            received(&mut bed, v4, port);
            let (own, peer) = (at(v4, POD, port), at(v4, PEER, 4000));
            let syn = format!("{peer} > {own} tcp S");
            let want = if allowed { syn.clone() } else { "drop".to_owned() };
            assert_eq!(short(&bed.enter_from(THERE, &syn)), want);
            // Nothing answers for a port that is closed to the peer.
            let answer = format!("{own} > {peer} tcp SA");
            let want = if allowed { format!("redirect {answer}") } else { "drop".to_owned() };
            assert_eq!(leave(&bed, &answer), want);
        }
        // A change of the policies applies to the flow, whoever speaks first.
        let (own, peer) = (at(v4, POD, 80), at(v4, PEER, 4000));
        for answer_first in [true, false] {
            received(&mut bed, v4, 80);
            let (question, answer) =
                (format!("{peer} > {own} tcp A"), format!("{own} > {peer} tcp A"));
            assert_eq!(short(&bed.enter_from(THERE, &question)), question);
            SamplePolicy::new(INGRESS).put(&mut bed);
            bed.clear_bits(INGRESS.group());
            sample::epoch(&mut bed, 2);
            if answer_first {
                assert_eq!(leave(&bed, &answer), "drop");
            }
            assert_eq!(short(&bed.enter_from(THERE, &question)), "drop");
            SamplePolicy::new(INGRESS).allow(PEER, proto::TCP, 80).put(&mut bed);
            sample::epoch(&mut bed, 3);
        }
    }
}

#[test]
fn icmp_errors_and_fragments_go_where_their_flow_goes() {
    for v4 in [true, false] {
        let bed = bed(v4);
        let (own, peer) = (at(v4, POD, 4000), at(v4, PEER, 80));
        assert!(bed.leave(&format!("{own} > {peer} udp")).starts_with("redirect"));
        let (pod_ip, peer_ip) = (addr(v4, POD, 1), addr(v4, PEER, 1));
        let quoted = format!("{peer} > {own} udp");
        let error = packet::too_big(pod_ip, peer_ip, &quoted);
        let (verdict, bytes) = bed.leave_bytes(&error);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(bytes[..6], LINK[0]);
        // About a flow that it does not have: to the stack, as ever.
        let error = packet::too_big(pod_ip, peer_ip, &quoted.replace(":80", ":81"));
        assert_eq!(bed.leave_bytes(&error).0, Verdict::Next);
        if v4 {
            let mut first = packet::build(&format!("{own} > {peer} udp len=64"));
            first[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
            let mut later = first.clone();
            later[20..22].copy_from_slice(&8_u16.to_be_bytes());
            for piece in [&first, &later] {
                assert_eq!(bed.leave_bytes(piece).0, Verdict::Redirect);
            }
        }
    }
}
