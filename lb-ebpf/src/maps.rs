//! The maps and typed access to them. What the agent and the programs agree on is in `lb-common`.

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap};
use aya_ebpf::macros::btf_map;
use lb_common::account::{AccountEntry, AccountKey, place};
use lb_common::addr::Addr;
use lb_common::be::Be16;
use lb_common::budget::{self, Budget};
use lb_common::config::{SettingFlags, Settings};
use lb_common::conntrack::CtKey;
use lb_common::endpoint::{self, Dev, Ident, PodEntry, PodSource};
use lb_common::fragment::{FragmentKey, FragmentPorts};
use lb_common::limits;
use lb_common::past::LocalEnd;
use lb_common::policy::{Bits, Group, HitKey, PeerKey, PolicyState, PortKey};
use lb_common::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange};
use lb_common::verdict::Counter;

use crate::kernel;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

// Tables that grow with the cluster. The programs reach each of them through an array of maps, so that the agent can put a
// larger map, or one part more, in place while packets come. The first map of each table is an ordinary map of the object.

type Frontends = HashMap<FrontendKey, Frontend, { limits::FRONTENDS as usize }, NO_PREALLOC>;
type Slots = Array<u32, { limits::SLOTS as usize }>;
type Backends = Array<Backend, { limits::BACKENDS as usize }>;
type Loads = Array<u32, { limits::BACKENDS as usize }>;
type SourceRanges = LpmTrie<SourceRange, u32, { limits::SOURCE_RANGES as usize }, NO_PREALLOC>;
type Idents = HashMap<Addr, Ident, { limits::IDENT as usize }, NO_PREALLOC>;

#[btf_map(name = "frontends")]
static FRONTENDS: Frontends = Frontends::new();

#[btf_map(name = "frontends_now")]
static FRONTENDS_NOW: ArrayOfMaps<Frontends, 1> = ArrayOfMaps::new();

#[btf_map(name = "slots")]
static SLOTS: Slots = Slots::new();

#[btf_map(name = "slots_parts")]
static SLOTS_PARTS: ArrayOfMaps<Slots, { limits::PARTS as usize }> = ArrayOfMaps::new();

#[btf_map(name = "backends")]
static BACKENDS: Backends = Backends::new();

#[btf_map(name = "backends_parts")]
static BACKENDS_PARTS: ArrayOfMaps<Backends, { limits::PARTS as usize }> = ArrayOfMaps::new();

#[btf_map(name = "loads")]
static LOADS: Loads = Loads::new();

#[btf_map(name = "loads_parts")]
static LOADS_PARTS: ArrayOfMaps<Loads, { limits::PARTS as usize }> = ArrayOfMaps::new();

#[btf_map(name = "source_ranges")]
static SOURCE_RANGES: SourceRanges = SourceRanges::new();

#[btf_map(name = "ranges_now")]
static RANGES_NOW: ArrayOfMaps<SourceRanges, 1> = ArrayOfMaps::new();

#[btf_map(name = "ident")]
static IDENT: Idents = Idents::new();

#[btf_map(name = "ident_now")]
static IDENT_NOW: ArrayOfMaps<Idents, 1> = ArrayOfMaps::new();

/// Not read on the hot path: conntrack keys carry the device.
#[btf_map(name = "pods")]
static PODS: HashMap<u32, PodEntry, { limits::PODS as usize }, NO_PREALLOC> = HashMap::new();

/// What this node's own processes, and Pods masqueraded by others, have sent from ports that frontends have.
#[btf_map(name = "own_flows")]
static OWN_FLOWS: LruHashMap<CtKey, u32, { limits::OWN_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "fragments")]
static FRAGMENT_PORTS: LruHashMap<FragmentKey, FragmentPorts, { limits::FRAGMENTS as usize }> =
    LruHashMap::new();

#[btf_map(name = "affinity")]
static AFFINITY: LruHashMap<AffinityKey, Affinity, { limits::AFFINITY as usize }> =
    LruHashMap::new();

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

#[btf_map(name = "pod_ranges")]
static POD_RANGES: LpmTrie<Addr, u32, { limits::POD_RANGES as usize }, NO_PREALLOC> =
    LpmTrie::new();

#[btf_map(name = "budgets")]
static BUDGETS: Array<Budget, { limits::BUDGETS as usize }> = Array::new();

#[btf_map(name = "links")]
static LINKS: Array<u64, { limits::LINKS as usize }> = Array::new();

#[btf_map(name = "macs")]
static MACS: HashMap<u64, u32, { limits::MACS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "locals")]
static LOCALS: Array<LocalEnd, { limits::PODS as usize }> = Array::new();

/// The loader makes it larger while flows are counted. Otherwise nothing uses it.
#[btf_map(name = "accounts")]
static ACCOUNTS: LruHashMap<AccountKey, AccountEntry, 1> = LruHashMap::new();

#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<u64, { limits::COUNTERS as usize }> = PerCpuArray::new();

#[inline(always)]
pub(crate) fn frontend(key: &FrontendKey) -> Option<&'static Frontend> {
    // SAFETY: values are replaced as a whole, and one found stays readable until the program ends (RCU), like the map
    // that it is in.
    unsafe { FRONTENDS_NOW.get(0)?.get(key) }
}

#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<u32> {
    let (part, index) = limits::slot_part(index);
    SLOTS_PARTS.get_value(part, &index).copied()
}

#[inline(always)]
pub(crate) fn backend(id: u32) -> Option<&'static Backend> {
    let (part, index) = limits::backend_part(id);
    BACKENDS_PARTS.get_value(part, &index)
}

/// Live flows of a backend.
#[inline(always)]
pub(crate) fn load(id: u32) -> u32 {
    // SAFETY: a live map value; a stale number only makes for a worse choice.
    load_place(id).map_or(0, |load| unsafe { load.read_volatile() })
}

#[inline(always)]
fn load_place(id: u32) -> Option<*mut u32> {
    let (part, index) = limits::backend_part(id);
    LOADS_PARTS.get_value_ptr_mut(part, &index)
}

/// A flow more, or one less, at a backend. Not atomic (the target has no atomic operations in Rust): what two CPUs lose
/// at the same moment is put right by the agent, which counts the entries of `ct` now and then.
#[inline(always)]
pub(crate) fn change_load(id: u32, more: bool) {
    let Some(load) = load_place(id) else { return };
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

/// Records the affinity of the client. If the map is full, the next connection of the client is balanced like the first.
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
    RANGES_NOW.get(0).is_some_and(|ranges| ranges.get(&key).is_some())
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
    unsafe { IDENT_NOW.get(0)?.get(addr) }
}

/// Whether another node takes its Pods' addresses from a range that has this one. For addresses that `ident` lacks: it has
/// the Pods of other nodes only if some policy needs them.
#[inline(always)]
pub(crate) fn is_pods_elsewhere(addr: &Addr) -> bool {
    POD_RANGES.get(&Key::new(128, *addr)).is_some()
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
    settings().is_some_and(|settings| settings.flags.contains(SettingFlags::OTHER_PROXY))
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

/// Whether a new flow of the Pod is within its budget. Not atomic: what two CPUs do at the same moment counts once.
#[inline(always)]
pub(crate) fn is_within_budget(pod: Option<&PodEntry>, ingress: bool) -> bool {
    let rate = kernel::pod_new_flows();
    let place = pod.and_then(|pod| budget::place(pod, ingress));
    let Some(budget) = place.filter(|_| rate != 0).and_then(|place| BUDGETS.get_ptr_mut(place))
    else {
        return true;
    };
    // SAFETY: a live, aligned map value.
    let (after, within) =
        budget::spend(unsafe { budget.read() }, kernel::ticks() as u32, rate, kernel::hz());
    // SAFETY: as above.
    unsafe { budget.write(after) };
    if !within {
        count(Counter::OverBudget);
    }
    within
}

/// The Pod behind this veth.
#[inline(always)]
pub(crate) fn pod(ifindex: u32) -> Option<&'static PodEntry> {
    // SAFETY: as in `frontend`.
    unsafe { PODS.get(&ifindex) }
}

/// The Pod of this number, as packets reach it past the IP stack. Elements are replaced as a whole.
#[inline(always)]
pub(crate) fn local(id: u32) -> Option<&'static LocalEnd> {
    LOCALS.get(id)
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

/// Counts a packet of `bytes` bytes, seen at a `place::*`. What came in is not counted again where it enters its Pod.
#[inline(always)]
pub(crate) fn account(key: &AccountKey, bytes: u64, at: u32) {
    if add_to_account(key, bytes, at) {
        return;
    }
    let account = AccountEntry { packets: 1, bytes, place: at, pad: 0 };
    if ACCOUNTS.insert(key, &account, u64::from(BPF_NOEXIST)).is_err() {
        // Another CPU was first.
        add_to_account(key, bytes, at);
    }
}

/// Returns whether the key has an element.
#[inline(always)]
fn add_to_account(key: &AccountKey, bytes: u64, at: u32) -> bool {
    let Some(account) = ACCOUNTS.get_ptr_mut(key) else { return false };
    // SAFETY: a live, aligned map value.
    let counted_at = unsafe { (&raw const (*account).place).read() };
    if counted_at != at {
        if at == place::EGRESS {
            return true;
        }
        // SAFETY: as above.
        unsafe { (&raw mut (*account).place).write(at) };
    }
    // SAFETY: as above.
    unsafe { add(&raw mut (*account).packets, 1) };
    // SAFETY: as above.
    unsafe { add(&raw mut (*account).bytes, bytes) };
    true
}

/// Adds to a number that other CPUs add to at the same time (`BPF_ATOMIC | BPF_ADD`).
///
/// # Safety
/// `place` is a live map value, aligned to 8 bytes.
#[inline(always)]
unsafe fn add(place: *mut u64, value: u64) {
    // SAFETY: by the caller's promise; the instruction writes nothing else.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({place} + 0) += {value}",
            place = in(reg) place,
            value = in(reg) value,
            options(nostack),
        );
    }
}

/// Forgets what was counted under the key; whether anything was.
#[inline(always)]
pub(crate) fn forget_account(key: &AccountKey) -> bool {
    ACCOUNTS.remove(key).is_ok()
}
