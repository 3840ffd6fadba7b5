//! Damaged and invented packets through every program: none makes a program fail, none leaves with a checksum that it
//! did not come with, none leaves half translated, and each that is dropped has one reason. What a reader of bytes finds
//! inadmissible without knowing a table (tags, addresses that no packet has, routers that are Pods) is dropped for that.
//!
//! `LB_MUTANTS=1000000 LB_SEED=7 cargo test … --test datapath mutants` runs more of them, or others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::config;
use lb_common::flow::proto;
use lb_testkit::bed::{Bed, Verdict, protocol};
use lb_testkit::mutation;
use lb_testkit::node::{Addrs, FAMILIES, Way};
use lb_testkit::packet;
use lb_testkit::random::Random;
use testbed::frame::{BROADCAST, Ip, Link};

const PROGRAMS: [&str; 6] = ["pod_out", "pod_in", "dev_in", "dev_in_l3", "dev_out", "dev_out_l3"];

/// What a test has to know to judge a packet.
struct Field {
    bed: Bed,
    seeds: Vec<Vec<u8>>,
    /// Every socket that a translation may put into a packet.
    sockets: BTreeSet<SocketAddr>,
    /// Addresses that it may put in with any port.
    free: BTreeSet<IpAddr>,
}

impl Field {
    fn new() -> Self {
        let mut field = Self {
            bed: Bed::node(),
            seeds: Vec::new(),
            sockets: BTreeSet::new(),
            free: [config::HAIRPIN4.into(), config::HAIRPIN6.into()].into(),
        };
        for family in &FAMILIES {
            for (i, name) in ["tcp", "udp"].into_iter().enumerate() {
                field.services(family, name, i as u16);
            }
            field.free.extend([family.client, family.pod].map(|ip| ip.parse::<IpAddr>().unwrap()));
            let masquerade = if family.v4() { "192.0.3.1" } else { "2001:db8:3::1" };
            field.free.insert(masquerade.parse().unwrap());
        }
        field.neighbours();
        field
    }

    /// Services of every kind for one transport, and packets of and to their flows.
    fn services(&mut self, family: &Addrs, name: &str, i: u16) {
        let protocol = protocol(name);
        let vip = family.at(if family.v4() { "10.96.0.1" } else { "fd00:96::1" }, 80 + i);
        let [near, far, own] =
            [(family.other_pod, 8080), (family.far_pod, 8090), (family.pod, 8100)]
                .map(|(ip, port)| family.at(ip, port + i));
        let host = family.at(family.node, 6443 + i);
        let ids = [&near, &far, &own, &host].map(|at| self.bed.backend(at, protocol));
        self.bed.frontend(&vip, protocol, &ids[..3]);
        let outside = [30080, 30090, 30100].map(|port| family.at(family.node, port + i));
        for (frontend, id) in outside.iter().zip([ids[0], ids[1], ids[3]]) {
            self.bed.outside(frontend, protocol, &[id], &Way::default());
        }
        let unserved = family.at(family.lb, 90 + i);
        self.bed.outside(&unserved, protocol, &[], &Way::default());
        self.bed.add_port("host_ports", 6443 + i);
        self.bed.add_port("frontend_ports", 80 + i);
        let sockets = [&vip, &near, &far, &own, &host, &unserved].into_iter().chain(&outside);
        self.sockets.extend(sockets.map(|at| at.parse::<SocketAddr>().unwrap()));

        let flags: &[&str] = if name == "tcp" { &["S", "A", "FA", "R", "SA"] } else { &[""] };
        let (pod, client) = (family.at(family.pod, 4000), family.at(family.client, 4000));
        for flags in flags {
            let seeds = &mut self.seeds;
            let mut seed = |src: &str, dst: &str| {
                seeds.push(packet::build(&format!("{src} > {dst} {name} {flags} len=24")));
            };
            for dst in [&vip, &unserved, &near, &far].into_iter().chain(&outside) {
                seed(&pod, dst);
                seed(&client, dst);
            }
            for src in [&near, &far, &own, &host] {
                seed(src, &client);
                seed(src, &pod);
            }
        }
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (inner, to) in [
            (format!("{} > {client} {name} S", outside[0]), family.node),
            (format!("{pod} > {vip} {name} S"), family.pod),
            (format!("{client} > {near} {name} S"), family.client),
        ] {
            self.seeds.push(packet::too_big(ip(family.client), ip(to), &inner));
        }
    }

    /// What neighbors say to each other, as the Pod, in another's name, and as a router.
    fn neighbours(&mut self) {
        let link = Link { src: packet::POD_MAC, dst: BROADCAST };
        let [v4, v6] = &FAMILIES;
        let [own4, other4] = [v4.pod, v4.other_pod].map(|ip| ip.parse::<Ipv4Addr>().unwrap());
        let [own6, other6] = [v6.pod, v6.other_pod].map(|ip| ip.parse::<Ipv6Addr>().unwrap());
        let group = "ff02::1".parse().unwrap();
        for sender in [own4, other4] {
            self.seeds.push(link.arp(2, (link.src, sender), own4));
        }
        for target in [own6, other6] {
            for kind in [135, 136] {
                self.seeds.push(link.frame(&Ip::neighbour(own6, group, kind, target, link.src)));
            }
        }
        let router = "fe80::bad".parse().unwrap();
        self.seeds.push(link.frame(&Ip::router_advertisement(router, other6, link.src)));
        self.seeds.push(link.frame(&Ip::redirect(router, own6, other6, other6)));
        let report = Ip::icmp(own6.into(), group.into(), [143, 0], [0; 4], &[0; 20]);
        self.seeds.push(link.frame(&report.hops(1)));
    }

    fn judge(
        &self,
        program: &str,
        sent: &[u8],
        verdict: Verdict,
        got: &[u8],
    ) -> Result<(), String> {
        // `dev_in_l3` puts a header before what it sees.
        let got = if program == "dev_in_l3" { &got[14..] } else { got };
        if sent == got || verdict == Verdict::Drop {
            return Ok(());
        }
        let l3 = if program == "dev_out_l3" { 0 } else { 14 };
        let (Some(before), Some(after)) = (tuple(&sent[l3..]), tuple(&got[l3..])) else {
            return Err("changed although it has no 5-tuple".into());
        };
        if sums(&sent[l3..]) && !sums(&got[l3..]) {
            return Err("a checksum was broken".into());
        }
        let answer = before.dst.ip() == after.src.ip() && before.src.ip() == after.dst.ip();
        if answer && verdict == Verdict::Redirect {
            return Ok(());
        }
        for (was, is) in [(before.src, after.src), (before.dst, after.dst)] {
            // A port alone changes where another flow has it.
            let whole = was.ip() == is.ip()
                || !before.ports
                || self.sockets.contains(&is)
                || self.free.contains(&is.ip());
            if was != is && !whole {
                return Err(format!("half translated: {was} became {is}"));
            }
        }
        Ok(())
    }
}

/// Why a program must drop a frame, as far as its bytes alone tell.
fn demanded(program: &str, frame: &[u8]) -> Option<&'static str> {
    let ethertype = u16::from_be_bytes(frame.get(12..14)?.try_into().unwrap());
    let of_pod = program.starts_with("pod_");
    if of_pod && ![0x0800, 0x0806, 0x86dd].contains(&ethertype) {
        return Some("NOT_IP");
    }
    if ethertype != 0x86dd || frame.get(14)? >> 4 != 6 || !(of_pod || program == "dev_in") {
        return None;
    }
    let ip =
        |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).unwrap()));
    let (src, dst) = (ip(22)?, ip(38)?);
    if src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some() || src.is_multicast() {
        return Some("BAD_ADDRESS");
    }
    let router = frame[20] == proto::ICMP6 && frame[21] == 255 && frame.len() < 200;
    let speaks = matches!(frame.get(54..56)?, [134 | 137, 0]) && frame.len() >= 62;
    let on_wire = |ip: Ipv6Addr| ip.segments()[..5] != [0; 5];
    (program == "pod_out" && router && speaks && on_wire(src) && on_wire(dst))
        .then_some("FORGED_NEIGHBOR")
}

/// The ends of a packet; the ports are 0 when it has none that count.
struct Tuple {
    src: SocketAddr,
    dst: SocketAddr,
    ports: bool,
}

/// By fixed offsets and whatever the lengths say, as the programs read it; ports only right behind the IP header.
fn tuple(ip: &[u8]) -> Option<Tuple> {
    let (src, dst, l4, protocol, fragment): (IpAddr, IpAddr, _, _, _) = if ip.first()? >> 4 == 4 {
        let at = |i: usize| Some(<[u8; 4]>::try_from(ip.get(i..i + 4)?).unwrap());
        let fragment = ip[6] & 0x3f != 0 || ip[7] != 0;
        (at(12)?.into(), at(16)?.into(), usize::from(ip[0] & 15) * 4, ip[9], fragment)
    } else {
        let at = |i: usize| Some(<[u8; 16]>::try_from(ip.get(i..i + 16)?).unwrap());
        (at(8)?.into(), at(24)?.into(), 40, ip[6], false)
    };
    let at = |i: usize| Some(u16::from_be_bytes(ip.get(l4 + i..l4 + i + 2)?.try_into().unwrap()));
    let ports = matches!(protocol, proto::TCP | proto::UDP) && !fragment;
    let (sport, dport) = if ports { (at(0)?, at(2)?) } else { (0, 0) };
    Some(Tuple { src: SocketAddr::new(src, sport), dst: SocketAddr::new(dst, dport), ports })
}

/// Whether the checksums of a whole, well-formed packet hold; false for any other.
fn sums(ip: &[u8]) -> bool {
    let v4 = ip.first().is_some_and(|byte| byte >> 4 == 4);
    let well_formed = match (v4, tuple(ip)) {
        (_, None) => false,
        (true, Some(_)) => {
            ip[0] == 0x45
                && usize::from(u16::from_be_bytes([ip[2], ip[3]])) == ip.len()
                && ip[6] & 0x3f == 0
                && ip[7] == 0
        }
        (false, Some(_)) => {
            usize::from(u16::from_be_bytes([ip[4], ip[5]])) + 40 == ip.len()
                && matches!(ip[6], 6 | 17 | 58)
        }
    };
    let (l4, protocol) = if v4 { (20, ip.get(9)) } else { (40, ip.get(6)) };
    let least = match protocol {
        Some(6) => 20,
        _ => 8,
    };
    well_formed && ip.len() >= l4 + least && packet::sums_hold(ip, l4, *protocol.unwrap_or(&0))
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// How many packets were dropped or refused, of all that was counted.
fn reasons_in(counted: &str) -> u64 {
    let of_drop = |word: &str| {
        let (name, n) = word.split_once('+')?;
        name.contains('/').then(|| n.parse::<u64>().unwrap())
    };
    counted.split(' ').filter_map(of_drop).sum()
}

#[test]
fn no_packet_breaks_a_program_or_leaves_broken() {
    let (n, seed) = (setting("LB_MUTANTS", 10_000), setting("LB_SEED", 1));
    let mut random = Random::new(seed);
    let mut field = Field::new();
    let mut dropped = 0;
    let mut demands = BTreeMap::<&str, u64>::new();
    let mut changed = 0;
    for i in 0..n {
        let program = *random.choose(&PROGRAMS);
        let original = random.choose(&field.seeds);
        let sent = mutation::mutate(original, &mut random);
        let Ok((verdict, got)) = field.bed.try_run(program, &sent) else {
            // What ends within its IP header does not get past a device's driver either.
            assert!(sent.len() < 14 + 40, "refused: {sent:02x?}");
            continue;
        };
        let counted = field.bed.counted();
        let reasons = reasons_in(&counted);
        let context = || {
            format!(
                "packet {i} of seed {seed}, {program}: {verdict:?} {counted}\nsent {sent:02x?}\ngot  {got:02x?}"
            )
        };
        match verdict {
            Verdict::Drop => assert_eq!(reasons, 1, "a drop has one reason: {}", context()),
            Verdict::Next => assert_eq!(reasons, 0, "{}", context()),
            Verdict::Redirect => assert!(reasons <= 1, "{}", context()),
        }
        dropped += reasons;
        changed += u64::from(sent != got);
        if let Some(reason) = demanded(program, &sent) {
            assert!(counted.contains(&format!("{reason}/")), "not {reason}: {}", context());
            *demands.entry(reason).or_default() += 1;
        }
        if let Err(why) = field.judge(program, &sent, verdict, &got) {
            panic!("{why}: {}", context());
        }
        if i % 50_000 == 49_999 {
            println!("{} packets: {dropped} dropped or refused, {changed} changed", i + 1);
        }
    }
    println!(
        "{n} packets: {dropped} dropped or refused, {changed} changed; had to be: {demands:?}"
    );
    assert_eq!(demands.len(), 3, "{demands:?}");
    assert!(dropped > n / 100 && changed > n / 20, "the packets reach what they are to test");
}
