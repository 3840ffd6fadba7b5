//! What attackers send, packet by packet through the real programs: frames that the programs and the receiver might read
//! in different ways, and packets in another's name. Each beside what is legitimate and passes.

use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::{self, SettingFlags, Settings};
use lb_common::endpoint::{Ident, IdentFlags, PodEntry, PodFlags, PodSource, link, mac_number};
use lb_common::flow::proto;
use lb_common::policy::{Bits, Group, GroupFlags, PortKey, guess, tier};
use lb_common::service::{Frontend, FrontendFlags, FrontendKey};
use lb_testkit::bed::{Bed, Verdict, addr};
use lb_testkit::packet;
use lb_testkit::sample;
use lb_testkit::sample::{EGRESS, INGRESS, OTHER, PEER, POD, SamplePolicy, at};

/// A device that is neither the Pod's nor this host.
const ELSEWHERE: u32 = 9;
/// Network of this node.
const NODE: u8 = 3;

fn words(addr: Addr) -> [u32; 4] {
    addr.words().map(|word| word.to_wire())
}

fn of(v4: bool, net: u8) -> Addr {
    Addr::from_ip(addr(v4, net, 1))
}

/// A Pod that is isolated in both directions but for [`PEER`], at every port and protocol.
fn isolated(v4: bool) -> Bed {
    let mut bed = Bed::new();
    for direction in [INGRESS, EGRESS] {
        SamplePolicy::new(direction).allow_all(PEER).put(&mut bed);
    }
    sample::pod(&mut bed, v4);
    let node = Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO };
    bed.put("ident", words(of(v4, NODE)), node);
    sample::epoch(&mut bed, 1);
    bed.reasons();
    bed
}

/// A Pod that no policy selects.
fn free(v4: bool) -> Bed {
    let mut bed = isolated(v4);
    let pod = PodEntry { ip4: of(true, POD), ip6: of(false, POD), ..PodEntry::ZERO };
    bed.put("pods", 1_u32, pod);
    bed
}

fn tagged(frame: &[u8], tags: &[u16], tci: u16) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for tag in tags {
        out.extend(tag.to_be_bytes());
        out.extend(tci.to_be_bytes());
    }
    out.extend(&frame[12..]);
    out
}

#[test]
fn only_ip_and_arp_pass_at_a_pod() {
    for v4 in [true, false] {
        let (out, back) = (
            packet::build(&format!("{} > {} tcp S", at(v4, POD, 4000), at(v4, PEER, 80))),
            packet::build(&format!("{} > {} tcp S", at(v4, PEER, 4000), at(v4, POD, 80))),
        );
        for mut bed in [isolated(v4), free(v4)] {
            // What is left of two and three tags once the kernel has taken one off, and other types.
            for tags in [&[0x8100][..], &[0x88a8], &[0x8100, 0x8100], &[0x88a8, 0x8100]] {
                for tci in [0, 0x2000, 5] {
                    let name = format!("{tags:x?} {tci:x}");
                    assert_eq!(
                        bed.leave_bytes(&tagged(&out, tags, tci)).0,
                        Verdict::Drop,
                        "{name}"
                    );
                    let entered = bed.enter_bytes_from(ELSEWHERE, &tagged(&back, tags, tci));
                    assert_eq!(entered, Verdict::Drop, "{name}");
                    assert_eq!(bed.reasons(), "NOT_IP/in+1 NOT_IP/out+1", "{name}");
                }
            }
            for ethertype in [0x88b5_u16, 0x8847, 0x8848, 0x88cc, 0x0600] {
                let mut frame = out.clone();
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                assert_eq!(bed.leave_bytes(&frame).0, Verdict::Drop, "{ethertype:x}");
                assert_eq!(bed.enter_bytes_from(ELSEWHERE, &frame), Verdict::Drop, "{ethertype:x}");
                assert_eq!(bed.reasons(), "NOT_IP/in+1 NOT_IP/out+1");
            }
            assert_eq!(bed.conntrack().len(), 0);
            assert_eq!(bed.leave_bytes(&out).0, Verdict::Next, "untagged");
            assert_eq!(bed.enter_bytes_from(ELSEWHERE, &back), Verdict::Next, "untagged");
            bed.reasons();
        }
    }
}

#[test]
fn addresses_that_no_packet_has() {
    let udp = |src: &str, dst: &str| {
        let text = format!("{} > {} udp", at(false, POD, 4000), at(false, PEER, 80));
        let mut frame = packet::build(&text);
        for (at, ip) in [(22, src), (38, dst)] {
            let ip: std::net::Ipv6Addr = ip.parse().unwrap();
            frame[at..at + 16].copy_from_slice(&ip.octets());
        }
        frame
    };
    let (pod, peer) = ("fd00:1::1", "fd00:2::1");
    for mut bed in [isolated(false), free(false)] {
        for bad in ["::ffff:10.2.0.1", "::ffff:10.3.0.1", "::1", "::", "::10.2.0.1", "ff02::1"] {
            assert_eq!(bed.enter_bytes_from(ELSEWHERE, &udp(bad, pod)), Verdict::Drop, "{bad}");
            assert_eq!(bed.leave_bytes(&udp(bad, peer)).0, Verdict::Drop, "{bad}");
            assert_eq!(bed.reasons(), "BAD_ADDRESS/in+1 BAD_ADDRESS/out+1", "{bad}");
        }
        for bad in ["::ffff:10.2.0.1", "::1"] {
            assert_eq!(bed.leave_bytes(&udp(pod, bad)).0, Verdict::Drop, "{bad}");
            assert_eq!(bed.reasons(), "BAD_ADDRESS/out+1", "{bad}");
        }
        assert_eq!(bed.enter_bytes_from(ELSEWHERE, &udp(peer, pod)), Verdict::Next);
        assert_eq!(bed.leave_bytes(&udp(pod, peer)).0, Verdict::Next);
    }
    for mut bed in [isolated(true), free(true)] {
        for bad in ["127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"] {
            let frame = packet::build(&format!("{bad}:4000 > 10.2.0.1:80 udp"));
            assert_eq!(bed.leave_bytes(&frame).0, Verdict::Drop, "{bad}");
            assert_eq!(bed.reasons(), "BAD_ADDRESS/out+1", "{bad}");
        }
    }
    let dhcp = "0.0.0.0:68 > 255.255.255.255:67 udp";
    assert_ne!(free(true).leave(dhcp), "drop", "who asks for an address has none");
}

#[test]
fn the_node_is_who_sits_here_not_who_bears_its_address() {
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        let forged = format!("{} > {} udp", at(v4, NODE, 4000), at(v4, POD, 80));
        assert_eq!(bed.enter_from(ELSEWHERE, &forged), "drop");
        assert_eq!(bed.reasons(), "POLICY_ISOLATED/in+1");
        assert_ne!(bed.enter_from(0, &forged), "drop", "this host made it");
        // Judged again, it is still the host's, whoever sends the next packet.
        sample::epoch(&mut bed, 2);
        let reply = format!("{} > {} udp", at(v4, POD, 80), at(v4, NODE, 4000));
        assert_ne!(bed.leave(&reply), "drop");
        assert_ne!(bed.leave(&format!("{} > {} udp", at(v4, POD, 81), at(v4, NODE, 9))), "drop");
    }
}

/// An IPv4 fragment, or an IPv6 packet with a fragment header: of TCP, `position` bytes into it.
fn fragment(v4: bool, (src, dst): (u8, u8), position: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let text = format!("{} > {} tcp S", at(v4, src, 4000), at(v4, dst, 22));
    let whole = packet::build(&text);
    let header = if v4 { 34 } else { 54 };
    let mut frame = whole[..header].to_vec();
    if v4 {
        let total = (20 + payload.len()) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[18..20].copy_from_slice(&[7, 7]);
        let flags = (position / 8) | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&flags.to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
        frame[20] = 44;
        frame.extend([proto::TCP, 0]);
        frame.extend((position | u16::from(more)).to_be_bytes());
        frame.extend([7, 7, 7, 7]);
    }
    frame.extend(payload);
    frame
}

#[test]
fn fragments_that_hide_their_header() {
    for v4 in [true, false] {
        let whole = packet::build(&format!("{} > {} tcp S", at(v4, PEER, 4000), at(v4, POD, 22)));
        let tcp = &whole[if v4 { 34 } else { 54 }..];
        let ends = (PEER, POD);
        let bad = [
            ("8 bytes of the header", fragment(v4, ends, 0, true, &tcp[..8])),
            ("16 bytes of it", fragment(v4, ends, 0, true, &tcp[..16])),
            ("8 bytes, and padding", {
                let mut frame = fragment(v4, ends, 0, true, &tcp[..8]);
                frame.extend(&tcp[8..20]);
                frame
            }),
            ("over the first one's flags", fragment(v4, ends, 8, false, &[2; 8])),
            ("over its checksum", fragment(v4, ends, 16, false, &[2; 8])),
        ];
        let (mut bed, mut free) = (isolated(v4), free(v4));
        for (name, frame) in &bad {
            assert_eq!(bed.enter_bytes_from(ELSEWHERE, frame), Verdict::Drop, "{name}");
            assert_eq!(bed.reasons(), "UNREADABLE/in+1", "{name}");
            assert_eq!(free.enter_bytes_from(ELSEWHERE, frame), Verdict::Drop, "{name}");
            assert_eq!(free.reasons(), "UNREADABLE/in+1", "{name}");
        }
        // Ordinary ones.
        let segment = [tcp, &[0; 28]].concat();
        let first = fragment(v4, ends, 0, true, &segment);
        assert_eq!(bed.enter_bytes_from(ELSEWHERE, &first), Verdict::Next);
        let later = fragment(v4, ends, segment.len() as u16, false, &[0; 8]);
        assert_eq!(bed.enter_bytes_from(ELSEWHERE, &later), Verdict::Next);
        assert_eq!(free.counted(), "");
    }
}

/// IPv6 with `n` destination options headers before TCP.
fn with_options((src, dst): (u8, u8), n: usize) -> Vec<u8> {
    let whole = packet::build(&format!("{} > {} tcp S", at(false, src, 4000), at(false, dst, 22)));
    let mut frame = whole[..54].to_vec();
    frame[18..20].copy_from_slice(&((n * 8 + 20) as u16).to_be_bytes());
    frame[20] = 60;
    for i in 0..n {
        let next = if i + 1 == n { proto::TCP } else { 60 };
        frame.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    frame.extend(&whole[54..]);
    frame
}

#[test]
fn chains_that_cannot_be_walked() {
    let (mut bed, mut free) = (isolated(false), free(false));
    for n in [7, 12] {
        assert_eq!(bed.enter_bytes_from(ELSEWHERE, &with_options((PEER, POD), n)), Verdict::Drop);
        assert_eq!(bed.reasons(), "UNREADABLE/in+1");
        assert_eq!(bed.leave_bytes(&with_options((POD, PEER), n)).0, Verdict::Drop);
        assert_eq!(bed.reasons(), "UNREADABLE/out+1");
        // Nor where no policy is, nor from what looks like this host: the stack puts fragments together and cuts them
        // again, and its neighbors and tunnels walk longer chains.
        for frame in [with_options((PEER, POD), n), with_options((NODE, POD), n)] {
            assert_eq!(free.enter_bytes_from(ELSEWHERE, &frame), Verdict::Drop);
            assert_eq!(free.enter_bytes(&frame).0, Verdict::Drop);
            assert_eq!(free.reasons(), "UNREADABLE/in+2");
        }
        for net in [PEER, NODE] {
            assert_eq!(free.leave_bytes(&with_options((POD, net), n)).0, Verdict::Drop);
            assert_eq!(free.reasons(), "UNREADABLE/out+1");
        }
    }
    for n in [1, 5] {
        let packet = with_options((PEER, POD), n);
        assert_eq!(bed.enter_bytes_from(ELSEWHERE, &packet), Verdict::Next, "{n}");
        assert_eq!(bed.enter_bytes_from(ELSEWHERE, &with_options((OTHER, POD), n)), Verdict::Drop);
    }
}

/// A packet of this protocol, which has no ports.
fn of_protocol(v4: bool, (src, dst): (u8, u8), protocol: u8) -> Vec<u8> {
    let mut frame = packet::build(&format!("{} > {} udp", at(v4, src, 9), at(v4, dst, 9)));
    frame[if v4 { 23 } else { 20 }] = protocol;
    frame
}

#[test]
fn what_hides_its_contents_passes_where_no_policy_is() {
    for v4 in [true, false] {
        let (mut bed, mut free) = (isolated(v4), free(v4));
        for protocol in [50, 51] {
            let into = of_protocol(v4, (PEER, POD), protocol);
            assert_eq!(free.enter_bytes_from(ELSEWHERE, &into), Verdict::Next);
            assert_eq!(bed.enter_bytes_from(ELSEWHERE, &into), Verdict::Drop);
            assert_eq!(bed.reasons(), "UNREADABLE/in+1");
            // Made by this host, or by one that says so; a forwarded packet that was cut again comes in by no device.
            let of_node = of_protocol(v4, (NODE, POD), protocol);
            assert_eq!(bed.enter_bytes(&of_node).0, Verdict::Next);
            assert_eq!(bed.enter_bytes_from(ELSEWHERE, &of_node), Verdict::Drop);
            assert_eq!(bed.enter_bytes(&into).0, Verdict::Drop);
            assert_eq!(bed.reasons(), "UNREADABLE/in+2");
            let out = of_protocol(v4, (POD, PEER), protocol);
            assert_eq!(free.leave_bytes(&out).0, Verdict::Next);
            assert_eq!(bed.leave_bytes(&out).0, Verdict::Drop);
            assert_eq!(bed.reasons(), "UNREADABLE/out+1");
            // In another's name, and for another.
            assert_eq!(
                free.leave_bytes(&of_protocol(v4, (OTHER, PEER), protocol)).0,
                Verdict::Drop
            );
            let astray = of_protocol(v4, (PEER, OTHER), protocol);
            assert_eq!(free.enter_bytes_from(ELSEWHERE, &astray), Verdict::Drop);
            assert_eq!(free.reasons(), "NOT_FOR_POD/in+1 SPOOFED_SOURCE/out+1");
        }
    }
}

#[test]
fn a_link_local_source_reaches_no_pod_beyond_the_link() {
    let mut bed = strict(true);
    for (net, passes) in [(PEER, false), (NODE, false), (77, true)] {
        let outcome = bed.leave(&format!("169.254.169.254:53 > {} udp", at(true, net, 4000)));
        assert_eq!(outcome != "drop", passes, "{net}");
        assert_eq!(bed.reasons() == "SPOOFED_SOURCE/out+1", !passes, "{net}");
    }
    assert_ne!(bed.leave("169.254.7.7:53 > 169.254.7.8:53 udp"), "drop");
    // One that the Pod has from its CNI plugin.
    let own = Addr::from_ip("169.254.7.7".parse().unwrap());
    bed.put("pods", 1_u32, PodEntry { ip4: own, ..PodEntry::ZERO });
    assert_ne!(bed.leave(&format!("169.254.7.7:53 > {} udp", at(true, PEER, 4000))), "drop");
}

/// A neighbor solicitation from the Pod.
fn asks_for(dst: u8) -> Vec<u8> {
    let mut frame = of_protocol(false, (POD, dst), proto::ICMP6);
    frame.truncate(54);
    frame[18..20].copy_from_slice(&24_u16.to_be_bytes());
    frame[21] = 255;
    frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    let std::net::IpAddr::V6(target) = addr(false, dst, 1) else { panic!("not IPv6") };
    frame.extend(target.octets());
    frame
}

#[test]
fn neighbors_are_on_the_link() {
    let mut bed = isolated(false);
    let other = Ident { flags: IdentFlags::POD, ifindex: 7, ..Ident::ZERO };
    bed.put("ident", words(of(false, OTHER)), other);
    let bridged = bed.get::<_, PodEntry>("pods", 1_u32).unwrap();
    assert_eq!(bed.leave_bytes(&asks_for(NODE)).0, Verdict::Next, "this node");
    assert_eq!(bed.leave_bytes(&asks_for(OTHER)).0, Verdict::Drop, "a Pod behind a route");
    assert_eq!(bed.reasons(), "POLICY_ISOLATED/out+1");
    bed.put("pods", 1_u32, PodEntry { flags: PodFlags::BRIDGED, ..bridged });
    assert_eq!(bed.leave_bytes(&asks_for(OTHER)).0, Verdict::Next, "a Pod on the same bridge");
}

#[test]
fn where_the_port_is_not_known_a_deny_with_ports_matches_and_an_accept_does_not() {
    const RULES: [(&str, u8, &str, bool); 6] = [
        ("allow any port", tier::NETWORK_POLICY, "accept", true),
        ("allow a port", tier::NETWORK_POLICY, "accept some", false),
        ("deny a port", tier::ADMIN, "deny some, accept", false),
        ("deny a port behind an allow", tier::ADMIN, "accept, deny some", true),
        ("pass at a port, which nothing allows then", tier::ADMIN, "pass some, accept", false),
        ("accept at a port, then deny", tier::ADMIN, "accept some, deny", false),
    ];
    for v4 in [true, false] {
        for (name, tier, rules, passes) in RULES {
            let mut bed = isolated(v4);
            let group = INGRESS.group();
            let mut element = Group {
                flags: GroupFlags::ISOLATED | GroupFlags::SOME_PORTS,
                tiers: [tier; 4],
                ..Group::ZERO
            };
            let (mut known, mut denies, mut may_pass) = (Bits::ZERO, Bits::ZERO, Bits::ZERO);
            for (bit, rule) in rules.split(", ").enumerate() {
                let bit = 1_u64 << bit;
                element.any[0] |= bit;
                let some = rule.ends_with("some");
                known.words[0] |= if some { 0 } else { bit };
                if rule.starts_with("accept") {
                    element.accept[0] |= bit;
                } else {
                    may_pass.words[0] |= bit;
                    if rule.starts_with("deny") {
                        element.deny[0] |= bit;
                        denies.words[0] |= bit;
                    }
                }
            }
            bed.set("groups", group, element);
            for (guess, more) in
                [(guess::NONE, Bits::ZERO), (guess::DENIES, denies), (guess::PASSES, may_pass)]
            {
                let bits = Bits { words: [known.words[0] | more.words[0], 0, 0, 0] };
                let key = PortKey { group, guess, proto: proto::TCP, port: Be16::new(0) };
                bed.put_prefix("port_bits", PortKey::ANY_PORT, key, bits);
            }
            let later = fragment(v4, (PEER, POD), 800, false, &[0; 16]);
            let want = if passes { Verdict::Next } else { Verdict::Drop };
            assert_eq!(bed.enter_bytes_from(ELSEWHERE, &later), want, "{name}");
        }
    }
}

/// A bed whose source check is strict.
fn strict(v4: bool) -> Bed {
    let mut bed = free(v4);
    let settings = Settings { flags: SettingFlags::STRICT_SOURCE, ..Settings::ZERO };
    bed.set("settings", 0, settings);
    bed
}

#[test]
fn a_pod_sends_from_its_own_addresses() {
    for v4 in [true, false] {
        let mut bed = strict(v4);
        let other_ip = |net| Addr::from_ip(addr(v4, net, 9));
        // Bound in the Pod; a Service's; a load balancer's; what an annotation admits.
        bed.put("ident", words(other_ip(20)), Ident { ifindex: 1, ..Ident::ZERO });
        bed.put("frontends", FrontendKey::wildcard(other_ip(21)), Frontend::ZERO);
        let only = Frontend { flags: FrontendFlags::ADDRESS_ONLY, ..Frontend::ZERO };
        bed.put("frontends", FrontendKey::wildcard(other_ip(22)), only);
        // The tunnel device of another node, within the network of the Pods; even if an annotation admits it.
        let tunnel = Ident { flags: IdentFlags::NODE, ..Ident::ZERO };
        bed.put("ident", words(other_ip(24)), tunnel);
        let source = PodSource { ifindex: 1, addr: other_ip(24) };
        bed.put_prefix("pod_sources", 160, source, 1_u32);
        let source = PodSource { ifindex: 1, addr: other_ip(23) };
        bed.put_prefix("pod_sources", 160, source, 1_u32);
        // A Pod of another node, of which only the range is known.
        let bits = if v4 { 96 + 16 } else { 64 };
        bed.put_prefix("pod_ranges", bits, words(Addr::from_ip(addr(v4, 25, 0))), 1_u32);
        let pod = PodEntry {
            ip4: of(true, POD),
            ip6: of(false, POD),
            flags: PodFlags::MORE_SOURCES,
            ..PodEntry::ZERO
        };
        bed.put("pods", 1_u32, pod);
        let link_local: std::net::IpAddr =
            if v4 { "169.254.7.7".parse() } else { "fe80::7".parse() }.unwrap();
        let stand_in: std::net::IpAddr =
            if v4 { config::HAIRPIN4.into() } else { config::HAIRPIN6.into() };
        let source = |net| addr(v4, net, if net < 20 { 1 } else { 9 });
        let cases = [
            ("its own", source(POD), true, true),
            ("bound in it", source(20), true, true),
            // To a Pod, which is beyond the link.
            ("link-local", link_local, !v4, !v4),
            ("admitted", source(23), true, true),
            ("unknown", source(77), false, true),
            ("another Pod's", source(OTHER), false, false),
            ("a Pod's of another node", source(25), false, false),
            ("the node's", source(NODE), false, false),
            ("another node's tunnel's", source(24), false, false),
            ("a Service's", source(21), false, false),
            ("a load balancer's", source(22), false, false),
            ("the stand-in of hairpins", stand_in, false, false),
        ];
        for (policies, flags) in [
            (true, SettingFlags::STRICT_SOURCE),
            (true, SettingFlags::NONE),
            (false, SettingFlags::NONE),
        ] {
            bed.set("settings", 0, Settings { flags, ..Settings::ZERO });
            sample::epoch(&mut bed, u32::from(policies));
            let strict = policies && flags != SettingFlags::NONE;
            for (name, ip, always, lenient) in cases {
                let passes = if strict { always } else { lenient };
                let from = std::net::SocketAddr::new(ip, 4000);
                for kind in ["tcp S", "tcp A", "udp", "echo"] {
                    let outcome = bed.leave(&format!("{from} > {} {kind}", at(v4, PEER, 80)));
                    assert_eq!(outcome != "drop", passes, "{name} {kind}, strict: {strict}");
                    let counted = bed.reasons();
                    assert_eq!(counted == "SPOOFED_SOURCE/out+1", !passes, "{name}: {counted}");
                }
            }
        }
        if v4 {
            for (sender, passes) in [
                ([10, 1, 0, 1], true),
                ([0, 0, 0, 0], true),
                ([10, 20, 0, 9], true),
                ([10, 7, 0, 1], false),
                ([10, 3, 0, 1], false),
                ([10, 25, 0, 9], false),
            ] {
                let arp = packet::arp(sender, [10, 1, 0, 254]);
                let want = if passes { Verdict::Next } else { Verdict::Drop };
                assert_eq!(bed.leave_bytes(&arp).0, want, "ARP of {sender:?}");
                assert_eq!(bed.reasons() == "FORGED_NEIGHBOR/out+1", !passes);
            }
        }
    }
}

/// Link-layer addresses: of another Pod on the bridge, of this node, and an unknown one of the Pod.
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const VM_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];

/// A Pod on a bridge, or not, and whose the link-layer addresses are there; `at_home` is that known of the Pod itself.
fn on_bridge(v4: bool, bridged: bool, at_home: [u8; 6]) -> Bed {
    let mut bed = free(v4);
    let flags = PodFlags::BRIDGED.when(bridged);
    bed.put(
        "pods",
        1_u32,
        PodEntry { ip4: of(true, POD), ip6: of(false, POD), flags, ..PodEntry::ZERO },
    );
    for (mac, holder) in [(packet::POD_MAC, 1), (OTHER_MAC, ELSEWHERE), (NODE_MAC, 0_u32)] {
        bed.put("macs", mac_number(mac), holder);
    }
    let (index, element) = link(1, mac_number(at_home));
    bed.set("links", index, element);
    bed
}

/// The frame, from another link-layer address.
fn from_mac(frame: &[u8], mac: [u8; 6]) -> Vec<u8> {
    [&frame[..6], &mac, &frame[12..]].concat()
}

#[test]
fn no_frame_is_from_another_s_link_layer_address() {
    for v4 in [true, false] {
        // Whether the device is known to be where the address is at home, or it has to be looked up.
        for (bridged, at_home) in
            [(true, packet::POD_MAC), (true, OTHER_MAC), (true, [0; 6]), (false, [0; 6])]
        {
            // That an element of `links` says so is enough.
            let stolen = [OTHER_MAC, NODE_MAC];
            let stolen = stolen.into_iter().filter(|mac| bridged && *mac != at_home);
            let stolen: Vec<_> = stolen.collect();
            let mut bed = on_bridge(v4, bridged, at_home);
            let (pod, peer) = (at(v4, POD, 4000), at(v4, PEER, 80));
            let in_mid_flow = packet::build(&format!("{pod} > {peer} tcp A len=9"));
            bed.leave(&format!("{pod} > {peer} tcp S"));
            bed.enter(&format!("{peer} > {pod} tcp SA"));
            bed.leave_bytes(&in_mid_flow);
            bed.reasons();
            let service = at(v4, 96, 80);
            bed.service(&service, proto::TCP, &[&peer]);
            let udp = format!("{pod} > {} udp", at(v4, PEER, 53));
            let mut frames = vec![
                ("of an established flow", in_mid_flow),
                ("the first of a flow", packet::build(&udp)),
                ("to a Service", packet::build(&format!("{pod} > {service} tcp S"))),
                ("ping", packet::build(&format!("{pod} > {} echo", at(v4, PEER, 80)))),
                ("in pieces", fragment(v4, (POD, PEER), 64, false, &[0; 64])),
            ];
            if v4 {
                let address = [10, 1, 0, 1];
                frames.push(("ARP", packet::arp(address, [10, 1, 0, 254])));
            } else {
                frames.push(("solicitation", solicitation(&[])));
            }
            for (name, frame) in &frames {
                for mac in [packet::POD_MAC, OTHER_MAC, NODE_MAC, VM_MAC] {
                    let passes = !stolen.contains(&mac);
                    let (verdict, _) = bed.leave_bytes(&from_mac(frame, mac));
                    let what = format!("{name} from {mac:x?}, {bridged}, {at_home:x?}");
                    let want = if passes { Verdict::Next } else { Verdict::Drop };
                    assert_eq!(verdict, want, "{what}");
                    let counted = bed.reasons();
                    assert_eq!(counted == "SPOOFED_MAC/out+1", !passes, "{what}: {counted}");
                }
            }
        }
    }
}

/// A neighbor solicitation of the Pod for its gateway, with these options.
fn solicitation(options: &[u8]) -> Vec<u8> {
    let ip = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap();
    let eth = etherparse::PacketBuilder::ethernet2(packet::POD_MAC, packet::GATEWAY_MAC);
    let gateway = ip("fd00:1::fe");
    let mut frame = Vec::new();
    let payload = [&gateway.octets()[..], options].concat();
    eth.ipv6(ip("fd00:1::1").octets(), gateway.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut frame, &payload)
        .unwrap();
    frame
}

#[test]
fn no_pod_gives_another_s_link_layer_address_as_its_own() {
    let mut bed = on_bridge(true, true, packet::POD_MAC);
    let arp = |mac: [u8; 6]| {
        let mut arp = packet::arp([10, 1, 0, 1], [10, 1, 0, 254]);
        arp[22..28].copy_from_slice(&mac);
        arp
    };
    let options = |macs: &[(u8, [u8; 6])]| -> Vec<u8> {
        solicitation(
            &macs
                .iter()
                .flat_map(|(kind, mac)| [&[*kind, 1], &mac[..]].concat())
                .collect::<Vec<_>>(),
        )
    };
    let (own, other) = (packet::POD_MAC, OTHER_MAC);
    let nonce = [9; 6];
    let cases = [
        ("ARP", arp(own), true),
        ("ARP of a virtual machine", arp(VM_MAC), true),
        ("ARP in another's name", arp(other), false),
        ("ARP in the node's", arp(NODE_MAC), false),
        ("no option", options(&[]), true),
        ("its own address", options(&[(1, own)]), true),
        ("a virtual machine's, behind a nonce", options(&[(14, nonce), (1, VM_MAC)]), true),
        ("another's", options(&[(1, other)]), false),
        ("another's, behind a nonce", options(&[(14, nonce), (1, other)]), false),
        ("as the target's", options(&[(2, other)]), false),
        (
            "another's in the last option",
            options(&[(14, nonce); 5]).into_iter().chain([1, 1]).chain(other).collect(),
            false,
        ),
        ("more options than any host needs", options(&[(14, nonce); 7]), false),
        ("an option without length", solicitation(&[14, 0, 0, 0, 0, 0, 0, 0]), false),
        ("half an option", solicitation(&[1, 1, 2, 0]), false),
    ];
    for (name, frame, passes) in cases {
        let want = if passes { Verdict::Next } else { Verdict::Drop };
        assert_eq!(bed.leave_bytes(&frame).0, want, "{name}");
        assert_eq!(bed.reasons() == "FORGED_NEIGHBOR/out+1", !passes, "{name}");
    }
}

#[test]
fn nothing_answers_in_the_name_of_what_the_pod_dialed() {
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        let vip = at(v4, 96, 53);
        bed.service(&vip, proto::UDP, &[&at(v4, PEER, 53)]);
        assert_ne!(bed.leave(&format!("{} > {vip} udp", at(v4, POD, 4000))), "drop");
        let backend = at(v4, PEER, 53);
        bed.reasons();
        assert_eq!(
            bed.enter_from(ELSEWHERE, &format!("{vip} > {} udp", at(v4, POD, 4000))),
            "drop"
        );
        assert_eq!(bed.reasons(), "SPOOFED_SOURCE/in+1");
        let answer = bed.enter_from(ELSEWHERE, &format!("{backend} > {} udp", at(v4, POD, 4000)));
        assert_eq!(answer, format!("{vip} > {} udp", at(v4, POD, 4000)));
    }
}

#[test]
fn a_refusal_comes_back_to_whoever_sent_what_is_refused() {
    const POD_DEVICE: u32 = 1;
    for v4 in [true, false] {
        let mut bed = Bed::new();
        SamplePolicy::new(INGRESS).put(&mut bed);
        sample::pod(&mut bed, v4);
        let ingress = INGRESS.group();
        let pod = PodEntry { ip4: of(true, POD), ip6: of(false, POD), ingress, ..PodEntry::ZERO };
        bed.put("pods", 1_u32, pod);
        sample::epoch(&mut bed, 1);
        let (tcp, udp) = (at(v4, 96, 80), at(v4, 96, 53));
        bed.service(&tcp, proto::TCP, &[]);
        bed.service(&udp, proto::UDP, &[]);
        for (vip, kind) in [(&tcp, "tcp S"), (&udp, "udp")] {
            let sent = packet::build(&format!("{} > {vip} {kind}", at(v4, POD, 4000)));
            let (verdict, refusal) = bed.leave_bytes(&sent);
            assert_eq!(verdict, Verdict::Redirect, "{kind}");
            assert_eq!(bed.enter_bytes_from(POD_DEVICE, &refusal), Verdict::Next, "{kind}");
            assert_eq!(
                bed.enter_bytes_from(ELSEWHERE, &refusal),
                Verdict::Drop,
                "{kind} of another"
            );
        }
        // The backend of an open connection has gone.
        let ids = bed.service(&tcp, proto::TCP, &[&at(v4, PEER, 8080)]);
        assert_ne!(bed.leave(&format!("{} > {tcp} tcp S", at(v4, POD, 4001))), "drop");
        bed.set_state(ids[0], lb_common::service::state::DEAD);
        let sent = packet::build(&format!("{} > {tcp} tcp A", at(v4, POD, 4001)));
        let (verdict, refusal) = bed.leave_bytes(&sent);
        assert_eq!(verdict, Verdict::Redirect);
        assert_eq!(bed.enter_bytes_from(POD_DEVICE, &refusal), Verdict::Next);
    }
}

#[test]
fn what_is_for_another_pod_does_not_enter() {
    for v4 in [true, false] {
        let mut bed = free(v4);
        for (net, passes, entries) in
            [(POD, true, 1), (OTHER, false, 0), (NODE, false, 0), (77, true, 0)]
        {
            let outcome = bed
                .enter_from(ELSEWHERE, &format!("{} > {} udp", at(v4, PEER, 9), at(v4, net, 80)));
            assert_eq!(outcome != "drop", passes, "{net}");
            assert_eq!(bed.reasons() == "NOT_FOR_POD/in+1", !passes, "{net}");
            assert_eq!(bed.conntrack().len(), entries, "{net}");
            for (key, _) in bed.conntrack() {
                bed.forget(key);
            }
        }
    }
}

#[test]
fn tunnels_to_the_node_are_not_for_pods() {
    for v4 in [true, false] {
        let mut bed = free(v4);
        let mut settings = Settings { n_tunnel_ports: 2, ..Settings::ZERO };
        settings.tunnel_ports[0] = Be16::new(8472);
        settings.tunnel_ports[1] = Be16::new(4789);
        bed.set("settings", 0, settings);
        let node2 = Ident { flags: IdentFlags::NODE, ..Ident::ZERO };
        bed.put("ident", words(of(v4, 4)), node2);
        for (net, port, passes) in
            [(NODE, 8472, false), (4, 4789, false), (NODE, 53, true), (77, 8472, true)]
        {
            let outcome = bed.leave(&format!("{} > {} udp", at(v4, POD, 9), at(v4, net, port)));
            assert_eq!(outcome != "drop", passes, "{net} {port}");
            assert_eq!(bed.reasons() == "ENCAPSULATED/out+1", !passes);
        }
        for protocol in [4, 41, 47, 97, 137] {
            for (net, passes) in [(NODE, false), (4, false), (77, true)] {
                let frame = of_protocol(v4, (POD, net), protocol);
                let want = if passes { Verdict::Next } else { Verdict::Drop };
                assert_eq!(bed.leave_bytes(&frame).0, want, "{protocol} to {net}");
                assert_eq!(bed.reasons() == "ENCAPSULATED/out+1", !passes);
            }
        }
    }
}

#[test]
fn errors_are_about_what_they_answer() {
    for v4 in [true, false] {
        let mut bed = isolated(v4);
        let (pod, peer) = (at(v4, POD, 4000), at(v4, PEER, 80));
        assert_ne!(bed.leave(&format!("{pod} > {peer} udp")), "drop");
        assert_ne!(bed.enter_from(ELSEWHERE, &format!("{peer} > {pod} udp")), "drop");
        bed.reasons();
        let (got, sent) = (format!("{peer} > {pod} udp"), format!("{pod} > {peer} udp"));
        let (pod_ip, peer_ip, other_ip) = (addr(v4, POD, 1), addr(v4, PEER, 1), addr(v4, OTHER, 1));
        let router = addr(v4, 99, 1);
        let vip = Addr::from_ip(addr(v4, 96, 1));
        bed.put("frontends", FrontendKey::wildcard(vip), Frontend::ZERO);
        let error = |src, dst, inner: &str| packet::too_big(src, dst, inner);
        let longer = |mut frame: Vec<u8>| {
            frame.extend(vec![0; 1400]);
            frame
        };
        // Out of the Pod.
        assert_eq!(bed.leave_bytes(&error(pod_ip, peer_ip, &got)).0, Verdict::Next);
        assert_eq!(bed.reasons(), "");
        let leaves = [
            ("to another", error(pod_ip, other_ip, &got), "FORGED_ERROR/out+1"),
            ("from another", error(other_ip, peer_ip, &got), "SPOOFED_SOURCE/out+1"),
            (
                "about a flow that is unknown",
                error(pod_ip, other_ip, &got.replace(&peer, &at(v4, OTHER, 80))),
                "POLICY_ISOLATED/out+1",
            ),
            (
                "about a packet that another received",
                error(pod_ip, peer_ip, &got.replace(&pod, &at(v4, OTHER, 4000))),
                "FORGED_ERROR/out+1",
            ),
            (
                "about a packet to a Service",
                error(pod_ip, peer_ip, &got.replace(&pod, &at(v4, 96, 80))),
                "FORGED_ERROR/out+1",
            ),
            ("too long", longer(error(pod_ip, peer_ip, &got)), "FORGED_ERROR/out+1"),
        ];
        for (name, frame, counted) in leaves {
            assert_eq!(bed.leave_bytes(&frame).0, Verdict::Drop, "{name}");
            assert_eq!(bed.reasons(), counted, "{name}");
        }
        // Into it.
        for from in [peer_ip, router] {
            let frame = error(from, pod_ip, &sent);
            assert_eq!(bed.enter_bytes_from(ELSEWHERE, &frame), Verdict::Next, "of {from}");
        }
        let enters = [
            ("of another Pod", error(other_ip, pod_ip, &sent), "FORGED_ERROR/in+1"),
            ("too long", longer(error(router, pod_ip, &sent)), "POLICY_ISOLATED/in+1"),
        ];
        for (name, frame, counted) in enters {
            assert_eq!(bed.enter_bytes_from(ELSEWHERE, &frame), Verdict::Drop, "{name}");
            assert_eq!(bed.reasons(), counted, "{name}");
        }
        // Of a Pod about flows of another that no policy concerns.
        let mut free = free(v4);
        let vip = at(v4, 96, 80);
        free.service(&vip, proto::UDP, &[&peer]);
        assert_ne!(free.leave(&format!("{pod} > {vip} udp")), "drop");
        free.reasons();
        for about in [format!("{pod} > {vip} udp"), format!("{pod} > {} udp", at(v4, 77, 9))] {
            let frame = error(other_ip, pod_ip, &about);
            assert_eq!(free.enter_bytes_from(ELSEWHERE, &frame), Verdict::Drop, "{about}");
            assert_eq!(free.reasons(), "FORGED_ERROR/in+1", "{about}");
        }
        let frame = error(peer_ip, pod_ip, &sent);
        assert_eq!(free.enter_bytes_from(ELSEWHERE, &frame), Verdict::Next, "of the backend");
    }
}

#[test]
fn a_pod_that_floods_uses_up_its_own_budget() {
    for v4 in [true, false] {
        let mut bed = Bed::with_budget(2);
        let pod = PodEntry { ip4: of(true, POD), ip6: of(false, POD), id: 7, ..PodEntry::ZERO };
        bed.put("pods", 1_u32, pod);
        let vip = at(v4, 96, 80);
        bed.service(&vip, proto::TCP, &[&at(v4, PEER, 8080)]);
        // Five seconds' worth at once.
        let open =
            |bed: &Bed, port: u16| bed.leave(&format!("{} > {vip} tcp S", at(v4, POD, port)));
        let opened = (0..40).filter(|i| open(&bed, 4000 + i) != "drop").count();
        assert!((10..=12).contains(&opened), "{opened}");
        let dropped =
            format!("POD_BUDGET/out+{0} flow_service+{opened} over_budget+{0}", 40 - opened);
        assert_eq!(bed.reasons(), dropped);
        // What was opened goes on.
        assert_ne!(bed.leave(&format!("{} > {vip} tcp A", at(v4, POD, 4000))), "drop");
        // A packet that no later one depends on leaves no entry.
        let entries = bed.conntrack().len();
        for i in 0..5 {
            bed.leave(&format!("{} > {} udp", at(v4, POD, 5000 + i), at(v4, PEER, 9)));
        }
        assert!(bed.conntrack().len() <= entries + 1);
        // What enters is counted by itself, and the node is always let in.
        for i in 0..40 {
            let outcome =
                bed.enter(&format!("{} > {} tcp S", at(v4, PEER, 6000 + i), at(v4, POD, 22)));
            assert_ne!(outcome, "drop", "this host's");
        }
        SamplePolicy::new(INGRESS).allow_all(PEER).put(&mut bed);
        let ingress = INGRESS.group();
        bed.put("pods", 1_u32, PodEntry { ingress, ..pod });
        sample::idents(&mut bed, v4);
        sample::epoch(&mut bed, 1);
        let enter = |bed: &Bed, port: u16| {
            let syn = format!("{} > {} tcp S", at(v4, PEER, port), at(v4, POD, 22));
            bed.enter_from(ELSEWHERE, &syn) != "drop"
        };
        let entered = (0..40).filter(|i| enter(&bed, 7000 + i)).count();
        assert!((10..=12).contains(&entered), "{entered}");
    }
}
