//! Policies, proved by search: random clusters, read from manifests, compiled and written as the agent does it, and then
//! packets through the real programs. Each verdict must be the one that the API's text gives (`oracle/api.rs`, which
//! shares no code with any of that). One cluster follows the other in the same maps, so the changes between them
//! are tried, too.
//!
//! `LB_JUDGED=2000000 LB_SEED=7 cargo test … --test oracle` asks more of them, or others.
#![cfg(test)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helper panics like the test"
)]

#[path = "oracle/api.rs"]
mod api;
#[path = "datapath/bed.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod bed;
#[path = "datapath/packet.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod packet;
#[path = "mutants/random.rs"]
mod random;
#[path = "oracle/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bed::{Bed, Verdict};
use etherparse::{IpNumber, PacketBuilder};
use lb_agent::cluster::{Cluster, Event, Kind};
use lb_agent::model::policy::Compiler;
use lb_agent::plan::MapError;
use lb_agent::plan::policy::{Actual, Behind, Op, Planner, Store, Veth, Wanted};
use lb_agent::watch::manifests::Directory;
use lb_common::addr::Addr;
use lb_common::conntrack::CtKey;
use lb_common::endpoint::{Ident, Pod, ident_flags};
use lb_common::flow::proto;
use lb_common::policy::Bits;
use random::Random;
use serde_json::{Value, json};
use world::{Flow, NODE, World};

/// Questions asked of each cluster.
const QUESTIONS: u64 = 50;
const GRE: u8 = 47;

/// The agent's way from files to maps, with the kernel's maps of a [`Bed`] at its end.
struct Field {
    bed: Bed,
    dir: PathBuf,
    directory: Directory,
    cluster: Cluster,
    compiler: Compiler,
    planner: Planner,
    clock: Duration,
    /// Source port, or identifier, of the last packet.
    port: u16,
}

impl Field {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("lb-oracle-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut cluster = Cluster::new(NODE);
        for kind in Kind::ALL {
            cluster.apply(Event::Synced(kind));
        }
        Self {
            bed: Bed::new(),
            directory: Directory::new(&dir, NODE),
            dir,
            cluster,
            compiler: Compiler::default(),
            planner: Planner::restore(Actual::default()),
            clock: Duration::ZERO,
            port: 1024,
        }
    }

    /// Brings the maps to what this cluster asks for.
    fn become_(&mut self, world: &World) {
        let objects = [
            &world.namespaces,
            &world.nodes,
            &world.pods,
            &world.policies,
            &world.cluster_policies,
        ];
        let items: Vec<&Value> = objects.into_iter().flatten().collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        std::fs::write(self.dir.join("world.json"), list.to_string()).unwrap();
        let mut events = Vec::new();
        self.directory
            .refresh(&BTreeSet::from(["world.json".into()]), &mut |event| events.push(event))
            .unwrap();
        for event in events {
            if let Event::Issues(object, issues) = &event {
                assert!(issues.is_empty(), "{object}: {issues:?}");
            }
            self.cluster.apply(event);
        }
        let desired = self.compiler.compile(&self.cluster.snapshot());
        assert!(desired.issues.is_empty(), "{:?}", desired.issues);
        let veths: Vec<Veth> = locals(world)
            .map(|pod| {
                let text = |key: &str| pod["metadata"][key].as_str().unwrap();
                let name = lb_agent::cluster::Name::new(text("namespace"), text("name"));
                Veth { ifindex: ifindex(pod), behind: Behind::Pod(name, 0) }
            })
            .collect();
        let devices: BTreeMap<Addr, Ident> = world::node_ips(&world.nodes[0])
            .into_iter()
            .map(|ip| (Addr::from_ip(ip), Ident { flags: ident_flags::LOCAL_NODE, ..Ident::ZERO }))
            .chain(locals(world).flat_map(|pod| {
                let ident = Ident { ifindex: ifindex(pod), ..Ident::ZERO };
                ips(pod).map(|ip| (Addr::from_ip(ip), ident))
            }))
            .collect();
        self.clock += Duration::from_secs(2);
        let wanted =
            Wanted { desired: Some(&desired), devices: &devices, veths: &veths, strict: false };
        for veth in &veths {
            // As for a device that appears.
            let groups = self.planner.groups_of(Some(&desired), veth);
            Maps(&mut self.bed).apply(&Op::SetGroups { ifindex: veth.ifindex, groups }).unwrap();
        }
        let plan = self.planner.plan(&wanted, self.clock);
        let applied = self.planner.apply(plan, &mut Maps(&mut self.bed), self.clock);
        assert!(applied.failed.is_empty(), "{:?}", applied.failed);
    }

    /// What the programs say.
    fn allows(&mut self, flow: &Flow<'_>) -> bool {
        let own = ips(flow.pod).into_iter().find(|ip| ip.is_ipv4() == flow.peer.is_ipv4()).unwrap();
        let of_pod: Pod = self.bed.get("pods", ifindex(flow.pod)).unwrap_or(Pod::ZERO);
        let [ip4, ip6] = ips(flow.pod).map(Addr::from_ip);
        self.bed.put("pods", 1_u32, Pod { ip4, ip6, ..of_pod });
        self.port = if self.port == u16::MAX { 1024 } else { self.port + 1 };
        let (src, dst) = if flow.ingress { (flow.peer, own) } else { (own, flow.peer) };
        let bytes = build((src, dst), flow.protocol, (self.port, flow.port));
        self.forget((own, flow.peer), flow.protocol, flow);
        let program = if flow.ingress { "pod_in" } else { "pod_out" };
        match self.bed.run(program, &bytes).0 {
            Verdict::Next => true,
            Verdict::Drop => false,
            Verdict::Redirect => panic!("no Service, no redirect"),
        }
    }

    /// Makes the flow a new one, whoever had its tuple before.
    fn forget(&mut self, (own, peer): (IpAddr, IpAddr), protocol: &str, flow: &Flow<'_>) {
        let (number, ports) = match protocol {
            "TCP" => (proto::TCP, (self.port, flow.port)),
            "UDP" => (proto::UDP, (self.port, flow.port)),
            "SCTP" => (proto::SCTP, (self.port, flow.port)),
            "ICMP" if own.is_ipv4() => (proto::ICMP, (self.port, self.port)),
            "ICMP" => (proto::ICMP6, (self.port, self.port)),
            _ => (GRE, (0, 0)),
        };
        let (local, remote) = if flow.ingress { (ports.1, ports.0) } else { ports };
        let key = CtKey {
            local: Addr::from_ip(own),
            remote: Addr::from_ip(peer),
            local_port: lb_common::be::Be16::new(local),
            remote_port: lb_common::be::Be16::new(remote),
            proto: number,
            scope: 0,
            veth: 1,
        };
        self.bed.forget(key);
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        // Nothing is left but a file of ours in the directory for such.
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// The maps of a bed.
struct Maps<'a>(&'a mut Bed);

impl Store for Maps<'_> {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        let bed = &mut *self.0;
        match op {
            Op::PutGroup { id, group } => bed.set("groups", *id, **group),
            Op::PutPeerBits { key, bits } => bed.put("peer_bits", *key, *bits),
            Op::DeletePeerBits { key } => bed.remove::<_, Bits>("peer_bits", *key),
            Op::PutPortBits { len, key, bits } => bed.put_prefix("port_bits", *len, *key, *bits),
            Op::DeletePortBits { len, key } => {
                bed.remove_prefix::<_, Bits>("port_bits", *len, *key)
            }
            Op::PutIdent { addr, ident } => bed.put("ident", words(addr), *ident),
            Op::DeleteIdent { addr } => bed.remove::<_, Ident>("ident", words(addr)),
            Op::PutCidr { range, ident } => {
                bed.put_prefix("cidrs", range.len.into(), words(&range.addr()), *ident);
            }
            Op::DeleteCidr { range } => {
                bed.remove_prefix::<_, u32>("cidrs", range.len.into(), words(&range.addr()));
            }
            Op::SetGroups { ifindex, groups } => {
                let [ingress, egress, shadow_ingress, shadow_egress] = *groups;
                let pod = Pod { ingress, egress, shadow_ingress, shadow_egress, ..Pod::ZERO };
                bed.put("pods", *ifindex, pod);
            }
            Op::PutState(state) => bed.set("policy", 0, *state),
        }
        Ok(())
    }
}

fn words(addr: &Addr) -> [u32; 4] {
    addr.words().map(|word| word.to_wire())
}

/// The Pods of this node that have addresses of their own.
fn locals(world: &World) -> impl Iterator<Item = &Value> {
    let here = |pod: &&Value| pod["spec"]["nodeName"] == NODE && pod["spec"]["hostNetwork"] != true;
    world.pods.iter().filter(here)
}

/// A Pod's device: 100 and its number.
fn ifindex(pod: &Value) -> u32 {
    let name = pod["metadata"]["name"].as_str().unwrap();
    100 + name.trim_start_matches('p').parse::<u32>().unwrap()
}

fn ips(pod: &Value) -> [IpAddr; 2] {
    [0, 1].map(|i| pod["status"]["podIPs"][i]["ip"].as_str().unwrap().parse().unwrap())
}

/// The first packet of a flow.
fn build((src, dst): (IpAddr, IpAddr), protocol: &str, (sport, dport): (u16, u16)) -> Vec<u8> {
    let socket = |ip, port| std::net::SocketAddr::new(ip, port);
    let text = format!("{} > {}", socket(src, sport), socket(dst, dport));
    match protocol {
        "TCP" => return packet::build(&format!("{text} tcp S")),
        "UDP" => return packet::build(&format!("{text} udp len=4")),
        "ICMP" => return packet::build(&format!("{text} echo")),
        _ => {}
    }
    let mut payload = vec![0; 16];
    let number = if protocol == "SCTP" {
        payload[..2].copy_from_slice(&sport.to_be_bytes());
        payload[2..4].copy_from_slice(&dport.to_be_bytes());
        proto::SCTP
    } else {
        GRE
    };
    let eth = PacketBuilder::ethernet2(packet::POD_MAC, packet::GATEWAY_MAC);
    let mut out = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => eth
            .ipv4(src.octets(), dst.octets(), 64)
            .write(&mut out, IpNumber(number), &payload)
            .unwrap(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => eth
            .ipv6(src.octets(), dst.octets(), 64)
            .write(&mut out, IpNumber(number), &payload)
            .unwrap(),
        _ => unreachable!("one family"),
    }
    out
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn every_verdict_is_that_of_the_text() {
    let (packets, seed) = (setting("LB_JUDGED", 20_000), setting("LB_SEED", 1));
    let mut field = Field::new();
    let mut told = BTreeMap::<(bool, bool), u64>::new();
    for number in 0..packets.div_ceil(QUESTIONS) {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let world = world::generate(&mut random);
        field.become_(&world);
        let pods: Vec<&Value> = locals(&world).collect();
        for _ in 0..QUESTIONS {
            let pod = *random.choose(&pods);
            let peer = world::peer(&world, &mut random);
            if ips(pod).contains(&peer) {
                // What a Pod sends to itself never leaves it.
                continue;
            }
            let protocol = *random.choose(&world::PROTOCOLS);
            let portless = matches!(protocol, "ICMP" | "GRE");
            let port = if portless { 0 } else { *random.choose(&world::PORTS) };
            let flow = Flow { pod, ingress: random.below(2) == 0, peer, protocol, port };
            let (want, got) = (world.allows(NODE, &flow), field.allows(&flow));
            assert_eq!(got, want, "cluster {number} of seed {seed}: {flow:?}\n{}", world.text());
            *told.entry((flow.ingress, want)).or_default() += 1;
        }
    }
    println!("{packets} packets of seed {seed}; (ingress, allowed): {told:?}");
    assert!(
        told.values().all(|n| *n > packets / 50),
        "a search that finds one answer only: {told:?}"
    );
}
