//! The kernel object on private maps, run packet by packet through `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions};
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::{self, Config};
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, scope};
use lb_common::event::FlowEvent;
use lb_common::flow::proto;
use lb_common::limits;
use lb_common::policy::{Bits, HitKey, Judgement, PeerKey};
use lb_common::service::{Backend, BackendFlags, Frontend, FrontendKey, SourceRange, state};
use lb_common::verdict::{Counter, DropReason, Outcome, drop_index, judged_index};

use crate::packet;
use crate::shelf::{self, Programs, ShelfKind};

/// What a program said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program, or to the stack.
    Next,
    /// Dropped.
    Drop,
    /// Out of another device.
    Redirect,
}

/// Entries of a small conntrack table.
const SMALL: u32 = 2_048;

/// The programs and their maps.
pub struct Bed {
    ebpf: Programs,
    next_service: u32,
    next_backend: u32,
    next_slot: u32,
    counters: BTreeMap<String, u64>,
}

impl Bed {
    /// With the programs of Pods' devices: the verifier takes its time for each, and more on an emulated machine.
    pub fn new() -> Self {
        Self::with(&limits::POD_PROGRAMS, 131_072, Config::ZERO)
    }

    /// The same, with a limit of new flows per second for a Pod.
    pub fn with_budget(pod_new_flows: u32) -> Self {
        Self::with(&limits::POD_PROGRAMS, 131_072, Config { pod_new_flows, ..Config::ZERO })
    }

    /// With a conntrack table that a flood fills quickly.
    pub fn small() -> Self {
        Self::with(&limits::POD_PROGRAMS, SMALL, Config::ZERO)
    }

    /// With those of the other devices as well.
    pub fn with_devices() -> Self {
        Self::with_device_programs(131_072, Config::ZERO)
    }

    /// With those of the other devices, and this many source ports of masqueraded flows.
    pub fn narrow_with_devices<const N: u32>() -> Self {
        Self::with_device_programs(131_072, Config { masquerade_n: N, ..Config::ZERO })
    }

    /// With those of the other devices, and with a small table.
    pub fn small_with_devices() -> Self {
        Self::with_device_programs(SMALL, Config::ZERO)
    }

    /// With the programs of Pods' devices, and those that count packets.
    pub fn counting_flows() -> Self {
        let counting = limits::ACCOUNT_PROGRAMS.map(|program| (program, program != "account_out"));
        let programs = [&limits::POD_PROGRAMS[..], &counting].concat();
        let features = config::Features::ACCOUNTS;
        Self::with(&programs, 131_072, Config { features, ..Config::ZERO })
    }

    fn with_device_programs(ct_entries: u32, set: Config) -> Self {
        let programs = [&limits::POD_PROGRAMS[..], &limits::DEV_PROGRAMS].concat();
        Self::with(&programs, ct_entries, set)
    }

    /// What is 0 in `set` is as usual.
    fn with(programs: &[(&'static str, bool)], ct_entries: u32, set: Config) -> Self {
        let hz = {
            let res = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
            (1_000_000_000 / res.tv_nsec()) as u32
        };
        let config = Config {
            hz,
            hairpin4: Addr::from_ip(config::HAIRPIN4.into()),
            hairpin6: Addr::from_ip(config::HAIRPIN6.into()),
            masquerade_base: u32::from(*config::MASQUERADE_PORTS.start()),
            masquerade_n: match set.masquerade_n {
                0 => config::MASQUERADE_PORTS.len() as u32,
                n => n,
            },
            answer_base: *config::MASQUERADE_PORTS.start(),
            answer_n: config::MASQUERADE_PORTS.len() as u16,
            ..set
        };
        let programs = programs.iter().map(|(program, _)| *program).collect();
        let ebpf = Programs::take(ShelfKind { programs, ct_entries, config });
        Self { ebpf, next_service: 1, next_backend: 1, next_slot: 1, counters: BTreeMap::new() }
    }

    /// A Service at `frontend` with these backends, and the wildcard of its address. Gives the backends' ids.
    pub fn service(&mut self, frontend: &str, protocol: u8, backends: &[&str]) -> Vec<u32> {
        let ids: Vec<u32> = backends.iter().map(|b| self.backend(b, protocol)).collect();
        self.frontend(frontend, protocol, &ids);
        ids
    }

    /// A new backend.
    pub fn backend(&mut self, addr: &str, protocol: u8) -> u32 {
        let id = self.next_backend;
        self.next_backend += 1;
        let addr: SocketAddr = addr.parse().unwrap();
        let backend = Backend {
            addr: Addr::from_ip(addr.ip()),
            port: Be16::new(addr.port()),
            proto: protocol,
            state: state::ACTIVE,
            generation: 1,
            flags: BackendFlags::CLUSTER,
            ..Backend::ZERO
        };
        self.set("backends", id, backend);
        id
    }

    /// Points a frontend at these backends.
    pub fn frontend(&mut self, addr: &str, protocol: u8, ids: &[u32]) {
        let addr: SocketAddr = addr.parse().unwrap();
        let base = self.next_slot;
        self.next_slot += ids.len() as u32;
        for (slot, id) in (base..).zip(ids) {
            self.set("slots", slot, *id);
        }
        let service_id = self.next_service;
        self.next_service += 1;
        let ip = Addr::from_ip(addr.ip());
        let n = ids.len() as u32;
        let frontend = Frontend { service_id, base, n, ..Frontend::ZERO };
        let mut frontends: HashMap<_, FrontendKey, Frontend> =
            self.ebpf.map_mut("frontends").unwrap().try_into().unwrap();
        let key = FrontendKey::new(ip, Be16::new(addr.port()), protocol);
        frontends.insert(&key, &frontend, 0).unwrap();
        frontends.insert(&FrontendKey::wildcard(ip), &Frontend::ZERO, 0).unwrap();
    }

    /// Writes an element of a hash map.
    pub fn put<K: aya::Pod, V: aya::Pod>(&mut self, map: &str, key: K, value: V) {
        let mut map: HashMap<_, K, V> = self.ebpf.map_mut(map).unwrap().try_into().unwrap();
        map.insert(&key, &value, 0).unwrap();
    }

    /// Reads an element of a hash map.
    pub fn get<K: aya::Pod, V: aya::Pod>(&self, map: &str, key: K) -> Option<V> {
        let map: HashMap<_, K, V> = self.ebpf.map(map).unwrap().try_into().unwrap();
        map.get(&key, 0).ok()
    }

    /// All elements of a hash map.
    pub fn all<K: aya::Pod, V: aya::Pod>(&self, map: &str) -> Vec<(K, V)> {
        let map: HashMap<_, K, V> = self.ebpf.map(map).unwrap().try_into().unwrap();
        map.iter().map(Result::unwrap).collect()
    }

    /// Writes an element of an array.
    pub fn set<V: aya::Pod>(&mut self, map: &str, index: u32, value: V) {
        self.ebpf.written.insert((map.to_owned(), index));
        let mut map: Array<_, V> = self.ebpf.map_mut(map).unwrap().try_into().unwrap();
        map.set(index, &value, 0).unwrap();
    }

    /// Reads an element of an array.
    pub fn at<V: aya::Pod>(&self, map: &str, index: u32) -> V {
        let map: Array<_, V> = self.ebpf.map(map).unwrap().try_into().unwrap();
        map.get(&index, 0).unwrap()
    }

    /// Lets clients with this prefix use a service port.
    pub fn source_range(&mut self, service_id: u32, client: Addr, bits: u32) {
        let mut map: LpmTrie<_, SourceRange, u32> =
            self.ebpf.map_mut("source_ranges").unwrap().try_into().unwrap();
        let skip = if client.is_v4() { 96 } else { 0 };
        let key = Key::new(32 + skip + bits, SourceRange { service_id, client });
        map.insert(&key, &1, 0).unwrap();
    }

    /// Removes an element of a hash map with values `V`.
    pub fn remove<K: aya::Pod, V: aya::Pod>(&mut self, map: &str, key: K) {
        let mut map: HashMap<_, K, V> = self.ebpf.map_mut(map).unwrap().try_into().unwrap();
        map.remove(&key).unwrap();
    }

    /// Removes an element of a longest-prefix map with values `V`.
    pub fn remove_prefix<K: aya::Pod, V: aya::Pod>(&mut self, map: &str, prefix: u32, key: K) {
        let mut map: LpmTrie<_, K, V> = self.ebpf.map_mut(map).unwrap().try_into().unwrap();
        map.remove(&Key::new(prefix, key)).unwrap();
    }

    /// Removes a conntrack entry, if it is there.
    pub fn forget(&mut self, key: CtKey) {
        let mut map: HashMap<_, CtKey, CtEntry> =
            self.ebpf.map_mut("ct").unwrap().try_into().unwrap();
        drop(map.remove(&key));
    }

    /// Writes an element of a longest-prefix map.
    pub fn put_prefix<K: aya::Pod, V: aya::Pod>(
        &mut self,
        map: &str,
        prefix: u32,
        key: K,
        value: V,
    ) {
        let mut map: LpmTrie<_, K, V> = self.ebpf.map_mut(map).unwrap().try_into().unwrap();
        map.insert(&Key::new(prefix, key), &value, 0).unwrap();
    }

    /// Takes all peers from a group.
    pub fn clear_bits(&mut self, group: u32) {
        let mut map: HashMap<_, PeerKey, Bits> =
            self.ebpf.map_mut("peer_bits").unwrap().try_into().unwrap();
        let keys: Vec<PeerKey> = map.keys().map(Result::unwrap).collect();
        for key in keys.into_iter().filter(|key| key.group == group) {
            map.remove(&key).unwrap();
        }
    }

    /// What policies said so far, by the names of the outcomes, each as often as it was.
    pub fn judged(&self) -> Vec<&'static str> {
        let map: PerCpuArray<_, u64> = self.ebpf.map("counters").unwrap().try_into().unwrap();
        let read = |index: u32| map.get(&index, 0).unwrap().iter().sum::<u64>();
        let mut said = Vec::new();
        for outcome in Outcome::ALL {
            for tier in 0..4 {
                for ingress in [false, true] {
                    let n = read(judged_index(outcome, tier, ingress));
                    said.extend((0..n).map(|_| outcome.name()));
                }
            }
        }
        said
    }

    /// Puts ids into new slots and gives the first slot.
    pub fn slots(&mut self, ids: &[u32]) -> u32 {
        let base = self.next_slot;
        self.next_slot += ids.len() as u32;
        for (slot, id) in (base..).zip(ids) {
            self.set("slots", slot, *id);
        }
        base
    }

    /// A new service id.
    pub fn service_id(&mut self) -> u32 {
        self.next_service += 1;
        self.next_service
    }

    /// Puts a backend into another state; death changes its generation.
    pub fn set_state(&mut self, id: u32, new: u8) {
        let mut backend: Backend = self.at("backends", id);
        backend.state = new;
        backend.generation += u32::from(new == state::DEAD);
        self.set("backends", id, backend);
    }

    /// Every conntrack entry.
    pub fn conntrack(&self) -> Vec<(CtKey, CtEntry)> {
        let ct: HashMap<_, CtKey, CtEntry> = self.ebpf.map("ct").unwrap().try_into().unwrap();
        ct.iter().map(Result::unwrap).collect()
    }

    /// Who decided how often: group, direction, outcome, number of the rule.
    pub fn hits(&self) -> Vec<String> {
        let hits: PerCpuHashMap<_, HitKey, u64> =
            self.ebpf.map("hits").unwrap().try_into().unwrap();
        let line = |(key, values): (HitKey, aya::maps::PerCpuValues<u64>)| {
            let direction = if key.ingress != 0 { "in" } else { "out" };
            let outcome = Outcome::ALL[usize::from(key.outcome)].name();
            let rule = Judgement::from_number(key.judgement).rule();
            let rule = rule.map_or("isolation".to_owned(), |number| format!("rule {number}"));
            let n: u64 = values.iter().sum();
            format!("{} {direction} {outcome} {rule}: {n}", key.group)
        };
        let mut lines: Vec<String> = hits.iter().map(Result::unwrap).map(line).collect();
        lines.sort();
        lines
    }

    /// Now, as the programs stamp it: that of an entry just written.
    pub fn stamp(&mut self) -> u32 {
        self.leave("10.1.0.254:9 > 10.2.0.254:9 udp");
        let key = self.conntrack().into_iter().find(|(key, _)| key.local_port == Be16::new(9));
        let (key, entry) = key.unwrap();
        self.forget(key);
        self.counted();
        entry.last_seen
    }

    /// Makes every conntrack entry look as if its last packet was `secs` ago.
    pub fn age(&mut self, secs: u32) {
        let hz = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
        let hz = (1_000_000_000 / hz.tv_nsec()) as u32;
        let entries = self.conntrack();
        let mut ct: HashMap<_, CtKey, CtEntry> =
            self.ebpf.map_mut("ct").unwrap().try_into().unwrap();
        for (key, mut entry) in entries {
            entry.last_seen = entry.last_seen.wrapping_sub(secs * hz / 256);
            if key.scope == scope::EXTERNAL_REPLY {
                // When it was opened.
                entry.epoch = entry.epoch.wrapping_sub(secs * hz);
            }
            ct.insert(&key, &entry, 0).unwrap();
        }
    }

    /// Runs raw bytes through a program.
    pub fn run(&self, program: &str, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        self.try_run(program, bytes).unwrap()
    }

    /// Runs raw bytes through a program; an error when the kernel does not take them for a packet.
    pub fn try_run(&self, program: &str, bytes: &[u8]) -> Result<(Verdict, Vec<u8>), ProgramError> {
        self.try_run_from(program, 0, bytes)
    }

    /// The same for a packet that came in by a device; 0 = this host made it.
    pub fn try_run_from(
        &self,
        program: &str,
        ingress_ifindex: u32,
        bytes: &[u8],
    ) -> Result<(Verdict, Vec<u8>), ProgramError> {
        // Offset of the field in `struct __sk_buff` (include/uapi/linux/bpf.h).
        const INGRESS_IFINDEX: usize = 36;
        let mut context = [0; 192];
        context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4]
            .copy_from_slice(&ingress_ifindex.to_ne_bytes());
        let program: &SchedClassifier = self.ebpf.program(program).unwrap().try_into().unwrap();
        let mut out = vec![0; 70_000];
        let mut options = TestRunOptions::new();
        options.data_in = Some(bytes);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = program.test_run(options)?;
        let verdict = match result.return_value as i32 {
            -1 => Verdict::Next,
            2 => Verdict::Drop,
            7 => Verdict::Redirect,
            other => panic!("return code {other}"),
        };
        out.truncate(result.data_size_out as usize);
        Ok((verdict, out))
    }

    /// Runs raw bytes as they leave the Pod.
    pub fn leave_bytes(&self, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        self.run("pod_out", bytes)
    }

    /// Runs raw bytes as they enter the Pod.
    pub fn enter_bytes(&self, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        self.run("pod_in", bytes)
    }

    /// Runs raw bytes as they enter the Pod, having come in by a device.
    pub fn enter_bytes_from(&self, ingress_ifindex: u32, bytes: &[u8]) -> Verdict {
        self.try_run_from("pod_in", ingress_ifindex, bytes).unwrap().0
    }

    /// A packet enters the Pod, having come in by a device.
    pub fn enter_from(&self, ingress_ifindex: u32, text: &str) -> String {
        let bytes = packet::build(text);
        let (verdict, bytes) = self.try_run_from("pod_in", ingress_ifindex, &bytes).unwrap();
        outcome(verdict, &bytes)
    }

    /// A packet leaves the Pod: `verdict packet`.
    pub fn leave(&self, text: &str) -> String {
        let (verdict, bytes) = self.leave_bytes(&packet::build(text));
        outcome(verdict, &bytes)
    }

    /// A packet enters the Pod.
    pub fn enter(&self, text: &str) -> String {
        let (verdict, bytes) = self.enter_bytes(&packet::build(text));
        outcome(verdict, &bytes)
    }

    /// A packet enters the node.
    pub fn arrive(&self, text: &str) -> String {
        let (verdict, bytes) = self.run("dev_in", &packet::build(text));
        outcome(verdict, &bytes)
    }

    /// A packet leaves the node.
    pub fn depart(&self, text: &str) -> String {
        let (verdict, bytes) = self.run("dev_out", &packet::build(text));
        outcome(verdict, &bytes)
    }

    /// Writes one half of a translated TCP connection: `local`'s packets to (or from) `remote` get `nat` instead.
    pub fn track(&mut self, local: &str, remote: &str, nat: &str, kind: CtFlags) {
        let id = self.backend(nat, proto::TCP);
        let parse = |text: &str| {
            let addr: SocketAddr = text.parse().unwrap();
            (Addr::from_ip(addr.ip()), Be16::new(addr.port()))
        };
        let ((local, local_port), (remote, remote_port)) = (parse(local), parse(remote));
        let (nat_addr, nat_port) = parse(nat);
        let veth = 1;
        let proto = proto::TCP;
        let key = CtKey { local, remote, local_port, remote_port, proto, scope: 0, veth };
        let ack = lb_common::flow::tcp::ACK;
        let entry = CtEntry {
            nat_addr,
            nat_port,
            aux_port: local_port,
            backend_id: id,
            backend_gen: 1,
            flags: kind | CtFlags::tcp(ack, ack) | CtFlags::SEEN_OUT | CtFlags::SEEN_IN,
            ..CtEntry::ZERO
        };
        let mut ct: HashMap<_, CtKey, CtEntry> =
            self.ebpf.map_mut("ct").unwrap().try_into().unwrap();
        ct.insert(&key, &entry, 0).unwrap();
    }

    /// Nanoseconds of one run of a program on these bytes, averaged by the kernel over `repeat` runs.
    pub fn nanos(&self, program: &str, bytes: &[u8], repeat: u32) -> u64 {
        let program: &SchedClassifier = self.ebpf.program(program).unwrap().try_into().unwrap();
        let mut options = TestRunOptions::new();
        options.data_in = Some(bytes);
        options.repeat = repeat;
        program.test_run(options).unwrap().duration.as_nanos() as u64
    }

    /// The Pod opens more flows than the table has room for, and is seen twice with each.
    pub fn flood(&self) {
        for i in 0..SMALL * 4 {
            let syn = packet::build(&format!("10.1.0.66:7 > 172.16.{}.{}:9 udp", i >> 8, i & 0xff));
            self.leave_bytes(&syn);
            self.leave_bytes(&syn);
        }
    }

    /// Source addresses of the events since the last call, in their order.
    pub fn events(&mut self) -> Vec<IpAddr> {
        let source = |event: &[u8]| {
            let source: [u8; 16] = event[..16].try_into().unwrap();
            IpAddr::from(source).to_canonical()
        };
        self.take_events(source)
    }

    /// Their devices.
    pub fn event_devices(&mut self) -> Vec<u32> {
        const AT: usize = std::mem::offset_of!(FlowEvent, ifindex);
        self.take_events(|event| u32::from_ne_bytes(event[AT..AT + 4].try_into().unwrap()))
    }

    fn take_events<T>(&mut self, read: impl Fn(&[u8]) -> T) -> Vec<T> {
        let mut events: RingBuf<_> = self.ebpf.map_mut("events").unwrap().try_into().unwrap();
        let mut all = Vec::new();
        while let Some(event) = events.next() {
            all.push(read(&event));
        }
        all
    }

    /// Names of the maps that hold anything, but for events.
    pub fn used_maps(&self) -> Vec<String> {
        shelf::used(&self.ebpf)
    }

    /// Packets dropped or refused so far, for whatever reason.
    pub fn dropped(&self) -> u64 {
        let map: PerCpuArray<_, u64> = self.ebpf.map("counters").unwrap().try_into().unwrap();
        let read = |index: u32| map.get(&index, 0).unwrap().iter().sum::<u64>();
        DropReason::ALL
            .into_iter()
            .map(|reason| read(drop_index(reason, false)) + read(drop_index(reason, true)))
            .sum()
    }

    /// The same except for the counters of events, which depend on the number of recent events.
    pub fn reasons(&mut self) -> String {
        let counted = self.counted();
        let words = counted.split(' ').filter(|word| !word.starts_with("event_"));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Counters that changed since the last call: `name+n`, sorted.
    pub fn counted(&mut self) -> String {
        let map: PerCpuArray<_, u64> = self.ebpf.map("counters").unwrap().try_into().unwrap();
        let read = |index: u32| map.get(&index, 0).unwrap().iter().sum::<u64>();
        let mut now = BTreeMap::new();
        for reason in DropReason::ALL {
            now.insert(format!("{}/out", reason.name()), read(drop_index(reason, false)));
            now.insert(format!("{}/in", reason.name()), read(drop_index(reason, true)));
        }
        for counter in Counter::ALL {
            now.insert(counter.name().to_owned(), read(counter.index()));
        }
        let changed: Vec<String> = now
            .iter()
            .filter_map(|(name, n)| {
                let before = self.counters.get(name).copied().unwrap_or(0);
                (*n > before).then(|| format!("{name}+{}", n - before))
            })
            .collect();
        self.counters = now;
        changed.join(" ")
    }
}

/// A verdict and its packet as text.
pub fn outcome(verdict: Verdict, bytes: &[u8]) -> String {
    match verdict {
        Verdict::Next => packet::show(bytes),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Redirect => format!("redirect {}", packet::show(bytes)),
    }
}

/// Protocol numbers by name, for tables of cases.
pub fn protocol(name: &str) -> u8 {
    match name {
        "tcp" => proto::TCP,
        "udp" | "udp0" => proto::UDP,
        other => panic!("protocol {other}"),
    }
}

/// An address of the family, from its last part.
pub fn addr(v4: bool, net: u8, host: u8) -> IpAddr {
    let text = if v4 { format!("10.{net}.0.{host}") } else { format!("fd00:{net}::{host}") };
    text.parse().unwrap()
}
