//! The two entries of a translated connection: one that could not be written, what its last packets leave in the table, and what
//! that means for the next connection with the same ends.

use std::net::SocketAddr;

use lb_common::config::Settings;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey};
use lb_common::flow::proto;
use lb_testkit::bed::Bed;
use lb_testkit::node::{FAMILIES, Way};

use super::outside::source;

/// Who sends, and the TCP segment.
type Segment = (Side, &'static str);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}
use Side::{Client, Server};

const OPEN: [Segment; 3] =
    [(Client, "S seq=1"), (Server, "SA seq=100 ack=2"), (Client, "A seq=2 ack=101")];

/// What follows the handshake, and how many entries are left of two.
const ENDINGS: [(&str, &[Segment], usize); 11] = [
    ("it lives", &[(Client, "FA seq=2 ack=101"), (Server, "A seq=101 ack=3")], 2),
    (
        "the last acknowledgement is to come",
        &[(Client, "FA seq=2 ack=101"), (Server, "FA seq=101 ack=3")],
        2,
    ),
    (
        "all is acknowledged",
        &[(Client, "FA seq=2 ack=101"), (Server, "FA seq=101 ack=3"), (Client, "A seq=3 ack=102")],
        0,
    ),
    (
        "one after the other, with data on the way",
        &[
            (Client, "FA seq=2 ack=101 len=7"),
            (Server, "A seq=101 ack=10 len=20"),
            (Client, "A seq=10 ack=121"),
            (Server, "FA seq=121 ack=10 len=4"),
            (Client, "A seq=10 ack=126"),
        ],
        0,
    ),
    (
        "sent again",
        &[
            (Client, "FA seq=2 ack=101"),
            (Client, "FA seq=2 ack=101"),
            (Server, "FA seq=101 ack=3"),
            (Server, "FA seq=101 ack=3"),
            (Client, "A seq=3 ack=102"),
        ],
        0,
    ),
    (
        "the client's end did not arrive",
        &[(Client, "FA seq=2 ack=101"), (Server, "FA seq=101 ack=2"), (Client, "A seq=3 ack=102")],
        2,
    ),
    (
        "of the server's last bytes some did not arrive",
        &[
            (Client, "FA seq=2 ack=101"),
            (Server, "FA seq=101 ack=3 len=9"),
            (Client, "A seq=3 ack=105"),
        ],
        2,
    ),
    (
        "until they have",
        &[
            (Client, "FA seq=2 ack=101"),
            (Server, "FA seq=101 ack=3 len=9"),
            (Client, "A seq=3 ack=105"),
            (Client, "A seq=3 ack=111"),
        ],
        0,
    ),
    (
        "the server was the first",
        &[(Server, "FA seq=101 ack=2"), (Client, "FA seq=2 ack=102"), (Server, "A seq=102 ack=3")],
        2,
    ),
    (
        "an end in the server's name",
        &[(Client, "FA seq=2 ack=101"), (Server, "FA seq=999 ack=77"), (Client, "A seq=3 ack=101")],
        2,
    ),
    ("reset", &[(Client, "FA seq=2 ack=101"), (Server, "R seq=101")], 2),
];

/// Of [`ENDINGS`].
const ALL_ACKNOWLEDGED: usize = 2;
/// The same.
const SERVER_FIRST: usize = 8;

/// The beginning of the packets of either side, as they reach the programs.
struct Ends {
    request: String,
    answer: String,
}

type Path = (&'static str, fn(&mut Bed, &lb_testkit::node::Addrs) -> Ends, Says);
/// A packet of the client, or one of the server, reaches the programs.
type Says = fn(&Bed, Side, &str);

const PATHS: [Path; 4] = [
    (
        "a Pod to a Service",
        |bed, family| {
            let (pod, vip) = (family.at(family.pod, 4000), family.at(family.lb, 80));
            let backend = family.at(family.far_pod, 8080);
            bed.service(&vip, proto::TCP, &[&backend]);
            Ends { request: format!("{pod} > {vip} tcp"), answer: format!("{backend} > {pod} tcp") }
        },
        |bed, side, text| {
            let told = if side == Client { bed.leave(text) } else { bed.enter(text) };
            assert_ne!(told, "drop", "{text}");
        },
    ),
    (
        "from outside to a Pod of this node",
        |bed, family| {
            let (client, vip) = (family.at(family.client, 4000), family.at(family.lb, 81));
            let pod = family.at(family.pod, 8080);
            let id = bed.backend(&pod, proto::TCP);
            bed.outside(&vip, proto::TCP, &[id], &Way::default());
            Ends {
                request: format!("{client} > {vip} tcp"),
                answer: format!("{pod} > {client} tcp"),
            }
        },
        |bed, side, text| {
            if side == Server {
                assert_ne!(bed.leave(text), "drop", "{text}");
                return;
            }
            let told = bed.arrive(text);
            let onward = told.strip_prefix("redirect ").unwrap_or_else(|| panic!("{told}"));
            // The Pod's device may come to know of the end before it sees the last packet.
            bed.enter_from(9, onward);
        },
    ),
    (
        "from outside to a process of this host",
        |bed, family| {
            let (client, vip) = (family.at(family.client, 4000), family.at(family.lb, 82));
            let host = family.at(family.node, 6443);
            let id = bed.backend(&host, proto::TCP);
            bed.outside(&vip, proto::TCP, &[id], &Way::default());
            bed.add_port("host_ports", 6443);
            Ends {
                request: format!("{client} > {vip} tcp"),
                answer: format!("{host} > {client} tcp"),
            }
        },
        |bed, side, text| {
            let told = if side == Client { bed.arrive(text) } else { bed.depart(text) };
            assert_ne!(told, "drop", "{text}");
        },
    ),
    (
        "from outside to a Pod of another node",
        |bed, family| {
            let (client, vip) = (family.at(family.client, 4000), family.at(family.lb, 83));
            let pod = family.at(family.far_pod, 8080);
            let id = bed.backend(&pod, proto::TCP);
            bed.outside(&vip, proto::TCP, &[id], &Way::default());
            Ends { request: format!("{client} > {vip} tcp"), answer: format!("{pod} > {NODE} tcp") }
        },
        |bed, side, text| {
            let text = match side {
                Client => text.to_owned(),
                Server => text.replace(NODE, &masqueraded(bed)),
            };
            let told = bed.arrive(&text);
            assert!(told.starts_with("redirect "), "{text}: {told}");
        },
    ),
];

/// Stands for the source of a masqueraded flow, whose port is known when it was opened.
const NODE: &str = "NODE";

/// The source of the one masqueraded flow, as its backend sees it.
fn masqueraded(bed: &Bed) -> String {
    let copies = bed.all::<CtKey, CtEntry>("kept");
    let entries = copies.into_iter().chain(bed.conntrack());
    let (key, _) = entries.max_by_key(|(_, entry)| entry.flags.contains(CtFlags::REPLY)).unwrap();
    SocketAddr::new(key.remote.to_ip(), key.remote_port.get()).to_string()
}

fn say(bed: &Bed, ends: &Ends, says: Says, segments: &[Segment]) {
    for (side, segment) in segments {
        let text = if *side == Client { &ends.request } else { &ends.answer };
        says(bed, *side, &format!("{text} {segment}"));
    }
}

/// As in the time after the agent's start. A hook that knew nothing of a packet's connection would make an entry of it.
fn take_up_flows(bed: &mut Bed) {
    let pickup_until = bed.stamp().wrapping_add(100);
    let settings: Settings = bed.at("settings", 0);
    bed.set("settings", 0, Settings { pickup_until, ..settings });
}

#[test]
fn a_translated_connection_goes_with_its_last_packet_and_not_before() {
    for family in &FAMILIES {
        for (path, ends, says) in PATHS {
            for (name, segments, left) in ENDINGS {
                let mut bed = Bed::node();
                take_up_flows(&mut bed);
                let ends = ends(&mut bed, family);
                say(&bed, &ends, says, &OPEN);
                assert_eq!(bed.conntrack().len(), 2, "{path}, {name}");
                bed.counted();
                say(&bed, &ends, says, segments);
                assert_eq!(bed.conntrack().len(), left, "{path}, {name}");
                let counted = bed.counted();
                assert_eq!(
                    counted.contains("pair_closed+1"),
                    left == 0,
                    "{path}, {name}: {counted}"
                );
                // The copies of living connections went before.
                if left == 0 {
                    assert!(!bed.used_maps().iter().any(|map| map == "kept"), "{path}, {name}");
                }
            }
        }
    }
}

#[test]
fn the_same_ends_connect_again_and_again() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        let (_, ends, says) = PATHS[0];
        let ends = ends(&mut bed, family);
        for ending in [ALL_ACKNOWLEDGED, SERVER_FIRST] {
            for _ in 0..3 {
                say(&bed, &ends, says, &OPEN);
                say(&bed, &ends, says, ENDINGS[ending].1);
            }
        }
        assert_eq!(bed.conntrack().len(), 2);
        // The server was the first to leave, and remembers the Pod's port. The Pod's kernel knows what it does when it dials
        // the same destination from there.
        let shown = bed.leave(&format!("{} S seq=9", ends.request));
        assert_eq!(source(&shown).to_string(), family.at(family.pod, 4000));
    }
}

#[test]
fn a_port_that_the_far_end_remembers_is_not_used_for_another_destination() {
    for family in &FAMILIES {
        let (pod, backend) = (family.at(family.pod, 4000), family.at(family.far_pod, 8080));
        let (vip, other) = (family.at(family.lb, 80), family.at(family.lb, 81));
        let destinations = [&vip, &other, &backend];
        for first in destinations {
            for second in destinations {
                for server_first in [true, false] {
                    let mut bed = Bed::node();
                    bed.service(&vip, proto::TCP, &[&backend]);
                    bed.service(&other, proto::TCP, &[&backend]);
                    let ends = Ends {
                        request: format!("{pod} > {first} tcp"),
                        answer: format!("{backend} > {pod} tcp"),
                    };
                    let (_, _, says) = PATHS[0];
                    say(&bed, &ends, says, &OPEN);
                    say(
                        &bed,
                        &ends,
                        says,
                        ENDINGS[if server_first { SERVER_FIRST } else { ALL_ACKNOWLEDGED }].1,
                    );
                    let shown = bed.leave(&format!("{pod} > {second} tcp S seq=9"));
                    assert!(shown.contains(&format!("> {backend} tcp S")), "{shown}");
                    let kept = source(&shown).to_string() == pod;
                    let name = format!("{first}, then {second}, server first: {server_first}");
                    assert_eq!(kept, !server_first || first == second, "{name}");
                    // Its answer finds the way back.
                    let answer = format!("{backend} > {} tcp SA seq=300 ack=10", source(&shown));
                    let back = bed.enter(&answer);
                    assert!(
                        back.starts_with(&format!("{second} > {pod} tcp SA")),
                        "{name}: {back}"
                    );
                    // In time the far end forgets them.
                    bed.age(80);
                    let third = bed.leave(&format!("{pod} > {other} tcp S seq=9"));
                    assert_eq!(source(&third).to_string(), pod, "{name}");
                }
            }
        }
    }
}

#[test]
fn the_first_answer_makes_the_entry_that_could_not_be_written() {
    for family in &FAMILIES {
        for (path, ends, says) in PATHS {
            let mut bed = Bed::node();
            let ends = ends(&mut bed, family);
            say(&bed, &ends, says, &OPEN[..1]);
            let forward = |bed: &Bed| {
                let mut entries = bed.conntrack().into_iter();
                entries.find(|(_, entry)| entry.flags.contains(CtFlags::FORWARD))
            };
            let (key, written) = forward(&bed).unwrap();
            bed.forget(key);
            bed.counted();
            say(&bed, &ends, says, &OPEN[1..2]);
            assert_eq!(bed.counted(), "entry_restored+1", "{path}");
            let (again, entry) = forward(&bed).unwrap();
            assert_eq!(again, key, "{path}");
            // The routing table is asked at the next packet.
            let CtEntry { flags, last_seen, way, .. } = written;
            assert_eq!(CtEntry { flags, last_seen, way, ..entry }, written, "{path}");
            assert!(entry.flags.contains(written.flags), "{path}: {entry:?}");
            say(&bed, &ends, says, &OPEN[2..]);
            say(&bed, &ends, says, ENDINGS[ALL_ACKNOWLEDGED].1);
            assert_eq!(bed.counted(), "pair_closed+1", "{path}");
            assert!(bed.conntrack().is_empty(), "{path}");
        }
    }
}

/// A loss of one half of a flow: after how many segments of [`OPEN`], and how.
type Loss = (&'static str, usize, fn(&mut Bed, CtFlags), CtFlags);

/// How one entry of two gets lost, or a copy of it: evicted, or removed on one side only.
const LOSSES: [Loss; 5] = [
    ("the reply entry, before an answer", 1, lose_entry, CtFlags::REPLY),
    ("both, and the copy of the forward entry", 3, lose_but_one_copy, CtFlags::FORWARD),
    ("both, and the copy of the reply entry", 3, lose_but_one_copy, CtFlags::REPLY),
    ("the reply entry, and both copies", 3, lose_entry, CtFlags::REPLY),
    ("the reply entry", 3, lose_only_entry, CtFlags::REPLY),
];

fn lose_only_entry(bed: &mut Bed, half: CtFlags) {
    for (key, entry) in bed.conntrack() {
        if entry.flags.contains(half) {
            bed.remove::<CtKey, CtEntry>("ct", key);
        }
    }
}

fn lose_entry(bed: &mut Bed, half: CtFlags) {
    lose_only_entry(bed, half);
    for (key, _) in bed.all::<CtKey, CtEntry>("kept") {
        bed.remove::<CtKey, CtEntry>("kept", key);
    }
}

fn lose_but_one_copy(bed: &mut Bed, half: CtFlags) {
    lose_only_entry(bed, CtFlags::NONE);
    let copies = bed.all::<CtKey, CtEntry>("kept");
    assert_eq!(copies.len(), 2);
    for (key, copy) in copies {
        if copy.flags.contains(half) {
            bed.remove::<CtKey, CtEntry>("kept", key);
        }
    }
}

#[test]
fn half_a_connection_is_none() {
    for family in &FAMILIES {
        for (path, ends, says) in PATHS {
            for (what, begun, lose, half) in LOSSES {
                let mut bed = Bed::node();
                let ends = ends(&mut bed, family);
                say(&bed, &ends, says, &OPEN[..begun]);
                lose(&mut bed, half);
                // The client dials again, from the same port.
                say(&bed, &ends, says, &OPEN);
                let flags: Vec<CtFlags> =
                    bed.conntrack().iter().map(|(_, entry)| entry.flags).collect();
                for half in [CtFlags::FORWARD, CtFlags::REPLY] {
                    let n = flags.iter().filter(|flags| flags.contains(half)).count();
                    assert_eq!(n, 1, "{path}, lost: {what}: {flags:?}");
                }
            }
        }
    }
}
