//! Programs that a test is done with, for the next test of this process: the verifier takes most of a packet test's time.
//! Their maps are emptied first, so that a test cannot tell them from new ones.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf};
use lb_common::account::{AccountEntry, AccountKey};
use lb_common::budget::Budget;
use lb_common::config::{Config, Settings};
use lb_common::conntrack::{CtEntry, CtKey};
use lb_common::endpoint::{Dev, Ident, PodEntry, PodSource};
use lb_common::event::{SAMPLES, Sample};
use lb_common::fragment::{FragmentKey, FragmentPorts};
use lb_common::limits;
use lb_common::past::LocalEnd;
use lb_common::policy::{Bits, Group, HitKey, PeerKey, PolicyState, PortKey};
use lb_common::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, SourceRange};
use lb_kernel::bpf::load::{self, LoadOptions};

/// What is loaded, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShelfKind {
    pub(crate) programs: Vec<&'static str>,
    pub(crate) ct_entries: u32,
    pub(crate) config: Config,
}

static SHELF: Mutex<Vec<(ShelfKind, Ebpf)>> = Mutex::new(Vec::new());

/// Loaded programs; they go back to the shelf, unless their test failed.
#[derive(Debug)]
pub(crate) struct Programs {
    kind: ShelfKind,
    /// `None` only while it is dropped.
    ebpf: Option<Ebpf>,
    /// Elements of arrays that user space has written.
    pub(crate) written: BTreeSet<(String, u32)>,
}

impl Programs {
    pub(crate) fn take(kind: ShelfKind) -> Self {
        let mut shelf = SHELF.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = shelf.iter().position(|(known, _)| *known == kind);
        let ebpf = kept.map(|at| shelf.swap_remove(at).1);
        drop(shelf);
        let ebpf = Some(ebpf.unwrap_or_else(|| loaded(&kind)));
        Self { kind, ebpf, written: BTreeSet::new() }
    }
}

fn loaded(kind: &ShelfKind) -> Ebpf {
    let options = LoadOptions { pin_dir: None, config: kind.config, ct_entries: kind.ct_entries };
    let mut ebpf = load::open(&options).unwrap();
    for program in &kind.programs {
        load::load_tc(&mut ebpf, program).unwrap();
    }
    ebpf
}

impl Deref for Programs {
    type Target = Ebpf;

    fn deref(&self) -> &Ebpf {
        self.ebpf.as_ref().unwrap()
    }
}

impl DerefMut for Programs {
    fn deref_mut(&mut self) -> &mut Ebpf {
        self.ebpf.as_mut().unwrap()
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        // Which entries a table evicts depends on those it had before: one that is meant to be full is never used again.
        if std::thread::panicking() || self.kind.ct_entries < limits::CT {
            return;
        }
        let mut ebpf = self.ebpf.take().unwrap();
        for (name, map) in ebpf.maps_mut() {
            empty(name, map, &self.written);
        }
        SHELF.lock().unwrap_or_else(PoisonError::into_inner).push((self.kind.clone(), ebpf));
    }
}

/// Empties a map. One that is not listed here fails every test.
fn empty(name: &str, map: &mut Map, written: &BTreeSet<(String, u32)>) {
    match name {
        "frontends" => hash::<FrontendKey, Frontend>(map),
        "pods" => hash::<u32, PodEntry>(map),
        "own_flows" => hash::<CtKey, u32>(map),
        "fragments" => hash::<FragmentKey, FragmentPorts>(map),
        "affinity" => hash::<AffinityKey, Affinity>(map),
        "ident" => hash::<[u32; 4], Ident>(map),
        "devs" => hash::<u32, Dev>(map),
        "peer_bits" => hash::<PeerKey, Bits>(map),
        "macs" => hash::<u64, u32>(map),
        "ct" | "kept" => hash::<CtKey, CtEntry>(map),
        "accounts" => hash::<AccountKey, AccountEntry>(map),
        "hits" => hits(map),
        "source_ranges" => trie::<SourceRange, u32>(map),
        "port_bits" => trie::<PortKey, Bits>(map),
        "cidrs" => trie::<[u32; 4], u32>(map),
        "pod_ranges" => trie::<[u32; 4], u32>(map),
        "pod_sources" => trie::<PodSource, u32>(map),
        "slots" => array(map, 0_u32, of(name, written)),
        "backends" => array(map, Backend::ZERO, of(name, written)),
        // The programs count the flows of each backend.
        "loads" => array(map, 0_u32, of("backends", written).chain(of(name, written))),
        "settings" => array(map, Settings::ZERO, 0..1),
        "policy" => array(map, PolicyState::ZERO, 0..1),
        "frontend_ports" | "host_ports" | "former_ports" => array(map, 0_u64, of(name, written)),
        "groups" => array(map, Group::ZERO, of(name, written)),
        "links" => array(map, 0_u64, of(name, written)),
        "locals" => array(map, LocalEnd::ZERO, of(name, written)),
        // The programs write these.
        "budgets" => array(map, Budget::ZERO, 0..limits::BUDGETS),
        "counters" => per_cpu(map, 0_u64, limits::COUNTERS),
        "samples" => per_cpu(map, Sample::ZERO, SAMPLES),
        "events" => {
            let mut events = RingBuf::try_from(map).unwrap();
            while events.next().is_some() {}
        }
        // They lead to the maps above.
        "frontends_now" | "ranges_now" | "ident_now" | "slots_parts" | "backends_parts"
        | "loads_parts" => {}
        // Sockets have none here, and the programs read nothing from the scratch room that they did not write.
        "sk_nat" | "sk_more" | "scratch" => {}
        constant if constant.starts_with(".rodata") => {}
        other => panic!("map {other}: say in shelf.rs how it is emptied"),
    }
}

/// The elements of an array that were written.
fn of<'a>(name: &'a str, written: &'a BTreeSet<(String, u32)>) -> impl Iterator<Item = u32> + 'a {
    written.iter().filter(move |(map, _)| map == name).map(|(_, index)| *index)
}

fn hash<K: aya::Pod, V: aya::Pod>(map: &mut Map) {
    let mut map: HashMap<&mut MapData, K, V> = map.try_into().unwrap();
    let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
    for key in keys {
        // An LRU may have evicted it.
        drop(map.remove(&key));
    }
}

fn hits(map: &mut Map) {
    let mut map: PerCpuHashMap<&mut MapData, HitKey, u64> = map.try_into().unwrap();
    let keys: Vec<HitKey> = map.keys().map(Result::unwrap).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}

fn trie<K: aya::Pod, V: aya::Pod>(map: &mut Map) {
    let mut map: LpmTrie<&mut MapData, K, V> = map.try_into().unwrap();
    let keys: Vec<Key<K>> = map.keys().map(Result::unwrap).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}

fn array<V: aya::Pod>(map: &mut Map, zero: V, indices: impl Iterator<Item = u32>) {
    let mut map: Array<&mut MapData, V> = map.try_into().unwrap();
    for index in indices {
        map.set(index, &zero, 0).unwrap();
    }
}

fn per_cpu<V: aya::Pod>(map: &mut Map, zero: V, n: u32) {
    let mut map: PerCpuArray<&mut MapData, V> = map.try_into().unwrap();
    let n_cpus = aya::util::nr_cpus().unwrap().get() as usize;
    let zeros = || PerCpuValues::try_from(vec![zero; n_cpus]).unwrap();
    for index in 0..n {
        map.set(index, zeros(), 0).unwrap();
    }
}

/// Names of the maps that hold anything, read element by element and not by what was written.
pub(crate) fn used(ebpf: &Ebpf) -> Vec<String> {
    let mut names: Vec<String> = ebpf
        .maps()
        .filter(|(name, map)| holds(name, map))
        .map(|(name, _)| name.to_owned())
        .collect();
    names.sort();
    names
}

fn holds(name: &str, map: &Map) -> bool {
    match name {
        "frontends" => any_key::<FrontendKey, Frontend>(map),
        "pods" => any_key::<u32, PodEntry>(map),
        "own_flows" => any_key::<CtKey, u32>(map),
        "fragments" => any_key::<FragmentKey, FragmentPorts>(map),
        "affinity" => any_key::<AffinityKey, Affinity>(map),
        "ident" => any_key::<[u32; 4], Ident>(map),
        "devs" => any_key::<u32, Dev>(map),
        "peer_bits" => any_key::<PeerKey, Bits>(map),
        "macs" => any_key::<u64, u32>(map),
        "ct" | "kept" => any_key::<CtKey, CtEntry>(map),
        "accounts" => any_key::<AccountKey, AccountEntry>(map),
        "hits" => {
            PerCpuHashMap::<&MapData, HitKey, u64>::try_from(map).unwrap().keys().next().is_some()
        }
        "source_ranges" => any_prefix::<SourceRange, u32>(map),
        "port_bits" => any_prefix::<PortKey, Bits>(map),
        "cidrs" => any_prefix::<[u32; 4], u32>(map),
        "pod_ranges" => any_prefix::<[u32; 4], u32>(map),
        "pod_sources" => any_prefix::<PodSource, u32>(map),
        "slots" | "loads" => any_value(map, 0_u32),
        "backends" => any_value(map, Backend::ZERO),
        "settings" => any_value(map, Settings::ZERO),
        "policy" => any_value(map, PolicyState::ZERO),
        "frontend_ports" | "host_ports" | "former_ports" | "links" => any_value(map, 0_u64),
        "groups" => any_value(map, Group::ZERO),
        "locals" => any_value(map, LocalEnd::ZERO),
        "budgets" => any_value(map, Budget::ZERO),
        "counters" => any_of_cpus(map, 0_u64),
        "samples" => any_of_cpus(map, Sample::ZERO),
        // Reading the ring takes from it.
        "events" | "sk_nat" | "sk_more" | "scratch" => false,
        "frontends_now" | "ranges_now" | "ident_now" | "slots_parts" | "backends_parts"
        | "loads_parts" => false,
        constant if constant.starts_with(".rodata") => false,
        other => panic!("map {other}: say in shelf.rs how it is read"),
    }
}

fn any_key<K: aya::Pod, V: aya::Pod>(map: &Map) -> bool {
    HashMap::<&MapData, K, V>::try_from(map).unwrap().keys().next().is_some()
}

fn any_prefix<K: aya::Pod, V: aya::Pod>(map: &Map) -> bool {
    LpmTrie::<&MapData, K, V>::try_from(map).unwrap().keys().next().is_some()
}

fn any_value<V: aya::Pod + PartialEq>(map: &Map, zero: V) -> bool {
    Array::<&MapData, V>::try_from(map).unwrap().iter().any(|value| value.unwrap() != zero)
}

fn any_of_cpus<V: aya::Pod + PartialEq>(map: &Map, zero: V) -> bool {
    let values = PerCpuArray::<&MapData, V>::try_from(map).unwrap();
    values.iter().any(|cpus| cpus.unwrap().iter().any(|value| *value != zero))
}
