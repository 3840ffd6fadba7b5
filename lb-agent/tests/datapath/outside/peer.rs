//! Packets of clients outside that go from the device that they come in by to the Pod's end of its veth: that device's hook is
//! the Pod's, too.

use lb_common::config::{SettingFlags, Settings};
use lb_common::conntrack::CtFlags;
use lb_common::endpoint::{Ident, IdentFlags, PodEntry};
use lb_common::flow::proto;
use lb_common::past::{LocalEnd, LocalFlags};
use lb_testkit::bed::{Bed, Verdict, outcome, protocol};
use lb_testkit::node::{Addrs, FAMILIES, Way};
use lb_testkit::objects::addr;
use lb_testkit::packet;
use lb_testkit::sample::{self, INGRESS, SamplePolicy};

use super::ttl;
use crate::hop::{LINK, key_of};

/// Number of the Pod.
const POD: u32 = 1;
/// Identity of the client.
const CLIENT: u8 = 2;
/// Its group after a change.
const CHANGED: u32 = 22;
const PEER: LocalFlags = LocalFlags::PAST_OK.with(LocalFlags::PEER_OK);

/// ifindex of the host's end of the Pod's veth, where the route to it leads.
fn veth() -> u32 {
    nix::net::if_::if_nametoindex("pod0").unwrap()
}

fn set(bed: &mut Bed, on: bool, flags: LocalFlags) {
    let before: Settings = bed.at("settings", 0);
    bed.set("settings", 0, Settings { flags: SettingFlags::HOP_PAST.when(on), ..before });
    let end =
        LocalEnd { ifindex: veth(), generation: 3, link: LINK, mtu: 1500, flags, ..LocalEnd::ZERO };
    bed.set("locals", POD, end);
}

/// A node whose Pod takes packets past the host's end of its veth.
fn bed() -> Bed {
    let mut bed = Bed::node();
    set(&mut bed, true, PEER);
    for family in &FAMILIES {
        let flags = IdentFlags::POD | IdentFlags::HERE;
        bed.put("ident", key_of(family.pod), Ident { flags, ifindex: veth(), ..Ident::ZERO });
        bed.put("ident", key_of(family.client), Ident { ident: CLIENT.into(), ..Ident::ZERO });
    }
    group(&mut bed, INGRESS.group());
    bed
}

/// The Pod has this group for what enters it.
fn group(bed: &mut Bed, ingress: u32) {
    let [v4, v6] = &FAMILIES;
    let (ip4, ip6) = (addr(v4.pod), addr(v6.pod));
    bed.put("pods", veth(), PodEntry { ip4, ip6, id: POD, ingress, ..PodEntry::ZERO });
}

/// A frontend of this Pod at a node port: what the client sends to it, and what the Pod is to get.
fn serve(bed: &mut Bed, family: &Addrs, name: &str, flags: &str) -> [String; 2] {
    let client = family.at(family.client, 4000);
    let (frontend, pod) = (family.at(family.node, 30080), family.at(family.pod, 8080));
    let id = bed.backend(&pod, protocol(name));
    bed.outside(&frontend, protocol(name), &[id], &Way::default());
    [frontend, pod].map(|to| format!("{client} > {to} {name}{flags}"))
}

/// The link-layer addresses of a frame.
fn link(frame: &[u8]) -> [[u8; 6]; 2] {
    [0, 6].map(|at| frame[at..at + 6].try_into().unwrap())
}

#[test]
fn a_clients_packets_go_to_the_pods_end() {
    for family in &FAMILIES {
        for (name, flags) in [("tcp", " S seq=1 ack=0 len=0"), ("udp", "")] {
            let mut bed = bed();
            let [sent, got] = serve(&mut bed, family, name, flags);
            let (verdict, out) = bed.run("dev_in", &packet::build(&sent));
            assert_eq!(outcome(verdict, &out), format!("redirect {got}"));
            assert_eq!((link(&out), ttl(&out)), (LINK, 63), "addressed to the Pod by a router");
            assert_eq!(bed.counted(), "flow_external+1");
            let [seen] = bed
                .conntrack()
                .into_iter()
                .filter(|(key, _)| u32::from(key.veth) == veth())
                .collect::<Vec<_>>()
                .try_into()
                .unwrap();
            let (_, reply) = seen;
            assert!(
                reply.flags.contains(CtFlags::EXTERNAL | CtFlags::SEEN_IN),
                "{:?}",
                reply.flags
            );
        }
    }
}

#[test]
fn it_goes_to_the_hosts_end_where_something_must_see_it() {
    for family in &FAMILIES {
        for (name, on, flags) in [
            ("the Pod's device has a queueing discipline", true, LocalFlags::PAST_OK),
            ("flows go through the stack", false, PEER),
        ] {
            let mut bed = bed();
            set(&mut bed, on, flags);
            let [sent, got] = serve(&mut bed, family, "udp", "");
            let (verdict, out) = bed.run("dev_in", &packet::build(&sent));
            assert_eq!(outcome(verdict, &out), format!("redirect {got}"), "{name}");
            assert_ne!(link(&out), LINK, "{name}: the kernel addresses it");
        }
        let mut bed = bed();
        let other =
            PodEntry { ip4: addr("10.1.0.7"), ip6: addr("fd00:1::7"), id: POD, ..PodEntry::ZERO };
        bed.put("pods", veth(), other);
        let [sent, _] = serve(&mut bed, family, "udp", "");
        let (_, out) = bed.run("dev_in", &packet::build(&sent));
        assert_ne!(link(&out), LINK, "the device is another Pod's");
    }
}

#[test]
fn the_pods_policies_are_asked_and_counted_as_its_own() {
    for family in &FAMILIES {
        for (port, allowed) in [(8080, true), (8081, false)] {
            let mut bed = bed();
            SamplePolicy::new(INGRESS).allow(CLIENT, proto::TCP, port).put(&mut bed);
            sample::epoch(&mut bed, 1);
            let [sent, _] = serve(&mut bed, family, "tcp", " S seq=1 ack=0 len=0");
            bed.event_devices();
            let (verdict, _) = bed.run("dev_in", &packet::build(&sent));
            assert_eq!(verdict == Verdict::Drop, !allowed, "{verdict:?}");
            assert_eq!(bed.counted().contains("POLICY_ISOLATED/in+1"), !allowed);
            let want: &[u32] = if allowed { &[] } else { &[veth()] };
            assert_eq!(bed.event_devices(), want, "the Pod's device");
        }
    }
}

/// A change of the policies reaches an open connection at its next packet.
#[test]
fn a_change_of_policies_stops_a_connection() {
    for family in &FAMILIES {
        let mut bed = bed();
        SamplePolicy::new(INGRESS).allow(CLIENT, proto::TCP, 8080).put(&mut bed);
        sample::epoch(&mut bed, 1);
        let [syn, _] = serve(&mut bed, family, "tcp", " S seq=1 ack=0 len=0");
        let ack = syn.replace(" S seq=1 ack=0", " A seq=2 ack=8");
        let run = |bed: &Bed, text: &str| bed.run("dev_in", &packet::build(text)).0;
        assert_eq!(run(&bed, &syn), Verdict::Redirect);
        assert_eq!(run(&bed, &ack), Verdict::Redirect);
        SamplePolicy::new(INGRESS).allow(CLIENT, proto::TCP, 8081).put_as(&mut bed, CHANGED);
        group(&mut bed, CHANGED);
        sample::epoch(&mut bed, 2);
        assert_eq!(run(&bed, &ack), Verdict::Drop);
    }
}
