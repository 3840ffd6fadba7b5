//! Flows between a Pod of this node and Pods of others that go past this host's IP stack: packet by packet, at the Pod's device
//! and at the one that leads to the other node.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::{SettingFlags, Settings};
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, UNJUDGED};
use lb_common::endpoint::{Dev, DevFlags, Ident, IdentFlags, PodEntry};
use lb_common::flow::{proto, tcp};
use lb_common::hop::HopWay;
use lb_common::past::{LocalEnd, LocalFlags};
use lb_common::service::{Frontend, FrontendFlags, FrontendKey};
use lb_testkit::bed::{Bed, Verdict};
use lb_testkit::node::{Addrs, FAMILIES, FAR_MTU, sh};
use lb_testkit::objects::addr;
use lb_testkit::packet;
use lb_testkit::sample::{self, INGRESS, SamplePolicy};

/// The device that test runs come in by. It stands for the Pod's, and for the one that leads to the other node.
const OWN: u32 = 1;
/// Number and generation of the Pod.
pub(crate) const POD: (u16, u16) = (1, 3);
/// Identity of the Pod of another node.
pub(crate) const FAR: u8 = 2;
/// What frames for the Pod show.
pub(crate) const LINK: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 6], [2, 0, 0, 0, 6, 6]];
pub(crate) const VIP: [&str; 2] = ["10.96.0.1:80", "[fd00:96::1]:80"];
/// Offsets of TTL and hop limit in a frame.
const HOPS: [usize; 2] = [14 + 8, 14 + 7];

fn ifindex(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap()
}

pub(crate) fn key_of(text: &str) -> [u32; 4] {
    addr(text).words().map(|word| word.to_wire())
}

pub(crate) fn set(bed: &mut Bed, on: bool) {
    let before: Settings = bed.at("settings", 0);
    bed.set("settings", 0, Settings { flags: SettingFlags::HOP_PAST.when(on), ..before });
}

pub(crate) fn allow(bed: &mut Bed, device: &str, flags: DevFlags) {
    bed.put("devs", ifindex(device), Dev { mtu: 1400, flags, ..Dev::ZERO });
}

fn local(flags: LocalFlags) -> LocalEnd {
    LocalEnd { ifindex: OWN, generation: 3, link: LINK, mtu: 1500, flags, ..LocalEnd::ZERO }
}

/// A node where flows between its Pod and Pods of others may go past the stack.
fn bed() -> Bed {
    let mut bed = Bed::node();
    set(&mut bed, true);
    allow(&mut bed, "far0", DevFlags::HOP_OK);
    let [v4, v6] = &FAMILIES;
    let (ip4, ip6) = (addr(v4.pod), addr(v6.pod));
    let ingress = INGRESS.group();
    bed.put("pods", OWN, PodEntry { ip4, ip6, id: 1, ingress, ..PodEntry::ZERO });
    bed.set("locals", 1, local(LocalFlags::PAST_OK));
    for family in &FAMILIES {
        let far = Ident { ident: FAR.into(), flags: IdentFlags::POD, ..Ident::ZERO };
        bed.put("ident", key_of(family.far_pod), far);
    }
    bed.counted();
    bed
}

/// A node whose test device leads to the other node.
pub(crate) fn receiving() -> Bed {
    let mut bed = bed();
    sh("ip route replace 10.2.0.0/24 dev lo
        ip -6 route replace fd00:2::/64 dev lo");
    allow(&mut bed, "lo", DevFlags::HOP_OK);
    bed
}

pub(crate) fn short(told: &str) -> String {
    told.split(" seq=").next().unwrap().to_owned()
}

/// A flow of the Pod to one elsewhere, straight or through a Service: what it dials, and where that goes.
fn dialed(bed: &mut Bed, family: &Addrs, protocol: u8, service: bool) -> (String, String) {
    let target = family.at(family.far_pod, 80);
    if !service {
        return (target.clone(), target);
    }
    let vip = VIP[usize::from(!family.v4())];
    bed.service(vip, protocol, &[&target]);
    bed.counted();
    (vip.to_owned(), target)
}

/// The ways in the entries.
pub(crate) fn ways(bed: &Bed) -> Vec<HopWay> {
    let has = |(_, entry): &(CtKey, CtEntry)| entry.flags.contains(CtFlags::PAST);
    let entries = bed.conntrack().into_iter().filter(has);
    entries.filter_map(|(_, entry)| HopWay::of_addr(&entry.way)).collect()
}

/// Lets the routing table be asked again at the next packet.
fn outdate(bed: &mut Bed) {
    for (key, mut entry) in bed.conntrack() {
        if let Some(way) = HopWay::of_addr(&entry.way) {
            entry.way = HopWay { asked: way.asked.wrapping_sub(1), ..way }.to_addr();
            bed.put("ct", key, entry);
        }
    }
}

/// What happens to a packet that enters the node, addressed to the test device.
pub(crate) fn arrive(bed: &Bed, text: &str) -> String {
    arrive_bytes(bed, packet::build(text))
}

pub(crate) fn arrive_bytes(bed: &Bed, mut bytes: Vec<u8>) -> String {
    bytes[..6].fill(0);
    let (verdict, bytes) = bed.run("dev_in", &bytes);
    if verdict == Verdict::Redirect {
        assert_eq!(bytes[..12], LINK.concat()[..]);
    }
    short(&lb_testkit::bed::outcome(verdict, &bytes))
}

#[test]
fn a_new_flow_goes_to_the_next_hop_with_one_hop_less() {
    for (family, hops) in FAMILIES.iter().zip(HOPS) {
        let echo = if family.v4() { proto::ICMP } else { proto::ICMP6 };
        let cases = [("tcp", " S", proto::TCP), ("udp", "", proto::UDP), ("echo", "", echo)];
        for (name, flags, protocol) in cases {
            for service in [false, true] {
                if service && protocol == echo {
                    continue;
                }
                let mut bed = bed();
                let (to, target) = dialed(&mut bed, family, protocol, service);
                let text = format!("{} > {to} {name}{flags}", family.at(family.pod, 4000));
                let (verdict, bytes) = bed.leave_bytes(&packet::build(&text));
                assert_eq!(verdict, Verdict::Redirect, "{text}");
                assert_eq!(bytes[hops], 63);
                let shown = packet::build(&text.replace(&to, &target));
                assert_eq!(packet::show(&bytes), packet::show(&shown));
                let kind = if service { "flow_service" } else { "flow_plain" };
                assert_eq!(bed.counted(), format!("flow_hop+1 {kind}+1"), "{text}");
                let ways = ways(&bed);
                assert_eq!(ways.len(), if service { 2 } else { 1 }, "of each entry");
                for way in ways {
                    assert_eq!((way.device, way.pod, way.mtu), (ifindex("far0"), POD, FAR_MTU));
                    let next =
                        if family.v4() { addr("192.0.3.2").word3() } else { Addr::NONE.word3() };
                    assert_eq!(way.next4, next);
                }
                for _ in 0..2 {
                    let text = text.replace(" S", " A");
                    let (verdict, bytes) = bed.leave_bytes(&packet::build(&text));
                    assert_eq!((verdict, bytes[hops]), (Verdict::Redirect, 63));
                    outdate(&mut bed);
                }
            }
        }
    }
}

#[test]
fn what_may_not_go_past_the_stack_goes_through_it() {
    type Change = fn(&mut Bed, &Addrs);
    let cases: [(&str, Change); 10] = [
        ("it is off", |bed, _| set(bed, false)),
        ("the Pod may not", |bed, _| bed.set("locals", 1, local(LocalFlags::NONE))),
        ("the device may not", |bed, _| allow(bed, "far0", DevFlags::NONE)),
        ("the device is not known", |bed, _| bed.remove::<u32, Dev>("devs", ifindex("far0"))),
        ("not a Pod", |bed, family| bed.remove::<_, Ident>("ident", key_of(family.far_pod))),
        ("a node", |bed, family| {
            let ident = Ident { flags: IdentFlags::NODE, ..Ident::ZERO };
            bed.put("ident", key_of(family.far_pod), ident);
        }),
        ("a Pod of this node", |bed, family| {
            let ident = Ident { flags: IdentFlags::POD | IdentFlags::HERE, ..Ident::ZERO };
            bed.put("ident", key_of(family.far_pod), ident);
        }),
        ("the source is not the Pod's own", |bed, _| {
            bed.put("pods", OWN, PodEntry { id: 1, ..PodEntry::ZERO });
        }),
        ("no route", |_, _| {
            sh("ip route del 10.2.0.0/24
                ip route add unreachable 10.2.0.0/24
                ip -6 route del fd00:2::/64
                ip -6 route add unreachable fd00:2::/64");
        }),
        ("the route leads elsewhere", |_, _| {
            sh("ip route replace 10.2.0.0/24 via 192.0.2.254
                ip -6 route replace fd00:2::/64 via 2001:db8::fe");
        }),
    ];
    for family in &FAMILIES {
        for service in [false, true] {
            for (name, change) in cases {
                let mut bed = bed();
                let (to, target) = dialed(&mut bed, family, proto::TCP, service);
                change(&mut bed, family);
                let text = |to| format!("{} > {to} tcp S", family.at(family.pod, 4000));
                assert_eq!(short(&bed.leave(&text(&to))), text(&target), "{name}");
                assert_eq!(ways(&bed), [], "{name}");
                set(&mut bed, true);
                let text = |to| format!("{} > {to} tcp A", family.at(family.pod, 4000));
                assert_eq!(short(&bed.leave(&text(&to))), text(&target), "{name}: nor later");
            }
        }
        // The beginning of the connection was not seen.
        let bed = bed();
        let text =
            format!("{} > {} tcp A", family.at(family.pod, 4000), family.at(family.far_pod, 80));
        assert_eq!(short(&bed.leave(&text)), text);
        assert_eq!(ways(&bed), []);
    }
}

/// The annotation of the Service.
#[test]
fn a_flow_to_a_service_that_wants_it_goes_through_the_stack() {
    for family in &FAMILIES {
        let mut bed = bed();
        let (to, target) = dialed(&mut bed, family, proto::TCP, true);
        let vip: std::net::SocketAddr = to.parse().unwrap();
        let key = FrontendKey::new(Addr::from_ip(vip.ip()), Be16::new(vip.port()), proto::TCP);
        let frontend: Frontend = bed.get("frontends", key).unwrap();
        bed.put("frontends", key, Frontend { flags: FrontendFlags::BY_STACK, ..frontend });
        let text = |port, to| format!("{} > {to} tcp S", family.at(family.pod, port));
        assert_eq!(short(&bed.leave(&text(4000, &to))), text(4000, &target));
        assert_eq!(ways(&bed), []);
        // The same Pod by itself.
        assert!(bed.leave(&text(4001, &target)).starts_with("redirect"));
    }
}

/// The stack tells the sender what is wrong; the flow keeps its way.
#[test]
fn a_packet_that_does_not_fit_its_way_goes_to_the_stack() {
    for (family, hops) in FAMILIES.iter().zip(HOPS) {
        for service in [false, true] {
            let mut bed = bed();
            let (to, target) = dialed(&mut bed, family, proto::UDP, service);
            let text = |to, len| format!("{} > {to} udp len={len}", family.at(family.pod, 4000));
            let headers = if family.v4() { 28 } else { 48 };
            let fits = usize::from(FAR_MTU) - headers;
            // Of a new flow, too, which has no way then.
            assert!(!bed.leave(&text(&to, fits + 1)).starts_with("redirect"));
            assert_eq!(ways(&bed), []);
            bed.conntrack().into_iter().for_each(|(key, _)| bed.forget(key));
            assert!(bed.leave(&text(&to, fits)).starts_with("redirect"));
            let (verdict, bytes) = bed.leave_bytes(&packet::build(&text(&to, fits + 1)));
            assert_eq!((verdict, bytes[hops]), (Verdict::Next, 64));
            assert_eq!(
                packet::show(&bytes),
                packet::show(&packet::build(&text(&target, fits + 1)))
            );
            let mut last = packet::build(&text(&to, 8));
            last[hops] = 1;
            if family.v4() {
                // 63 less in the high half of a word.
                let sum = u32::from(u16::from_be_bytes([last[24], last[25]])) + 0x3f00;
                let sum = (sum & 0xffff) + (sum >> 16);
                last[24..26].copy_from_slice(&(sum as u16).to_be_bytes());
            }
            let (verdict, bytes) = bed.leave_bytes(&last);
            assert_eq!((verdict, bytes[hops]), (Verdict::Next, 1));
            assert!(bed.leave(&text(&to, fits)).starts_with("redirect"), "it goes on");
        }
    }
}

#[test]
fn a_way_ends_at_once_for_both_directions_and_does_not_come_back() {
    type Change = fn(&mut Bed);
    let cases: [(&str, Change); 4] = [
        ("turned off", |bed| set(bed, false)),
        ("the Pod may not any more", |bed| bed.set("locals", 1, local(LocalFlags::NONE))),
        ("its number is another Pod's", |bed| {
            bed.set("locals", 1, LocalEnd { generation: 4, ..local(LocalFlags::PAST_OK) });
        }),
        ("the device may not any more", |bed| allow(bed, "far0", DevFlags::NONE)),
    ];
    for family in &FAMILIES {
        for service in [false, true] {
            for (name, change) in cases {
                let mut bed = bed();
                let (to, target) = dialed(&mut bed, family, proto::TCP, service);
                let text =
                    |to, flags| format!("{} > {to} tcp {flags}", family.at(family.pod, 4000));
                assert!(bed.leave(&text(&to, "S")).starts_with("redirect"));
                change(&mut bed);
                assert_eq!(short(&bed.leave(&text(&to, "A"))), text(&target, "A"), "{name}");
                assert_eq!(ways(&bed), [], "{name}: neither entry has it");
                set(&mut bed, true);
                bed.set("locals", 1, local(LocalFlags::PAST_OK));
                allow(&mut bed, "far0", DevFlags::HOP_OK);
                assert_eq!(short(&bed.leave(&text(&to, "A"))), text(&target, "A"), "{name}");
            }
        }
    }
}

#[test]
fn a_changed_route_is_obeyed_when_the_routing_table_is_asked_again() {
    const MOVED: &str = "ip route replace 10.2.0.0/24 via 192.0.2.254
        ip -6 route replace fd00:2::/64 via 2001:db8::fe";
    const GONE: &str = "ip route del 10.2.0.0/24; ip route del default
        ip -6 route del fd00:2::/64; ip -6 route del default";
    const BACK: &str = "ip route add 10.2.0.0/24 via 192.0.3.2
        ip -6 route add fd00:2::/64 via 2001:db8:3::2";
    for family in &FAMILIES {
        for service in [false, true] {
            for allowed in [true, false] {
                let text = |to: &str| format!("{} > {to} udp", family.at(family.pod, 4000));
                let mut tries = 0;
                let (mut bed, to, target) = loop {
                    let mut bed = bed();
                    if allowed {
                        allow(&mut bed, "out0", DevFlags::HOP_OK);
                    }
                    let (to, target) = dialed(&mut bed, family, proto::UDP, service);
                    assert!(bed.leave(&text(&to)).starts_with("redirect"));
                    sh(MOVED);
                    if bed.leave(&text(&to)).starts_with("redirect") {
                        break (bed, to, target);
                    }
                    // The second may have ended meanwhile, but not each time.
                    tries += 1;
                    assert!(tries < 5, "asked before its time");
                };
                outdate(&mut bed);
                let told = bed.leave(&text(&to));
                let devices: Vec<u32> = ways(&bed).iter().map(|way| way.device).collect();
                if allowed {
                    assert_eq!(told, format!("redirect {}", text(&target)));
                    assert_eq!(devices, vec![ifindex("out0"); if service { 2 } else { 1 }]);
                } else {
                    assert_eq!(told, text(&target));
                    assert!(devices.is_empty(), "{devices:?}");
                }
            }
            // Without a route the stack says so, until there is one.
            let mut bed = bed();
            let (to, target) = dialed(&mut bed, family, proto::UDP, service);
            let text = |to| format!("{} > {to} udp", family.at(family.pod, 4000));
            assert!(bed.leave(&text(&to)).starts_with("redirect"));
            sh(GONE);
            outdate(&mut bed);
            assert_eq!(bed.leave(&text(&to)), text(&target));
            sh(BACK);
            assert!(bed.leave(&text(&to)).starts_with("redirect"));
        }
    }
}

#[test]
fn the_first_packet_from_another_node_writes_the_entry_that_answers_follow() {
    for family in &FAMILIES {
        for (name, flags, answer) in [("tcp", " S", " SA"), ("udp", "", "")] {
            for policies in [0, 7] {
                let mut bed = receiving();
                SamplePolicy::new(INGRESS)
                    .allow(FAR, proto::TCP, 80)
                    .allow(FAR, proto::UDP, 80)
                    .put(&mut bed);
                sample::epoch(&mut bed, policies);
                let (own, far) = (family.at(family.pod, 80), family.at(family.far_pod, 4000));
                let text = format!("{far} > {own} {name}{flags}");
                assert_eq!(arrive(&bed, &text), format!("redirect {text}"));
                assert_eq!(bed.counted(), "flow_hop+1");
                let [(_, entry)] = bed.conntrack().try_into().unwrap();
                assert!(entry.flags.contains(CtFlags::INBOUND | CtFlags::PAST));
                assert_eq!(entry.epoch, if policies == 0 { 0 } else { UNJUDGED });
                let [way] = ways(&bed).try_into().unwrap();
                assert_eq!((way.device, way.pod), (OWN, POD));
                assert_eq!(short(&bed.enter_from(OWN, &text)), text, "judged there");
                let text = format!("{own} > {far} {name}{answer}");
                assert_eq!(short(&bed.leave(&text)), format!("redirect {text}"));
                let text = format!("{far} > {own} {name}{}", answer.replace('S', ""));
                assert_eq!(arrive(&bed, &text), format!("redirect {text}"));
            }
        }
    }
}

#[test]
fn the_receiver_s_policies_judge_a_flow_that_comes_past_the_stack() {
    for family in &FAMILIES {
        let mut bed = receiving();
        SamplePolicy::new(INGRESS).allow(FAR, proto::TCP, 80).put(&mut bed);
        sample::epoch(&mut bed, 1);
        for (port, allowed) in [(80, true), (81, false)] {
            let (own, far) = (family.at(family.pod, port), family.at(family.far_pod, 4000));
            let syn = format!("{far} > {own} tcp S");
            assert_eq!(arrive(&bed, &syn), format!("redirect {syn}"));
            let want = if allowed { syn.clone() } else { "drop".to_owned() };
            assert_eq!(short(&bed.enter_from(OWN, &syn)), want);
            let answer = format!("{own} > {far} tcp SA");
            let want = if allowed { format!("redirect {answer}") } else { "drop".to_owned() };
            assert_eq!(short(&bed.leave(&answer)), want);
        }
    }
}

#[test]
fn what_enters_the_node_otherwise_is_left_to_the_stack() {
    type Change = fn(&mut Bed, &Addrs);
    let cases: [(&str, &str, Change); 9] = [
        ("it is off", "S", |bed, _| set(bed, false)),
        ("the Pod may not", "S", |bed, _| bed.set("locals", 1, local(LocalFlags::NONE))),
        ("the device may not", "S", |bed, _| allow(bed, "lo", DevFlags::NONE)),
        ("not from a Pod", "S", |bed, family| {
            bed.remove::<_, Ident>("ident", key_of(family.far_pod));
        }),
        ("the beginning was not seen", "A", |_, _| ()),
        ("a reset", "R", |_, _| ()),
        ("the way back leads elsewhere", "S", |_, _| {
            sh("ip route replace 10.2.0.0/24 via 192.0.3.2
                ip -6 route del fd00:2::/64 dev lo
                ip -6 route add fd00:2::/64 via 2001:db8:3::2");
        }),
        ("too big for the Pod", "S", |bed, _| {
            bed.set("locals", 1, LocalEnd { mtu: 39, ..local(LocalFlags::PAST_OK) });
        }),
        ("its number means another device", "S", |bed, _| {
            bed.set("locals", 1, LocalEnd { ifindex: 9, ..local(LocalFlags::PAST_OK) });
        }),
    ];
    for family in &FAMILIES {
        for (name, flags, change) in cases {
            let mut bed = receiving();
            change(&mut bed, family);
            let (own, far) = (family.at(family.pod, 80), family.at(family.far_pod, 4000));
            let text = format!("{far} > {own} tcp {flags}");
            assert_eq!(arrive(&bed, &text), text, "{name}");
            assert_eq!(ways(&bed), [], "{name}");
        }
        // A frame for another host that the device has seen.
        let bed = receiving();
        let (own, far) = (family.at(family.pod, 80), family.at(family.far_pod, 4000));
        let text = format!("{far} > {own} tcp S");
        assert_eq!(bed.run("dev_in", &packet::build(&text)).0, Verdict::Next);
        assert_eq!(bed.conntrack(), []);
    }
}

/// A SYN in the name of a connection of the Pod's own: the entry stays until the policies have been asked.
#[test]
fn an_entry_of_a_flow_that_lives_is_not_replaced() {
    for family in &FAMILIES {
        let bed = receiving();
        let (own, far) = (family.at(family.pod, 4000), family.at(family.far_pod, 80));
        for (leaves, flags) in [(true, "S"), (false, "SA"), (true, "A")] {
            let (src, dst) = if leaves { (&own, &far) } else { (&far, &own) };
            let text = format!("{src} > {dst} tcp {flags}");
            let told = if leaves { short(&bed.leave(&text)) } else { arrive(&bed, &text) };
            assert_eq!(told, format!("redirect {text}"));
            if !leaves {
                assert_eq!(short(&bed.enter_from(OWN, &text)), text);
            }
        }
        let before = bed.conntrack();
        let syn = format!("{far} > {own} tcp S");
        assert_eq!(arrive(&bed, &syn), syn, "the stack's, and pod_in judges it");
        assert_eq!(bed.conntrack(), before);
        // One that repeats the beginning of a flow goes where that went.
        let (own, far) = (family.at(family.pod, 80), family.at(family.far_pod, 4000));
        for _ in 0..2 {
            let syn = format!("{far} > {own} tcp S");
            assert_eq!(arrive(&bed, &syn), format!("redirect {syn}"));
        }
    }
}

/// A connection on the ports of one that is over has a way of its own.
#[test]
fn an_entry_of_a_flow_that_is_over_is_replaced() {
    for family in &FAMILIES {
        let mut bed = receiving();
        let (own, far) = (family.at(family.pod, 80), family.at(family.far_pod, 4000));
        let syn = format!("{far} > {own} tcp S");
        let key = CtKey {
            local: addr(family.pod),
            remote: addr(family.far_pod),
            local_port: Be16::new(80),
            remote_port: Be16::new(4000),
            proto: proto::TCP,
            veth: OWN as u16,
            ..CtKey::ZERO
        };
        let both = CtFlags::tcp(tcp::SYN | tcp::ACK | tcp::FIN, tcp::SYN | tcp::ACK | tcp::FIN);
        let last_seen = bed.stamp();
        let flags = CtFlags::INBOUND | CtFlags::SEEN_IN | CtFlags::SEEN_OUT | both;
        bed.put("ct", key, CtEntry { flags, last_seen, ..CtEntry::ZERO });
        assert_eq!(arrive(&bed, &syn), format!("redirect {syn}"));
        assert_eq!(ways(&bed).len(), 1);
    }
}

#[test]
fn answers_come_in_past_the_stack_as_long_as_questions_leave_so() {
    for family in &FAMILIES {
        for service in [false, true] {
            let mut bed = receiving();
            let (to, target) = dialed(&mut bed, family, proto::TCP, service);
            let own = family.at(family.pod, 4000);
            assert!(bed.leave(&format!("{own} > {to} tcp S")).starts_with("redirect"));
            let answer = format!("{target} > {own} tcp SA");
            assert_eq!(arrive(&bed, &answer), format!("redirect {answer}"));
            let shown = format!("{to} > {own} tcp SA");
            assert_eq!(short(&bed.enter_from(OWN, &answer)), shown);
            // Turned off: both directions, whoever speaks first.
            set(&mut bed, false);
            assert_eq!(arrive(&bed, &answer), answer);
            assert!(!bed.leave(&format!("{own} > {to} tcp A")).starts_with("redirect"));
            set(&mut bed, true);
            assert_eq!(arrive(&bed, &answer), answer);
        }
    }
}

/// By a device that does not lead back the kernel takes IPv4 packets only where it is not strict about that.
#[test]
fn answers_that_come_in_by_another_device() {
    for family in &FAMILIES {
        for strict in [false, true] {
            for service in [false, true] {
                let mut bed = bed();
                allow(&mut bed, "lo", DevFlags::HOP_OK | DevFlags::STRICT.when(strict));
                let (to, target) = dialed(&mut bed, family, proto::TCP, service);
                let own = family.at(family.pod, 4000);
                assert!(bed.leave(&format!("{own} > {to} tcp S")).starts_with("redirect"));
                let answer = format!("{target} > {own} tcp SA");
                let dropped_by_stack = strict && family.v4();
                let want =
                    if dropped_by_stack { answer.clone() } else { format!("redirect {answer}") };
                assert_eq!(arrive(&bed, &answer), want, "strict: {strict}");
                // The route has moved there, and the Pod has not sent since.
                sh("ip route replace 10.2.0.0/24 dev lo
                    ip -6 route replace fd00:2::/64 dev lo");
                assert_eq!(arrive(&bed, &answer), format!("redirect {answer}"));
            }
        }
    }
}

#[test]
fn icmp_errors_and_fragments_go_where_their_flow_goes() {
    for family in &FAMILIES {
        for service in [false, true] {
            let mut bed = receiving();
            bed.set("locals", 1, LocalEnd { mtu: 1400, ..local(LocalFlags::PAST_OK) });
            let (to, target) = dialed(&mut bed, family, proto::UDP, service);
            let own = family.at(family.pod, 4000);
            let ip = |text: &str| text.parse().unwrap();
            assert!(bed.leave(&format!("{own} > {to} udp")).starts_with("redirect"));
            // A router on the way tells the Pod.
            let quoted = format!("{own} > {target} udp");
            let error = packet::too_big(ip(family.client), ip(family.pod), &quoted);
            assert!(arrive_bytes(&bed, error).starts_with("redirect"));
            let other = packet::too_big(
                ip(family.client),
                ip(family.pod),
                &quoted.replace("4000 ", "4001 "),
            );
            assert!(!arrive_bytes(&bed, other).starts_with("redirect"));
            // The Pod tells the other.
            let answer = format!("{target} > {own} udp");
            assert_eq!(arrive(&bed, &answer), format!("redirect {answer}"));
            let shown = format!("{to} > {own} udp");
            assert_eq!(short(&bed.enter_from(OWN, &answer)), shown);
            let error = packet::too_big(
                ip(family.pod),
                to.parse::<std::net::SocketAddr>().unwrap().ip(),
                &shown,
            );
            assert_eq!(bed.leave_bytes(&error).0, Verdict::Redirect);
            let whole = |src: &str, dst: &str| packet::build(&format!("{src} > {dst} udp len=64"));
            for piece in packet::in_two(&whole(&own, &to), 32, 7) {
                assert_eq!(bed.leave_bytes(&piece).0, Verdict::Redirect);
            }
            let redirected = |mut piece: Vec<u8>| {
                piece[..6].fill(0);
                bed.run("dev_in", &piece).0 == Verdict::Redirect
            };
            assert!(packet::in_two(&whole(&target, &own), 32, 7).into_iter().all(redirected));
            let [_, unknown] = packet::in_two(&whole(&target, &own), 32, 8);
            assert!(!redirected(unknown), "its first piece was not seen");
        }
    }
}

/// Where the Pod can send what its way cannot take, all pieces of a datagram go to the stack, which cuts some of them.
#[test]
fn pieces_of_a_datagram_go_one_way() {
    let family = &FAMILIES[0];
    for mtu in [1400, 1500] {
        let mut bed = bed();
        bed.set("locals", 1, LocalEnd { mtu, ..local(LocalFlags::PAST_OK) });
        let (own, far) = (family.at(family.pod, 4000), family.at(family.far_pod, 80));
        assert!(bed.leave(&format!("{own} > {far} udp")).starts_with("redirect"));
        for piece in packet::in_two(&packet::build(&format!("{own} > {far} udp len=64")), 32, 7) {
            let want = if mtu == 1400 { Verdict::Redirect } else { Verdict::Next };
            assert_eq!(bed.leave_bytes(&piece).0, want);
        }
    }
}

#[test]
fn a_pod_that_is_known_by_the_range_of_its_node_alone_is_one() {
    for family in &FAMILIES {
        for in_range in [true, false] {
            let mut bed = receiving();
            bed.remove::<_, Ident>("ident", key_of(family.far_pod));
            if in_range {
                let bits = if family.v4() { 96 + 24 } else { 64 };
                bed.put_prefix("pod_ranges", bits, key_of(family.far_pod), 1_u32);
            }
            let (pod, far) = (family.at(family.pod, 4000), family.at(family.far_pod, 80));
            let text = format!("{pod} > {far} tcp S");
            let (verdict, _) = bed.leave_bytes(&packet::build(&text));
            assert_eq!(verdict == Verdict::Redirect, in_range, "{text}");
            let (pod, far) = (family.at(family.pod, 8080), family.at(family.far_pod, 4000));
            let told = arrive(&bed, &format!("{far} > {pod} tcp S"));
            assert_eq!(told.starts_with("redirect"), in_range, "{told}");
        }
    }
}
