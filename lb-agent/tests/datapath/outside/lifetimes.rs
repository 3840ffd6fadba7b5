//! How long a silent connection is remembered, on every path: what the programs note of its packets, judged as the pass
//! over the table judges it (kube-proxy: `tcpEstablishedTimeout` 24 h, `tcpCloseWaitTimeout` 1 h).

use lb_common::conntrack::timeout_secs;
use lb_common::flow::proto;

use super::{flows, source};
use lb_testkit::bed::Bed;
use lb_testkit::node::{Addrs, FAMILIES, Way};

const DAY: u32 = 24 * 3600;
const HOUR: u32 = 3600;
/// Over, and a last retransmission may come.
const OVER: u32 = 70;

/// One side sends a TCP segment with these flags, and it goes all the way.
type Say = Box<dyn Fn(&Bed, &str)>;

/// Who sends what, as each program sees it: the side that opens the connection, then the other.
type Sides = (Say, Say);

/// A way of a connection over this node.
type Path = (&'static str, fn(&mut Bed, &Addrs) -> Sides);

const PATHS: [Path; 9] = [
    ("plain, leaves a Pod", |_, family| {
        let (leaves, enters) = ends(family.at(family.pod, 4000), family.at(family.client, 443));
        (said(Bed::leave, leaves), said(Bed::enter, enters))
    }),
    ("plain, enters a Pod", |_, family| {
        let (leaves, enters) = ends(family.at(family.pod, 8080), family.at(family.client, 4000));
        let enter = |bed: &Bed, text: &str| bed.enter_from(9, text);
        (said(enter, enters), said(Bed::leave, leaves))
    }),
    ("a process of the host, whose socket was translated, to a Pod", |_, family| {
        let (leaves, enters) = ends(family.at(family.pod, 8080), family.at(family.node, 4000));
        (said(Bed::enter, enters), said(Bed::leave, leaves))
    }),
    ("a Pod to a Service", |bed, family| {
        let (pod, vip) = (family.at(family.pod, 4000), family.at(family.lb, 80));
        let backend = family.at(family.far_pod, 8080);
        bed.service(&vip, proto::TCP, &[&backend]);
        let (dials, _) = ends(pod.clone(), vip);
        let (_, answers) = ends(pod, backend);
        (said(Bed::leave, dials), said(Bed::enter, answers))
    }),
    ("a Pod to itself", |bed, family| {
        let (pod, vip) = (family.at(family.pod, 4000), family.at(family.lb, 81));
        let own = family.at(family.pod, 8080);
        bed.service(&vip, proto::TCP, &[&own]);
        let (dials, _) = ends(pod, vip);
        let stand_in = source(&back(bed, &format!("{dials} S seq=1"))).to_string();
        let (answers, _) = ends(own, stand_in);
        (said(back, dials), said(back, answers))
    }),
    ("a Pod straight to a backend that it also has through a Service", |bed, family| {
        let (pod, vip) = (family.at(family.pod, 4000), family.at(family.lb, 82));
        let backend = family.at(family.far_pod, 8082);
        bed.service(&vip, proto::TCP, &[&backend]);
        let (dials, _) = ends(pod.clone(), vip);
        bed.leave(&format!("{dials} S seq=1"));
        let (straight, answers) = ends(pod.clone(), backend.clone());
        let mapped = source(&bed.leave(&format!("{straight} S seq=1"))).to_string();
        assert_ne!(mapped, pod, "the other connection has the port");
        let (_, answers_straight) = ends(mapped, backend);
        let both = |say: fn(&Bed, &str) -> String, texts: [String; 2]| -> Say {
            Box::new(move |bed, flags| {
                for text in &texts {
                    say(bed, &format!("{text} {flags}"));
                }
            })
        };
        (both(Bed::leave, [dials, straight]), both(Bed::enter, [answers, answers_straight]))
    }),
    ("from outside to a Pod of this node", |bed, family| {
        let (client, pod) = (family.at(family.client, 4000), family.at(family.pod, 8083));
        let (request, _) = ends(client.clone(), exposed(bed, family, 83, &pod));
        let arrives = |bed: &Bed, text: &str| {
            let outcome = bed.arrive(text);
            bed.enter_from(9, outcome.strip_prefix("redirect ").unwrap())
        };
        let (answer, _) = ends(pod, client);
        (said(arrives, request), said(Bed::leave, answer))
    }),
    ("from outside to another node", |bed, family| {
        let far = family.at(family.far_pod, 8084);
        let frontend = exposed(bed, family, 84, &far);
        let (request, _) = ends(family.at(family.client, 4000), frontend);
        let seen = source(&bed.arrive(&format!("{request} S seq=1"))).to_string();
        let (answer, _) = ends(far, seen);
        (said(Bed::arrive, request), said(Bed::arrive, answer))
    }),
    ("from outside to a process of this host", |bed, family| {
        let (client, host) = (family.at(family.client, 4000), family.at(family.node, 6443));
        let (request, _) = ends(client.clone(), exposed(bed, family, 85, &host));
        let (answer, _) = ends(host, client);
        (said(Bed::arrive, request), said(Bed::depart, answer))
    }),
];

/// The beginning of a packet from one to the other, and of its answer.
fn ends(one: String, other: String) -> (String, String) {
    (format!("{one} > {other} tcp"), format!("{other} > {one} tcp"))
}

fn said(say: impl Fn(&Bed, &str) -> String + 'static, text: String) -> Say {
    Box::new(move |bed, flags| drop(say(bed, &format!("{text} {flags}"))))
}

/// A Pod sends something to itself: what leaves comes back at once, and enters from its own device.
fn back(bed: &Bed, text: &str) -> String {
    let outcome = bed.leave(text);
    let outcome = outcome.strip_prefix("redirect back ").unwrap_or_else(|| panic!("{outcome}"));
    bed.enter_from(1, outcome);
    outcome.to_owned()
}

/// A frontend for clients outside, with this backend.
fn exposed(bed: &mut Bed, family: &Addrs, port: u16, backend: &str) -> String {
    let frontend = family.at(family.lb, port);
    let id = bed.backend(backend, proto::TCP);
    bed.outside(&frontend, proto::TCP, &[id], &Way::default());
    bed.add_port("host_ports", 6443);
    frontend
}

#[test]
fn s53_idle_for_a_day_half_closed_for_an_hour_on_every_path() {
    for family in &FAMILIES {
        let mut bed = Bed::node();
        for (name, path) in PATHS {
            for of_opener in [true, false] {
                let (opener, other) = path(&mut bed, family);
                let lasts = |what: &str, secs: u32| {
                    let entries = bed.conntrack();
                    assert!(!entries.is_empty(), "{name}: {what}");
                    for (key, entry) in entries {
                        let found = timeout_secs(key.proto, entry.flags);
                        assert_eq!(found, secs, "{name}, {what}: {key:?} {entry:?}");
                    }
                };
                opener(&bed, "S seq=1");
                other(&bed, "SA seq=7 ack=2");
                lasts("half open", 60);
                opener(&bed, "A seq=2 ack=8");
                lasts("open", DAY);
                let (first, second) = if of_opener { (opener, other) } else { (other, opener) };
                first(&bed, "FA seq=9 ack=9");
                lasts("half closed", HOUR);
                second(&bed, "A seq=9 ack=10 len=5");
                lasts("half closed, and the other side still sends", HOUR);
                second(&bed, "FA seq=14 ack=10");
                lasts("closed", OVER);
                flows::forget_all(&mut bed);
            }
        }
    }
}
