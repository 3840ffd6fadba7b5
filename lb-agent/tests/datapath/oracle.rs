//! Policies, proved by search: random clusters, read from manifests, compiled and written as the agent does it, and then
//! packets through the real programs. Each verdict must be the one that the API's text gives (`oracle/api.rs`, which
//! shares no code with any of that). One cluster follows the other in the same maps, so the changes between them
//! are tried, too. Some packets hide their port, cannot be read, have tags or addresses that no packet has
//! (`oracle/looks.rs`); and where both ends are Pods of this node, both are asked: each at its own hook, and both at the
//! sender's, as for flows that go to the Pod's end of the receiver's veth.
//!
//! `LB_JUDGED=2000000 LB_SEED=7 cargo test … --test datapath oracle` asks more of them, or others.

mod api;
mod looks;
mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lb_common::addr::Addr;
use lb_common::config::{SettingFlags, Settings};
use lb_common::conntrack::CtKey;
use lb_common::endpoint::{Ident, IdentFlags, PodEntry};
use lb_common::flow::proto;
use lb_common::past::{LocalEnd, LocalFlags};
use lb_common::policy::Bits;
use lb_common::verdict::DropReason;
use lb_core::cluster::{Cluster, Event, Kind};
use lb_core::model::policy::Compiler;
use lb_core::plan::policy::{Behind, DesiredTables, PodDevice};
use lb_core::plan::{Actual, Capacity, MapError, MapStore, Planner, Write};
use lb_kube::manifests::ManifestDirectory;
use lb_testkit::bed::{Bed, Verdict};
use lb_testkit::random::Random;
use looks::Look;
use objects::{Flow, NODE, Objects};
use serde_json::{Value, json};

/// Questions asked of each cluster.
const QUESTIONS: u64 = 50;
const GRE: u8 = 47;

/// Name of a reason to drop a packet, and whether it is one of the Pod that receives it.
type Reason = (&'static str, bool);

/// The agent's way from files to maps, with the kernel's maps of a [`Bed`] at its end.
struct Field {
    bed: Bed,
    dir: PathBuf,
    directory: ManifestDirectory,
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
            directory: ManifestDirectory::new(&dir, NODE),
            dir,
            cluster,
            compiler: Compiler::default(),
            planner: Planner::restore(Actual::default(), Capacity::default()),
            clock: Duration::ZERO,
            port: 1024,
        }
    }

    /// Brings the maps to what this cluster asks for.
    fn become_(&mut self, objects: &Objects) {
        let lists = [
            &objects.namespaces,
            &objects.nodes,
            &objects.pods,
            &objects.policies,
            &objects.cluster_policies,
        ];
        let items: Vec<&Value> = lists.into_iter().flatten().collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        std::fs::write(self.dir.join("objects.json"), list.to_string()).unwrap();
        let mut events = Vec::new();
        self.directory
            .refresh(&BTreeSet::from(["objects.json".into()]), &mut |event| events.push(event))
            .unwrap();
        for event in events {
            if let Event::Issues(object, issues) = &event {
                assert!(issues.is_empty(), "{object}: {issues:?}");
            }
            self.cluster.apply(event);
        }
        let desired = self.compiler.compile(&self.cluster.snapshot());
        assert!(desired.issues.is_empty(), "{:?}", desired.issues);
        let veths: Vec<PodDevice> = locals(objects)
            .map(|pod| {
                let text = |key: &str| pod["metadata"][key].as_str().unwrap();
                let name = lb_core::cluster::Name::new(text("namespace"), text("name"));
                PodDevice {
                    ifindex: ifindex(pod),
                    behind: Behind::Pod(name, 0),
                    device_part: PodEntry::ZERO,
                }
            })
            .collect();
        let devices: BTreeMap<Addr, Ident> = objects::node_ips(&objects.nodes[0])
            .into_iter()
            .map(|ip| (Addr::from_ip(ip), Ident { flags: IdentFlags::LOCAL_NODE, ..Ident::ZERO }))
            .chain(locals(objects).flat_map(|pod| {
                let ident = Ident { ifindex: ifindex(pod), ..Ident::ZERO };
                ips(pod).map(|ip| (Addr::from_ip(ip), ident))
            }))
            .collect();
        self.clock += Duration::from_secs(2);
        let wanted = DesiredTables {
            desired: Some(&desired),
            devices: &devices,
            veths: &veths,
            strict: false,
            pickup_until: 0,
        };
        for veth in &veths {
            // As for a device that appears.
            let plan = self.planner.plan_pod(Some(&desired), veth, 0);
            self.planner.apply(plan, &mut Maps(&mut self.bed), &mut || Duration::ZERO);
        }
        let plan = self.planner.plan_policies(&wanted, self.clock);
        let applied = self.planner.apply(plan, &mut Maps(&mut self.bed), &mut || self.clock);
        assert!(applied.failed.is_empty(), "{:?}", applied.failed);
    }

    /// What the programs say: whether the packet goes on, and if not, why.
    fn asks(&mut self, flow: &Flow<'_>, look: Look) -> Result<(), &'static str> {
        let (verdict, reasons) = self.run(flow, look);
        match (verdict, &reasons[..]) {
            (Verdict::Next, []) => Ok(()),
            (Verdict::Drop, [(reason, ingress)]) if *ingress == flow.ingress => Err(reason),
            _ => panic!("{verdict:?} for {reasons:?}: {flow:?} {look:?}"),
        }
    }

    /// What they say at the sender's hook for a packet to this Pod of the node, past the host's end of whose veth it goes: of
    /// a drop also in whose direction. `None` if such a packet goes through the stack.
    fn asks_both(
        &mut self,
        flow: &Flow<'_>,
        receiver: &Value,
        look: Look,
    ) -> Option<Result<(), Reason>> {
        const FLAGS: LocalFlags = LocalFlags::PAST_OK.with(LocalFlags::PEER_OK);
        let ifindex = ifindex(receiver);
        let entry: PodEntry = self.bed.get("pods", ifindex).unwrap_or(PodEntry::ZERO);
        let [ip4, ip6] = ips(receiver).map(Addr::from_ip);
        self.bed.put("pods", ifindex, PodEntry { id: 2, ip4, ip6, ..entry });
        for (id, ifindex) in [(1, 1), (2, ifindex)] {
            self.bed.set("locals", id, LocalEnd { ifindex, flags: FLAGS, ..LocalEnd::ZERO });
        }
        let flags = SettingFlags::LOCAL_PAST;
        self.bed.set("settings", 0, Settings { flags, ..Settings::ZERO });
        let (verdict, reasons) = self.run(flow, look);
        self.bed.set("settings", 0, Settings::ZERO);
        self.bed.put("pods", ifindex, entry);
        match (verdict, &reasons[..]) {
            (Verdict::Next, []) => None,
            (Verdict::Redirect, []) => Some(Ok(())),
            (Verdict::Drop, [reason]) => Some(Err(*reason)),
            _ => panic!("{verdict:?} for {reasons:?}: {flow:?} {look:?}"),
        }
    }

    /// Runs the packet at the hook of its Pod. Gives the verdict and the reasons that were counted.
    fn run(&mut self, flow: &Flow<'_>, look: Look) -> (Verdict, Vec<Reason>) {
        let own = ips(flow.pod).into_iter().find(|ip| ip.is_ipv4() == flow.peer.is_ipv4()).unwrap();
        let of_pod: PodEntry = self.bed.get("pods", ifindex(flow.pod)).unwrap_or(PodEntry::ZERO);
        let [ip4, ip6] = ips(flow.pod).map(Addr::from_ip);
        self.bed.put("pods", 1_u32, PodEntry { id: 1, ip4, ip6, ..of_pod });
        self.port = if self.port == u16::MAX { 1024 } else { self.port + 1 };
        let (src, dst) = if flow.ingress { (flow.peer, own) } else { (own, flow.peer) };
        let bytes = look.build((src, dst), flow.protocol, (self.port, flow.port));
        self.forget((own, flow.peer), flow.protocol, flow);
        let program = if flow.ingress { "pod_in" } else { "pod_out" };
        self.bed.counted();
        let came_by = u32::from(!flow.from_host);
        let verdict = self.bed.try_run_from(program, came_by, &bytes).unwrap().0;
        let counted = self.bed.counted();
        let is_counted = |(name, ingress): &Reason| {
            let counter = format!("{name}/{}+", if *ingress { "in" } else { "out" });
            counted.split(' ').any(|word| word.starts_with(&counter))
        };
        let all = DropReason::ALL.into_iter().map(DropReason::name);
        let all = all.flat_map(|name| [(name, false), (name, true)]);
        (verdict, all.filter(is_counted).collect())
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

impl MapStore for Maps<'_> {
    fn apply(&mut self, write: &Write) -> Result<(), MapError> {
        let bed = &mut *self.0;
        match write {
            Write::PutGroup { id, group } => bed.set("groups", *id, **group),
            Write::PutPeerBits { key, bits } => bed.put("peer_bits", *key, *bits),
            Write::DeletePeerBits { key } => bed.remove::<_, Bits>("peer_bits", *key),
            Write::PutPortBits { len, key, bits } => bed.put_prefix("port_bits", *len, *key, *bits),
            Write::DeletePortBits { len, key } => {
                bed.remove_prefix::<_, Bits>("port_bits", *len, *key)
            }
            Write::PutIdent { addr, ident } => bed.put("ident", words(addr), *ident),
            Write::DeleteIdent { addr } => bed.remove::<_, Ident>("ident", words(addr)),
            Write::PutCidr { range, ident } => {
                bed.put_prefix("cidrs", range.len.into(), words(&range.addr()), *ident);
            }
            Write::DeleteCidr { range } => {
                bed.remove_prefix::<_, u32>("cidrs", range.len.into(), words(&range.addr()));
            }
            Write::PutPod { ifindex, pod } => bed.put("pods", *ifindex, **pod),
            Write::DeletePod { ifindex } => bed.remove::<_, PodEntry>("pods", *ifindex),
            Write::PutPolicyState(state) => bed.set("policy", 0, *state),
            other => panic!("{other:?} is none of a plan of policies"),
        }
        Ok(())
    }
}

fn words(addr: &Addr) -> [u32; 4] {
    addr.words().map(|word| word.to_wire())
}

/// The Pods of this node that have addresses of their own.
fn locals(objects: &Objects) -> impl Iterator<Item = &Value> {
    let here = |pod: &&Value| pod["spec"]["nodeName"] == NODE && pod["spec"]["hostNetwork"] != true;
    objects.pods.iter().filter(here)
}

/// A Pod's device: 100 and its number.
fn ifindex(pod: &Value) -> u32 {
    let name = pod["metadata"]["name"].as_str().unwrap();
    100 + name.trim_start_matches('p').parse::<u32>().unwrap()
}

fn ips(pod: &Value) -> [IpAddr; 2] {
    [0, 1].map(|i| pod["status"]["podIPs"][i]["ip"].as_str().unwrap().parse().unwrap())
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What the API says of a packet that looks so: `Err` with all the reasons that a drop may have.
fn outcome(objects: &Objects, flow: &Flow<'_>, look: Look) -> Result<(), &'static [&'static str]> {
    const JUDGED: [&str; 2] = ["POLICY_ISOLATED", "POLICY_DENIED"];
    let look = match look {
        // A protocol without ports has nothing behind the chain that must be parsed.
        Look::BrokenChain if flow.protocol == "GRE" => Look::Whole,
        look => look,
    };
    match look {
        Look::Tagged(_) => Err(&["NOT_IP"]),
        Look::Mapped => Err(&["BAD_ADDRESS"]),
        // What a node would unpack leaves no Pod towards one.
        Look::Whole | Look::Hidden
            if flow.protocol == "GRE" && !flow.ingress && objects.is_any_node(flow.peer) =>
        {
            Err(&["ENCAPSULATED"])
        }
        Look::Whole | Look::Hidden if objects.allows(NODE, flow) => Ok(()),
        Look::Whole | Look::Hidden => Err(&JUDGED),
        Look::Ipsec(_) if objects.is_of_node(NODE, flow) || !objects.concerns(flow) => Ok(()),
        Look::Ipsec(_) | Look::Tiny | Look::Overlapping | Look::LongChain | Look::BrokenChain => {
            Err(&["UNREADABLE"])
        }
    }
}

/// The same packet as the Pod at its other end has it, if that is one of this node.
fn other_end<'a>(objects: &'a Objects, flow: &Flow<'a>) -> Option<Flow<'a>> {
    let pod = objects.pod_at(flow.peer).filter(|pod| pod["spec"]["nodeName"] == NODE)?;
    let of_family = |ip: &IpAddr| ip.is_ipv4() == flow.peer.is_ipv4();
    let peer = ips(flow.pod).into_iter().find(of_family)?;
    Some(Flow { pod, ingress: !flow.ingress, peer, ..flow.clone() })
}

/// Asks both ends at the sender's hook: what each of them allows, if that is a way for the packet. A packet is dropped by the
/// half that does not allow it, the sender's first.
fn both_at_once(
    field: &mut Field,
    objects: &Objects,
    flow: &Flow<'_>,
    look: Look,
) -> Option<(bool, bool)> {
    let other = other_end(objects, flow)?;
    let (sender, receiver) = if flow.ingress { (&other, flow) } else { (flow, &other) };
    let got = field.asks_both(sender, receiver.pod, look)?;
    let wants = [sender, receiver].map(|end| outcome(objects, end, look));
    let first = wants.iter().position(Result::is_err);
    let agree = match (first, got) {
        (None, Ok(())) => true,
        (Some(half), Err((reason, ingress))) => {
            ingress == (half == 1) && wants[half].is_err_and(|all| all.contains(&reason))
        }
        _ => false,
    };
    assert!(agree, "{got:?}, not {wants:?}: {look:?} {sender:?}\n{}", objects.text());
    Some((wants[0].is_ok(), wants[1].is_ok()))
}

#[test]
fn every_verdict_is_that_of_the_text() {
    let (packets, seed) = (setting("LB_JUDGED", 20_000), setting("LB_SEED", 1));
    let mut field = Field::new();
    let mut judged = BTreeMap::<(bool, bool), u64>::new();
    let mut together = BTreeMap::<(bool, bool), u64>::new();
    let mut looked = BTreeMap::<(&str, bool), u64>::new();
    for number in 0..packets.div_ceil(QUESTIONS) {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let objects = objects::generate(&mut random);
        field.become_(&objects);
        let pods: Vec<&Value> = locals(&objects).collect();
        for _ in 0..QUESTIONS {
            let pod = *random.choose(&pods);
            let peer = objects::peer(&objects, &mut random);
            if ips(pod).contains(&peer) {
                // What a Pod sends to itself never leaves it.
                continue;
            }
            let protocol = *random.choose(&objects::PROTOCOLS);
            let portless = matches!(protocol, "ICMP" | "GRE");
            let look = Look::choose(&mut random, peer.is_ipv4());
            let hidden = look == Look::Hidden;
            let port = if portless || hidden { 0 } else { *random.choose(&objects::PORTS) };
            let (ingress, from_host) = (random.below(2) == 0, random.below(4) == 0);
            let here = objects.is_local_node(NODE, peer);
            // Who made it matters where it bears an address of the node.
            let from_host = ingress && here && from_host;
            let flow = Flow { pod, ingress, peer, protocol, port, hidden, from_host };
            for flow in [Some(flow.clone()), other_end(&objects, &flow)].into_iter().flatten() {
                let (want, got) = (outcome(&objects, &flow, look), field.asks(&flow, look));
                let agree = match (want, got) {
                    (Ok(()), Ok(())) => true,
                    // With the node's address from elsewhere: it has no identity, whatever range contains it.
                    (Ok(()), Err("POLICY_ISOLATED" | "POLICY_DENIED")) => {
                        flow.ingress && here && !flow.from_host
                    }
                    (Err(reasons), Err(reason)) => reasons.contains(&reason),
                    _ => false,
                };
                assert!(
                    agree,
                    "{got:?}, not {want:?}: cluster {number} of seed {seed}: {look:?} {flow:?}\n{}",
                    objects.text()
                );
                *judged.entry((flow.ingress, want.is_ok())).or_default() += 1;
                *looked.entry((look.name(), want.is_ok())).or_default() += 1;
            }
            if let Some(both) = both_at_once(&mut field, &objects, &flow, look) {
                *together.entry(both).or_default() += 1;
            }
        }
    }
    println!("{packets} packets of seed {seed}; (ingress, allowed): {judged:?}");
    println!("by look, allowed or not: {looked:?}");
    println!("both halves at once, (sender, receiver) allow it: {together:?}");
    assert!(
        together.len() == 4 && together.values().all(|n| *n > packets / 1_000),
        "a search that finds one answer only: {together:?}"
    );
    assert!(
        judged.values().all(|n| *n > packets / 50),
        "a search that finds one answer only: {judged:?}"
    );
}
