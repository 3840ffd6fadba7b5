//! The maps and typed access to them. What the agent and the programs agree on is in `lb-common`.

use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup, bpf_sock_addr};
use aya_ebpf::btf_maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::btf_maps::{
    Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage,
};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_jiffies64,
    bpf_ktime_get_ns, bpf_set_retval,
};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::budget::{self, Budget};
use lb_common::config::{Config, Settings, setting_flags};
use lb_common::conntrack::{self, CtEntry, CtKey};
use lb_common::endpoint::{self, Dev, Ident, Pod, PodSource};
use lb_common::event::{self, FlowEvent, Sample};
use lb_common::flow::Flow;
use lb_common::fragment::{FragmentKey, FragmentPorts};
use lb_common::limits;
use lb_common::policy::{Bits, Group, HitKey, PeerKey, PolicyState, PortKey};
use lb_common::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange};
use lb_common::socket::{REMEMBERED, SkMoreKey, SkNat, SkNatRing};
use lb_common::verdict::Counter;

use crate::conntrack::Nat;
use crate::packet::{Packet, Tuple};
use crate::parse::Parsed;
use crate::policy::Asked;

const RING_MASK: u32 = REMEMBERED as u32 - 1;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "frontends")]
static FRONTENDS: HashMap<FrontendKey, Frontend, { limits::FRONTENDS as usize }, NO_PREALLOC> =
    HashMap::new();

#[btf_map(name = "slots")]
static SLOTS: Array<u32, { limits::SLOTS as usize }> = Array::new();

#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, { limits::BACKENDS as usize }> = Array::new();

/// Not read on the hot path: conntrack keys carry the device.
#[btf_map(name = "pods")]
static PODS: HashMap<u32, Pod, { limits::PODS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "ct")]
static CT: LruHashMap<CtKey, CtEntry, { limits::CT as usize }> = LruHashMap::new();

/// Copies of the entries of translated connections that live. `ct` is everybody's, and a flood of flows evicts from it;
/// what is here only others of the same kind evict. Read where `ct` has nothing.
#[btf_map(name = "kept")]
static KEPT: LruHashMap<CtKey, CtEntry, { limits::KEPT as usize }> = LruHashMap::new();

/// What this node's own processes, and Pods masqueraded by others, have sent from ports that frontends have.
#[btf_map(name = "own_flows")]
static OWN_FLOWS: LruHashMap<CtKey, u32, { limits::OWN_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "fragments")]
static FRAGMENT_PORTS: LruHashMap<FragmentKey, FragmentPorts, { limits::FRAGMENTS as usize }> =
    LruHashMap::new();

#[btf_map(name = "affinity")]
static AFFINITY: LruHashMap<AffinityKey, Affinity, { limits::AFFINITY as usize }> =
    LruHashMap::new();

#[btf_map(name = "source_ranges")]
static SOURCE_RANGES: LpmTrie<SourceRange, u32, { limits::SOURCE_RANGES as usize }, NO_PREALLOC> =
    LpmTrie::new();

#[btf_map(name = "ident")]
static IDENT: HashMap<Addr, Ident, { limits::IDENT as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "devs")]
static DEVS: HashMap<u32, Dev, { limits::DEVS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map(name = "frontend_ports")]
static FRONTEND_PORTS: Array<u64, { limits::PORT_WORDS as usize }> = Array::new();

#[btf_map(name = "host_ports")]
static HOST_PORTS: Array<u64, { limits::PORT_WORDS as usize }> = Array::new();

#[btf_map(name = "former_ports")]
static FORMER_PORTS: Array<u64, { limits::PORT_WORDS as usize }> = Array::new();

#[btf_map(name = "loads")]
static LOADS: Array<u32, { limits::BACKENDS as usize }> = Array::new();

#[btf_map(name = "groups")]
static GROUPS: Array<Group, { limits::GROUPS as usize }> = Array::new();

#[btf_map(name = "peer_bits")]
static PEER_BITS: HashMap<PeerKey, Bits, { limits::PEER_BITS as usize }, NO_PREALLOC> =
    HashMap::new();

#[btf_map(name = "port_bits")]
static PORT_BITS: LpmTrie<PortKey, Bits, { limits::PORT_BITS as usize }, NO_PREALLOC> =
    LpmTrie::new();

#[btf_map(name = "cidrs")]
static CIDRS: LpmTrie<Addr, u32, { limits::CIDRS as usize }, NO_PREALLOC> = LpmTrie::new();

#[btf_map(name = "policy")]
static POLICY: Array<PolicyState, 1> = Array::new();

#[btf_map(name = "hits")]
static HITS: PerCpuHashMap<HitKey, u64, { limits::HITS as usize }, NO_PREALLOC> =
    PerCpuHashMap::new();

#[btf_map(name = "pod_sources")]
static POD_SOURCES: LpmTrie<PodSource, u32, { limits::POD_SOURCES as usize }, NO_PREALLOC> =
    LpmTrie::new();

#[btf_map(name = "budgets")]
static BUDGETS: Array<Budget, { limits::BUDGETS as usize }> = Array::new();

#[btf_map(name = "links")]
static LINKS: Array<u64, { limits::LINKS as usize }> = Array::new();

#[btf_map(name = "macs")]
static MACS: HashMap<u64, u32, { limits::MACS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "sk_nat")]
static SK_NAT: SkStorage<SkNatRing> = SkStorage::new();

/// Translations of sockets that have no room for them.
#[btf_map(name = "sk_more")]
static SK_MORE: LruHashMap<SkMoreKey, SkNat, { limits::SK_MORE as usize }> = LruHashMap::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, { limits::COUNTERS as usize }> = PerCpuArray::new();

/// Room for what a program works on: the stack of a program and its callees has 512 bytes in all, and the verifier
/// walks far fewer states when values are not on it. tc programs run with bottom halves off, so no other program of
/// this kind runs on the CPU in between.
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Value of `scratch`, private to the programs.
#[repr(C)]
pub(crate) struct Scratch {
    /// The packet at hand.
    pub(crate) parsed: Parsed,
    /// Key of the entry being written.
    pub(crate) key: CtKey,
    /// The entry being written.
    pub(crate) entry: CtEntry,
    /// Key of the other entry of a translated flow.
    pub(crate) partner: CtKey,
    /// An entry that is in the map, for the time of a question about it.
    pub(crate) other: CtEntry,
    /// The translation of a new flow.
    pub(crate) nat: Nat,
    /// The ends that the packet is to have when it goes on.
    pub(crate) to: Flow,
    /// The client and service port whose affinity is at hand.
    pub(crate) affinity: AffinityKey,
    /// A question to the routing table, and its answer.
    pub(crate) fib: bpf_fib_lookup,
    /// The Pod whose device this is, for the functions that ask for it one after another.
    pub(crate) hand: AtHand,
    /// An address that a Pod speaks for.
    pub(crate) claimed: Addr,
    /// The ends of a connection that a Pod's kernel is asked about.
    pub(crate) tuple: Tuple,
    /// The packet that the one at hand quotes.
    pub(crate) quoted: Parsed,
    /// Key of a datagram in pieces.
    pub(crate) fragment: FragmentKey,
    /// Number of the policies in force, as of the start of the program; 0 = there are none.
    pub(crate) epoch: u32,
    /// The device whose hook this is.
    pub(crate) ifindex: u32,
    /// The device by which the packet came in last; 0 when this host made it.
    pub(crate) ingress_ifindex: u32,
    /// The flow that policies judge.
    pub(crate) asked: Asked,
    /// The event being sent.
    pub(crate) event: FlowEvent,
    /// The packet of a refusal being built.
    pub(crate) answer: [u16; ANSWER_WORDS],
    /// The payload of a packet's first piece, while the rest of it is sent back; and what a checksum is made from.
    pub(crate) piece: [u32; PIECE / 4],
}

/// The Pod behind the device at hand, read from the map at most once a packet.
pub(crate) struct AtHand {
    /// What is known: [`UNREAD`] or others of them.
    state: u32,
    pod: Pod,
}

const UNREAD: u32 = 0;
const THERE: u32 = 1;
const UNKNOWN: u32 = 2;

impl AtHand {
    /// The Pod behind the device, which is the one at hand.
    #[inline(always)]
    pub(crate) fn get(&mut self, ifindex: u32) -> Option<&Pod> {
        if self.state == UNREAD {
            self.state = match pod(ifindex) {
                Some(pod) => {
                    self.pod = *pod;
                    THERE
                }
                None => UNKNOWN,
            };
        }
        if self.state == THERE { Some(&self.pod) } else { None }
    }
}

/// Bytes that have room for the payload of a piece.
pub(crate) const PIECE: usize = 4096;
const _: () = assert!(lb_common::fragment::PIECE_MOST as usize <= PIECE);

/// 16-bit words of the longest refusal: Ethernet, IPv6, ICMPv6 and the quoted packet.
pub(crate) const ANSWER_WORDS: usize = 55;

#[btf_map(name = "samples")]
static SAMPLES: PerCpuArray<Sample, { event::SAMPLES as usize }> = PerCpuArray::new();

#[btf_map(name = "events")]
static EVENTS: RingBuf<FlowEvent, { limits::EVENTS_BYTES as usize }> = RingBuf::new();

/// Written by the loader before the programs are loaded; constant for the verifier.
#[unsafe(no_mangle)]
static CFG: Config = Config::ZERO;

macro_rules! config_field {
    ($field:ident) => {
        // SAFETY: a static. Volatile, since the compiler sees zeroes where the loader puts values.
        unsafe { (&raw const CFG.$field).read_volatile() }
    };
}

#[inline(always)]
pub(crate) fn config_features() -> u32 {
    config_field!(features)
}

#[inline(always)]
pub(crate) fn config_hz() -> u32 {
    config_field!(hz)
}

/// The address that stands for a Pod which reaches itself through a Service.
#[inline(always)]
pub(crate) fn hairpin_addr(v4: bool) -> Addr {
    if v4 { config_field!(hairpin4) } else { config_field!(hairpin6) }
}

#[inline(always)]
pub(crate) fn frontend(key: &FrontendKey) -> Option<&'static Frontend> {
    // SAFETY: values are replaced as a whole, and one found stays readable until the program ends (RCU).
    unsafe { FRONTENDS.get(key) }
}

#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<u32> {
    SLOTS.get(index).copied()
}

#[inline(always)]
pub(crate) fn backend(id: u32) -> Option<&'static Backend> {
    BACKENDS.get(id)
}

/// Live flows of a backend.
#[inline(always)]
pub(crate) fn load(id: u32) -> u32 {
    // SAFETY: a live map value; a stale number only makes for a worse choice.
    LOADS.get_ptr(id).map_or(0, |load| unsafe { load.read_volatile() })
}

/// A flow more, or one less, at a backend. Not atomic (the target has no atomic operations in Rust): what two CPUs lose
/// at the same moment is put right by the agent, which counts the entries of `ct` now and then.
#[inline(always)]
pub(crate) fn change_load(id: u32, more: bool) {
    let Some(load) = LOADS.get_ptr_mut(id) else { return };
    // SAFETY: a live, aligned map value.
    let now = unsafe { load.read_volatile() };
    let then = if more { now.saturating_add(1) } else { now.saturating_sub(1) };
    // SAFETY: as above.
    unsafe { load.write_volatile(then) };
}

/// The client's affinity; copied, since another packet may replace it.
#[inline(always)]
pub(crate) fn affinity(key: &AffinityKey) -> Option<Affinity> {
    // SAFETY: copied at once; a slot recycled in between gives a backend id whose generation or lists do not fit.
    unsafe { AFFINITY.get(key) }.copied()
}

/// Notes the client's affinity. Without room for it the client is balanced anew, as after its timeout.
#[inline(always)]
pub(crate) fn put_affinity(key: &AffinityKey, affinity: &Affinity) {
    if AFFINITY.insert(key, affinity, u64::from(BPF_ANY)).is_err() {
        count(Counter::AffinityForgotten);
    }
}

/// Whether the client is in a source range of the service port.
#[inline(always)]
pub(crate) fn is_in_source_range(service_id: u32, client: &Addr) -> bool {
    const BITS: u32 = size_of::<SourceRange>() as u32 * 8;
    let key = Key::new(BITS, SourceRange { service_id, client: *client });
    SOURCE_RANGES.get(&key).is_some()
}

/// Whether an annotation of the Pod behind the device admits the source.
#[inline(always)]
pub(crate) fn is_admitted_source(ifindex: u32, addr: &Addr) -> bool {
    const BITS: u32 = size_of::<PodSource>() as u32 * 8;
    POD_SOURCES.get(&Key::new(BITS, PodSource { ifindex, addr: *addr })).is_some()
}

/// Whether the link-layer address is known to be at home behind the Pod's device.
#[inline(always)]
pub(crate) fn is_own_link(ifindex: u32, mac: u64) -> bool {
    let (index, word) = endpoint::link(ifindex, mac);
    LINKS.get(index) == Some(&word)
}

/// The device of the Pod on a bridge that has the link-layer address; 0 = this node.
#[inline(always)]
pub(crate) fn mac(mac: u64) -> Option<u32> {
    // SAFETY: copied at once.
    unsafe { MACS.get(&mac) }.copied()
}

/// Who has an address.
#[inline(always)]
pub(crate) fn ident(addr: &Addr) -> Option<&'static Ident> {
    // SAFETY: as in `frontend`.
    unsafe { IDENT.get(addr) }
}

/// A device that packets leave by.
#[inline(always)]
pub(crate) fn dev(ifindex: u32) -> Option<&'static Dev> {
    // SAFETY: as in `frontend`.
    unsafe { DEVS.get(&ifindex) }
}

/// Identity of an address that no Pod or node has.
#[inline(always)]
pub(crate) fn cidr(addr: &Addr) -> u32 {
    CIDRS.get(&Key::new(128, *addr)).copied().unwrap_or(0)
}

#[inline(always)]
pub(crate) fn group(index: u32) -> Option<&'static Group> {
    GROUPS.get(index)
}

#[inline(always)]
pub(crate) fn peer_bits(key: &PeerKey) -> Option<&'static Bits> {
    // SAFETY: as in `frontend`.
    unsafe { PEER_BITS.get(key) }
}

#[inline(always)]
pub(crate) fn port_bits(key: &PortKey) -> Option<&'static Bits> {
    PORT_BITS.get(&Key::new(PortKey::ONE_PORT, *key))
}

/// Number of the policies in force; 0 = there are none.
#[inline(always)]
pub(crate) fn epoch() -> u32 {
    policy_state().map_or(0, |state| state.epoch)
}

#[inline(always)]
pub(crate) fn policy_state() -> Option<&'static PolicyState> {
    POLICY.get(0)
}

/// Whether flows that are older than these programs are another proxy's.
#[inline(always)]
pub(crate) fn is_beside_another_proxy() -> bool {
    settings().is_some_and(|settings| settings.flags & setting_flags::OTHER_PROXY != 0)
}

#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Whether this node takes packets out of tunnels at the UDP port.
#[inline(always)]
pub(crate) fn is_tunnel_port(port: Be16) -> bool {
    let Some(settings) = settings() else { return false };
    let mut i = 0;
    while i < settings.tunnel_ports.len() && i < settings.n_tunnel_ports as usize {
        if settings.tunnel_ports.get(i).is_some_and(|tunnel| *tunnel == port) {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether some frontend has the port.
#[inline(always)]
pub(crate) fn is_frontend_port(port: u16) -> bool {
    let (word, bit) = limits::port_bit(port);
    FRONTEND_PORTS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Whether some frontend had the port and is gone, and flows to it may be left. Such a port is one of a frontend, too.
#[inline(always)]
pub(crate) fn is_former_port(port: u16) -> bool {
    let (word, bit) = limits::port_bit(port);
    FORMER_PORTS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Whether some backend that is a process of this host has the port.
#[inline(always)]
pub(crate) fn is_host_port(port: u16) -> bool {
    let (word, bit) = limits::port_bit(port);
    HOST_PORTS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Source ports of masqueraded flows: the first and their number.
#[inline(always)]
pub(crate) fn masquerade_ports() -> (u32, u32) {
    (config_field!(masquerade_base), config_field!(masquerade_n))
}

/// Whether answers to masqueraded flows come to the port.
#[inline(always)]
pub(crate) fn is_answer_port(port: u16) -> bool {
    port.wrapping_sub(config_field!(answer_base)) < config_field!(answer_n)
}

/// Whether a new flow of the Pod is within its budget. Not atomic: what two CPUs do at the same moment counts once.
#[inline(always)]
pub(crate) fn is_within_budget(pod: Option<&Pod>, ingress: bool) -> bool {
    let rate = config_field!(pod_new_flows);
    let place = pod.and_then(|pod| budget::place(pod, ingress));
    let Some(budget) = place.filter(|_| rate != 0).and_then(|place| BUDGETS.get_ptr_mut(place))
    else {
        return true;
    };
    // SAFETY: a live, aligned map value.
    let (after, within) =
        budget::spend(unsafe { budget.read() }, ticks() as u32, rate, config_hz());
    // SAFETY: as above.
    unsafe { budget.write(after) };
    if !within {
        count(Counter::OverBudget);
    }
    within
}

/// Now in ticks, as in [`Affinity::tick`].
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }
}

/// The Pod behind this veth.
#[inline(always)]
pub(crate) fn pod(ifindex: u32) -> Option<&'static Pod> {
    // SAFETY: as in `frontend`.
    unsafe { PODS.get(&ifindex) }
}

/// A conntrack entry in the map. Its fields are read and written one by one: other CPUs may do the same, and all
/// they can lose is a timestamp or a TCP flag that the next packet brings again.
#[derive(Clone, Copy)]
pub(crate) struct Tracked(NonNull<CtEntry>);

macro_rules! tracked_field {
    ($($field:ident: $type:ty),+) => {
        $(#[inline(always)]
        pub(crate) fn $field(self) -> $type {
            // SAFETY: points to a live map value for the run of the program.
            unsafe { (&raw const (*self.0.as_ptr()).$field).read() }
        })+
    };
}

impl Tracked {
    /// An entry that was just written to the map, as it is in the scratch room: to be read.
    #[inline(always)]
    pub(crate) fn written(entry: &mut CtEntry) -> Self {
        Self(NonNull::from(entry))
    }

    tracked_field!(
        nat_addr: Addr,
        aux_addr: Addr,
        nat_port: Be16,
        aux_port: Be16,
        backend_id: u32,
        backend_gen: u32,
        last_seen: u32,
        epoch: u32,
        flags: u32
    );

    /// Writes the number of the policies that allow the flow.
    #[inline(always)]
    pub(crate) fn set_epoch(self, epoch: u32) {
        // SAFETY: as in the readers; aligned 32-bit store.
        unsafe { (&raw mut (*self.0.as_ptr()).epoch).write(epoch) };
    }

    /// All of it.
    #[inline(always)]
    pub(crate) fn entry(self) -> CtEntry {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().read() }
    }

    /// Writes the flags.
    #[inline(always)]
    pub(crate) fn set_flags(self, flags: u32) {
        // SAFETY: as in the readers; aligned 32-bit store.
        unsafe { (&raw mut (*self.0.as_ptr()).flags).write(flags) };
    }

    /// Notes when the last packet came.
    #[inline(always)]
    pub(crate) fn stamp(self, now: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).last_seen).write(now) };
    }
}

#[inline(always)]
pub(crate) fn ct(key: &CtKey) -> Option<Tracked> {
    CT.get_ptr_mut(key).and_then(NonNull::new).map(Tracked)
}

/// What became of an insertion.
pub(crate) enum Inserted {
    Done,
    Taken,
    Failed,
}

/// This CPU's scratch room, for a packet.
#[inline(always)]
pub(crate) fn scratch_for(packet: Packet) -> Option<&'static mut Scratch> {
    let scratch = scratch()?;
    scratch.ifindex = packet.ifindex();
    scratch.ingress_ifindex = packet.ingress_ifindex();
    hand_over(&mut scratch.hand.state, UNREAD);
    Some(scratch)
}

/// Writes to the scratch room what a function is to read that finds the room by itself. Volatile: the compiler takes a
/// mutable reference for the only way to what is behind it, and would leave out what it sees nobody read.
#[inline(always)]
pub(crate) fn hand_over<T>(place: &mut T, value: T) {
    // SAFETY: a live place.
    unsafe { core::ptr::from_mut(place).write_volatile(value) };
}

/// This CPU's scratch room, as it is: for functions that the verifier checks once by themselves, and for what they left
/// there.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: index 0 exists; exclusive as said at the map.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Inserts only where nothing is.
#[inline(always)]
pub(crate) fn ct_claim(key: &CtKey, entry: &CtEntry) -> Inserted {
    const EEXIST: i32 = -17;
    match CT.insert(key, entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => Inserted::Done,
        Err(EEXIST) => Inserted::Taken,
        Err(_) => Inserted::Failed,
    }
}

/// Inserts or replaces. The kernel answers EBUSY or ENOMEM under contention; one more try usually gets through.
#[inline(always)]
pub(crate) fn ct_put(key: &CtKey, entry: &CtEntry) -> bool {
    CT.insert(key, entry, u64::from(BPF_ANY)).is_ok()
        || CT.insert(key, entry, u64::from(BPF_ANY)).is_ok()
}

/// Removes an entry; whether it was there.
#[inline(always)]
pub(crate) fn ct_delete(key: &CtKey) -> bool {
    CT.remove(key).is_ok()
}

/// The copy of an entry.
#[inline(always)]
pub(crate) fn kept(key: &CtKey) -> Option<Tracked> {
    KEPT.get_ptr_mut(key).and_then(NonNull::new).map(Tracked)
}

/// Keeps a copy of an entry; without one it can be evicted like any other. Whether there was room.
#[inline(always)]
pub(crate) fn keep(key: &CtKey, entry: &CtEntry) -> bool {
    KEPT.insert(key, entry, u64::from(BPF_ANY)).is_ok()
}

/// Forgets the copy of an entry; whether there was one.
#[inline(always)]
pub(crate) fn unkeep(key: &CtKey) -> bool {
    KEPT.remove(key).is_ok()
}

/// When the flow was seen last, if this node has sent it.
#[inline(always)]
pub(crate) fn own_flow(key: &CtKey) -> Option<u32> {
    // SAFETY: copied at once; a slot recycled in between gives another flow's time, which is about as true.
    unsafe { OWN_FLOWS.get(key) }.copied()
}

/// Notes that this node has sent it; whether there was room. Without, the answer is taken for a client's.
#[inline(always)]
pub(crate) fn put_own_flow(key: &CtKey, now: u32) -> bool {
    OWN_FLOWS.insert(key, &now, u64::from(BPF_ANY)).is_ok()
}

/// Remembers the ports of a datagram.
#[inline(always)]
pub(crate) fn fragment_put(key: &FragmentKey, ports: &FragmentPorts) {
    if FRAGMENT_PORTS.insert(key, ports, u64::from(BPF_ANY)).is_err() {
        count(Counter::FragmentForgotten);
    }
}

#[inline(always)]
pub(crate) fn fragment_get(key: &FragmentKey) -> Option<FragmentPorts> {
    // SAFETY: copied at once; a slot recycled in between gives another datagram's ports, of which the addresses, the
    // identification and the device would have to be equal.
    unsafe { FRAGMENT_PORTS.get(key) }.copied()
}

/// Now, as of [`conntrack::stamp`].
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: a helper without arguments.
    conntrack::stamp(unsafe { bpf_jiffies64() })
}

#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
pub(crate) fn count_index(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's slot of the value; programs of one CPU do not interrupt each other here, and a lost
        // increment would be all.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_index(counter.index());
}

/// Counts a judgement. What the map has no room for is not counted; `lb_map_entries` shows how full it is.
#[inline(always)]
pub(crate) fn hit(key: &HitKey) {
    match HITS.get_ptr_mut(key) {
        // SAFETY: this CPU's slot, see `count_index`.
        Some(hits) => unsafe { *hits += 1 },
        None => drop(HITS.insert(key, &1, u64::from(BPF_ANY))),
    }
}

/// Sends the event in the scratch room, unless this CPU sent many of its device or its sender lately. Fills in time and
/// suppressed count.
#[inline(always)]
pub(crate) fn emit(event: &mut FlowEvent) {
    let device = SAMPLES.get_ptr_mut(event::device_place(event.ifindex, event.reason));
    let sender = SAMPLES.get_ptr_mut(event::sender_place(event.ifindex, &event.src));
    let (Some(device), Some(sender)) = (device, sender) else { return };
    let window = now() << 8;
    // SAFETY: this CPU's slot, see `count_index`.
    let Sample { window: last, suppressed } = unsafe { device.read() };
    // SAFETY: as above.
    let Sample { window: last_sent, .. } = unsafe { sender.read() };
    let of_device = if last & !0xff == window { last & 0xff } else { 0 };
    let of_sender = if last_sent & !0xff == window { last_sent & 0xff } else { 0 };
    if of_device >= event::PER_DEVICE || of_sender >= event::PER_SENDER {
        // SAFETY: as above.
        unsafe { (*device).suppressed = suppressed.wrapping_add(1) };
        count(Counter::EventSuppressed);
        return;
    }
    // SAFETY: as above.
    unsafe { device.write(Sample { window: window | (of_device + 1), suppressed: 0 }) };
    // SAFETY: as above.
    unsafe { sender.write(Sample { window: window | (of_sender + 1), suppressed: 0 }) };
    event.suppressed = suppressed;
    // SAFETY: a helper without arguments.
    event.time_ns = unsafe { bpf_ktime_get_ns() };
    if EVENTS.output(event, 0).is_err() {
        count(Counter::EventLost);
    }
}

/// Whether the socket belongs to the host network namespace.
#[inline(always)]
pub(crate) fn is_host_socket(ctx: &SockAddrContext) -> bool {
    // SAFETY: valid context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    cookie == config_field!(netns_cookie)
}

/// What the socket of `ctx` remembers.
#[inline(always)]
pub(crate) fn remembered(ctx: &SockAddrContext) -> Option<NonNull<SkNatRing>> {
    NonNull::new(SK_NAT.get_ptr_mut(ctx))
}

/// The same, made when there is none; `None` when the kernel has no memory for it.
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext) -> Option<NonNull<SkNatRing>> {
    NonNull::new(SK_NAT.get_or_insert_ptr_mut(ctx, None))
}

/// A number that no other socket ever has.
#[inline(always)]
pub(crate) fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: valid context.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

/// A translation that its socket had no room for.
#[inline(always)]
pub(crate) fn more(key: &SkMoreKey) -> Option<&'static SkNat> {
    // SAFETY: read at once; a slot recycled in between gives another socket's translation, which is no worse than none.
    unsafe { SK_MORE.get(key) }
}

/// Remembers a translation that its socket has no room for; whether there was room here. Without, its answers come from the
/// backend.
#[inline(always)]
pub(crate) fn put_more(key: &SkMoreKey, nat: &SkNat) -> bool {
    SK_MORE.insert(key, nat, u64::from(BPF_ANY)).is_ok()
}

/// The place that the next translation takes, not yet masked.
#[inline(always)]
pub(crate) fn ring_next(ring: NonNull<SkNatRing>) -> u32 {
    // SAFETY: points to the socket's storage, which lives as long as the program runs.
    unsafe { (&raw const (*ring.as_ptr()).next).read() }
}

/// Reads place `index`, which the caller has masked to the ring.
#[inline(always)]
pub(crate) fn ring_get(ring: NonNull<SkNatRing>, index: u32) -> SkNat {
    // SAFETY: as in `ring_next`; the mask keeps the index inside, which the verifier proves again.
    let entries = unsafe { (&raw const (*ring.as_ptr()).entries).cast::<SkNat>() };
    // SAFETY: as above.
    unsafe { entries.add((index & RING_MASK) as usize).read() }
}

/// Writes place `index` and the new `next`.
#[inline(always)]
pub(crate) fn ring_set(ring: NonNull<SkNatRing>, index: u32, next: u32, entry: &SkNat) {
    // SAFETY: as in `ring_get`.
    let entries = unsafe { (&raw mut (*ring.as_ptr()).entries).cast::<SkNat>() };
    // SAFETY: as in `ring_get`.
    unsafe { entries.add((index & RING_MASK) as usize).write(*entry) };
    // SAFETY: as in `ring_next`.
    unsafe { (&raw mut (*ring.as_ptr()).next).write(next) };
}

/// Makes the system call of a refused socket operation fail with `errno`.
#[inline(always)]
pub(crate) fn set_errno(errno: i32) {
    // A refusal by the helper leaves EPERM, the default.
    // SAFETY: a helper with a plain number.
    let _: i32 = unsafe { bpf_set_retval(-errno) };
}

/// The address fields of a socket program's context.
#[derive(Clone, Copy)]
pub(crate) struct SockAddr(*mut bpf_sock_addr);

macro_rules! sock_field {
    ($name:ident, $set:ident, $($field:tt)+) => {
        #[inline(always)]
        pub(crate) fn $name(self) -> u32 {
            // SAFETY: valid context. Volatile: the verifier wants each field read by itself, at its width.
            unsafe { (&raw const (*self.0).$($field)+).read_volatile() }
        }

        #[inline(always)]
        pub(crate) fn $set(self, value: u32) {
            // SAFETY: as above; these fields are writable in the programs that use this.
            unsafe { (&raw mut (*self.0).$($field)+).write_volatile(value) };
        }
    };
}

impl SockAddr {
    #[inline(always)]
    pub(crate) fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    sock_field!(ip4, set_ip4, user_ip4);
    sock_field!(ip6_0, set_ip6_0, user_ip6[0]);
    sock_field!(ip6_1, set_ip6_1, user_ip6[1]);
    sock_field!(ip6_2, set_ip6_2, user_ip6[2]);
    sock_field!(ip6_3, set_ip6_3, user_ip6[3]);
    sock_field!(port, set_port, user_port);

    /// IP protocol number of the socket.
    #[inline(always)]
    pub(crate) fn protocol(self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).protocol).read_volatile() }
    }
}
