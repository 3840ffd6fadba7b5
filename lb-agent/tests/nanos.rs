//! Nanoseconds per packet of each program by `BPF_PROG_TEST_RUN`, over an empty program: prints `program case ns`,
//! one line each. The least of many interleaved rounds: noise only ever adds.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "a test's helper panics like the test"
)]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use lb_common::addr::Addr;
use lb_common::be::Be32;
use lb_common::conntrack::CtFlags;
use lb_common::endpoint::{Ident, IdentFlags, link, mac_number};
use lb_common::flow::proto;
use lb_testkit::bed::{Bed, addr};
use lb_testkit::node::{FAMILIES, Way};
use lb_testkit::packet;
use lb_testkit::sample;
use lb_testkit::sample::{EGRESS, PEER, SamplePolicy};

const ROUNDS: u32 = 25;

/// The arguments of `BPF_PROG_LOAD` that an empty program needs (`union bpf_attr`, include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    rest: [u64; 12],
}

/// The arguments of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 6],
}

fn bpf<T>(command: i64, attr: &mut T) -> i64 {
    // SAFETY: `attr` is a live, zero-padded bpf_attr of its own size.
    unsafe { libc::syscall(libc::SYS_bpf, command, core::ptr::from_mut(attr), size_of::<T>()) }
}

/// A tc program of two instructions: `r0 = -1; exit`.
fn empty_program() -> OwnedFd {
    let insns: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let mut attr = LoadAttr {
        prog_type: 3,
        insn_cnt: 2,
        insns: insns.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        ..LoadAttr::default()
    };
    let fd = bpf(5, &mut attr);
    assert!(fd >= 0, "load the empty program: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn empty_nanos(program: &OwnedFd, bytes: &[u8], repeat: u32) -> u64 {
    let mut attr = TestAttr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: bytes.len() as u32,
        data_in: bytes.as_ptr() as u64,
        repeat,
        ..TestAttr::default()
    };
    let result = bpf(10, &mut attr);
    assert_eq!(result, 0, "run the empty program: {}", std::io::Error::last_os_error());
    u64::from(attr.duration)
}

/// A packet of an established flow, run over and over.
struct Case {
    program: &'static str,
    name: &'static str,
    packet: Vec<u8>,
}

/// Established flows of both families without translation.
fn established(bed: &Bed, names: [&'static str; 2]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, pod, peer) in [
        (names[0], "10.1.0.1:4000", "10.2.0.8:8080"),
        (names[1], "[fd00:1::1]:4000", "[fd00:2::8]:8080"),
    ] {
        bed.leave(&format!("{pod} > {peer} tcp S"));
        bed.enter(&format!("{peer} > {pod} tcp SA ack=2"));
        let out = packet::build(&format!("{pod} > {peer} tcp A seq=2 ack=2 len=64"));
        let back = packet::build(&format!("{peer} > {pod} tcp A seq=2 ack=2 len=64"));
        cases.push(Case { program: "pod_out", name, packet: out });
        cases.push(Case { program: "pod_in", name, packet: back });
    }
    cases
}

/// The same with it. The packet of a repeated run is the output of the one before, so two entries translate into each
/// other: each run is a whole translation of address and port.
fn translated(bed: &mut Bed) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, pod, here, there) in [
        ("nat", "10.1.0.1:4001", "10.96.0.1:80", "10.96.0.2:8080"),
        ("nat6", "[fd00:1::1]:4001", "[fd00:96::1]:80", "[fd00:96::2]:8080"),
    ] {
        let pod_in = pod.replace(":4001", ":4002");
        for (from, to) in [(here, there), (there, here)] {
            bed.track(pod, from, to, CtFlags::FORWARD);
            bed.track(&pod_in, from, to, CtFlags::REPLY);
        }
        let out = packet::build(&format!("{pod} > {here} tcp A seq=2 ack=2 len=64"));
        let back = packet::build(&format!("{here} > {pod_in} tcp A seq=2 ack=2 len=64"));
        cases.push(Case { program: "pod_out", name, packet: out });
        cases.push(Case { program: "pod_in", name, packet: back });
    }
    cases
}

fn main() {
    let empty = empty_program();
    let mut bed = known_pod();
    bed.service("10.96.0.1:80", proto::TCP, &["10.2.0.8:8080"]);
    bed.service("[fd00:96::1]:80", proto::TCP, &["[fd00:2::8]:8080"]);
    let judged = judged();
    let mut cases = Vec::new();
    cases.extend(translated(&mut bed).into_iter().map(|case| (&bed, case)));
    cases.extend(
        established(&bed, ["established", "established6"]).into_iter().map(|case| (&bed, case)),
    );
    let names = ["established-policy", "established6-policy"];
    cases.extend(established(&judged, names).into_iter().map(|case| (&judged, case)));
    let mut best = vec![u64::MAX; cases.len()];
    let mut floor = u64::MAX;
    for _ in 0..ROUNDS {
        for ((bed, case), best) in cases.iter().zip(&mut best) {
            floor = floor.min(empty_nanos(&empty, &case.packet, 100_000));
            *best = (*best).min(bed.nanos(case.program, &case.packet, 100_000));
        }
    }
    println!("empty any {floor}");
    for ((_, case), best) in cases.iter().zip(best) {
        println!("{} {} {}", case.program, case.name, best - floor.min(best));
    }
    for (program, name, ns) in single_runs(&bed, &judged, &empty) {
        println!("{program} {name} {ns}");
    }
    for (program, name, ns) in masqueraded_runs(&empty) {
        println!("{program} {name} {ns}");
    }
    for (program, name, ns) in masqueraded_opening(&empty) {
        println!("{program} {name} {ns}");
    }
}

/// A bed with a Pod whose link-layer address is known, like that of each Pod that the agent has seen.
fn known_pod() -> Bed {
    let mut bed = Bed::new();
    let (index, element) = link(1, mac_number(packet::POD_MAC));
    bed.set("links", index, element);
    bed
}

/// A bed with the same Services, where policies isolate the Pod and allow its backends.
fn judged() -> Bed {
    let mut bed = known_pod();
    for v4 in [true, false] {
        let (frontend, backend) = if v4 {
            ("10.96.0.1:80", "10.2.0.8:8080")
        } else {
            ("[fd00:96::1]:80", "[fd00:2::8]:8080")
        };
        bed.service(frontend, proto::TCP, &[backend]);
        sample::idents(&mut bed, v4);
        let ident = Ident { ident: PEER.into(), flags: IdentFlags::POD, ..Ident::ZERO };
        bed.put("ident", Addr::from_ip(addr(v4, PEER, 8)).words().map(Be32::to_wire), ident);
    }
    SamplePolicy::new(EGRESS).allow(PEER, proto::TCP, 8080).put(&mut bed);
    sample::both(&mut bed);
    sample::epoch(&mut bed, 1);
    bed
}

/// New connections: each run needs a packet of its own. A run of one packet is timed by the kernel around the program
/// only, with cold caches; a low quantile of many runs stands against the empty program's, taken in the same way.
fn single_runs(bed: &Bed, judged: &Bed, empty: &OwnedFd) -> Vec<(&'static str, &'static str, u64)> {
    const RUNS: u16 = 20_000;
    let mut outcome = Vec::new();
    for (names, pod, frontend, backend) in [
        (
            ["new-service", "new-plain", "new-service-policy", "new-plain-policy"],
            "10.1.0.1",
            "10.96.0.1:80",
            "10.2.0.8:8080",
        ),
        (
            ["new-service6", "new-plain6", "new-service6-policy", "new-plain6-policy"],
            "[fd00:1::1]",
            "[fd00:96::1]:80",
            "[fd00:2::8]:8080",
        ),
    ] {
        let mut floor = Vec::new();
        let mut runs: [Vec<u64>; 4] = Default::default();
        for run in 0..RUNS {
            let syn = packet::build(&format!("{pod}:{} > {frontend} tcp S", 5000 + run));
            let direct = packet::build(&format!("{pod}:{} > {backend} tcp S", 30000 + run));
            floor.push(empty_nanos(empty, &syn, 1));
            let of = [(bed, &syn), (bed, &direct), (judged, &syn), (judged, &direct)];
            for ((bed, packet), runs) in of.into_iter().zip(&mut runs) {
                runs.push(bed.nanos("pod_out", packet, 1));
            }
        }
        let floor = low(floor);
        for (name, runs) in names.into_iter().zip(runs) {
            outcome.push(("pod_out", name, low(runs).saturating_sub(floor)));
        }
    }
    outcome
}

/// A low quantile of single runs.
fn low(mut runs: Vec<u64>) -> u64 {
    runs.sort_unstable();
    runs[runs.len() / 10]
}

/// Packets of established flows from outside to a backend on another node, and their answers. What leaves such a program is
/// another packet, so each run is by itself, as in [`single_runs`].
fn masqueraded_runs(empty: &OwnedFd) -> Vec<(&'static str, &'static str, u64)> {
    const RUNS: usize = 20_000;
    let mut outcome = Vec::new();
    for (family, names) in FAMILIES.iter().zip([
        ["masqueraded-request", "masqueraded-answer"],
        ["masqueraded6-request", "masqueraded6-answer"],
    ]) {
        let mut bed = Bed::node();
        let (client, frontend) = (family.at(family.client, 4000), family.at(family.lb, 80));
        let backend = family.at(family.far_pod, 8080);
        let id = bed.backend(&backend, proto::TCP);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        bed.add_port("frontend_ports", 80);
        let seen = bed.arrive(&format!("{client} > {frontend} tcp S seq=1"));
        let seen = seen.trim_start_matches("redirect ").split(' ').next().unwrap().to_owned();
        bed.arrive(&format!("{backend} > {seen} tcp SA seq=1 ack=2"));
        for (name, text) in names.into_iter().zip([
            format!("{client} > {frontend} tcp A seq=2 ack=2 len=64"),
            format!("{backend} > {seen} tcp A seq=2 ack=2 len=64"),
        ]) {
            let packet = packet::build(&text);
            assert!(bed.arrive(&text).starts_with("redirect "), "{text}");
            let floor = low((0..RUNS).map(|_| empty_nanos(empty, &packet, 1)).collect());
            let runs = low((0..RUNS).map(|_| bed.nanos("dev_in", &packet, 1)).collect());
            outcome.push(("dev_in", name, runs.saturating_sub(floor)));
        }
    }
    outcome
}

/// First packets from outside to a backend on another node, when each port of the node's range was that of a connection
/// before, which its client closed.
fn masqueraded_opening(empty: &OwnedFd) -> Vec<(&'static str, &'static str, u64)> {
    const BEFORE: u16 = 25_000;
    const RUNS: u16 = 10_000;
    let mut outcome = Vec::new();
    for (family, name) in FAMILIES.iter().zip(["new-masqueraded", "new-masqueraded6"]) {
        let mut bed = Bed::node();
        let (frontend, backend) = (family.at(family.lb, 80), family.at(family.far_pod, 8080));
        let id = bed.backend(&backend, proto::TCP);
        bed.outside(&frontend, proto::TCP, &[id], &Way::default());
        bed.add_port("frontend_ports", 80);
        let [mut floor, mut runs] = [const { Vec::new() }; 2];
        for run in 0..BEFORE + RUNS {
            let client = family.at(family.client, 20_000 + run);
            let request = format!("{client} > {frontend} tcp");
            let syn = format!("{request} S seq=1");
            if run >= BEFORE {
                let packet = packet::build(&syn);
                floor.push(empty_nanos(empty, &packet, 1));
                runs.push(bed.nanos("dev_in", &packet, 1));
            }
            // Its source port is that of the packet before, if there was one.
            let seen = bed.arrive(&syn);
            let seen = seen.trim_start_matches("redirect ").split(' ').next().unwrap().to_owned();
            let answer = format!("{backend} > {seen} tcp");
            for text in [
                format!("{answer} SA seq=1 ack=2"),
                format!("{request} A seq=2 ack=2"),
                format!("{request} FA seq=2 ack=2"),
                format!("{answer} FA seq=2 ack=3"),
                format!("{request} A seq=3 ack=3"),
            ] {
                bed.arrive(&text);
            }
        }
        outcome.push(("dev_in", name, low(runs).saturating_sub(low(floor))));
    }
    outcome
}
