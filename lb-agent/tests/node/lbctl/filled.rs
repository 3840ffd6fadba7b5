//! A node as the agent leaves it: maps pinned and filled, and a state directory.

use std::borrow::Cow;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use aya::maps::lpm_trie::Key as LpmKey;
use aya::maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::config::Config;
use lb_common::conntrack::{CtEntry, CtFlags, CtKey, scope};
use lb_common::endpoint::PodEntry;
use lb_common::flow::{proto, tcp};
use lb_common::limits::MAP_COUNTERS;
use lb_common::policy::{Bits, Group, GroupFlags, PolicyState, PortKey, tier};
use lb_common::service::{
    Affinity, AffinityKey, Backend, Frontend, FrontendFlags, FrontendKey, SourceRange, state,
};
use lb_common::verdict::{DropReason, drop_index};
use lb_core::names::{
    self, AgentInfo, BackendName, EndpointConditions, ExternalName, ExternalScope, GroupName,
    LAYOUT, Names, Place, PodName, PolicyName, PolicyRef, RejectedName, RuleName, ServiceName,
    State, Subsystem,
};
use lb_core::plan::{MapStore as _, Write};
use lb_kernel::bpf::clock::Clock;
use lb_kernel::bpf::load::{self, LoadOptions};
use lb_kernel::bpf::maps::{self, Tables};
use lb_kernel::bpf::pins::Pins;
use lb_kernel::bpf::store::Maps;
use nix::mount::{MntFlags, MsFlags};

/// ifindex of the loopback device, the one device that every namespace has.
const LO: u32 = 1;

/// A bpf file system and a state directory of our own; both go with it.
pub(crate) struct Node {
    root: PathBuf,
    pub(crate) pin_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
}

impl Node {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("lbctl-{}-{number}", std::process::id()));
        let bpffs = root.join("bpf");
        fs::create_dir_all(&bpffs).unwrap();
        nix::mount::mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), Some("mode=0755"))
            .unwrap();
        let node = Self { pin_dir: bpffs.join("lb"), state_dir: root.join("run"), root };
        fs::create_dir(&node.pin_dir).unwrap();
        fs::create_dir(&node.state_dir).unwrap();
        node.fill();
        node
    }

    /// The command, to be run on this node: in a network namespace that forwards, as a node's does.
    pub(crate) fn lbctl(&self, args: &[&str]) -> Command {
        const FORWARDING: &str = r#"
            echo 1 | tee /proc/sys/net/ipv4/ip_forward > /proc/sys/net/ipv6/conf/all/forwarding
            exec "$0" "$@"
        "#;
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", FORWARDING, env!("CARGO_BIN_EXE_lbctl")]);
        command.args(args).env("LB_PIN_DIR", &self.pin_dir).env("LB_STATE_DIR", &self.state_dir);
        command
    }

    /// `text` without what differs from run to run: the directory, and seconds (`19s` becomes `##s`).
    pub(crate) fn anonymous(&self, text: &str) -> String {
        let text = text.replace(&self.root.display().to_string(), "ROOT");
        let hide = |word: &str| match word.trim_end().strip_suffix('s') {
            Some(n) if n.parse::<u32>().is_ok() => word.replace(|c: char| c.is_ascii_digit(), "#"),
            _ => word.to_owned(),
        };
        text.split_inclusive(char::is_whitespace).map(hide).collect()
    }

    /// Another Pod, as the agent would add it.
    pub(crate) fn put_pod(&self, ifindex: u32, ip: &str) {
        let mut tables = Tables::open(&Pins::existing(&self.pin_dir).unwrap()).unwrap();
        let pod = PodEntry { ip4: Addr::from_ip(ip.parse().unwrap()), ..PodEntry::ZERO };
        tables.pods.insert(&ifindex, &pod, 0).unwrap();
    }

    /// Isolates the Pod in egress except for port 53 of all peers: group 1, which the name table calls that of the policy
    /// shop/deny-all.
    pub(crate) fn isolate(&self) {
        let pins = Pins::existing(&self.pin_dir).unwrap();
        let mut maps = Maps::open(&pins).unwrap();
        let bits = Bits { words: [1, 0, 0, 0] };
        let group = Group {
            any: [1, 0, 0, 0],
            accept: [1, 0, 0, 0],
            tiers: [tier::NETWORK_POLICY, 0, 0, 0],
            flags: GroupFlags::ISOLATED,
            ..Group::ZERO
        };
        let key = PortKey { group: 1, guess: 0, proto: proto::UDP, port: Be16::new(53) };
        let state = PolicyState { epoch: 1, ..PolicyState::ZERO };
        for op in [
            Write::PutPortBits { len: PortKey::ONE_PORT, key, bits },
            Write::PutGroup { id: 1, group: Box::new(group) },
            Write::PutPolicyState(state),
        ] {
            maps.apply(&op).unwrap();
        }
        let pod = Box::new(PodEntry { ip4: ip("10.1.0.9"), egress: 1, ..PodEntry::ZERO });
        maps.apply(&Write::PutPod { ifindex: LO, pod }).unwrap();
        let file = self.state_dir.join(names::FILE);
        let Ok(mut names) = names::read(&file) else { return };
        let policy = PolicyRef {
            namespace: Cow::Borrowed("shop"),
            name: Cow::Borrowed("deny-all"),
            tier: Cow::Borrowed("NetworkPolicy"),
        };
        names.policies.push(PolicyName {
            namespace: Cow::Borrowed("shop"),
            name: Cow::Borrowed("deny-all"),
            tier: Cow::Borrowed("NetworkPolicy"),
            generation: 1,
            subjects: 1,
            rules: 3,
            ..PolicyName::default()
        });
        names.groups.push(GroupName {
            id: 1,
            policies: vec![policy],
            rules: vec![RuleName { number: 0, policy: 0, ingress: false, index: 2 }],
            isolating: vec![0],
            ..GroupName::default()
        });
        names::write(&file, &names).unwrap();
    }

    /// A copy of the binary that all users may run: the build directory may be closed to others.
    pub(crate) fn binary_for_all(&self) -> PathBuf {
        let copy = self.root.join("lbctl");
        fs::copy(env!("CARGO_BIN_EXE_lbctl"), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        copy
    }

    /// What an agent holds while it lives.
    pub(crate) fn lock(&self) -> File {
        let file = File::create(self.state_dir.join("lock")).unwrap();
        file.lock().unwrap();
        file
    }

    /// Service shop/web (id 1) with two backends, and the Pod shop/client behind the loopback device.
    pub(crate) fn write_names(&self) {
        let text = Cow::Borrowed;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let backend = |id, pod, place| BackendName {
            id,
            service_id: 1,
            pod: text(pod),
            place,
            ..BackendName::default()
        };
        let names = Names {
            layout: LAYOUT,
            node: text("n1"),
            agent: AgentInfo {
                version: text(env!("CARGO_PKG_VERSION")),
                pid: 1,
                started: now - 86_400 * 4 - 3600 * 3 - 60,
                written: now - 600,
                synced: now - 630,
            },
            subsystems: vec![Subsystem {
                name: text("api"),
                state: State::Ok,
                detail: text("5 kinds listed"),
            }],
            services: vec![ServiceName {
                id: 1,
                namespace: text("shop"),
                name: text("web"),
                port_name: text("http"),
                port: 80,
                frontends: vec![at("10.96.0.1:80")],
                endpoints: 2,
                ready: 2,
                created: now - 86_400 * 9,
                ..ServiceName::default()
            }],
            backends: vec![backend(1, "shop/web-1", 1), backend(2, "shop/web-2", 2)],
            places: vec![
                Place { node: text("n1"), zone: text("a") },
                Place { node: text("n2"), zone: text("b") },
            ],
            pods: vec![PodName {
                ifindex: LO,
                iface: text("lo"),
                namespace: text("shop"),
                name: text("client"),
                created: now - 86_400 * 9,
            }],
            ..Names::default()
        };
        names::write(&self.state_dir.join(names::FILE), &names).unwrap();
    }

    /// The address of a load balancer for shop/web with every field: traffic policy Local, least connections, source
    /// ranges, affinity with a client that is still known and one that is not, a flow from outside; and with names an
    /// endpoint that is not ready.
    pub(crate) fn add_load_balancer(&self) {
        let pins = Pins::existing(&self.pin_dir).unwrap();
        let mut tables = Tables::open(&pins).unwrap();
        let lb = at(LOAD_BALANCER);
        let key = FrontendKey::new(Addr::from_ip(lb.ip()), Be16::new(lb.port()), proto::TCP);
        let frontend = Frontend {
            service_id: 1,
            flags: FrontendFlags::EXTERNAL
                | FrontendFlags::EXTERNAL_LOCAL
                | FrontendFlags::LEAST_CONNECTIONS
                | FrontendFlags::SOURCE_RANGES,
            base: 10,
            n: 2,
            local_base: 10,
            local_n: 1,
            affinity_secs: 3600,
            ..Frontend::ZERO
        };
        tables.frontends.put(&key, &frontend).unwrap();
        let range = SourceRange { service_id: 1, client: ip("203.0.113.0") };
        tables.source_ranges.put(&LpmKey::new(32 + 96 + 24, range), &1).unwrap();
        let clock = Clock::detect().unwrap();
        // The minutes that are shown stay the same for most of a minute.
        for (client, backend_id, seconds) in [("10.1.0.9", 2, 12), ("203.0.113.5", 1, 3662)] {
            let last = clock.ticks().unwrap() - u64::from(seconds * clock.hz);
            let key = AffinityKey { client: ip(client), service_id: 1 };
            let value = Affinity::new(backend_id, 7, last);
            tables.affinity.insert(&key, &value, 0).unwrap();
        }
        tables.loads.set(2, &5).unwrap();
        fill_external(&pins);
        let file = self.state_dir.join(names::FILE);
        let Ok(mut names) = names::read(&file) else { return };
        names.services[0].externals =
            vec![ExternalName { at: lb, scope: ExternalScope::LoadBalancer }];
        names.rejected.push(RejectedName {
            service_id: 1,
            endpoint: at("10.1.1.3:8080"),
            pod: Cow::Borrowed("shop/web-3"),
            place: 2,
            conditions: EndpointConditions::NotReady,
            why: Cow::Borrowed("not ready"),
        });
        names::write(&file, &names).unwrap();
    }

    fn fill(&self) {
        let options = LoadOptions {
            pin_dir: Some(&self.pin_dir),
            config: Config { hz: 250, ..Config::ZERO },
            ct_entries: 131_072,
        };
        // The pins keep the maps.
        drop(load::load(&options).unwrap());
        let pins = Pins::existing(&self.pin_dir).unwrap();
        let mut tables = Tables::open(&pins).unwrap();
        for (id, address) in [(1, "10.1.0.2:8080"), (2, "10.1.1.2:8080")] {
            let address = at(address);
            let backend = Backend {
                addr: Addr::from_ip(address.ip()),
                port: Be16::new(address.port()),
                proto: proto::TCP,
                state: state::ACTIVE,
                generation: 7,
                ..Backend::ZERO
            };
            tables.backends.set(id, &backend).unwrap();
            tables.slots.set(9 + id, &id).unwrap();
        }
        let cluster_ip: IpAddr = "10.96.0.1".parse().unwrap();
        let frontend = Frontend { service_id: 1, base: 10, n: 2, ..Frontend::ZERO };
        let web = FrontendKey::new(cluster_ip.into(), Be16::new(80), proto::TCP);
        tables.frontends.put(&web, &frontend).unwrap();
        let wildcard = FrontendKey::wildcard(cluster_ip.into());
        tables.frontends.put(&wildcard, &Frontend::ZERO).unwrap();
        drop(tables);
        self.put_pod(LO, "10.1.0.9");
        fill_ct(&pins);
        count_drops(&pins);
        fs::create_dir(pins.qdisc(LO)).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let unmounted = nix::mount::umount2(&self.root.join("bpf"), MntFlags::MNT_DETACH);
        let removed = fs::remove_dir_all(&self.root);
        if !std::thread::panicking() {
            unmounted.unwrap();
            removed.unwrap();
        }
    }
}

const LOAD_BALANCER: &str = "198.51.100.1:80";

fn ip(text: &str) -> Addr {
    Addr::from_ip(text.parse().unwrap())
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// client → web by way of backend 2, established and quiet for a minute; a name lookup without answer.
fn fill_ct(pins: &Pins) {
    let clock = Clock::detect().unwrap();
    let ago = |seconds: u32| clock.stamp().unwrap() - seconds * clock.hz / 256;
    let key = |remote: &str, port, protocol| CtKey {
        local: Addr::from_ip("10.1.0.9".parse().unwrap()),
        remote: Addr::from_ip(at(remote).ip()),
        local_port: Be16::new(port),
        remote_port: Be16::new(at(remote).port()),
        proto: protocol,
        veth: LO as u16,
        ..CtKey::ZERO
    };
    let nat = |to: &str, flags, last_seen| CtEntry {
        nat_addr: Addr::from_ip(at(to).ip()),
        nat_port: Be16::new(at(to).port()),
        aux_port: Be16::new(40_000),
        backend_id: 2,
        backend_gen: 7,
        last_seen,
        flags: flags | CtFlags::tcp(tcp::SYN, 0),
        ..CtEntry::ZERO
    };
    let mut ct: HashMap<MapData, CtKey, CtEntry> = maps::open_ct(pins).unwrap();
    let ack = CtFlags::tcp(tcp::ACK, 0);
    let entries = [
        (
            key("10.96.0.1:80", 40_000, proto::TCP),
            nat("10.1.1.2:8080", CtFlags::FORWARD | ack, ago(65)),
        ),
        (
            key("10.1.1.2:8080", 40_000, proto::TCP),
            nat("10.96.0.1:80", CtFlags::REPLY | CtFlags::tcp(0, tcp::ACK), ago(90)),
        ),
        (
            key("10.0.0.10:53", 5353, proto::UDP),
            CtEntry { last_seen: ago(20), flags: CtFlags::SEEN_OUT, ..CtEntry::ZERO },
        ),
    ];
    for (key, entry) in entries {
        ct.insert(&key, &entry, 0).unwrap();
    }
}

/// A client outside → the load balancer, on to backend 2 on another node from a port of this one.
fn fill_external(pins: &Pins) {
    let clock = Clock::detect().unwrap();
    let last_seen = clock.stamp().unwrap() - 65 * clock.hz / 256;
    let (client, node, backend) =
        (at("203.0.113.5:4000"), at("192.0.2.1:61000"), at("10.1.1.2:8080"));
    let key = |local: SocketAddr, remote: SocketAddr, scope| CtKey {
        local: Addr::from_ip(local.ip()),
        remote: Addr::from_ip(remote.ip()),
        local_port: Be16::new(local.port()),
        remote_port: Be16::new(remote.port()),
        proto: proto::TCP,
        scope,
        veth: 0,
    };
    let entry = |nat: SocketAddr, aux: SocketAddr, flags| CtEntry {
        nat_addr: Addr::from_ip(nat.ip()),
        nat_port: Be16::new(nat.port()),
        aux_addr: Addr::from_ip(aux.ip()),
        aux_port: Be16::new(aux.port()),
        backend_id: 2,
        backend_gen: 7,
        last_seen,
        // Both ends have spoken.
        flags: flags
            | CtFlags::EXTERNAL
            | CtFlags::MASQUERADED
            | CtFlags::tcp(tcp::SYN | tcp::ACK, tcp::SYN | tcp::ACK),
        ..CtEntry::ZERO
    };
    let lb = at(LOAD_BALANCER);
    let mut ct = maps::open_ct(pins).unwrap();
    let forward = key(lb, client, scope::EXTERNAL);
    ct.insert(&forward, &entry(backend, node, CtFlags::FORWARD), 0).unwrap();
    let reply = key(backend, node, scope::EXTERNAL_REPLY);
    ct.insert(&reply, &entry(lb, client, CtFlags::REPLY), 0).unwrap();
}

fn count_drops(pins: &Pins) {
    let map = MapData::from_pin(pins.map(&MAP_COUNTERS)).and_then(Map::from_map_data).unwrap();
    let mut counters: PerCpuArray<MapData, u64> = map.try_into().unwrap();
    let index = drop_index(DropReason::NoEndpoints, false);
    let n_cpus = counters.get(&index, 0).unwrap().len();
    // A part on each CPU, 1,000 in all.
    let others = n_cpus as u64 - 1;
    let values: Vec<u64> =
        (0..n_cpus).map(|cpu| if cpu == 0 { 1000 - others } else { 1 }).collect();
    counters.set(index, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
}
