//! Capacities, map names and layout versions, and the pin directory: each once.

/// Directory of the pinned maps and links, in a bpf file system.
pub const PIN_DIR: &str = "/sys/fs/bpf/lb";
/// Directory of the agent's small files: the name table, the lock. On a tmpfs, so that it dies with the maps.
pub const STATE_DIR: &str = "/run/lb";
/// Directory of what is still of use after a reboot.
pub const CACHE_DIR: &str = "/var/lib/lb";

// Tables that grow with the cluster: what one has at first, and the most that it grows to. Arrays grow by parts of equal
// size, which stay where they are. Hash tables and tries are replaced by larger ones.

/// Frontends, ClusterIP wildcards included: at first.
pub const FRONTENDS: u32 = 262_144;
/// Frontends, the most.
pub const FRONTENDS_MAX: u32 = 1_048_576;
/// Parts of `slots`, `backends` and `loads`, the most.
pub const PARTS: u32 = 32;
/// Slots of a part: twice the backends, since a change writes a new range before the old one is released. A power of two.
pub const SLOTS: u32 = 131_072;
/// Slots, the most.
pub const SLOTS_MAX: u32 = PARTS * SLOTS;
/// Backends of a part: endpoint × service port. A power of two.
pub const BACKENDS: u32 = 65_536;
/// Backends, the most.
pub const BACKENDS_MAX: u32 = PARTS * BACKENDS;
/// Pods of one node.
pub const PODS: u32 = 4_096;
/// Budgets: of each Pod one for each direction.
pub const BUDGETS: u32 = 2 * PODS;
/// Elements of `links`, by the numbers of devices. Where two devices meet, one of them is looked up in `macs`.
pub const LINKS: u32 = 16_384;
/// Link-layer addresses on bridges: of Pods, and of this node's devices.
pub const MACS: u32 = PODS + DEVS;
/// Prefixes that annotations of Pods admit as sources.
pub const POD_SOURCES: u32 = 4_096;
/// Ranges of the Pods of other nodes.
pub const POD_RANGES: u32 = 65_536;
/// Conntrack entries, the least; the agent raises it with the node's memory.
pub const CT: u32 = 131_072;
/// Conntrack entries, the most.
pub const CT_MAX: u32 = 4_194_304;
/// Copies of entries of translated connections, the least.
pub const KEPT: u32 = 65_536;

/// Returns the capacity of the map `kept` for a conntrack table of `ct_entries` entries.
pub const fn kept_entries(ct_entries: u32) -> u32 {
    if ct_entries / 2 > KEPT { ct_entries / 2 } else { KEPT }
}

/// Returns the capacity of the map `accounts`, while flows are counted, for a conntrack table of `ct_entries` entries: two
/// directions of each flow.
pub const fn account_entries(ct_entries: u32) -> u32 {
    ct_entries.saturating_mul(2)
}
/// Datagrams in pieces that are remembered at the same time.
pub const FRAGMENTS: u32 = 8_192;
/// Flows of this node's own from ports that frontends have, at the same time.
pub const OWN_FLOWS: u32 = 8_192;
/// Ends of translations that their sockets have no room for.
pub const SK_MORE: u32 = 16_384;
/// Clients with session affinity.
pub const AFFINITY: u32 = 65_536;
/// Source ranges, each counted once for each service port and family: at first.
pub const SOURCE_RANGES: u32 = 16_384;
/// Source ranges, the most.
pub const SOURCE_RANGES_MAX: u32 = 262_144;
/// Addresses of Pods and nodes: at first.
pub const IDENT: u32 = 524_288;
/// Addresses of Pods and nodes, the most.
pub const IDENT_MAX: u32 = 1_048_576;
/// Devices that packets leave by.
pub const DEVS: u32 = 1_024;
/// 64-bit words of a set of ports.
pub const PORT_WORDS: u32 = 1_024;
/// Groups of policy rules: those of the Pods of one node, old and new ones at the same time.
pub const GROUPS: u32 = 8_192;
/// Pairs of group and identity that some rule connects.
pub const PEER_BITS: u32 = 262_144;
/// Prefixes of protocol and port, of all groups.
pub const PORT_BITS: u32 = 65_536;
/// Address ranges that policies distinguish.
pub const CIDRS: u32 = 65_536;
/// Pairs of group and judgement that are counted.
pub const HITS: u32 = 16_384;
/// Counters: 64 drop reasons × 2 directions, then [`crate::verdict::Counter`].
pub const COUNTERS: u32 = 256;
/// Bytes of the ring buffer `events`; a power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 262_144;

/// A pinned map: its name in the object, and the version of its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Name in the kernel object.
    pub name: &'static str,
    /// Version of the layout of its key and value; raised when either changes.
    pub version: u32,
}

/// `frontends`: [`crate::service::FrontendKey`] → [`crate::service::Frontend`].
pub const MAP_FRONTENDS: MapSpec = MapSpec { name: "frontends", version: 2 };
/// `slots`: slot (`u32`) → backend id (`u32`).
pub const MAP_SLOTS: MapSpec = MapSpec { name: "slots", version: 1 };
/// `backends`: backend id (`u32`) → [`crate::service::Backend`].
pub const MAP_BACKENDS: MapSpec = MapSpec { name: "backends", version: 1 };
/// `pods`: ifindex (`u32`) → [`crate::endpoint::PodEntry`].
pub const MAP_PODS: MapSpec = MapSpec { name: "pods", version: 4 };
/// `ct`: [`crate::conntrack::CtKey`] → [`crate::conntrack::CtEntry`].
pub const MAP_CT: MapSpec = MapSpec { name: "ct", version: 2 };
/// `fragments`: [`crate::fragment::FragmentKey`] → [`crate::fragment::FragmentPorts`].
pub const MAP_FRAGMENTS: MapSpec = MapSpec { name: "fragments", version: 2 };
/// `sk_nat`: socket → [`crate::socket::SkNatRing`].
pub const MAP_SK_NAT: MapSpec = MapSpec { name: "sk_nat", version: 1 };
/// `sk_more`: [`crate::socket::SkMoreKey`] → [`crate::socket::SkNat`].
pub const MAP_SK_MORE: MapSpec = MapSpec { name: "sk_more", version: 1 };
/// `counters`: index → packets, per CPU (`u64`).
pub const MAP_COUNTERS: MapSpec = MapSpec { name: "counters", version: 1 };
/// `samples`: [`crate::event::device_place`] or [`crate::event::sender_place`] → [`crate::event::Sample`], per CPU.
pub const MAP_SAMPLES: MapSpec = MapSpec { name: "samples", version: 2 };
/// `events`: ring buffer of [`crate::event::FlowEvent`].
pub const MAP_EVENTS: MapSpec = MapSpec { name: "events", version: 2 };

/// `affinity`: [`crate::service::AffinityKey`] → [`crate::service::Affinity`].
pub const MAP_AFFINITY: MapSpec = MapSpec { name: "affinity", version: 2 };
/// `source_ranges`: prefixes of [`crate::service::SourceRange`] → 1 (`u32`).
pub const MAP_SOURCE_RANGES: MapSpec = MapSpec { name: "source_ranges", version: 1 };
/// `ident`: [`crate::addr::Addr`] → [`crate::endpoint::Ident`].
pub const MAP_IDENT: MapSpec = MapSpec { name: "ident", version: 1 };
/// `devs`: ifindex (`u32`) → [`crate::endpoint::Dev`].
pub const MAP_DEVS: MapSpec = MapSpec { name: "devs", version: 1 };
/// `settings`: 0 → [`crate::config::Settings`].
pub const MAP_SETTINGS: MapSpec = MapSpec { name: "settings", version: 2 };
/// `frontend_ports`: word (`u32`) → 64 bits (`u64`), one for each port that some frontend has. The programs on the
/// node's devices ignore packets to other ports.
pub const MAP_FRONTEND_PORTS: MapSpec = MapSpec { name: "frontend_ports", version: 1 };
/// `host_ports`: the same for the ports of backends that are processes of this host.
pub const MAP_HOST_PORTS: MapSpec = MapSpec { name: "host_ports", version: 1 };
/// `former_ports`: the same for the ports of frontends that are gone, while flows to them may be left.
pub const MAP_FORMER_PORTS: MapSpec = MapSpec { name: "former_ports", version: 1 };
/// `own_flows`: [`crate::conntrack::CtKey`] in the scope of flows from outside → when it was seen last (`u32`, as in
/// [`crate::conntrack::CtEntry::last_seen`]): what this node has sent from the port of a frontend, and what is hence no
/// client's.
pub const MAP_OWN_FLOWS: MapSpec = MapSpec { name: "own_flows", version: 1 };
/// `loads`: backend id (`u32`) → live flows (`u32`), of Services that choose by them.
pub const MAP_LOADS: MapSpec = MapSpec { name: "loads", version: 1 };
/// `groups`: index (`u32`) → [`crate::policy::Group`].
pub const MAP_GROUPS: MapSpec = MapSpec { name: "groups", version: 1 };
/// `peer_bits`: [`crate::policy::PeerKey`] → [`crate::policy::Bits`].
pub const MAP_PEER_BITS: MapSpec = MapSpec { name: "peer_bits", version: 1 };
/// `port_bits`: prefixes of [`crate::policy::PortKey`] → [`crate::policy::Bits`].
pub const MAP_PORT_BITS: MapSpec = MapSpec { name: "port_bits", version: 2 };
/// `cidrs`: prefixes of [`crate::addr::Addr`] → identity (`u32`) of addresses that no Pod or node has.
pub const MAP_CIDRS: MapSpec = MapSpec { name: "cidrs", version: 1 };
/// `policy`: 0 → [`crate::policy::PolicyState`].
pub const MAP_POLICY: MapSpec = MapSpec { name: "policy", version: 1 };
/// `hits`: [`crate::policy::HitKey`] → new flows, per CPU (`u64`).
pub const MAP_HITS: MapSpec = MapSpec { name: "hits", version: 1 };

/// `pod_sources`: prefixes of [`crate::endpoint::PodSource`] → 1 (`u32`).
pub const MAP_POD_SOURCES: MapSpec = MapSpec { name: "pod_sources", version: 1 };

/// `pod_ranges`: prefixes of [`crate::addr::Addr`] that other nodes take their Pods' addresses from → 1 (`u32`). Empty while
/// all Pods are in `ident`.
pub const MAP_POD_RANGES: MapSpec = MapSpec { name: "pod_ranges", version: 1 };

/// `kept`: [`crate::conntrack::CtKey`] → [`crate::conntrack::CtEntry`], of translated connections that live.
pub const MAP_KEPT: MapSpec = MapSpec { name: "kept", version: 2 };

/// `budgets`: [`crate::budget::place`] → [`crate::budget::Budget`].
pub const MAP_BUDGETS: MapSpec = MapSpec { name: "budgets", version: 1 };

/// `links`: index → link-layer address that is at home behind a Pod's device (`u64`), both of [`crate::endpoint::link`].
pub const MAP_LINKS: MapSpec = MapSpec { name: "links", version: 1 };

/// `macs`: link-layer address ([`crate::endpoint::mac_number`]) → ifindex of the device of the Pod on a bridge that has it
/// (`u32`); 0 = this node.
pub const MAP_MACS: MapSpec = MapSpec { name: "macs", version: 1 };

/// `locals`: [`crate::endpoint::PodEntry::id`] → [`crate::past::LocalEnd`].
pub const MAP_LOCALS: MapSpec = MapSpec { name: "locals", version: 1 };

/// `frontends_now`: 0 → the map `frontends` that the programs use.
pub const MAP_FRONTENDS_NOW: MapSpec = MapSpec { name: "frontends_now", version: 1 };
/// `ranges_now`: 0 → the map `source_ranges` that the programs use.
pub const MAP_RANGES_NOW: MapSpec = MapSpec { name: "ranges_now", version: 1 };
/// `ident_now`: 0 → the map `ident` that the programs use.
pub const MAP_IDENT_NOW: MapSpec = MapSpec { name: "ident_now", version: 1 };
/// `slots_parts`: part of [`slot_part`] → its map. The first is `slots`.
pub const MAP_SLOTS_PARTS: MapSpec = MapSpec { name: "slots_parts", version: 1 };
/// `backends_parts`: part of [`backend_part`] → its map. The first is `backends`.
pub const MAP_BACKENDS_PARTS: MapSpec = MapSpec { name: "backends_parts", version: 1 };
/// `loads_parts`: part of [`backend_part`] → its map. The first is `loads`.
pub const MAP_LOADS_PARTS: MapSpec = MapSpec { name: "loads_parts", version: 1 };

/// `accounts`: [`crate::account::AccountKey`] → [`crate::account::AccountEntry`]. Pinned only while flows are counted; otherwise it
/// has room for one element and is not used.
pub const MAP_ACCOUNTS: MapSpec = MapSpec { name: "accounts", version: 1 };

/// Every pinned map.
pub const MAPS: [MapSpec; 41] = [
    MAP_FRONTENDS,
    MAP_SLOTS,
    MAP_BACKENDS,
    MAP_PODS,
    MAP_CT,
    MAP_FRAGMENTS,
    MAP_SK_NAT,
    MAP_SK_MORE,
    MAP_COUNTERS,
    MAP_SAMPLES,
    MAP_EVENTS,
    MAP_AFFINITY,
    MAP_SOURCE_RANGES,
    MAP_IDENT,
    MAP_DEVS,
    MAP_SETTINGS,
    MAP_FRONTEND_PORTS,
    MAP_HOST_PORTS,
    MAP_FORMER_PORTS,
    MAP_OWN_FLOWS,
    MAP_LOADS,
    MAP_GROUPS,
    MAP_PEER_BITS,
    MAP_PORT_BITS,
    MAP_CIDRS,
    MAP_POLICY,
    MAP_HITS,
    MAP_POD_SOURCES,
    MAP_POD_RANGES,
    MAP_KEPT,
    MAP_BUDGETS,
    MAP_LINKS,
    MAP_MACS,
    MAP_LOCALS,
    MAP_FRONTENDS_NOW,
    MAP_RANGES_NOW,
    MAP_IDENT_NOW,
    MAP_SLOTS_PARTS,
    MAP_BACKENDS_PARTS,
    MAP_LOADS_PARTS,
    MAP_ACCOUNTS,
];

/// The part that a slot is in, and its index there.
pub const fn slot_part(slot: u32) -> (u32, u32) {
    (slot / SLOTS, slot % SLOTS)
}

/// The part that a backend is in, and its index there.
pub const fn backend_part(id: u32) -> (u32, u32) {
    (id / BACKENDS, id % BACKENDS)
}

/// Word and bit of a port in `frontend_ports`, `host_ports` and `former_ports`.
pub const fn port_bit(port: u16) -> (u32, u64) {
    (port as u32 >> 6, 1 << (port & 63))
}

/// Programs of the kernel object attached to Pods' veths: name, and whether it sits on tc ingress of the host side.
pub const POD_PROGRAMS: [(&str, bool); 2] = [("pod_out", true), ("pod_in", false)];
/// Programs of the kernel object attached to the other devices: name, and whether it sits on tc ingress.
/// `dev_in_l3` is `dev_in` for devices without a link layer (tun, WireGuard). `dev_out` is attached only while a
/// backend is a process of this host, or datagrams come to a frontend at one of its addresses; it looks at the device's
/// kind itself.
pub const DEV_PROGRAMS: [(&str, bool); 4] =
    [("dev_in", true), ("dev_in_l3", true), ("dev_out", false), ("dev_out_l3", false)];
/// Programs that count the packets of flows, attached before the others while flows are counted: what comes in by a device with a
/// link layer, by one without; what enters a Pod.
pub const ACCOUNT_PROGRAMS: [&str; 3] = ["account_in", "account_in_l3", "account_out"];
/// The program that says whether a process of a Pod listens ([`crate::listening`]); it is pinned, not attached.
pub const LISTENING_PROGRAM: &str = "listening";
/// Programs attached to the root of the cgroup v2 hierarchy.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];
